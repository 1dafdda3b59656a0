"""Recordings brought by a reader, on the smallest simulated crowd."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from ubrain import UbrainError, scores
from ubrain.analysis import clusters
from ubrain.crowd import Crowd
from ubrain.report.lab import RIDGE
from ubrain.report.studies import own_brain
from ubrain.report.studies.own_brain import GRADIENT, METHODS, NAME, OURS


@pytest.fixture(scope="module")
def files(lab):
    return own_brain.recording(lab)


@pytest.fixture(scope="module")
def mine(lab, files):
    return own_brain.bring(lab, files)


@pytest.fixture(scope="module")
def joined(lab, mine):
    return own_brain.join(lab, mine, lab.subjects)


def test_the_simulated_newcomer_is_nobody_of_the_crowd(lab, files):
    responses = np.load(files.responses)
    images = np.load(files.images)
    assert responses.shape[1] not in (0, 1)
    known = {lab.crowd.image(i).tobytes() for i in lab.crowd.image_ids}
    assert not known & {image.tobytes() for image in images}


def test_what_is_imported_is_what_was_simulated(lab, files, mine):
    with Crowd(Path(files.images).with_name("simulated.h5")) as simulated:
        before, after = simulated[simulated.subjects[0]], mine.crowd[NAME]
        np.testing.assert_allclose(after.responses("test"), before.responses("test"), atol=1e-5)
        assert list(after.voxels["areas"]) == list(before.voxels["areas"])
        assert after.space == "fsaverage5"
    assert not mine.crowd.simulated


def test_files_are_listed_with_what_they_hold(files):
    table = own_brain.file_table(files)
    assert list(table.index) == ["images", "responses", "trials", "voxels", "test_images"]
    n_trials = len(np.load(files.responses))
    assert table.loc["trials", "holds"] == f"{n_trials} rows of image,session"
    assert str(np.load(files.responses).shape) in table.loc["responses", "holds"]


def test_your_own_files_take_the_newcomers_place(lab, tmp_path):
    files = own_brain.recording(
        lab,
        str(tmp_path / "a.npy"),
        str(tmp_path / "r.npy"),
        transpose=True,
        trials=None,
        scanner="",
    )
    assert (files.images, files.responses) == (tmp_path / "a.npy", tmp_path / "r.npy")
    assert files.transpose
    assert files.trials is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": "a.npy"}, "images and responses belong together"),
        ({"sessions": 3}, "unknown option 'sessions'"),
    ],
)
def test_incomplete_recordings_are_refused(lab, given, message):
    with pytest.raises(UbrainError, match=message):
        own_brain.recording(lab, **given)


def test_each_method_gives_the_newcomer_embeddings_and_leaves_the_crowds_encoder_alone(
    lab, mine, joined
):
    encoder, table = joined
    assert list(table.index) == list(METHODS)
    for method in METHODS.values():
        assert encoder.subject(method).shape == (
            mine.crowd[NAME].n_voxels,
            encoder.config.embedding_size,
        )
    crowd = lab.encoder(lab.subjects)
    assert set(crowd.embeddings) == set(lab.subjects)
    for name, parameter in crowd.state_dict().items():
        np.testing.assert_array_equal(parameter.numpy(), encoder.state_dict()[name].numpy())


def test_scores_are_those_of_the_predictions_and_share_the_notebooks_records(lab, mine, joined):
    lab.records.clear()
    found = own_brain.predictions(mine, joined[0])
    table = mine.score_table(found).set_index("condition")
    r = scores.correlation(found[OURS][NAME], mine.measured(NAME))
    assert table.loc[OURS, "median_r"] == pytest.approx(np.nanmedian(r))
    assert ("median_r", OURS, NAME) in {(x.name, x.condition, x.subject) for x in lab.records}
    gains = own_brain.gain_table(mine, found)
    assert gains["gain"].iloc[0] == pytest.approx(
        table.loc[OURS, "median_r"] - table.loc[GRADIENT, "median_r"]
    )
    shares = pd.DataFrame({"least": [0.1], "most": [0.3], NAME: [0.2]}, index=["1 face"])
    text = own_brain.verdict(lab, mine, table.reset_index(), gains, mine.area_table(found), shares)
    assert f"median r, {OURS}: {table.loc[OURS, 'median_r']:.3f}" in text


def test_the_verdict_claims_what_intervals_allow_and_names_areas_that_lose(lab, mine):
    table = pd.DataFrame({"condition": [GRADIENT, OURS], "median_r": [0.55, 0.58]})
    gains = pd.DataFrame(
        {
            "over": [GRADIENT],
            "gain": 0.03,
            "low": 0.01,
            "high": 0.05,
            "top1_gain": -0.01,
            "top1_low": -0.05,
            "top1_high": 0.02,
        }
    )
    by_area = pd.DataFrame(
        {
            "area": ["V1"] * 3 + ["hV4"] * 3,
            "condition": [RIDGE, GRADIENT, OURS] * 2,
            "median_r": [0.4, 0.5, 0.6, 0.64, 0.63, 0.58],
        }
    )
    shares = pd.DataFrame(
        {"least": [0.1, 0.1], "most": [0.3, 0.3], NAME: [0.2, 0.35]}, index=["1 face", "2 body"]
    )
    lines = own_brain.verdict(lab, mine, table, gains, by_area, shares).splitlines()
    assert lines[-6].endswith("median r: +0.030 [+0.010, +0.050]: better")
    assert lines[-5].endswith("top-1: -0.010 [-0.050, +0.020]: not told apart")
    assert lines[-4].endswith(
        f"is below {RIDGE} in 1 of 2 areas (medians, without intervals): hV4 -0.060"
    )
    assert lines[-2].endswith(
        f"is below {GRADIENT} in 1 of 2 areas (medians, without intervals): hV4 -0.050"
    )
    assert lines[-1].endswith("1 of 2; 2 body 35.0%, crowd 10.0% to 30.0%")


def test_shares_of_clusters_add_up(lab, joined):
    encoder = joined[0]
    e = np.concatenate([encoder.subject(s).detach().numpy() for s in lab.subjects])
    found = clusters.kmeans(e, 3)
    labels = clusters.assign(found, encoder.subject("ours").detach().numpy())
    table = own_brain.cluster_table(lab, found, labels)
    assert table[["crowd", own_brain.NAME]].sum().to_list() == pytest.approx([1, 1])
    assert (table["least"] <= table["crowd"]).all()
    assert (table["crowd"] <= table["most"]).all()
    assert table[own_brain.NAME].iloc[0] == np.mean(labels == 0)


def test_a_map_holds_each_voxels_number_at_its_vertex(mine):
    voxels = mine.crowd[NAME].voxels
    values = np.arange(len(voxels), dtype=np.float32)
    written, reason = own_brain.export(mine, {"number": values})
    assert [p.name for p in written] == ["maps.lh.func.gii", "maps.rh.func.gii"]
    assert not reason
    left = nib.load(written[0]).darrays[0]
    here = (voxels["hemisphere"] == "L").to_numpy()
    np.testing.assert_array_equal(left.data[voxels["vertex"][here]], values[here])
    assert left.meta["Name"] == "number"


def test_without_places_there_is_an_archive_and_a_reason(mine, monkeypatch):
    subject = mine.crowd[NAME]
    monkeypatch.setitem(subject.__dict__, "voxels", subject.voxels.drop(columns="vertex"))
    written, reason = own_brain.export(mine, {"number": np.zeros(subject.n_voxels)})
    assert [p.name for p in written] == ["maps.npz"]
    assert "places" in reason
