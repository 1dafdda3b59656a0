"""Scores of predictions, tabulated for the notebooks: each subject and condition, paired gains,
areas, growing crowds, the truth. What a table holds is recorded.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain import scores
from ubrain.analysis import stats
from ubrain.data.simulate import truth
from ubrain.report.lab import LEAST_IMAGES, Lab

AREA_COLUMNS = ["area", "condition", "median_r", "low", "high", "n_voxels"]
# condition -> subject -> (n_images, n_voxels)
Predictions = Mapping[str, Mapping[str, NDArray[np.float32]]]


def voxel_r(lab: Lab, predictions: Predictions) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Correlation of each voxel: condition -> subject -> (n_voxels,)."""
    return {
        condition: {s: scores.correlation(p, lab.measured(s)) for s, p in by_subject.items()}
        for condition, by_subject in predictions.items()
    }


def score_table(lab: Lab, predictions: Predictions) -> pd.DataFrame:
    """Scores of each condition and subject, all recorded.

    Returns
    -------
    One row per condition and subject: median_r with its interval (low, high), median_r2,
    noise_normalised (median r² / ceiling; NaN if the ceiling is unknown), significant (share of
    voxels with q < 0.05), top1 and top5 with their intervals (top1_low, ...), gallery, chance_top1.
    """
    rows = []
    for condition, by_subject in predictions.items():
        for s, predicted in by_subject.items():
            scored = _scored(lab, condition, s, predicted)
            rows.append({"condition": condition, "subject": s, **scored})
    return pd.DataFrame(rows)


def _scored(lab: Lab, condition: str, s: str, predicted: NDArray) -> dict[str, Any]:
    """One row of `score_table`."""
    measured, profile, seed = lab.measured(s), lab.profile, lab.seed
    r = scores.correlation(predicted, measured)
    interval = stats.median_r(predicted, measured)
    lab.record("median_r", interval.value, condition, s, interval, unit="r")
    row = {"median_r": interval.value, "low": interval.low, "high": interval.high}

    explained = scores.noise_normalised(r, lab.crowd[s].noise_ceiling("test"))
    q = stats.fdr(stats.permutation_p(predicted, measured, profile.permutations, seed))
    for name, value, unit in (
        ("median_r2", np.nanmedian(scores.r2(predicted, measured)), "R2"),
        (
            "noise_normalised",
            np.nanmedian(explained) if np.isfinite(explained).any() else np.nan,
            "r2 / ceiling",
        ),
        ("significant", np.mean(np.nan_to_num(q, nan=1.0) < 0.05), "share"),
    ):
        lab.record(name, float(value), condition, s, n=len(r), unit=unit)
        row[name] = float(value)

    ranks = scores.retrieval_ranks(predicted, measured)
    for k in (1, 5):
        hits = stats.share({s: ranks < k}, {s: lab.crowd[s].image_rows("test")})
        lab.record(f"top{k}", hits.value, condition, s, hits, unit="share")
        row |= {f"top{k}": hits.value, f"top{k}_low": hits.low, f"top{k}_high": hits.high}
    return {**row, "gallery": len(ranks), "chance_top1": 1 / len(ranks)}


