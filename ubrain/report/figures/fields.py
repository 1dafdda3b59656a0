"""Figures of receptive fields and of the levels that voxels read."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from ubrain.report.figures.crowd import attention
from ubrain.report.figures.style import CEILING, colour, finish, text_only

CONTROLS = {"untrained embeddings": "#CC79A7", "shuffled voxels": "#BBBBBB"}
RANGES = {"untrained embeddings": "95 % interval", "shuffled voxels": "95 % of shuffles"}


def attention_on_images(
    pixels: Sequence[NDArray], weights: NDArray, voxels: Sequence[str], images: Sequence[str]
) -> Figure:
    """Spatial attention of some voxels (columns) on some images (rows).

    Parameters
    ----------
    weights : (n_voxels, n_images, P)
    voxels, images : their names.
    """
    n_voxels, n_images = weights.shape[:2]
    figure, axes = plt.subplots(
        n_images, n_voxels, figsize=(1.9 * n_voxels + 0.6, 1.9 * n_images + 0.5), squeeze=False
    )
    for row, image in enumerate(images):
        for column, name in enumerate(voxels):
            attention(
                axes[row, column], pixels[row], weights[column, row], name if row == 0 else ""
            )
        axes[row, 0].text(
            -0.06,
            0.5,
            image,
            transform=axes[row, 0].transAxes,
            ha="right",
            va="center",
            rotation=90,
            fontsize=9,
        )
    return figure


def receptive_fields(
    maps: NDArray,
    voxels: Sequence[str],
    names: Sequence[str],
    view: float,
    unit: str,
    known: Sequence[tuple[float, float, float]] | None = None,
) -> Figure:
    """Receptive fields of some voxels (columns) at each level (rows), with the known one as a
    circle of 1 sigma.

    Each map has its own colour scale, from 0 to its maximum.

    Parameters
    ----------
    maps : (n_voxels, n_fields, rows, columns), rows from the top.
    voxels, names : of the voxels and of the fields.
    view : side of the images in `unit`.
    known : x, y, sigma of each voxel.
    """
    n_voxels, n_fields = maps.shape[:2]
    figure, axes = plt.subplots(
        n_fields,
        n_voxels,
        figsize=(1.5 * n_voxels + 1, 1.6 * n_fields + 0.5),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    half = view / 2
    for column, voxel in enumerate(voxels):
        for row, name in enumerate(names):
            ax = axes[row, column]
            ax.imshow(maps[column, row], cmap="inferno", extent=(-half, half, -half, half), vmin=0)
            ax.plot(0, 0, "+", color="white", ms=5, alpha=0.7)
            if known is not None and np.isfinite(known[column]).all():
                x, y, sigma = known[column]
                ax.add_patch(Circle((x, y), sigma, fill=False, color="#56B4E9", lw=1.6))
            ax.set(
                xticks=(-half, 0, half),
                yticks=(-half, 0, half),
                xlim=(-half, half),
                ylim=(-half, half),
            )
            ax.tick_params(labelsize=7)
            if row == 0:
                ax.set_title(voxel, fontsize=9)
            if column == 0:
                ax.set_ylabel(f"{name}\ny ({unit})", fontsize=8)
        axes[-1, column].set_xlabel(f"x ({unit})", fontsize=8)
    return figure


def field_positions(axes: NDArray, table: pd.DataFrame, view: float, unit: str) -> NDArray:
    """Estimated against known centre: one dot per voxel, a column of axes per area, x above y.

    Both in degrees: all axes have the same limits, on the diagonal they agree, dotted lines are the
    edges of the image.

    Parameters
    ----------
    axes : (2, n_areas)
    table : area, x, y, true_x, true_y, r_x, r_y; areas in the order of their columns.
    view : side of the images in `unit`.
    """
    limit = 1.05 * max(table[["x", "y", "true_x", "true_y"]].abs().max().max(), view / 2)
    for column, (area, mine) in enumerate(table.groupby("area", sort=False)):
        for ax, q in zip(axes[:, column], ("x", "y"), strict=True):
            if unit == "degrees":
                ax.axline((0, 0), slope=1, color=CEILING, lw=1, ls="--")
                for edge in (-view / 2, view / 2):
                    ax.axvline(edge, color=CEILING, lw=0.8, ls=":")
                    ax.axhline(edge, color=CEILING, lw=0.8, ls=":")
                ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
                ax.set_yticks([t for t in ax.get_xticks() if abs(t) <= limit])
            ax.plot(
                mine[f"true_{q}"],
                mine[q],
                "o",
                ms=2.5,
                alpha=0.35,
                color=colour("encoder, crowd"),
                mew=0,
            )
            ax.set_title(f"{area}, {q}: r = {mine[f'r_{q}'].iloc[0]:.2f}", fontsize=10)
            ax.set(xlabel=f"known {q} (degrees)", ylabel=f"estimated {q}\n({unit})")
            finish(ax, legend="")
    return axes


def field_agreement(
    axes: Sequence[Axes], found: pd.DataFrame, controls: pd.DataFrame
) -> Sequence[Axes]:
    """Correlation of estimated with known x, y and size per area: a dot per field with its
    interval, controls in the back.

    Parameters
    ----------
    axes : one for each of x, y and sigma.
    found, controls : area, field, quantity, r, low, high; and condition in `controls`, whose bars
        mean different things: the range of most shuffles, or a 95 % interval.
    """
    order, names = list(dict.fromkeys(found["area"])), list(dict.fromkeys(found["field"]))
    shades = [*mpl.colormaps["viridis_r"](np.linspace(0.1, 0.75, len(names) - 1)), CEILING]
    titles = {"x": "horizontal position", "y": "vertical position", "sigma": "size"}
    for ax, (q, title) in zip(axes, titles.items(), strict=True):
        at = {area: i for i, area in enumerate(order)}
        for name, mine in controls[controls["quantity"] == q].groupby("condition", sort=False):
            mine = mine[mine["area"].isin(at)]
            ax.bar(
                mine["area"].map(at),
                mine["high"] - mine["low"],
                0.8,
                mine["low"],
                color=CONTROLS[str(name)],
                alpha=0.45,
                label=f"{name} ({RANGES[str(name)]})",
            )
        for offset, shade, name in zip(
            np.linspace(-0.3, 0.3, len(names)), shades, names, strict=True
        ):
            mine = found[(found["quantity"] == q) & (found["field"] == name)]
            size = 6 if name == names[-1] else 4
            ax.errorbar(
                mine["area"].map(at) + offset,
                mine["r"],
                [mine["r"] - mine["low"], mine["high"] - mine["r"]],
                fmt="o",
                ms=size,
                lw=1.2,
                color=shade,
                label=name,
            )
        ax.axhline(0, color=CEILING, lw=0.8)
        ax.set_xticks(range(len(order)), order, rotation=45, ha="right")
        ax.set(ylabel=f"{title}:\nr with the known one", ylim=(-1, 1.02))
        finish(ax, legend="above" if ax is axes[0] else "")
    return axes


def level_use(axes: Sequence[Axes], table: pd.DataFrame) -> Sequence[Axes]:
    """How much the voxels of each area use each level (left), and the mean depth that they read
    (right).

    Parameters
    ----------
    axes : two.
    table : one row per condition and area: condition, area, depth, low, high, and "level 1", ...;
        the first condition is drawn on the left.
    """
    conditions = list(dict.fromkeys(table["condition"]))
    first = table[table["condition"] == conditions[0]]
    levels = [c for c in table if _is_level(c)]
    order, shades = (
        list(first["area"]),
        mpl.colormaps["viridis_r"](np.linspace(0.1, 0.9, len(levels))),
    )
    left = np.zeros(len(order))
    for level, shade in zip(levels, shades, strict=True):
        axes[0].barh(range(len(order)), first[level], left=left, color=shade, label=level)
        left += first[level].to_numpy()
    axes[0].set(xlabel="share of the predicted response", xlim=(0, 1))
    for i, condition in enumerate(conditions):
        mine = table[table["condition"] == condition].set_index("area").reindex(order)
        tone = colour(condition) if i == 0 else CONTROLS.get(condition, CEILING)
        axes[1].errorbar(
            mine["depth"],
            np.arange(len(order)) + 0.12 * i,
            fmt="o",
            ms=5,
            color=tone,
            label=condition,
            xerr=[mine["depth"] - mine["low"], mine["high"] - mine["depth"]],
        )
    axes[1].set(xlabel="mean level read (1: first, most local)", xlim=(0.9, len(levels) + 0.1))
    axes[1].set_xticks(range(1, len(levels) + 1))
    for ax in axes:
        ax.set_axisbelow(True)
        ax.set_yticks(range(len(order)), order)
        ax.set_ylim(len(order) - 0.4, -0.6)
        finish(ax, legend="above")
    return axes


def unknown_fields(axes: Sequence[Axes] | NDArray) -> None:
    """Axes that say that a file knows no receptive fields."""
    first, *rest = np.ravel(np.asarray(axes, dtype=object))
    text_only(first, "this crowd file knows no receptive fields")
    for ax in rest:
        ax.set_axis_off()


def _is_level(column: str) -> bool:
    return column.startswith("level ") and column[6:].isdigit()
