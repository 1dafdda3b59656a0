"""Numbers with their intervals, one cell each."""

import numpy as np
import pandas as pd
import pytest

from ubrain.report import figures

TABLE = pd.DataFrame(
    [
        ("S2", "crowd", 0.5071, 0.4791, 0.5324),
        ("S2", "gain", -0.0123, -0.0312, 0.0041),
        ("S1", "crowd", 1.25, -1.5, np.nan),
        ("S1", "gain", np.nan, np.nan, np.nan),
    ],
    columns=["subject", "condition", "median_r", "low", "high"],
)


def test_a_cell_holds_the_number_and_its_interval_in_the_order_of_the_table():
    wide = figures.compact(TABLE)
    assert list(wide.index) == ["S2", "S1"]
    assert list(wide.columns) == ["crowd", "gain"]
    assert wide.loc["S2"].tolist() == ["0.507 [.479, .532]", "-0.012 [-.031, .004]"]
    assert wide.loc["S1"].tolist() == ["1.250", ""]


def test_per_cent_and_rows_with_several_names():
    table = TABLE[:2].assign(dataset="7T")
    wide = figures.compact(table, by=["dataset", "subject"], digits=1, scale=100)
    assert wide.loc[("7T", "S2"), "crowd"] == "50.7 [47.9, 53.2]"


def test_a_cell_that_no_row_fills_is_empty():
    assert figures.compact(TABLE[:3]).loc["S1", "gain"] == ""


def test_an_empty_table_stays_empty():
    assert figures.compact(TABLE[:0]).empty


def test_two_rows_for_one_cell_are_refused():
    with pytest.raises(ValueError, match="duplicate"):
        figures.compact(pd.concat([TABLE, TABLE]))
