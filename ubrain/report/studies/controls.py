"""Every effect turned off once: crowds that cannot help, encoders that know nothing, responses that
hold nothing (notebook 09).
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from numpy.typing import NDArray

from ubrain import paths
from ubrain.analysis import clusters, stats
from ubrain.analysis.stats import Interval
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.report.lab import RIDGE, Lab, simulated_crowd
from ubrain.report.studies import newcomers, retrieval
from ubrain.report.studies.newcomers import GRADIENT, MATCHING, OURS, Direction

ZERO, AT_MOST_ZERO = "0", "at most 0"
COLUMNS = ["effect", "condition", "value", "low", "high", "expected", "as_expected"]
NOTHING = 1e-6  # signal-to-noise ratio of responses that hold nothing


def direction(lab: Lab) -> Direction:
    """A crowd, and newcomers of the same dataset that it does not have.

    Raises
    ------
    UbrainError
        If there are fewer than three subjects.
    """
    found = newcomers.directions(lab)
    if not found or found[0].name != "a new subject":
        raise UbrainError("the controls need a dataset of at least three subjects")
    return found[0]


def shuffled(lab: Lab, subjects: Sequence[str]) -> Lab:
    """The same crowd, but the images of these subjects are shuffled among their responses: their
    train and val images, each among themselves; repeats stay together. It is written to the cache.
    """
    name = f"{lab.crowd.fingerprint[:12]}-shuffled-{'-'.join(subjects)}-seed{lab.seed}.h5"
    path, rng = paths.cache_root() / "controls" / name, np.random.default_rng(lab.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with paths.atomic(path) as partial:
                shutil.copyfile(lab.crowd.path, partial)
                with h5py.File(partial, "r+") as file:
                    for s in subjects:
                        instead = np.arange(len(lab.crowd.image_ids))
                        for split in ("train", "val"):
                            rows = lab.crowd[s].image_rows(split)
                            instead[rows] = rng.permutation(rows)
                        image = file[f"subjects/{s}/trials/image"]
                        image[:] = instead[image[:]]
    return Lab(lab.notebook, str(path), lab.profile.name, lab.seed, lab.subjects)


def resimulated(lab: Lab, **changes: float) -> Lab:
    """The first dataset of the simulated crowd, simulated again with other options; the images stay
    the same.
    """
    first = replace(lab.profile.simulation[0], **changes)
    path = simulated_crowd(replace(lab.profile, simulation=(first,)), lab.seed)
    return Lab(lab.notebook, str(path), lab.profile.name, lab.seed, lab.subjects)


def mean(intervals: Sequence[Interval]) -> Interval:
    """Mean over subjects; its ends are the mean ends, as if all subjects erred together."""
    ends = [np.mean([getattr(i, end) for i in intervals]) for end in ("value", "low", "high")]
    return Interval(*map(float, ends), sum(i.n for i in intervals))


def scored(lab: Lab, other: Lab | None = None) -> dict[str, Interval]:
    """What the crowd gains, and what it finds, for the subjects that are in the crowd of
    `direction`, as many as there are newcomers.

    Parameters
    ----------
    other : where the crowd is trained; the single subjects are always from `lab`.

    Returns
    -------
    gain : in median r over one subject alone; r: median r of the crowd's encoder; top1: share of
        images found, above chance.
    """
    place, among = direction(lab), other or lab
    encoder, found = among.encoder(place.crowd), list[dict[str, Interval]]()
    for s in place.crowd[: len(place.newcomers)]:
        crowd, alone = among.predict(encoder, s), lab.predict(lab.encoder([s]), s)
        measured = lab.measured(s)
        r, gain = stats.median_r(crowd, measured), stats.median_r(crowd, measured, alone)
        found.append({"gain": gain, "r": r, "top1": above_chance(crowd, measured)})
    return {name: mean([f[name] for f in found]) for name in found[0]}


def above_chance(predicted: NDArray, measured: NDArray) -> Interval:
    """Share of images that are found among all, less what chance finds."""
    hits, chance = retrieval.hits(predicted, measured), 1 / len(measured)
    found = stats.share({"": hits}, {"": np.arange(len(hits))})
    return Interval(found.value - chance, found.low - chance, found.high - chance, found.n)


def untrained(lab: Lab) -> UniversalEncoder:
    """An encoder of the crowd of `direction` as it is before training."""
    torch.manual_seed(lab.seed)
    config = replace(lab.profile.encoder, widths=lab.source.widths, n_tokens=lab.source.n_tokens)
    voxels = {s: lab.crowd[s].n_voxels for s in direction(lab).crowd}
    return UniversalEncoder(config, voxels).eval()


def transferred(lab: Lab, encoder: UniversalEncoder, n_images: int) -> dict[str, Interval]:
    """What newcomers gain in median r over ridge from the same images, by each method of transfer
    from this encoder; one draw of so many images.
    """
    found: dict[str, list[Interval]] = {m: [] for m in (GRADIENT, MATCHING, OURS)}
    for s in direction(lab).newcomers:
        few = newcomers.few_images(lab, s, [n_images])[:1]
        (newcomer,), test = newcomers.joined(lab, encoder, few)
        measured = few[0].subject.responses("test")
        ridge = newcomers.predicted_by(lab, few[0], RIDGE, newcomer, test)
        for method, intervals in found.items():
            predicted = newcomers.predicted_by(lab, few[0], method, newcomer, test)
            intervals.append(stats.median_r(predicted, measured, ridge))
    return {method: mean(intervals) for method, intervals in found.items()}


def cluster_agreement(lab: Lab, encoder: UniversalEncoder, shuffle: bool = False) -> Interval:
    """Adjusted Rand index of clusters of the crowd's embeddings with the true types, mean over
    starts of the clustering.

    Parameters
    ----------
    shuffle : each number of the embeddings is shuffled among the voxels, anew for each start.
    """
    place, rng, found = direction(lab), np.random.default_rng(lab.seed), []
    embeddings = np.concatenate([encoder.subject(s).detach().cpu().numpy() for s in place.crowd])
    known = np.concatenate([truth.voxels(lab.crowd, s)["type"] for s in place.crowd])
    for seed in range(lab.profile.clusters.runs):
        x = rng.permuted(embeddings, axis=0) if shuffle else embeddings
        labels = clusters.kmeans(x, len(np.unique(known)), restarts=1, seed=seed).labels
        found.append(clusters.agreement(labels, known)["ARI"])
    return stats.t_interval(found)


def exchanged(lab: Lab) -> Interval:
    """Share of images that are found above chance, when each voxel is compared with the prediction
    for another one, drawn from all.
    """
    place, rng, found = direction(lab), np.random.default_rng(lab.seed), []
    encoder = lab.encoder(place.crowd)
    for s in place.crowd[: len(place.newcomers)]:
        predicted = lab.predict(encoder, s)
        others = rng.permutation(predicted.shape[1])
        found.append(above_chance(predicted[:, others], lab.measured(s)))
    return mean(found)


def rows(
    lab: Lab, effect: str, found: Mapping[str, Interval], expected: str = ZERO
) -> pd.DataFrame:
    """An effect as it is and with its cause taken away, as rows; recorded.

    Parameters
    ----------
    found : condition -> interval; the first condition is the effect as it is.
    expected : of all others: "0", which the interval must hold, or "at most 0", above which it must
        not lie.
    """
    lines = []
    for i, (condition, x) in enumerate(found.items()):
        lab.record(effect, x.value, condition, interval=x)
        holds = x.low <= 0 and (expected == AT_MOST_ZERO or x.high >= 0)
        lines.append(
            [effect, condition, x.value, x.low, x.high, *((expected, holds) if i else ("", None))]
        )
    return pd.DataFrame(lines, columns=COLUMNS)


def all_vanish(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """How many effects vanish where their cause is taken away; recorded.

    Returns
    -------
    The rows that do not; one in twenty is expected by chance alone.
    """
    tested = table[table["expected"] != ""]
    lab.record("controls as expected", tested["as_expected"].mean(), n=len(tested), unit="share")
    return tested[~tested["as_expected"].astype(bool)]
