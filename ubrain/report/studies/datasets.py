"""A crowd of datasets: do subjects of small datasets gain from the subjects of the largest, and
does it lose?
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain import train
from ubrain.analysis import stats
from ubrain.config import TrainingConfig
from ubrain.progress import log
from ubrain.report import figures
from ubrain.report.lab import ALONE, CROWD, LEAST_IMAGES, Lab

TOGETHER = list(figures.CONDITIONS)[7]
Groups = dict[str, list[str]]  # dataset -> subjects, the largest dataset first
Predicted = dict[
    str, dict[str, NDArray[np.float32]]
]  # condition -> subject -> (n_images, n_voxels)
GAIN_COLUMNS = [
    "dataset",
    "subject",
    "of",
    "over",
    "gain",
    "low",
    "high",
    "top1_gain",
    "top1_low",
    "top1_high",
]


def groups(lab: Lab, subjects: Sequence[str] | None = None) -> Groups:
    """Datasets and their subjects, the main dataset (that with most subjects) first.

    Parameters
    ----------
    subjects : use these only; None takes everybody in the crowd file who has enough images.
    """
    found = {}
    for dataset, names in lab.datasets.items():
        mine = [s for s in names if (subjects is None or s in subjects) and _enough_images(lab, s)]
        if mine:
            found[dataset] = mine
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def main_and_others(found: Groups) -> tuple[str, list[str]]:
    """Name of the main dataset, and of the others; none where there is one dataset only."""
    main, *others = found
    return main, others


def joint_training(lab: Lab, subjects: Sequence[str], main: Sequence[str]) -> TrainingConfig:
    """The profile's training, with fewer epochs if these subjects would get more steps than the
    main dataset's crowd.

    So a gain of a crowd of several datasets is not one of training longer.
    """
    config = lab.profile.training
    limit = steps(lab, main, config)
    if steps(lab, subjects, config) <= limit:
        return config
    per_epoch = steps(lab, subjects, replace(config, epochs=1, min_steps=0))
    return replace(config, epochs=max(1, limit // per_epoch), min_steps=0)


def steps(lab: Lab, subjects: Sequence[str], training: TrainingConfig) -> int:
    """How many steps the training of these subjects has at most (a plateau schedule may stop
    earlier).
    """
    plan = train._Plan(lab.crowd, list(subjects), training, lab.seed)
    return plan.epochs * plan.steps_per_epoch


def _batches(lab: Lab, subjects: Sequence[str]) -> int:
    """Batches of these subjects in an epoch."""
    everything = train._Plan(lab.crowd, list(subjects), lab.profile.training, lab.seed)
    return sum(map(everything.batches_of, subjects))


def plan(lab: Lab, found: Groups, counts: Sequence[int]) -> pd.DataFrame:
    """What is trained: one row per training of several subjects, with the number of its steps,
    recorded.

    Returns
    -------
    dataset (whose question it answers), condition, main subjects (number), subjects (number of
    all), steps, and how many of these are batches of the main dataset.
    """
    rows = []
    main, _ = main_and_others(found)
    for dataset, condition, n, subjects in _crowds(found, counts):
        training = joint_training(lab, subjects, found[main])
        n_steps = steps(lab, subjects, training)
        main_steps = round(
            n_steps
            * _batches(lab, [s for s in subjects if s in found[main]])
            / _batches(lab, subjects)
        )
        lab.record("steps of the main dataset", main_steps, condition, dataset, unit="steps")
        lab.record("steps", n_steps, condition, dataset, unit="steps")
        rows.append(
            {
                "dataset": dataset,
                "condition": condition,
                "main subjects": n,
                "subjects": len(subjects),
                "steps": n_steps,
                "of the main dataset": main_steps,
            }
        )
    return pd.DataFrame(rows)


def fit(lab: Lab, found: Groups, counts: Sequence[int]) -> dict[str, Predicted]:
    """Train everything that is compared, and predict each subject's own test images.

    A dataset that is not the main one: each subject alone, its own crowd, its own crowd with the
    first `counts` subjects of the main dataset, and with all of them. The main dataset: its own
    crowd, and with each other dataset.

    Returns
    -------
    dataset -> condition -> subject -> (n_images, n_voxels).
    """
    main, others = main_and_others(found)
    fitted: dict[str, Predicted] = {d: {} for d in found}
    for dataset in others:
        fitted[dataset][ALONE] = {s: lab.predict(lab.encoder([s]), s) for s in found[dataset]}
    for dataset, condition, _, subjects in _crowds(found, counts):
        encoder = lab.encoder(subjects, training=joint_training(lab, subjects, found[main]))
        fitted[dataset][condition] = {s: lab.predict(encoder, s) for s in found[dataset]}
        if condition == TOGETHER:
            fitted[main][with_dataset(dataset)] = {s: lab.predict(encoder, s) for s in found[main]}
    return fitted


def with_dataset(dataset: str) -> str:
    """The condition of the main dataset's subjects, trained together with another dataset."""
    return f"{CROWD} + {dataset}"


