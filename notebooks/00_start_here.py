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
# A voxel of a brain scanner answers to images. An **image-to-fMRI encoder** predicts that answer. Such encoders used to
# be trained for one subject at a time. *The Wisdom of a Crowd of Brains* (Beliy, Wasserman, Zalcher, Irani,
# [arXiv 2406.12179](https://arxiv.org/abs/2406.12179)) trains one encoder for everybody: a voxel is a vector of a few
# numbers, its **voxel embedding**, and everything else is shared by all voxels of all subjects.
#
# This notebook shows the data, the model and one prediction. It takes about ten minutes to read. The default data are
# a **simulated crowd**: rendered scenes seen by simulated brains, whose truth is known. Give `crowd` the path of a crowd
# file to use recordings instead. It reproduces no figure of the paper; the notebooks after it do.
#
# Words: a **voxel** is a small cube of the brain, or a point of its surface, whose activity the scanner follows; its
# **response** to an image is one number, given as z (0 is its mean, 1 a standard deviation). 7T, 3T and 4T are scanners, by
# the strength of their magnet in tesla. **Areas** are parts of visual cortex: V1, V2, V3 and hV4 come early and see lines
# and colours at one place of the image; others prefer faces (OFA, FFA), bodies (EBA, FBA), places (OPA, PPA, RSC) or words
# (OWFA, VWFA).

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ubrain
from ubrain.data import doctor as check
from ubrain.report import figures
from ubrain.report.studies import receptive_fields

lab = ubrain.Lab("00_start_here", crowd, profile, seed, subjects)
lab.crowd

# %% [markdown]
# ## What was shown, what was measured
#
# A subject saw images for training (train and val) and others for the test. The **noise ceiling** is the highest correlation
# that any model can reach: a response is noisy, and averaging a few repeats removes only part of the noise. It is
# computed from the repeats; where a file holds averages only, it is unknown. Of several datasets in the file, these are the
# subjects of the largest; the others come in `02_crowd_of_datasets`.

# %%
table = lab.summary()
for name, row in table.iterrows():
    lab.record("voxels", row["voxels"], subject=name, unit="voxels")
    lab.record(
        "median_ceiling_r", row["median ceiling r"], subject=name, n=int(row["voxels"]), unit="r"
    )
table.round(3)

# %% [markdown]
# Eight training images of the first subject:

# %%
first = lab.crowd[lab.subjects[0]]
shown = first.images("train")[:8]
fig, axes = plt.subplots(1, len(shown), figsize=(12, 2.2))
figures.images(axes, [lab.crowd.image(i) for i in shown], [str(i) for i in shown])
lab.save(fig, "stimuli")

# %% [markdown]
# Responses are read through the crowd: z-scored per session, repeats averaged, only the rows and voxels that are asked for.

# %%
responses = first.responses("test")
print("(n_images, n_voxels) =", responses.shape)
print("areas:", ", ".join(a for a in first.voxels["areas"].unique() if a) or "unknown")

# %% [markdown]
# ## Is anything wrong with the file?
#
# Between published files and a crowd file much can go wrong without an error: a test image that is also a training image,
# under another name or resized; trials in another order than the responses, or shifted by one; a wrong scale; images
# transposed or mirrored; one recording imported twice. The **doctor** looks for it, and says what to do. What to look for:
# no error and no warning. A note says what these data cannot tell; it may name subjects of the other datasets in the file. Outside of notebooks it is `ubrain check FILE`, with exit
# code 0 for nothing, 1 for warnings and 2 for errors.

# %%
findings = check.check(lab.crowd, seed)
for level in check.LEVELS:
    lab.record(
        "findings of the doctor", sum(f.level == level for f in findings), level, unit="findings"
    )
print(check.report(findings).splitlines()[0])
pd.options.display.max_colwidth = None
check.table(findings)[["level", "where", "what", "to_do"]]

# %% [markdown]
# ## What the model is
#
# 1. A **backbone**, trained on images only and frozen (in the small profiles EfficientNet-Lite0, trained on ImageNet; in the profile `paper`, as in the paper, DINOv2), turns an image into tokens (places) at several levels (depths).
# 2. The voxel embedding asks every token "are you where I look?": **spatial attention**, one weighted mean per level.
# 3. It asks every channel of every level "are you what I care about?": **functional attention**, a weighted sum.
#
# The sum is the predicted response. The embedding belongs to the voxel; the rest, here called shared, to everyone.

