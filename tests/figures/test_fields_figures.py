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
    maps = np.zeros((2, 4, 4))
    maps[:, 0, 0] = 1
    pixels, weights = [np.zeros((8, 8, 3), np.uint8)], maps.reshape(2, 1, 16)
    known = [(1, 2, 0.5), (np.nan,) * 3]
    figure = figures.attention_on_images(pixels, weights, ["a", "b"], maps, 8.0, "degrees", known)
    on_image, _, mean, other = figure.axes
    assert mean.images[0].get_extent() == [-4, 4, -4, 4]
    assert mean.images[0].origin == "upper"
    assert [[p.center for p in ax.patches] for ax in (mean, other)] == [[(1, 2)], []]
    x, y = np.concatenate([p.vertices for p in on_image.collections[0].get_paths()]).T
    assert x.max() < 0 < y.min()  # the lines are where the map is bright: at the upper left


def test_attention_is_drawn_voxel_by_image():
    weights, maps = np.random.default_rng(0).random((3, 2, 5)) ** 3, np.ones((3, 2, 2))
    pixels = [np.zeros((8, 8, 3), np.uint8)] * 2
    figure = figures.attention_on_images(pixels, weights, ["a", "b", "c"], maps, 1, "widths")
    grids = weights[..., 1:].transpose(1, 0, 2).reshape(6, 4)  # a class token comes first
    for ax, grid in zip(figure.axes[:6], grids, strict=True):
        at = grid.max() * np.array([0.25, 0.5, 0.75])
        np.testing.assert_allclose(ax.collections[0].levels, at[at > grid.min()])
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]


def test_agreement_has_a_panel_per_quantity():
    rows = [("V1", q, r, r - 0.1, r + 0.1) for q, r in (("x", 0.5), ("sigma", 0.2))]
    found = pd.DataFrame(rows, columns=["area", "quantity", "r", "low", "high"])
    controls = found.assign(condition="shuffled voxels", low=-0.1, high=0.1)
    figure, axes = plt.subplots(1, 3, layout="constrained")
    figures.field_agreement(axes, found, controls)
    assert [ax.patches[0].get_width() for ax in axes[[0, 2]]] == pytest.approx([0.2, 0.2])
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert words == ["shuffled voxels (95 % of shuffles)", "encoder, crowd"]
    dots = [line.get_xdata() for line in axes[0].lines if line.get_marker() == "o"]
    assert [list(x) for x in dots] == [[0.5]]


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


def test_unknown_fields_are_said_to_be_unknown():
    _, axes = plt.subplots(2, 1, squeeze=False)
    figures.unknown_fields(axes)
    assert "knows no receptive fields" in axes[0, 0].texts[0].get_text()
