"""Figures of effects that are turned off."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ubrain.report.figures.style import CEILING, CONDITIONS, colour, finish


def effects(ax: Axes, table: pd.DataFrame) -> Axes:
    """Each effect as it is, filled, and with its cause taken away, open; 95 % intervals.

    Parameters
    ----------
    table : effect, condition, value, low, high, expected ("" for an effect as it is).
    """
    new = (table["effect"] != table["effect"].shift()).cumsum().to_numpy()
    at = np.arange(len(table)) + 0.6 * new
    as_is = (table["expected"] == "").to_numpy()
    for y, (_, x), filled in zip(at, table.iterrows(), as_is, strict=True):
        tint = _tint(x["effect"])
        error = [[x["value"] - x["low"]], [x["high"] - x["value"]]]
        mfc = tint if filled else "white"
        ax.errorbar(x["value"], y, xerr=error, fmt="o", color=tint, mfc=mfc, mew=1.5)
    for label, mfc in (("as it is", CEILING), ("cause taken away", "white")):
        ax.plot([], [], "o", color=CEILING, mfc=mfc, mew=1.5, label=label)
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
    effects = list(table.groupby("effect", sort=False))
    for shift, (effect, x) in zip(np.linspace(-0.02, 0.02, len(effects)), effects, strict=True):
        ax.errorbar(
            x["shared"] + shift,
            x["value"],
            [x["value"] - x["low"], x["high"] - x["value"]],
            fmt="o-",
            color=_tint(str(effect)),
            label=effect,
        )
    ax.axhline(0, color=CEILING, lw=1, ls="--")
    ax.set(xlabel="share of voxels whose function is shared", ylabel="gain in median r (95 %)")
    return finish(ax, legend="above")


def _tint(effect: str) -> str:
    """Colour of the condition that an effect is named after, or else of the crowd."""
    return colour(next((c for c in CONDITIONS if effect.endswith(c)), "encoder, crowd"))
