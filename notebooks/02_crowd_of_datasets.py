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
# Datasets differ in scanner, images and subjects. Can one encoder learn from several of them at once, and do small datasets of older
# scanners gain from a large one? The paper says so. And does the large one lose?
#
# The **main dataset** is the one with most subjects in the crowd file. For every other dataset, encoders are compared on its
# subjects' own test images:
#
# | condition | trained on |
# |---|---|
# | encoder, one subject | this subject alone |
# | encoder, crowd | all subjects of its own dataset |
# | encoder, two datasets | all subjects of its own dataset and of the main dataset |
# | encoder, crowd + 2 of (main dataset) | all subjects of its own dataset, and the first two of the main dataset |
#
# A crowd file with one dataset only has nothing to compare; the figures then say so.

# %% tags=["parameters"]
crowd = None
split_scheme = None
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
from ubrain.report.studies import scoring

lab = ubrain.Lab("02_crowd_of_datasets", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Load
#
# Datasets differ in the number of images, of test images (the gallery of a retrieval) and of repeats. `median ceiling r` is the
# highest correlation that noise allows, NaN where the file holds averages only.

# %%
found = study.groups(lab, subjects)
main, *others = found
everybody = [s for names in found.values() for s in names]
print("main dataset:", main, "· others:", ", ".join(others) or "none")
lab.summary(everybody).round(3)

# %% [markdown]
# ## What is trained
#
# A gain must not be one of training longer. A crowd of two datasets gets no more steps than the main dataset's own crowd: it gets
# fewer epochs.

# %%
trainings = study.trainings(lab, found, main_subjects)
study.plan(lab, trainings)

# %% [markdown]
# ## Fit
#
# Each subject of a smaller dataset alone, then every crowd of the table. What is kept is the predicted responses of a subject to its
# own test images.

# %%
predictions = {}
for s in (s for dataset in others for s in found[dataset]):
    predictions.setdefault(ALONE, {})[s] = lab.predict(lab.encoder([s]), s)

# %%
for t in trainings:
    encoder = lab.encoder(t.subjects, training=t.config)
    for s in found[t.dataset]:
        predictions.setdefault(t.condition, {})[s] = lab.predict(encoder, s)
    if t.condition == study.TOGETHER:  # and what does the same encoder do for the main dataset?
        by_subject = {s: lab.predict(encoder, s) for s in found[main]}
        predictions[study.with_dataset(t.dataset)] = by_subject
for condition, by_subject in predictions.items():
    print(f"{condition}, (n_images, n_voxels):", {s: p.shape for s, p in by_subject.items()})

# %% [markdown]
# ## Score
#
# Median voxel correlation, with a 95 % interval over images and voxels:

# %%
table = scoring.score_table(lab, predictions)
figures.compact(table)

# %% [markdown]
# Subjects of the other datasets: median over voxels, with 95 % intervals. What to look for: is wine red (two datasets) above green
# (own dataset) and orange (alone), and how far below the dashed ceiling, where it is known?

# %%
fig, ax = plt.subplots(figsize=(9, 4.2))
nothing = f"one dataset only ({main}): there is nothing to compare"
if others:
    ceilings = {s: lab.ceiling_r(s) for s in predictions[ALONE]}
    compared = table["condition"].isin((ALONE, CROWD, study.TOGETHER))
    theirs = table[compared & table["subject"].isin(ceilings)]
    figures.with_intervals(ax, theirs, ceilings=ceilings)
else:
    figures.text_only(ax, nothing)
lab.save(fig, "voxel_correlation")

# %% [markdown]
# ## Who gains?
#
# Paired: each resample of images and voxels scores both encoders. An interval above 0 is a gain, below 0 a loss; one that
# holds 0 is neither.

# %%
gains = study.gains(lab, predictions, found)
named = gains.assign(comparison=gains["of"] + " − " + gains["over"])
figures.compact(named, "gain", columns="comparison")

# %%
fig, ax = plt.subplots(figsize=(9, 4))
labels = [f"{a} − {b}" for a, b in study.COMPARED]
if others:
    figures.subject_gains(ax, gains[gains["dataset"] != main], labels)
else:
    figures.text_only(ax, nothing)
lab.save(fig, "gains")

# %% [markdown]
# ## Does the main dataset lose?
#
# The subjects of the main dataset, trained with another dataset, against their own crowd, in median r and in top-1
# retrieval. What to look for: intervals that hold 0; those below it are the cost of sharing.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4))
theirs, labels = gains[gains["dataset"] == main], [f"with {d}" for d in others]
for ax, top1 in zip(axes, (False, True), strict=True):
    if others:
        figures.subject_gains(ax, theirs, labels, top1)
    else:
        figures.text_only(ax, nothing)
lab.save(fig, "main_dataset")

# %% [markdown]
# ## How many subjects of the main dataset does it take?
#
# 0 is the own dataset's crowd; then come the first few subjects of the main dataset in the order of the file, and all.
# Thin lines are subjects. What to look for: do a few subjects bring most of the gain, and does the line still rise at the
# right end?

# %%
growth = study.growth(table, found, trainings)
fig, axes = plt.subplots(1, 2, figsize=(10, 4))
if others:
    figures.joined(axes[0], growth, "median_r", "median voxel correlation r", main)
    figures.joined(axes[1], growth, "top1", "top-1 retrieval (%)", main, 100)
else:
    figures.text_only(axes[0], nothing)
    axes[1].set_axis_off()
lab.save(fig, "joined")

# %% [markdown]
# ## Appendix: which areas gain, and which do not?
#
# Filled dots: two datasets against the own dataset, the voxels of an area of all subjects of a dataset together, on the test images
# that all of them saw. What to look for: areas whose interval holds 0, or lies below it. Open dots: what the main dataset gains with the other.

# %%
by_area = study.area_gains(lab, predictions, found)
fig, ax = plt.subplots(figsize=(11, 4.4))
if len(by_area):
    figures.area_gains(ax, by_area)
else:
    figures.text_only(ax, "no areas are named, or nothing to compare")
lab.save(fig, "areas")

# %% [markdown]
# ## With care
#
# - `encoder, two datasets` and `encoder, crowd + <dataset>` are one network, once scored on the subjects of the smaller dataset, once on
#   those of the main one.
# - A small crowd is trained for at least `min_steps` of the profile, a crowd of two datasets for no more steps than the main dataset's
#   own. Within these steps the subjects of each dataset have fewer to themselves than in their own crowd (`of the main dataset`
#   in the table of trainings), which works against the claim, and against the main dataset, too. Each training keeps the weights
#   of the epoch that is best on the val images.
# - Correlations of different datasets must not be compared: the 4T responses are averages already, so they hold less noise.
# - `median_r2` is 1 − (squared error) / (variance), not the square of r: it also punishes a wrong scale. A prediction that varies as
#   much as the responses do, but correlates little with them, as for the 3T subjects, has an R² far below 0.
# - Intervals cover the choice of images and voxels, not the seed of a training. The median of a resample is not the median of all, so
#   an interval need not be centred on its dot. Of the intervals by area, about one in 20 misses the truth by chance.

# %%
lab.finish()
