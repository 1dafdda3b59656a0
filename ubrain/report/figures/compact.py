"""A short table of numbers with their intervals, to show beside a figure."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd


def compact(
    table: pd.DataFrame,
    value: str = "median_r",
    low: str = "low",
    high: str = "high",
    by: str | Sequence[str] = "subject",
    columns: str = "condition",
    digits: int = 3,
    scale: float = 1,
) -> pd.DataFrame:
    """Numbers and their intervals, one cell each, such as "0.507 [.479, .532]".

    Parameters
    ----------
    table : one row per cell, with the columns named here.
    value, low, high : columns of the number and of the ends of its interval; an interval that is
        unknown is left out, and a number that is unknown leaves its cell empty.
    by : what becomes the rows, in the order of the table; several for a row with several names.
    columns : what becomes the columns, in the order of the table; an empty table stays empty.
    digits : decimals shown.
    scale : what all numbers are multiplied with; 100 for per cent.

    Raises
    ------
    ValueError
        If two rows of the table belong to one cell.
    """
    if table.empty:
        return pd.DataFrame()
    rows = [by] if isinstance(by, str) else list(by)
    numbers = scale * table[[value, low, high]].astype(float)
    cells = [_cell(v, a, b, digits) for v, a, b in numbers.to_numpy()]
    wide = table.assign(cell=cells).set_index([*rows, columns])["cell"]
    order = list(dict.fromkeys(wide.index.droplevel(-1)))
    return wide.unstack(sort=False, fill_value="").loc[order, list(dict.fromkeys(table[columns]))]


def _cell(value: float, low: float, high: float, digits: int) -> str:
    if np.isnan(value):
        return ""
    if np.isnan(low) or np.isnan(high):
        return f"{value:.{digits}f}"
    ends = (f"{end:.{digits}f}" for end in (low, high))
    short = (re.sub(r"^(-?)0\.", r"\1.", end) for end in ends)  # no 0 before the point
    return f"{value:.{digits}f} [{', '.join(short)}]"
