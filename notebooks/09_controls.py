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
# # Does every effect vanish when its cause is taken away?
#
# Every effect of the other notebooks is turned off once:
#
# | effect | what is taken away | what must happen |
# |---|---|---|
# | gain of a crowd | the partners' images are shuffled among their responses | no gain |
# | transfer, gain of a crowd | function that the brains share (simulated anew) | transfer vanishes; the gain as far as it comes from shared function |
# | transfer | the crowd's training, or what it was trained on | no better than ridge |
# | clusters | training, or what belongs to one voxel | no agreement with true types |
# | retrieval | each voxel meets the prediction for another one | chance |
# | all of them | the signal in the responses (simulated anew) | nothing is found |

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None
shared_function = [0.0, 0.5, 1.0]
n_images = 100

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

import ubrain
from ubrain.report import figures
from ubrain.report.studies import controls as study

lab = ubrain.Lab("09_controls", crowd, profile, seed, subjects, split_scheme)

# %% tags=["answer"]
print(lab.answer())

# %% [markdown]
# ## The crowd, and newcomers that it has not seen
#
# A smaller crowd than in 01, so that two subjects are left as newcomers. All that follows is compared with what it gains,
# predicts and finds.

# %%
place = study.direction(lab)
effects = {name: {study.AS_IT_IS: x} for name, x in study.scored(lab).items()}
print("crowd:", *place.crowd, "| newcomers:", *place.newcomers)
pd.concat({name: study.show(found) for name, found in effects.items()})

# %% [markdown]
# ## Partners that cannot help
#
# Each subject is trained once more with the same partners, but their images are shuffled among their responses. Such partners may
# even cost something, since they use up training.

# %%
for s in place.crowd[: len(place.newcomers)]:
    useless = study.shuffled(lab, [p for p in place.crowd if p != s])
    gain = study.scored(lab, useless, [s])[study.GAIN]
    effects[study.GAIN][f"partners of {s} shuffled"] = gain
study.show(effects[study.GAIN])

# %% [markdown]
# ## Retrieval with exchanged voxels
#
# Each voxel's response is compared with the prediction for another voxel, drawn from all areas.

# %%
effects[study.TOP1]["voxels exchanged"] = study.exchanged(lab)
study.show(effects[study.TOP1])

# %% [markdown]
# ## Nothing in the responses
#
# The same brains and images, simulated again with responses of noise alone. Nothing may be found.

# %%
again = lab.is_default  # recordings cannot be simulated again
if again:
    noise = study.resimulated(lab, snr=study.NOTHING)
    for name, x in study.scored(noise).items():
        effects[name]["noise alone"] = x
pd.concat({name: study.show(found) for name, found in effects.items()})

# %% [markdown]
# ## Transfer from a crowd that knows nothing
#
# What newcomers with a few images (`n_images`) gain over ridge from the same images, when the frozen encoder was trained, was trained
# on shuffled images, or was never trained.

# %%
encoders = {
    study.AS_IT_IS: lab.encoder(place.crowd),
    "trained on shuffled images": study.shuffled(lab, place.crowd).encoder(place.crowd),
    "untrained": study.untrained(lab),
}
gains = {name: study.transferred(lab, e, n_images) for name, e in encoders.items()}
for method in study.METHODS:
    found = {name: by_method[method] for name, by_method in gains.items()}
    effects[study.over_ridge(method)] = found
    display(study.show(found).rename_axis(method))

# %% [markdown]
# ## Clusters of embeddings that mean nothing
#
# Agreement (adjusted Rand index, 0 by chance) of k-means clusters with the true types of the voxels. *Permuted*: each of the
# embedding's numbers is shuffled among the voxels.

# %%
if again:
    trained, untrained = encoders[study.AS_IT_IS], encoders["untrained"]
    effects[study.CLUSTERS] = {
        study.AS_IT_IS: study.cluster_agreement(lab, trained),
        "embeddings permuted": study.cluster_agreement(lab, trained, shuffle=True),
        "untrained": study.cluster_agreement(lab, untrained),
        "noise alone": study.cluster_agreement(lab, noise.encoder(place.crowd)),
    }
    display(study.show(effects[study.CLUSTERS]))

# %% [markdown]
# ## All controls
#
# What to look for: every open circle, an effect whose cause was taken away, on the dashed line or left of it, where its filled circle is
# not. Below the figure, the rows that are not as expected.

# %%
table = study.table(lab, effects)
fig, ax = plt.subplots(figsize=(9, 0.3 * len(table) + 1.5))
figures.effects(ax, table)
lab.save(fig, "controls")
table[table["as_expected"].eq(False)].head(12).round(3)

# %% [markdown]
# ## How much function must brains share?
#
# In the simulation all brains draw from one list of functional types, so a crowd's gain is nearly built in. Here a share of each
# brain's voxels gets a private function instead, which no other brain has. What to look for: transfer (three
# lines) falls to 0 where nothing is shared; does the crowd's own gain (green) fall, too? What stays cannot come from shared functions.

# %%
if again:
    dial = study.dial(lab, shared_function, n_images)
    fig, ax = plt.subplots(figsize=(7, 4.5))
    figures.shared_function(ax, dial)
    lab.save(fig, "shared_function")
    display(figures.compact(dial, "value", by="effect", columns="shared"))

# %% [markdown]
# ## With care
#
# - **Values** of the crowd are means over its first subjects, and of their 95 % intervals; those of clusters are over starts of the
#   clustering. Of many true zeros, one interval in twenty misses.
# - **As much training.** Shuffled partners bring as many voxels, images and steps, and noise as many repeats: only the cause is gone.
# - **Private functions** are somewhat harder to learn, so what is shown is what a subject *gains*.

# %%
lab.finish()
