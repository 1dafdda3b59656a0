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
# # Which image did the subject see? (Figs. 3 and 4b)
#
# Does the encoder predict responses so well that a measured response tells which of many images was shown? The paper says so. A
# measured response, the **query**, is compared with the predicted responses of all images of a **gallery**; it is a hit (top-1)
# if its own image is the most similar one, and a top-5 hit if it is among the first five.

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None
n_examples = 4
gallery_sizes = [10, 20, 50, 100, 200, 500, 1000]
voxel_counts = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000]
area_voxels = 10

# %%
import matplotlib.pyplot as plt

import ubrain
from ubrain import scores
from ubrain.report import figures
from ubrain.report.lab import ALONE, CROWD
from ubrain.report.studies import retrieval as study
from ubrain.report.studies import scoring

lab = ubrain.Lab("04_retrieval", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## Load and fit
#
# The encoder of the crowd, and for comparison one trained on each subject alone (the same as in `01_crowd_gains`).

# %%
lab.summary().round(3)

# %%
encoder = lab.encoder(lab.subjects)
predictions = {
    ALONE: {s: lab.predict(lab.encoder([s]), s) for s in lab.subjects},
    CROWD: {s: lab.predict(encoder, s) for s in lab.subjects},
}
first = lab.subjects[0]
measured, predicted = lab.measured(first), predictions[CROWD][first]
print("measured:  (n_images, n_voxels) =", measured.shape)
print("predicted: (n_images, n_voxels) =", predicted.shape)

# %% [markdown]
# ## One search
#
# Each voxel's prediction is centred over the gallery; then similarity is the correlation across voxels of a measured response with the
# predictions for every image. Row: the query; column: the image. On the diagonal a response meets the prediction for its own image.

# %%
similarity = study.Search(predicted, measured).similarity()
print("(n_queries, n_gallery) =", similarity.shape)
own, best = similarity[0, 0], similarity[0].argmax()
print(
    f"query 0: r = {own:.2f} with its own image; best: image {best}, r = {similarity[0].max():.2f}"
)
ranks = scores.retrieval_ranks(predicted, measured)  # 0 is best
print(f"{first}: {(ranks == 0).sum()} of {len(ranks)} queries find their image first")

# %% [markdown]
# ## Measured and predicted responses on the cortex
#
# Three test images of the first subject, chosen by how well their response is predicted, and named so: the best, the
# one in the middle, and the worst of all (correlation across voxels). On the flattened fsaverage5 surface, cut to where
# the voxels are; the left hemisphere is on the left.
#
# What to look for: the same patches of red and blue in both maps of the first row, fewer in the second; in the third, do they
# agree in more than the overall colour? Predictions have a colour scale of their own, because they vary less: they hold no noise.

# %%
graded = study.graded_images(predicted, measured)
for row in graded.itertuples():
    condition = f"{CROWD}, {row.grade} image"
    lab.record("pattern_r", row.r, condition, first, n=measured.shape[1], unit="r")
graded.round(3)

# %%
test = lab.crowd[first].image_rows("test")
titles = [f"{g.grade} of {len(test)} images\nr = {g.r:.2f}" for g in graded.itertuples()]
maps = {"measured": measured[graded["row"]], "predicted": predicted[graded["row"]]}
pixels = lab.pictures(test[graded["row"]])
fig = figures.responses_on_cortex(pixels, titles, maps, scoring.places(lab, first))
lab.save(fig, "cortex")

# %% [markdown]
# ## Five images for a response: hits and misses
#
# Queries of the first subject, drawn at random (with `seed`): first among those that find their image first, then among those that
# do not. Left: the image that was shown. Then the five images whose predicted responses are most similar, with that similarity; the
# green frame is the image shown. What to look for: are the runners-up like the image shown? And where a response is taken for that of
# another image, how far down is the right one?

# %%
for name, hit in (("hits", True), ("misses", False)):
    drawn = study.examples(lab, predicted, first, n_examples, hit)
    fig = figures.retrieved(
        lab.pictures(test[[e.query for e in drawn]]),
        [lab.pictures(test[e.found]) for e in drawn],
        [f"shown\nfound as number {e.rank + 1}" for e in drawn],
        [e.found == e.query for e in drawn],
        [[f"r = {r:.2f}" for r in e.similarity] for e in drawn],
    )
    lab.save(fig, name)

# %% [markdown]
# ## How often?
#
# Top-1 among all test images, in %, with 95 % intervals; the figure is in `01_crowd_gains`. The row `all` is the mean of the subjects
# (docs/claims.md gives their median). What to look for: the crowd above one subject in each row, and both far above chance,
# which is 1 in the number of test images.

# %%
table = study.table(lab, predictions)
percent = {"low": "top1_low", "high": "top1_high", "digits": 1, "scale": 100}
figures.compact(table, "top1", **percent)

# %% [markdown]
# The gain of the crowd over each subject alone, in percentage points, paired:

# %%
figures.compact(study.gains(lab, predictions, CROWD, ALONE), "top1", **percent)

# %% [markdown]
# ## Among how many?
#
# A larger gallery is harder for everyone, also for chance. Galleries are drawn at random from the test images, and the
# hits averaged over the draws. Thin lines are subjects. What to look for: how fast the lines fall, compared with chance.

# %%
gallery = study.gallery_curve(lab, predictions, gallery_sizes)
fig, ax = plt.subplots(figsize=(7, 4))
figures.hits_against(ax, gallery, "gallery", 1, "images in the gallery")
lab.save(fig, "gallery_size")

# %% [markdown]
# ## Controls
#
# Predictions that lose, step by step, what a retrieval needs:
#
# | control | each measured voxel is given the prediction of |
# |---|---|
# | wrong voxels, same area | a random voxel of its own area, in the same subject |
# | another subject, same area | a random voxel of its own area, in another subject, for the same images |
# | wrong voxels, any area | a random voxel of the same subject |
# | mean response | itself, but the mean of its train responses for every image |
#
# What to look for: a drop from the first column to those of the same area, which stay above chance as far as voxels of an area
# prefer the same; wrong voxels of any area near chance; the mean response finds nothing at all, because a tie counts as a miss.

# %%
controls = study.control_table(lab, encoder, predictions[CROWD])
fig, ax = plt.subplots(figsize=(9.5, 4))
figures.controls(ax, controls, 1)
lab.save(fig, "controls")

# %% [markdown]
# ## Appendix: with how many voxels?
#
# Voxels drawn at random (averaged over draws), and those that are predicted best on the **val** images, so that the
# test images have no part in choosing them. What to look for: do few good voxels do as well as many?

# %%
voxels = study.voxel_curve(lab, encoder, predictions[CROWD], voxel_counts)
fig, axes = plt.subplots(1, 2, figsize=(10, 4))
figures.hits_against(axes[0], voxels, "n_voxels", 1, "voxels")
figures.hits_against(axes[1], voxels, "n_voxels", 5, "voxels")
lab.save(fig, "voxels")

# %% [markdown]
# ## Appendix: with one area
#
# Only the voxels of one area. Areas differ in size, so the open dots give each area the same number of voxels, drawn at
# random. What to look for: an area that is good because it is large loses its lead in the open dots.

# %%
by_area = study.area_table(lab, predictions[CROWD], area_voxels)
fig, ax = plt.subplots(figsize=(10, 4.2))
if len(by_area):
    figures.hits_by_area(ax, by_area, 1)
else:
    figures.text_only(ax, "no area is named, or none has enough voxels")
lab.save(fig, "areas")

# %% [markdown]
# ## With care
#
# - All intervals are 95 % intervals over images; they hold for these subjects and this training.
# - No voxel belongs to two subjects, so "another subject" goes by area: it keeps what an area has in common in all subjects, and is
#   no test of pure chance. Controls that need areas or several subjects are left out where there are none.

# %%
lab.finish()
