"""The workbench of the notebooks, on the smoke profile: what it tabulates is what the scores
say.
"""

import json

import numpy as np
import pytest

from ubrain import scores
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.report.lab import ALONE, CROWD, RIDGE, Lab, run_name


@pytest.fixture(scope="module")
def predictions(lab):
    """Stand-ins for models: the truth (crowd), the truth with noise (alone), and noise (ridge)."""
    rng = np.random.default_rng(0)
    true = {s: truth.noiseless_responses(lab.crowd, s) for s in lab.subjects}
    noisy = {s: t + 1.5 * rng.standard_normal(t.shape).astype(np.float32) for s, t in true.items()}
    noise = {s: rng.standard_normal(t.shape).astype(np.float32) for s, t in true.items()}
    return {RIDGE: noise, ALONE: noisy, CROWD: true}


def test_scores_are_tabulated_and_recorded(lab, predictions):
    table = lab.score_table(predictions).set_index(["condition", "subject"])
    recorded = {(r.name, r.condition, r.subject): r for r in lab.records}
    for condition, by_subject in predictions.items():
        for s, predicted in by_subject.items():
            row = table.loc[(condition, s)]
            r = scores.correlation(predicted, lab.measured(s))
            assert row["median_r"] == pytest.approx(np.median(r))
            assert row["low"] <= row["median_r"] <= row["high"]
            assert row["top1"] == np.mean(scores.retrieval_ranks(predicted, lab.measured(s)) == 0)
            assert (row["gallery"], row["chance_top1"]) == (30, 1 / 30)
            assert recorded["top1", condition, s].n == 30
            assert recorded["median_r", condition, s].value == row["median_r"]
    assert (table.loc[CROWD]["significant"] > 0.5).all()
    assert (table.loc[RIDGE]["significant"] < 0.2).all()


def test_gains_and_the_verdict_name_who_does_not_follow(lab, predictions):
    table = lab.score_table(predictions)
    swapped = {**predictions, CROWD: {**predictions[CROWD], "S2": predictions[RIDGE]["S2"]}}
    gains = lab.gain_table(swapped, CROWD, over=(ALONE, RIDGE))
    mine = gains[gains["over"] == ALONE].set_index("subject")
    assert (mine.loc[["S1", "S3"], "low"] > 0).all()
    assert mine.loc["S2", "high"] < 0
    r = {
        c: np.median(scores.correlation(predictions[c]["S1"], lab.measured("S1")))
        for c in (CROWD, ALONE)
    }
    assert mine.loc["S1", "gain"] == pytest.approx(r[CROWD] - r[ALONE])
    text = lab.verdict(gains, table)
    assert text.startswith(
        "the claim of Fig. 4, a crowd improves each subject, shows in 2 of 3 subjects: median r"
    )
    assert f"95 % interval of (crowd − {ALONE}) is above 0: 2 of 3 subjects; not S2" in text


def test_areas_pool_the_voxels_of_all_subjects(lab, predictions):
    table = lab.area_table({CROWD: predictions[CROWD]}, least=1).set_index("area")
    r = {s: scores.correlation(predictions[CROWD][s], lab.measured(s)) for s in lab.subjects}
    v1 = np.concatenate([r[s][lab.crowd[s].voxels["areas"] == "V1"] for s in lab.subjects])
    assert table.loc["V1", "median_r"] == pytest.approx(np.median(v1))
    assert table.loc["V1", "n_voxels"] == len(v1)
    assert table["n_voxels"].sum() == sum(len(x) for x in r.values())


def test_the_truth_correlates_perfectly_with_itself(lab, predictions):
    table = lab.truth_table({CROWD: predictions[CROWD]})
    np.testing.assert_allclose(table["r_true"], 1, atol=1e-6)
    assert (table["r_measured"] < 0.99).all()


def test_gains_on_the_cortex_keep_voxel_and_place_together(lab, predictions):
    r = lab.voxel_r({c: predictions[c] for c in (ALONE, CROWD)})
    gain, voxels = lab.pool(r, CROWD, ALONE)
    first = lab.crowd["S1"].n_voxels
    np.testing.assert_allclose(gain[:first], r[CROWD]["S1"] - r[ALONE]["S1"])
    assert (
        voxels["vertex"][:first].to_numpy() == lab.crowd["S1"].voxels["vertex"].to_numpy()
    ).all()


def test_growing_crowds_hold_every_subject_at_every_size(lab):
    found = lab.growing_crowds()
    assert sorted(found) == [1, 2, 3]
    for size, groups in found.items():
        assert all(len(set(g)) == size for g in groups)
        assert {s for g in groups for s in g} == set(lab.subjects)


def test_a_training_is_done_once(lab, monkeypatch):
    first = lab.encoder(["S1"])
    monkeypatch.setattr("ubrain.train._Training.run", lambda _: pytest.fail("trained again"))
    again = lab.encoder(["S1"])
    np.testing.assert_array_equal(lab.predict(first, "S1"), lab.predict(again, "S1"))
    with pytest.raises(pytest.fail.Exception):
        lab.encoder(["S2"])


def test_finish_writes_what_was_recorded(lab):
    lab.records.clear()
    lab.record("answer", 42, "crowd", "S1", n=3, unit="r")
    lab.finish()
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
