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
# # A voxel, its noise, its ceiling · 25 minutes
#
# Goal 1: compute the score of a voxel, and judge it against its noise ceiling.
#
# E1 `voxel_r` (8 minutes), E2 the ceiling from repeats (10 minutes).

# %% tags=["parameters"]
profile = "fast"
seed = 0

# %%
import matplotlib.pyplot as plt
import numpy as np

import ubrain
from ubrain.report import workshop

lab = ubrain.Lab("workshop", None, profile, seed)
first = lab.crowd[lab.subjects[0]]

# %% [markdown]
# ## One voxel, some images, three repeats
#
# A **voxel** is a small cube of brain whose activity is measured; an **encoder** predicts its response from the image. Responses are
# **z-scored**: of each voxel the mean is 0 and the variance 1.
#
# Every test image was shown three times. `repeats[i, k, v]` is the response of voxel `v` the k-th time that image `i` was shown.

# %%
rows = first.image_rows("test")
trials = np.stack([np.flatnonzero(first.trials.image == row) for row in rows])
repeats = np.stack([first.trials.zscored(t) for t in trials.T], axis=1)
print("(n_images, n_repeats, n_voxels) =", repeats.shape)

# %%
voxel = int(np.argmax(repeats.mean(1).var(0)))
fig, ax = plt.subplots(figsize=(9, 3))
ax.plot(repeats[:20, :, voxel], "o", color="0.6")
ax.plot(repeats[:20, :, voxel].mean(1), "_", color="black", markersize=14)
ax.set(xlabel="image", ylabel="response (z)", xticks=range(0, 20, 5))
ax.set_title(f"voxel {voxel}: three repeats, and their mean")
plt.show()

# %% [markdown]
# Two things vary: the **image** moves the mean (signal), and the **repeats** of one image differ (noise). An encoder can predict the
# first, never the second.
#
# ## Predicted and measured
#
# An encoder has predicted the responses to the same 200 images. It has never seen them.

# %%
encoder = lab.encoder(lab.subjects)
predicted, measured = lab.predict(encoder, first.name), lab.measured(first.name)
print("predicted, measured: (n_images, n_voxels) =", predicted.shape, measured.shape)

# %% [markdown]
# ### E1 · The score of a voxel · 8 minutes
#
# Write `voxel_r`: for each voxel, the **correlation over images** of predicted with measured. Without a loop over voxels, please.
#
# r = Σ (p − mean p) (m − mean m) / √( Σ (p − mean p)² · Σ (m − mean m)² ), sums and means over images.


# %% tags=["exercise", "E1"]
def voxel_r(predicted, measured):
    """(n_images, n_voxels) twice -> (n_voxels,)"""
    ### BEGIN SOLUTION
    ### ...  # your code, 3 lines
    p = predicted - predicted.mean(0)
    m = measured - measured.mean(0)
    return (p * m).sum(0) / np.sqrt((p**2).sum(0) * (m**2).sum(0))
    ### END SOLUTION


# %% tags=["check", "E1"]
workshop.check("E1", voxel_r, predicted, measured)

# %% [markdown] tags=["hint", "E1"]
# Images are axis 0. `x.mean(0)` is the mean over images, one for each voxel, and `x - x.mean(0)` subtracts it from every image.

# %% [markdown] tags=["hint", "E1"]
# With `p` and `m` without their means: `(p * m).sum(0)` is the numerator. Its denominator is
# `np.sqrt((p**2).sum(0) * (m**2).sum(0))`.

# %% [markdown]
# ## Is 0.5 good?
#
# `ubrain.scores.correlation` is the same function. Half of the voxels score less than the median. Is that a bad model, or a noisy voxel?
# Look at the repeats of one voxel, above: no model can predict where a dot lies around its mean.

# %%
r = ubrain.scores.correlation(predicted, measured)
print(f"median r {np.nanmedian(r):.3f}, best {np.nanmax(r):.3f}")

# %% [markdown]
# ### E2 · The noise ceiling · 10 minutes
#
# What would a *perfect* model score? Responses are z-scored, so the variance of a single response is 1, noise included.
#
# 1. noise variance: the variance **over repeats** of one image (with `ddof=1`), averaged over images;
# 2. signal variance: what is left of 1 (never below 0);
# 3. `measured` is the mean of k repeats, in which the noise variance is k times smaller;
# 4. ceiling r = √( signal / (signal + noise / k) ).


# %% tags=["exercise", "E2"]
def ceiling_r(repeats):
    """(n_images, n_repeats, n_voxels) -> (n_voxels,)"""
    ### BEGIN SOLUTION
    ### ...  # your code, 3 lines
    noise = repeats.var(axis=1, ddof=1).mean(0)
    signal = np.maximum(1 - noise, 0)
    return np.sqrt(signal / (signal + noise / repeats.shape[1]))
    ### END SOLUTION


# %% tags=["check", "E2"]
workshop.check("E2", ceiling_r, repeats)

# %% [markdown] tags=["hint", "E2"]
# Repeats are axis 1: `repeats.var(axis=1, ddof=1)` has a value for each image and voxel. Average it over images.

# %% [markdown] tags=["hint", "E2"]
# `signal = np.maximum(1 - noise, 0)`, and k is `repeats.shape[1]`.

# %% [markdown]
# ## Judge
#
# Each dot is a voxel. (`lab.ceiling_r` takes all images that were repeated, so its median differs a little from yours.) On the line, a model is as good as noise allows. What to look for: how far below the line are most voxels? And how
# can a voxel lie *above* its ceiling?

# %%
# from all images that were repeated, not from the test images only
ceiling = lab.ceiling_r(first.name)
fig, ax = plt.subplots(figsize=(4.6, 4.4))
ax.plot(ceiling, r, ".", markersize=4)
ax.plot([0, 1], [0, 1], "k--", linewidth=1)
ax.set(xlabel="noise ceiling", ylabel="r of the encoder", xlim=(0, 1), ylim=(-0.2, 1))
print(f"median r {np.nanmedian(r):.3f}, median ceiling {np.nanmedian(ceiling):.3f}")
print(f"{(r > ceiling).mean():.0%} of the voxels lie above their ceiling")

# %% [markdown]
# ## Talk to your neighbour · 3 minutes
#
# - Voxel A: r = 0.30, ceiling 0.32. Voxel B: r = 0.55, ceiling 0.85. Which one does the model understand better?
# - A paper reports r = 0.6 "in the 10 % best voxels". What do you want to know?

# %% [markdown]
# **Done?** In the menu: *Kernel → Shut Down Kernel*. An open module keeps a gigabyte of memory.

# %% [markdown] tags=["instructor"]
# **Instructor.** Ceiling and r are both estimated from noisy data, so a voxel may lie above its ceiling; it is no error. A: the model
# is near what can be known; B has more to learn. "Best voxels" chosen by the score itself, on the same test images, score too high by
# choice alone. Common errors: E1 `np.corrcoef(predicted.T, measured.T)`; E2 the wrong axis, and the ceiling of one repeat.
