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
# **Claim of the paper.** The embeddings of all subjects live in one space, so they can be clustered together. Clusters
# that nobody asked for come out as functional groups (the paper names food, words, faces, sports, indoor and outdoor
# scenes), shared by the subjects, at sensible places of the cortex.
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
import pandas as pd
from IPython.display import display

import ubrain
from ubrain.analysis import clusters
from ubrain.report import figures
from ubrain.report.studies import clustering

pd.options.display.max_colwidth = 120
lab = ubrain.Lab("05_clusters", crowd, profile, seed, subjects)
encoder = lab.encoder(lab.subjects)
embeddings, voxels = clustering.gather(lab, encoder)
everyone = clustering.pooled(embeddings)
print("(n_voxels, E) =", everyone.shape)

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
methods = clustering.fit_methods(lab, embeddings, count)
by_method = clustering.method_table(lab, methods, voxels)
by_method.round(3)

# %% [markdown]
# ## Is it stable?
#
# Over seeds: the same embeddings, another start of k-means. Over subjects: the centres are fitted without a subject, whose
# voxels then join the nearest centre; 1 means that the others' embeddings alone would have given the same clusters. The
# encoder was trained with everybody, so both test the clustering, not the whole method; another world (`seed`) does.

# %%
seeds = clustering.seed_table(lab, embeddings, voxels, count)
held_out = clustering.held_out_table(lab, embeddings, methods["k-means"])
display(
    seeds.round(3), held_out.round(3) if len(held_out) else "one subject only: none can be held out"
)

# %% [markdown]
# ## What does each cluster respond to?
#
# The images with the highest **predicted** response of a cluster (mean over its voxels, each z-scored), among the test
# images of all subjects. A cluster gets a name only from evidence:
#
# - **early** if at least half of its voxels are in V1 to V4; the areas behind it have at least a fifth of its voxels each, and
#   more than by chance. Early voxels prefer images with much contrast where they look; what these show names nothing.
# - Any other, in a simulation: the one or two categories that are on at least half of its top images (20 in profile fast),
#   more often than on all images (hypergeometric test, false discovery rate 5 %). *Place* means indoor or outdoor; of these
#   three the most certain counts.
# - The images of recordings come without descriptions; there areas name a cluster as they do early ones.
#
# A name says what is on the preferred images, not why. So the areas stand beside it, and in a simulation the means of the
# true receptive fields: x, y, eccentricity (distance from the middle) and sigma. What to look for: do early clusters differ
# in where they look?

# %%
rows = clustering.test_rows(lab)
(responses,) = clustering.profiles(lab, encoder, [methods["k-means"].labels], rows)
named, on_images, in_areas = clustering.evidence(lab, methods["k-means"], voxels, responses, rows)
clustering.cluster_table(lab, named, on_images, in_areas, voxels).round(2)

# %% [markdown]
# The first 8 of the top images. What to look for: can you name the rows yourself, before reading the names?

# %%
best = clustering.top_images(responses, 8)
pixels = [[lab.crowd.image(lab.crowd.image_ids[rows[i]]) for i in row] for row in best]
fig, axes = plt.subplots(*best.shape, figsize=(11, 1.2 * len(best)), squeeze=False)
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
places = clusters.map_2d(everyone, lab.profile.clusters.map_sample, seed=lab.seed)
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

# %%
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
display(clustering.known_table(lab, named.labels, voxels).round(3), yardstick.round(3))

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
clustering.filter_table(lab, embeddings, voxels, keep, methods["k-means"]).round(3)

# %% [markdown]
# ## Inside one cluster
#
# The largest cluster outside of the early areas, clustered again by the same rule. The images are those that a sub-cluster
# is predicted to prefer **more than its whole cluster**. What to look for: what differs, now that the main preference is
# taken away? And is the split stable? If not, it may halve a continuum. In a simulation it may do so in any case: there,
# besides its category, a voxel has small random weights on everything else, indoor and outdoor among them, without groups. So
# a stable split is no proof of groups either.

# %%
largest = clustering.largest_category_cluster(named, voxels)
parts, stability = clustering.split(lab, embeddings, named, largest)
(inner,) = clustering.profiles(lab, encoder, [parts.labels], rows)
parts, beyond, inside = clustering.split_evidence(lab, parts, inner, rows, voxels)
print(
    f"inside cluster {named.titles[largest]}: stability {stability:.3f} (ARI between runs; good"
    f" from {clustering.STABLE})"
)
inside.round(2)

# %%
best = clustering.top_images(beyond, 8)
pixels = [[lab.crowd.image(lab.crowd.image_ids[rows[i]]) for i in row] for row in best]
fig, axes = plt.subplots(*best.shape, figsize=(11, 1.3 * len(best)), squeeze=False)
figures.image_rows(axes, pixels, parts.titles)
lab.save(fig, "sub_clusters")

# %% [markdown]
# ## What came out
#
# The statement is made from the recorded numbers, whatever they are:

# %%
print(
    clustering.verdict(
        named, table, seeds, held_out, by_method, parts, stability, voxels, yardstick
    )
)

# %%
lab.finish().head(12)
