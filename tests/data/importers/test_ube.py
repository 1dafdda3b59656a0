"""The authors' files: written as their code writes them, at tiny size; what is read from them, and
what is refused.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from published.ube import N_SHARED, WIDTHS, Authors

from ubrain.crowd import Crowd
from ubrain.data.importers import read as files
from ubrain.data.importers import ube
from ubrain.data.importers.read import NpzArray
from ubrain.data.importers.recording import Options
from ubrain.data.importers.ube import import_ube

EXACT = Options(dtype="float32")


@pytest.fixture
def authors(tmp_path: Path) -> Authors:
    return Authors(tmp_path / "nsd_data")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


def check_responses(out: Path, authors: Authors, subjects: range = range(1, 9)) -> None:
    """Every subject has seen the images it should have, and each of them has its own response."""
    with Crowd(out) as crowd:
        for s in subjects:
            expected, subject = authors.expected(s), crowd[f"ube-subj{s:02d}"]
            assert sorted(crowd.image_ids[subject.trials.image]) == sorted(expected)
            stored = subject.responses_to(crowd.rows(list(expected)))
            np.testing.assert_array_equal(
                stored, np.stack(list(expected.values())).astype(np.float32)
            )


def account(out: Path, subject: str = "ube-subj01") -> str:
    with Crowd(out) as crowd:
        return crowd[subject].account


# --- whose
# row it is


@pytest.mark.parametrize("base", [0, 1])
def test_subjects_are_counted_from_0_or_from_1(tmp_path: Path, out: Path, base: int) -> None:
    authors = Authors(tmp_path / "nsd_data", base)
    import_ube(authors.root, out, EXACT)
    check_responses(out, authors)
    assert (
        f"single_sub counts subjects from {base}, as the zeros behind the voxels of narrower"
        in account(out)
    )


def test_rows_with_the_padding_of_another_subject_are_refused(
    authors: Authors, out: Path, refused
) -> None:
    owner = authors.arrays["single_sub"]
    swapped = np.select([owner == 6, owner == 1], [1, 6], owner)
    authors.write(single_sub=swapped)
    with refused(out, "rows do not end where the voxels of their subject end"):
        import_ube(authors.root, out, EXACT)
    row = int(np.flatnonzero(owner == 6)[-1])
    changed = owner.copy()
    changed[row] = 1  # a single row, which is too short for the first subject
    authors.write(single_sub=changed)
    with refused(out, "rows do not end"):
        import_ube(authors.root, out, EXACT)
    rows = authors.arrays["single_sub_fmri"].copy()
    rows[row, 6] = 0.5  # a single number behind the last voxel
    authors.write(single_sub=owner, single_sub_fmri=rows)
    with refused(out, "rows do not end"):
        import_ube(authors.root, out, EXACT)


def test_numbers_of_subjects_that_fit_no_base_are_refused(
    authors: Authors, out: Path, refused
) -> None:
    owner = authors.arrays["single_sub"].copy()
    owner[0] = 0  # 0 and 8 are both there
    authors.write(single_sub=owner)
    with refused(out, "expected the numbers of 8 subjects, counted from 0 or from 1, got 0 to 8"):
        import_ube(authors.root, out, EXACT)


def test_a_few_wide_subjects_may_be_counted_from_0_or_1_unless_the_design_tells(
    tmp_path: Path, out: Path, refused
) -> None:
    authors = Authors(tmp_path / "nsd_data", base=1, subjects=4)
    with refused(out, "may be counted from 0 or from 1; give nsd_expdesign.mat with --design"):
        import_ube(authors.root, out, EXACT)
    authors.write_design()
    import_ube(authors.root, out, EXACT)
    check_responses(out, authors, range(1, 5))


def test_a_narrow_subject_tells_how_subjects_are_counted(tmp_path: Path, out: Path) -> None:
    authors = Authors(
        tmp_path / "nsd_data", base=1, subjects=6
    )  # counted from 0, rows of the sixth would be too short
    import_ube(authors.root, out, EXACT)
    check_responses(out, authors, range(1, 7))


def test_images_that_a_subject_was_never_shown_are_refused(
    authors: Authors, out: Path, refused
) -> None:
    """As if type_sample counted from 1: every image is its neighbour."""
    authors.write_design()
    authors.write(type_sample=np.roll(authors.arrays["type_sample"], 1), val_global_ind=None)
    with refused(out, "or show images that it has not seen|not the first ones of nsd_expdesign"):
        import_ube(authors.root, out, EXACT)


# ----------------------------------------------------------------------------------------------
# shared images


def test_validity_that_disagrees_with_the_rows_is_refused(
    authors: Authors, out: Path, refused
) -> None:
    valid = authors.arrays["valid_multi_sub_fmri"].copy()
    row, s = np.argwhere(~valid)[0]
    valid[row, s] = True
    authors.write(valid_multi_sub_fmri=valid)
    with refused(
        out, f"row {row} of multi_sub_fmri is not a number for subject {s + 1}, but valid_multi"
    ):
        import_ube(authors.root, out, EXACT)


def test_without_design_the_rows_are_in_ascending_order_and_that_is_said(
    authors: Authors, out: Path
) -> None:
    import_ube(authors.root, out, EXACT)
    assert "Rows of shared images: taken to be in ascending order of NSD's number" in account(out)
    assert (
        "Not there: nsd_expdesign.mat, so the order of the shared images could not be checked."
        in account(out)
    )


@pytest.mark.parametrize("ascending", [True, False])
def test_order_of_shared_images_is_that_of_the_design(
    tmp_path: Path, out: Path, ascending: bool
) -> None:
    authors = Authors(tmp_path / "nsd_data", ascending=ascending)
    authors.write_design()
    import_ube(authors.root, out, EXACT)
    check_responses(out, authors)
    assert (
        f"in {'ascending' if ascending else 'the written'} order, which fits nsd_expdesign.mat"
        in account(out)
    )


def test_rows_that_somebody_has_sorted_are_noticed_by_who_has_seen_them(
    tmp_path: Path, out: Path
) -> None:
    authors = Authors(tmp_path / "nsd_data", ascending=False)
    authors.write_design()
    new = np.argsort(authors.images[0, :N_SHARED])
    authors.write(
        **{name: authors.arrays[name][new] for name in ("multi_sub_fmri", "valid_multi_sub_fmri")}
    )
    import_ube(authors.root, out, EXACT)
    authors.images[:, :N_SHARED] = np.sort(authors.images[:, :N_SHARED])
    check_responses(out, authors)


def test_rows_in_no_known_order_are_refused(authors: Authors, out: Path, refused) -> None:
    authors.write_design()
    new = np.roll(np.arange(N_SHARED), 3)
    authors.write(
        **{name: authors.arrays[name][new] for name in ("multi_sub_fmri", "valid_multi_sub_fmri")}
    )
    with refused(out, "fits neither ascending order nor"):
        import_ube(authors.root, out, EXACT)
    everything = np.ones_like(authors.arrays["valid_multi_sub_fmri"])
    rows = np.nan_to_num(authors.arrays["multi_sub_fmri"])
    authors.write_design(
        np.concatenate([authors.images[:, new], authors.images[:, N_SHARED:]], axis=1)
    )
    authors.write(
        multi_sub_fmri=rows, valid_multi_sub_fmri=everything
    )  # all have seen all: nothing tells the order
    with refused(out, "fits both ascending order and"):
        import_ube(authors.root, out, EXACT)


def test_a_design_of_other_shared_images_is_refused(authors: Authors, out: Path, refused) -> None:
    images = authors.images.copy()
    images[:, 0] = images[0, N_SHARED]
    authors.write_design(images)
    with refused(out, r"its 20 shared images are not the first ones of nsd_expdesign\.mat"):
        import_ube(authors.root, out, EXACT)


def test_a_design_that_counts_from_0_is_refused(authors: Authors, out: Path, refused) -> None:
    authors.write_design(authors.images - authors.images.min())
    with refused(out, "subjectim: expected .* from 1 to 73000"):
        import_ube(authors.root, out, EXACT)


# ---------------------------------------------------------------------------------------------
# splits and images


def test_validation_images_are_the_authors_and_test_images_the_shared_ones(
    authors: Authors, out: Path
) -> None:
    import_ube(authors.root, out, EXACT)
    with Crowd(out) as crowd:
        named = {split: set(crowd.image_ids[crowd.split_rows(split)]) for split in ("val", "test")}
    assert named["val"] == {f"nsd-{i:05d}" for i in authors.arrays["val_global_ind"]}
    assert named["test"] == {f"nsd-{i:05d}" for i in authors.images[0, :N_SHARED] - 1}


def test_validation_images_that_disagree_are_refused(authors: Authors, out: Path, refused) -> None:
    wrong = authors.arrays["val_global_ind"] + 1  # as if they counted from 1
    authors.write(val_global_ind=wrong)
    with refused(out, "val_single_ind and val_global_ind name different images"):
        import_ube(authors.root, out, EXACT)
    authors.write(val_single_ind=np.array([0, 10**6]))
    with refused(out, "val_single_ind: expected different rows"):
        import_ube(authors.root, out, EXACT)


def test_older_files_have_fewer_arrays(authors: Authors, out: Path, refused) -> None:
    authors.write(
        num_voxels_subjects=None,
        valid_multi_sub_fmri=None,
        val_global_ind=None,
        val_single_ind=None,
        type_desc=None,
    )
    with refused(out, r"no num_voxels_subjects, and there is no num_voxels_all_subjects\.npy"):
        import_ube(authors.root, out, EXACT)
    np.save(
        authors.root / "num_voxels_all_subjects.npy",
        np.stack([WIDTHS - 3, np.full(8, 3)], axis=1).astype(float),
    )
    authors.npz.rename(authors.root / "fmri.npz")
    import_ube(authors.root, out, Options(dtype="float32", val_fraction=0.2))
    check_responses(out, authors)
    with Crowd(out) as crowd:
        assert list(crowd["ube-subj06"].voxels["hemisphere"]) == ["L"] * 2 + ["R"] * 3
        assert 10 < len(crowd.split_rows("val")) < 80


def test_hemispheres_are_known_by_their_numbers_of_voxels(
    authors: Authors, out: Path, refused
) -> None:
    halves = np.stack([WIDTHS - 3, np.full(8, 3)], axis=1)
    path = authors.root / "num_voxels_all_subjects.npy"
    np.save(path, halves + 1)
    with refused(out, r"num_voxels_all_subjects\.npy has other numbers of voxels than"):
        import_ube(authors.root, out, EXACT)
    np.save(path, halves)
    import_ube(authors.root, out, EXACT)
    with Crowd(out) as crowd:
        assert list(crowd["ube-subj02"].voxels["hemisphere"]) == ["L"] * 4 + ["R"] * 3


def test_images_may_be_nsds_own(authors: Authors, out: Path, refused, tmp_path: Path) -> None:
    (authors.root / "nsd_images_224.npy").unlink()
    with refused(out, r"has no nsd_images_224\.npy; give the images .* with --images"):
        import_ube(authors.root, out, EXACT)
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = authors.pixels
    import_ube(authors.root, out, Options(subjects=["1"]), images=tmp_path / "nsd_stimuli.hdf5")
    assert "Images: nsd_stimuli.hdf5." in account(out)
    with Crowd(out) as crowd:
        name = crowd.image_ids[0]
        np.testing.assert_array_equal(
            crowd.image(name), authors.pixels[int(name.removeprefix("nsd-"))]
        )


def test_coco_numbers(authors: Authors, out: Path) -> None:
    table = pd.DataFrame({"nsdId": np.arange(73000), "cocoId": np.arange(73000) + 100000})
    table.to_csv(authors.root / "nsd_stim_info_merged.csv")
    import_ube(authors.root, out, Options(subjects=["1"]))
    with h5py.File(out) as file:
        number = int(file["images/id"].asstr()[0].removeprefix("nsd-"))
        assert file["images/key"].asstr()[0] == f"coco:{100000 + number} nsd:{number}"


# --------------------------------------------------------------------------------------------------
# where voxels are


@pytest.mark.parametrize("place", ["roi_masks/sub6", "roi_masks/subj06/roi_masks"])
def test_places_of_voxels_come_from_the_masks(authors: Authors, out: Path, place: str) -> None:
    found = authors.write_masks(6, 2, place)
    import_ube(authors.root, out, Options(subjects=["5", "6"]))
    with Crowd(out) as crowd:
        voxels = crowd["ube-subj06"].voxels
        assert crowd["ube-subj06"].space == "fsaverage"
        assert "vertex" not in crowd["ube-subj05"].voxels
        assert crowd["ube-subj05"].space == ""
    assert list(voxels["vertex"]) == [*found["lh"], *found["rh"]]
    assert list(voxels["hemisphere"]) == ["L"] * 2 + ["R"] * 3
    assert list(voxels["areas"]) == ["", "V1v", "", "V1v", "V1d"]
    assert "so it is not known where the voxels are" in account(out, "ube-subj05")


def test_masks_of_another_subject_are_refused(authors: Authors, out: Path, refused) -> None:
    authors.write_masks(6, 2, "roi_masks/sub1")
    with refused(out, r"roi_masks/sub1: the masks have 2 \+ 3 vertices, but subj01 has 7 voxels"):
        import_ube(authors.root, out, EXACT)


# --- how
# it is read


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_are_read_in_blocks_of_bounded_size(
    authors: Authors, out: Path, monkeypatch, compressed: bool
) -> None:
    (np.savez_compressed if compressed else np.savez)(authors.npz, **authors.arrays)
    monkeypatch.setattr(ube, "PART_BYTES", 100)
    parts, whole = [], []
    load = NpzArray.load
    monkeypatch.setattr(NpzArray, "load", lambda array: whole.append(array.name) or load(array))

    def read(*given) -> Iterator:
        for part in original(*given):
            parts.append(part.values.nbytes)
            yield part

    original = ube._read
    monkeypatch.setattr(ube, "_read", read)
    import_ube(authors.root, out, EXACT)
    check_responses(out, authors)
    assert len(parts) > 50
    assert max(parts) <= 100
    assert not {"single_sub_fmri", "multi_sub_fmri"} & set(whole)


def test_columns_of_other_subjects_are_not_read(authors: Authors, out: Path, monkeypatch) -> None:
    """Rows of shared images have the voxels of all subjects: read by each of them, they would be
    read eight times.
    """
    read, exactly = [], files._exactly

    def counted(stream: Any, size: int, offset: int | None = None) -> bytes:
        read.append(size if offset is not None else 0)
        return exactly(stream, size, offset)

    monkeypatch.setattr(files, "_exactly", counted)
    import_ube(authors.root, out, EXACT)
    assert sum(read) == sum(
        response.nbytes for s in range(1, 9) for response in authors.expected(s).values()
    )


def test_nothing_is_unpickled(authors: Authors, out: Path, tmp_path: Path) -> None:
    class Bomb(dict):
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "marker"),)

    authors.write(type_desc=np.array(Bomb(), dtype=object))
    import_ube(authors.root, out, EXACT)
    assert not (tmp_path / "marker").exists()
    with np.load(authors.npz, allow_pickle=True) as file:
        assert file["type_desc"] is not None
    assert (tmp_path / "marker").exists()  # the file was indeed armed


# ------------------------------------------------------------------------------------------------
# what is refused
