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
# Bring images and responses as plain arrays; leave with scores, the clusters that your voxels fall into, and a map. Does a crowd
# predict you better than a model of your recordings alone? Without files of yours, a newcomer takes your place, and its files are
# written below as you would write your own.

# %% tags=["parameters"]
crowd = None
split_scheme = None
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

import ubrain
from ubrain import transfer
from ubrain.analysis import baselines, clusters
from ubrain.data import doctor as check
from ubrain.report import figures
from ubrain.report.lab import RIDGE
from ubrain.report.studies import own_brain, scoring
from ubrain.report.studies.newcomers import GRADIENT, METHODS, OURS
from ubrain.report.studies.own_brain import NAME

lab = ubrain.Lab("08_your_brain", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Your files
#
# `images`: a folder, or an array (n_images, height, width, 3). `responses`: one row per image, or per trial with `trials` (columns
# image, session). `voxels`: one row each, any of hemisphere, vertex, i, j, k, areas, ncsnr. Only images and responses are needed.

# %%
tables = {"trials": trials, "voxels": voxels, "test_images": test_images}
about = {"transpose": transpose, "test_fraction": test_fraction, "scanner": scanner, "space": space}
files = own_brain.recording(lab, images, responses, **tables, **about)
own_brain.file_table(files)

# %%
mine = own_brain.bring(lab, files)
you = mine.crowd[NAME]
print("responses, train: (n_images, n_voxels) =", you.responses("train").shape)
print("responses, test:  (n_images, n_voxels) =", you.responses("test").shape)
mine.summary().round(3)

# %% [markdown]
# ## The doctor
#
# Is something wrong with the data? Errors must be mended, warnings understood. On a command line: `ubrain check crowd.h5`.

# %%
print(check.report(check.check(mine.crowd)))

# %%
train = you.image_rows("train")
shown = train[:8]
fig, axes = plt.subplots(1, len(shown), figsize=(12, 2.2))
figures.images(axes, mine.pictures(shown), [""] * len(shown))
fig.suptitle(f"The first {len(shown)} of the {len(train)} images that the newcomer is fitted on")
lab.save(fig, "images")

# %% [markdown]
# ## Join the crowd
#
# The shared weights stay frozen. *Gradient* is the paper's way: new embeddings from a random start. *Matching* and *crowd prior*
# are ours: they start from the embeddings of those voxels of the crowd that would respond alike, and the crowd prior goes on.

# %%
encoder = lab.encoder(lab.subjects)
fit, data = transfer.fit, (encoder, mine.source, NAME)
settings = {"config": lab.profile.transfer, "seed": seed}
joined = {c: lab.kept(fit, *data, method=method, **settings) for c, method in METHODS.items()}
for condition, fitted in joined.items():
    shape, r = tuple(fitted.embeddings.shape), fitted.validation
    lab.record("held_out_r", r, condition, NAME, n=you.n_voxels, unit="r")
    print(f"{condition}: embeddings {shape}, held-out r {r:.3f}; {fitted.chosen}")

# %% [markdown]
# ## Predict
#
# The frozen encoder with your embeddings, and ridge regression on your recordings alone, predict your test responses.

# %%
head = transfer.Head(encoder, mine.source, you.image_rows("test"))
ridge = lab.kept(baselines.ridge, you, mine.features, lab.profile.baselines, seed)
predictions = {RIDGE: {NAME: ridge.predicted}}
for condition, fitted in joined.items():
    predictions[condition] = {NAME: fitted.respond(head).cpu().numpy()}
print("predicted: (n_images, n_voxels) =", predictions[OURS][NAME].shape)

# %% [markdown]
# ## Scores
#
# What to look for: which method comes closest to the noise ceiling (the dashed line; unknown if no image was repeated)?

# %%
table = scoring.score_table(mine, predictions)
fig, ax = plt.subplots(figsize=(8, 3.8))
figures.with_intervals(ax, table, ceilings={NAME: mine.ceiling_r(NAME)})
lab.save(fig, "voxel_correlation")
r = figures.compact(table, by="condition", columns="subject").set_axis(["median r"], axis=1)
ends = {"value": "top1", "low": "top1_low", "high": "top1_high", "digits": 1, "scale": 100}
top1 = figures.compact(table, **ends, by="condition", columns="subject")
r.join(top1.set_axis(["top-1 (%)"], axis=1))

# %% [markdown]
# The gains of our transfer over the paper's and over ridge. An interval that holds 0 tells nothing apart; median r and top-1
# retrieval need not agree.

# %%
gains = scoring.gain_table(mine, predictions, OURS, over=(GRADIENT, RIDGE))
r = figures.compact(gains, "gain", by="condition", columns="subject").set_axis(["r"], axis=1)
ends = {"value": "top1_gain", "low": "top1_low", "high": "top1_high", "digits": 1, "scale": 100}
top1 = figures.compact(gains, **ends, by="condition", columns="subject")
r.join(top1.set_axis(["top-1 (points)"], axis=1))

# %% [markdown]
# The same gains for each area with at least 10 voxels; their number stands behind its name. What to look for: is there an area in
# which the crowd does not help, whose gain over ridge (grey) holds 0?

# %%
by_area = scoring.area_table(mine, predictions, OURS, over=(GRADIENT, RIDGE))
fig, ax = plt.subplots(figsize=(10, 4.2))
if len(by_area):
    paired = by_area["condition"].str.contains(" − ")
    figures.with_intervals(ax, by_area[paired], by="area")
else:
    figures.text_only(ax, "these recordings name no areas")
lab.save(fig, "areas")

# %% [markdown]
# ## Which clusters do your voxels fall into?
#
# The crowd's voxels are clustered by their embeddings as in `05_clusters`, and each of yours joins the nearest centre. What to look
# for: shares outside of the range of the crowd's subjects (`least` and `most` in the table).

# %%
crowd_clusters = own_brain.crowd_clusters(lab, encoder)
labels = clusters.assign(crowd_clusters, joined[OURS].embeddings.cpu().numpy())  # (n_voxels,)
shares = own_brain.cluster_table(lab, crowd_clusters, labels)
fig, ax = plt.subplots(figsize=(8, 4.4))
figures.shares(ax, shares[["crowd", NAME]], "share of voxels")
lab.save(fig, "clusters")
shares.head(12).round(3)

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
# Each voxel's correlation with what was measured, of the crowd prior, on the flattened surface. What to look for: dark
# patches, areas that the crowd does not help with, or noisy voxels (the map `ceiling_r` tells which).

# %%
placed = you.voxels if you.space == "fsaverage5" else you.voxels[:0]
known = placed[placed["areas"] != ""]
areas = known.assign(area=known["areas"].str.split(",").str[0]) if len(placed) else placed
maps = {"you, ": (voxel_maps["r"], placed)}
fig = figures.flat_values(maps, areas, "r with the measured\ntest responses", (0, 0.8))
lab.save(fig, "cortex")

# %% [markdown]
# ## With care
#
# - **The newcomer** in place of you: beside a simulated crowd another simulated brain that saw other images; in a file of recordings
#   the last subject, whom the crowd then does without. `03_transfer` measures how few images are enough.
# - **Test images** are listed, or a share `test_fraction` is drawn by content. They had no part in any choice.
# - **Crowd prior.** What embeddings leave over, it reads linearly from the image, voxel by voxel, if held-out images ask for it
#   clearly: a brain may have voxels that are unlike any of the crowd.
# - **Scores.** Your ceiling is that of your data: r must not be compared with that of other notebooks. Gains are paired, with an
#   interval over images and voxels that draws the same ones for both; of many areas, one in twenty misses by chance.
# - **Clusters** are named as in `05_clusters`, early ones by their areas, others by what is on the images that they are predicted to
#   prefer, which does not say why; their number is a choice. One that you lack may lie outside of what you measured.
# - **The map** ends at 0: the darkest colour is 0 or below. Grey has no voxels.

# %%
lab.finish()
