"""A crowd of datasets: do subjects of small datasets gain from the subjects of the largest, and
does it lose?
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ubrain.analysis import stats
from ubrain.batches import Plan
from ubrain.config import TrainingConfig
from ubrain.progress import log
from ubrain.report import figures
from ubrain.report.lab import ALONE, CROWD, Lab, too_few_images
from ubrain.report.studies import scoring
from ubrain.report.studies.scoring import Predictions

TOGETHER = list(figures.CONDITIONS)[7]
Groups = dict[str, list[str]]  # dataset -> subjects, the largest dataset first
COMPARED = ((TOGETHER, CROWD), (TOGETHER, ALONE), (CROWD, ALONE))
GAIN_COLUMNS = ["dataset", "subject", "of", "over", "gain", "low", "high"]
GAIN_COLUMNS += ["top1_gain", "top1_low", "top1_high"]
AREA_COLUMNS = ["dataset", "partner", "area", "gain", "low", "high", "n_voxels"]
GROWTH_COLUMNS = ["dataset", "n_main", "subject", "median_r", "low", "high", "top1", "gallery"]


@dataclass(frozen=True)
class Training:
    """One training of several subjects: the dataset that it is for, and who takes part."""

    dataset: str
    condition: str
    n_main: int  # subjects of the main dataset
    subjects: list[str]
    config: TrainingConfig


def groups(lab: Lab, subjects: Sequence[str] | None = None) -> Groups:
    """Datasets and their subjects, the main dataset (that with most subjects) first.

    Parameters
    ----------
    subjects : use these only; None takes everybody in the crowd file who has enough images.
    """
    found: Groups = {}
    for dataset, names in lab.datasets.items():
        for s in (s for s in names if subjects is None or s in subjects):
            if lack := too_few_images(lab.crowd[s]):
                log.warning("%s is left out: %s", s, lack)
            else:
                found.setdefault(dataset, []).append(s)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def trainings(lab: Lab, found: Groups, counts: Sequence[int]) -> list[Training]:
    """What is trained to be compared, subjects in the order of the crowd file.

    The main dataset: its own crowd. Every other dataset: its own crowd, the same with the first
    `counts` subjects of the main dataset, and with all of them.

    A joint training has fewer epochs if it would otherwise get more steps than the main dataset's
    crowd, so that a gain of a crowd of several datasets is not one of training longer.
    """
    main, *others = found
    everybody = found[main]
    names = {n: f"{CROWD} + {n} of {main}" for n in sorted(set(counts)) if 0 < n < len(everybody)}
    names = {0: CROWD, **names, len(everybody): TOGETHER}
    made = [Training(main, CROWD, len(everybody), everybody, lab.profile.training)]
    for dataset in others:
        for n, condition in names.items():
            subjects = everybody[:n] + found[dataset]
            config = joint_training(lab, subjects, everybody)
            made.append(Training(dataset, condition, n, subjects, config))
    return made


def joint_training(lab: Lab, subjects: Sequence[str], main: Sequence[str]) -> TrainingConfig:
    """The profile's training, with fewer epochs if these subjects would get more steps than those
    of the main dataset.
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
    plan = Plan(lab.crowd, tuple(subjects), training, lab.seed)
    return plan.epochs * plan.steps_per_epoch


def plan(lab: Lab, trained: Sequence[Training]) -> pd.DataFrame:
    """One row per training: dataset (whose question it answers), condition, main subjects (number),
    subjects (number of all), steps, and how many of these are batches of the main dataset. Steps
    are recorded.
    """
    rows, everybody = [], trained[0].subjects
    for t in trained:
        n_steps = steps(lab, t.subjects, t.config)
        schedule = Plan(lab.crowd, tuple(t.subjects), t.config, lab.seed)
        batches = {s: schedule.batches_of(s) for s in t.subjects}
        share = sum(batches[s] for s in t.subjects if s in everybody) / sum(batches.values())
        main_steps = round(n_steps * share)
        lab.record("steps of the main dataset", main_steps, t.condition, t.dataset, unit="steps")
        lab.record("steps", n_steps, t.condition, t.dataset, unit="steps")
        rows.append((t.dataset, t.condition, t.n_main, len(t.subjects), n_steps, main_steps))
    columns = ["dataset", "condition", "main subjects", "subjects", "steps", "of the main dataset"]
    return pd.DataFrame(rows, columns=columns)


def with_dataset(dataset: str) -> str:
    """The condition of the main dataset's subjects, trained together with another dataset."""
    return f"{CROWD} + {dataset}"


def gains(lab: Lab, predictions: Predictions, found: Groups) -> pd.DataFrame:
    """Paired gains of each subject, with 95 % intervals over images and voxels; recorded.

    Returns
    -------
    One row per comparison and subject: dataset, subject, of, over, and the columns of
    `scoring.gain_table`.
    """
    main, *others = found
    compared = [(d, *pair) for d in others for pair in COMPARED]
    compared += [(main, with_dataset(d), CROWD) for d in others]
    tables = [pd.DataFrame(columns=GAIN_COLUMNS)]
    for dataset, of, over in compared:
        table = scoring.gain_table(lab, predictions, of, (over,), found[dataset])
        tables.append(table.assign(dataset=dataset, of=of)[GAIN_COLUMNS])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def growth(scored: pd.DataFrame, found: Groups, trained: Sequence[Training]) -> pd.DataFrame:
    """Scores of the subjects of the smaller datasets against how many subjects of the main dataset
    joined them.

    Parameters
    ----------
    scored : of `scoring.score_table`.

    Returns
    -------
    One row per subject and number: dataset, n_main, subject, median_r, low, high, top1, gallery.
    """
    tables = [pd.DataFrame(columns=GROWTH_COLUMNS)]
    for t in trained[1:]:  # the first is the main dataset's own crowd
        mine = (scored["condition"] == t.condition) & scored["subject"].isin(found[t.dataset])
        table = scored[mine].assign(dataset=t.dataset, n_main=t.n_main)
        tables.append(table[GROWTH_COLUMNS])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def area_gains(lab: Lab, predictions: Predictions, found: Groups, least: int = 10) -> pd.DataFrame:
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
    main, *others = found
    compared = [(d, TOGETHER, main) for d in others]
    compared += [(main, with_dataset(d), d) for d in others]
    rows = []
    for dataset, of, partner in compared:
        subjects = found[dataset]
        both = predictions[of], predictions[CROWD]
        measured, a, b = scoring.on_common_images(lab, subjects, *both)
        for area, inside in scoring.area_masks(lab, subjects, measured, least).items():
            gain = stats.median_r(a[:, inside], measured[:, inside], b[:, inside])
            condition = f"{of} − {CROWD}"
            lab.record(f"gain_median_r of {area}", gain.value, condition, dataset, gain, unit="r")
            rows.append((dataset, partner, area, gain.value, gain.low, gain.high, gain.n))
    return pd.DataFrame(rows, columns=AREA_COLUMNS)
