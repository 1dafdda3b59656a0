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
# # Your brain
#
# Bring images and responses as plain arrays; leave with scores, the clusters that your voxels fall into, and a map. A
# trained encoder of a crowd needs only new voxel embeddings for you, so few images are enough (`03_transfer` measures
# how few).
#
# Without files of yours, a newcomer of the simulated world takes your place: another brain that saw other images, whose
# files are written below as you would write your own.

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None
images = None
responses = None
trials = None
voxels = None
test_images = None
transpose = False
test_fraction = 0.2
scanner = ""
space = ""
reference = None

# %%
import matplotlib.pyplot as plt
import pandas as pd

import ubrain
from ubrain.analysis import clusters
from ubrain.data import doctor as check
from ubrain.report import figures
from ubrain.report.studies import own_brain
from ubrain.report.studies.own_brain import NAME

pd.options.display.max_colwidth = 120
lab = ubrain.Lab("08_your_brain", crowd, profile, seed, subjects)
lab.summary().round(3)

# %% [markdown]
# ## Your files
#
# `images`: a folder of images, or an array (n_images, height, width, 3). `responses`: one row per image, or per trial with
# `trials` (columns image, session). `voxels`: one row per voxel, any of hemisphere, vertex, i, j, k, areas, ncsnr. Test
# images are listed, or a share `test_fraction` is drawn by content. Only images and responses are needed.

# %%
files = own_brain.recording(
    lab,
    images,
    responses,
    trials=trials,
    voxels=voxels,
    test_images=test_images,
    transpose=transpose,
    test_fraction=test_fraction,
    scanner=scanner,
    space=space,
)
own_brain.file_table(files)

# %%
mine = own_brain.bring(lab, files)
mine.summary().round(3)

# %% [markdown]
# ## The doctor
#
# Before any model: is something wrong with the data? What to look for: errors must be mended, warnings understood. The same
# on a command line: `ubrain check crowd.h5`.

# %%
print(check.report(check.check(mine.crowd)))

# %%
shown = mine.crowd[NAME].images("train")[:8]
fig, axes = plt.subplots(1, len(shown), figsize=(12, 2.2))
figures.images(axes, [mine.crowd.image(i) for i in shown], [str(i) for i in shown])
lab.save(fig, "images")

# %% [markdown]
# ## Join the crowd
#
# The shared weights stay frozen. *Gradient* is the paper's way: new embeddings from a random start. *Matching*, and *matching,
# then gradient*, are ours: they start from the embeddings of those voxels of the crowd that would respond alike. What
# embeddings leave over, the latter reads linearly from the image, voxel by voxel, if held-out images ask for it
# clearly (the linear rest): a brain may have voxels that are unlike any of the crowd.

# %%
encoder, chosen = own_brain.join(lab, mine, lab.subjects)
chosen.round(3)

# %% [markdown]
# ## Scores
#
# On your test images, which had no part in any choice. What to look for: which method comes closest to the noise ceiling (the
# dashed line; unknown if no image was repeated). Your ceiling is that of your data: r must not be compared with that of other
# notebooks.

# %%
predictions = own_brain.predictions(mine, encoder)
table = mine.score_table(predictions)
table.round(3)

# %%
fig, ax = plt.subplots(figsize=(10, 4.2))
figures.voxel_quartiles(ax, mine.voxel_r(predictions), {NAME: mine.ceiling_r(NAME)})
lab.save(fig, "voxel_correlation")

# %% [markdown]
# The gains of our transfer over the paper's and over ridge: the difference, with an interval over images and voxels that
# draws the same ones for both. What to look for: an interval that holds 0 tells nothing apart. The two measures, median r and
# top-1 retrieval, need not agree.

# %%
gains = own_brain.gain_table(mine, predictions)
gains.round(3)

# %% [markdown]
# The same median r for each area with at least 10 voxels; their number stands behind its name. What to look for: is there an
# area in which the crowd does not help, where ridge (grey), which knows no crowd, is not below the others? A difference in an area of few voxels may be chance; these dots have no intervals.

# %%
by_area = mine.area_table(predictions)
fig, ax = plt.subplots(figsize=(9, 4))
(
    figures.areas(ax, by_area)
    if len(by_area)
    else figures.text_only(ax, "these recordings name no areas")
)
lab.save(fig, "areas")

# %% [markdown]
# ## Which clusters do your voxels fall into?
#
# The crowd's voxels, clustered by their embeddings and named by evidence as in `05_clusters`: early clusters by their areas,
# others by what is on the images that they are predicted to prefer, which does not say why; and their number is a choice.
# Each of your voxels joins the nearest centre. What to look for: shares outside of the range of the crowd's subjects (`least`
# and `most` in the table); a cluster that you lack may lie outside of what you measured.

# %%
crowd_clusters = own_brain.crowd_clusters(lab, encoder)
labels = clusters.assign(crowd_clusters, encoder.subject("ours").detach().cpu().numpy())
shares = own_brain.cluster_table(lab, crowd_clusters, labels)
fig, ax = plt.subplots(figsize=(8, 4.4))
figures.shares(ax, shares[["crowd", NAME]], "share of voxels")
lab.save(fig, "clusters")
shares.round(3)

# %% [markdown]
# ## Take a map with you
#
# For a surface one GIFTI file per hemisphere, for a volume a NIfTI file on the grid of `reference`; without places, an archive.
# The files lie in `own_brain/` beside this notebook's figures, with the crowd file.

# %%
voxel_maps = own_brain.voxel_maps(mine, predictions, labels)
written, reason = own_brain.export(mine, voxel_maps, reference)
print(", ".join(path.name for path in written), reason)

# %% [markdown]
# Each voxel's correlation with what was measured, of matching, then gradient, where your voxels have a place on fsaverage5.
# Vertices next to a voxel take its colour; grey has no voxels. Blue is below 0: predicted the wrong way round.
# What to look for: pale patches. They may be areas that the crowd does not help with, or noisy voxels; the map `ceiling_r`,
# which is exported beside `r` and `cluster` where images were repeated, tells which.

# %%
r = voxel_maps["r"]
placed = mine.crowd[NAME].voxels if mine.crowd[NAME].space == "fsaverage5" else []
fig = figures.cortex(r, placed, "r with the measured test responses", limit=0.8)
lab.save(fig, "cortex")

# %% [markdown]
# ## What came out

# %%
print(own_brain.verdict(lab, mine, table, gains, by_area, shares))

# %%
lab.finish().head(12)
