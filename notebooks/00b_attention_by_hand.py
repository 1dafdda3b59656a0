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
# # Attention by hand
#
# How does a voxel read an image? Three tokens, two voxels, ten lines of NumPy: **spatial attention** says where a voxel looks,
# **functional attention** what it reads there. At the end the same ten lines predict a real voxel of the simulated crowd, and agree with the encoder.

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None

# %%
import numpy as np
import pandas as pd
import torch
from ipywidgets import fixed, interact
from scipy.special import erf

import ubrain
from ubrain.backbone import Backbone
from ubrain.config import EncoderConfig
from ubrain.data.simulate import scenes
from ubrain.report import figures

lab = ubrain.Lab("00b_attention_by_hand", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Three tokens, two voxels
#
# A backbone has cut an image into three **tokens**, left, middle and right. Each says with three numbers x what is there. Here they are
# made up: how much *face*, *light* and *line*.

# %%
places, channels = ("left", "middle", "right"), ["face", "light", "line"]
x = np.array([[0.1, 1.5, 0.2], [2.0, 0.5, 0.8], [0.2, 0.1, 1.2]])  # (n_tokens, C)
pd.DataFrame(x, places, channels)

# %% [markdown]
# Two voxels, each with a **voxel embedding** e of two numbers: all that belongs to the voxel. A likes the left side, B likes
# faces; nothing says so but the embedding.

# %%
voxels = ("A", "B")
e = np.array([[0.0, -2.0], [2.0, 0.0]])  # (n_voxels, E)
pd.DataFrame(e, voxels)

# %% [markdown]
# Everything else is shared by all voxels: Q makes a query of an embedding, K a key of a token, and each place has a position. The
# first number of a key is how much face there is, the second how far right the token lies.

# %%
Q = np.eye(2)
K = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
position = np.array([[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]])  # (n_tokens, E)

# %% [markdown]
# ## Where: spatial attention
#
# The voxel asks (**query** q), each token answers (**key** k); the product says how well they fit. What to look for: the largest number
# of each row.

# %%
q = e @ Q.T  # (n_voxels, E)
k = x @ K.T + position  # (n_tokens, E)
scores = q @ k.T  # (n_voxels, n_tokens)
pd.DataFrame(scores, voxels, places)

# %% [markdown]
# A softmax turns each row into weights that sum to 1. The voxel sees the weighted mean of the tokens. What to look for: A sees light, B sees a face.

# %%
weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
pooled = weights @ x  # (n_voxels, C)
pd.DataFrame(pooled, voxels, channels).round(2)

# %%
fig = figures.looks(1, scores, places, voxels)
lab.save(fig, "where")
fig

# %% [markdown]
# Move the slider. A longer query makes a voxel pickier; at 0 it looks everywhere alike, as voxels do that respond to the whole scene.

# %%
given = {"scores": fixed(scores), "tokens": fixed(places), "voxels": fixed(voxels)}
slider = interact(figures.looks, scale=(0, 3, 0.25), **given)

# %% [markdown]
# ## What: functional attention
#
# Each level of the backbone has a small network, shared by all voxels, between the two steps: what was seen is normalised, and a
# little is added to it.

# %%
rng = np.random.default_rng(0)
W1, W2 = rng.normal(size=(2, 3, 3)) / 2
z = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-5)
a = z @ W1.T
h = z + (a * (1 + erf(a / np.sqrt(2))) / 2) @ W2.T  # (n_voxels, C)
pd.DataFrame(h, voxels, channels).round(2)

# %% [markdown]
# F, shared, makes of an embedding how much the voxel cares for each channel, with a sign and without a softmax. The response is the weighted sum.

# %%
F = np.array([[0.6, -0.1, 0.0], [0.0, -0.4, 0.1]])  # (E, C)
what = e @ F  # (n_voxels, C)
response = (what * h).sum(1)  # (n_voxels,)
pd.DataFrame(what, voxels, channels).assign(response=response).round(2)

# %% [markdown]
# ## The encoder does the same
#
# An encoder of this size, with these numbers in it. What to look for: differences of the size of rounding, of its plain form and of its fast one.

# %%
sizes = EncoderConfig(widths=(3,), n_tokens=3, embedding_size=2, channels=3, mlp_ratio=1)
small = ubrain.UniversalEncoder(sizes, {"two": 2}).eval().requires_grad_(False)
level, to = small.levels[0], torch.as_tensor
for part, value in {level.query: Q, level.key: K, level.fc1: W1, level.fc2: W2}.items():
    part.weight.copy_(to(value))
    part.bias.zero_()
for part, value in {small.position: position, small.functional: F, small.subject("two"): e}.items():
    part.copy_(to(value))

# %%
for small.fast in (False, True):
    by_encoder = small.respond([to(x[None]).float()], small.subject("two"))[0].numpy()
    name = "fast form" if small.fast else "plain form"
    print(f"{name}: {by_encoder.round(4)}, by hand {response.round(4)}")
    lab.record("largest difference", np.abs(by_encoder - response).max(), name, n=2, unit="z")

# %% [markdown]
# ## A voxel of the crowd
#
# The encoder of the package, all voxels of its first subject, an image: 64 tokens, 48 channels, 64 numbers in an embedding, three levels. The
# same lines, once for each level; the levels are added. Only biases and scales, which were 0 and 1 above, are new.

# %%
encoder = ubrain.shipped_encoder().requires_grad_(False)
backbone, (image, _) = Backbone(ubrain.load_profile("fast").backbone), scenes.render(1, 59)
with torch.inference_mode():
    tokens = backbone(backbone.preprocess([image]))
    xs = [x[0].double().numpy() for x in encoder.project(tokens)]  # (n_tokens, C) per level
    expected = encoder(tokens, "S1")[0].numpy()
weights_of = {name: w.double().numpy() for name, w in encoder.state_dict().items()}
e, F = weights_of["embeddings.S1"], np.split(weights_of["functional"], len(xs), axis=1)
print("(n_voxels, E) =", e.shape, "| (n_tokens, C) =", xs[0].shape)

# %%
response = 0
for i, x in enumerate(xs):
    w = {name.removeprefix(f"levels.{i}."): value for name, value in weights_of.items()}
    q = e @ w["query.weight"].T + w["query.bias"]
    k = x @ w["key.weight"].T + w["key.bias"] + w["position"]
    pooled = figures.softmax(q @ k.T) @ x
    z = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-5)
    z = z * w["norm.weight"] + w["norm.bias"]
    a = z @ w["fc1.weight"].T + w["fc1.bias"]
    h = z + (a * (1 + erf(a / np.sqrt(2))) / 2) @ w["fc2.weight"].T + w["fc2.bias"]
    response = response + ((e @ F[i]) * h).sum(1)

# %%
difference = np.abs(response - expected).max()
lab.record("largest difference", difference, "encoder of the package", n=len(e), unit="z")
print(f"{len(e)} voxels, responses from {expected.min():.2f} to {expected.max():.2f}")
print(f"largest difference: {difference:.1e}")

# %% [markdown]
# ## With care
#
# - The numbers of the first part are made up, so that they can be followed. In a trained encoder no channel is called *face*, and no embedding says *left*.
# - The scores are not divided by the root of the size, as they are in transformers, and functional attention has no softmax.
# - Training adds dropout, which is off here. How embeddings and shared weights are found is the matter of `01_crowd_gains`.

# %%
lab.finish()
