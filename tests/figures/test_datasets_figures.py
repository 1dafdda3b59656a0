"""Figures of a crowd of datasets draw the gains that they are given, each comparison and dataset
in its colour.
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


def test_gains_stand_with_their_subject_and_interval():
    table = pd.DataFrame(
        {
            "dataset": "3T",
            "of": "two",
            "over": ["crowd", "crowd", "alone", "alone"],
            "subject": ["S7", "S8", "S7", "S8"],
            "gain": [0.1, 0.2, 0.3, 0.4],
        }
    )
    _, ax = plt.subplots()
    figures.subject_gains(
        ax, table.assign(low=table["gain"] - 0.05, high=table["gain"] + 0.1), ["first", "second"]
    )
    first, second = (c[0] for c in ax.containers)
    assert (list(first.get_ydata()), list(second.get_ydata())) == ([0.1, 0.2], [0.3, 0.4])
    assert list(np.round(first.get_xdata())) == [0, 1]
    np.testing.assert_allclose(ax.containers[0][2][0].get_segments()[0][:, 1], [0.05, 0.2])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["first", "second"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["S7", "S8"]
    top1 = table.assign(top1_gain=-table["gain"], top1_low=-1, top1_high=1)
    _, ax = plt.subplots()
    figures.subject_gains(
        ax, top1.assign(dataset=["3T", "4T", "3T", "4T"]), ["first", "second"], top1=True
    )
    assert [t.get_text() for t in ax.get_xticklabels()] == ["S7\n3T", "S8\n4T"]
    assert list(ax.containers[0][0].get_ydata()) == [-10, -20]  # percentage points
    assert "top-1" in ax.get_ylabel()


def test_an_area_that_one_dataset_lacks_moves_nobody():
    table = pd.DataFrame(
        {
            "dataset": ["3T", "3T", "4T"],
            "partner": "7T",
            "area": ["V1", "FFA", "FFA"],
            "gain": [0.1, 0.2, 0.3],
        }
    )
    _, ax = plt.subplots()
    figures.area_gains(ax, table.assign(low=table["gain"], high=table["gain"]))
    assert [list(np.round(c[0].get_xdata())) for c in ax.containers] == [[0, 1], [1]]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["V1", "FFA"]


def test_the_mean_of_each_dataset_is_drawn_over_its_subjects():
    table = pd.DataFrame(
        {
            "dataset": "3T",
            "n_main": [0, 6, 0, 6],
            "subject": ["S7", "S7", "S8", "S8"],
            "r": [0.1, 0.3, 0.3, 0.5],
        }
    )
    _, ax = plt.subplots()
    figures.joined(ax, table, "r", "r", "7T")
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [0.2, 0.4])
    assert ax.lines[-1].get_label() == "3T, mean of 2"
    assert ax.get_xlabel() == "subjects of 7T that joined"
