"""Figures of retrieval draw the numbers that they are given, chance with its gallery, and the
cortex where voxels are.
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


def rows(**columns):
    table = pd.DataFrame(columns)
    return table.assign(top1_low=table["top1"] - 0.1, top1_high=table["top1"] + 0.1)


def test_chance_falls_with_the_gallery():
    table = rows(
        line="encoder, crowd",
        gallery=[10, 20, 10, 20],
        subject=["S1", "S1", "all", "all"],
        top1=[0.6, 0.4, 0.5, 0.3],
    )
    _, ax = plt.subplots()
    figures.hits_against(ax, table, "gallery", 1, "images")
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn["chance"] == [10, 5]
    assert drawn["encoder, crowd, mean of subjects"] == [50, 30]
    assert ax.lines[1].get_color() == figures.colour("encoder, crowd")


def test_areas_keep_their_order_and_say_how_many_voxels():
    table = rows(
        area=["V1", "FFA", "V1", "FFA"],
        voxels=["all", "all", "10", "10"],
        n_voxels=[40, 20, 10, 10],
        gallery=50,
        top1=[0.4, 0.2, 0.3, 0.2],
    )
    _, ax = plt.subplots()
    figures.hits_by_area(ax, table, 1)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["V1 (40)", "FFA (20)"]
    assert [list(c[0].get_ydata()) for c in ax.containers] == [[40, 20], [30, 20]]


def test_controls_show_each_subject_and_the_mean():
    table = rows(
        control=["right voxels"] * 3 + ["mean response"] * 3,
        subject=["S1", "S2", "all"] * 2,
        gallery=30,
        top1=[0.5, 0.7, 0.6, 0, 0, 0],
    )
    _, ax = plt.subplots()
    figures.controls(ax, table, 1)
    assert [list(c[0].get_ydata()) for c in ax.containers] == [[60], [0]]
    assert ax.containers[0][0].get_color() == figures.colour("encoder, crowd")


def test_only_the_shown_image_is_framed():
    image = np.zeros((4, 4, 3), np.uint8)
    figure = figures.retrieved([image], [[image, image]], ["shown"], [[False, True]], [["a", "b"]])
    assert [ax.spines["top"].get_visible() for ax in figure.axes] == [False, False, True]
    assert [ax.get_title() for ax in figure.axes] == ["shown", "a", "b"]


def test_no_query_is_said():
    assert "no such query" in figures.retrieved([], [], [], [], []).axes[0].texts[0].get_text()


def test_the_flat_cortex_colours_the_place_of_the_voxel_only():
    _, ax = plt.subplots()
    figures.flat_cortex(
        ax, [2.0, 4.0], pd.DataFrame({"hemisphere": ["L", "L"], "vertex": [5, 5]}), 5.0
    )
    _ground, colours = ax.collections
    assert set(np.round(colours.get_array(), 6)) == {3.0}
    assert colours.get_clim() == (-5, 5)


def test_hemispheres_lie_side_by_side():
    _, ax = plt.subplots()
    figures.flat_cortex(
        ax, [1.0, 1.0], pd.DataFrame({"hemisphere": ["L", "R"], "vertex": [5, 5]}), 5.0
    )
    left, right = (c.get_datalim(ax.transData) for c in (ax.collections[1], ax.collections[3]))
    assert left.x1 < 0 < right.x0
    assert np.diff(ax.get_xlim()) < 120  # mm: cut to where the voxels are


def test_kinds_of_responses_have_their_own_scale():
    voxels = pd.DataFrame({"hemisphere": ["L", "R"], "vertex": [5, 900]})
    image = np.zeros((4, 4, 3), np.uint8)
    maps = {"measured": np.array([[2.0, -2.0]]), "predicted": np.array([[0.5, -0.5]])}
    figure = figures.responses_on_cortex([image], ["one"], maps, voxels)
    assert [ax.collections[1].get_clim() for ax in figure.axes[1:3]] == [(-2, 2), (-0.5, 0.5)]


def test_voxels_without_a_place_are_said():
    figure = figures.responses_on_cortex([], [], {}, pd.DataFrame())
    assert "does not say where" in figure.axes[0].texts[0].get_text()
