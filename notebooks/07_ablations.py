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
# What is lost without spatial attention, and what without functional attention? One thing is changed at a time; all variants see the
# same subjects, images and number of steps, and pairs of the same seed and subject are compared.
#
# | group | what is changed |
# |---|---|
# | attention | without spatial attention all tokens count alike; without functional attention all voxels read the same channels; without position tokens are told apart by content only |
# | embedding size | the length of the vector that is all the encoder knows of a voxel |
# | levels | only some depths of the backbone are read |
# | loss | the released code trains 1·MSE − 0.1·cos; others read the paper as 0.1·MSE − 0.9·cos |
# | voxels per step | how many are drawn for each batch of images |
# | recipe | training as the released code does it, one difference at a time, and as a whole |
# | adapters | small trainable layers in the backbone (profile paper only) |

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None
n_steps = None
n_seeds = None

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ubrain
from ubrain import scores
from ubrain.predict import predict
from ubrain.report import figures
from ubrain.report.lab import CROWD
from ubrain.report.studies import ablations as study
from ubrain.report.studies import scoring

lab = ubrain.Lab("07_ablations", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## The variants
#
# The first row is the full encoder, with the sizes of the profile. Every other row differs from it in one thing. The variants of
# the recipe follow below.

# %%
variants = study.variants(lab, n_steps)
settings = study.settings_table(lab, variants)
print(len(variants), "variants")
settings[settings["recipe"] == lab.profile.recipe].head(12)

# %% [markdown]
# ## One pair, step by step
#
# The full encoder, and the one without spatial attention. Each keeps the weights that are best on the val images; the scores
# are of the test images.

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
# Trainings are cached: what was trained before is loaded. The table is a variant's score minus the full encoder's, of the same seed
# and subject, with its 95 % interval. *Worse* and *better* are intervals clear of 0, *open* are those that hold 0.

# %%
table = study.train_all(lab, variants, n_seeds)
in_r = study.differences(lab, variants, table, "median_r")
in_top1 = study.differences(lab, variants, table, "top1")
outcomes = study.outcomes(lab, in_r, in_top1)
both = pd.concat([in_r.assign(score="r"), in_top1.assign(score="top-1")])
shown = figures.compact(both, "difference", by="variant", columns="score")
shown = shown.join(outcomes[["median_r outcome", "top1 outcome"]])
recipe = in_r["group"].eq("recipe").to_numpy()
shown[~recipe].head(12)

# %% [markdown]
# What to look for: intervals that do not touch the dashed line. Small grey dots are the pairs, one per seed and subject. An arrow at
# the edge is a difference too large for the axis, with its number.

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 0.36 * len(in_r) + 1.8), sharey=True)
figures.ablations(axes[0], in_r, "median r")
figures.ablations(axes[1], in_top1, "top-1 retrieval (points)", 100)
lab.save(fig, "differences")
shown[recipe]

# %% [markdown]
# ## The other loss, with all subjects and all steps
#
# If 0.1·MSE − 0.9·cos finds more images in brief trainings of few subjects, does it still when everything is trained as in 01?
# What to look for: gains, of this loss over the released one, whose intervals hold 0.

# %%
other = replace(lab.profile.training, mse_weight=0.1, cosine_weight=0.9)
encoders = {
    CROWD: lab.encoder(lab.subjects),
    study.COSINE: lab.encoder(lab.subjects, training=other),
}
predictions = {c: {s: lab.predict(e, s) for s in lab.subjects} for c, e in encoders.items()}
losses = scoring.gain_table(lab, predictions, study.COSINE, over=(CROWD,))
r = figures.compact(losses, "gain", columns="condition").add_prefix("r: ")
ends = {"value": "top1_gain", "low": "top1_low", "high": "top1_high", "digits": 1, "scale": 100}
top1 = figures.compact(losses, **ends, columns="condition").add_prefix("top-1 (points): ")
r.join(top1).head(12)

# %% [markdown]
# ## With care
#
# - **At toy size** every variant is trained briefly, on few subjects and a small backbone (profile `fast`). A part whose use is
#   learnt late will look useless, and the full encoder does not reach the scores that it has in 01. `n_steps` and `n_seeds` may be
#   raised; `None` takes the profile's. Fewer voxels per step, at the same number of steps, are also less training.
# - **Intervals** are Student's, so wide where pairs are few, and treat pairs as independent, which those of one subject are not
#   quite. They cover seeds and subjects, not the choice of the profile's sizes. By chance one in twenty does not hold 0.
# - **The loss.** A conjecture on why its difference may vanish with more training: the squared error learns the strong components of
#   the responses first and holds the weak ones back, the cosine does not punish amplitude, and retrieval lives on the weak ones;
#   so the difference would be one of how soon they are learned.

# %%
lab.finish()
