"""The project on one page: the encoder as a drawing, and four small results read from the numbers
of a run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import NDArray

from ubrain.report.figures.style import CEILING, CONDITIONS, colour, dashes, finish, text_only

Documents = Mapping[
    str, Mapping[str, Any]
]  # notebook -> its results, as `ubrain.report.results.read_results` returns them
SHARED, OWN, INK = "#0072B2", "#D55E00", "#333333"
GRID, LEVELS, CHANNELS = 6, 3, 7  # of the drawing, not of the encoder
STEPS = (  # x, name, what it does
    (2.5, "image", ""),
    (9.8, "levels of tokens", "a frozen backbone, shallow to deep"),
    (18.3, "spatial attention", "where? for each level\na weighted mean of its tokens"),
    (26.6, "functional attention", "what? a weighted sum\nof channels and levels"),
    (31.8, "response", "of one voxel"),
)


@dataclass(frozen=True)
class Panel:
    """Which recorded numbers a panel shows.

    Attributes
    ----------
    name, condition : regular expressions that a record's name and condition have to match from
        start to end. If they have a group `x` (a number), the panel is a curve over it; else each
        `line` is a place on the axis. A group `line` names the curve or the place; without it, that
        is the condition.
    share : the numbers are shown in percent.
    chance : a dashed line at what guessing gives, which the axis then includes.
    width : against the other panels.
    """

    title: str
    notebook: str
    name: str
    condition: str = "(?P<line>.*)"
    ylabel: str = ""
    xlabel: str = ""
    share: bool = False
    log: bool = False
    chance: float | None = None
    width: float = 1.0


PANELS = (
    Panel(
        "How well are responses\nto new images predicted?",
        "01_crowd_gains",
        "median_r",
        f"(?P<line>{'|'.join(CONDITIONS)})",
        "median voxel correlation r",
        width=1.3,
    ),
    Panel(
        "A new subject: how many\nimages does it take?",
        "03_transfer",
        "transfer_median_r",
        r"a new subject, (?P<line>.+), (?P<x>\d+) images",
        "median voxel correlation r",
        "images of the new subject",
        log=True,
        width=1.1,
    ),
    Panel(
        "Which of n images\nwas seen?",
        "04_retrieval",
        r"top1 of (?P<x>\d+) images",
        "(?P<line>.+)",
        "images found first (%)",
        "n images to choose from",
        share=True,
        log=True,
    ),
    Panel(
        "Do voxels cluster\nby true function?",
        "05_clusters",
        "ari with (?P<line>all types|category types)",
        "k-means",
        "agreement (ARI; 1: the same)",
        chance=0,
        width=0.8,
    ),
)


def overview(
    documents: Documents, image: NDArray[np.uint8], panels: Sequence[Panel] = PANELS
) -> Figure:
    """The encoder from image to voxel, and a row of results.

    Parameters
    ----------
    documents : results of the notebooks of one run; a panel whose notebook is not among them says
        so.
    image : (height, width, 3), for the drawing.
    """
    figure = plt.figure(figsize=(12, 7.6), layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1), hspace=0.03)
    draw_encoder(rows[0].add_subplot(), image)
    axes = rows[1].subplots(1, len(panels), width_ratios=[panel.width for panel in panels])
    for ax, panel in zip(np.ravel(axes), panels, strict=True):
        draw_panel(ax, panel, documents)
    return figure


def draw_panel(ax: Axes, panel: Panel, documents: Documents) -> Axes:
    """The numbers of a panel: the median over subjects as a dot or a curve, the subjects behind
    it.
    """
    found = panel_numbers(panel, documents)
    if not found:
        text_only(ax, f"{panel.notebook}:\nnot run")
    elif all(x is None for _, x in found):
        _dots(ax, panel, {line: values for (line, _), values in found.items()})
    else:
        _curves(ax, panel, found)
    ax.set_title(panel.title, fontsize=12, loc="left", fontweight="bold")
    return ax


def panel_numbers(
    panel: Panel, documents: Documents
) -> dict[tuple[str, float | None], list[float]]:
    """(line, x) -> the value of each subject, or the one over all subjects if there are no others;
    x is None on no axis.
    """
    by_key: dict[tuple[str, float | None], dict[str, float]] = {}
    for record in documents.get(panel.notebook, {"results": []})["results"]:
        name, condition = (
            re.fullmatch(p, record[k])
            for p, k in ((panel.name, "name"), (panel.condition, "condition"))
        )
        if name and condition and record["value"] is not None:
            groups = {**name.groupdict(), **condition.groupdict()}
            x = float(groups["x"]) if groups.get("x") else None
            line = groups.get("line") or record["condition"] or record["name"]
            by_key.setdefault((line, x), {})[record["subject"]] = record["value"] * (
                100 if panel.share else 1
            )
    return {
        key: [v for s, v in values.items() if s != "all"] or list(values.values())
        for key, values in by_key.items()
    }


def _dots(ax: Axes, panel: Panel, found: Mapping[str, Sequence[float]]) -> None:
    for i, (line, values) in enumerate(found.items()):
        tint = colour(line if line in CONDITIONS else "encoder, crowd")
        ax.plot(np.full(len(values), i), values, "o", ms=5, alpha=0.4, mew=0, color=tint)
        ax.plot([i - 0.3, i + 0.3], [np.median(values)] * 2, "-", lw=3, color=tint)
    ax.set_xticks(range(len(found)), [line.replace(" ", "\n") for line in found], fontsize=9)
    ax.set(ylabel=panel.ylabel, xlim=(-0.6, len(found) - 0.4))
    if panel.chance is not None:
        ax.axhline(panel.chance, color=CEILING, lw=1.2, ls="--")
        where: dict[str, Any] = {"xy": (1, panel.chance), "xycoords": ("axes fraction", "data")}
        offset: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
        ax.annotate("chance", **where, **offset, fontsize=10)
    finish(ax, legend="")


def _curves(
    ax: Axes, panel: Panel, found: Mapping[tuple[str, float | None], Sequence[float]]
) -> None:
    for line in dict.fromkeys(line for line, _ in found):
        points = sorted(
            (x, float(np.median(values)))
            for (name, x), values in found.items()
            if name == line and x is not None
        )
        ax.plot(
            *zip(*points, strict=True),
            marker="o",
            ms=4,
            lw=2,
            color=colour(line),
            label=line,
            **dashes(line),
        )
    if panel.log:
        ticks = sorted({x for _, x in found if x is not None})
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.minorticks_off()
    ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    low, high = ax.get_ylim()
    ax.set_yticks([y for y in ax.get_yticks() if low <= y <= high])
    ax.set_ylim(
        low - 0.085 * (2 + len(ax.lines)) * (high - low), high
    )  # room for the legend below the curves
    finish(ax)
    ax.legend(frameon=False, fontsize=9.5, loc="lower right", borderaxespad=0.1)


def draw_encoder(ax: Axes, image: NDArray[np.uint8]) -> Axes:
    """Image, levels of tokens, spatial attention, functional attention, response: a drawing, no
    model computes it.
    """
    ax.set(xlim=(0, 34), ylim=(-0.2, 9.6), aspect="equal")
    ax.set_axis_off()
    ax.imshow(image, extent=(0.5, 4.5, 3, 7))
    _arrow(ax, (4.7, 5), (7.6, 5), SHARED)
    heat = 1 - _heat()[..., None] * (1 - np.array(to_rgb(OWN)))
    for level, (tokens, right, y) in enumerate(
        zip(_tokens(image), (0, 0.8, 1.6), (5.3, 3.8, 2.3), strict=True)
    ):
        _grid(ax, 7.8 + right, y, tokens, level)
        _grid(ax, 16.3 + right, y, heat, level)
        _bars(ax, 24.8, y + 0.5, level)
        _arrow(ax, (10.4 + right, y + 1.7), (16.2 + right, y + 1.7), SHARED, 2.9 + level)
        _arrow(ax, (18.9 + right, y + 1.7), (24.5, y + 1.1), SHARED)
        _arrow(ax, (28.6, y + 1.1), (30.8, 5.25 - 0.25 * level), SHARED)
    ax.text(31.8, 5, "$\\hat y$", fontsize=26, ha="center", va="center", color=INK)
    _embedding(ax, 17, 0.2)
    _arrow(ax, (19.2, 0.95), (19.2, 2.2), OWN)
    _arrow(ax, (22, 0.95), (25.8, 2.6), OWN)
    ax.text(
        24,
        0.55,
        "voxel embedding: the voxel's own",
        fontsize=10,
        color=OWN,
        va="center",
        fontweight="bold",
    )
    ax.text(
        0.5,
        0.55,
        "shared by all voxels of all subjects",
        fontsize=10,
        color=SHARED,
        va="center",
        fontweight="bold",
    )
    for x, name, what in STEPS:
        ax.text(x, 9.5, name, ha="center", va="top", fontsize=11, fontweight="bold", color=INK)
        ax.text(x, 8.85, what, ha="center", va="top", fontsize=9, color=INK, linespacing=1.25)
    return ax


def _tokens(image: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """The image in few squares, the deeper the less like it."""
    side = min(image.shape[:2]) // GRID
    means = (
        image[: side * GRID, : side * GRID].reshape(GRID, side, GRID, side, 3).mean((1, 3)) / 255
    )
    strange = np.random.default_rng(0).dirichlet(np.ones(3), (GRID, GRID))
    return [(1 - w) * means + w * strange for w in np.linspace(0, 0.75, LEVELS)]


def _heat() -> NDArray[np.float64]:
    """Attention to one place, (GRID, GRID), at most 1."""
    row, column = np.mgrid[:GRID, :GRID]
    return np.exp(-((row - 2.2) ** 2 + (column - 3.4) ** 2) / 2.5)


def _grid(ax: Axes, x: float, y: float, cells: NDArray[np.float64], level: int) -> None:
    ax.imshow(cells, extent=(x, x + 2.4, y, y + 2.4), zorder=3 + level, interpolation="nearest")
    ax.add_patch(Rectangle((x, y), 2.4, 2.4, fill=False, edgecolor=INK, lw=0.8, zorder=3.5 + level))


def _bars(ax: Axes, x: float, y: float, level: int) -> None:
    """Channels of one level: their values in blue, the voxel's weights on them as orange
    outlines.
    """
    rng = np.random.default_rng(level + 1)
    values, weights = rng.uniform(0.2, 1, CHANNELS), rng.uniform(0.1, 1, CHANNELS) ** 2
    for i, (value, weight) in enumerate(zip(values, weights, strict=True)):
        ax.add_patch(
            Rectangle((x + 0.5 * i, y), 0.3, 1.3 * value, color=SHARED, alpha=0.35, lw=0, zorder=3)
        )
        ax.add_patch(
            Rectangle(
                (x + 0.5 * i, y), 0.3, 1.3 * value * weight, color=OWN, alpha=0.9, lw=0, zorder=4
            )
        )
    ax.plot([x - 0.1, x + 0.5 * CHANNELS], [y, y], color=CEILING, lw=0.8, zorder=4)


def _embedding(ax: Axes, x: float, y: float) -> None:
    shades = np.random.default_rng(4).uniform(0.1, 1, 12)
    for i, shade in enumerate(shades):
        ax.add_patch(
            Rectangle(
                (x + 0.55 * i, y),
                0.55,
                0.7,
                facecolor=OWN,
                alpha=shade,
                edgecolor="white",
                zorder=3,
            )
        )


def _arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], ink: str, zorder: float = 1
) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            lw=1.4,
            color=ink,
            zorder=zorder,
            shrinkA=0,
        )
    )
