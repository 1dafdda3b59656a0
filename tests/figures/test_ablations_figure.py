"""The figure of the ablations: a point per variant at its difference, a dot per pair."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ubrain.report import figures


def test_every_variant_is_drawn_at_its_difference():
    mpl.use("Agg")
    table = pd.DataFrame(
        {
            "variant": ["a", "b", "c"],
            "group": ["g", "g", "h"],
            "against": ["full", "full", "b"],
            "difference": [-0.1, 0.0, 0.2],
            "low": [-0.2, -0.1, 0.1],
            "high": [0.0, 0.1, 0.3],
            "pairs": [np.array([-0.1, -0.12])] * 3,
        }
    )
    _, (ax, other) = plt.subplots(1, 2, sharey=True)
    figures.ablations(ax, table, "median r")
    figures.ablations(other, table, "top-1 (points)", 100)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first variant is on top
    means = next(line for line in ax.lines if len(line.get_xdata()) == 3)
    assert list(means.get_xdata()) == [-0.1, 0.0, 0.2]
    points = next(line for line in other.lines if len(line.get_xdata()) == 3)
    assert list(points.get_xdata()) == [-10, 0, 20]
    gaps = np.diff(means.get_ydata())
    assert gaps[1] > gaps[0]  # groups stand apart
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c  (against: b)"]
    plt.close("all")


def test_a_difference_far_beyond_the_others_is_an_arrow_with_its_number():
    mpl.use("Agg")
    table = pd.DataFrame({"variant": ["a", "b"], "group": "g", "against": "full"})
    table = table.assign(difference=[-0.5, 0.1], low=[-0.6, 0.05], high=[-0.4, 0.15])
    _, ax = plt.subplots()
    figures.ablations(ax, table.assign(pairs=[[-0.5], [0.1]]), "median r")
    assert -0.2 < ax.get_xlim()[0] < -0.13
    assert [t.get_text() for t in ax.texts] == ["-0.5"]
    plt.close("all")
