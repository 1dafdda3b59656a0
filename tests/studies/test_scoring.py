"""Tables of scores, on the smoke profile: what they hold is what the scores say."""

from dataclasses import replace

import numpy as np
import pytest

from ubrain import scores
from ubrain.data.simulate import truth
from ubrain.report import suite
from ubrain.report.lab import ALONE, CROWD, RIDGE, Lab
from ubrain.report.studies import held_out, scoring


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
    table = scoring.area_table(lab, predictions, CROWD, over=(ALONE,), least=1)
    table = table.set_index(["condition", "area"])
    v1 = {}
    for c in (ALONE, CROWD):
        r = {s: scores.correlation(predictions[c][s], lab.measured(s)) for s in lab.subjects}
        inside = [r[s][lab.crowd[s].voxels["areas"] == "V1"] for s in lab.subjects]
        v1[c] = np.median(np.concatenate(inside))
        row = table.loc[(c, "V1")]
        assert row["median_r"] == pytest.approx(v1[c])
        assert row["n_voxels"] == sum(map(len, inside))
        assert row["low"] < row["median_r"] < row["high"]
    assert table.loc[CROWD]["n_voxels"].sum() == sum(len(x) for x in r.values())
    gain = table.loc[(f"{CROWD} − {ALONE}", "V1")]
    assert gain["median_r"] == pytest.approx(v1[CROWD] - v1[ALONE])
    assert gain["low"] > 0


def test_a_crowd_is_judged_on_what_no_training_shows(lab, predictions):
    table = held_out.judge(lab, predictions).set_index(["split", "condition"])
    assert set(table.index.get_level_values("split")) == set(suite.SPLITS)
    scenes, rows = truth.scenes(lab.crowd), lab.crowd["S1"].image_rows("test")
    inside = np.array([scenes[i]["place"] == "indoor" for i in lab.crowd.image_ids[rows]])
    r = [
        scores.correlation(predictions[CROWD][s][inside], lab.measured(s)[inside])
        for s in lab.subjects
    ]
    found = table.loc[(suite.BACKGROUND, CROWD)]
    assert found["median_r"] == pytest.approx(np.median(np.concatenate(r)))
    assert found["n_images"] == inside.sum()
    assert (table.xs(f"{CROWD} − {ALONE}", level="condition")["low"] > 0).all()


def test_held_out_images_are_in_no_training(lab, monkeypatch):
    seen = []

    def encoder(self, group, source):
        seen.extend(source.crowd[s].image_rows(k) for s in group for k in ("train", "val"))
        return group

    monkeypatch.setattr(Lab, "encoder", encoder)
    monkeypatch.setattr(Lab, "predict", lambda self, encoder, s: np.zeros((1, 1)))
    found = held_out.trained(lab)
    assert list(found[ALONE]) == list(found[CROWD]) == lab.subjects[: held_out.N_ALONE]
    scenes = truth.scenes(lab.crowd)
    shown = [scenes[i] for i in lab.crowd.image_ids[np.unique(np.concatenate(seen))]]
    assert len(shown) > 50
    assert all(s["place"] != "indoor" for s in shown)
    assert all(o["category"] != "vehicle" for s in shown for o in s["objects"])


def test_a_suite_is_of_one_crowd_and_one_profile(lab):
    found = suite.suite_of(lab.crowd, "sim", lab.profile)
    assert (found.name, found.version) == ("ubrain-sim-smoke", 1)
    assert found == suite.suite_of(lab.crowd, "sim", lab.profile)
    other = replace(lab.profile, bootstrap=7)
    part = lab.crowd.select(lab.crowd["S1"])
    digests = {
        suite.suite_of(*of).digest for of in ((lab.crowd, "sim", other), (part, "sim", other))
    }
    assert len(digests | {found.digest}) == 3


def test_a_suite_of_simulated_brains_is_the_same_on_every_processor(lab, monkeypatch):
    """What is simulated differs in the last digits, and so do digests of it; seeds tell."""
    found = suite.suite_of(lab.crowd, "sim", lab.profile)
    monkeypatch.setitem(lab.crowd.__dict__, "fingerprint", "of other digits")
    assert suite.suite_of(lab.crowd, "sim", lab.profile) == found
    monkeypatch.setattr(truth, "settings", lambda *_: {"seed": 1})
    assert suite.suite_of(lab.crowd, "sim", lab.profile) != found
    monkeypatch.setattr(truth, "subjects", lambda _: [])  # as of recordings
    before = suite.suite_of(lab.crowd, "sim", lab.profile)
    monkeypatch.setitem(lab.crowd.__dict__, "fingerprint", "of others")
    assert suite.suite_of(lab.crowd, "sim", lab.profile) != before


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
    by_area = scoring.area_table(lab, predictions, CROWD)
    assert list(by_area.columns) == scoring.AREA_COLUMNS
    assert len(by_area) == len(scoring.truth_table(lab, predictions)) == 0
    values, voxels = scoring.on_surface(lab, predictions[CROWD])
    assert len(values) == len(voxels) == 0
