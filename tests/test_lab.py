"""The workbench of the notebooks, on the smoke profile: one training, one JSON, clear refusals."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from ubrain.errors import UbrainError
from ubrain.report import claims
from ubrain.report.lab import ALONE, CROWD, Lab, run_name
from ubrain.report.results import Record


def test_a_training_is_done_once(lab, monkeypatch):
    first = lab.encoder(["S1"])
    monkeypatch.setattr("ubrain.train.unfinished", lambda *_: pytest.fail("trained again"))
    again = lab.encoder(["S1"])
    np.testing.assert_array_equal(lab.predict(first, "S1"), lab.predict(again, "S1"))
    with pytest.raises(pytest.fail.Exception):
        lab.encoder(["S2"])


def test_finish_writes_what_was_recorded(lab):
    lab.records.clear()
    lab.record("answer", 42, "crowd", "S1", n=3, unit="r")
    assert lab.finish() == "1 numbers -> 98_test.json"
    document = json.loads((lab.out / "98_test.json").read_text())
    assert {
        "notebook",
        "run",
        "profile",
        "crowd",
        "seed",
        "commit",
        "versions",
        "device",
        "seconds",
    } <= document.keys()
    assert document["results"] == [
        {
            "name": "answer",
            "value": 42.0,
            "condition": "crowd",
            "subject": "S1",
            "low": None,
            "high": None,
            "n": 3,
            "unit": "r",
        }
    ]


def test_the_answer_is_what_the_published_numbers_say(lab, monkeypatch):
    assert lab.answer() == claims.NOT_YET
    gain = Record("gain_median_r", 0.2, f"{CROWD} − {ALONE}", "S1", 0.1, 0.3, 40, "r")
    document = {"results": [asdict(gain)]}
    monkeypatch.setattr("ubrain.report.lab.published", lambda run, notebook: document)
    monkeypatch.setattr(lab, "notebook", "01_crowd_gains")
    first, *others = lab.answer().splitlines()
    assert first.startswith("Holds: a crowd of subjects improves each one, in median r")
    assert all(line.startswith("Not testable") for line in others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": "S1"}, "expected a list"),
        ({"subjects": ["S9"]}, "no subject 'S9'"),
        ({"subjects": ["S6"]}, "'S6' has 2 val images, the notebooks need at least 5"),
        ({"profile": "slow"}, "unknown profile 'slow'"),
        ({"crowd": "nowhere.h5"}, "no crowd file"),
    ],
)
def test_wrong_parameters_are_refused(options, message):
    with pytest.raises(UbrainError, match=message):
        Lab("98_test", **{"profile": "smoke", **options})


def test_a_run_of_a_file_cannot_take_the_name_of_the_default():
    assert run_name(None, "fast", 0) == "simulated-fast"
    assert run_name("/data/mine.h5", "fast", 2) == "mine-fast-seed2"
    assert run_name("simulated.h5", "fast", 0) != "simulated-fast"
