"""A crowd of datasets: who is trained with whom, for how many steps, and who gains."""

from dataclasses import replace

import numpy as np
import pytest

from ubrain import config, scores
from ubrain.analysis import stats
from ubrain.data.simulate import truth
from ubrain.report.lab import ALONE, CROWD, LEAST_IMAGES, Lab
from ubrain.report.studies import datasets as study
from ubrain.report.studies import scoring

SEVEN, THREE, FOUR = "simulated-7T", "simulated-3T", "simulated-4T"


@pytest.fixture(autouse=True)
def nothing_recorded(lab):
    lab.records.clear()


@pytest.fixture(scope="module")
def found(lab):
    return study.groups(lab)


@pytest.fixture
def trained(lab, monkeypatch):
    """Stand-in for training: the noiseless responses with the less noise, the more subjects."""

    def predict(self, encoder, subject):
        noiseless = truth.noiseless_responses(self.crowd, subject)
        noise = np.random.default_rng(0).standard_normal(noiseless.shape)
        return (noiseless + 5 / encoder * noise).astype(np.float32)

    monkeypatch.setattr(Lab, "encoder", lambda self, subjects, training=None: len(subjects))
    monkeypatch.setattr(Lab, "predict", predict)


def predict_all(lab, found, planned):
    """condition -> subject -> predictions, as the notebook collects them."""
    main, *others = found
    alone = [s for d in others for s in found[d]]
    predictions = {ALONE: {s: lab.predict(lab.encoder([s]), s) for s in alone}} if others else {}
    for t in planned:
        encoder = lab.encoder(t.subjects)
        mine = predictions.setdefault(t.condition, {})
        mine |= {s: lab.predict(encoder, s) for s in found[t.dataset]}
        if t.condition == study.TOGETHER:
            theirs = {s: lab.predict(encoder, s) for s in found[main]}
            predictions[study.with_dataset(t.dataset)] = theirs
    return predictions


def test_the_main_dataset_has_most_subjects_and_comes_first(lab, found):
    assert list(found) == [SEVEN, THREE, FOUR]
    assert list(study.groups(lab, ["S1", "S4", "S5"])) == [THREE, SEVEN]
    assert study.groups(lab, ["S2"]) == {SEVEN: ["S2"]}


def test_subjects_with_too_few_images_are_left_out(lab, found, monkeypatch):
    assert found[FOUR] == ["S7"]  # S6 has two val images
    monkeypatch.setitem(LEAST_IMAGES, "test", 25)
    assert list(study.groups(lab)) == [SEVEN]


def test_crowds_come_in_the_order_of_the_file(lab, found):
    planned = study.trainings(lab, found, [0, 2, 3, 99])
    some = f"{CROWD} + 2 of {SEVEN}"
    assert [(t.dataset, t.condition, t.n_main, t.subjects) for t in planned] == [
        (SEVEN, CROWD, 3, ["S1", "S2", "S3"]),
        (THREE, CROWD, 0, ["S4", "S5"]),
        (THREE, some, 2, ["S1", "S2", "S4", "S5"]),
        (THREE, study.TOGETHER, 3, ["S1", "S2", "S3", "S4", "S5"]),
        (FOUR, CROWD, 0, ["S7"]),
        (FOUR, some, 2, ["S1", "S2", "S7"]),
        (FOUR, study.TOGETHER, 3, ["S1", "S2", "S3", "S7"]),
    ]


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


def test_the_plan_counts_subjects_and_steps(lab, found):
    plan = study.plan(lab, study.trainings(lab, found, [2])).set_index(["dataset", "condition"])
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
    predictions = predict_all(lab, found, study.trainings(lab, found, []))
    gains = study.gains(lab, predictions, found).set_index(["dataset", "of", "over", "subject"])
    a, b = (predictions[c]["S4"] for c in (study.TOGETHER, CROWD))
    expected = stats.median_r(a, lab.measured("S4"), b)
    row = gains.loc[(THREE, study.TOGETHER, CROWD, "S4")]
    assert (row["gain"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)
    assert len(gains) == 3 * 3 + 2 * 3
    recorded = {(r.name, r.condition, r.subject) for r in lab.records}
    assert ("gain_median_r", f"{study.TOGETHER} − {ALONE}", "S7") in recorded
    assert ("gain_median_r", f"{CROWD} + {FOUR} − {CROWD}", "S1") in recorded


def test_growth_counts_the_subjects_of_the_main_dataset(lab, found, trained):
    planned = study.trainings(lab, found, [2])
    table = scoring.score_table(lab, predict_all(lab, found, planned))
    growth = study.growth(table, found, planned)
    assert sorted(set(growth["n_main"])) == [0, 2, 3]
    assert set(growth["subject"]) == {"S4", "S5", "S7"}
    three = growth[(growth["n_main"] == 3) & (growth["subject"] == "S5")]["median_r"].item()
    row = table[(table["condition"] == study.TOGETHER) & (table["subject"] == "S5")]
    assert three == row["median_r"].item()


def test_areas_pool_the_voxels_of_a_dataset_on_common_images(lab, found, trained):
    predictions = predict_all(lab, found, study.trainings(lab, found, []))
    table = study.area_gains(lab, predictions, found, least=5).set_index(
        ["dataset", "partner", "area"]
    )
    inside = {s: (lab.crowd[s].voxels["areas"] == "EBA").to_numpy() for s in found[THREE]}
    r = {
        c: np.concatenate(
            [scores.correlation(predictions[c][s], lab.measured(s))[inside[s]] for s in inside]
        )
        for c in (study.TOGETHER, CROWD)
    }
    row = table.loc[(THREE, SEVEN, "EBA")]
    assert row["gain"] == pytest.approx(np.median(r[study.TOGETHER]) - np.median(r[CROWD]))
    assert row["n_voxels"] == sum(m.sum() for m in inside.values())
    assert {(d, p) for d, p, _ in table.index} >= {(THREE, SEVEN), (SEVEN, THREE), (SEVEN, FOUR)}


def test_images_that_not_all_subjects_saw_are_left_out(lab, found, trained, monkeypatch):
    predictions = predict_all(lab, found, study.trainings(lab, found, []))
    whole = {s: lab.crowd[s].image_rows("test") for s in found[THREE]}
    monkeypatch.setattr(lab.crowd["S4"], "image_rows", lambda split: whole["S4"][3:])
    monkeypatch.setattr(
        Lab,
        "measured",
        lambda self, s: self.crowd[s].responses_to(self.crowd[s].image_rows("test")),
    )
    cut = {"S4": predictions[CROWD]["S4"][3:], "S5": predictions[CROWD]["S5"]}
    measured, a = scoring.on_common_images(lab, ["S5", "S4"], cut)
    first = lab.crowd["S5"].n_voxels
    np.testing.assert_array_equal(a[:, :first], predictions[CROWD]["S5"][3:])
    assert measured.shape == a.shape == (17, first + lab.crowd["S4"].n_voxels)


def test_of_one_dataset_there_is_nothing_to_compare(lab, trained):
    alone = study.groups(lab, lab.subjects)
    planned = study.trainings(lab, alone, [2])
    assert [(t.condition, t.subjects) for t in planned] == [(CROWD, ["S1", "S2", "S3"])]
    predictions = predict_all(lab, alone, planned)
    table = scoring.score_table(lab, predictions)
    for empty in (
        study.gains(lab, predictions, alone),
        study.growth(table, alone, planned),
        study.area_gains(lab, predictions, alone),
    ):
        assert len(empty) == 0
        assert "gain" in empty or "n_main" in empty
