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
# # Start here
#
# A voxel of a brain scanner responds to images. An **image-to-fMRI encoder** predicts that response. Such encoders used to
# be trained for one subject at a time. *The Wisdom of a Crowd of Brains* (Beliy, Wasserman, Zalcher, Irani,
# [arXiv 2406.12179](https://arxiv.org/abs/2406.12179)) trains one encoder for everybody: a voxel is a vector of a few
# numbers, its **voxel embedding**, and everything else is shared by all voxels of all subjects. What do the data look like, what
# does the model do with an image, and how good is one prediction?
#
# The default data are a **simulated crowd**: rendered scenes seen by simulated brains, whose truth is known. Give `crowd` the
# path of a crowd file to use recordings instead. This notebook reproduces no figure of the paper; those after it do.

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import ubrain
from ubrain import checkpoint, scores
from ubrain.data import doctor
from ubrain.predict import Predictor, predict
from ubrain.report import explorer, faithfulness, figures
from ubrain.report.studies import receptive_fields

lab = ubrain.Lab("00_start_here", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## A first prediction
#
# A new scene, and an encoder that comes with the package: six simulated subjects have trained it together (`01_crowd_gains` trains
# it anew). How would the voxels of one of them respond? What to look for: areas that prefer what is on the image stand on top.

# %%
from ubrain.backbone import Backbone
from ubrain.data.simulate import scenes

shipped, (image, scene) = ubrain.shipped_encoder(), scenes.render(1, 59)
backbone = Backbone(ubrain.load_profile("fast").backbone)
with torch.inference_mode():
    (answer,) = Predictor(shipped, "S1")(backbone(backbone.preprocess([image])))
print("on the image:", *(thing.category for thing in scene.things), "| (n_voxels,) =", answer.shape)

# %%
from ubrain.report.lab import SHIPPED

areas = checkpoint.read_table(SHIPPED, "S1")["areas"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8))
figures.images(axes[:1], [image], ["a new, simulated scene"])
pd.Series(answer).groupby(areas).mean().sort_values().plot.barh(
    ax=axes[1], xlabel="mean predicted response (z)"
)
lab.save(fig, "first_prediction")

# %% [markdown]
# ## What was shown, what was measured
#
# The default crowd is simulated when it is first needed, which takes a minute or two.
# Each subject saw images for training (train, val) and others for the test; the **noise ceiling** is the highest correlation that
# any model can reach. Words are explained at the end.

# %%
lab.crowd

# %%
table = lab.summary()
for name, row in table.iterrows():
    n, ceiling = int(row["voxels"]), row["median ceiling r"]
    lab.record("voxels", n, subject=name, unit="voxels")
    lab.record("median_ceiling_r", ceiling, subject=name, n=n, unit="r")
table.round(3)

# %% [markdown]
# Eight training images:

# %%
first = lab.crowd[lab.subjects[0]]
shown = first.image_rows("train")[:8]
pixels = lab.pictures(shown)
print(len(pixels), "images, each (height, width, colours) =", pixels[0].shape)
fig, axes = plt.subplots(2, 4, figsize=(9, 4.8))
figures.images(axes.flat, pixels, [""] * len(pixels))
fig.suptitle(f"Eight training images of {first.name}")
lab.save(fig, "stimuli")

# %% [markdown]
# Responses are read through the crowd: z-scored per session, repeats averaged, only the rows and voxels that are asked for.
# **Areas** are parts of visual cortex: V1, V2, V3 and hV4 come early and see lines and colours at one place of the image; others
# prefer faces (OFA, FFA), bodies (EBA, FBA), places (OPA, PPA, RSC) or words (OWFA, VWFA).

# %%
measured = first.responses("test")
print("(n_images, n_voxels) =", measured.shape)
first.voxels.head()

# %% [markdown]
# ## Is anything wrong with the file?
#
# Between published files and a crowd file much can go wrong without an error: a test image that is also a training image,
# under another name or resized; trials in another order than the responses, or shifted by one; a wrong scale; images
# transposed or mirrored; one recording imported twice. The **doctor** looks for it, and says what to do. What to look for:
# no error and no warning. A note says what these data cannot tell.

# %%
findings = doctor.check(lab.crowd, seed)
for level in doctor.LEVELS:
    n = sum(f.level == level for f in findings)
    lab.record("findings of the doctor", n, level, unit="findings")
pd.options.display.max_colwidth = None
doctor.table(findings)[["level", "where", "what", "to_do"]]

# %% [markdown]
# ## From an image to tokens
#
# A **backbone**, trained on images only and frozen (in the small profiles EfficientNet-Lite0, trained on ImageNet; in the profile
# `paper`, as in the authors' code, DINOv2), turns an image into tokens (places) at several levels (depths). Of the eight images above:

# %%
tokens = lab.source.tokens(shown, torch.device("cpu"))
for number, level in enumerate(tokens):
    print(f"level {number}: (n_images, n_tokens, n_channels) =", tuple(level.shape))

# %% [markdown]
# ## From tokens to a response
#
# 1. The voxel embedding asks every token "are you where I look?": **spatial attention**, one weighted mean per level.
# 2. It asks every channel of every level "are you what I care about?": **functional attention**, a weighted sum.
#
# The sum is the predicted response. The embedding belongs to the voxel, all other weights to everyone. The encoder of these subjects
# is the one above, or, with other data or settings, it is trained once and then taken from the cache:

# %%
encoder = lab.ready_encoder()
shared = sum(p.numel() for p in encoder.shared_parameters())
own = sum(e.numel() for e in encoder.embeddings.values())
lab.record("shared_parameters", shared, "encoder, crowd", unit="numbers")
lab.record("embedding_parameters", own, "encoder, crowd", unit="numbers")
for s, embeddings in encoder.embeddings.items():
    print(f"{s}: (n_voxels, embedding_size) =", tuple(embeddings.shape))
