"""Tables of scores, on the smoke profile: what they hold is what the scores say."""

import numpy as np
import pytest

from ubrain import scores
from ubrain.data.simulate import truth
from ubrain.report.lab import ALONE, CROWD, RIDGE, Lab
from ubrain.report.studies import scoring


@pytest.fixture(scope="module")
def predictions(lab):
    """Stand-ins for models: the truth (crowd), the truth with noise (alone), and noise (ridge)."""
    rng = np.random.default_rng(0)
    true = {s: truth.noiseless_responses(lab.crowd, s) for s in lab.subjects}
    noisy = {s: t + 1.5 * rng.standard_normal(t.shape).astype(np.float32) for s, t in true.items()}
    noise = {s: rng.standard_normal(t.shape).astype(np.float32) for s, t in true.items()}
    return {RIDGE: noise, ALONE: noisy, CROWD: true}


def test_scores_are_tabulated_and_recorded(lab, predictions):
    table = scoring.score_table(lab, predictions).set_index(["condition", "subject"])
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


def test_gains_are_paired_and_a_subject_that_does_not_follow_is_below_zero(lab, predictions):
    swapped = {**predictions, CROWD: {**predictions[CROWD], "S2": predictions[RIDGE]["S2"]}}
    gains = scoring.gain_table(lab, swapped, CROWD, over=(ALONE, RIDGE))
    mine = gains[gains["over"] == ALONE].set_index("subject")
    assert (mine.loc[["S1", "S3"], "low"] > 0).all()
    assert mine.loc["S2", "high"] < 0
    r = scoring.voxel_r(lab, predictions)
    expected = np.median(r[CROWD]["S1"]) - np.median(r[ALONE]["S1"])
    assert mine.loc["S1", "gain"] == pytest.approx(expected)


def test_areas_pool_the_voxels_of_all_subjects(lab, predictions):
    table = scoring.area_table(lab, {CROWD: predictions[CROWD]}, least=1).set_index("area")
    r = {s: scores.correlation(predictions[CROWD][s], lab.measured(s)) for s in lab.subjects}
    v1 = np.concatenate([r[s][lab.crowd[s].voxels["areas"] == "V1"] for s in lab.subjects])
    assert table.loc["V1", "median_r"] == pytest.approx(np.median(v1))
    assert table.loc["V1", "n_voxels"] == len(v1)
    assert table["n_voxels"].sum() == sum(len(x) for x in r.values())


def test_the_truth_correlates_perfectly_with_itself(lab, predictions):
    table = scoring.truth_table(lab, {CROWD: predictions[CROWD]})
    np.testing.assert_allclose(table["r_true"], 1, atol=1e-6)
    assert (table["r_measured"] < 0.99).all()


def test_values_on_the_cortex_keep_voxel_and_place_together(lab, predictions):
    r = scoring.voxel_r(lab, {CROWD: predictions[CROWD]})[CROWD]
    values, voxels = scoring.on_surface(lab, r)
    first = lab.crowd["S1"].n_voxels
    np.testing.assert_array_equal(values[:first], r["S1"])
    assert (
        voxels["vertex"][:first].to_numpy() == lab.crowd["S1"].voxels["vertex"].to_numpy()
    ).all()


def test_growing_crowds_hold_every_subject_at_every_size(lab):
    found = scoring.growing_crowds(lab.subjects)
    assert sorted(found) == [1, 2, 3]
    for size, groups in found.items():
        assert all(len(set(g)) == size for g in groups)
        assert {s for g in groups for s in g} == set(lab.subjects)


def test_growth_scores_every_subject_once_at_every_size(lab, predictions, monkeypatch):
    monkeypatch.setattr(Lab, "encoder", lambda self, group: len(group))
    monkeypatch.setattr(Lab, "predict", lambda self, size, s: predictions[CROWD][s] * size)
    table = scoring.growth(lab)
    assert len(table) == 9
    r = scores.correlation(predictions[CROWD]["S2"], lab.measured("S2"))
    np.testing.assert_allclose(table[table["subject"] == "S2"]["median_r"], np.median(r))


def test_without_areas_places_or_truth_tables_are_empty(lab, predictions, monkeypatch):
    monkeypatch.setattr(truth, "subjects", lambda crowd: [])
    for s in lab.subjects:
        voxels = lab.crowd[s].voxels.assign(areas="").drop(columns="vertex")
        monkeypatch.setitem(lab.crowd[s].__dict__, "voxels", voxels)
    by_area = scoring.area_table(lab, predictions)
    assert list(by_area.columns) == ["area", "condition", "median_r", "n_voxels"]
    assert len(by_area) == len(scoring.truth_table(lab, predictions)) == 0
    values, voxels = scoring.on_surface(lab, predictions[CROWD])
    assert len(values) == len(voxels) == 0
