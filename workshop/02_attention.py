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
# # Attention by hand · 25 minutes
#
# Goal 2: write spatial and functional attention in NumPy.
#
# E3 where a voxel looks (8 minutes), E3b what it reads there (5 minutes), E3c a voxel that looks nowhere (4 minutes); the explorer.

# %% tags=["parameters"]
profile = "fast"
seed = 0

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import ubrain
from ubrain.report import explorer, figures, workshop

lab = ubrain.Lab("workshop", None, profile, seed)
encoder = lab.encoder(lab.subjects)
first = lab.crowd[lab.subjects[0]]

# %% [markdown]
# ## From an image to a response
#
# A network that was trained on photographs turns an image into **tokens**: one vector per place, here 8 × 8 places. Every voxel of every
# subject owns a small vector, its **embedding** `e`. Everything else is shared:
#
# 1. **Where?** The embedding makes a *query* `q`, each token a *key* `k`. A voxel looks at token p with a weight that is large where `q · k` is
#    large: a softmax over tokens. What it sees is the weighted mean of the tokens. (A key says what a token shows, and at which place it is.)
# 2. **What?** The embedding also says which channels of that mean count, and with which sign: `e @ F`. The response is the weighted sum.
#
# This happens at several levels of the network (lines, textures, objects), and the responses of the levels are added.

# %%
row = first.image_rows("test")[:1]
with torch.inference_mode():
    e = encoder.subject(first.name)
    xs = encoder.project(
        lab.source.tokens(row, torch.device("cpu"))
    )  # one (1, n_tokens, C) per level
    level = encoder.levels[-1]
    q = encoder.queries(level, e).numpy()
    k = (level.key(xs[-1]) + encoder.positions())[0].numpy()
    pooled = (encoder.where(level, xs[-1], e) @ xs[-1])[0].numpy()
    e, x = e.numpy(), xs[-1][0].numpy()
print("q: one query per voxel ", q.shape)
print("k: one key per token   ", k.shape)
print("x: one vector per token", x.shape)

# %% [markdown]
# ### E3 · Where a voxel looks · 8 minutes
#
# Write `spatial`: the **weights** (n_voxels, n_tokens), a softmax over tokens of q · k, and the tokens **pooled** with these weights,
# (n_voxels, C); `a @ b` is the product of two matrices.
#
# The softmax of a row a is exp(a) / Σ exp(a); exp of a large number overflows, so subtract each row's largest number
# first, which changes nothing else.


# %% tags=["exercise", "E3"]
def spatial(q, k, x):
    """(n_voxels, E), (n_tokens, E), (n_tokens, C) -> (n_voxels, n_tokens), (n_voxels, C)

    E numbers in an embedding, C channels of a token.
    """
    ### BEGIN SOLUTION
    ### ...  # your code, 4 lines
    a = q @ k.T
    weights = np.exp(a - a.max(1, keepdims=True))
    weights = weights / weights.sum(1, keepdims=True)
    return weights, weights @ x
    ### END SOLUTION


# %% tags=["check", "E3"]
workshop.check("E3", spatial, q, k, x, pooled)

# %% [markdown] tags=["hint", "E3"]
# All scores at once: `a = q @ k.T` has a row for each voxel and a column for each token.

# %% [markdown] tags=["hint", "E3"]
# `keepdims=True` keeps an axis of length 1, so that `a - a.max(1, keepdims=True)` subtracts from each row its own largest number; divide
# by `weights.sum(1, keepdims=True)` in the same way. Pooled is `weights @ x`.

# %% [markdown]
# ## What a voxel reads there
#
# Between the two steps each level has a small network of its own, shared by all voxels: it turns `pooled` into `h`. Take it as given.

# %%
with torch.inference_mode():
    embedding = encoder.subject(first.name)
    h = []
    for level, tokens in zip(encoder.levels, xs, strict=True):
        z = level.norm(encoder.where(level, tokens, embedding) @ tokens)
        h.append((z + level.fc2(torch.nn.functional.gelu(level.fc1(z))))[0].numpy())
    F = [f.numpy() for f in encoder.functional.split(encoder.config.channels, dim=1)]
    response = encoder.respond(xs, embedding)[0].numpy()
print("h, one per level:", [a.shape for a in h])
print("F, one per level:", [a.shape for a in F])

