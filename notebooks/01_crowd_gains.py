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
# # A crowd of subjects improves each one (Fig. 4)
#
# No two subjects share a voxel, and they may have seen different images. Can one encoder trained on all of them still predict
# each subject better than an encoder trained on that subject alone? The paper says so.
#
# Four models get the same features, split and test images:
#
# | condition | what it is |
# |---|---|
# | ridge, one subject | linear; a penalty per voxel; projection and level weights chosen by cross-validation |
# | factorised, one subject | each voxel has a place and features of its own; the kind of network used before |
# | encoder, one subject | the universal encoder, trained on one subject |
# | encoder, crowd | the universal encoder, trained on all subjects |

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

import ubrain
from ubrain import scores
from ubrain.analysis import baselines
from ubrain.predict import predict
from ubrain.report import figures
from ubrain.report.lab import ALONE, CROWD, FACTORISED, RIDGE
from ubrain.report.studies import better, held_out, scoring

lab = ubrain.Lab("01_crowd_gains", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Load
#
# Each subject has images and voxels of its own. The features are the tokens that the frozen backbone makes of an image.

# %%
lab.summary().round(3)

# %%
test = {s: lab.crowd[s].image_rows("test") for s in lab.subjects}
measured = {s: lab.crowd[s].responses("test") for s in lab.subjects}
first = lab.subjects[0]
train = lab.crowd[first].responses("train")
print(f"{first}, train: (n_images, n_voxels) =", train.shape)
print(f"{first}, test:  (n_images, n_voxels) =", measured[first].shape)
print("features: (n_images, n_tokens, n_channels) =", lab.features.read(test[first]).shape)

# %% [markdown]
# ## Fit each subject alone
#
# Ridge and the factorised readout choose their settings on images that are not test images:

# %%
ridge, factorised = {}, {}
for s in lab.subjects:
    data = (lab.crowd[s], lab.features, lab.profile.baselines, seed)
    ridge[s] = lab.kept(baselines.ridge, *data)
    factorised[s] = lab.kept(baselines.factorised, *data)
fitted = {RIDGE: ridge, FACTORISED: factorised}
pd.DataFrame({c: {s: f.chosen for s, f in by.items()} for c, by in fitted.items()})

# %% [markdown]
# Then the encoder itself, one training per subject (cached: a second run loads it).

# %%
predictions = {c: {s: f.predicted for s, f in by.items()} for c, by in fitted.items()}
predictions[ALONE] = {}
for s in lab.subjects:
    encoder = lab.encoder([s])
    predictions[ALONE][s] = predict(encoder, lab.source, s, test[s])
print("predicted: (n_images, n_voxels) =", predictions[ALONE][first].shape)

# %% [markdown]
# ## Fit the crowd
#
# One encoder for all subjects. Only the embeddings belong to a subject; everything else learns from everybody's images.

# %%
encoder = lab.encoder(lab.subjects)
predictions[CROWD] = {s: predict(encoder, lab.source, s, test[s]) for s in lab.subjects}
for s, embeddings in encoder.embeddings.items():
    print(f"{s}: (n_voxels, embedding_size) =", tuple(embeddings.shape))

# %% [markdown]
# ## Score one subject
#
# Two scores carry this notebook: for each voxel, the correlation of its predicted with its measured responses; and for each image, its
# rank when the measured response searches the predicted responses of all test images (0: found first).

# %%
for condition in (ALONE, CROWD):
    r = scores.correlation(predictions[condition][first], measured[first])  # (n_voxels,)
    ranks = scores.retrieval_ranks(predictions[condition][first], measured[first])  # (n_images,)
    print(f"{condition}, {first}: median r {np.nanmedian(r):.3f} over {len(r)} voxels;", end=" ")
    print(f"{(ranks == 0).sum()} of {len(ranks)} images found first")

# %% [markdown]
# ## Score everybody
#
# Median voxel correlation, with a 95 % interval over images and voxels:

# %%
table = scoring.score_table(lab, predictions)
figures.compact(table)

# %% [markdown]
# What to look for: within each subject, does the green dot (crowd) lie above the orange one (the same encoder, alone)
# and above the grey one (ridge)? How far is it from the dashed line, the median over voxels of the highest correlation
# that noise allows? Intervals that overlap say little: both models err on the same images.

# %%
fig, ax = plt.subplots(figsize=(10, 4.2))
figures.with_intervals(ax, table, ceilings={s: lab.ceiling_r(s) for s in lab.subjects})
lab.save(fig, "voxel_correlation")

# %% [markdown]
# ## Is the gain real?
#
# Paired: the interval of the difference, both models on the same images and voxels. A gain counts if it lies above 0 (`low` > 0).

# %%
gains = scoring.gain_table(lab, predictions, CROWD, over=(ALONE, RIDGE, FACTORISED))
gains["above 0"] = gains["low"] > 0
follows = gains[gains["over"] == ALONE]["above 0"]
lab.record("claim_holds", follows.mean(), f"{CROWD} − {ALONE}", n=len(follows), unit="share")
fig, ax = plt.subplots(figsize=(10, 3.4))
figures.with_intervals(ax, gains, value="gain")
lab.save(fig, "gains")
figures.compact(gains, "gain")

# %% [markdown]
# ## Retrieval
#
# The gallery is all test images; the dotted line is chance.
# What to look for: green above orange and grey, in every subject?

# %%
fig, axes = plt.subplots(2, 1, figsize=(9, 6.4))
figures.retrieval(axes[0], table, 1)
figures.retrieval(axes[1], table, 5).get_legend().remove()
lab.save(fig, "retrieval")

# %% [markdown]
# ## How large must the crowd be?
#
# Each subject, trained in a crowd of one, half of the subjects, and all. What to look for: lines that still rise at the
# right end suggest that more subjects would help more.

# %%
growth = scoring.growth(lab)
fig, ax = plt.subplots(figsize=(6, 4))
figures.growth(ax, growth)
lab.save(fig, "growth")

# %% [markdown]
# ## Which areas gain?
#
# Median over all voxels of an area, of all subjects together; below, the crowd's gains, paired. What to look for: areas where
# the interval of a gain is not above 0. There, a linear readout (grey), or a subject alone (orange), does as well as the crowd.

# %%
by_area = scoring.area_table(lab, predictions, CROWD, over=(ALONE, RIDGE))
fig, axes = plt.subplots(2, 1, figsize=(9, 7))
if len(by_area):
    gain = by_area["condition"].str.contains(" − ")
    figures.with_intervals(axes[0], by_area[~gain], by="area")
    figures.with_intervals(axes[1], by_area[gain], by="area")
else:
    figures.text_only(axes[0], "this crowd file names no areas")
    axes[1].set_axis_off()
lab.save(fig, "areas")

# %% [markdown]
# The areas where the crowd gains least over ridge:

# %%
least = by_area[by_area["condition"] == f"{CROWD} − {RIDGE}"].sort_values("median_r")
least.drop(columns="condition").rename(columns={"median_r": "gain"}).head(5).round(3)

# %% [markdown]
# ## Where on the cortex does the gain sit?
#
# Crowd minus alone, per voxel, all subjects on one flattened surface (fsaverage5, a common model of the cortex). Red: the crowd
# predicts better. What to look for: is the red everywhere, or in some areas only?

# %%
r = scoring.voxel_r(lab, predictions)
gain, voxels = scoring.on_surface(lab, {s: r[CROWD][s] - r[ALONE][s] for s in lab.subjects})
fig = figures.cortex(gain, voxels, f"gain in r:\n{CROWD} − {ALONE}", limit=0.15)
lab.save(fig, "cortex")

# %% [markdown]
# ## The truth
#
# Only a simulation knows the responses without noise. If the gain were an artefact of the noise, it would vanish here.
# What to look for: the same order of the conditions, and dots above the line, on which both correlations are equal.

# %%
truth = scoring.truth_table(lab, predictions)
fig, ax = plt.subplots(figsize=(5.6, 5))
if len(truth):
    figures.truth(ax, truth)
else:
    figures.text_only(ax, "real recordings: the truth is unknown")
lab.save(fig, "truth")

# %% [markdown]
# ## Judged where it was not trained
#
# So far the test images are like the train images. Now no encoder sees a scene with a vehicle, or one inside a room, in training,
# and each is judged on three parts of the test images: those with a vehicle, those inside a room, and the rest (`random`). The same
# encoders, so the same number of train images. What to look for: lower dots on what was held out; but is the crowd's gain smaller there?

# %%
held = held_out.judge(lab, held_out.trained(lab))
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
gain = held["condition"].str.contains(" − ")
figures.with_intervals(axes[0], held[~gain], by="split")
figures.with_intervals(axes[1], held[gain], by="split")
lab.save(fig, "held_out")
figures.compact(held, by="split")

# %% [markdown]
# ## More from the same crowd: ours, beside the paper's
#
# A voxel's own images are few and noisy. So each subject is fitted once more, as if it were new to the others: every voxel starts from what
# similar voxels of the *other* subjects have learned, stays close to it unless its own images disagree, and gets a linear readout of
# what its embedding leaves (as newcomers do in 03). The encoder stays as it is. How strong each part is, is chosen on val images; the final
# fit uses them too, as ridge does. What to look for: gains over the crowd's own embeddings (green) and over ridge (grey) above 0.

# %%
if len(lab.subjects) > 1:
    predictions[better.REFITTED] = better.refitted(lab, encoder)
    refitted = scoring.gain_table(lab, predictions, better.REFITTED, over=(CROWD, RIDGE))
    fig, ax = plt.subplots(figsize=(10, 3.4))
    figures.with_intervals(ax, refitted, value="gain")
    lab.save(fig, "refitted")
    display(figures.compact(refitted, "gain"))

# %% [markdown]
# ## With care
#
# - `table` also has `median_r2`, the median of 1 − (squared error) / (variance), which punishes a wrong scale; `noise_normalised`, the
#   median of r² divided by the noise ceiling; and `significant`, the share of voxels whose correlation is above chance (permutation of
#   images, false discovery rate 5 %).
# - Every training of the encoder gets at least the same number of steps (`min_steps` of the profile), and the weights of the epoch
#   that is best on the val images. So the crowd's gain is not one of training longer; it includes, as it should, that the shared
#   weights see more images.
# - Ridge also trains on the val images, which the others hold out.
# - The intervals cover the choice of images and voxels, not the seed of a training or the simulated world: docs/claims.md has
#   an interval over worlds.

# %%
lab.finish()
