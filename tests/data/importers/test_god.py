"""Generic Object Decoding: files of its three releases, written exactly as published, at tiny
size.
"""

import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from published import EXACT, flip
from published.god import (
    N_META,
    N_VOXELS,
    REPEATS,
    TEST,
    TRAINING,
    FMRIPrep,
    Original,
    image_id,
    image_pixels,
    make_fmriprep,
    make_npz,
    make_original,
    renamed,
    zscored,
)

from ubrain.crowd import Crowd
from ubrain.data.importers.god import import_god
from ubrain.data.importers.recording import Options

# Two images of one synset differ only in the last of the digits of the id; a float32 holds neither.


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The first release, subjects 1 and 2, and the images."""
    return make_original(tmp_path / "god", "h5").root


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The later preprocessing, subject 1, and the images."""
    return make_fmriprep(tmp_path / "god").root


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The release with SelfSuperReconst, subject 3."""
    return make_npz(tmp_path / "data").root


def check_responses(out: Path, subject: str, names: list[str], expected: np.ndarray) -> None:
    """The crowd has these responses, one row a trial, averaged by image."""
    with Crowd(out) as crowd:
        unique = sorted(set(names))
        mine = crowd[subject].responses_to(crowd.rows([f"god-{name}" for name in unique]))
        theirs = np.stack([expected[[n == name for n in names]].mean(0) for name in unique])
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)


# --- first release


def test_images_belong_to_ids_to_the_last_digit(root: Path, out: Path) -> None:
    import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == len(TRAINING) + len(TEST)
        for name in TRAINING + TEST:
            np.testing.assert_array_equal(crowd.image(f"god-{name}"), image_pixels(name))
        assert crowd["god-S1"].trials.repeats(
            crowd.rows(["god-n01518878_5958", "god-n01518878_5959"])
        ).tolist() == [1, 1]
        keys = crowd.file["images/key"].asstr()[:]
        assert keys[crowd.rows(["god-n03767745_109"])[0]] == "imagenet:n03767745_109"


def test_ids_that_are_off_by_the_last_bit_belong_to_the_nearest_image(
    root: Path, out: Path
) -> None:
    data = Original(1)
    data.dataset[:, 2] = np.nextafter(
        data.dataset[:, 2], np.where(np.arange(len(data.dataset)) % 2, 0, np.inf)
    )
    data.write_h5(root / "Subject1.h5")
    import_god(root, out, Options(dtype="float32", val_fraction=0.2, subjects=["1"]))
    check_responses(out, "god-S1", data.shown[:8], zscored(data.voxels[:8, :9], data.run[:8]))


def test_test_images_are_those_of_the_perception_test_with_35_repeats(
    root: Path, out: Path
) -> None:
    text = import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        subject = crowd["god-S1"]
        assert sorted(subject.images("test")) == sorted(f"god-{name}" for name in TEST)
        assert subject.trials.repeats(subject.image_rows("test")).tolist() == [REPEATS] * len(TEST)
        assert subject.voxels["ncsnr"].notna().all()
        assert (subject.dataset, subject.scanner) == ("GOD", "3T")
    assert "3 test (35 trials each)" in text
    assert "3 trials of imagery were left out" in text
    assert "ncsnr computed from the repeats" in text


def test_voxels_and_areas_are_where_the_metadata_say_1(root: Path, out: Path) -> None:
    import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        voxels = crowd["god-S1"].voxels
    assert list(voxels["areas"]) == ["V1,LVC,VC"] * 3 + ["V2,LVC,VC"] * 2 + ["HVC,VC"] + [
        "LOC,HVC,VC"
    ] * 2 + ["HVC,VC"]
    np.testing.assert_allclose(voxels["x"], np.linspace(-30, 30, N_VOXELS)[:9], rtol=1e-6)
    np.testing.assert_allclose(voxels["y"], -70.5)


@pytest.mark.parametrize(
    ("areas", "columns"),
    [("v1,ROI_LOC", [0, 1, 2, 6, 7]), ("V2", [3, 4]), ("none", list(range(10)))],
)
def test_voxels_of_some_areas(root: Path, out: Path, areas: str, columns: list[int]) -> None:
    import_god(root, out, EXACT, areas=areas)
    data = Original(1)
    expected = zscored(data.voxels[:, columns], data.kind, data.run)
    check_responses(out, "god-S1", data.shown[:8], expected[:8])


@pytest.mark.parametrize(
    "form", ["mat", "mat elsewhere", "legacy names", "stimulus_id", "run of one kind"]
)
def test_variants_of_the_file_give_the_same(root: Path, out: Path, form: str) -> None:
    data = Original(1)
    if form == "mat":
        data.write_mat(root / "Subject1.mat")
        (root / "Subject1.h5").unlink()
    if form == "mat elsewhere":
        (root / "Another").mkdir()
        Original(2).write_mat(root / "Another/Subject1.mat")
    if form == "stimulus_id":
        data.label = "stimulus_id"
    if form != "mat":
        data.write_h5(root / "Subject1.h5", legacy=form == "legacy names")
    import_god(root, out, Options(dtype="float32", val_fraction=0.2, subjects=["1"]))
    check_responses(out, "god-S1", data.shown[:8], zscored(data.voxels[:8, :9], data.run[:8]))
    with Crowd(out) as crowd:
        assert crowd["god-S1"].voxels["areas"][3] == "V2,LVC,VC"


@pytest.mark.parametrize("normalise", ["run", "none"])
def test_ncsnr_has_no_unit(root: Path, out: Path, normalise: str) -> None:
    """Of responses that are not z-scored, too: their noise is divided by their variance."""
    data = Original(1)
    data.voxels[:] = np.random.default_rng(3).normal(size=data.voxels.shape) * 5 + 3
    shown = np.array(data.shown)
    for name in TEST:
        data.voxels[shown == name] += (
            np.random.default_rng(int(image_id(name))).normal(size=N_VOXELS) * 6
        )
    data.dataset[:, N_META:] = data.voxels
    data.write_h5(root / "Subject1.h5")
    text = import_god(root, out, Options(dtype="float32", subjects=["1"], normalise=normalise))
    seen = data.kind < 3
    values, shown = data.voxels[seen, :9], shown[seen]
    values = zscored(values, data.kind[seen], data.run[seen]) if normalise == "run" else values
    noise = np.mean([values[shown == name].var(0, ddof=1) for name in TEST], axis=0) / values.var(0)
    with Crowd(out) as crowd:
        np.testing.assert_allclose(
            crowd["god-S1"].voxels["ncsnr"], np.sqrt(np.maximum(1 - noise, 0) / noise), rtol=1e-3
        )
    assert ("as they are, without z-scoring" in text) == (normalise == "none")
    assert "z-scored already" not in text


def test_without_runs_the_session_is_z_scored(root: Path, out: Path) -> None:
    data = Original(1)
    renamed("Run")(root)
    text = import_god(root, out, Options(dtype="float32", val_fraction=0.2, subjects=["S1"]))
    assert "z-scored over the trials of each session" in text
    check_responses(out, "god-S1", data.shown[:8], zscored(data.voxels[:8, :9], data.kind[:8]))


def test_zero_padded_and_lower_case_names_of_images_are_found(root: Path, out: Path) -> None:
    folder = root / "images/training"
    os.rename(folder / "n01518878_5958.JPEG", folder / "N01518878_005958.jpeg")
    import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(
            crowd.image("god-n01518878_5958"), image_pixels("n01518878_5958")
        )


def test_images_may_be_in_another_folder(root: Path, out: Path, tmp_path: Path) -> None:
    os.rename(root / "images", tmp_path / "elsewhere")
    import_god(root, out, EXACT, images=tmp_path / "elsewhere")
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == len(TRAINING) + len(TEST)


def test_trials_without_an_image_are_left_out_and_said(root: Path, out: Path) -> None:
    (root / "images/training/n01518878_5958.JPEG").unlink()
    (root / "images/test/n03767745_109.JPEG").unlink()
    text = import_god(root, out, EXACT)
    assert "Not there: 2 images, such as n01518878_5958; their 36 trials are left out" in text
    data = Original(1)
    keep = np.array([n not in ("n01518878_5958", "n03767745_109") for n in data.shown]) & (
        data.kind < 3
    )
    names = [name for name, k in zip(data.shown, keep, strict=True) if k]
    check_responses(
        out, "god-S1", names, zscored(data.voxels[keep, :9], data.kind[keep], data.run[keep])
    )


def test_a_trial_of_an_unnamed_image_is_left_out(root: Path, out: Path) -> None:
    with h5py.File(root / "Subject1.h5", "r+") as file:
        file["dataset"][0, 2] = np.nan
    text = import_god(root, out, EXACT)
    assert "1 trials of which the file does not name the image were left out" in text


def test_small_parts_give_the_same(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ubrain.data.importers.god.PART_BYTES", 8 * 13 * 5)
    test_trials_without_an_image_are_left_out_and_said(root, out)


# -------------------------------------------------------------------------------------------------
# later preprocessing


def test_later_release_names_images_by_label_and_z_scores_runs_of_sessions(
    later: Path, out: Path
) -> None:
    import_god(later, out, EXACT)
    data = FMRIPrep(1)
    for task, names in data.names.items():
        check_responses(
            out,
            "god-S1",
            names,
            zscored(data.voxels[task][:, :4], data.session[task], data.run[task]),
        )
    with Crowd(out) as crowd:
        assert sorted(crowd["god-S1"].images("test")) == sorted(f"god-{name}" for name in TEST)
        assert list(crowd["god-S1"].voxels["areas"]) == ["V1,VC", "V1,VC", "hV4,VC", "VC"]
        assert list(crowd["god-S1"].voxels["i"]) == [5, 6, 7, 8]


def test_image_index_is_looked_up_in_the_tables(later: Path, out: Path, refused) -> None:
    data = FMRIPrep(1)
    for task in ("Training", "Test"):
        data.write(later / "fmri_files" / task.lower(), 1, task, label="image_index")
    with refused(out, "only has numbers of images; put stimulus_ImageNetTraining.tsv"):
        import_god(later, out, EXACT)
    for task, names in data.order.items():
        table = pd.DataFrame([(n, image_id(n), 1, i) for i, n in enumerate(names, start=1)])
        table.to_csv(later / f"stimulus_ImageNet{task}.tsv", sep="\t", header=False, index=False)
    import_god(later, out, EXACT)
    check_responses(
        out,
        "god-S1",
        TRAINING,
        zscored(data.voxels["Training"][:, :4], data.session["Training"], data.run["Training"]),
    )


def test_only_training_is_there(later: Path, out: Path) -> None:
    (later / "fmri_files/test/Subject1_ImageNetTest.h5").unlink()
    assert "Not there: trials of test images" in import_god(later, out, EXACT)


def test_both_releases_in_one_folder(later: Path, out: Path, caplog) -> None:
    Original(1).write_h5(later / "Subject1.h5")
    import_god(later, out, Options(dry_run=True))
    assert "several releases are there (original, fmriprep); taking original" in caplog.text
    assert "fmriprep release" in import_god(later, out, EXACT, release="fmriprep")


# --- release
# with SelfSuperReconst


def test_areas_and_noise_ceiling_of_npz(packed: Path, out: Path) -> None:
    text = import_god(packed, out, EXACT)
    with Crowd(out) as crowd:
        subject = crowd["god-S3"]
        assert subject.trials.repeats(subject.image_rows("test")).tolist() == [REPEATS] * 3
        assert list(subject.voxels["areas"]) == ["V1,VC"] * 4 + ["VC"] * 5
        assert subject.voxels["ncsnr"].notna().all()
    assert "noise ceiling is not used" in text


# --- refusals


def test_a_damaged_mat_file_is_refused(root: Path, out: Path, refused) -> None:
    (root / "Subject1.h5").unlink()
    Original(1).write_mat(root / "Subject1.mat")
    whole = (root / "Subject1.mat").read_bytes()
    for at in np.linspace(0.02, 0.98, 12):
        (root / "Subject1.mat").write_bytes(whole)
        flip(root / "Subject1.mat", at, 40)
        with refused(out, r"Subject1\.mat"):
            import_god(root, out, EXACT)
        (root / "Subject1.mat").write_bytes(whole[: int(len(whole) * at)])
        with refused(out, r"Subject1\.mat"):
            import_god(root, out, EXACT)


def test_a_mat_file_that_unpacks_to_too_much_is_refused(
    root: Path, out: Path, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ubrain.data.importers.god.MAX_BYTES", 100_000)
    (root / "Subject1.h5").unlink()
    scipy.io.savemat(root / "Subject1.mat", {"dataSet": np.zeros((400, 500))}, do_compression=True)
    assert (root / "Subject1.mat").stat().st_size < 5000
    with refused(out, "are too large to be what is expected"):
        import_god(root, out, EXACT)


def test_test_trials_of_other_voxels_than_training_are_refused(
    later: Path, out: Path, refused
) -> None:
    with h5py.File(later / "fmri_files/test/Subject1_ImageNetTest.h5", "r+") as file:
        file["metadata/value"][-1, 3] = 77
    with refused(out, r"its voxels are not those of Subject1_ImageNetTraining\.h5"):
        import_god(later, out, EXACT)
