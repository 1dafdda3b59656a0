"""The overview figure shows what was recorded, says what was not run, and comes out the same
twice.
"""

import json
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ubrain import paths
from ubrain.errors import UbrainError
from ubrain.report import figures, results, runs
from ubrain.report.figures.overview import PANELS, Panel, draw_panel, panel_numbers

IMAGE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
CURVE = Panel(
    "title", "03_x", "score", r"new, (?P<line>.+), (?P<x>\d+) images", "r", "images", log=True
)
DOTS = Panel("title", "03_x", "top(?P<line>[15])", "c", "%", share=True)


@pytest.fixture(autouse=True)
def no_window():
    mpl.use("Agg")
    yield
    plt.close("all")


def record(name, condition, subject, value):
    return {"name": name, "condition": condition, "subject": subject, "value": value}


DOCUMENTS = {
    "03_x": {
        "simulated": True,
        "results": [
            *(
                record("score", f"new, {c}, {n} images", s, v + n)
                for c in ("a", "b")
                for n in (25, 100)
                for s, v in (("S1", 0), ("S2", 1), ("S3", 5), ("all", 99))
            ),
            record("score", "old, a, 25 images", "S1", 7),
            record("score of V1", "new, a, 25 images", "S1", 7),
            record("score", "new, c, 50 images", "S1", None),
            record("top1", "c", "all", 0.5),
            record("top5", "c", "all", 0.75),
            record("top1", "other", "all", 0),
        ],
    }
}


def test_a_curve_is_the_median_over_subjects():
    _, ax = plt.subplots()
    draw_panel(ax, CURVE, DOCUMENTS)
    assert [(line.get_label(), *map(list, line.get_data())) for line in ax.lines] == [
        ("a", [25, 100], [26, 101]),
        ("b", [25, 100], [26, 101]),
    ]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["25", "100"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("images", "r")


def test_numbers_over_all_subjects_are_dots():
    assert panel_numbers(DOTS, DOCUMENTS) == {("1", None): [50], ("5", None): [75]}
    _, ax = plt.subplots()
    draw_panel(ax, DOTS, DOCUMENTS)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "5"]
    assert [list(line.get_ydata()) for line in ax.lines] == [[50], [50, 50], [75], [75, 75]]


@pytest.mark.parametrize("documents", [{}, {"03_x": {"results": []}}])
def test_a_panel_without_numbers_says_so(documents):
    _, ax = plt.subplots()
    draw_panel(ax, CURVE, documents)
    assert [t.get_text() for t in ax.texts] == ["03_x:\nnot run"]


def test_chance_is_a_line():
    _, ax = plt.subplots()
    draw_panel(ax, replace(DOTS, chance=0), DOCUMENTS)
    assert list(ax.lines[-1].get_ydata()) == [0, 0]
    assert [t.get_text() for t in ax.texts] == ["chance"]


def test_every_panel_is_drawn():
    figure = figures.overview(DOCUMENTS, IMAGE, [CURVE, DOTS, CURVE])
    drawing, *panels = [ax for part in figure.subfigs for ax in part.axes]
    words = {t.get_text() for t in drawing.texts}
    assert {
        "image",
        "levels of tokens",
        "spatial attention",
        "functional attention",
        "response",
    } <= words
    assert len(panels) == 3
    np.testing.assert_array_equal(drawing.images[0].get_array(), IMAGE)


def test_the_same_numbers_give_the_same_file(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UbrainError, match=r"no results in .*`ubrain run` makes them"):
        runs.draw_overview("simulated-smoke")
    paths.write_text(
        tmp_path / "papermill_runs" / "simulated-smoke" / "03_x.json", json.dumps(DOCUMENTS["03_x"])
    )
    file = runs.draw_overview("simulated-smoke")
    assert file == tmp_path / "figures" / "simulated-smoke" / "overview.png"
    first = file.read_bytes()
    assert runs.draw_overview("simulated-smoke").read_bytes() == first


def test_panels_find_what_the_committed_run_has():
    documents = results.read_results(paths.project_root() / "papermill_runs" / "simulated-fast")
    for panel in PANELS:
        if panel.notebook in documents:
            assert panel_numbers(panel, documents), panel.title
