# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Clusters of voxels across brains (Fig. 7)
#
# The embeddings of all subjects live in one space. Clustered together, do they fall into functional groups that the subjects
# share? The paper says so, and names food, words, faces, sports, indoor and outdoor scenes. The encoder never sees areas,
# categories or places of voxels.

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None

# %%
import matplotlib.pyplot as plt
from IPython.display import display

import ubrain
from ubrain.analysis import clusters
from ubrain.report import figures
from ubrain.report.studies import clustering

lab = ubrain.Lab("05_clusters", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Embeddings
#
# The only part of the encoder that belongs to a voxel. What is known of the voxels is for later comparison.

# %%
encoder = lab.encoder(lab.subjects)
embeddings, voxels = clustering.gather(lab, encoder)
everyone = clustering.pooled(embeddings)
print("(n_voxels, embedding_size) =", everyone.shape)
voxels.sample(3, random_state=seed)

# %% [markdown]
# ## How many clusters?
#
# K-means of embeddings scaled to length 1, several times for each number of clusters. **The rule**, set before looking: of the
# numbers whose stability is at least 0.9 × the best, the one with the highest silhouette. What to look for: a clear peak is a
# natural number; a flat curve makes the number a choice.

# %%
table, count = clustering.choose_count(lab, embeddings)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
figures.count_choice(axes, table, count)
lab.save(fig, "number")

# %% [markdown]
# ## Three methods
#
# **K-means** gives every voxel to a cluster. A **Gaussian mixture** allows clusters of different shape and
# size. **HDBSCAN** finds dense groups and their number itself, and leaves the rest as outliers. ARI: 1 is the same grouping, 0 chance.

# %%
size = lab.profile.clusters
kmeans = clusters.kmeans(everyone, count, size.restarts, seed)
mixture = clusters.mixture(everyone, count, size.components, size.restarts, seed)
hdbscan = clusters.hdbscan(everyone, size.least, size.components, seed)
print("k-means: centres", kmeans.centres.shape, "labels", kmeans.labels.shape)
clustering.method_table(lab, [kmeans, mixture, hdbscan], voxels).round(3)

# %% [markdown]
# ## Is it stable?
#
# Over seeds: another start of k-means. Over subjects: the centres are fitted without a subject, whose voxels then join the
# nearest centre; at 1, the others alone would have given the same clusters.

# %%
seeds = clustering.seed_table(lab, embeddings, voxels, count)
held_out = clustering.held_out_table(lab, embeddings, kmeans)
display(
    seeds.round(3), held_out.round(3) if len(held_out) else "one subject only: none can be held out"
)

# %% [markdown]
# ## What does each cluster respond to?
#
# The mean **predicted** response of each cluster to the test images of all subjects, and what is on its top images more often
# than on all images (hypergeometric test, false discovery rate 5 %).

# %%
rows = clustering.test_rows(lab)
responses = clustering.mean_responses(lab, encoder, kmeans.labels, rows)
best = clustering.top_images(responses, clustering.n_top(lab, rows))
print("mean responses: (n_clusters, n_images) =", responses.shape)
shown = clustering.image_features(lab, rows)  # (n_images, n_features) booleans
is_top = clustering.are_top(responses, best.shape[1])  # (n_clusters, n_images) booleans
on_images = clusters.enrichment(is_top, shown)
frequent = on_images[(on_images["q"] < 0.05) & (on_images["share"] >= clustering.OF_IMAGES)]
frequent.assign(cluster=frequent["cluster"] + 1).head(12).round(3)

# %% [markdown]
# ## What does a cluster lose when an object is taken out?
#
# What is frequent on preferred images need not be what a cluster responds to: places are often behind food. A simulation can
# ask directly: test scenes are rendered again without the faces on them, say; every other pixel stays. A cluster is named after
# what costs it at least half a standard deviation of **predicted** response; *early* has at least half of its voxels in V1 to V4.
# Recordings cannot be asked; there areas name a cluster. What to look for: do early clusters differ in where they look?

# %%
without = clustering.counterfactuals(lab, rows)
falls, names = {}, clustering.image_names(is_top, shown)
if without is not None:
    falls["predicted"] = clustering.predicted_falls(lab, encoder, kmeans, rows, without)
    names = clustering.counterfactual_names(lab, falls["predicted"], without)
in_areas = clusters.enrichment(kmeans.members, clustering.area_features(voxels))
named = clustering.name_clusters(kmeans, voxels, names, in_areas)
clustering.cluster_table(lab, named, in_areas, voxels).head(12).round(2)

# %% [markdown]
# The names come from the left panel. The right one checks it: the **true** noiseless responses to the same images. What to look
# for: one strong column for each category cluster, the same in both. The table: how much more clusters lose without what they
# are named after than other category clusters change, in standard deviations; 95 % interval over scenes.

# %%
fig, axes = plt.subplots(1, 2, figsize=(13, 5))
if without is not None:
    falls["true"] = clustering.true_falls(lab, kmeans, without)
for ax, (kind, fall) in zip(axes, falls.items(), strict=False):
    table = clustering.mean_falls(fall, without).set_axis(named.titles)
    figures.falls(ax, table, f"{kind} response")
for ax in axes[len(falls) :]:
    figures.text_only(ax, "real recordings: their images cannot be drawn again")
lab.save(fig, "counterfactual")

# %%
contrasts = clustering.fall_contrasts(lab, named, falls, without)
if len(contrasts):
    look = {"by": "response", "columns": "object", "digits": 2}
    display(figures.compact(contrasts, "difference", **look))

# %% [markdown]
# The first 8 of the top images. What to look for: can you name the rows yourself, before reading the names?

# %%
pixels = [lab.pictures(rows[row]) for row in best[:, :8]]
fig, axes = plt.subplots(len(pixels), len(pixels[0]), figsize=(11, 1.2 * len(best)), squeeze=False)
figures.image_rows(axes, pixels, named.titles)
lab.save(fig, "top_images")

# %% [markdown]
# ## Where are the voxels of each area?
#
# Each row sums to 100 %. What to look for: areas of one function in the same column, early areas together.

# %%
fig, ax = plt.subplots(figsize=(10, 5.5))
by_area = clustering.composition(named, voxels, "area")
figures.composition(ax, by_area, "area")
lab.save(fig, "areas")

# %% [markdown]
# ## Clusters on the cortex
#
# Each subject on the flattened surface (fsaverage5), with outlines of areas, which were not used to find the clusters.

# %%
colours = figures.cluster_colours(named.labels, named.n_clusters)
keys = dict(zip(named.titles, figures.palette(named.n_clusters), strict=True))
fig = figures.flatmaps(voxels, colours, clustering.outlines(voxels))
figures.colour_key(fig, keys)
lab.save(fig, "cortex")

# %% [markdown]
# ## A map of all embeddings
#
# t-SNE puts similar embeddings near each other; axes and distances between groups mean nothing. What to look for: if subjects
# mix everywhere, the space is shared; if clusters and areas are patches, function organises it.

# %%
places = lab.kept(clusters.map_2d, everyone, size.map_sample, seed=seed)
smooth = figures.plane_colours(places)
fig, axes = plt.subplots(2, 2, figsize=(11, 8))
figures.plane(axes[0, 0], places, colours, keys, title="cluster")
groups = {"area": figures.area_groups(voxels["area"]), "subject": voxels["subject"]}
for ax, (title, group) in zip(axes.flat[1:], groups.items(), strict=False):
    figures.plane(ax, places, *figures.group_colours(group), title=title)
figures.plane(axes[1, 1], places, smooth, title="a colour for each place")
lab.save(fig, "map")

# %% [markdown]
# The last panel's colours on the cortex: neighbours that share a colour have similar embeddings, without any choice of clusters.

# %%
fig = figures.flatmaps(voxels, smooth, clustering.outlines(voxels))
lab.save(fig, "map_on_cortex")

# %% [markdown]
# ## The truth
#
# A simulated voxel has a true functional type; V1, V2 and V3 do nearly the same here and are not told apart. Category types
# leave out the early areas. The second table is the yardstick: what the true types themselves would reach as clusters.

# %%
yardstick = clustering.yardstick(lab, embeddings, voxels)
display(clustering.known_table(lab, kmeans.labels, voxels).round(3), yardstick.round(3))
fig, ax = plt.subplots(figsize=(10, 4.5))
if (voxels["type"] != "").any():
    figures.composition(ax, clustering.composition(named, voxels, "type"), "true type")
else:
    figures.text_only(ax, "real recordings: the true types are unknown")
lab.save(fig, "types")

# %% [markdown]
# ## Do weak voxels matter?
#
# An option: fit only on voxels whose **val** responses are predicted above chance (p < 0.05 each).

# %%
keep = clustering.reliable(lab, encoder)
print(f"{keep.sum()} of {len(keep)} voxels pass")
clustering.filter_table(lab, embeddings, voxels, keep, kmeans).round(3)

# %% [markdown]
# ## Inside one cluster
#
# The largest cluster outside of the early areas, clustered again by the same rule; the images are those that a sub-cluster is
# predicted to prefer **more than its whole cluster**. An ARI between runs from 0.8 is good agreement (Steinley 2004); below 0.8 no split is reported.

# %%
largest = clustering.largest_category_cluster(named, voxels)
parts, stability = clustering.split(lab, embeddings, named, largest)
inner = clustering.mean_responses(lab, encoder, parts.labels, rows)
beyond = inner - parts.sizes @ inner / parts.sizes.sum()  # (n_sub_clusters, n_images)
parts, in_areas = clustering.evidence(lab, parts, voxels, beyond, rows)
print(f"inside cluster {named.titles[largest]}: stability {stability:.3f} (ARI between runs)")
clustering.cluster_table(lab, parts, in_areas, voxels).round(2)

# %%
pixels = [lab.pictures(rows[row]) for row in clustering.top_images(beyond, 8)]
figsize = (11, 1.3 * len(pixels))
fig, axes = plt.subplots(len(pixels), len(pixels[0]), figsize=figsize, squeeze=False)
figures.image_rows(axes, pixels, parts.titles)
lab.save(fig, "sub_clusters")

# %% [markdown]
# ## With care
#
# - **Length.** An embedding's length follows how strongly a voxel responds, its direction to what; so all are scaled to length 1.
# - **Number.** Each run of k-means has another seed and another 80 % of the voxels. After a first run the number of restarts was
#   raised; the rule stayed. So many dimensions keep silhouettes low, also that of the true types.
# - **Outliers.** For the ARI all outliers together are one more group, so that many of them lower it.
# - **Stability.** The encoder was trained with everybody, so it tests the clustering, not the whole method; another world (`seed`) does.
# - **Names.** The areas behind *early* have at least a fifth of its voxels each, and more than by chance; early voxels respond to
#   contrast where they look, whatever the object. *Place* means indoor and outdoor. A second word must hold among the scenes that
#   show the first, too, and 95 % intervals lie above 0. Only the renderer and the encoder are used, nothing of the simulated brains.
#   In a simulation a name can be trusted as far as the two panels agree; for recordings, and inside one cluster, it says where voxels
#   are or what is on preferred images, not why. The images of recordings come without descriptions.
# - **Splits.** One that is not stable may halve a continuum; a stable one is no proof of groups either: in a simulation a voxel has,
#   besides its category, small random weights on everything else, without groups.
# - **Homogeneity** is 1 if a cluster holds one type only, *completeness* if a type lies in one cluster only. For recordings only areas
#   are known: they are no truth, since an area may hold several functions. Neighbouring voxels are not independent draws: read the
#   p values of areas as an order.
# - **Flat maps.** Where a subject has few voxels, outlines come from the voxels of all. The cut of the surface hides a few voxels.

# %%
lab.finish()
