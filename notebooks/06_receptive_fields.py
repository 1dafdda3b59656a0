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
# # Where a voxel looks, and what it reads
#
# Nobody tells the encoder where in the visual field a voxel looks, or whether it belongs to early or to high-level cortex. Does
# its embedding learn both? Does **spatial attention** find the voxel's receptive field, and does **functional attention** read
# early levels of the backbone for early areas, deep levels for the others?
#
# A simulated crowd knows the true receptive fields. Recordings may bring pRF maps (columns `prf_x`, `prf_y`, `prf_size`, or
# `prf_eccentricity`, `prf_angle`, of the voxel table); without them, there is nothing to compare with.
#
# The fields are read off the attention on test images; no measured response takes part. `field_of_view` is the side of the
# images in degrees of visual angle; `None` takes that of the simulation, and image widths for recordings.

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None
field_of_view = None
n_images = 4

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

import ubrain
from ubrain import scores
from ubrain.analysis import fields
from ubrain.report import figures
from ubrain.report.studies import receptive_fields as study

lab = ubrain.Lab("06_receptive_fields", crowd, profile, seed, subjects)
view, unit = study.field_of_view(lab, field_of_view)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## One voxel, one image
#
# One voxel of some areas of the first subject: the one that is predicted best on the **val** images. What to look for: does
# the attention stay where it is from image to image (a place), or does it follow what is shown (content)? The attention
# is averaged over the levels, each weighted by how much the voxel uses it. Bright is more; every map has its own scale.

# %%
encoder = lab.encoder(lab.subjects)
side = fields.side_of(encoder.config.n_tokens)
print(f"{len(encoder.levels)} levels of {side} × {side} tokens, each {view / side:.2f} {unit} wide")
readings = study.read_all(lab, encoder)
first = lab.subjects[0]
chosen = study.examples(lab, encoder, first)
names = [f"{a or 'voxel'}\n{v}" for a, v in zip(chosen["area"], chosen["voxel"], strict=True)]
chosen.round(2)

# %%
test = lab.crowd[first].image_rows("test")[:n_images]
picked = chosen["voxel"].to_numpy()
weights = study.on_images(lab, encoder, readings[first], first, picked, test)
print("attention: (n_voxels, n_images, n_tokens) =", weights.shape)
ids = [str(i) for i in lab.crowd.image_ids[test]]
fig = figures.attention_on_images(lab.pictures(test), weights, names, ids)
lab.save(fig, "attention")

# %% [markdown]
# ## Receptive fields
#
# The same voxels, attention averaged over images, level by level. Circle: the known receptive field, one standard
# deviation (if the file knows it). Cross: the middle of the image. Each map has its own colour scale, so that brightness
# cannot be compared between maps. Attention is in tokens, whose side is printed above; a receptive field smaller than a
# token cannot show its size. And a token of a deep level has itself seen much of the image.

# %%
maps = study.field_maps(readings[first], picked)
known = study.known_fields(lab, first)
circles = None if known is None else known.loc[picked].to_numpy()
levels = study.field_names(readings[first])
fig = figures.receptive_fields(maps, names, levels, view, unit, circles)
lab.save(fig, "receptive_fields")

# %% [markdown]
# From attention to a number: the centre of a receptive field is the mean place of the tokens, weighted by the attention that
# they get, its size the spread around it. For the first subject, all voxels at once:

# %%
reading = readings[first]
attention = fields.weighted(reading)  # levels weighted by use
places = fields.locate(attention, view)
early = study.early_areas(lab.crowd[first].voxels["areas"])
print("attention: (n_levels, n_voxels, n_tokens) =", reading.attention.shape)
print("levels by use: (n_voxels, n_tokens) =", attention.shape)
print("centre: x", places.x.shape, "y", places.y.shape, "size", places.sigma.shape)
for q, found in (("x", places.x), ("y", places.y)):
    if known is not None and early.sum() > 2:
        r = scores.correlation(found[early, None], known[q].to_numpy()[early, None])
        print(f"{q} of {early.sum()} early voxels: r = {r[0]:.2f} with the known one")

# %% [markdown]
# ## Are they the known ones?
#
# The same correlation for all voxels of an area, of all subjects: centre (x, y) and size. Two controls, since voxels of the left
# hemisphere see the right half of the visual field anyway: **shuffled voxels** keeps subject, area and hemisphere of each
# voxel and shuffles the rest, **untrained embeddings** has the trained shared weights and new embeddings. Their bars mean
# different things: 95 % of many shuffles lie in the grey one; the other is the 95 % interval, over voxels, of a single
# draw of embeddings.

