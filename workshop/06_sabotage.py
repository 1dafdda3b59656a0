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
# # Sabotage · 10 minutes
#
# Goal 1 once more: before you trust a score, trust the file. Nothing crashes when images and responses do not belong together; numbers just get
# worse. Prepare (1 minute), spoil (1 minute), **diagnose your neighbour's file** (5 minutes), ask the doctor (3 minutes).

# %% tags=["parameters"]
profile = "fast"
seed = 0

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ubrain import Crowd
from ubrain.config import SimulationConfig
from ubrain.data import doctor, simulate
from ubrain.report import figures, workshop

# %% [markdown]
# ## Prepare
#
# A small crowd of its own, so that nothing of the other modules is spoilt: two subjects, simulated in half a minute.

# %%
size = SimulationConfig(subjects=2, images=180, test_images=60, voxels=160, scanner="7T")
if profile == "smoke":
    size = SimulationConfig(subjects=2, images=40, test_images=10, voxels=40, scanner="7T")
clean = Path("clean.h5")
if not clean.exists():
    simulate.simulate_crowd(clean, size, seed)
print(clean, f"{clean.stat().st_size / 1e6:.0f} MB")

# %% [markdown]
# ## Spoil it
#
# One of you runs the next cell and does not say which fault was chosen (`"transpose"`: rows and columns of every image are swapped, as when an
# array of MATLAB is read; `"shift"`: in each session, every response belongs to the trial before). Put its name in place of `None`, run the
# cell, put `None` back without running it again, and change seats. `None` lets the machine choose, if you are alone.

# %%
workshop.sabotage(clean, "mystery.h5", None)
print("mystery.h5 is written; it has a fault")

# %% [markdown]
# ## Diagnose
#
# You are the neighbour. Two looks at the file; each can catch one of the faults. First: what do images look like? (On which side is the light?)

# %%
suspect = Crowd("mystery.h5")
subject = suspect[suspect.subjects[0]]
fig, axes = plt.subplots(2, 5, figsize=(10, 4.4))
figures.images(axes.flat, suspect.pixels(subject.image_rows("test")[:10]), [""] * 10)
plt.show()

# %% [markdown]
# Second: repeats of one image should agree. Do they agree better if every response is moved by a trial or two? The mean correlation between
# two repeats of an image, over voxels, by how far the responses are moved:

# %%
image, session = subject.trials.image, subject.trials.session
z = subject.trials.zscored(np.arange(subject.n_trials))
pairs = [np.flatnonzero(image == i)[:2] for i in subject.image_rows("test")]
a, b = np.array([p for p in pairs if len(p) == 2]).T
for lag in (-2, -1, 0, 1, 2):
    moved = np.concatenate([np.roll(z[session == s], -lag, axis=0) for s in np.unique(session)])
    r = [np.corrcoef(moved[i], moved[j])[0, 1] for i, j in zip(a, b, strict=True)]
    print(f"moved by {lag:+d}: mean r between repeats {np.mean(r):+.3f}")

# %% [markdown]
# What is your diagnosis? Say it to the saboteur, with your evidence, before you ask the doctor.
#
# ## Ask the doctor
#
# The same as `ubrain check mystery.h5` in a terminal. It asks these questions, and some twenty others, of any crowd file.

# %%
findings = doctor.check(suspect)
print(doctor.report([f for f in findings if f.level != "note"]))
suspect.close()

# %% [markdown]
# And of the clean file:

# %%
print(doctor.report([f for f in doctor.check(clean) if f.level != "note"]))

# %% [markdown]
# **Done?** In the menu: *Kernel → Shut Down Kernel*. An open module keeps a gigabyte of memory.

# %% [markdown] tags=["instructor"]
# **Instructor.** With `fault="shift"` the mean r is near 0 at 0 and highest at +1; with `"transpose"` horizons stand upright, and the doctor says that
# images are lighter at one side and that a hemisphere prefers the wrong half. If time is short, do it once on the projector.
