"""Figure of the ablations."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ubrain.report.figures.style import CEILING, colour, finish


def ablations(ax: Axes, table: pd.DataFrame, score: str, scale: float = 1) -> Axes:
    """Difference of each variant from what it is compared with: mean and interval, and a small dot
    per seed and subject. A difference far beyond all others is an arrow at the edge, with its
    number.

    Parameters
    ----------
    table : one row per variant: variant, group, against, difference, low, high, pairs; variants of
        a group together.
    score : what differs, with its unit.
    scale : what it is multiplied with; 100 for percentage points.
    """
    table = table.assign(
        **{c: scale * table[c] for c in ("difference", "low", "high")},
        pairs=[scale * np.asarray(p) for p in table["pairs"]],
    )
    at = (
        np.arange(len(table)) + 0.5 * (table["group"] != table["group"].shift()).cumsum().to_numpy()
    )
    for y, pairs in zip(at, table["pairs"], strict=True):
        ax.plot(pairs, np.full(len(pairs), y + 0.27), "o", ms=3, color="#777777", alpha=0.8, mew=0)
    error = [table["difference"] - table["low"], table["high"] - table["difference"]]
    ax.errorbar(
        table["difference"], at, xerr=error, fmt="o", ms=6, lw=2, color=colour("encoder, crowd")
    )
    *others, second, first = [0, 0, *sorted(table["difference"].abs())]
    if others and first > 1.5 * second > 0:
        i = int(table["difference"].abs().argmax())
        edge = np.sign(table["difference"].iloc[i]) * 1.3 * second
        rest = table.drop(index=table.index[i])
        ends = [*rest["low"], *rest["high"], edge]
        ax.set_xlim(min(ends) - 0.1 * second, max(ends) + 0.1 * second)
        ax.plot(edge, at[i], "<" if edge < 0 else ">", ms=9, color=colour("encoder, crowd"))
        number = f"{table['difference'].iloc[i]:.3g}"
        side = "left" if edge < 0 else "right"
        ax.annotate(number, (edge, at[i]), (0, 7), textcoords="offset points", ha=side)
    ax.axvline(0, color=CEILING, lw=1, ls="--")
    ax.locator_params(axis="x", nbins=6)
    ends = [f"  (against: {a})" if a != table["against"].iloc[0] else "" for a in table["against"]]
    ax.set_yticks(at, [v + e for v, e in zip(table["variant"], ends, strict=True)])
    ax.set_ylim(at.max(initial=0) + 0.7, 0)  # the first on top, also where axes share y
    ax.set(
        xlabel=(
            f"difference in {score},\nvariant − {table['against'].iloc[0]}" if len(table) else score
        )
    )
    return finish(ax, legend="")
