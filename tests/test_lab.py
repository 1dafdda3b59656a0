"""The workbench of the notebooks, on the smoke profile: one training, one JSON, clear refusals."""

import json

import numpy as np
import pytest

from ubrain.errors import UbrainError
from ubrain.report.lab import Lab, run_name


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": "S1"}, "expected a list"),
        ({"subjects": ["S9"]}, "no subject 'S9'"),
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
