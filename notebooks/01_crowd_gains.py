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
# **Claim of the paper.** One encoder trained on all subjects predicts each subject better than an encoder trained on
# that subject alone, although no two subjects share a voxel, and they may have seen different images.
#
# **What is compared**, on the same features, split and test images:
#
# | condition | what it is |
# |---|---|
# | ridge, one subject | linear; a penalty per voxel; projection and level weights chosen by cross-validation |
# | factorised, one subject | each voxel has a place and features of its own; the kind of network used before |
# | encoder, one subject | the universal encoder, trained on one subject |
# | encoder, crowd | the universal encoder, trained on all subjects |
#
# All single-subject models are given the same images; ridge also trains on the val images, which the others hold out.

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None

# %%
import matplotlib.pyplot as plt

import ubrain
from ubrain.report import figures
from ubrain.report.lab import ALONE, CROWD, FACTORISED, RIDGE

lab = ubrain.Lab("01_crowd_gains", crowd, profile, seed, subjects)
lab.summary().round(3)

# %% [markdown]
# ## Fit everything
#
# Every training of the encoder gets at least the same number of steps (`min_steps` of the profile), and the weights of
# the epoch that is best on the val images. So the crowd's gain is not one of training longer; it includes, as it should,
# that the shared weights see more images. Trainings are cached: a second run with the same data, settings and code
# loads them.

# %%
predictions = {RIDGE: lab.ridge(), FACTORISED: lab.factorised()}
lab.choices

# %%
predictions[ALONE] = lab.alone()
predictions[CROWD] = lab.predict_each(lab.encoder(lab.subjects))

# %% [markdown]
# ## Scores
#
# `median_r`: median over voxels of the correlation between predicted and measured responses to the test images, with a
# 95 % bootstrap interval over images and voxels. `median_r2`: median of 1 − (squared error) / (variance), which also punishes
# a wrong scale. `noise_normalised`: median of r² divided by the noise ceiling.
# `significant`: share of voxels whose correlation is above chance (permutation of images, false discovery rate 5 %).
# `top1`, `top5`: share of measured responses that find their image among all test images by predicted response.

# %%
table = lab.score_table(predictions)
table.round(3)

# %% [markdown]
# What to look for: within each subject, does the green dot (crowd) lie above the orange one (the same encoder, alone)
# and above the grey one (ridge)? How far is it from the dashed line, the median over voxels of the highest correlation
# that noise allows?

# %%
fig, ax = plt.subplots(figsize=(10, 4.2))
figures.voxel_quartiles(ax, lab.voxel_r(predictions), {s: lab.ceiling_r(s) for s in lab.subjects})
lab.save(fig, "voxel_correlation")

# %% [markdown]
# ## Is the gain real?
#
# Paired: each resample of images and voxels scores both models. A gain counts if its interval lies above 0. The
# intervals cover the choice of images and voxels; they do not cover the seed of a training: repeat with another `seed`.

# %%
gains = lab.gain_table(predictions, CROWD, over=(ALONE, RIDGE, FACTORISED))
for other, rows in gains.groupby("over", sort=False):
    print(
        f"crowd − {other}: median gain {rows['gain'].median():+.3f}, "
        f"interval above 0 in {(rows['low'] > 0).sum()} of {len(rows)} subjects; "
        f"not above in: {', '.join(rows['subject'][rows['low'] <= 0]) or 'none'}"
    )
gains.round(3)

# %% [markdown]
# ## Retrieval
#
# A measured response searches the predicted responses of all test images, the gallery. The dotted line is chance; it
# depends on the size of the gallery, which stands below each subject and is recorded with every number. What to look for:
# green above orange and grey, in every subject?

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 3.8))
figures.retrieval(axes[0], table, 1)
figures.retrieval(axes[1], table, 5).get_legend().remove()
lab.save(fig, "retrieval")

# %% [markdown]
# ## How large must the crowd be?
#
# Each subject, trained in a crowd of one, half of the subjects, and all. What to look for: lines that still rise at the
# right end suggest that more subjects would help more.

# %%
growth = lab.growth()
fig, ax = plt.subplots(figsize=(6, 4))
figures.growth(ax, growth)
lab.save(fig, "growth")

# %% [markdown]
# ## Which areas gain?
#
# Median over all voxels of an area, of all subjects together, without intervals. What to look
# for: areas where the green dot is not above the grey one. There, a linear readout does as well as the crowd; by how little, is
# printed, and without an interval a small difference tells nothing.

# %%
by_area = lab.area_table(predictions)
wide = by_area.pivot(index="area", columns="condition", values="median_r")
for other in (RIDGE, ALONE) if len(wide) else ():
    behind = (wide[CROWD] - wide[other])[wide[CROWD] <= wide[other]]
    print(
        f"{CROWD} is not above {other} in:",
        ", ".join(f"{a} ({d:+.3f})" for a, d in behind.items()) or "no area",
    )
fig, ax = plt.subplots(figsize=(9, 4))
(
    figures.areas(ax, by_area)
    if len(by_area)
    else figures.text_only(ax, "this crowd file names no areas")
)
lab.save(fig, "areas")

# %% [markdown]
# ## Where on the cortex does the gain sit?
#
# Crowd minus alone, per voxel, all subjects on one surface (fsaverage5, a common model of the cortex). Red: the crowd
# predicts better. What to look for: is the red everywhere, or in some areas only?

# %%
r = lab.voxel_r({c: predictions[c] for c in (ALONE, CROWD)})
gain, voxels = lab.pool(r, CROWD, ALONE)
fig = figures.cortex(gain, voxels, "gain in r: crowd − alone", limit=0.15)
lab.save(fig, "cortex")

# %% [markdown]
# ## The truth
#
# Only a simulation knows the responses without noise. If the gain were an artefact of the noise, it would vanish here.
# What to look for: the same order of the conditions, and higher correlations than with the measured responses.

# %%
truth = lab.truth_table(predictions)
fig, ax = plt.subplots(figsize=(5.6, 4.2))
(
    figures.truth(ax, truth)
    if len(truth)
    else figures.text_only(ax, "real recordings: the truth is unknown")
)
lab.save(fig, "truth")

# %% [markdown]
# ## What came out
#
# The statement is made from the recorded numbers, whatever they are:

# %%
print(lab.verdict(gains, table))

# %%
lab.finish().head(12)