def pooled(
    fitted: Mapping[str, Predicted],
    datasets: Sequence[str],
    conditions: Sequence[str] | None = None,
) -> Predicted:
    """Predictions of the subjects of several datasets, condition by condition (default: all that
    there are).
    """
    wanted = conditions or list(dict.fromkeys(c for d in datasets for c in fitted[d]))
    found = {c: {s: p for d in datasets for s, p in fitted[d].get(c, {}).items()} for c in wanted}
    return {c: by_subject for c, by_subject in found.items() if by_subject}


def gains(lab: Lab, fitted: Mapping[str, Predicted], found: Groups) -> pd.DataFrame:
    """Paired gains of each subject, with 95 % intervals over images and voxels; recorded. See
    `Lab.gain_table`.

    Returns
    -------
    One row per comparison and subject: dataset, subject, of, over, gain, low, high, top1_gain,
    top1_low, top1_high.
    """
    main, others = main_and_others(found)
    compared = [
        (d, of, over)
        for d in others
        for of, over in ((TOGETHER, CROWD), (TOGETHER, ALONE), (CROWD, ALONE))
    ]
    compared += [(main, with_dataset(d), CROWD) for d in others]
    tables = []
    for dataset, of, over in compared:
        table = lab.gain_table(fitted[dataset], of, (over,), found[dataset])
        tables.append(table.assign(dataset=dataset, of=of)[GAIN_COLUMNS])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=GAIN_COLUMNS)


def growth(scored: pd.DataFrame, found: Groups, counts: Sequence[int]) -> pd.DataFrame:
    """Scores of the subjects of the smaller datasets against how many subjects of the main dataset
    joined them.

    Parameters
    ----------
    scored : of `Lab.score_table`.

    Returns
    -------
    One row per subject and number: dataset, n_main, subject, median_r, low, high, top1, gallery.
    """
    rows = []
    for dataset, condition, n, _ in _crowds(found, counts):
        mine = scored[(scored["condition"] == condition) & scored["subject"].isin(found[dataset])]
        rows.append(mine.assign(dataset=dataset, n_main=n))
    columns = ["dataset", "n_main", "subject", "median_r", "low", "high", "top1", "gallery"]
    others = [r[columns] for r in rows if r["dataset"].iloc[0] != main_and_others(found)[0]]
    return pd.concat(others, ignore_index=True) if others else pd.DataFrame(columns=columns)