def gain_table(
    lab: Lab,
    predictions: Predictions,
    of: str,
    over: Iterable[str],
    subjects: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Gain in median r and in top-1 retrieval of one condition over others, paired, with 95 %
    intervals; recorded.

    Parameters
    ----------
    subjects : whose gains; None takes those of this notebook.

    Returns
    -------
    One row per condition and subject: condition, over, subject, gain, low, high, top1_gain,
    top1_low, top1_high.
    """
    rows = []
    for other in over:
        condition = f"{of} − {other}"
        for s in lab.subjects if subjects is None else subjects:
            a, b, measured = predictions[of][s], predictions[other][s], lab.measured(s)
            gain = stats.median_r(a, measured, b)
            found_a, found_b = (scores.retrieval_ranks(p, measured) < 1 for p in (a, b))
            found = {s: found_a.astype(float) - found_b}
            top1 = stats.gain_in_share(found, {s: lab.crowd[s].image_rows("test")})
            lab.record("gain_median_r", gain.value, condition, s, gain, unit="r")
            lab.record("gain_top1", top1.value, condition, s, top1, unit="share")
            row: dict[str, Any] = {"condition": condition, "over": other, "subject": s}
            row |= {"gain": gain.value, "low": gain.low, "high": gain.high}
            row |= {"top1_gain": top1.value, "top1_low": top1.low, "top1_high": top1.high}
            rows.append(row)
    return pd.DataFrame(rows)


def area_table(
    lab: Lab, predictions: Predictions, of: str, over: Sequence[str] = (), least: int = 10
) -> pd.DataFrame:
    """Median voxel correlation per area, and the gain in it of one condition over others (paired),
    with 95 % intervals; recorded.

    The voxels of all subjects are pooled on the test images that all of them saw. A voxel of
    several areas counts in each; areas with fewer than `least` voxels are left out.

    Returns
    -------
    One row per area and condition, gains among them ("of − over"): area, condition, median_r, low,
    high, n_voxels; empty if no area is named, or too few images are shared.
    """
    rows, subjects = [], list(predictions[of])
    measured, *pooled = on_common_images(lab, subjects, *predictions.values())
    predicted = dict(zip(predictions, pooled, strict=True))
    compared: list[tuple[str, NDArray, NDArray | None]]
    compared = [(c, p, None) for c, p in predicted.items()]
    compared += [(f"{of} − {other}", predicted[of], predicted[other]) for other in over]
    masks = area_masks(lab, subjects, measured, least)
    for (condition, a, b), (area, inside) in product(compared, masks.items()):
        against = None if b is None else b[:, inside]
        found = stats.median_r(a[:, inside], measured[:, inside], against)
        name = f"median_r of {area}" if b is None else f"gain_median_r of {area}"
        lab.record(name, found.value, condition, interval=found, unit="r")
        rows.append((area, condition, found.value, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=AREA_COLUMNS)


def area_masks(
    lab: Lab, subjects: Sequence[str], measured: NDArray, least: int = 10
) -> dict[str, NDArray[np.bool_]]:
    """Voxels of each area with at least `least` of them, without missing responses: area ->
    (n_voxels,), of all subjects side by side; none for fewer images than a test needs.

    Parameters
    ----------
    measured : (n_images, n_voxels), as from `on_common_images`.
    """
    labels = pd.concat([lab.crowd[s].voxels["areas"] for s in subjects]).str.split(",").tolist()
    complete = np.isfinite(measured).all(0) & (len(measured) >= LEAST_IMAGES["test"])
    areas = dict.fromkeys(a for several in labels for a in several if a)
    masks = {area: complete & [area in several for several in labels] for area in areas}
    return {area: inside for area, inside in masks.items() if inside.sum() >= least}


def truth_table(lab: Lab, predictions: Predictions) -> pd.DataFrame:
    """Median correlation with the measured and with the true noiseless responses; recorded.

    Returns
    -------
    One row per condition and subject: condition, subject, r_measured, r_true; empty for real
    recordings, whose truth is unknown.
    """
    rows = []
    known = truth.subjects(lab.crowd)
    for condition, by_subject in predictions.items():
        for s in (s for s in by_subject if s in known):
            noiseless = truth.noiseless_responses(lab.crowd, s)
            r_measured, r_true = (
                float(np.nanmedian(scores.correlation(by_subject[s], y)))
                for y in (lab.measured(s), noiseless)
            )
            n_voxels = noiseless.shape[1]
            lab.record("median_r_noiseless", r_true, condition, s, n=n_voxels, unit="r")
            rows.append((condition, s, r_measured, r_true))
    return pd.DataFrame(rows, columns=["condition", "subject", "r_measured", "r_true"])


def on_common_images(
    lab: Lab, subjects: Sequence[str], *predictions: Mapping[str, NDArray]
) -> list[NDArray]:
    """Measured responses and predictions of the voxels of all subjects, on the test images that all
    of them saw: (n_images, n_voxels) each.
    """
    rows = {s: lab.crowd[s].image_rows("test") for s in subjects}
    common = reduce(np.intersect1d, rows.values())
    at = {s: np.searchsorted(rows[s], common) for s in subjects}
    measured = {s: lab.measured(s) for s in subjects}
    return [np.hstack([p[s][at[s]] for s in subjects]) for p in (measured, *predictions)]


def growing_crowds(subjects: Sequence[str]) -> dict[int, list[list[str]]]:
    """Crowds of one, half and all subjects; for each size, groups that together hold every
    subject.
    """
    n = len(subjects)
    ring = [*subjects, *subjects]
    return {
        size: [ring[i : i + size] for i in range(0, n, size)] for size in sorted({1, -(-n // 2), n})
    }


def growth(lab: Lab) -> pd.DataFrame:
    """Median voxel correlation of each subject when trained in crowds of growing size; recorded.

    Returns
    -------
    One row per crowd size and subject: n_subjects, subject, median_r.
    """
    rows: dict[tuple[int, str], float] = {}
    for size, groups in growing_crowds(lab.subjects).items():
        for group in groups:
            encoder = lab.encoder(group)
            for s in group:
                if (size, s) not in rows:  # the last group may hold subjects of the first again
                    r = scores.correlation(lab.predict(encoder, s), lab.measured(s))
                    rows[size, s] = float(np.nanmedian(r))
    for (size, s), value in rows.items():
        n_voxels = lab.crowd[s].n_voxels
        lab.record("growth_median_r", value, f"crowd of {size}", s, n=n_voxels, unit="r")
    table = [(size, s, value) for (size, s), value in rows.items()]
    return pd.DataFrame(table, columns=["n_subjects", "subject", "median_r"])


def on_surface(lab: Lab, values: Mapping[str, NDArray]) -> tuple[NDArray, pd.DataFrame]:
    """A number per voxel, of all subjects whose voxels have a place on fsaverage5.

    Parameters
    ----------
    values : subject -> (n_voxels,)

    Returns
    -------
    (n_voxels,) values and the voxel table; both empty if no subject is on fsaverage5.
    """
    placed = [s for s in values if len(places(lab, s))]
    if not placed:
        return np.empty(0), pd.DataFrame()
    voxels = pd.concat([places(lab, s) for s in placed], ignore_index=True)
    return np.concatenate([values[s] for s in placed]), voxels


def places(lab: Lab, subject: str) -> pd.DataFrame:
    """Voxel table of a subject on fsaverage5; empty if it is elsewhere."""
    s = lab.crowd[subject]
    return s.voxels if s.space == "fsaverage5" and "vertex" in s.voxels else pd.DataFrame()
