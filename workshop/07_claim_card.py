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
# # The claim card · 5 minutes
#
# Goal 5: say what a simulation proves, and what it does not.
#
# E9 fill in the card (5 minutes).

# %% tags=["parameters"]
profile = "fast"
seed = 0

# %%
import ubrain
from ubrain.analysis import stats
from ubrain.report import workshop

lab = ubrain.Lab("workshop", None, profile, seed)
me = lab.subjects[0]
crowd, alone = lab.predict(lab.encoder(lab.subjects), me), lab.predict(lab.encoder([me]), me)
found = stats.median_r(crowd, lab.measured(me), alone)
print(f"module 3 once more: gain of the crowd for {me}, in median r: {found}")

# %% [markdown]
# ### E9 · One claim that you would sign · 5 minutes
#
# Take one claim of today that has an interval: that a crowd helps, or (if your class pooled its results) how well 25 images do. Fill in each
# field with a sentence or a number; the number with its interval, from your own cells.

# %% tags=["exercise", "E9"]
card = {
    ### BEGIN SOLUTION
    ### "claim": "...",  # your words
    ### "number": "...",
    ### "data": "...",
    ### "control": "...",
    ### "shows": "...",
    ### "does not show": "...",
    "claim": "An encoder of six subjects predicts a subject better than an encoder of that subject alone.",
    "number": f"{found} in median r, one subject",
    "data": "one simulated crowd, six subjects, 200 test images, 3 repeats",
    "control": "With shuffled partners, as many and as large, there is no gain.",
    "shows": "If brains share functions as in this simulation, the method uses the responses of others.",
    "does not show": "That real brains share as much, or that the gain is as large with real noise.",
    ### END SOLUTION
}

# %% tags=["check", "E9"]
workshop.check("E9", card)

# %% [markdown] tags=["hint", "E9"]
# An interval in square brackets: `"0.123 [0.045, 0.201]"`. The control is what you took away, and what happened then.

# %% [markdown]
# Swap cards with your neighbour. One question to the card of the other: *what would make you take it back?*
#
# ## Where to go from here
#
# - the claims of the repository, each with its number, control and where it fails: `docs/claims.md`
# - the same with recordings of your own: `ubrain import arrays`, `ubrain check`, notebook 08
# - which effects vanish without their cause: notebook 09

# %% [markdown] tags=["instructor"]
# **Instructor.** Read two cards aloud. Then the survey.