def area_gains(
    lab: Lab, fitted: Mapping[str, Predicted], found: Groups, least: int = 10
) -> pd.DataFrame:
    """Gain in median r of each area from training with the other dataset, over the own dataset's
    crowd; recorded.

    The voxels of all subjects of a dataset are pooled on the test images that all of them saw, and
    resampled together with these images (95 % intervals). A voxel of several areas counts in each;
    areas with fewer than `least` voxels are left out, and so is a dataset whose subjects have fewer
    than 5 test images in common.

    Returns
    -------
    One row per dataset, partner (the dataset trained with) and area: ..., area, gain, low, high,
    n_voxels.
    """
    main, others = main_and_others(found)
    rows = []
    for dataset, of, partner in [(d, TOGETHER, main) for d in others] + [
        (main, with_dataset(d), d) for d in others
    ]:
        measured, a, b, areas = _stacked(
            lab, found[dataset], fitted[dataset][of], fitted[dataset][CROWD]
        )
        if len(measured) < LEAST_IMAGES["test"]:
            continue
        for area in dict.fromkeys(x for label in areas for x in label.split(",") if x):
            inside = np.array([area in label.split(",") for label in areas])
            inside &= np.isfinite(measured).all(0)
            if inside.sum() < least:
                continue
            gain = stats.bootstrap_median_r(
                a[:, inside], measured[:, inside], b[:, inside], lab.profile.bootstrap, lab.seed
            )
            lab.record(
                f"gain_median_r of {area}", gain.value, f"{of} − {CROWD}", dataset, gain, unit="r"
            )
            rows.append(
                {
                    "dataset": dataset,
                    "partner": partner,
                    "area": area,
                    "gain": gain.value,
                    "low": gain.low,
                    "high": gain.high,
                    "n_voxels": gain.n,
                }
            )
    return pd.DataFrame(
        rows, columns=["dataset", "partner", "area", "gain", "low", "high", "n_voxels"]
    )


def verdict(
    planned: pd.DataFrame,
    gained: pd.DataFrame,
    by_area: pd.DataFrame,
    grown: pd.DataFrame,
    found: Groups,
) -> str:
    """What these numbers say, in words: where the other dataset helps, where it does not, and
    whether steps explain it.
    """
    main, others = main_and_others(found)
    if not others:
        return f"one dataset only ({main}): there is nothing to compare"
    small = gained[(gained["dataset"] != main) & (gained["over"] == CROWD)]
    large = gained[gained["dataset"] == main].groupby("of", sort=False)
    costs = "; ".join(
        f"with {of.removeprefix(CROWD + ' + ')} {(g['high'] < 0).sum()} in median r and "
        f"{(g['top1_high'] < 0).sum()} in top-1, of {len(g)}"
        for of, g in large
    )
    lines = [
        (
            "the claim of Fig. 5, a large dataset lifts smaller ones, shows in"
            f" {(small['low'] > 0).sum()} of {len(small)} of their subjects, by the 95 % intervals"
            f" of median r; subjects of {main} that lose, by interval: {costs}"
        ),
        "below: median over subjects, range over subjects in brackets",
    ]
    for dataset in others:
        mine = gained[gained["dataset"] == dataset]
        lines.append(
            f"{dataset}, with {main} over its own crowd: {_gain_words(mine, TOGETHER, CROWD)}"
        )
        lines.append(
            f"{dataset}, with {main} over each subject alone: {_gain_words(mine, TOGETHER, ALONE)}"
        )
        lines.append(
            f"{dataset}, its own crowd over each subject alone: {_gain_words(mine, CROWD, ALONE)}"
        )
        medians = grown[grown["dataset"] == dataset].groupby("n_main")["median_r"].mean()
        lines.append(
            f"{dataset}, mean of the median r with "
            + ", ".join(f"{n}: {r:.3f}" for n, r in medians.items())
            + f" subjects of {main}"
        )
        lines += [_area_words(by_area, dataset, main), _step_words(planned, dataset)]
    for dataset in others:
        mine = gained[gained["dataset"] == main]
        lines.append(
            f"{main}, with {dataset} over its own crowd:"
            f" {_gain_words(mine, with_dataset(dataset), CROWD)}"
        )
        lines.append(_area_words(by_area, main, dataset))
    return "\n".join(lines)


