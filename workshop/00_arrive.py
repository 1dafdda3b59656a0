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
# # Arrive and check · 10 minutes
#
# Three hours, one question: **can one model predict everybody's brain, and how would you know?** You need some Python and NumPy,
# and no knowledge of brains. After the workshop you can
#
# 1. compute the score of a voxel, and judge it against its noise ceiling,
# 2. write spatial and functional attention in NumPy,
# 3. design a control for the gain of a crowd,
# 4. fit a newcomer with few images,
# 5. say what a simulation proves, and what it does not.
#
# Goal of this module: your machine works, and you know how an exercise works.

# %% tags=["parameters"]
profile = "fast"
seed = 0

# %% [markdown]
# Run this cell (Shift+Enter). The first import takes up to half a minute.

# %%
import matplotlib.pyplot as plt

import ubrain
from ubrain.report import figures, workshop

lab = ubrain.Lab("workshop", None, profile, seed)
encoder = lab.encoder(lab.subjects)
print("ready:", len(lab.subjects), "subjects, encoder loaded")

# %% [markdown]
# If this says `ready`, put up your hand, or turn your paper to green. If it starts to *train*, stop it (the square button) and
# call for help: the pack is not where it should be.
#
# ## Words
#
# | word | what it means here |
# |---|---|
# | **fMRI** | a scanner that measures, every second or so, how active each small piece of a brain is |
# | **voxel** | such a piece, a cube of one to three millimetres |
# | **response** | what a voxel did when an image was shown: one number; 0 is its mean, 1 a standard deviation |
# | **repeat** | the same image, shown again; the response differs, because measurements are noisy |
# | **encoder** | a model that predicts responses from an image |
# | **crowd** | several subjects who were measured with different images; no two brains share a voxel |
# | **area** | a part of visual cortex: V1, V2, V3 and hV4 are *early* and see lines and colours at one place; others prefer faces, bodies, places, words |
# | **train, val, test** | images to learn from, to choose by, and to judge by; a test image is never learned from |
#
# Nobody was scanned for what you see today: images, brains and noise are **simulated**, so that the truth is known. That is
# the point of goal 5.

# %%
first = lab.crowd[lab.subjects[0]]
fig, axes = plt.subplots(2, 4, figsize=(9, 4.8))
figures.images(axes.flat, lab.pictures(first.image_rows("train")[:8]), [""] * 8)
fig.suptitle(f"Eight images that {first.name} saw")
plt.show()

# %% [markdown]
# ## How an exercise works
#
# You fill in what the dots leave out, run the cell, and run the check below it. Stuck? `workshop.hint("E0")` gives a hint, once more the
# next one, and `workshop.show("E0")` the solution. Nobody counts. Later cells never need your answer, so you can always go on.
#
# ### E0 · How many voxels has the first subject? · 1 minute
#
# `first` is the first subject. Type `first.` and press the Tab key.

# %% tags=["exercise", "E0"]
### BEGIN SOLUTION
### n_voxels = ...  # your code
n_voxels = first.n_voxels
### END SOLUTION

# %% tags=["check", "E0"]
workshop.check("E0", n_voxels, first.n_voxels)

# %% [markdown] tags=["hint", "E0"]
# The attribute is called `n_voxels`.

# %% [markdown]
# **Done?** In the menu: *Kernel → Shut Down Kernel*. An open module keeps a gigabyte of memory.

# %% [markdown] tags=["instructor"]
# **Instructor.** Let nobody install anything now: whoever has no environment looks on with a neighbour. Pairs are better than singles
# anyway. Write the pair numbers 1, 2, 3, ... on paper, module 4 needs them.
