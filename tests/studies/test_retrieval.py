"""Retrieval: galleries, voxels, areas and controls, on predictions whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest

from ubrain import scores
from ubrain.config import RetrievalConfig
from ubrain.data.simulate import truth
from ubrain.report.lab import ALONE, CROWD, Lab
from ubrain.report.studies import retrieval as study


@pytest.fixture(autouse=True)
def nothing_recorded(lab):
    lab.records.clear()


@pytest.fixture(scope="module")
def perfect(lab):
    """Stand-in for an encoder: the noiseless responses."""
    return {s: truth.noiseless_responses(lab.crowd, s) for s in lab.subjects}


@pytest.fixture(scope="module")
def noise(lab):
    rng = np.random.default_rng(0)
    return {s: rng.standard_normal(lab.measured(s).shape).astype(np.float32) for s in lab.subjects}


def pair(n_images=24, n_voxels=30, seed=1):
    rng = np.random.default_rng(seed)
    measured = rng.standard_normal((n_images, n_voxels))
    return (
        measured + 2 * rng.standard_normal(measured.shape) + rng.standard_normal(n_voxels),
        measured,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_search_in_a_part_of_the_gallery_is_a_retrieval_among_these_images(dtype):
    predicted, measured = (x.astype(dtype) for x in pair())
    search = study.Search(predicted, measured)
    for images in (np.arange(24), np.array([3, 20, 7, 11, 0]), np.array([5, 2])):
        np.testing.assert_array_equal(
            search.ranks(images), scores.retrieval_ranks(predicted[images], measured[images])
        )


def test_similarity_is_the_correlation_with_centred_predictions():
    predicted, measured = pair()
    images = np.array([4, 9, 1, 17])
    centred = predicted[images] - predicted[images].mean(0)
    expected = np.corrcoef(measured[images], centred)[:4, 4:]
    np.testing.assert_allclose(
        study.Search(predicted, measured).similarity(images), expected, atol=1e-10
    )


def test_predictions_without_an_image_find_nothing_in_any_gallery():
    _, measured = pair()
    search = study.Search(np.broadcast_to(np.arange(30.0), measured.shape), measured)
    assert (search.ranks(np.arange(6)) == 5).all()


def test_a_voxel_with_a_missing_value_is_left_out():
    predicted, measured = pair()
    broken = measured.copy()
    broken[3, 5] = np.nan
    keep = np.arange(30) != 5
    np.testing.assert_allclose(
        study.Search(predicted, broken).similarity(),
        study.Search(predicted[:, keep], measured[:, keep]).similarity(),
    )


def test_top_1_is_tabulated_for_each_subject_and_their_mean(lab, perfect):
    table = study.table(lab, {CROWD: perfect}).set_index("subject")
    each = [np.mean(scores.retrieval_ranks(perfect[s], lab.measured(s)) == 0) for s in lab.subjects]
    np.testing.assert_allclose(table.loc[lab.subjects, "top1"], each)
    assert table.loc["all", "top1"] == pytest.approx(np.mean(each))
    assert {(r.name, r.subject) for r in lab.records} >= {("top1", "all"), ("top5", "S1")}


def test_gains_are_paired(lab, perfect, noise):
    table = study.gains(lab, {CROWD: perfect, ALONE: noise}, CROWD, ALONE).set_index("subject")
    hits = [scores.retrieval_ranks(p["S2"], lab.measured("S2")) == 0 for p in (perfect, noise)]
    assert table.loc["S2", "top1"] == pytest.approx(hits[0].mean() - hits[1].mean())
    assert table.loc["all", "top1_low"] > 0


def test_smaller_galleries_are_easier_and_the_last_is_all_images(lab, perfect):
    curve = study.gallery_curve(lab, {CROWD: perfect}, [2, 10, 4000])
    mean = curve[curve["subject"] == "all"].set_index("gallery")
    assert list(mean.index) == [2, 10, 30]
    assert mean["top1"].is_monotonic_decreasing
    lab.records.clear()
    whole = study.table(lab, {CROWD: perfect}).set_index("subject")
    assert mean.loc[30, "top1"] == whole.loc["all", "top1"]


def test_galleries_of_noise_are_at_chance(lab, noise, monkeypatch):
    monkeypatch.setattr(lab, "profile", replace(lab.profile, retrieval=RetrievalConfig(draws=40)))
    rates = study.drawn_galleries(lab, study.Search(noise["S1"], lab.measured("S1")), 5)
    assert rates[:, 0].mean() == pytest.approx(0.2, abs=0.05)
    assert (rates[:, 1] == 1).all()  # the five best of five


def test_the_best_voxels_are_chosen_by_the_val_images(lab, perfect, monkeypatch):
    n = lab.crowd["S1"].n_voxels
    val_r = np.linspace(-1, 1, n)
    monkeypatch.setattr(study.predict, "Predictor", lambda encoder, subject: None)
    monkeypatch.setattr(study.predict, "correlate", lambda predictor, source, subject, rows: val_r)
    monkeypatch.setattr(Lab, "source", None)
    assert list(study.best_on_val(lab, None, "S1")[:3]) == [n - 1, n - 2, n - 3]


def test_voxels_are_counted_and_all_of_them_give_the_whole(lab, perfect, monkeypatch):
    monkeypatch.setattr(
        study, "best_on_val", lambda lab, encoder, s: np.arange(lab.crowd[s].n_voxels)
    )
    curve = study.voxel_curve(lab, None, perfect, [5, 20, 10**6])
    least = min(lab.crowd[s].n_voxels for s in lab.subjects)
    assert sorted(set(curve["n_voxels"])) == [5, 20, least]
    smallest = min(lab.subjects, key=lambda s: lab.crowd[s].n_voxels)
    mine = curve[(curve["subject"] == smallest) & (curve["n_voxels"] == least)]
    whole = np.mean(scores.retrieval_ranks(perfect[smallest], lab.measured(smallest)) == 0)
    np.testing.assert_allclose(mine["top1"], whole)
    first = curve[
        (curve["line"] == study.BY_VAL) & (curve["n_voxels"] == 5) & (curve["subject"] == "S1")
    ]["top1"].item()
    assert first == np.mean(
        scores.retrieval_ranks(perfect["S1"][:, :5], lab.measured("S1")[:, :5]) == 0
    )


def test_an_area_retrieves_with_its_own_voxels_only(lab, perfect):
    elsewhere = {
        s: np.where((lab.crowd[s].voxels["areas"] == "EBA").to_numpy(), p, 0)
        for s, p in perfect.items()
    }
    table = study.area_table(lab, elsewhere, 5).set_index(["area", "voxels"])
    assert table.loc[("V1", study.ALL_VOXELS), "top1"] == 0
    assert table.loc[("EBA", study.ALL_VOXELS), "top1"] > 0.1
    sizes = [(lab.crowd[s].voxels["areas"] == "EBA").sum() for s in lab.subjects]
    assert table.loc[("EBA", study.ALL_VOXELS), "n_voxels"] == np.mean(sizes)
    assert (table.xs("5 voxels of it", level="voxels")["n_voxels"] == 5).all()


def test_controls_lose_what_they_lose(lab, perfect, monkeypatch):
    monkeypatch.setattr(study.predict, "predict", lambda encoder, source, s, rows: perfect[s])
    monkeypatch.setattr(Lab, "source", None)
    table = study.control_table(lab, None, perfect)
    mean = table[table["subject"] == "all"].set_index("control")["top1"]
    assert list(mean.index) == list(study.CONTROLS)
    assert mean[study.OWN] > mean[study.SAME_AREA] > mean[study.ANY_VOXEL]
    assert mean[study.OTHER_SUBJECT] < mean[study.OWN]
    assert mean[study.MEAN] == 0


def test_controls_that_need_areas_are_left_out_without_them(lab, perfect, monkeypatch):
    for s in lab.subjects:
        monkeypatch.setitem(lab.crowd[s].__dict__, "voxels", lab.crowd[s].voxels.assign(areas=""))
    table = study.control_table(lab, None, perfect)
    assert set(table["control"]) == {study.OWN, study.ANY_VOXEL, study.MEAN}
    assert not len(study.area_table(lab, perfect, 5))


def test_voxels_are_exchanged_within_their_label_only():
    predicted = np.arange(12.0)[None].repeat(2, axis=0)
    labels = np.array(["a"] * 6 + ["b"] * 6)
    rng = np.random.default_rng(0)
    mine = study.exchanged(predicted, labels, labels, rng)[0]
    assert sorted(mine[:6]) == list(range(6))
    assert list(mine[:6]) != list(range(6))
    theirs = study.exchanged(predicted, labels, np.array(["b", "c", "a"]), rng)[0]
    assert theirs[0] >= 6 > theirs[2]
    assert np.isnan(theirs[1])


def test_examples_are_hits_or_misses_with_their_best_images(lab, perfect):
    measured = lab.measured("S1")
    ranks = scores.retrieval_ranks(perfect["S1"], measured)
    for hit in (True, False):
        found = study.examples(lab, perfect["S1"], "S1", 3, hit)
        assert [e.rank for e in found] == [ranks[e.query] for e in found]
        assert all(
            (e.found[0] == e.query) == hit and (np.diff(e.similarity) <= 0).all() for e in found
        )
    again = [e.query for e in study.examples(lab, perfect["S1"], "S1", 3, False)]
    assert again == [e.query for e in found]
    assert study.examples(lab, measured, "S1", 3, False) == []


def test_graded_images_are_the_best_the_middle_and_the_worst():
    predicted, measured = pair(n_images=5)
    r = np.diag(study.Search(predicted, measured).similarity())
    graded = study.graded_images(predicted, measured).set_index("grade")
    assert graded["r"].tolist() == sorted(r)[::-1][::2]
    assert graded.loc["worst", "row"] == np.argmin(r)


def test_the_mean_train_response_is_that_of_the_responses(lab):
    subject = lab.crowd["S1"]
    np.testing.assert_allclose(
        study.train_mean(subject, batch=7), subject.responses("train").mean(0), atol=1e-5
    )
