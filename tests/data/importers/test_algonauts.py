"""Algonauts 2023: files written exactly as its authors package them, at tiny size."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from published import EXACT
from published.algonauts import VERTICES, Packaged, make, make_official, picture, training

from ubrain.crowd import Crowd
from ubrain.data.importers.algonauts import import_algonauts
from ubrain.data.importers.recording import Options


@pytest.fixture
def packaged(tmp_path: Path) -> Packaged:
    return make(tmp_path / "algonauts")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


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


def test_noise_ceiling_of_the_official_test_images(tmp_path: Path, out: Path) -> None:
    packaged = make_official(tmp_path / "algonauts")
    shutil.rmtree(packaged.root / "subj01/test_split/noise_ceiling")
    import_algonauts(packaged.root, out, EXACT)
    with Crowd(out) as crowd:
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
