"""Learning curves show every number of images, in the colours of the conditions, and the ceiling
where it is known.
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


@pytest.mark.parametrize(("ceiling", "lines"), [(0.7, 3), (np.nan, 2), (None, 2)])
def test_a_line_for_each_method_and_the_ceiling_if_known(ceiling, lines):
    methods = ["gradient (the paper)", "matching (ours)"]
    table = pd.DataFrame(
        [
            {"method": m, "n_images": n, "value": v, "low": v - 0.1, "high": v + 0.1}
            for m, values in zip(methods, [(0.1, 0.4), (0.3, 0.35)], strict=True)
            for n, v in zip((100, 25), reversed(values), strict=True)
        ]
    )
    _, ax = plt.subplots()
    figures.learning_curves(ax, table, "r", ceiling)
    assert len(ax.lines) == lines
    for line, method, values in zip(ax.lines, methods, [(0.1, 0.4), (0.3, 0.35)], strict=False):
        assert line.get_color() == figures.colour(method)
        np.testing.assert_allclose(np.array(line.get_ydata(), float), values)
        np.testing.assert_allclose(np.array(line.get_xdata(), float), [25, 100], rtol=0.15)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["25", "100"]
