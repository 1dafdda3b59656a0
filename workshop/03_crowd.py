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
# # Does the crowd help? · 35 minutes
#
# Goal 3: design a control for the gain of a crowd.
#
# Vote (3 minutes), E4 alone against the crowd (12 minutes), E5 is the gain real? (10 minutes), E6 partners that cannot help (8 minutes).

# %% tags=["parameters"]
profile = "fast"
seed = 0

# %%
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import ubrain
from ubrain import scores, train
from ubrain.analysis import stats
from ubrain.report import workshop
from ubrain.report.studies import controls

lab = ubrain.Lab("workshop", None, profile, seed)
me = lab.subjects[0]  # your subject
measured = lab.measured(me)

# %% [markdown] tags=["slide"]
# ## Vote first · 3 minutes
#
# Your subject saw 400 images. Five other subjects saw *other* images, and have other brains, other voxels, other noise. One encoder is
# trained on your subject alone, one on all six. On your subject's test images, does the second predict **better, the same, or worse**?
# By how much, in median r? Write your number down before you go on.

# %% [markdown]
# ## Train your subject alone
#
# The training here is short, about half a minute: a quarter of what an encoder usually gets. The next cell loads two encoders that
# were trained before, both for four times as many steps: one on your subject **alone**, and one on the **crowd**.

# %%
steps = lab.profile.training.min_steps // 4
print(f"{steps} steps, instead of {lab.profile.training.min_steps}")
started = time.monotonic()
training = replace(lab.profile.training, epochs=1, min_steps=steps)
short = train.fit(lab.source, [me], lab.profile.encoder, training, seed)
print(f"{time.monotonic() - started:.0f} s")

# %%
encoders = {"short": short, "alone": lab.encoder([me]), "crowd": lab.encoder(lab.subjects)}
predicted = {name: lab.predict(encoder, me) for name, encoder in encoders.items()}
r = {name: scores.correlation(p, measured) for name, p in predicted.items()}
for name in r:
    print(f"{name:6} median r {np.nanmedian(r[name]):.4f}")

# %% [markdown]
# ### E4 · What is the gain of the crowd? · 7 minutes
#
# Set `gain` to the gain in **median r** that the *crowd* is responsible for, and not something else. Which two of the three do you compare,
# and why not the other pair? (`r["alone"]` has the r of every voxel.)

# %% tags=["exercise", "E4"]
### BEGIN SOLUTION
### gain = ...  # your code, 1 line
gain = np.nanmedian(r["crowd"]) - np.nanmedian(r["alone"])
### END SOLUTION

# %% tags=["check", "E4"]
workshop.check("E4", gain, r)

# %% [markdown] tags=["hint", "E4"]
# A fair comparison differs in one thing only. In which things do `short` and `crowd` differ?

# %% [markdown] tags=["hint", "E4"]
# `np.nanmedian(r["crowd"])` is the median of one. `alone` was trained for as many steps as `crowd`.

# %% [markdown]
# **With care.** As many *steps* means as many updates of the shared weights. Of the crowd's steps only a sixth shows images of your
# subject, so it sees these less often than `alone` does. Fair in one way is not fair in all; say which one you took.
#
# ## Is the gain real?
#
# With other test images both numbers would have come out differently. How differently? The **bootstrap** answers with the images that there
# are: draw as many images as there are, *with replacement*, so that some come twice and some not at all, and compute the gain anew. Many times.
#
# ### E5 · A paired bootstrap · 10 minutes
#
# Write `bootstrap`: `n` times, draw images (the same for both encoders *and* for the measured responses, that is what *paired* means), and
# compute the gain in median r. `scores.correlation(p, m)` gives the r of every voxel.


# %% tags=["exercise", "E5"]
def bootstrap(crowd, alone, measured, n, rng):
    """(n_images, n_voxels) three times -> (n,) gains in median r"""
    ### BEGIN SOLUTION
    ### ...  # your code, 6 lines
    gains = []
    for _ in range(n):
        drawn = rng.integers(len(measured), size=len(measured))
        r_crowd = scores.correlation(crowd[drawn], measured[drawn])
        r_alone = scores.correlation(alone[drawn], measured[drawn])
        gains.append(np.nanmedian(r_crowd) - np.nanmedian(r_alone))
    return np.array(gains)
    ### END SOLUTION


# %% tags=["check", "E5"]
workshop.check("E5", bootstrap, predicted["crowd"], predicted["alone"], measured)

