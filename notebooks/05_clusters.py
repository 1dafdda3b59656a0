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
# The embeddings of all subjects live in one space, so they can be clustered together. Do clusters come out that are functional
# groups, shared by the subjects, at sensible places of the cortex? The paper says so, and names food, words, faces, sports,
# indoor and outdoor scenes.
#
# **What is added here.** More than two subjects, methods that cope with outliers, a rule for the number of clusters,
# stability over seeds and over held-out subjects, names that need evidence, outlines of known areas, and, for a simulated
# crowd, agreement with the truth. The encoder never sees areas, categories or places of voxels.

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import ubrain
from ubrain.analysis import clusters
from ubrain.report import figures
from ubrain.report.studies import clustering

lab = ubrain.Lab("05_clusters", crowd, profile, seed, subjects)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Embeddings
#
# The only thing of the encoder that belongs to a voxel. Beside them lies what is known of the voxels, to be compared with later.

# %%
encoder = lab.encoder(lab.subjects)
embeddings, voxels = clustering.gather(lab, encoder)
everyone = clustering.pooled(embeddings)
length = np.linalg.norm(everyone, axis=1)
print("(n_voxels, embedding_size) =", everyone.shape)
print(f"length {length.min():.2f} to {length.max():.2f}; after scaling:", end=" ")
print(f"{np.linalg.norm(clusters.unit(everyone), axis=1).mean():.2f}")
voxels.sample(3, random_state=seed)

# %% [markdown]
# ## How many clusters?
#
# Every embedding is scaled to length 1: its length follows how strongly a voxel responds, its direction to what. K-means
# then runs several times for each number of clusters, each time with another seed and another 80 % of the voxels.
# **The rule**, set before looking: of the numbers whose stability is at least 0.9 × the best, take the one with the
# highest silhouette. (After a first run the number of k-means restarts was raised; the rule stayed.) What to look
# for: a clear peak says that there is a natural number; a flat curve, that the number is a choice more than a finding. How
# high it lies says less: so many dimensions keep silhouettes low, also that of the true types (see *The truth*).

# %%
table, count = clustering.choose_count(lab, embeddings)
fig, ax = plt.subplots(figsize=(6.5, 3.8))
figures.count_choice(ax, table, count)
lab.save(fig, "number")

# %% [markdown]
# ## Three methods
#
# **K-means**, as in the paper, gives every voxel to a cluster. A **Gaussian mixture** allows long clusters and ones of
# different size. **HDBSCAN** looks for dense groups, finds their number itself, and leaves the rest as outliers. All are
# compared with k-means, with areas and, in a simulation, with the true types (ARI: 1 is identical, 0 is chance). For the
# ARI, all outliers together are one more group, so that many outliers lower it.

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
# Over seeds: the same embeddings, another start of k-means. Over subjects: the centres are fitted without a subject, whose
# voxels then join the nearest centre; 1 means that the others' embeddings alone would have given the same clusters. The
# encoder was trained with everybody, so both test the clustering, not the whole method; another world (`seed`) does.

# %%
seeds = clustering.seed_table(lab, embeddings, voxels, count)
held_out = clustering.held_out_table(lab, embeddings, kmeans)
display(
    seeds.round(3), held_out.round(3) if len(held_out) else "one subject only: none can be held out"
)

# %% [markdown]
# ## What does each cluster respond to?
#
# The mean **predicted** response of each cluster (over its voxels, each z-scored) to the test images of all subjects, and the
# images on which it is highest.

# %%
rows = clustering.test_rows(lab)
responses = clustering.mean_responses(lab, encoder, kmeans.labels, rows)
best = clustering.top_images(responses, clustering.n_top(lab, rows))
print("mean responses: (n_clusters, n_images) =", responses.shape)
print("top images:     (n_clusters, n_top)    =", best.shape)

# %% [markdown]
# What is on these more often than on all images (hypergeometric test, false discovery rate 5 %)? The table shows what is on
# at least half of the top images of a cluster; the images of recordings come without descriptions, so there it is empty.

# %%
shown = clustering.image_features(lab, rows)  # (n_images, n_features) booleans
is_top = clustering.are_top(responses, best.shape[1])  # (n_clusters, n_images) booleans
on_images = clusters.enrichment(is_top, shown)
frequent = on_images[(on_images["q"] < 0.05) & (on_images["share"] >= clustering.OF_IMAGES)]
frequent.assign(cluster=frequent["cluster"] + 1).round(3)

# %% [markdown]
# ## What does a cluster lose when an object is taken out?
#
# What is frequent on preferred images need not be what a cluster responds to: places are often behind food. A simulation can
# ask directly. Test scenes are rendered again without the faces on them, say, or with other objects in their place; every
# other pixel stays. How much **predicted** response does each cluster lose, in standard deviations? Only the renderer and the
# encoder are used: this designs stimuli, it reads nothing about the simulated brains. Recordings cannot be asked.
#
# A name needs evidence:
# - **early** if at least half of a cluster's voxels are in V1 to V4; the areas behind it have at least a fifth of its voxels
#   each, and more than by chance. Early voxels respond to contrast where they look, whatever the object.
# - Any other, in a simulation: what it loses at least half a standard deviation without (95 % interval above 0). *Place* means
#   indoor and outdoor. A second word must hold among the scenes that show the first, too.
# - In recordings areas name a cluster as they do early ones.
#
# Areas stand beside the names, and in a simulation the means of the true receptive fields: x, y, eccentricity (distance from
# the middle) and sigma. What to look for: do early clusters differ in where they look?