# %%
table = study.field_table(lab, readings, view)
found = study.agreement(lab, table)
blank = study.read_all(lab, study.untrained(lab, encoder))
blank_table = study.field_table(lab, blank, view)
by_use = blank_table[blank_table["field"] == study.BY_USE]
blank_found = study.agreement(lab, by_use, study.UNTRAINED)
controls = pd.concat([study.layout_alone(lab, table), blank_found])
shown = found[found["field"] == study.BY_USE].drop(columns=["condition", "field"])
shown.reset_index(drop=True).round(3)

# %% [markdown]
# What to look for: dots far above the bars; early areas above the others, whose receptive fields are large; and which
# level knows the place best. If the black dots (levels by use) are not above the bars, layout alone explains them. The table
# counts the areas whose interval is above both bars.

# %%
fig, axes = plt.subplots(3, 1, figsize=(11, 10.5))
if len(found):
    figures.field_agreement(axes, found, controls)
else:
    figures.unknown_fields(axes)
lab.save(fig, "agreement")
study.above_controls(lab, found, controls).round(2)

# %% [markdown]
# Receptive fields grow with eccentricity. An attention that only spreads more the further out a voxel looks has a size that
# correlates with the known one, without knowing it. What is left of the correlation of sizes at equal eccentricity? In the
# simulation there is little left to find in V1 to V3: sigma follows eccentricity up to a scatter of 15 %, less than a token.
# Of as many areas as there are rows, one in forty has an interval above 0 by chance.

# %%
sizes = study.size_beyond_eccentricity(lab, table)
sizes.round(3)

# %% [markdown]
# Each voxel of the early areas as a dot. On the dashed line, the estimated place is the known one. Dots that follow a
# flatter line than the dashed one are right in order but pulled to the middle. Dotted: the edges of the image, beyond which
# attention cannot look, although known centres may lie there.

# %%
dots = study.positions(table, found)
n_areas = max(dots["area"].nunique(), 1)
fig, axes = plt.subplots(2, n_areas, figsize=(3.2 * n_areas, 6.6), squeeze=False)
if len(dots):
    figures.field_positions(axes, dots, view, unit)
else:
    figures.unknown_fields(axes)
lab.save(fig, "positions")

# %% [markdown]
# A correlation does not see a wrong scale, so: how far off is the centre, in degrees? For comparison, `of_the_middle`: how far
# the middle of the image is from the known centre, which is what a voxel without any place would get. `nearer`: by how
# much the estimate is better than the middle, voxel by voxel, with its interval; below 0 it is worse. Sizes: median estimated and known.

# %%
if unit == "degrees":
    display(study.distances(lab, table).round(2))
else:
    print("distances need field_of_view in degrees")

# %% [markdown]
# ## On the cortex
#
# Angle from the horizontal meridian in V1–V3, the voxels of all subjects on one surface: red looks up, blue looks down, pale sideways, left and right alike. What to look for: below the calcarine (ventral) red, above it
# (dorsal) blue. First as estimated, then as known.

# %%
label = "angle from the horizontal, {} (degrees; up is +90)"
fig = figures.cortex(*study.angles(table), label.format("estimated"), limit=90)
lab.save(fig, "cortex_estimated")
fig = figures.cortex(*study.angles(table, known=True), label.format("known"), limit=90)
lab.save(fig, "cortex_known")

# %% [markdown]
# ## Do early areas read early levels?
#
# A voxel's predicted response is a sum over levels. A level's share is its covariance with the sum, over images, divided by
# the variance of the sum. What to look for: V1–V3 with more of the first levels than the areas beyond hV4; and no such
# difference in the control. hV4, between the two, takes no part in the comparison: see in the figure where it reads.

# %%
trained = study.use_of_levels(lab, readings)
use = pd.concat([trained, study.use_of_levels(lab, blank, study.UNTRAINED)])
fig, axes = plt.subplots(1, 2, figsize=(11, max(2.5, 0.3 * len(trained) + 1.5)))
if len(use):
    figures.level_use(axes, use)
for ax in axes if not len(use) else ():
    figures.text_only(ax, "this crowd file names no areas")
lab.save(fig, "levels")

# %%
gaps = [study.depth_gap(lab, readings), study.depth_gap(lab, blank, study.UNTRAINED)]
pd.concat(gaps, ignore_index=True).round(3)

# %% [markdown]
# ## Cautions
#
# - In a **simulated** crowd the gap between levels is partly built in: V1 to hV4, all four, are made from filters of the pixels,
#   the areas beyond from the description of the scene. So there hV4 may well read as early as V1, which says nothing about brains.
# - Of as many areas as there are, one in forty has an interval above 0 by chance.
# - Centres that are right in order may still be pulled to the middle of the image: see the distances, not only the correlations.

# %%
lab.finish()
