"""A crowd of datasets: who is trained with whom, for how many steps, and whose gains are told."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ubrain import config, scores
from ubrain.analysis import stats
from ubrain.data.simulate import truth
from ubrain.report.lab import ALONE, CROWD, Lab
from ubrain.report.studies import datasets as study

SEVEN, THREE, FOUR = "simulated-7T", "simulated-3T", "simulated-4T"


@pytest.fixture(autouse=True)
def nothing_recorded(lab):
    lab.records.clear()


@pytest.fixture(scope="module")
def found(lab):
    return study.groups(lab)


@pytest.fixture
def trained(lab, monkeypatch):
    """Stand-in for training: the noiseless responses with the less noise, the more subjects; and
    who was trained.
    """
    crowds = []

    def encoder(self, subjects, training=None):
        crowds.append((list(subjects), training))
        return SimpleNamespace(n=len(subjects))

    def predict(self, encoder, subject):
        noiseless = truth.noiseless_responses(self.crowd, subject)
        noise = np.random.default_rng(0).standard_normal(noiseless.shape)
        return (noiseless + 5 / encoder.n * noise).astype(np.float32)

    monkeypatch.setattr(Lab, "encoder", encoder)
    monkeypatch.setattr(Lab, "predict", predict)
    return crowds


def test_the_main_dataset_has_most_subjects_and_comes_first(lab, found):
    assert list(found) == [SEVEN, THREE, FOUR]
    assert study.main_and_others(found) == (SEVEN, [THREE, FOUR])
    assert list(study.groups(lab, ["S1", "S4", "S5"])) == [THREE, SEVEN]
    assert study.groups(lab, ["S2"]) == {SEVEN: ["S2"]}


def test_subjects_with_too_few_images_are_left_out(lab, found, monkeypatch):
    assert found[FOUR] == ["S7"]  # S6 has two val images
    monkeypatch.setitem(study.LEAST_IMAGES, "test", 25)
    assert list(study.groups(lab)) == [SEVEN]


def test_crowds_come_in_the_order_of_the_file_and_alone_is_trained_for_the_others_only(
    lab, found, trained
):
    fitted = study.fit(lab, found, [0, 2, 3, 99])
    expected = [
        ["S4"],
        ["S5"],
        ["S7"],
        ["S1", "S2", "S3"],
        ["S4", "S5"],
        ["S1", "S2", "S4", "S5"],
        ["S1", "S2", "S3", "S4", "S5"],
        ["S7"],
        ["S1", "S2", "S7"],
        ["S1", "S2", "S3", "S7"],
    ]
    assert sorted(s for s, _ in trained) == sorted(expected)
    assert list(fitted[THREE]) == [ALONE, CROWD, f"{CROWD} + 2 of {SEVEN}", study.TOGETHER]
    assert list(fitted[SEVEN]) == [CROWD, f"{CROWD} + {THREE}", f"{CROWD} + {FOUR}"]
    assert all(list(p) == found[d] for d, by in fitted.items() for p in by.values())


def test_a_joint_crowd_has_no_more_steps_than_the_main_crowd(lab, found, monkeypatch):
    training = config.TrainingConfig(epochs=10, min_steps=50, batch_images=16)
    monkeypatch.setattr(lab, "profile", replace(lab.profile, training=training))
    main, joint = found[SEVEN], found[SEVEN] + found[THREE]
    limit = study.steps(lab, main, training)
    shorter = study.joint_training(lab, joint, main)
    assert (
        study.steps(lab, joint, training) > limit >= study.steps(lab, joint, shorter) > 0.8 * limit
    )
    assert (
        study.joint_training(lab, main, main)
        == study.joint_training(lab, found[THREE], main)
        == training
    )


def test_the_plan_tells_subjects_and_steps(lab, found):
    plan = study.plan(lab, found, [2]).set_index(["dataset", "condition"])
    assert plan.loc[(THREE, study.TOGETHER), "subjects"] == 5
    assert plan.loc[(THREE, CROWD), "main subjects"] == 0
    assert plan.loc[(FOUR, f"{CROWD} + 2 of {SEVEN}"), "subjects"] == 3
    assert (len(plan), len(lab.records)) == (7, 14)
    joint = plan.loc[(THREE, study.TOGETHER)]
    train = {s: len(lab.crowd[s].image_rows("train")) for s in found[SEVEN] + found[THREE]}
    share = sum(train[s] for s in found[SEVEN]) / sum(train.values())
    assert joint["of the main dataset"] == pytest.approx(share * joint["steps"], rel=0.2)
    assert plan.loc[(THREE, CROWD), "of the main dataset"] == 0
    assert plan.loc[(SEVEN, CROWD), "of the main dataset"] == plan.loc[(SEVEN, CROWD), "steps"]


def test_gains_are_those_of_the_two_encoders(lab, found, trained):
    fitted = study.fit(lab, found, [])
    gains = study.gains(lab, fitted, found).set_index(["dataset", "of", "over", "subject"])
    a, b = (fitted[THREE][c]["S4"] for c in (study.TOGETHER, CROWD))
    expected = stats.bootstrap_median_r(a, lab.measured("S4"), b, lab.profile.bootstrap, lab.seed)
    row = gains.loc[(THREE, study.TOGETHER, CROWD, "S4")]
    assert (row["gain"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)
    assert len(gains) == 3 * 3 + 2 * 3
    recorded = {(r.name, r.condition, r.subject) for r in lab.records}
    assert ("gain_median_r", f"{study.TOGETHER} − {ALONE}", "S7") in recorded
    assert ("gain_median_r", f"{CROWD} + {FOUR} − {CROWD}", "S1") in recorded


def test_growth_counts_the_subjects_of_the_main_dataset(lab, found, trained):
    table = lab.score_table(study.pooled(study.fit(lab, found, [2]), list(found)))
    growth = study.growth(table, found, [2])
    assert sorted(set(growth["n_main"])) == [0, 2, 3]
    assert set(growth["subject"]) == {"S4", "S5", "S7"}
    three = growth[(growth["n_main"] == 3) & (growth["subject"] == "S5")]["median_r"].item()
    row = table[(table["condition"] == study.TOGETHER) & (table["subject"] == "S5")]
    assert three == row["median_r"].item()


def test_areas_pool_the_voxels_of_a_dataset_on_common_images(lab, found, trained):
    fitted = study.fit(lab, found, [])
    table = study.area_gains(lab, fitted, found, least=5).set_index(["dataset", "partner", "area"])
    inside = {s: (lab.crowd[s].voxels["areas"] == "EBA").to_numpy() for s in found[THREE]}
    r = {
        c: np.concatenate(
            [scores.correlation(fitted[THREE][c][s], lab.measured(s))[inside[s]] for s in inside]
        )
        for c in (study.TOGETHER, CROWD)
    }
    row = table.loc[(THREE, SEVEN, "EBA")]
    assert row["gain"] == pytest.approx(np.median(r[study.TOGETHER]) - np.median(r[CROWD]))
    assert row["n_voxels"] == sum(m.sum() for m in inside.values())
    assert {(d, p) for d, p, _ in table.index} >= {(THREE, SEVEN), (SEVEN, THREE), (SEVEN, FOUR)}


def test_images_that_not_all_subjects_saw_are_left_out(lab, found, trained, monkeypatch):
    fitted = study.fit(lab, found, [])
    whole = {s: lab.crowd[s].image_rows("test") for s in found[THREE]}
    monkeypatch.setattr(lab.crowd["S4"], "image_rows", lambda split: whole["S4"][3:])
    monkeypatch.setattr(
        Lab,
        "measured",
        lambda self, s: self.crowd[s].responses_to(self.crowd[s].image_rows("test")),
    )
    cut = {"S4": fitted[THREE][CROWD]["S4"][3:], "S5": fitted[THREE][CROWD]["S5"]}
    measured, a, b, areas = study._stacked(lab, ["S5", "S4"], cut, cut)
    first = lab.crowd["S5"].n_voxels
    np.testing.assert_array_equal(a[:, :first], fitted[THREE][CROWD]["S5"][3:])
    assert measured.shape == a.shape == b.shape == (17, len(areas))


def test_the_verdict_names_who_loses_and_where(lab, found):
    gains = pd.DataFrame(
        [
            {
                "dataset": d,
                "of": of,
                "over": over,
                "subject": s,
                "gain": g,
                "low": g - 0.02,
                "high": g + 0.02,
                "top1_gain": -g,
                "top1_low": -g - 0.2,
                "top1_high": -g + 0.05,
            }
            for d, of, over in [
                (THREE, study.TOGETHER, CROWD),
                (THREE, study.TOGETHER, ALONE),
                (THREE, CROWD, ALONE),
            ]
            for s, g in (("S4", 0.1), ("S5", -0.1))
        ]
        + [
            {
                "dataset": SEVEN,
                "of": f"{CROWD} + {THREE}",
                "over": CROWD,
                "subject": "S1",
                "gain": 0.0,
                "low": -0.1,
                "high": 0.1,
                "top1_gain": -0.1,
                "top1_low": -0.2,
                "top1_high": -0.05,
            }
        ]
    )
    areas = pd.DataFrame(
        [
            {
                "dataset": THREE,
                "partner": SEVEN,
                "area": a,
                "gain": g,
                "low": g - 0.1,
                "high": g + 0.1,
            }
            for a, g in (("V1", 0.2), ("V2", 0), ("FFA", -0.3))
        ]
    )
    growth = pd.DataFrame({"dataset": THREE, "n_main": [0, 3], "median_r": [0.2, 0.3]})
    planned = pd.DataFrame(
        {"dataset": THREE, "condition": [CROWD, study.TOGETHER], "steps": [100, 100]}
    )
    two = {SEVEN: found[SEVEN], THREE: found[THREE]}
    text = study.verdict(planned, gains, areas, growth, two)
    assert (
        "by the 95 % intervals gain in S4, loss in S5; top-1 +0.0 points (-10.0 … +10.0), loss in"
        " S4, neither in S5" in text
    )
    assert "gain in 1 of 3, loss in FFA, neither in V2" in text
    assert text.startswith(
        "the claim of Fig. 5, a large dataset lifts smaller ones, shows in 1 of 2 of their subjects"
    )
    assert f"lose, by interval: with {THREE} 0 in median r and 1 in top-1, of 1" in text
    assert "steps do not explain a gain" in text
    assert "neither in S1; top-1 -10.0 points (-10.0 … -10.0), loss in S1" in text
    longer = study.verdict(planned.assign(steps=[100, 150]), gains, areas, growth, two)
    assert "a gain may in part be one of longer training" in longer


def test_one_dataset_is_said_to_be_nothing_to_compare(lab, trained):
    alone = study.groups(lab, lab.subjects)
    fitted = study.fit(lab, alone, [2])
    table = lab.score_table(study.pooled(fitted, list(alone)))
    assert not len(study.gains(lab, fitted, alone))
    assert not len(study.growth(table, alone, [2]))
    assert not len(study.area_gains(lab, fitted, alone))
    parts = (
        study.plan(lab, alone, [2]),
        study.gains(lab, fitted, alone),
        study.area_gains(lab, fitted, alone),
    )
    assert "nothing to compare" in study.verdict(*parts, study.growth(table, alone, [2]), alone)
