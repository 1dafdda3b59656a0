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


def voxel_quartiles(
    ax: Axes,
    voxel_r: Mapping[str, Mapping[str, NDArray]],
    ceilings: Mapping[str, NDArray] | None = None,
) -> Axes:
    """Median and quartiles of the voxel correlation, for each subject and condition.

    Parameters
    ----------
    voxel_r : condition -> subject -> (n_voxels,) correlations.
    ceilings : subject -> (n_voxels,) highest possible correlation; its median is drawn as a line.
    """
    subjects = list(next(iter(voxel_r.values())))
    offsets = np.linspace(-0.3, 0.3, len(voxel_r))
    for offset, (condition, by_subject) in zip(offsets, voxel_r.items(), strict=True):
        low, middle, high = np.array(
            [np.nanpercentile(by_subject[s], [25, 50, 75]) for s in subjects]
        ).T
        at = np.arange(len(subjects)) + offset
        ax.errorbar(
            at,
            middle,
            [middle - low, high - middle],
            fmt="o",
            ms=5,
            lw=2,
            color=colour(condition),
            label=condition,
        )
    drawn = False
    for i, s in enumerate(subjects):
        if ceilings is not None and np.isfinite(ceilings[s]).any():
            ax.hlines(
                np.nanmedian(ceilings[s]),
                i - 0.4,
                i + 0.4,
                color=CEILING,
                lw=1.5,
                ls="--",
                label="_" if drawn else "noise ceiling (median)",
            )
            drawn = True
    ax.set_xticks(range(len(subjects)), subjects)
    ax.set(ylabel="voxel correlation r\n(median and quartiles)", xlim=(-0.6, len(subjects) - 0.4))
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


def areas(ax: Axes, table: pd.DataFrame) -> Axes:
    """Median voxel correlation in each area, one dot per condition; the number of voxels stands
    behind the area.

    Parameters
    ----------
    table : one row per area and condition: area, condition, median_r, n_voxels.
    """
    order = list(dict.fromkeys(table["area"]))
    conditions = list(dict.fromkeys(table["condition"]))
    for offset, condition in zip(
        np.linspace(-0.27, 0.27, len(conditions)), conditions, strict=True
    ):
        mine = table[table["condition"] == condition].set_index("area").reindex(order)
        ax.plot(
            np.arange(len(order)) + offset,
            mine["median_r"],
            "o",
            ms=6,
            color=colour(condition),
            label=condition,
        )
    n_voxels = table.groupby("area")["n_voxels"].max()
    ax.set_xticks(
        range(len(order)), [f"{a} ({n_voxels[a]})" for a in order], rotation=45, ha="right"
    )
    ax.set(xlabel="area (voxels)", ylabel="voxel correlation r\n(median over voxels)")
    return finish(ax, legend="above")


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
