"""Figures of retrieval: who is found, among how many, with which voxels; and responses side by
side on a flat cortex.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ubrain.report.figures.style import CEILING, CONDITIONS, colour, finish, text_only
from ubrain.report.figures.surfaces import flat_cortex

FOUND = "#009E73"  # frame of the image that was shown


def retrieval(ax: Axes, table: pd.DataFrame, k: int) -> Axes:
    """Share of test images found among the k best, for each subject and condition, with chance and
    gallery size.

    Parameters
    ----------
    table : one row per condition and subject: condition, subject, gallery, top{k}, top{k}_low,
        top{k}_high.
    """
    subjects = list(dict.fromkeys(table["subject"]))
    conditions = list(dict.fromkeys(table["condition"]))
    width = 0.8 / len(conditions)
    for i, condition in enumerate(conditions):
        mine = table[table["condition"] == condition].set_index("subject").loc[subjects]
        at = np.arange(len(subjects)) + (i - (len(conditions) - 1) / 2) * width
        ends = [mine[f"top{k}"] - mine[f"top{k}_low"], mine[f"top{k}_high"] - mine[f"top{k}"]]
        height, error = 100 * mine[f"top{k}"], 100 * np.array(ends)
        look = {"color": colour(condition), "label": condition, "error_kw": {"lw": 1}}
        ax.bar(at, height, width, yerr=error, **look)
    galleries = [int(table[table["subject"] == s]["gallery"].iloc[0]) for s in subjects]
    for i, gallery in enumerate(galleries):
        ax.hlines(
            100 * min(k / gallery, 1),
            i - 0.45,
            i + 0.45,
            color=CEILING,
            lw=1.5,
            ls=":",
            label="_" if i else "chance",
        )
    names = [f"{s}\nof {n}" for s, n in zip(subjects, galleries, strict=True)]
    if len(set(galleries)) == 1:
        names = subjects
        ax.set_xlabel(f"subject (each gallery: {galleries[0]} images)")
    ax.set_xticks(range(len(subjects)), names)
    ax.set(ylabel=f"top-{k} retrieval (%)", ylim=(0, 100))
    return finish(ax, legend="above")


def hits_against(ax: Axes, table: pd.DataFrame, by: str, k: int, xlabel: str) -> Axes:
    """Share of images found among the k best against a number of images or voxels, mean of the
    subjects, with chance.

    Parameters
    ----------
    table : one row per line, number and subject ("all" is their mean): line, subject, the column
        `by`, top{k}, top{k}_low, top{k}_high, gallery. Lines named as conditions have their
        colours; others are choices within the crowd's encoder, the second of them dashed.
    by : column of the x axis, on a logarithmic scale.
    """
    lines = list(dict.fromkeys(table["line"]))
    for number, line in enumerate(lines):
        known = line in CONDITIONS
        tint = colour(line if known else "encoder, crowd")
        style = "o-" if known or not number else "o--"
        for subject, mine in table[table["line"] == line].groupby("subject", sort=False):
            if subject != "all":
                ax.plot(mine[by], 100 * mine[f"top{k}"], lw=0.8, alpha=0.3, color=tint)
                continue
            ax.plot(
                mine[by],
                100 * mine[f"top{k}"],
                style,
                lw=2.5,
                mfc="white" if style == "o--" else tint,
                color=tint,
                label=f"{line}, mean of subjects",
            )
            ax.fill_between(
                mine[by],
                100 * mine[f"top{k}_low"],
                100 * mine[f"top{k}_high"],
                color=tint,
                alpha=0.2,
                lw=0,
            )
    numbers = table[table["subject"] == "all"].drop_duplicates(by)
    ax.plot(
        numbers[by],
        100 * np.minimum(k / numbers["gallery"], 1),
        ":",
        lw=1.5,
        color=CEILING,
        label="chance",
    )
    ax.set_xscale("log")
    ax.set_xticks(numbers[by], [str(n) for n in numbers[by]])
    ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=f"top-{k} retrieval (%)", ylim=(0, 102))
    return finish(ax)


def hits_by_area(ax: Axes, table: pd.DataFrame, k: int) -> Axes:
    """Share of images found among the k best with the voxels of one area only, mean of the
    subjects, with intervals.

    Parameters
    ----------
    table : one row per area and choice of voxels: area, voxels (what was chosen), n_voxels,
        gallery, top{k} and its interval.
    """
    order = list(dict.fromkeys(table["area"]))
    choices = list(dict.fromkeys(table["voxels"]))
    for choice, offset, face in zip(choices, (-0.12, 0.12), (FOUND, "white"), strict=False):
        mine = table[table["voxels"] == choice].set_index("area").reindex(order)
        _dots(ax, np.arange(len(order)) + offset, mine, k, colour("encoder, crowd"), choice, face)
    _chance(ax, table, k)
    n = table[table["voxels"] == choices[0]].set_index("area")["n_voxels"]
    ax.set_xticks(range(len(order)), [f"{a} ({n[a]:.0f})" for a in order], rotation=45, ha="right")
    ax.set(ylabel=f"top-{k} retrieval (%)", xlabel="area (mean number of voxels)")
    ax.set_ylim(bottom=0)
    return finish(ax, legend="above")


def controls(ax: Axes, table: pd.DataFrame, k: int) -> Axes:
    """Share of images found among the k best, for the prediction and for each control, mean of the
    subjects.

    Parameters
    ----------
    table : one row per control and subject, the prediction itself first: control, subject, gallery,
        top{k}, its interval.
    """
    names = list(dict.fromkeys(table["control"]))
    for at, name in enumerate(names):
        mine = table[table["control"] == name]
        tint = CEILING if at else colour("encoder, crowd")
        each = mine[mine["subject"] != "all"]
        ax.plot(
            np.full(len(each), at) + 0.22, 100 * each[f"top{k}"], "o", ms=4, alpha=0.4, color=tint
        )
        _dots(ax, np.array([at]), mine[mine["subject"] == "all"], k, tint)
    _chance(ax, table, k)
    ax.set_xticks(range(len(names)), [n.replace(", ", ",\n") for n in names])
    ax.set(ylabel=f"top-{k} retrieval (%)", xlim=(-0.5, len(names) - 0.4))
    ax.set_ylim(bottom=-2)
    return finish(ax)


def retrieved(
    queries: Sequence[NDArray],
    found: Sequence[Sequence[NDArray]],
    titles: Sequence[str],
    correct: Sequence[Sequence[bool]],
    labels: Sequence[Sequence[str]],
) -> Figure:
    """The image that was shown and the images found by its response, best first, one row per query.

    Parameters
    ----------
    queries : pixels of the shown image of each row.
    found, correct, labels : of each row, pixels of the images found, whether it is the shown one
        (framed), and its title.
    titles : what to write above the shown image.
    """
    if not queries:
        figure, ax = plt.subplots(figsize=(6, 1))
        text_only(ax, "no such query in this crowd")
        return figure
    n = len(found[0])
    figure, axes = plt.subplots(
        len(queries), n + 1, figsize=(1.3 * (n + 1), 1.7 * len(queries)), squeeze=False
    )
    for row, shown, title, images, right, texts in zip(
        axes, queries, titles, found, correct, labels, strict=True
    ):
        for ax, pixels, text in zip(row, (shown, *images), (title, *texts), strict=True):
            ax.imshow(pixels)
            ax.set_title(text, fontsize=8)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, hit in zip(row[1:], right, strict=True):
            if hit:
                ax.spines[:].set(visible=True, color=FOUND, linewidth=4)
    return figure


def responses_on_cortex(
    pixels: Sequence[NDArray],
    titles: Sequence[str],
    maps: Mapping[str, NDArray],
    voxels: pd.DataFrame,
) -> Figure:
    """Responses to images on the flattened fsaverage5 surface, one row per image: the image, then
    one map of each kind.

    Parameters
    ----------
    pixels, titles : of each image.
    maps : kind ("measured", ...) -> (n_images, n_voxels) responses; each kind has a colour scale of
        its own, which ends at the 98th percentile of its absolute values.
    voxels : hemisphere and vertex of each voxel; if empty, the figure says so.
    """
    if not len(voxels):
        figure, ax = plt.subplots(figsize=(8, 2))
        text_only(ax, "this crowd file does not say where on fsaverage5 the voxels are")
        return figure
    size = (2.2 + 3.4 * len(maps), 3.1 * len(pixels) + 0.5)
    widths = [1, *[1.6] * len(maps)]
    figure, axes = plt.subplots(
        len(pixels), len(widths), figsize=size, squeeze=False, width_ratios=widths
    )
    for ax, image, title in zip(axes[:, 0], pixels, titles, strict=True):
        ax.imshow(image)
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
    for column, (kind, values) in zip(axes[:, 1:].T, maps.items(), strict=True):
        limit = float(np.nanpercentile(np.abs(values), 98)) or 1.0
        for ax, row in zip(column, values, strict=True):
            flat_cortex(ax, row, voxels, limit)
        column[0].set_title(f"{kind} response", fontsize=10, pad=24)  # above "left"
        figure.colorbar(
            ScalarMappable(Normalize(-limit, limit), "RdBu_r"),
            ax=column[-1],
            orientation="horizontal",
            shrink=0.6,
            pad=0.02,
            label=f"{kind} response (z)",
        )
    return figure


def _dots(
    ax: Axes,
    at: NDArray,
    rows: pd.DataFrame,
    k: int,
    tint: str,
    label: str = "_",
    face: str | None = None,
) -> None:
    middle, low, high = (100 * rows[f"top{k}{end}"].to_numpy() for end in ("", "_low", "_high"))
    ax.errorbar(
        at,
        middle,
        [middle - low, high - middle],
        fmt="o",
        ms=7,
        lw=2,
        color=tint,
        label=label,
        mfc=face or tint,
    )


def _chance(ax: Axes, table: pd.DataFrame, k: int) -> None:
    for number, gallery in enumerate(sorted(set(table["gallery"]))):
        ax.axhline(
            100 * min(k / gallery, 1),
            lw=1.5,
            ls=":",
            color=CEILING,
            label="_" if number else "chance",
        )