# %% [markdown]
# ### E3b · What it reads · 5 minutes
#
# Write `functional` for one level: `e @ F` is how much each voxel cares about each channel; the response is the sum over channels of that,
# times `h`. The check adds the levels, and compares with the encoder.


# %% tags=["exercise", "E3b"]
def functional(e, F, h):
    """(n_voxels, E), (E, C), (n_voxels, C) -> (n_voxels,)"""
    ### BEGIN SOLUTION
    ### ...  # your code, 1 line
    return ((e @ F) * h).sum(1)
    ### END SOLUTION


# %% tags=["check", "E3b"]
workshop.check("E3b", functional, e, F, h, response)

# %% [markdown] tags=["hint", "E3b"]
# `e @ F` and `h` have the same shape, (n_voxels, C): multiply them element by element.

# %% [markdown] tags=["hint", "E3b"]
# Then `.sum(1)`: one number per voxel. No softmax here; a channel may count against a response.

# %% [markdown]
# ## Look
#
# Spatial attention of all voxels, averaged over levels. It is a map per voxel: where it looks on this image.

# %%
with torch.inference_mode():
    tokens = lab.source.tokens(row, torch.device("cpu"))
    attention = encoder.attention(tokens, first.name).mean(0)[0].numpy()
print("(n_voxels, n_tokens) =", attention.shape, "each row sums to", attention.sum(1).round(3)[0])

# %% [markdown]
# ### E3c · A voxel that looks nowhere · 4 minutes
#
# Some voxels do not care *where*: their weights are nearly the same for all tokens. Find the number of the voxel whose attention is **spread
# most**. A measure of spread is the entropy −Σ w log w, which is largest if all weights are equal.

# %% tags=["exercise", "E3c"]
### BEGIN SOLUTION
### nowhere = ...  # your code, the number of a voxel
entropy = -(attention * np.log(attention + 1e-12)).sum(1)
nowhere = int(entropy.argmax())
### END SOLUTION

# %% tags=["check", "E3c"]
workshop.check("E3c", nowhere, attention)

# %% [markdown] tags=["hint", "E3c"]
# `-(attention * np.log(attention)).sum(1)` is the entropy of each voxel. `argmax` gives the place of the largest number.

# %% [markdown]
# The image, the weights of the most focused voxel, and those of one that looks nowhere, in one colour scale (dark: a small weight); by another
# measure than yours, so it may be another voxel. What to look for: to which area does each belong? OPA, PPA and RSC respond to *places*: why
# would such a voxel look everywhere?

# %%
peak = attention.max(1)  # another measure of the same: the largest weight
ends = [int(peak.argmax()), int(peak.argmin())]
fig, axes = plt.subplots(1, 3, figsize=(9, 3.5))
figures.images(axes[:1], lab.pictures(row), [""])
grid = int(np.sqrt(attention.shape[1]))
for ax, voxel in zip(axes[1:], ends, strict=True):
    weights = attention[voxel].reshape(grid, grid)
    ax.imshow(weights, vmin=0, vmax=attention[ends].max(), cmap="magma")
    ax.set(
        title=f"voxel {voxel}, {first.voxels['areas'][voxel] or 'no area'}, up to {peak[voxel]:.2f}",
        xticks=[],
        yticks=[],
    )
plt.show()

# %% [markdown]
# ## Explore · 5 minutes
#
# The explorer shows every voxel of every subject: click a place on the cortex, and see the score and ceiling of the voxel, where it looks,
# which images it prefers, and which voxels of the *other* subjects have the most similar embeddings. Find a voxel whose nearest neighbours in
# all other brains lie in an area of its own name, and one where they do not. Which kind of voxel is which? Clusters have numbers only: naming
# them is E8. The cell takes half a minute.

# %% tags=["explorer"]
explorer.show(lab, encoder, named=False)

# %% [markdown]
# **Done?** In the menu: *Kernel → Shut Down Kernel*. An open module keeps a gigabyte of memory.

# %% [markdown] tags=["instructor"]
# **Instructor.** The last figure is the reason why one model can serve everybody: places and functions are shared, only embeddings differ.
# If time is short, leave out E3c. Common errors: the softmax over the wrong axis; a division by √E, known from transformers, which
# this encoder does not have; a softmax in E3b.
