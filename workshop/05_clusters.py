# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: py:percent
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

# %% [markdown] tags=["slide"]
# # What do voxels have in common? · 20 minutes
#
# Goal 5, first half: compare what a model found with a truth that only a simulation has.
#
# E8 name the clusters from pictures (12 minutes); the truth (5 minutes).

# %% tags=["parameters"]
profile = "fast"
seed = 0
n_clusters = 10

# %%
import matplotlib.pyplot as plt
import pandas as pd

import ubrain
from ubrain.analysis import clusters
from ubrain.report import figures, workshop
from ubrain.report.studies import clustering

lab = ubrain.Lab("workshop", None, profile, seed)
encoder = lab.encoder(lab.subjects)
embeddings, voxels = clustering.gather(lab, encoder)
print(len(voxels), "voxels of", len(lab.subjects), "subjects")

# %% [markdown]
# ## Group all voxels by their embeddings
#
# The encoder was never told which voxel is of which kind. K-means puts the embeddings of all subjects together into ten groups.

# %%
kmeans = clusters.kmeans(
    clustering.pooled(embeddings), n_clusters, lab.profile.clusters.restarts, seed
)
rows = clustering.test_rows(lab)
liked = clustering.mean_responses(lab, encoder, kmeans.labels, rows)
best = clustering.top_images(liked, 8)
pd.crosstab(voxels["subject"], kmeans.labels + 1, colnames=["cluster"])

# %% [markdown]
# The table: voxels of each subject (row) in each cluster (column). What to look for: is there a cluster that belongs to one subject only?
#
# ## The images that each cluster is predicted to like best

# %%
fig, axes = plt.subplots(n_clusters, 8, figsize=(10, 1.25 * n_clusters))
pictures = [lab.pictures(rows[row]) for row in best]
figures.image_rows(axes, pictures, [f"{c + 1}" for c in range(n_clusters)])
plt.show()

# %% [markdown]
# ### E8 · Name them · 12 minutes
#
# One word for each cluster: **face, body, food, word, animal, vehicle** if the images share that object, **place** if they share a room or a
# landscape, and **early** if they share no object, only strong contrast somewhere (words and plates have strong contrast, too: compare with
# other rows). Several clusters may have the same name. You pass with seven of ten.

# %% tags=["exercise", "E8"]
### BEGIN SOLUTION
### names = {  # your words
###     1: "?",
###     2: "?",
###     3: "?",
###     4: "?",
###     5: "?",
###     6: "?",
###     7: "?",
###     8: "?",
###     9: "?",
###     10: "?",
### }
kinds = voxels["type"].replace(["V1", "V2", "V3", "hV4"], "early")  # this peeks at the truth
names = {c + 1: kinds[kmeans.labels == c].mode()[0] for c in range(n_clusters)}
### END SOLUTION

# %% tags=["check", "E8"]
workshop.check("E8", names, kmeans.labels, voxels["type"])

# %% [markdown] tags=["hint", "E8"]
# Cover all rows but one. What is on *every* picture of it? Then: is that on the pictures of other rows, too?

# %% [markdown] tags=["hint", "E8"]
# An early cluster likes contrast at one place of the image, whatever causes it: its pictures share no object. There are several of them.

# %% [markdown]
# ## The truth
#
# Only a simulation can show this table: the true kind of each voxel (row), and the cluster it is in (column). *ARI* is 1 if the two groupings
# are the same, and 0 by chance; *homogeneity* is 1 if a cluster has voxels of one kind only, *completeness* if a kind lies in one cluster only.

# %%
kinds = voxels["type"].replace(["V1", "V2", "V3", "hV4"], "early")
agreement = clusters.agreement(kmeans.labels, kinds)
print(", ".join(f"{name} {value:.2f}" for name, value in agreement.items()))
pd.crosstab(kinds, kmeans.labels + 1, colnames=["cluster"])

# %% [markdown]
# ## Talk to your neighbour · 3 minutes
#
# - The clusters agree with the truth. Complete: "This shows that the *method* ..., and it does not show that *brains* ..."
# - Without the truth, what could you have checked? (Other seeds? A subject left out? Areas, which were not used?)

# %% [markdown]
# **Done?** In the menu: *Kernel → Shut Down Kernel*. An open module keeps a gigabyte of memory.

# %% [markdown] tags=["instructor"]
# **Instructor.** The ARI is well below 1 only because there are three early clusters for one early kind: homogeneity is near 1,
# completeness is not. What a simulation proves: the method
# finds groups *if* there are some. Whether brains have them, only brains can say. Common errors: naming a cluster after what is on the first two
# pictures; calling *place* what has a room behind a face.
