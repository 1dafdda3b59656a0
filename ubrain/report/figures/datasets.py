"""Figures of a crowd of datasets: what joining another dataset brings to each subject and each
area.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ubrain.report.figures.style import CEILING, DATASETS, colour, finish


def subject_gains(ax: Axes, table: pd.DataFrame, labels: Sequence[str], top1: bool = False) -> Axes:
    """Gain of each subject with its interval, subjects side by side. A gain ("a − b") has the
    colour of b, open the second time; if b is the same in all, that of the dataset in a.

    Parameters
    ----------
    table : one row per comparison and subject: dataset, of, over, subject, gain, low, high (of
        median r), top1_gain, top1_low, top1_high.
    labels : what to call the comparisons, in the order of the table.
    top1 : draw the gain in top-1 retrieval, not in median r.
    """
    if top1:
        table = table.assign(**{c: 100 * table[f"top1_{c}"] for c in ("gain", "low", "high")})
    subjects = list(dict.fromkeys(table["subject"]))
    compared = list(dict.fromkeys(zip(table["of"], table["over"], strict=True)))
    overs = [over for _, over in compared]
    apart = len(set(overs)) > 1
    for i, (label, (of, over), offset) in enumerate(
        zip(labels, compared, _offsets(len(compared)), strict=False)
    ):
        tint = colour(over) if apart else DATASETS[i]
        face = "white" if apart and over in overs[:i] else tint
        mine = table[(table["of"] == of) & (table["over"] == over)]
        at = np.array([subjects.index(s) for s in mine["subject"]]) + offset
        _intervals(ax, at, mine, tint, label, face)
    ax.axhline(0, color=CEILING, lw=1)
    home = table.set_index("subject")["dataset"].to_dict()
    several = len(set(home.values())) > 1
    ax.set_xticks(range(len(subjects)), [f"{s}\n{home[s]}" if several else s for s in subjects])
    ylabel = (
        "gain in top-1 retrieval\n(percentage points, 95 %)"
        if top1
        else "gain in median\nvoxel correlation r (95 %)"
    )
    ax.set(ylabel=ylabel, xlim=(-0.6, len(subjects) - 0.4))
    return finish(ax, legend="above")


def area_gains(ax: Axes, table: pd.DataFrame) -> Axes:
    """Gain in median r of each area with its interval; one colour per smaller dataset, open dots
    for what the main dataset gains with it.

    Parameters
    ----------
    table : one row per dataset, partner and area: dataset, partner, area, gain, low, high.
    """
    areas = list(dict.fromkeys(table["area"]))
    pairs = list(dict.fromkeys(zip(table["dataset"], table["partner"], strict=True)))
    main = pairs[0][1]
    smaller = list(dict.fromkeys(p if d == main else d for d, p in pairs))
    for (dataset, partner), offset in zip(pairs, _offsets(len(pairs)), strict=True):
        tint = DATASETS[smaller.index(partner if dataset == main else dataset)]
        mine = table[(table["dataset"] == dataset) & (table["partner"] == partner)]
        at = np.array([areas.index(a) for a in mine["area"]]) + offset
        face = "white" if dataset == main else tint
        _intervals(ax, at, mine, tint, f"{dataset}, with {partner}", face)
    ax.axhline(0, color=CEILING, lw=1)
    ax.set_xticks(range(len(areas)), areas, rotation=45, ha="right")
    ax.set(ylabel="gain in median\nvoxel correlation r")
    return finish(ax, legend="above")


def joined(
    ax: Axes, table: pd.DataFrame, column: str, ylabel: str, main: str, scale: float = 1
) -> Axes:
    """A score against the number of subjects of the main dataset that joined: a thin line per
    subject, a thick mean.

    Parameters
    ----------
    table : one row per subject and number: dataset, n_main, subject and the column to draw.
    main : name of the main dataset.
    scale : what the score is multiplied with; 100 for per cent.
    """
    for dataset, tint in zip(dict.fromkeys(table["dataset"]), DATASETS, strict=False):
        wide = (
            table[table["dataset"] == dataset].pivot(
                index="n_main", columns="subject", values=column
            )
            * scale
        )
        ax.plot(wide.index, wide, color=tint, lw=1, alpha=0.4)
        ax.plot(
            wide.index,
            wide.mean(axis=1),
            "o-",
            color=tint,
            lw=3,
            label=f"{dataset}, mean of {wide.shape[1]}",
        )
    numbers = sorted(set(table["n_main"]))
    ax.set_xticks(numbers, [str(n) for n in numbers])
    ax.set(xlabel=f"subjects of {main} that joined", ylabel=ylabel)
    return finish(ax, legend="above")


def _offsets(n: int) -> list[float]:
    return [(i - (n - 1) / 2) * 0.6 / n for i in range(n)]


def _intervals(
    ax: Axes, at: np.ndarray, rows: pd.DataFrame, tint: str, label: str, face: str
) -> None:
    middle, low, high = (rows[c].to_numpy() for c in ("gain", "low", "high"))
    ends = [middle - low, high - middle]
    ax.errorbar(at, middle, ends, fmt="o", ms=5, lw=2, color=tint, label=label, mfc=face)
