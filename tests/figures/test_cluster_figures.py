"""Figures of clusters draw what they are given and say what cannot be drawn."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ubrain.report import figures
from ubrain.report.figures.clusters import OUTLIER_GREY, flat_surface


@pytest.fixture(autouse=True)
def no_window():
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture
def voxels():
    return pd.DataFrame(
        {"subject": ["S1", "S1", "S2"], "hemisphere": ["L", "R", "L"], "vertex": [300, 500, 700]}
    )


def test_every_cluster_has_its_own_colour_and_outliers_are_grey():
    for n in (2, 20, 30):
        assert len(set(figures.palette(n))) == n
    np.testing.assert_array_equal(
        figures.cluster_colours([-1, 0], 3), [OUTLIER_GREY, figures.palette(3)[0]]
    )


def test_groups_have_colours_and_none_is_grey():
    colours, keys = figures.group_colours(["V1", "none", "V2", "V1"])
    assert list(keys) == ["V1", "V2", "none"]
    np.testing.assert_array_equal(colours[0], colours[3])
    np.testing.assert_array_equal(colours[1], OUTLIER_GREY)


def test_places_far_apart_have_different_colours():
    corners = figures.plane_colours([[0, 0], [9, 0], [0, 3], [9, 3], [0.1, 0]])
    distance = np.linalg.norm(corners[:, None] - corners, axis=2)
    assert distance[np.triu_indices(4, 1)].min() > 0.4
    assert distance[0, 4] < 0.05
    assert ((corners >= 0) & (corners <= 1)).all()


def test_the_chosen_number_is_marked():
    table = pd.DataFrame(
        {
            "n_clusters": [4, 8],
            "stability": [0.9, 0.8],
            "low": 0.7,
            "high": 1.0,
            "silhouette": [0.1, 0.3],
        }
    )
    _, axes = plt.subplots(1, 2)
    figures.count_choice(axes, table, 8)
    assert [list(ax.lines[0].get_ydata()) for ax in axes] == [[0.9, 0.8], [0.1, 0.3]]
    assert [list(ax.lines[1].get_xdata()) for ax in axes] == [[8, 8]] * 2
    assert "chosen: 8" in [t.get_text() for t in axes[0].get_legend().get_texts()]


def test_composition_shows_per_cent():
    _, ax = plt.subplots()
    table = pd.DataFrame([[0.25, 0.746, 0.004]], index=["V1"], columns=["1 a", "2 b", "3 c"])
    figures.composition(ax, table, "area")
    assert [t.get_text() for t in ax.texts] == ["25", "75", ""]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1 a", "2 b", "3 c"]


def test_areas_of_one_function_are_one_group():
    areas = ["V1", "prf-visualrois:V2v", "hV4", "FFA-1", "floc-bodies:EBA", "PPA", "VWFA", "LO"]
    groups = ["early visual"] * 3 + ["face", "body", "place", "word", "object"]
    assert figures.area_groups(areas) == groups
    assert figures.area_groups(["food", "none", "V3A"]) == ["food", "none", "V3A"]


def test_a_voxel_colours_the_surface_around_it_only(voxels):
    _, ax = plt.subplots()
    red = (1.0, 0.0, 0.0)
    figures.flatmap(
        ax, voxels[:1], [red], "L", pd.DataFrame(columns=["hemisphere", "vertex", "area"])
    )
    faces = ax.collections[0]
    coloured = (faces.get_facecolor()[:, :3] == red).all(1)
    middles = np.array([path.vertices[:3].mean(0) for path in faces.get_paths()])
    distance = np.linalg.norm(middles - flat_surface("L")[0][300], axis=1)
    np.testing.assert_array_equal(coloured, distance <= 7)
    assert coloured.any()


def test_areas_are_named_where_their_voxels_are(voxels):
    xy = flat_surface("L")[0]
    around = {
        area: np.argsort(np.linalg.norm(xy - xy[v], axis=1))[:40]
        for area, v in (("V1", 300), ("FFA", 5000))
    }
    known = pd.concat(
        [pd.DataFrame({"hemisphere": "L", "vertex": v, "area": a}) for a, v in around.items()]
    )
    _, ax = plt.subplots()
    figures.flatmap(ax, voxels, np.zeros((3, 3)), "L", known)
    places = {t.get_text(): t.get_position() for t in ax.texts}
    assert set(places) == {"V1", "FFA"}
    assert np.linalg.norm(np.array(places["FFA"]) - xy[5000]) < 10
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert all(left < x < right and bottom < y < top for x, y in places.values())


def test_each_subject_has_two_hemispheres_and_those_without_a_place_a_note(voxels):
    nothing = pd.DataFrame(columns=["hemisphere", "vertex", "area"])
    figure = figures.flatmaps(voxels, np.zeros((3, 3)), {"S1": nothing, "S2": nothing})
    assert [ax.get_title() for ax in figure.axes] == [
        "S1, left",
        "S1, right",
        "S2, left",
        "S2, right",
    ]
    assert "does not say where" in figure.axes[3].texts[0].get_text()
    assert not figure.axes[0].texts


def test_maps_to_compare_have_the_same_colours(voxels):
    nothing = pd.DataFrame(columns=["hemisphere", "vertex", "area"])
    maps = {"a, ": ([0, 1, 0.5], voxels), "b, ": ([0, 1, 0.5], voxels)}
    figure = figures.flat_values(maps, nothing, "r", (0, 1))
    names = [f"{m}, {side} hemisphere" for m in "ab" for side in ("left", "right")]
    assert [ax.get_title() for ax in figure.axes[:4]] == names
    tints = [ax.collections[0].get_facecolor() for ax in figure.axes[:4]]
    np.testing.assert_array_equal(tints[0], tints[2])
    yellow = mpl.colormaps["viridis"](1.0)[:3]
    assert [(t[:, :3] == yellow).all(1).any() for t in tints] == [False, True] * 2


def test_a_map_without_places_says_so(voxels):
    figure = figures.flat_values({"a, ": ([], voxels[:0])}, voxels[:0], "r", (0, 1))
    assert "does not say where" in figure.axes[0].texts[0].get_text()


def test_the_map_has_all_voxels_and_a_key():
    _, ax = plt.subplots()
    figures.plane(
        ax,
        np.random.default_rng(0).normal(size=(50, 2)),
        np.zeros((50, 3)),
        {"V1": (0, 0, 0)},
        "area",
    )
    assert len(ax.collections[0].get_offsets()) == 50
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["V1"]
    figure = figures.colour_key(plt.figure(layout="constrained"), {"1 face": (1, 0, 0)})
    assert figure.legends[0].get_texts()[0].get_text() == "1 face"


def test_each_cluster_has_a_row_of_images():
    _, axes = plt.subplots(2, 3)
    figures.image_rows(axes, np.zeros((2, 3, 4, 4, 3), np.uint8), ["1 a", "2 b"])
    assert [len(ax.images) for ax in axes.ravel()] == [1] * 6
    assert [row[0].texts[0].get_text() for row in axes] == ["1 a", "2 b"]
