"""Recordings brought by a reader, on the smallest simulated crowd."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from ubrain import UbrainError, paths
from ubrain.analysis import clusters
from ubrain.crowd import Crowd
from ubrain.data.importers.rdm import import_rdm
from ubrain.data.importers.recording import Options
from ubrain.report.lab import Lab
from ubrain.report.studies import own_brain
from ubrain.report.studies.own_brain import NAME, OURS


@pytest.fixture(scope="module")
def files(lab):
    return own_brain.recording(lab)


@pytest.fixture(scope="module")
def mine(lab, files):
    return own_brain.bring(lab, files)


def test_the_simulated_newcomer_is_nobody_of_the_crowd(lab, files):
    responses = np.load(files.responses)
    images = np.load(files.images)
    assert responses.shape[1] not in (0, 1)
    known = {lab.crowd.image(i).tobytes() for i in lab.crowd.image_ids}
    assert not known & {image.tobytes() for image in images}


def test_what_is_imported_is_what_was_simulated(lab, files, mine):
    (path,) = paths.cache_root().glob(f"simulated-smoke-seed{lab.seed + own_brain.FAR}-*.h5")
    with Crowd(path) as simulated:
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


def test_incomplete_recordings_are_refused(lab):
    with pytest.raises(UbrainError, match="images and responses belong together"):
        own_brain.recording(lab, "a.npy")


def test_of_recordings_the_last_subject_leaves_the_crowd(recorded_lab):
    names = list(recorded_lab.subjects)
    files = own_brain.recording(recorded_lab)
    assert recorded_lab.subjects == names[:-1]
    before = recorded_lab.crowd[names[-1]]
    after = own_brain.bring(recorded_lab, files).crowd[NAME]
    for split in ("train", "val", "test"):
        old, new = (s.crowd.content[s.image_rows(split)] for s in (before, after))
        assert list(old) == list(new)
        np.testing.assert_allclose(after.responses(split), before.responses(split), atol=1e-5)
    recorded_lab.subjects = names[:1]
    with pytest.raises(UbrainError, match="no crowd to join"):
        own_brain.recording(recorded_lab)


def test_who_leaves_the_crowd_keeps_the_scheme_of_splits(recorded_lab):
    name, path = recorded_lab.subjects[-1], recorded_lab.crowd.path
    recorded_lab.crowd.close()
    with h5py.File(path, "r+") as file:
        split = np.roll(file["images/split"][:], 3)
        split[::7] = 255
        file["images/schemes/tau"] = split
    lab = Lab("98_test", str(path), "smoke", split_scheme="tau")
    before = lab.crowd[name]
    after = own_brain.bring(lab, own_brain.recording(lab)).crowd[NAME]
    for split in ("train", "val", "test"):
        old, new = (s.crowd.content[s.image_rows(split)] for s in (before, after))
        assert list(old) == list(new)
        assert len(new)
    assert after.crowd.scheme == "tau"


def test_shares_of_clusters_add_up(lab):
    rng = np.random.default_rng(0)
    n_voxels = sum(lab.crowd[s].n_voxels for s in lab.subjects)
    found = clusters.kmeans(rng.normal(size=(n_voxels, 4)), 3)
    labels = clusters.assign(found, rng.normal(size=(20, 4)))
    table = own_brain.cluster_table(lab, found, labels)
    assert table[["crowd", NAME]].sum().to_list() == pytest.approx([1, 1])
    assert (table["least"] <= table["crowd"]).all()
    assert (table["crowd"] <= table["most"]).all()
    assert table[NAME].iloc[0] == np.mean(labels == 0)
    first = found.labels[: lab.crowd[lab.subjects[0]].n_voxels]
    assert table["least"].iloc[0] <= np.mean(first == 0) <= table["most"].iloc[0]
    assert not table["outside"][table[NAME].between(table["least"], table["most"])].any()


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


def test_maps_are_of_r_cluster_and_ceiling(mine):
    measured = mine.measured(NAME)
    found = own_brain.voxel_maps(mine, {OURS: {NAME: measured}}, np.arange(measured.shape[1]))
    np.testing.assert_allclose(found["r"], 1, atol=1e-6)
    assert found["cluster"].min() == 1
    np.testing.assert_array_equal(found["ceiling_r"], mine.ceiling_r(NAME))


def test_patterns_of_an_rdm_stay_as_they_are(tmp_path, monkeypatch):
    """The last subject of RDMs is brought as files, and its geometry with them."""
    monkeypatch.setenv("UBRAIN_OUT", str(tmp_path / "out" / "rdm-smoke"))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (70, 8, 8, 3), np.uint8))
    rdms = np.stack([1 - np.corrcoef(rng.normal(size=(70, 40))) for _ in range(2)])
    np.savez(tmp_path / "V1_RDMs.npz", Net_RDM=np.maximum(rdms, 0))
    images, options = {"images": tmp_path / "images.npy"}, Options(val_fraction=0.2)
    import_rdm(tmp_path, tmp_path / "rdm.h5", options, dataset="r", **images)
    lab = Lab("98_test", str(tmp_path / "rdm.h5"), "smoke")
    files = own_brain.recording(lab)
    assert (lab.subjects, files.normalise) == (["r-subj01"], "none")
    mine, before = own_brain.bring(lab, files).crowd[NAME], lab.crowd["r-subj02"]
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(mine.responses(split), before.responses(split))
        assert len(mine.image_rows(split)) > 4
