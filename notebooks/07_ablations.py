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
# # What is each part of the encoder worth?
#
# Which parts of the universal encoder does its prediction rest on? One thing is changed at a time:
#
# | group | what is changed |
# |---|---|
# | embedding size | the length of the vector that is all the encoder knows of a voxel |
# | levels | only some depths of the backbone are read |
# | attention | without spatial attention all tokens count alike; without position they are told apart by content only; without functional attention all voxels read the same channels |
# | loss | the released code trains 1·MSE − 0.1·cos; others read the paper as 0.1·MSE − 0.9·cos |
# | voxels per step | how many voxels are drawn for each batch of images; at the same number of steps fewer voxels are also less training |
# | recipe | training as the released code does it, one difference at a time, and all of them with its learning rate and schedule |
# | adapters | small trainable layers in the backbone, trained from images; only where the profile's backbone can have them (a vision transformer: profile paper) |
#
# All variants see the same subjects, images and number of steps, with two or
# more seeds each; what is compared are pairs of the same seed and subject.

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None
n_steps = None
n_seeds = None

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import ubrain
from ubrain import scores
from ubrain.predict import predict
from ubrain.report import figures
from ubrain.report.lab import CROWD
from ubrain.report.studies import ablations as study
from ubrain.report.studies import scoring

lab = ubrain.Lab("07_ablations", crowd, profile, seed, subjects)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## The variants
#
# The first row is the full encoder, with the sizes of the profile. Every other row differs from it in one thing.

# %%
variants = study.variants(lab, n_steps)
study.settings_table(lab, variants)

# %% [markdown]
# ## One pair, step by step
#
# The full encoder and the first variant, with the same seed, subjects, images and number of steps. Each keeps the weights that
# are best on the val images; the scores are of the test images.

# %%
crowd_of = study.subjects_of(lab)
first = crowd_of[0]
rows, measured = lab.crowd[first].image_rows("test"), lab.crowd[first].responses("test")
for v in variants[:2]:
    source = study.source_of(lab, v, seed)
    encoder = lab.encoder(crowd_of, v.encoder, v.training, seed, source)
    predicted = predict(encoder, source, first, rows)  # (n_images, n_voxels)
    r = scores.correlation(predicted, measured)  # (n_voxels,)
    shape = tuple(encoder.subject(first).shape)
    print(f"{v.name}: embeddings {shape}, median r {np.nanmedian(r):.3f}")

# %% [markdown]
# ## Train them all
#
# Trainings are cached: what was trained before is loaded. `shared`: how many numbers the subjects share, used or not: without
# spatial attention, say, its weights are there but idle. The standard deviation is over seeds and subjects.

# %%
table = study.train_all(lab, variants, n_seeds)
shown = {"median_r": ["mean", "std"], "top1": "mean", "shared": "first"}
table.groupby("variant", sort=False)[list(shown)].agg(shown).round(3)

# %% [markdown]
# Most of the standard deviation lies between subjects, which is why pairs are compared: a variant's score minus the full
# encoder's, of the same seed and subject. *Worse* and *better* are intervals clear of 0, *open* are those that hold 0; by
# chance alone one in twenty would not.

# %%
in_r = study.differences(lab, variants, table, "median_r")
in_top1 = study.differences(lab, variants, table, "top1")
study.outcomes(lab, in_r, in_top1).round(3)

# %% [markdown]
# What to look for: intervals that do not touch the dashed line. Small grey dots are the pairs, a dot per seed and
# subject; the interval is Student's, so it is wide where pairs are few, and it treats them as independent, which pairs of
# one subject are not quite. It covers seeds and subjects, not the choice of the profile's sizes.

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 0.36 * len(in_r) + 1.8), sharey=True)
figures.ablations(axes[0], in_r, "median r")
figures.ablations(axes[1], in_top1, "top-1 retrieval (points)", 100)
lab.save(fig, "differences")

# %% [markdown]
# ## The other loss, with all subjects and all steps
#
# If 0.1·MSE − 0.9·cos finds more images in brief trainings of few subjects, does it still when everything is trained as in 01? A
# conjecture says no: the squared error learns the strong components of the responses first and holds the weak ones back, the cosine does
# not punish amplitude, and retrieval lives on the weak ones; so the difference would be one of how soon they are learned. What to
# look for: gains, of this loss over the released one, whose intervals hold 0.

# %%
other = replace(lab.profile.training, mse_weight=0.1, cosine_weight=0.9)
encoders = {
    CROWD: lab.encoder(lab.subjects),
    study.COSINE: lab.encoder(lab.subjects, training=other),
}
predictions = {c: {s: lab.predict(e, s) for s in lab.subjects} for c, e in encoders.items()}
losses = scoring.gain_table(lab, predictions, study.COSINE, over=(CROWD,))
losses.drop(columns="condition").round(3)

# %% [markdown]
# ## Cautions
#
# **What a small run cannot show.** Profile `fast` trains every variant briefly, on few subjects and a small backbone. A part
# whose use is learnt late will look useless here, and the full encoder does not reach the scores that it has in 01. The
# differences are those of brief trainings. `n_steps` and `n_seeds` may be raised; `None` takes the profile's.

# %%
lab.finish()
