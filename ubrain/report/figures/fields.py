"""Figures of receptive fields and of the levels that voxels read."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ubrain.report.figures.style import CEILING, colour, finish, text_only

CONTROLS = {"untrained embeddings": "#CC79A7", "shuffled voxels": "#BBBBBB"}
RANGES = {"untrained embeddings": "95 % interval", "shuffled voxels": "95 % of shuffles"}


def attention_on_images(
    pixels: Sequence[NDArray],
    weights: NDArray,
    voxels: Sequence[str],
    maps: NDArray,
    view: float,
    unit: str,
    known: Sequence[tuple[float, float, float]] | None = None,
) -> Figure:
    """Spatial attention of some voxels (columns) on some images (rows), as contour lines at a
    quarter, half and three quarters of its maximum; in the last row the mean over many images, with
    the known receptive field as a circle of 1 sigma.

    Parameters
    ----------
    weights : (n_voxels, n_images, P); a class token in front is left out.
    voxels : their names.
    maps : (n_voxels, rows, columns), means over images, rows from the top; each has its own colour
        scale, from 0 to its maximum.
    view : side of the images in `unit`.
    known : x, y, sigma of each voxel.
    """
    n_voxels, n_images = weights.shape[:2]
    size = (1.75 * n_voxels + 0.7, 1.75 * (n_images + 1) + 0.6)
    figure, axes = plt.subplots(n_images + 1, n_voxels, figsize=size, squeeze=False)
    side, half = int(np.sqrt(weights.shape[-1])), view / 2
    middles = (np.arange(side) + 0.5) * view / side - half
    for column, voxel in enumerate(voxels):
        for row, image in enumerate(pixels):
            ax = axes[row, column]
            grid = weights[column, row, -(side**2) :].reshape(side, side)
            ax.imshow(image, extent=(-half, half, -half, half))
            at = grid.max() * np.array([0.25, 0.5, 0.75])
            if len(at := at[at > grid.min()]):  # flat attention has no lines
                lines = ax.contour(middles, -middles, grid, at, colors="#F0E442", linewidths=1.3)
                lines.set_path_effects([withStroke(linewidth=2.4, foreground="black")])
            ax.set_axis_off()
        axes[0, column].set_title(voxel, fontsize=11)
        ax = axes[-1, column]
        ax.imshow(maps[column], cmap="inferno", extent=(-half, half, -half, half), vmin=0)
        ax.plot(0, 0, "+", color="white", ms=5, alpha=0.7)
        if known is not None and np.isfinite(known[column]).all():
            x, y, sigma = known[column]
            ax.add_patch(Circle((x, y), sigma, fill=False, color="#56B4E9", lw=1.8))
        ends = {"xticks": (-half, 0, half), "yticks": (-half, 0, half)}
        ax.set(**ends, xlim=(-half, half), ylim=(-half, half), xlabel=f"x ({unit})")
        ax.tick_params(labelsize=8, labelleft=column == 0)
    axes[-1, 0].set_ylabel(f"mean over images\ny ({unit})", fontsize=9)
    return figure


def field_agreement(
    axes: Sequence[Axes], found: pd.DataFrame, controls: pd.DataFrame
) -> Sequence[Axes]:
    """Correlation of estimated with known x, y and size per area: a dot with its interval, a bar in
    the back for each control.

    Parameters
    ----------
    axes : one for each of x, y and sigma, side by side.
    found, controls : area, quantity, r, low, high; and condition in `controls`, whose bars mean
        different things: the range of most shuffles, or a 95 % interval.
    """
    order = list(dict.fromkeys(found["area"]))
    look: dict[str, Any]
    at = {area: i for i, area in enumerate(order)}
    titles = {"x": "horizontal position", "y": "vertical position", "sigma": "size"}
    for ax, (q, title) in zip(axes, titles.items(), strict=True):
        bars = controls[(controls["quantity"] == q) & controls["area"].isin(at)]
        for shift, (name, mine) in zip((-0.2, 0.2), bars.groupby("condition"), strict=False):
            width, label = mine["high"] - mine["low"], f"{name} ({RANGES[str(name)]})"
            look = {"color": CONTROLS[str(name)], "alpha": 0.5, "label": label}
            ax.barh(mine["area"].map(at) + shift, width, 0.4, mine["low"], **look)
        mine = found[found["quantity"] == q]
        error = [mine["r"] - mine["low"], mine["high"] - mine["r"]]
        look = {"fmt": "o", "ms": 5, "color": colour("encoder, crowd"), "label": "encoder, crowd"}
        ax.errorbar(mine["r"], mine["area"].map(at), xerr=error, **look)
        ax.axvline(0, color=CEILING, lw=0.8)
        ax.set_yticks(range(len(order)), order)
        ax.set(xlabel="r with the known one", title=title, ylim=(len(order) - 0.4, -0.6))
        ax.set_axisbelow(True)
        finish(ax, legend="")
    beside: dict[str, Any] = {
        "ncols": 3,
        "loc": "outside lower left",
        "frameon": False,
        "fontsize": 10,
    }
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), **beside)
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
