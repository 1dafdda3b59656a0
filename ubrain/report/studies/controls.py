"""Every effect turned off once: crowds that cannot help, encoders that know nothing, responses that
hold nothing (notebook 09).
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ubrain import paths, scores
from ubrain.analysis import clusters, stats
from ubrain.analysis.stats import Interval
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.progress import track
from ubrain.report.figures.compact import compact
from ubrain.report.lab import RIDGE, Lab, simulated_crowd
from ubrain.report.studies import newcomers
from ubrain.report.studies.newcomers import GRADIENT, MATCHING, OURS, Direction
from ubrain.resume import make_once

METHODS = GRADIENT, MATCHING, OURS
GAIN, MEDIAN_R, TOP1 = "gain of the crowd", "median r of the crowd", "top-1 above chance"
CLUSTERS = "clusters and true types, ARI"
AS_IT_IS = "crowd"  # the condition that takes nothing away
NOTHING = 1e-6  # signal-to-noise ratio of responses that hold nothing
Effects = dict[str, dict[str, Interval]]


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

    def make(partial: Path) -> None:
        shutil.copyfile(lab.crowd.path, partial)
        with h5py.File(partial, "r+") as file:
            for s in subjects:
                instead = np.arange(len(lab.crowd.image_ids))
                for split in ("train", "val"):
                    rows = lab.crowd[s].image_rows(split)
                    instead[rows] = rng.permutation(rows)
                image = file[f"subjects/{s}/trials/image"]
                image[:] = instead[image[:]]

    make_once(path, make)
    crowd = (lab.notebook, str(path), lab.profile.name, lab.seed)
    return Lab(*crowd, lab.subjects, lab.split_scheme)


def resimulated(lab: Lab, **changes: Any) -> Lab:
    """The first dataset of the simulated crowd, simulated again with other options; the images stay
    the same.
    """
    first = replace(lab.profile.simulation[0], **changes)
    path = simulated_crowd(replace(lab.profile, simulation=(first,)), lab.seed)
    return Lab(lab.notebook, str(path), lab.profile.name, lab.seed, lab.subjects)


def mean(intervals: Sequence[Interval]) -> Interval:
    """Mean over subjects; its ends are the mean ends, as if all subjects erred together."""
    value, low, high = (
        float(np.mean([getattr(i, end) for i in intervals])) for end in ("value", "low", "high")
    )
    return Interval(value, low, high, sum(i.n for i in intervals))


def scored(
    lab: Lab, trained: Lab | None = None, subjects: Sequence[str] = ()
) -> dict[str, Interval]:
    """What the crowd of `direction` gains and finds, for some of its subjects.

    Parameters
    ----------
    trained : where the crowd is trained; single subjects are always trained in `lab`.
    subjects : whose scores; none: as many as there are newcomers.

    Returns
    -------
    By effect: the gain in median r over one subject alone, median r, and the share of images that
    are found, above chance; means over the subjects.
    """
    place, among = direction(lab), trained or lab
    encoder, found = among.encoder(place.crowd), list[tuple[Interval, ...]]()
    for s in subjects or place.crowd[: len(place.newcomers)]:
        crowd, alone = among.predict(encoder, s), lab.predict(lab.encoder([s]), s)
        measured = lab.measured(s)
        r, gain = stats.median_r(crowd, measured), stats.median_r(crowd, measured, alone)
        found.append((gain, r, above_chance(crowd, measured)))
    return dict(zip((GAIN, MEDIAN_R, TOP1), map(mean, zip(*found, strict=True)), strict=True))


def above_chance(predicted: NDArray, measured: NDArray) -> Interval:
    """Share of images that are found among all, less what chance finds."""
    hits, chance = scores.retrieval_ranks(predicted, measured) < 1, 1 / len(measured)
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
    found: dict[str, list[Interval]] = {m: [] for m in METHODS}
    for s in direction(lab).newcomers:
        few = newcomers.few_images(lab, s, [n_images])[:1]
        joining, measured = newcomers.Joining(lab, encoder, few), few[0].subject.responses("test")
        ridge, _ = joining.predicted(0, RIDGE)
        for method, intervals in found.items():
            predicted, _ = joining.predicted(0, method)
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


def dial(lab: Lab, shares: Sequence[float], n_images: int) -> pd.DataFrame:
    """What a crowd gains, and newcomers gain over ridge, where brains share so much of their
    function; recorded.

    Returns
    -------
    One row per share and effect: shared, effect, value, low, high.
    """
    lines = []
    for share in track(list(shares), len(shares), "shared function"):
        there = lab if share == 1 else resimulated(lab, shared_function=share)
        gain = scored(there)[GAIN]
        by_method = transferred(there, there.encoder(direction(there).crowd), n_images)
        for effect, x in {GAIN: gain, **{over_ridge(m): by_method[m] for m in METHODS}}.items():
            lab.record(effect, x.value, f"shared function {share:g}", interval=x)
            lines.append([share, effect, x.value, x.low, x.high])
    return pd.DataFrame(lines, columns=["shared", "effect", "value", "low", "high"])


def over_ridge(method: str) -> str:
    """Name of the effect of a method of transfer."""
    return f"transfer over ridge, {method}"


def show(found: Mapping[str, Interval]) -> pd.DataFrame:
    """An effect under each condition with its interval, as a table."""
    rows = [{"condition": c, "of": "effect", **vars(x)} for c, x in found.items()]
    return compact(pd.DataFrame(rows), "value", by="condition", columns="of")


def table(lab: Lab, effects: Effects) -> pd.DataFrame:
    """All effects, as they are and with their cause taken away; recorded.

    Returns
    -------
    One row per effect and condition: effect, condition, value, low, high, expected, as_expected.
    Expected is "0", which the interval must hold, or "at most 0", above which it must not lie: what
    a useless partner costs is no matter here; "" for the effect as it is.
    """
    lines = []
    for effect, found in effects.items():
        for condition, x in found.items():
            lab.record(effect, x.value, condition, interval=x)
            expected, holds = "", None
            if condition != AS_IT_IS:
                expected = "0" if effect in (MEDIAN_R, TOP1, CLUSTERS) else "at most 0"
                holds = x.low <= 0 and (expected != "0" or x.high >= 0)
            lines.append([effect, condition, x.value, x.low, x.high, expected, holds])
    columns = ["effect", "condition", "value", "low", "high", "expected", "as_expected"]
    found_table = pd.DataFrame(lines, columns=columns)
    tested = found_table[found_table["expected"] != ""]["as_expected"]
    lab.record("controls as expected", tested.mean(), n=len(tested), unit="share")
    return found_table