print(f"{own:,} numbers in embeddings, {shared:,} shared")

# %% [markdown]
# ## Predict, and score
#
# The test images were never shown to the encoder. The score of a voxel is the correlation, over images, of its predicted with its
# measured responses.

# %%
predicted = predict(encoder, lab.source, first.name, first.image_rows("test"))
print("(n_images, n_voxels) =", predicted.shape)
r = scores.correlation(predicted, measured)
print("(n_voxels,) =", r.shape, f"median r = {np.nanmedian(r):.3f}")
lab.record("median_r", np.nanmedian(r), "encoder, crowd", first.name, n=len(r), unit="r")

# %% [markdown]
# ## One voxel
#
# The voxel that is predicted best on the **val** images, so that the test images had no part in choosing it; it is no typical voxel.
# What to look for: a cloud that rises to the right, or separate clouds, if the voxel tells kinds of images apart (simulated
# scenes are textures, rooms or outdoor).

# %%
rows = first.image_rows("val")
val_r = scores.correlation(predict(encoder, lab.source, first.name, rows), first.responses("val"))
voxel = int(np.nanargmax(val_r))
lab.record("voxel_r", r[voxel], "encoder, crowd", first.name, n=len(measured), unit="r")
area = first.voxels["areas"].iloc[voxel] or "area unknown"
title = f"voxel {voxel} ({area}), r = {r[voxel]:.2f}"
fig, ax = plt.subplots(figsize=(4.6, 4))
figures.measured_against_predicted(ax, measured[:, voxel], predicted[:, voxel], title)
lab.save(fig, "one_voxel")

# %% [markdown]
# ## Where a voxel looks
#
# Another voxel: of the tenth that is predicted best on the val images, the one that looks at the smallest part of the image. Its
# spatial attention on the four test images to which it responds most:

# %%
voxel = receptive_fields.most_focused(lab, encoder, first.name, val_r)
best = np.argsort(measured[:, voxel])[::-1][:4]
rows = first.image_rows("test")[best]
with torch.inference_mode():
    embedding = encoder.subject(first.name)[[voxel]]
    attention = encoder.attention(lab.source.tokens(rows, embedding.device), embedding).cpu()
print("(n_levels, n_images, n_voxels, n_tokens) =", tuple(attention.shape))

# %% [markdown]
# Averaged over the levels: lines at a quarter, a half (yellow) and three quarters (white) of the highest, in each image. What to look
# for: does the white line stay where it is, whatever is shown? That is the voxel's receptive field; `06_receptive_fields` compares all voxels with the
# true ones. Not every voxel looks somewhere: one that responds to the kind of scene reads the whole image.

# %%
weights, pixels = attention.mean(0)[:, 0], lab.pictures(rows)  # weights (n_images, n_tokens)
fig, axes = plt.subplots(1, 4, figsize=(9, 2.8))
for i, ax in enumerate(axes):
    title = f"measured z = {measured[best[i], voxel]:.1f}"
    figures.attention(ax, pixels[i], weights[i], title)
lab.save(fig, "attention")

# %% [markdown]
# ## Click through all voxels
#
# The explorer shows this for every voxel of every subject, in one page. Run by hand, the next cell makes it (a minute or two) and
# shows it here; `ubrain explore` makes it for your own crowd.

# %%
explorer.show(lab, encoder)

# %% [markdown]
# ## The paper, and here
#
# What a laptop can do in minutes differs from the paper in size and in some choices. The most important ones; what we have not
# read in the paper itself is left open. All are in [docs/faithfulness.md](../docs/faithfulness.md).

# %%
faithfulness.table(short=True).droplevel(0)

# %% [markdown]
# ## What comes next
#
# | notebook | what it asks |
# |---|---|
# | `00b_attention_by_hand` | What is in the attention? Three tokens, two voxels, ten lines. |
# | `01_crowd_gains` | Does the crowd help? Ridge, a factorised readout, this encoder on one subject and on the crowd. |
# | `02_crowd_of_datasets` | Do subjects of other datasets and scanners help, and where do they not? |
# | `03_transfer` | How many images does a new subject need, by the paper's way and by ours? |
# | `04_retrieval` | Which image was seen? Real and predicted responses, hits, misses and controls. |
# | `05_clusters` | Do voxels of all subjects fall into kinds, and are these the known areas? |
# | `06_receptive_fields` | Where does a voxel look, and which levels does it read? |
# | `07_ablations` | What happens without each part of the encoder, or with a smaller embedding? |
# | `08_your_brain` | All of it with recordings of your own. |
# | `09_controls` | Which effects vanish without their cause? |
#
# ## With care
#
# - A **voxel** is a small cube of the brain, or a point of its surface; its **response** to an image is one number, given as z (0 is
#   its mean, 1 a standard deviation). 7T, 3T and 4T are scanners, by the strength of their magnet in tesla.
# - The noise ceiling is computed from the repeats of the test images: a response is noisy, and averaging a few repeats removes only
#   part of the noise. Where a file holds averages only, it is unknown.
# - Of several datasets in the file, these are the subjects of the largest; the others come in `02_crowd_of_datasets`. A note of the
#   doctor may name subjects of any dataset.
# - Outside of notebooks the doctor is `ubrain check FILE`, with exit code 0 for nothing, 1 for warnings and 2 for errors.
# - Nothing here says whether the crowd helped: this is one encoder. `01_crowd_gains` compares.

# %%
lab.finish()
