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
# # A crowd of datasets (Fig. 5)
#
# **Claim of the paper.** The encoder learns from several datasets at once, although their subjects saw different images
# in different scanners; small datasets of older scanners gain from a large one.
#
# The **main dataset** is the one with most subjects in the crowd file. For every other dataset, three encoders are
# compared on its subjects' own test images:
#
# | condition | trained on |
# |---|---|
# | encoder, one subject | this subject alone |
# | encoder, crowd | all subjects of its own dataset |
# | encoder, two datasets | all subjects of its own dataset and of the main dataset |
# | encoder, crowd + 2 of (main dataset) | all subjects of its own dataset, and the first two of the main dataset |
#
# A crowd file with one dataset only has nothing to compare; the notebook then says so.

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None
main_subjects = [2]

# %%
import matplotlib.pyplot as plt

import ubrain
from ubrain.report import figures
from ubrain.report.lab import ALONE, CROWD
from ubrain.report.studies import datasets as study

lab = ubrain.Lab("02_crowd_of_datasets", crowd, profile, seed, subjects)
found = study.groups(lab, subjects)
main, others = study.main_and_others(found)
nothing = f"one dataset only ({main}): there is nothing to compare"
print("main dataset:", main, "· others:", ", ".join(others) or "none")
lab.summary([s for names in found.values() for s in names]).round(3)

# %% [markdown]
# Read the table before the results: datasets differ in the number of images, of test images (the gallery of a retrieval)
# and of repeats. `median ceiling r` is the highest correlation that noise allows, NaN where the file holds averages only:
# there, nobody can say how far from perfect a prediction is.
#
# ## Fit everything
#
# A gain must not be one of training longer. A small crowd is trained for at least `min_steps` of the profile, and a crowd of
# two datasets for no more steps than the main dataset's own crowd: it gets fewer epochs. Within these steps the subjects
# of each dataset have fewer to themselves than in their own crowd, which works against the claim, and against the main
# dataset, too. Each training keeps the weights of the epoch that is best on the val images.

# %%
plan = study.plan(lab, found, main_subjects)
plan

# %%
fitted = study.fit(lab, found, main_subjects)
predictions = study.pooled(fitted, list(found))
others_only = study.pooled(fitted, others, (ALONE, CROWD, study.TOGETHER))

# %% [markdown]
# ## Scores
#
# Median voxel correlation with a 95 % bootstrap interval over images and voxels, and retrieval among the subject's own
# test images (`gallery`; `chance_top1` goes with it). `median_r2` is 1 − (squared error) / (variance), not the square of r:
# it also punishes a wrong scale. A prediction that varies as much as the responses do, but correlates little with them, as
# for the 3T subjects, has a squared error above their variance, and an R² far below 0.
#
# `encoder, two datasets` and `encoder, crowd + <dataset>` are one network, once scored on the subjects of the smaller
# dataset, once on those of the main one.

# %%
table = lab.score_table(predictions)
table.round(3)

# %% [markdown]
# Subjects of the other datasets: median and quartiles over voxels. What to look for: is wine red (two datasets) above green
# (own dataset) and orange (alone), and how far below the dashed ceiling, where it is known? Correlations of different datasets
# must not be compared: the 4T responses are averages already, so they hold less noise.

# %%
fig, ax = plt.subplots(figsize=(9, 4.2))
ceilings = {s: lab.ceiling_r(s) for d in others for s in found[d]}
(
    figures.voxel_quartiles(ax, lab.voxel_r(others_only), ceilings)
    if others
    else figures.text_only(ax, nothing)
)
lab.save(fig, "voxel_correlation")

# %% [markdown]
# ## Who gains?
#
# Paired: each resample of images and voxels scores both encoders. An interval above 0 is a gain, below 0 a loss; one that
# holds 0 is neither. They cover the choice of images and voxels, not the seed of a training. The median of a resample is
# not the median of all, so an interval need not be centred on its dot.

# %%
gains = study.gains(lab, fitted, found)
gains.round(3)

# %%
fig, ax = plt.subplots(figsize=(9, 4))
mine = gains[gains["dataset"] != main]
labels = ["two datasets − own dataset", "two datasets − alone", "own dataset − alone"]
figures.subject_gains(ax, mine, labels) if others else figures.text_only(ax, nothing)
lab.save(fig, "gains")

# %% [markdown]
# ## Does the main dataset lose?
#
# The subjects of the main dataset, trained with another dataset, against their own crowd, in median r and in top-1
# retrieval. What to look for: intervals that hold 0; those below it are the price of the company, within the same number of
# steps: in a joint training the main dataset has fewer steps to itself (`of the main dataset` in the table of trainings).

# %%
fig, axes = plt.subplots(1, 2, figsize=(13, 4))
theirs, labels = gains[gains["dataset"] == main], [f"with {d}" for d in others]
figures.subject_gains(axes[0], theirs, labels) if others else figures.text_only(axes[0], nothing)
(
    figures.subject_gains(axes[1], theirs, labels, top1=True)
    if others
    else figures.text_only(axes[1], nothing)
)
lab.save(fig, "main_dataset")

# %% [markdown]
# ## How many subjects of the main dataset does it take?
#
# 0 is the own dataset's crowd; then come the first few subjects of the main dataset in the order of the file, and all.
# Thin lines are subjects. What to look for: do a few subjects bring most of the gain, and does the line still rise at the
# right end?

# %%
growth = study.growth(table, found, main_subjects)
fig, axes = plt.subplots(1, 2, figsize=(11, 4))
(
    figures.joined(axes[0], growth, "median_r", "median voxel correlation r", main)
    if others
    else figures.text_only(axes[0], nothing)
)
(
    figures.joined(axes[1], growth, "top1", "top-1 retrieval (%)", main, 100)
    if others
    else figures.text_only(axes[1], nothing)
)
lab.save(fig, "joined")

# %% [markdown]
# ## Which areas gain, and which do not?
#
# Two datasets against the own dataset, the voxels of an area of all subjects of a dataset together, on the test images
# that all of them saw; 95 % intervals, of which about one in 20 misses the truth by chance. What to look for: areas whose
# interval holds 0, or lies below it. The table has the eight lowest.

# %%
by_area = study.area_gains(lab, fitted, found)
fig, ax = plt.subplots(figsize=(11, 4.4))
(
    figures.area_gains(ax, by_area)
    if len(by_area)
    else figures.text_only(ax, "no areas are named, or nothing to compare")
)
lab.save(fig, "areas")

# %%
by_area.sort_values("gain").head(8).round(3)

# %% [markdown]
# ## What came out
#
# The statements are made from the recorded numbers, whatever they are:

# %%
print(study.verdict(plan, gains, by_area, growth, found))

# %%
lab.finish().head(12)
