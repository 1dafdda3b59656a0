"""Figures of effects that are turned off."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from ubrain.report.figures.style import CEILING, finish


def effects(ax: Axes, table: pd.DataFrame) -> Axes:
    """Each effect as it is, filled, and with its cause taken away, open; 95 % intervals.

    Parameters
    ----------
    table : effect, condition, value, low, high, expected ("" for an effect as it is).
    """
    new = (table["effect"] != table["effect"].shift()).cumsum().to_numpy()
    at = np.arange(len(table)) + 0.6 * new
    for filled, colour in ((True, "#009E73"), (False, "#D55E00")):
        mine = (table["expected"] == "").to_numpy() == filled
        x, y = table[mine], at[mine]
        ax.errorbar(
            x["value"],
            y,
            xerr=[x["value"] - x["low"], x["high"] - x["value"]],
            fmt="o",
            color=colour,
            mfc=colour if filled else "white",
            label="as it is" if filled else "cause taken away",
        )
    ax.axvline(0, color=CEILING, lw=1, ls="--")
    names = table["condition"].where(table["expected"] != "", table["effect"])
    ax.set_yticks(at, names)
    ax.set_ylim(at.max() + 0.8, 0)
    ax.set(xlabel="effect (95 %)")
    return finish(ax, legend="above")


def shared_function(ax: Axes, table: pd.DataFrame) -> Axes:
    """Effects against the share of function that brains have in common; 95 % intervals.

    Parameters
    ----------
    table : shared, effect, value, low, high.
    """
    colours = sns.color_palette("colorblind", table["effect"].nunique())
    for i, (effect, x) in enumerate(table.groupby("effect", sort=False)):
        ax.errorbar(
            x["shared"] + 0.012 * (i - 1.5),
            x["value"],
            [x["value"] - x["low"], x["high"] - x["value"]],
            fmt="o-",
            color=colours[i],
            label=effect,
        )
    ax.axhline(0, color=CEILING, lw=1, ls="--")
    ax.set(xlabel="share of voxels whose function is shared", ylabel="gain in median r (95 %)")
    return finish(ax, legend="inside")
