"""The authors' files: written as their code writes them, at tiny size; what is read from them, and
what is refused.
"""

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io

from ubrain.crowd import Crowd
from ubrain.data.importers import read as files
from ubrain.data.importers import ube
from ubrain.data.importers.read import NpzArray
from ubrain.data.importers.recording import Options
from ubrain.data.importers.ube import import_ube
from ubrain.errors import UbrainError

WIDTHS = np.array([7, 7, 7, 7, 7, 5, 7, 6])  # 6 and 8 have fewer voxels, as in the real file
STARTS = np.cumsum(WIDTHS) - WIDTHS
N_SHARED, N_OWN = 20, 30
SESSIONS = (40, 40, 20, 16, 40, 24, 40, 16)
EXACT = Options(dtype="float32")


class Authors:
    """A folder as the authors' code makes it, and the numbers that were written into it."""

    def __init__(
        self, root: Path, base: int = 1, subjects: int = 8, ascending: bool = True
    ) -> None:
        self.root, self.base, self.subjects = root, base, subjects
        root.mkdir()
        rng = np.random.default_rng(4)
        self.order = rng.permuted(
            np.repeat(np.arange(1, N_SHARED + N_OWN + 1), 2)
        )  # of 40 sessions; the file has 750 trials, of which the others show the first image again
        shared = np.sort(rng.choice(73000, N_SHARED, replace=False)) + 1
        shared = shared if ascending else np.roll(shared, 7)
        others = rng.permutation(np.setdiff1d(np.arange(1, 73001), shared))
        own = others[: 8 * N_OWN].reshape(8, N_OWN)
        self.images = np.concatenate(
            [np.tile(shared, (8, 1)), own], axis=1
        )  # subjectim: counts from 1
        self.shown = [
            self.images[s, np.unique(self.order[: len(self.order) * SESSIONS[s] // 40]) - 1] - 1
            for s in range(8)
        ]
        self.arrays = self.make(rng)
        np.savez(self.npz, **self.arrays)
        self.pixels = rng.integers(0, 256, (73000, 2, 2, 3), np.uint8)
        np.save(root / "nsd_images_224.npy", self.pixels)

    @property
    def npz(self) -> Path:
        return self.root / "fmri_v2.npz"

    def make(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """All arrays of fmri_v2.npz, as prepare_fmri.py makes them from z-scored, averaged
        responses.
        """
        shared = self.images[0, :N_SHARED] - 1
        kinds, owner = np.zeros(73000), np.zeros(73000, dtype=int)
        for s in range(self.subjects):
            kinds[self.shown[s]], owner[self.shown[s]] = 1, s + self.base
        kinds[shared] = 2
        single = np.flatnonzero(kinds == 1)
        rows = rng.normal(size=(len(single), 7))
        for row, image in enumerate(single):
            rows[row, WIDTHS[owner[image] - self.base] :] = 0
        valid = np.stack([np.isin(shared, self.shown[s]) for s in range(8)], axis=1)
        multi = rng.normal(size=(N_SHARED, WIDTHS.sum()))
        multi[~np.repeat(valid, WIDTHS, axis=1)] = np.nan
        validation = np.sort(rng.choice(len(single), 12, replace=False))
        return {
            "num_voxels_subjects": WIDTHS,
            "type_sample": kinds,
            "single_sub_fmri": rows.astype(np.float16),
            "multi_sub_fmri": multi.astype(np.float16),
            "valid_multi_sub_fmri": valid,
            "type_desc": np.array(
                {0: "no measurment", 1: "single sub", 2: "multi sub"}, dtype=object
            ),
            "single_sub": owner[single],
            "val_single_ind": validation,
            "val_global_ind": rng.permutation(single[validation]),
        }

    def write(self, **changed: np.ndarray | None) -> None:
        """Write fmri_v2.npz with some arrays replaced, or left out (None)."""
        self.arrays = {name: a for name, a in (self.arrays | changed).items() if a is not None}
        np.savez(self.npz, **self.arrays)

    def write_design(self, images: np.ndarray | None = None) -> Path:
        path = self.root / "experiment/nsd_expdesign.mat"
        path.parent.mkdir(exist_ok=True)
        images = self.images if images is None else images
        scipy.io.savemat(
            path,
            {
                "masterordering": np.append(self.order, [self.order[0]] * 650)[None],
                "subjectim": images.astype(np.int32),
                "sharedix": images[:1, :N_SHARED],
            },
        )
        return path

    def write_masks(self, subject: int, left: int, place: str) -> dict[str, np.ndarray]:
        """Masks and areas of a subject with `left` vertices in the left hemisphere."""
        folder = self.root / place
        folder.mkdir(parents=True)
        counts, found = {"lh": left, "rh": int(WIDTHS[subject - 1]) - left}, {}
        for side, n in counts.items():
            full = np.zeros(163842, np.int64)
            found[side] = np.arange(n) * 100 + 3
            full[found[side]] = 1
            full[3] = 2  # in both of the masks that were added
            np.save(folder / f"{side}.all-vertices_fsaverage_space.npy", full)
            np.save(folder / f"{side}.prf-visualrois_challenge_space.npy", np.arange(n))
        return found

    def expected(self, subject: int) -> dict[str, np.ndarray]:
        """The subject's response to each image it has seen, by name, from the definition of the
        arrays.
        """
        a, s = self.arrays, subject - 1
        single, width = np.flatnonzero(a["type_sample"] == 1), WIDTHS[s]
        found = {
            f"nsd-{single[row]:05d}": a["single_sub_fmri"][row, :width]
            for row in np.flatnonzero(a["single_sub"] == s + self.base)
        }
        shared = self.images[0, :N_SHARED] - 1
        seen = [row for row, image in enumerate(shared) if image in self.shown[s]]
        return found | {
            f"nsd-{shared[row]:05d}": a["multi_sub_fmri"][row, STARTS[s] : STARTS[s] + width]
            for row in seen
        }


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


def test_zeros_behind_the_last_voxel_are_no_voxels(authors: Authors, out: Path) -> None:
    import_ube(authors.root, out, EXACT)
    with Crowd(out) as crowd:
        assert [crowd[name].n_voxels for name in crowd.subjects] == WIDTHS.tolist()


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


def test_shared_images_that_a_subject_has_not_seen_are_left_out(
    authors: Authors, out: Path
) -> None:
    valid = authors.arrays["valid_multi_sub_fmri"]
    assert not valid.all()
    import_ube(authors.root, out, EXACT)
    with Crowd(out) as crowd:
        for s in range(8):
            assert len(crowd[f"ube-subj{s + 1:02d}"].images("test")) == valid[:, s].sum()
            assert (
                crowd[f"ube-subj{s + 1:02d}"].n_voxels == WIDTHS[s]
            )  # a row of NaN makes no voxel unusable


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


def test_images_are_rows_of_the_array_by_nsd_number(authors: Authors, out: Path) -> None:
    import_ube(authors.root, out, Options(subjects=["3"]))
    with Crowd(out) as crowd:
        for name in crowd.image_ids:
            np.testing.assert_array_equal(
                crowd.image(name), authors.pixels[int(name.removeprefix("nsd-"))]
            )


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


def test_command_line(authors: Authors, out: Path, run_cli) -> None:
    done = run_cli(
        "import", "ube", "--root", authors.root, "--out", out, "--subjects", "2", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert "ube-subj02 (UBE, 7T): 50 trials of 50 images" in done.stdout
    assert not out.exists()
    done = run_cli(
        "import", "ube", "--root", authors.root.parent, "--out", out, "--subjects", "2,6"
    )
    assert done.returncode == 0, done.stderr
    assert "they are used as they are, without z-scoring" in done.stdout
    assert "do not count them twice" in done.stdout
    check_responses(out, authors, range(6, 7))


# ------------------------------------------------------------------------------------------------
# what is refused


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path: Path, name: str) -> None:
    """Change one number of an array of the archive, and not its checksum."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo(f"{name}.npy").header_offset
    data[begin + 400] ^= 0x40
    path.write_bytes(data)


def change_checksum(authors: Authors) -> None:
    """A compressed archive that can be unpacked, but not to what was packed."""
    np.savez_compressed(authors.npz, **authors.arrays)
    data = bytearray(authors.npz.read_bytes())
    # in the directory at the end
    entry = data.index(b"multi_sub_fmri.npy", data.index(b"PK\x01\x02")) - 46
    data[entry + 16] ^= 1
    authors.npz.write_bytes(data)


def lie(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """An archive in which an array says that it is larger than it is."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    members[f"{name}.npy"] = (
        b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"ab"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for n, data in members.items():
            archive.writestr(n, data)


def bomb(authors: Authors) -> None:
    """A small archive that unpacks to much more than the images account for."""
    arrays = authors.arrays | {"single_sub_fmri": np.zeros((200000, 64), np.float16)}
    np.savez_compressed(authors.npz, **arrays)
    assert authors.npz.stat().st_size < 1 << 20


def link(path: Path) -> None:
    shutil.move(path, path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def like(authors: Authors, name: str, dtype: type) -> np.ndarray:
    return np.nan_to_num(authors.arrays[name]).astype(dtype)


def save_images(authors: Authors, images: np.ndarray) -> None:
    np.save(authors.root / "nsd_images_224.npy", images)


BAD = {
    "no file": (lambda a: a.npz.unlink(), r"has no fmri_v2\.npz"),
    "two files": (
        lambda a: (a.root / "copy").mkdir() or shutil.copy(a.npz, a.root / "copy/fmri_v2.npz"),
        "has several: ",
    ),
    "empty": (lambda a: a.npz.write_bytes(b""), r"fmri_v2\.npz cannot be read"),
    "web page": (
        lambda a: a.npz.write_text("<html>quota exceeded</html>"),
        r"fmri_v2\.npz cannot be read",
    ),
    "truncated": (lambda a: cut(a.npz), r"fmri_v2\.npz cannot be read"),
    "flipped response": (
        lambda a: flip(a.npz, "single_sub_fmri"),
        r"fmri_v2\.npz cannot be read: Bad CRC-32",
    ),
    "flipped shared response": (lambda a: flip(a.npz, "multi_sub_fmri"), "Bad CRC-32"),
    "flipped subject": (lambda a: flip(a.npz, "single_sub"), "Bad CRC-32"),
    "flipped kind": (lambda a: flip(a.npz, "type_sample"), "Bad CRC-32"),
    "another checksum": (change_checksum, "Bad CRC-32 for file 'multi_sub_fmri"),
    "no responses": (lambda a: a.write(single_sub_fmri=None), "no array 'single_sub_fmri'; found"),
    "no shared responses": (lambda a: a.write(multi_sub_fmri=None), "no array 'multi_sub_fmri'"),
    "no subjects": (lambda a: a.write(single_sub=None), "no array 'single_sub'"),
    "no kinds": (lambda a: a.write(type_sample=None), "no array 'type_sample'"),
    "whole numbers": (
        lambda a: a.write(single_sub_fmri=like(a, "single_sub_fmri", int)),
        "of kind 'f', got .* int64",
    ),
    "pickled": (
        lambda a: a.write(single_sub_fmri=like(a, "single_sub_fmri", object)),
        "holds pickled objects",
    ),
    "text": (lambda a: a.write(single_sub=a.arrays["single_sub"].astype(str)), "of kind 'iuf'"),
    "a row too few": (
        lambda a: a.write(single_sub_fmri=a.arrays["single_sub_fmri"][1:]),
        r"expected \(\d+, 7\)",
    ),
    "a column too few": (
        lambda a: a.write(multi_sub_fmri=a.arrays["multi_sub_fmri"][:, 1:]),
        r"expected \(20, 53\)",
    ),
    "a subject too few": (
        lambda a: a.write(single_sub=a.arrays["single_sub"][1:]),
        "'single_sub': expected",
    ),
    "transposed": (
        lambda a: a.write(multi_sub_fmri=a.arrays["multi_sub_fmri"].T),
        r"got \(53, 20\)",
    ),
    "by columns": (
        lambda a: a.write(multi_sub_fmri=np.asfortranarray(a.arrays["multi_sub_fmri"])),
        "Fortran order",
    ),
    "other images": (
        lambda a: a.write(type_sample=a.arrays["type_sample"][:-1]),
        r"expected \(73000\)",
    ),
    "other kinds": (
        lambda a: a.write(type_sample=a.arrays["type_sample"] * 3),
        "type_sample: expected 0, 1 or 2",
    ),
    "half a subject": (
        lambda a: a.write(single_sub=a.arrays["single_sub"] - 0.5),
        "expected the numbers of 8 subjects",
    ),
    "no voxels": (
        lambda a: a.write(num_voxels_subjects=np.array([0, 7])),
        "expected the numbers of voxels",
    ),
    "endless voxels": (
        lambda a: a.write(num_voxels_subjects=np.array([1 << 60])),
        "expected the numbers of voxels",
    ),
    "absurd size": (lambda a: lie(a.npz, "single_sub_fmri", (1 << 40, 1 << 20)), "but has 2 bytes"),
    "negative size": (lambda a: lie(a.npz, "single_sub_fmri", (-1, -1)), "expected|cannot be read"),
    "zip bomb": (bomb, r"got \(200000, 64\)"),
    "a link": (lambda a: link(a.npz), "is a link to"),
    "images cut": (
        lambda a: cut(a.root / "nsd_images_224.npy"),
        r"nsd_images_224\.npy cannot be read",
    ),
    "images as float": (
        lambda a: save_images(a, a.pixels.astype(np.float16)),
        "'uint8', got .* float16",
    ),
    "other images array": (lambda a: save_images(a, a.pixels[:500]), r"got \(500, 2, 2, 3\)"),
    "channels first": (
        lambda a: save_images(a, a.pixels.transpose(0, 3, 1, 2)),
        r"got \(73000, 3, 2, 2\)",
    ),
    "two image arrays": (
        lambda a: np.save(a.root / "all_images_v2_224.npy", a.pixels),
        "has several: ",
    ),
    "design cut": (lambda a: cut(a.write_design()), r"nsd_expdesign\.mat cannot be read"),
    "design of something": (
        lambda a: scipy.io.savemat(a.write_design(), {"x": 1}),
        "'masterordering' is missing",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused(authors: Authors, out: Path, refused, kind: str) -> None:
    spoil, message = BAD[kind]
    spoil(authors)
    with refused(out, message):
        import_ube(authors.root, out, EXACT)


def test_flipped_bytes_never_make_a_wrong_crowd_file(authors: Authors, out: Path) -> None:
    """Wherever a byte is flipped: an UbrainError, or the flip was in what is not read (names and
    times of the archive).
    """
    (authors.root / "nsd_images_224.npy").rename(authors.root / "images.npy")
    rng, whole, refusals = np.random.default_rng(0), authors.npz.read_bytes(), 0
    options = Options(dtype="float32", subjects=["1"])
    for at in rng.integers(0, len(whole), 25):
        authors.npz.write_bytes(
            whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :]
        )
        try:
            import_ube(authors.root, out, options, images=authors.root / "images.npy")
        except UbrainError:
            refusals += 1
            assert not out.exists()
        else:
            check_responses(out, authors, range(1, 2))
            out.unlink()
    assert refusals > 10


def test_options_that_make_no_sense(authors: Authors, out: Path, refused) -> None:
    for given in ("images", "design", "stim_info"):
        with refused(out, "no such file"):
            import_ube(authors.root, out, EXACT, **{given: authors.root / "not-there"})
    with refused(out, "no such folder"):
        import_ube(authors.root, out, EXACT, mask=authors.root / "not-there")
    with refused(out, "no subject '9'; found subj01"):
        import_ube(authors.root, out, Options(subjects=["9"]))


@pytest.mark.parametrize("normalise", ["session", "run"])
def test_averaged_responses_have_no_sessions(
    authors: Authors, out: Path, refused, normalise: str
) -> None:
    with refused(
        out,
        f"--normalise {normalise}: responses are averages over the repeats of an image in several"
        " sessions",
    ):
        import_ube(authors.root, out, Options(normalise=normalise))
