"""Figures of a crowd and its scores."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import zoom

from ubrain.report.figures.style import CEILING, DATASETS, colour, finish, text_only


def with_intervals(
    ax: Axes,
    table: pd.DataFrame,
    by: str = "subject",
    value: str = "median_r",
    ceilings: Mapping[str, NDArray] | None = None,
) -> Axes:
    """A score of each subject or area and condition, or the gain in it, with 95 % intervals.

    Parameters
    ----------
    table : one row per subject or area and condition: condition, low, high, the columns `by` and
        `value`, and where areas have them n_voxels. A gain ("a − b") has the colour of b.
    ceilings : subject -> (n_voxels,) highest possible correlation; its median is drawn as a line.
    """
    if table.empty:
        return text_only(ax, f"nothing to show by {by} in this crowd")
    groups, conditions = (list(dict.fromkeys(table[c])) for c in (by, "condition"))
    offsets = np.linspace(-0.27, 0.27, len(conditions)) if len(conditions) > 1 else [0.0]
    for offset, condition in zip(offsets, conditions, strict=True):
        mine = table[table["condition"] == condition].set_index(by).reindex(groups)
        ax.errorbar(
            np.arange(len(groups)) + offset,
            mine[value],
            [mine[value] - mine["low"], mine["high"] - mine[value]],
            fmt="o",
            ms=5,
            lw=2,
            color=colour(condition),
            label=condition,
        )
    known = {s: c for s, c in (ceilings or {}).items() if np.isfinite(c).any() and s in groups}
    if known:
        at = np.array([groups.index(s) for s in known])
        medians = [np.nanmedian(c) for c in known.values()]
        label = "noise ceiling (median)"
        ax.hlines(medians, at - 0.4, at + 0.4, color=CEILING, lw=1.5, ls="--", label=label)
    if gains := all(" − " in c for c in conditions):
        ax.axhline(0, color=CEILING, lw=1)
    if "n_voxels" in table:
        n_voxels = table.groupby(by)["n_voxels"].max()
        names = [f"{g} ({n_voxels[g]})" for g in groups]
        ax.set_xticks(range(len(groups)), names, rotation=45, ha="right")
    else:
        ax.set_xticks(range(len(groups)), [fill(str(g), 12) for g in groups])
    what = "gain in median\nvoxel correlation r" if gains else "median voxel\ncorrelation r"
    ax.set(ylabel=f"{what} (95 %)", xlim=(-0.6, len(groups) - 0.4))
    return finish(ax, legend="above")


def growth(ax: Axes, table: pd.DataFrame) -> Axes:
    """Median voxel correlation against the number of subjects trained on: a thin line per subject,
    a thick mean.

    Parameters
    ----------
    table : one row per crowd size and subject: n_subjects, subject, median_r.
    """
    wide = table.pivot(index="n_subjects", columns="subject", values="median_r")
    for subject in wide:
        ax.plot(wide.index, wide[subject], color=colour("encoder, crowd"), lw=1, alpha=0.45)
        ax.annotate(
            str(subject),
            (wide.index[-1], wide[subject].iloc[-1]),
            (5, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            color="#555555",
        )
    ax.plot(
        wide.index,
        wide.mean(axis=1),
        "o-",
        color=colour("encoder, crowd"),
        lw=3,
        label="mean of the subjects",
    )
    ax.set_xlim(0.5, wide.index.max() + 0.8)
    ax.set_xticks(wide.index, [str(n) for n in wide.index])
    ax.minorticks_off()
    ax.set(xlabel="subjects in the training crowd", ylabel="median voxel correlation r")
    return finish(ax)


def shares(ax: Axes, table: pd.DataFrame, label: str) -> Axes:
    """Shares of groups, side by side for each column of a table; one row per group, the first at
    the top.
    """
    height = 0.8 / len(table.columns)
    for i, (name, colour_) in enumerate(zip(table.columns, DATASETS, strict=False)):
        at = np.arange(len(table)) + (i - (len(table.columns) - 1) / 2) * height
        ax.barh(at, 100 * table[name], height, color=colour_, label=name)
    ax.set_yticks(range(len(table)), list(table.index))
    ax.invert_yaxis()
    ax.set(xlabel=f"{label} (%)")
    return finish(ax, legend="above")


def images(
    axes: Sequence[Axes], pixels: Sequence[NDArray], titles: Sequence[str]
) -> Sequence[Axes]:
    """Images side by side."""
    for ax, image, title in zip(axes, pixels, titles, strict=True):
        ax.imshow(image)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return axes


def attention(ax: Axes, pixels: NDArray, weights: ArrayLike, title: str) -> Axes:
    """An image, with contour lines of a voxel's spatial attention, the brighter the higher.

    Parameters
    ----------
    weights : (P,), tokens of a square grid in reading order; a class token in front is left out.
    """
    weights = np.asarray(weights, dtype=np.float64)
    side = int(np.sqrt(len(weights)))
    ax.imshow(pixels)
    grid = weights[len(weights) - side**2 :].reshape(side, side)
    low, high = grid.min(), grid.max()
    if high > low:  # else it attends everywhere alike
        fine = zoom(grid, 16, order=1, mode="nearest", grid_mode=True)
        y, x = ((np.arange(len(fine)) + 0.5) * n / len(fine) - 0.5 for n in pixels.shape[:2])
        levels = low + (high - low) * np.array([0.25, 0.5, 0.75])
        lines = ax.contour(x, y, fine, levels, colors=["#E69F00", "#F0E442", "white"])
        lines.set(linewidth=1.5, path_effects=[withStroke(linewidth=3, foreground="black")])
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
    return ax


def measured_against_predicted(
    ax: Axes, measured: ArrayLike, predicted: ArrayLike, title: str
) -> Axes:
    """Responses of one voxel to the test images: one dot per image."""
    ax.plot(predicted, measured, "o", ms=4, alpha=0.6, color=colour("encoder, crowd"))
    ax.set(xlabel="predicted response (z)", ylabel="measured response (z)", title=title)
    return finish(ax, legend="")


def truth(ax: Axes, table: pd.DataFrame) -> Axes:
    """Correlation with the true noiseless responses against that with the measured ones, a dot per
    subject and condition; on the line both would be equal.
    """
    both = table[["r_measured", "r_true"]]
    ends = [min(0.3, both.min().min()) - 0.02, both.max().max() + 0.03]
    ax.plot(ends, ends, "--", color=CEILING, lw=1, label="equal")
    for condition in dict.fromkeys(table["condition"]):
        mine = table[table["condition"] == condition]
        ax.plot(
            mine["r_measured"], mine["r_true"], "o", ms=7, color=colour(condition), label=condition
        )
    ax.set(
        xlabel="median r with the measured responses",
        ylabel="median r with the\nnoiseless responses (truth)",
        xlim=ends,
        ylim=ends,
        aspect="equal",
    )
    finish(ax, legend="")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return ax
