"""Algonauts 2023: files written exactly as its authors package them, at tiny size."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ubrain.crowd import Crowd
from ubrain.data.importers.algonauts import import_algonauts
from ubrain.data.importers.recording import Options

N_TRAIN, N_TEST = 24, 6
VERTICES = {"lh": [3, 10, 11, 500], "rh": [0, 7, 163841]}
MAPPING = {0: "Unknown", 1: "V1v", 2: "V1d", 3: "V2v", 4: "V2d", 5: "V3v", 6: "V3d", 7: "hV4"}
EXACT = Options(dtype="float32", val_fraction=0.2)


class Packaged:
    """A folder as the challenge hands it out, and the numbers that were written into it."""

    def __init__(self, root: Path) -> None:
        self.root, self.responses, self.images = root, {}, {}

    def write(self, subject: int, images: list[int], test: list[int] | None = None) -> Path:
        """A subject that has seen these images (0-based 73k numbers, ascending), and optionally
        answered to test images.
        """
        folder = self.root / f"subj{subject:02d}"
        self.write_split(folder, subject, "training", "train", images)
        (folder / "test_split/test_images").mkdir(parents=True)
        if test is not None:
            shutil.rmtree(folder / "test_split/test_images")
            self.write_split(folder, subject, "test", "test", test)
        masks = folder / "roi_masks"
        masks.mkdir()
        for side, vertices in VERTICES.items():
            full = np.zeros(163842, np.int64)
            full[vertices] = [2, 1] + [1] * (len(vertices) - 2)  # a vertex in both masks is 2
            np.save(masks / f"{side}.all-vertices_fsaverage_space.npy", full)
            labels = np.arange(len(vertices)) % 8
            np.save(masks / f"{side}.prf-visualrois_challenge_space.npy", labels)
            np.save(masks / f"{side}.streams_challenge_space.npy", np.full(len(vertices), 5))
            np.save(masks / f"{side}.prf-visualrois_fsaverage_space.npy", full)
        np.save(masks / "mapping_prf-visualrois.npy", MAPPING)
        return folder

    def write_split(
        self, folder: Path, subject: int, split: str, prefix: str, images: list[int]
    ) -> None:
        fmri, pictures = (folder / f"{split}_split/{split}_{what}" for what in ("fmri", "images"))
        fmri.mkdir(parents=True)
        pictures.mkdir(parents=True)
        rng = np.random.default_rng([subject, len(split)])
        for side, vertices in VERTICES.items():
            self.responses[subject, split, side] = rng.normal(
                size=(len(images), len(vertices))
            ).astype(np.float32)
            np.save(fmri / f"{side}_{split}_fmri.npy", self.responses[subject, split, side])
        for row, image in enumerate(images):
            Image.fromarray(self.pixels(image)).save(
                pictures / f"{prefix}-{row + 1:04d}_nsd-{image:05d}.png", compress_level=1
            )
        self.images[subject, split] = images

    @staticmethod
    def pixels(image: int) -> np.ndarray:
        return np.random.default_rng(image).integers(0, 256, (5, 5, 3), np.uint8)

    def both(self, subject: int, split: str = "training") -> np.ndarray:
        return np.concatenate([self.responses[subject, split, side] for side in VERTICES], axis=1)


@pytest.fixture
def packaged(tmp_path: Path) -> Packaged:
    """Two subjects; images 100 to 107 are seen by both."""
    made = Packaged(tmp_path / "algonauts")
    made.write(1, [*range(100, 108), *range(200, 216)])
    made.write(2, [*range(100, 108), *range(300, 316)])
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


def responses(out: Path, subject: str, images: list[int]) -> np.ndarray:
    with Crowd(out) as crowd:
        rows = crowd.rows([f"nsd-{image:05d}" for image in images])
        return crowd[subject].responses_to(rows)


def test_row_i_belongs_to_file_i_plus_1_and_nothing_is_rescaled(
    packaged: Packaged, out: Path
) -> None:
    import_algonauts(packaged.root, out, EXACT)
    for subject in (1, 2):
        images = packaged.images[subject, "training"]
        np.testing.assert_array_equal(
            responses(out, f"algonauts-subj{subject:02d}", images), packaged.both(subject)
        )
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == 8 + 16 + 16
        np.testing.assert_array_equal(crowd.image("nsd-00203"), packaged.pixels(203))


def test_voxels_are_the_vertices_that_are_not_zero_in_the_mask(
    packaged: Packaged, out: Path
) -> None:
    import_algonauts(packaged.root, out, EXACT)
    with Crowd(out) as crowd:
        subject = crowd["algonauts-subj01"]
        assert subject.space == "fsaverage"
        assert list(subject.voxels["vertex"]) == VERTICES["lh"] + VERTICES["rh"]
        assert list(subject.voxels["hemisphere"]) == ["L"] * 4 + ["R"] * 3
        assert list(subject.voxels["areas"]) == [
            "ventral",
            "V1v,ventral",
            "V1d,ventral",
            "V2v,ventral",
            "ventral",
            "V1v,ventral",
            "V1d,ventral",
        ]


def test_names_of_areas_come_from_the_mapping(packaged: Packaged, out: Path) -> None:
    np.save(
        packaged.root / "subj01/roi_masks/mapping_prf-visualrois.npy",
        {0: "Unknown", 1: "one", 2: "two", 3: "three"},
    )
    import_algonauts(packaged.root, out, EXACT)
    with Crowd(out) as crowd:
        assert crowd["algonauts-subj01"].voxels["areas"][3] == "three,ventral"
        assert crowd["algonauts-subj02"].voxels["areas"][3] == "V2v,ventral"


class Bomb(dict):
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


def test_mapping_is_not_unpickled(packaged: Packaged, out: Path, tmp_path: Path, caplog) -> None:
    path = packaged.root / "subj01/roi_masks/mapping_prf-visualrois.npy"
    np.save(path, np.array(Bomb(tmp_path / "marker"), dtype=object))
    import_algonauts(packaged.root, out, EXACT)
    assert not (tmp_path / "marker").exists()
    assert "not a table of numbers and names; areas are named as in NSD" in caplog.text
    with Crowd(out) as crowd:
        assert crowd["algonauts-subj01"].voxels["areas"][3] == "V2v,ventral"
    np.load(path, allow_pickle=True)
    assert (tmp_path / "marker").exists()  # the file was indeed armed


def test_images_that_several_subjects_have_seen_are_the_test_images(
    packaged: Packaged, out: Path
) -> None:
    text = import_algonauts(packaged.root, out, Options(subjects=["1"], val_fraction=0.2))
    with Crowd(out) as crowd:
        assert list(crowd["algonauts-subj01"].images("test")) == [
            f"nsd-{i:05d}" for i in range(100, 108)
        ]
        assert 0 < len(crowd["algonauts-subj01"].images("val")) < 10
    assert "Not there: responses to the images of test_split." in text
    assert "z-scored per vertex and session and averaged over repeats" in text
    assert "they are used as they are, without z-scoring" in text


def test_a_subject_that_is_not_complete_does_not_matter_to_others(
    packaged: Packaged, out: Path, refused, caplog
) -> None:
    """Its images still count as seen by somebody else."""
    training(packaged.root, "rh_training_fmri.npy").unlink()
    picture(packaged.root, 20).unlink()
    with refused(out, r"has no subj01/training_split/training_fmri/rh_training_fmri\.npy"):
        import_algonauts(packaged.root, out, Options(subjects=["1"]))
    for options in (Options(subjects=["2"], val_fraction=0.2), Options(val_fraction=0.2)):
        out.unlink(missing_ok=True)
        import_algonauts(packaged.root, out, options)
        with Crowd(out) as crowd:
            assert crowd.subjects == ["algonauts-subj02"]
            assert list(crowd["algonauts-subj02"].images("test")) == [
                f"nsd-{i:05d}" for i in range(100, 108)
            ]
        assert ("subj01 is left out" in caplog.text) == (options.subjects is None)


def test_a_single_subject_has_test_images_drawn(packaged: Packaged, out: Path, refused) -> None:
    shutil.rmtree(packaged.root / "subj02")
    with refused(out, "no images that several subjects have seen; use --test drawn"):
        import_algonauts(packaged.root, out, EXACT, test="shared")
    import_algonauts(packaged.root, out, EXACT, test_fraction=0.4)
    with Crowd(out) as crowd:
        sizes = [len(crowd["algonauts-subj01"].images(split)) for split in ("train", "val", "test")]
    assert sum(sizes) == 24
    assert min(sizes) > 0


def test_official_test_responses(tmp_path: Path, out: Path) -> None:
    packaged = Packaged(tmp_path / "algonauts")
    packaged.write(1, list(range(100, 124)), test=list(range(500, 506)))
    folder = packaged.write(
        2, [*range(200, 223), 503], test=list(range(600, 606))
    )  # 503 is a test image of subject 1
    (folder / "test_split/noise_ceiling").mkdir()
    for side, vertices in VERTICES.items():
        ceiling = np.linspace(0, 0.8, len(vertices), dtype=np.float32)
        np.save(folder / f"test_split/noise_ceiling/{side}_noise_ceiling.npy", ceiling)
    import_algonauts(packaged.root, out, EXACT)
    with Crowd(out) as crowd:
        assert list(crowd["algonauts-subj01"].images("test")) == [
            f"nsd-{i:05d}" for i in range(500, 506)
        ]
        np.testing.assert_array_equal(
            crowd["algonauts-subj01"].responses("test"), packaged.both(1, "test")
        )
        assert list(crowd["algonauts-subj02"].images("test")) == [
            "nsd-00503",
            *(f"nsd-{i:05d}" for i in range(600, 606)),
        ]
        ceiling = np.concatenate([np.linspace(0, 0.8, 4), np.linspace(0, 0.8, 3)])
        np.testing.assert_allclose(
            crowd["algonauts-subj02"].noise_ceiling("test"), ceiling, atol=1e-6
        )
        said = (
            "Noise ceiling: ncsnr from the published noise ceiling of averaged responses to the"
            " official test images"
        )
        assert f"{said}." in crowd["algonauts-subj02"].account
        assert "Noise ceiling: unknown" in crowd["algonauts-subj01"].account
    text = import_algonauts(
        packaged.root, tmp_path / "drawn.h5", EXACT, test="drawn", test_fraction=0.4
    )
    assert f"{said}, which are not the test images here." in text


def test_coco_numbers(packaged: Packaged, out: Path, tmp_path: Path) -> None:
    pd.DataFrame({"nsdId": np.arange(400), "cocoId": np.arange(400) + 9000}).to_csv(
        tmp_path / "info.csv"
    )
    import_algonauts(packaged.root, out, EXACT, stim_info=tmp_path / "info.csv")
    with Crowd(out) as crowd:
        assert crowd.file["images/key"].asstr()[crowd.rows(["nsd-00203"])[0]] == "coco:9203 nsd:203"


def test_without_masks_the_place_of_voxels_is_unknown(packaged: Packaged, out: Path) -> None:
    shutil.rmtree(packaged.root / "subj01/roi_masks")
    text = import_algonauts(packaged.root, out, Options(subjects=["subj01"]))
    assert "so it is not known where the voxels are" in text
    with Crowd(out) as crowd:
        assert "vertex" not in crowd["algonauts-subj01"].voxels
        assert crowd["algonauts-subj01"].space == ""


def test_command_line(packaged: Packaged, out: Path, run_cli) -> None:
    done = run_cli(
        "import", "algonauts", "--root", packaged.root, "--out", out, "--subjects", "subj02"
    )
    assert done.returncode == 0, done.stderr
    assert "algonauts-subj02 (Algonauts2023, 7T, fsaverage): 24 trials of 24 images" in done.stdout


def training(root: Path, name: str = "lh_training_fmri.npy") -> Path:
    return root / "subj01/training_split/training_fmri" / name


def picture(root: Path, number: int) -> Path:
    return next((root / "subj01/training_split/training_images").glob(f"train-{number:04d}_*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


BAD = {
    "a row too few": (
        lambda r: np.save(training(r), np.zeros((23, 4), np.float32)),
        "23 rows, but there are 24 images",
    ),
    "another mask": (
        lambda r: np.save(training(r), np.ones((24, 5), np.float32)),
        "4 vertices, .* responses have 5",
    ),
    "whole numbers": (
        lambda r: np.save(training(r), np.zeros((24, 4), int)),
        r"expected \(n, n\) of kind 'f', got .* int64",
    ),
    "one axis": (lambda r: np.save(training(r), np.zeros(24)), r"got \(24,\) float64"),
    "truncated responses": (lambda r: cut(training(r)), r"lh_training_fmri\.npy cannot be read"),
    "an image missing": (lambda r: picture(r, 5).unlink(), "number 5 is missing"),
    "counted from 0": (
        lambda r: rename(picture(r, 24), "train-0000_nsd-09999.png"),
        "number 1 is missing",
    ),
    "an image twice": (
        lambda r: rename(picture(r, 7), "train-0007_nsd-00100.png"),
        "different images",
    ),
    "an image number too high": (
        lambda r: rename(picture(r, 7), "train-0007_nsd-73000.png"),
        "numbers below 73000",
    ),
    "a damaged image": (
        lambda r: cut(picture(r, 3)),
        r"image .*train-0003_nsd-00102\.png cannot be read",
    ),
    "a mask of another surface": (
        lambda r: np.save(
            r / "subj01/roi_masks/lh.all-vertices_fsaverage_space.npy", np.ones(10242)
        ),
        r"expected \(163842\)",
    ),
    "a mapping that is cut": (
        lambda r: cut(r / "subj01/roi_masks/mapping_prf-visualrois.npy"),
        "mapping_prf-visualrois",
    ),
    "a link": (
        lambda r: (
            shutil.move(training(r), r.parent),
            training(r).symlink_to(r.parent / "lh_training_fmri.npy"),
        ),
        "is a link to",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused(packaged: Packaged, out: Path, refused, kind: str) -> None:
    spoil, message = BAD[kind]
    spoil(packaged.root)
    with refused(out, message):
        import_algonauts(packaged.root, out, EXACT)


def test_options_that_make_no_sense(packaged: Packaged, out: Path, refused) -> None:
    for options, message in (
        ({"test": "all"}, "--test all"),
        ({"test": "official"}, "test_fmri is not there"),
        ({"test_fraction": 2}, "fractions must be"),
    ):
        with refused(out, message):
            import_algonauts(packaged.root, out, EXACT, **options)
    with refused(out, "no subject '3'; found subj01, subj02"):
        import_algonauts(packaged.root, out, Options(subjects=["3"]))


@pytest.mark.parametrize("normalise", ["session", "run"])
def test_averaged_responses_have_no_sessions(
    packaged: Packaged, out: Path, refused, normalise: str
) -> None:
    with refused(
        out,
        f"--normalise {normalise}: responses are averages over the repeats of an image in several"
        " sessions",
    ):
        import_algonauts(packaged.root, out, Options(normalise=normalise))