# %%
without = clustering.counterfactuals(lab, rows)
falls, names = {}, clustering.image_names(is_top, shown)
if without is not None:
    falls["predicted"] = clustering.predicted_falls(lab, encoder, kmeans, rows, without)
    names = clustering.counterfactual_names(lab, falls["predicted"], without)
in_areas = clusters.enrichment(kmeans.members, clustering.area_features(voxels))
named = clustering.name_clusters(kmeans, voxels, names, in_areas)
clustering.cluster_table(lab, named, in_areas, voxels).round(2)

# %% [markdown]
# The names come from the left panel. The right one checks it: the **true** noiseless responses to the same images. What to look
# for: one strong column for each category cluster, the same in both panels. Early clusters see pixels, so they may change
# with anything.
#
# The table says it in numbers: what the clusters named after something lose without it (*named*) against how much other
# category clusters change (*others*), with a 95 % interval over scenes; with nothing in its place, and with another object.

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
clustering.fall_contrasts(lab, named, falls, without).round(2)

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
# The flattened surface (fsaverage5) of each subject, left and right hemisphere, with outlines of areas. Where a subject
# has few voxels, the outlines come from the voxels of all subjects. Areas were not used to find the clusters. A few voxels are
# out of sight, since the surface has to be cut somewhere to be flattened.

# %%
colours = figures.cluster_colours(named.labels, named.n_clusters)
keys = dict(zip(named.titles, figures.palette(named.n_clusters), strict=True))
fig = figures.flatmaps(voxels, colours, clustering.outlines(voxels))
figures.colour_key(fig, keys)
lab.save(fig, "cortex")

# %% [markdown]
# ## A map of all embeddings
#
# t-SNE puts similar embeddings near each other; distances between groups, and the axes, mean nothing. What to look for: if subjects
# mix everywhere, the space is shared; if clusters and areas are patches, function is what organises it.

# %%
places = clusters.map_2d(everyone, size.map_sample, seed=seed)
fig, axes = plt.subplots(1, 3, figsize=(13, 6))
figures.plane(axes[0], places, colours, keys, title="cluster")
for ax, column in zip(axes[1:], ("area", "subject"), strict=True):
    figures.plane(ax, places, *figures.group_colours(voxels[column]), title=column)
lab.save(fig, "map")

# %% [markdown]
# The same map with a colour for each place, and these colours on the cortex: neighbours on the cortex that share a colour
# have similar embeddings, without any choice of clusters.

# %%
smooth = figures.plane_colours(places)
fig = figures.flatmaps(voxels, smooth, clustering.outlines(voxels))
lab.save(fig, "map_on_cortex")
fig, ax = plt.subplots(figsize=(4.5, 4.2))
figures.plane(ax, places, smooth, title="colours of the map")
lab.save(fig, "map_colours")

# %% [markdown]
# ## The truth
#
# A simulated voxel has a true functional type. *Homogeneity* is 1 if a cluster holds one type only, *completeness* if a type
# lies in one cluster only; V1, V2 and V3 do nearly the same here, so that they are not told apart is to be expected.
# Category types leaves out the early areas. For recordings, only areas are known: they are no truth, since an area may hold
# several functions. The last table is the yardstick: what the true types themselves would reach, early areas taken as one
# type.

# %%
yardstick = clustering.yardstick(lab, embeddings, voxels)
display(clustering.known_table(lab, kmeans.labels, voxels).round(3), yardstick.round(3))

# %%
fig, ax = plt.subplots(figsize=(10, 4.5))
if (voxels["type"] != "").any():
    figures.composition(ax, clustering.composition(named, voxels, "type"), "true type")
else:
    figures.text_only(ax, "real recordings: the true types are unknown")
lab.save(fig, "types")

# %% [markdown]
# ## Do weak voxels matter?
#
# An option: fit on voxels only whose **val** responses are predicted above chance (p < 0.05 each). The test images and the
# truth have no say in it.

# %%
keep = clustering.reliable(lab, encoder)
print(f"{keep.sum()} of {len(keep)} voxels pass")
clustering.filter_table(lab, embeddings, voxels, keep, kmeans).round(3)

# %% [markdown]
# ## Inside one cluster
#
# The largest cluster outside of the early areas, clustered again by the same rule. The images are those that a sub-cluster
# is predicted to prefer **more than its whole cluster**. What to look for: what differs, now that the main preference is
# taken away? And is the split stable? An ARI between runs from 0.8 is good agreement (Steinley 2004); below, the split is no finding.

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
fig, axes = plt.subplots(
    len(pixels), len(pixels[0]), figsize=(11, 1.3 * len(pixels)), squeeze=False
)
figures.image_rows(axes, pixels, parts.titles)
lab.save(fig, "sub_clusters")

# %% [markdown]
# ## Cautions
#
# - How far a cluster's name can be trusted: in a simulation as far as the two panels agree; for recordings, and inside one
#   cluster, it says where voxels are or what is on preferred images, not why.
# - A split that is not stable may halve a continuum. In a simulation it may do so in any case: there, besides its category, a
#   voxel has small random weights on everything else, indoor and outdoor among them, without groups. So a stable split is no
#   proof of groups either.
# - Neighbouring voxels are not independent draws: read the p values of areas as an order.

# %%
lab.finish()