def _gain_words(gained: pd.DataFrame, of: str, over: str) -> str:
    rows = gained[(gained["of"] == of) & (gained["over"] == over)]
    r, top1 = rows["gain"], 100 * rows["top1_gain"]
    return (
        f"median r {r.median():+.3f} ({r.min():+.3f} … {r.max():+.3f}), by the 95 % intervals"
        f" {_by_interval(rows, 'low', 'high')}; top-1 {top1.median():+.1f} points"
        f" ({top1.min():+.1f} … {top1.max():+.1f}), {_by_interval(rows, 'top1_low', 'top1_high')}"
    )


def _by_interval(rows: pd.DataFrame, low: str, high: str) -> str:
    above, below = list(rows["subject"][rows[low] > 0]), list(rows["subject"][rows[high] < 0])
    unclear = [s for s in rows["subject"] if s not in above + below]
    kinds = (("gain", above), ("loss", below), ("neither", unclear))
    return ", ".join(f"{word} in {' '.join(names)}" for word, names in kinds if names)


def _area_words(by_area: pd.DataFrame, dataset: str, partner: str) -> str:
    rows = by_area[(by_area["dataset"] == dataset) & (by_area["partner"] == partner)].set_index(
        "area"
    )
    if not len(rows):
        return f"{dataset} by area: not known here"
    losing = rows.index[rows["high"] < 0]
    unsure = rows.index[(rows["low"] <= 0) & (rows["high"] >= 0)]
    return (
        f"{dataset} with {partner}, by area: gain in {(rows['low'] > 0).sum()} of {len(rows)}, "
        f"loss in {', '.join(losing) or 'none'}, neither in {', '.join(unsure) or 'none'}"
    )


def _step_words(planned: pd.DataFrame, dataset: str) -> str:
    mine = planned[planned["dataset"] == dataset].set_index("condition")["steps"]
    own, joint = int(mine[CROWD]), int(mine[TOGETHER])
    text = (
        f"{dataset}: its own crowd was trained for {own} steps, both datasets together for {joint}"
    )
    return text + (
        ": steps do not explain a gain"
        if joint <= own
        else ": a gain may in part be one of longer training"
    )


def _crowds(found: Groups, counts: Sequence[int]) -> list[tuple[str, str, int, list[str]]]:
    """Crowds that are trained: dataset, condition, number of main subjects, all subjects in the
    order of the crowd file.
    """
    main, others = main_and_others(found)
    everybody = found[main]
    some = [n for n in sorted(set(counts)) if 0 < n < len(everybody)]
    crowds = [(main, CROWD, len(everybody), everybody)]
    for dataset in others:
        crowds.append((dataset, CROWD, 0, found[dataset]))
        crowds += [
            (dataset, f"{CROWD} + {n} of {main}", n, _joined(found, dataset, n)) for n in some
        ]
        crowds.append((dataset, TOGETHER, len(everybody), _joined(found, dataset, len(everybody))))
    return crowds


def _joined(found: Groups, dataset: str, n: int) -> list[str]:
    main, _ = main_and_others(found)
    return found[main][:n] + found[dataset]


def _stacked(
    lab: Lab, subjects: Sequence[str], *predictions: Mapping[str, NDArray]
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Measured responses, two predictions, and areas, of the voxels of all subjects, on the images
    that all saw.
    """
    rows = {s: lab.crowd[s].image_rows("test") for s in subjects}
    common = [r for r in rows[subjects[0]] if all(r in rows[s] for s in subjects)]
    at = {s: np.searchsorted(rows[s], common).astype(int) for s in subjects}
    measured, a, b = (
        np.hstack([p[s][at[s]] for s in subjects])
        for p in ({s: lab.measured(s) for s in subjects}, *predictions)
    )
    return (
        measured,
        a,
        b,
        np.concatenate([lab.crowd[s].voxels["areas"].to_numpy() for s in subjects]),
    )


def _enough_images(lab: Lab, subject: str) -> bool:
    for split, least in LEAST_IMAGES.items():
        n = len(lab.crowd[subject].image_rows(split))
        if n < least:
            log.warning(
                "%s is left out: %d %s images, expected at least %d", subject, n, split, least
            )
            return False
    return True