# %% [markdown] tags=["hint", "E5"]
# `drawn = rng.integers(len(measured), size=len(measured))` draws numbers of images with replacement; `crowd[drawn]` are their rows.

# %% [markdown] tags=["hint", "E5"]
# In each of the n rounds: draw once, take the correlations of `crowd[drawn]` and of `alone[drawn]` with `measured[drawn]`, and append the
# difference of the two medians to a list.

# %% [markdown]
# The library has an interval that also covers the choice of voxels, in one line. Is 0 in it? (The bootstrap lies a little higher: an image that is
# drawn twice counts twice, which changes correlations. `docs/intervals.md` says how often each kind of interval holds the truth.)

# %%
found = stats.median_r(predicted["crowd"], measured, predicted["alone"])
print(
    f"gain of the crowd for {me}: {found.value:+.3f}, 95 % interval {found.low:+.3f} to {found.high:+.3f}"
)

# %% [markdown]
# How near was your vote? Now, **why** does the crowd help? Perhaps it has learned what the images of others say about brains. Perhaps a model of
# more subjects is just *larger*, or its training is noisier, which may help, too. Take the cause away and see whether the gain goes.
#
# ### E6 · Partners that cannot help · 8 minutes
#
# Design the control: partners stay, with as many voxels, images, trials and repeats; but *what they were shown* no longer belongs to *what
# they responded*. `images[t]` is the number of the image of trial t. Return the images shuffled: **the distinct images are permuted at random**
# (a few may stay where they are), and all repeats of an image move together, so that repeats still agree.


# %% tags=["exercise", "E6"]
def break_link(images, rng):
    """(n_trials,) -> (n_trials,)"""
    ### BEGIN SOLUTION
    ### ...  # your code, 3 lines
    distinct, which = np.unique(images, return_inverse=True)
    return rng.permutation(distinct)[which]
    ### END SOLUTION


# %% tags=["check", "E6"]
workshop.check("E6", break_link)

# %% [markdown] tags=["hint", "E6"]
# Why not `rng.permutation(images)`? Then two repeats of one image would get two different images.

# %% [markdown] tags=["hint", "E6"]
# `distinct = np.unique(images)` are the distinct images, and `rng.permutation(distinct)` the same in another order: a partner for each. Look up
# each trial's image, with a dictionary, or with `np.unique(images, return_inverse=True)`, which also says where each image is among the distinct.

# %% [markdown]
# An encoder was trained with such partners: your subject's own images are in order, those of three partners are shuffled. Beside it, the
# same crowd of four as it is. What do you expect? Decide before you run the cell.

# %%
crowd = controls.direction(lab).crowd  # a crowd of four, two subjects are left for module 4
useless = controls.shuffled(lab, [s for s in crowd if s != me])
intervals = {
    "crowd of four": lab.predict(lab.encoder(crowd), me),
    "three shuffled partners": useless.predict(useless.encoder(crowd), me),
}
fig, ax = plt.subplots(figsize=(7, 1.8))
for y, (name, p) in enumerate(intervals.items()):
    found = stats.median_r(p, measured, predicted["alone"])
    ax.errorbar(
        found.value, y, xerr=[[found.value - found.low], [found.high - found.value]], fmt="o"
    )
    print(f"{name:24} gain over alone {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})")
ax.axvline(0, color="black", linewidth=1)
ax.set(
    yticks=range(len(intervals)),
    yticklabels=list(intervals),
    xlabel="gain in median r",
    ylim=(-0.6, 1.6),
)
plt.show()

# %% [markdown]
# ## Talk to your neighbour · 2 minutes
#
# - Useless partners may cost something. Why does that not make the control fail?
# - Name one more thing that the crowd has and `alone` has not. Which control would take it away?

# %% [markdown]
# **Done?** In the menu: *Kernel → Shut Down Kernel*. An open module keeps a gigabyte of memory.

# %% [markdown] tags=["instructor"]
# **Instructor.** Collect votes with raised hands: better, same, worse. Useless partners use up training, so a *negative* value is as expected;
# only a gain would be an alarm. More controls: partners whose responses are noise alone, partners that share no function (notebook 09
# turns the sharing off: the gain of the crowd hardly falls there, which surprises; the shared weights also learn to read
# *images* better), a crowd of copies of one subject. Common errors: E4 compares with `short`; E5 draws images twice, once for each encoder;
# E6 permutes trials.
