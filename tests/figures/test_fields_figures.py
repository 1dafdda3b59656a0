"""Figures of receptive fields: y points upwards, circles are where the field is known, shares fill
the bar.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ubrain.report import figures


@pytest.fixture(autouse=True)
def no_window():
    mpl.use("Agg")
    yield
    plt.close("all")


def test_the_first_row_of_a_field_is_drawn_at_the_top():
    maps = np.zeros((2, 1, 4, 4))
    maps[:, 0, 0, 0] = 1
    figure = figures.receptive_fields(
        maps, ["a", "b"], ["level 1"], 8.0, "degrees", [(1, 2, 0.5), (np.nan,) * 3]
    )
    image = figure.axes[0].images[0]
    assert image.get_extent() == [-4, 4, -4, 4]
    assert image.origin == "upper"
    circles = [[p.center for p in ax.patches] for ax in figure.axes]
    assert circles == [[(1, 2)], []]


def test_attention_is_drawn_voxel_by_image():
    weights = np.random.default_rng(0).random((3, 2, 4))
    figure = figures.attention_on_images(
        [np.zeros((8, 8, 3), np.uint8)] * 2, weights, ["a", "b", "c"], ["i", "j"]
    )
    drawn = np.array([ax.collections[0].levels[1] for ax in figure.axes]).reshape(2, 3)
    middle = (weights.min(-1) + weights.max(-1)) / 2
    np.testing.assert_allclose(drawn, middle.T)


def test_agreement_has_a_panel_per_quantity():
    rows = [
        ("V1", f, q, r, r - 0.1, r + 0.1)
        for f in ("level 1", "levels by use")
        for q, r in (("x", 0.5), ("sigma", 0.2))
    ]
    found = pd.DataFrame(rows, columns=["area", "field", "quantity", "r", "low", "high"])
    controls = found[found["field"] == "levels by use"].assign(
        condition="shuffled voxels", low=-0.1, high=0.1
    )
    _, axes = plt.subplots(3)
    figures.field_agreement(axes, found, controls)
    assert [ax.patches[0].get_height() for ax in axes[[0, 2]]] == pytest.approx([0.2, 0.2])
    assert "shuffled voxels (95 % of shuffles)" in [
        t.get_text() for t in axes[0].get_legend().get_texts()
    ]
    assert [line.get_ydata()[0] for line in axes[0].lines if line.get_marker() == "o"] == [0.5, 0.5]


def test_shares_of_the_levels_fill_the_bar():
    table = pd.DataFrame(
        {
            "condition": "encoder, crowd",
            "area": ["V1", "EBA"],
            "depth": [1.2, 1.7],
            "low": [1.1, 1.6],
            "high": [1.3, 1.8],
            "level 1": [0.8, 0.3],
            "level 2": [0.2, 0.7],
        }
    )
    _, axes = plt.subplots(1, 2)
    figures.level_use(axes, table)
    ends = [p.get_x() + p.get_width() for p in axes[0].patches]
    assert ends == pytest.approx([0.8, 0.3, 1, 1])
    assert [t.get_text() for t in axes[1].get_yticklabels()] == ["V1", "EBA"]


def test_positions_and_unknown_fields():
    table = pd.DataFrame(
        {
            "area": ["V1"] * 3,
            "x": [0, 1, 2],
            "y": [0, 1, 2],
            "true_x": [0, 1, 3],
            "true_y": [1, 0, 2],
            "r_x": 0.98,
            "r_y": 0.5,
        }
    )
    _, axes = plt.subplots(2, 1, squeeze=False)
    figures.field_positions(axes, table, 8.4, "degrees")
    assert [ax.get_title() for ax in axes[:, 0]] == ["V1, x: r = 0.98", "V1, y: r = 0.50"]
    limits = [[ax.get_xlim(), ax.get_ylim()] for ax in axes[:, 0]]
    assert np.ravel(limits).tolist() == pytest.approx([-4.41, 4.41] * 4)
    _, axes = plt.subplots(2, 1, squeeze=False)
    figures.field_positions(axes, table, 1.0, "image widths")
    assert [len(ax.lines) for ax in axes[:, 0]] == [1, 1]  # dots only: other units have no diagonal
    _, axes = plt.subplots(2, 1, squeeze=False)
    figures.unknown_fields(axes)
    assert "knows no receptive fields" in axes[0, 0].texts[0].get_text()
