"""The workbench of the notebooks, on the smoke profile: one training, one JSON, clear refusals."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ubrain.errors import UbrainError
from ubrain.report import claims, figures
from ubrain.report.lab import ALONE, CROWD, WITHOUT_IMAGES, Lab, run_name
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
        ({"split_scheme": "tau"}, "no split scheme 'tau' in simulated-smoke.*; it has none"),
    ],
)
def test_wrong_parameters_are_refused(options, message):
    with pytest.raises(UbrainError, match=message):
        Lab("98_test", **{"profile": "smoke", **options})


def test_a_run_of_a_file_cannot_take_the_name_of_the_default():
    assert run_name(None, "fast", 0) == "simulated-fast"
    assert run_name("/data/mine.h5", "fast", 2) == "mine-fast-seed2"
    assert run_name("simulated.h5", "fast", 0) != "simulated-fast"
    assert run_name("mine.h5", "fast", 0, "tau") == "mine-fast-split-tau"
    assert run_name("mine.h5", "fast", 2, "tau") == "mine-fast-seed2-split-tau"


def test_a_scheme_of_splits_has_encoders_and_numbers_of_its_own(small_crowd, tmp_path, monkeypatch):
    path, folders = tmp_path / "small.h5", []
    shutil.copy(small_crowd, path)
    with h5py.File(path, "r+") as file:
        file["images/schemes/same"] = split = file["images/split"][:]
        file["images/schemes/other"] = np.roll(split, 1)
    monkeypatch.setattr("ubrain.train.fit", lambda *arguments: folders.append(arguments[-1]))
    monkeypatch.delenv("UBRAIN_OUT", raising=False)
    schemes = (None, "same", "other")
    labs = [Lab("98_test", str(path), "smoke", split_scheme=scheme) for scheme in schemes]
    plain = Lab("98_test", str(small_crowd), "smoke")
    for lab in (*labs, plain):
        lab.encoder(["S1"])
    assert len({*folders}) == 3
    assert folders[0] == folders[-1]  # as if the schemes were not in the file
    assert len({lab.out for lab in labs}) == 3
    labs[2].out = tmp_path
    labs[2].finish()
    assert json.loads((tmp_path / "98_test.json").read_text())["split_scheme"] == "other"


def drawn(lab):
    """A figure of the first two images of a crowd, as a run saves it, and its caption."""
    figure, axes = plt.subplots(1, 2, layout="constrained")
    figures.images(axes, lab.pictures([0, 1]), ["a", "b"])
    lab.save(figure, "images")
    caption = " ".join(t.get_text() for t in figure.texts).replace("\n", " ")
    return [np.asarray(ax.images[0].get_array()) for ax in axes], caption


def test_images_of_recordings_are_grey_tiles_in_a_run_without_images(recorded_lab, monkeypatch):
    (first, _), caption = drawn(recorded_lab)
    np.testing.assert_array_equal(first, recorded_lab.crowd.pixels(0)[0])
    assert not caption
    recorded_lab.finish()
    file = recorded_lab.out / "98_test.json"
    assert not json.loads(file.read_text())["publishable"]
    monkeypatch.setenv(WITHOUT_IMAGES, "1")
    shown, caption = drawn(recorded_lab)
    assert [np.ptp(image) for image in shown] == [0, 0]
    assert "grey tiles: images not shown here; they come from a museum" in caption
    recorded_lab.finish()
    assert json.loads(file.read_text())["publishable"]


def test_images_are_shown_everywhere_if_the_file_says_that_they_may_be(
    lab, recorded_lab, monkeypatch
):
    monkeypatch.setenv(WITHOUT_IMAGES, "1")
    np.testing.assert_array_equal(lab.pictures([3])[0], lab.crowd.pixels([3])[0])
    assert drawn(lab)[1] == "simulated crowd"
    for name in recorded_lab.subjects:
        assert not recorded_lab.shows_images
        recorded_lab.crowd[name].settings["images_may_be_shown"] = True
    assert np.ptp(drawn(recorded_lab)[0][0]) > 0


def test_whatever_draws_images_asks_the_workbench_for_them():
    """`Crowd.pixels` and `Crowd.image` know of no terms."""
    root = Path(__file__).parents[1]
    files = [*root.glob("notebooks/*.py"), *root.glob("ubrain/report/**/*.py")]
    reads = re.compile(r"\.pixels\(|crowd\.image\(|images/pixels")
    found = {f.name for f in files if reads.search(f.read_text(encoding="utf-8"))}
    # own_brain writes files for a reader to import, clustering computes on simulated scenes, verify
    # shows a network the images
    assert found == {"lab.py", "own_brain.py", "clustering.py", "verify.py"}
