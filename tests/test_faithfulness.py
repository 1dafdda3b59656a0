"""The table of the paper against here: what it reads, and that the page in `docs/` is its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from ubrain.config import load_profile
from ubrain.report import faithfulness
from ubrain.report.faithfulness import UNKNOWN, counted, here

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_that_of_the_profiles():
    assert (DOCS / "faithfulness.md").read_text(encoding="utf-8") == faithfulness.page(), (
        "run `make notebooks`"
    )


def test_here_follows_the_profile():
    profile = load_profile("fast")
    row = next(r for r in faithfulness.read()["row"] if r["choice"] == "loss")
    assert here(row, counted(profile)) == "1 MSE − 0.1 cosine"
    other = replace(profile, training=replace(profile.training, mse_weight=0.1, cosine_weight=0.9))
    assert here(row, counted(other)) == "0.1 MSE − 0.9 cosine"


def test_without_such_an_option_it_is_otherwise():
    row = {"here": "{training.nothing} {x}", "otherwise": "by {x}"}
    assert here(row, {"training": load_profile("fast").training, "x": 3}) == "by 3"
    assert here({"here": "{x:.2f}", "otherwise": "{x}"}, {"x": None}) == "None"
    assert here({"here": "{x}, of", "words": {"a-b": "many"}}, {"x": "a-b"}) == "many, of"
    with pytest.raises(KeyError, match="otherwise"):
        here({"here": "{training.nothing}"}, {"training": 1})


def test_what_nobody_has_read_stays_open():
    """Every fact about the paper says how it is known."""
    said = faithfulness.table()["paper"]
    known = said[said != UNKNOWN]
    assert 0 < len(known) < len(said)
    assert known.str.contains(r"\((?:abstract|indirect)").all()
    assert set(faithfulness.table(short=True)["paper"]) <= set(said)
