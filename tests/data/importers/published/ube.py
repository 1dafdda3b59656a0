"""The authors' files, as their code writes them."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import scipy.io

from published import Dataset, Form, Truth, cut, empty, web_page
from ubrain.data.importers.ube import import_ube

WIDTHS = np.array([7, 7, 7, 7, 7, 5, 7, 6])  # 6 and 8 have fewer voxels, as in the real file
STARTS = np.cumsum(WIDTHS) - WIDTHS
N_SHARED, N_OWN = 20, 30
SESSIONS = (40, 40, 20, 16, 40, 24, 40, 16)


class Authors(Dataset):
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

    def truth(self) -> dict[str, Truth]:
        found, test = {}, {f"nsd-{i:05d}" for i in self.images[0, :N_SHARED] - 1}
        for s in range(1, 1 + self.subjects):
            expected = self.expected(s)
            values = np.stack(list(expected.values())).astype(np.float32)
            found[f"ube-subj{s:02d}"] = Truth(list(expected), values, test & set(expected), "none")
        return found

    def pixels_of(self, image_id: str) -> np.ndarray:
        return self.pixels[int(image_id.removeprefix("nsd-"))]


def make(root: Path, **how: bool) -> Authors:
    """All subjects, the design, and masks of the first."""
    made = Authors(root, **how)
    made.write_design()
    made.write_masks(1, 3, "roi_masks/subj01/roi_masks")
    return made


# --- damage


def flip_in(path: Path, name: str) -> None:
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


def like(authors: Authors, name: str, dtype: type) -> np.ndarray:
    return np.nan_to_num(authors.arrays[name]).astype(dtype)


def save_images(authors: Authors, images: np.ndarray) -> None:
    np.save(authors.root / "nsd_images_224.npy", images)


DAMAGES = {
    "two files": (
        lambda a: (a.root / "copy").mkdir() or shutil.copy(a.npz, a.root / "copy/fmri_v2.npz"),
        "has several: ",
    ),
    "truncated": (lambda a: cut(a.npz), r"fmri_v2\.npz cannot be read"),
    "flipped response": (
        lambda a: flip_in(a.npz, "single_sub_fmri"),
        r"fmri_v2\.npz cannot be read: Bad CRC-32",
    ),
    "flipped shared response": (lambda a: flip_in(a.npz, "multi_sub_fmri"), "Bad CRC-32"),
    "flipped subject": (lambda a: flip_in(a.npz, "single_sub"), "Bad CRC-32"),
    "flipped kind": (lambda a: flip_in(a.npz, "type_sample"), "Bad CRC-32"),
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


DAMAGES["empty"] = (lambda a: empty(a.npz), r"fmri_v2\.npz cannot be read")
DAMAGES["a web page"] = (lambda a: web_page(a.npz), r"fmri_v2\.npz cannot be read")
FORMS = {
    "ube": Form(
        make,
        import_ube,
        sessions=False,
        needed=("fmri_v2.npz", "nsd_images_224.npy"),
        link="fmri_v2.npz",
        checked="fmri_v2.npz",
        damages=DAMAGES,
        options=tuple(
            ({given: "not-there"}, "no such file" if given != "mask" else "no such folder")
            for given in ("images", "design", "stim_info", "mask")
        ),
        command="ube",
    )
}