# %%
features = lab.features
encoder = lab.encoder(lab.subjects)
shared = sum(p.numel() for p in encoder.shared_parameters())
own = sum(e.numel() for e in encoder.embeddings.values())
lab.record("shared_parameters", shared, "encoder, crowd", unit="numbers")
lab.record("embedding_parameters", own, "encoder, crowd", unit="numbers")
print(
    f"{shared:,} shared numbers, and {encoder.config.embedding_size} for each of"
    f" {own // encoder.config.embedding_size:,} voxels"
)
print(f"{len(features.widths)} levels of {features.n_tokens} tokens, widths {features.widths}")

# %% [markdown]
# ## One prediction
#
# The test images were never shown to the encoder. What to look for: a cloud that rises to the right, or separate clouds, if
# the voxel tells kinds of images apart (simulated scenes are textures, rooms or outdoor). The voxel is the one of the first subject that is
# predicted best on the **val** images, so the test images had no part in choosing it, but it is no typical voxel: for that
# there is the median.

# %%
rows = first.image_rows("val")
val_r = ubrain.scores.correlation(
    ubrain.train.predict(encoder, lab.source, first.name, rows), first.responses("val")
)
voxel = int(np.nanargmax(val_r))
predicted = lab.predict(encoder, first.name)
r = ubrain.scores.correlation(predicted, responses)
lab.record("voxel_r", r[voxel], "encoder, crowd", first.name, n=len(responses), unit="r")
lab.record("median_r", np.nanmedian(r), "encoder, crowd", first.name, n=len(r), unit="r")
print(
    f"voxel {voxel}: r = {r[voxel]:.2f}; median over the {len(r)} voxels of {first.name}: r ="
    f" {np.nanmedian(r):.2f}"
)

# %%
fig, ax = plt.subplots(figsize=(4.6, 4))
area = first.voxels["areas"].iloc[voxel] or "area unknown"
figures.measured_against_predicted(
    ax, responses[:, voxel], predicted[:, voxel], f"voxel {voxel} ({area}), r = {r[voxel]:.2f}"
)
lab.save(fig, "one_voxel")

# %% [markdown]
# ## Where the voxel looks
#
# Spatial attention on the four test images to which a voxel responds most, averaged over the levels. Bright is where the
# tokens are read; every image has its own scale. The voxel is another one: of the tenth that is predicted best on the val
# images, the one that looks at the smallest part of the image. What to look for: does the bright patch stay where it is,
# whatever is shown? That is the voxel's receptive field; `06_receptive_fields` compares all voxels with the true ones. Not
# every voxel looks somewhere: one that answers to the kind of scene reads the whole image.

# %%
voxel = receptive_fields.most_focused(lab, encoder, first.name, val_r)
best = np.argsort(responses[:, voxel])[::-1][:4]
image_rows = first.image_rows("test")[best]
weights = lab.attention(encoder, first.name, voxel, image_rows)
print(f"voxel {voxel}, area {first.voxels['areas'].iloc[voxel] or 'unknown'}")
fig, axes = plt.subplots(1, 4, figsize=(10, 3.4))
for ax, image, w, z in zip(
    axes, lab.crowd.image_ids[image_rows], weights, responses[best, voxel], strict=True
):
    figures.attention(ax, lab.crowd.image(image), w, f"{image}\nmeasured z = {z:.1f}")
lab.save(fig, "attention")

# %% [markdown]
# ## What comes next
#
# | notebook | what it asks |
# |---|---|
# | `01_crowd_gains` | Does the crowd help? Ridge, a factorised readout, this encoder on one subject and on the crowd. |
# | `02_crowd_of_datasets` | Do subjects of other datasets and scanners help, and where do they not? |
# | `03_transfer` | How many images does a new subject need, by the paper's way and by ours? |
# | `04_retrieval` | Which image was seen? Real and predicted responses, hits, misses and controls. |
# | `05_clusters` | Do voxels of all subjects fall into kinds, and are these the known areas? |
# | `06_receptive_fields` | Where does a voxel look, and which levels does it read? |
# | `07_ablations` | What happens without each part of the encoder, or with a smaller embedding? |
# | `08_your_brain` | All of it with recordings of your own. |
#
# The numbers of this notebook, as they go into its JSON:

# %%
lab.finish()
