"""Figures of a crowd and its scores."""

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from nilearn import datasets, plotting, surface
from numpy.typing import ArrayLike, NDArray

from ubrain.report.figures.style import CEILING, colour, finish, text_only


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
        ax.set_xticks(range(len(groups)), groups)
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
    for i, (name, colour_) in enumerate(
        zip(table.columns, ("#999999", "#0072B2", "#D55E00"), strict=False)
    ):
        at = np.arange(len(table)) + (i - (len(table.columns) - 1) / 2) * height
        ax.barh(at, 100 * table[name], height, color=colour_, label=name)
    ax.set_yticks(range(len(table)), list(table.index))
    ax.invert_yaxis()
    ax.set(xlabel=f"{label} (%)")
    return finish(ax, legend="above")


def cortex(values: ArrayLike, voxels: pd.DataFrame, label: str, limit: float) -> Figure:
    """A number per voxel on the inflated fsaverage5 surface: outer side, inner side and from below,
    left and right.

    Parameters
    ----------
    values : (n_voxels,); voxels at the same vertex are averaged, and vertices next to a voxel take
        its colour.
    voxels : hemisphere and vertex of each voxel; if empty, the figure says so.
    limit : the colour scale ends at ± this.

    Returns
    -------
    A figure of its own, since the axes are 3-D.
    """
    figure = plt.figure(figsize=(11, 6))
    if not len(voxels):
        text_only(
            figure.add_subplot(), "this crowd file does not say where on fsaverage5 the voxels are"
        )
        return figure
    mesh = datasets.fetch_surf_fsaverage("fsaverage5")
    frame = pd.DataFrame(
        {"side": voxels["hemisphere"], "vertex": voxels["vertex"], "value": np.asarray(values)}
    )
    axes = []
    for number, (side, view) in enumerate(
        product(("left", "right"), ("lateral", "medial", "ventral"))
    ):
        mine = frame[frame["side"] == side[0].upper()].groupby("vertex")["value"].mean()
        full = np.full(len(surface.load_surf_data(mesh[f"sulc_{side}"])), np.nan)
        inside = mine[(mine.index >= 0) & (mine.index < len(full))]
        full[inside.index.to_numpy(dtype=int)] = inside.to_numpy()
        full = _spread(full, surface.load_surf_mesh(mesh[f"infl_{side}"]).faces, rings=2)
        axes.append(figure.add_subplot(2, 3, number + 1, projection="3d"))
        plotting.plot_surf_stat_map(
            mesh[f"infl_{side}"],
            full,
            hemi=side,
            view=view,
            bg_map=mesh[f"sulc_{side}"],
            axes=axes[-1],
            engine="matplotlib",
            cmap="RdBu_r",
            vmax=limit,
            vmin=-limit,
            threshold=1e-6,
            bg_on_data=False,
            colorbar=False,
        )
        axes[-1].set_title(f"{side}, {view}", fontsize=10, y=0.95)
    scale = ScalarMappable(Normalize(-limit, limit), "RdBu_r")
    figure.colorbar(scale, ax=axes, shrink=0.6, pad=0.02, label=label)
    return figure


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
    """Spatial attention of a voxel over the image it attends to.

    Parameters
    ----------
    weights : (P,), tokens of a square grid in reading order; a class token in front is left out.
    """
    weights = np.asarray(weights)
    side = int(np.sqrt(len(weights)))
    ax.imshow(pixels)
    grid = weights[len(weights) - side**2 :].reshape(side, side)
    height, width = pixels.shape[:2]
    ax.imshow(
        grid, cmap="inferno", alpha=0.6, extent=(0, width, height, 0), interpolation="bicubic"
    )
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
    """Correlation with the true noiseless responses against that with the measured ones, one line
    per condition.
    """
    for condition in dict.fromkeys(table["condition"]):
        mine = table[table["condition"] == condition]
        ax.plot(
            mine["r_measured"], mine["r_true"], "o", ms=7, color=colour(condition), label=condition
        )
    ax.set(
        xlabel="median r with the measured responses",
        ylabel="median r with the\nnoiseless responses (truth)",
    )
    return finish(ax)


def _spread(values: NDArray, faces: NDArray, rings: int) -> NDArray:
    """Give vertices without a value the mean of the neighbours that have one, `rings` times."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    for _ in range(rings):
        known = edges[np.isfinite(values[edges[:, 1]])]
        total = np.bincount(known[:, 0], values[known[:, 1]], len(values))
        count = np.bincount(known[:, 0], minlength=len(values))
        fill = np.isnan(values) & (count > 0)
        values = np.where(fill, total / np.maximum(count, 1), values)
    return values
