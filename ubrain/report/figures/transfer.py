"""Figures of transfer to new subjects."""

import pandas as pd
from matplotlib.axes import Axes

from ubrain.report.figures.style import CEILING, colour, dashes, finish


def learning_curves(
    ax: Axes, table: pd.DataFrame, label: str, ceiling: float | None = None
) -> Axes:
    """A score against the number of images, a line with its intervals for each method, drawn
    a little beside each other.

    Parameters
    ----------
    table : one row per method and number of images: method, n_images, value, low, high.
    label : of the score, with its unit.
    ceiling : the highest value possible, drawn as a line; None or NaN where unknown.
    """
    methods = list(dict.fromkeys(table["method"]))
    for number, method in enumerate(methods):
        mine = table[table["method"] == method].sort_values("n_images")
        beside = 1.05 ** (number - (len(methods) - 1) / 2)  # so that no interval hides another
        ax.errorbar(
            mine["n_images"] * beside,
            mine["value"],
            [mine["value"] - mine["low"], mine["high"] - mine["value"]],
            marker="o",
            ms=4,
            lw=2,
            elinewidth=1,
            color=colour(method),
            label=method,
            **dashes(method),
        )
    if ceiling is not None and ceiling == ceiling:
        ax.axhline(ceiling, color=CEILING, lw=1.5, ls="--", label="noise ceiling (median)")
    ticks = sorted(set(table["n_images"]))
    ax.set_xscale("log")
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set(xlabel="images of the new subject", ylabel=label)
    return finish(ax, legend="")
