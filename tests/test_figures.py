"""Figures draw what they are given, in the colours of the conditions, and say when data are
simulated.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ubrain.report import figures
from ubrain.report.figures import CONDITIONS
from ubrain.report.figures.surfaces import _spread


@pytest.fixture(autouse=True)
def no_window():
    mpl.use("Agg")
    yield
    plt.close("all")


def test_conditions_have_one_colour_each():
    assert len(set(CONDITIONS.values())) == len(CONDITIONS) >= 4
    assert not set(CONDITIONS.values()) & set(figures.DATASETS)


@pytest.mark.parametrize("over", ["", "encoder, crowd − "])
def test_intervals_are_drawn_for_each_subject_and_condition(over):
    rows = [
        (over + c, s, v, v - 0.1, v + 0.2)
        for c, v in zip(CONDITIONS, np.arange(1, 9) / 10, strict=True)
        for s in ("S1", "S2")
    ]
    table = pd.DataFrame(rows, columns=["condition", "subject", "median_r", "low", "high"])
    _, ax = plt.subplots()
    ceilings = {"S1": np.full(50, 0.7), "S2": np.full(50, np.nan)}
    figures.with_intervals(ax, table, ceilings=ceilings)
    for (condition, colour), drawn in zip(CONDITIONS.items(), ax.containers, strict=True):
        mine = table[table["condition"] == over + condition]
        assert drawn[0].get_color() == colour
        np.testing.assert_allclose(
            np.array(drawn[0].get_ydata(), float), mine["median_r"].to_numpy()
        )
        ends = np.array(drawn[2][0].get_segments())[:, :, 1]
        np.testing.assert_allclose(ends, mine[["low", "high"]].to_numpy(), atol=1e-9)
    assert "noise ceiling (median)" in [t.get_text() for t in ax.get_legend().get_texts()]
    assert any(list(line.get_ydata()) == [0, 0] for line in ax.lines) == bool(over)


def test_a_gallery_that_all_share_is_said_once():
    table = pd.DataFrame(
        {"condition": "encoder, crowd", "subject": ["S1", "S2"], "gallery": 10, "top1": 0.5}
    )
    _, ax = plt.subplots()
    figures.retrieval(ax, table.assign(top1_low=0.4, top1_high=0.6), 1)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["S1", "S2"]
    assert "10 images" in ax.get_xlabel()


def test_chance_is_drawn_for_every_gallery():
    table = pd.DataFrame(
        {
            "condition": "encoder, crowd",
            "subject": ["S1", "S2"],
            "gallery": [10, 4],
            "top1": [0.5, 1.0],
            "top1_low": [0.2, 0.7],
            "top1_high": [0.8, 1.0],
        }
    )
    _, ax = plt.subplots()
    figures.retrieval(ax, table, 1)
    assert [c.get_segments()[0][0][1] for c in ax.collections[1:]] == [10, 25]
    assert [p.get_height() for p in ax.patches] == [50, 100]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["S1\nof 10", "S2\nof 4"]


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_is_written_on_simulated_figures_only(simulated):
    figure = plt.figure(layout="constrained")
    figures.mark(figure, "simulated crowd" if simulated else "")
    assert any("simulated" in t.get_text() for t in figure.texts) == simulated


def test_the_class_token_is_left_out_of_an_attention_map():
    _, ax = plt.subplots()
    weights = np.arange(5.0)
    figures.attention(ax, np.zeros((8, 8, 3), np.uint8), weights, "t")
    (lines,) = ax.collections
    np.testing.assert_allclose(lines.levels, [1.75, 2.5, 3.25])  # of 1 ... 4
    assert lines.get_paths()[2].vertices.mean() > 4  # highest below, on the right


def test_values_spread_to_neighbours_only():
    faces = np.array([[0, 1, 2], [2, 3, 4]])
    values = np.array([1.0, 3.0, np.nan, np.nan, np.nan])
    once = _spread(values, faces, 1)
    np.testing.assert_array_equal(once, [1, 3, 2, np.nan, np.nan])
    np.testing.assert_array_equal(_spread(values, faces, 2), [1, 3, 2, 2, 2])


def test_voxels_without_a_place_give_a_figure_that_says_so():
    figure = figures.cortex(np.empty(0), pd.DataFrame(), "gain", 1.0)
    assert "does not say where" in figure.axes[0].texts[0].get_text()


def test_a_cortex_figure_survives_vertices_of_another_surface():
    voxels = pd.DataFrame({"hemisphere": ["L", "R", "L"], "vertex": [3, 500, 163841]})
    figure = figures.cortex([0.1, -0.2, 0.3], voxels, "gain", 0.5)
    assert [t.get_text() for t in figure.axes[0].texts] == ["left", "right"]
