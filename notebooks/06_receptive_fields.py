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
# Nobody tells the encoder where in the visual field a voxel looks, or whether it is early or high-level. Does its embedding learn
# both: does **spatial attention** find the receptive field, does **functional attention** read early levels of the backbone for
# early areas? The attention is read off on test images; no measured response takes part.

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None
field_of_view = None
n_images = 3

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

import ubrain
from ubrain import scores
from ubrain.analysis import fields
from ubrain.report import figures
from ubrain.report.studies import receptive_fields as study

lab = ubrain.Lab("06_receptive_fields", crowd, profile, seed, subjects, split_scheme)
view, unit = study.field_of_view(lab, field_of_view)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Single voxels
#
# The voxel of some areas of the first subject that is predicted best on the **val** images.

# %%
encoder = lab.encoder(lab.subjects)
side = fields.side_of(encoder.config.n_tokens)
print(f"{len(encoder.levels)} levels of {side} × {side} tokens, each {view / side:.2f} {unit} wide")
readings = study.read_all(lab, encoder)
first = lab.subjects[0]
chosen = study.examples(lab, encoder, first)
chosen.round(2)

# %% [markdown]
# Lines: attention on single images, at a quarter, half and three quarters of its maximum. Last row: its mean over images, and the known
# receptive field as a circle (one standard deviation). What to look for: does attention stay where it is from image to image
# (a place), or follow what is shown (content)? Is the mean inside the circle?

# %%
test, picked = lab.crowd[first].image_rows("test")[:n_images], chosen["voxel"].to_numpy()
weights = study.on_images(lab, encoder, readings[first], first, picked, test)
maps = study.field_maps(readings[first], picked)[:, -1]  # the levels by use
print("attention: (n_voxels, n_images, n_tokens) =", weights.shape, "mean:", maps.shape)
known = study.known_fields(lab, first)
circles = None if known is None else known.loc[picked].to_numpy()
names = [a or f"voxel {v}" for a, v in zip(chosen["area"], chosen["voxel"], strict=True)]
pixels = lab.pictures(test)
fig = figures.attention_on_images(pixels, weights, names, maps, view, unit, circles)
lab.save(fig, "attention")

# %% [markdown]
# From attention to a number: the centre of a receptive field is the mean place of the tokens, weighted by the attention that
# they get, its size the spread around it.

# %%
attention = fields.weighted(readings[first])  # levels weighted by use
places = fields.locate(attention, view)
early = study.early_areas(lab.crowd[first].voxels["areas"])
print("attention, levels by use: (n_voxels, n_tokens) =", attention.shape)
print("centre: x", places.x.shape, "y", places.y.shape, "size", places.sigma.shape)
for q, found in (("x", places.x), ("y", places.y)):
    if known is not None and early.sum() > 2:
        r = scores.correlation(found[early, None], known[q].to_numpy()[early, None])
        print(f"{q} of {early.sum()} early voxels: r = {r[0]:.2f} with the known one")

# %% [markdown]
# ## Are they the known ones?
#
# The same correlation for all voxels of an area, of all subjects. Voxels of the left hemisphere see the right half of the visual
# field anyway, hence two controls: **shuffled voxels** (within subject, area and hemisphere) and **untrained embeddings** (with the
# trained shared weights). What to look for: dots far to the right of both bars; early areas before the others.

# %%
table = study.field_table(lab, readings, view)
found = study.agreement(lab, table)
blank = study.read_all(lab, study.untrained(lab, encoder))
blank_table = study.field_table(lab, blank, view)
by_use = blank_table[blank_table["field"] == study.BY_USE]
blank_found = study.agreement(lab, by_use, study.UNTRAINED)
controls = pd.concat([study.layout_alone(lab, table), blank_found])

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 5.2), sharex=True, sharey=True)
if len(found):
    figures.field_agreement(axes, found[found["field"] == study.BY_USE], controls)
else:
    figures.unknown_fields(axes)
lab.save(fig, "agreement")
study.above_controls(lab, found, controls).round(2)

# %% [markdown]
# Receptive fields grow with eccentricity, and so may a spread that knows nothing of size. What is left of the correlation of sizes at
# equal eccentricity? In the simulation little can be left in V1 to V3: sigma follows eccentricity up to a scatter of 15 %, less than a token.

# %%
sizes = study.size_beyond_eccentricity(lab, table).assign(score="r at equal eccentricity")
figures.compact(sizes, "r", by="area", columns="score").head(12)

# %% [markdown]
# A correlation does not see a wrong scale: how far off is the centre, in degrees? `of_the_middle`: what a voxel without any place
# would get. `nearer`: by how much the estimate is better, voxel by voxel; below 0 it is worse.

# %%
if unit == "degrees":
    far = study.distances(lab, table).assign(score="nearer")
    nearer = figures.compact(far, "nearer", by="area", columns="score", digits=2)
    far = far.set_index("area")[["distance", "of_the_middle", "size", "known_size"]].round(2)
    display(far.join(nearer).head(12))
else:
    print("distances need field_of_view in degrees")

# %% [markdown]
# ## On the cortex
#
# Angle from the horizontal meridian in V1–V3, the voxels of all subjects on one flat surface: red looks up, blue down, pale sideways.
# What to look for: the same pattern twice, red below the calcarine (ventral), blue above it (dorsal).

# %%
maps = {"estimated, ": study.angles(table), "known, ": study.angles(table, known=True)}
label = "angle from the horizontal\n(degrees; up is +90)"
fig = figures.flat_values(maps, study.outlines(table), label, (-90, 90), "RdBu_r")
lab.save(fig, "cortex")

# %% [markdown]
# ## Do early areas read early levels?
#
# A level's share is its covariance with the predicted response, over images, divided by that response's variance. What to look
# for: V1–V3 with more of the first levels than the areas beyond hV4, and no such difference in the control.

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
gap = pd.concat(gaps, ignore_index=True)
figures.compact(gap, "gap", by="subject", columns="condition").head(12)

# %% [markdown]
# ## With care
#
# - **What is known.** A simulated crowd knows the true receptive fields. Recordings may bring pRF maps (columns `prf_x`, `prf_y`,
#   `prf_size`, or `prf_eccentricity`, `prf_angle`, of the voxel table); without them there is nothing to compare with.
#   `field_of_view` is the side of the images in degrees; `None` takes that of the simulation, and image widths for recordings.
# - **Attention** is averaged over the levels, each weighted by how much the voxel uses it, and is in tokens: a receptive field smaller
#   than a token cannot show its size, and a token of a deep level has itself seen much of the image. Every map has its own scale.
# - **The bars differ.** 95 % of many shuffles lie in the grey one; the other is the 95 % interval, over voxels, of a single draw of
#   embeddings. Of as many areas as there are, one in forty has an interval above 0 by chance.
# - **Centres** that are right in order may be pulled to the middle of the image: see the distances, not only the correlations.
#   Attention cannot look beyond the image, although known centres may lie there.
# - **Levels.** In a simulation the gap is partly built in: V1 to hV4 are made from filters of the pixels, the areas beyond from
#   the description of the scene. So hV4 may read as early as V1 there, which says nothing about brains; it takes no part in the gap.

# %%
lab.finish()
