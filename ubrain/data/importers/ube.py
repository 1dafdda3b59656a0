"""The files of the paper's authors: fmri_v2.npz (NSD on fsaverage, z-scored and averaged) and
nsd_images_224.npy.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.algonauts import ALGONAUTS, vertices
from ubrain.data.importers.layouts import layout
from ubrain.data.importers.masks import Selection
from ubrain.data.importers.nsd import (
    HEMISPHERES,
    IMAGES,
    Design,
    Stimuli,
    coco_numbers,
    open_stimuli,
    read_mask,
)
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import Folder, NpzArray, check_array, load_npy, npz_names, open_npz
from ubrain.data.importers.recording import (
    AVERAGED,
    DEFAULTS,
    PART_BYTES,
    Block,
    Options,
    Part,
    Recording,
    select,
)
from ubrain.errors import UbrainError
from ubrain.progress import track

UBE = layout("ube")
MASK = "all-vertices_fsaverage_space.npy"
NOT_SHOWN, SINGLE, SHARED = 0, 1, 2  # in type_sample


def import_ube(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    images: str | Path | None = None,
    mask: str | Path | None = None,
    design: str | Path | None = None,
    stim_info: str | Path | None = None,
) -> str:
    """Write the crowd of the paper's authors into a crowd file.

    Parameters
    ----------
    root : folder that holds fmri_v2.npz, at any depth, such as `data/nsd_data` of the authors'
        code.
    out : crowd file to write (.h5).
    options : those that all importers share.
    images : nsd_images_224.npy (or all_images_v2_224.npy), or NSD's own nsd_stimuli.hdf5; default:
        whichever is in `root`.
    mask : folder of the Algonauts 2023 masks, which say where the voxels are; default: `root`.
    design : nsd_expdesign.mat, with which the order of the rows is checked; default: the one in
        `root`, if there is one.
    stim_info : nsd_stim_info_merged.csv, which says from which COCO photographs the images were
        cut, so that other datasets with the same photographs keep their splits; default: the one in
        `root`, if there is one.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the others; or if it cannot be known whose a
        row is.
    """
    folder = Folder(root, options.follow_links)
    masks = Folder(mask, options.follow_links) if mask is not None else folder
    design_file = _the_one(folder, r"nsd_expdesign\.mat", design)
    crowd = _Responses(folder, Design(design_file) if design_file else None)
    info = _the_one(folder, r"nsd_stim_info_merged\.csv", stim_info)
    coco = coco_numbers(info) if info else {}
    path = _the_one(folder, UBE.pictures, images) or _the_one(folder, r"nsd_stimuli\.hdf5")
    if path is None:
        raise UbrainError(
            f"{folder} has no nsd_images_224.npy; give the images (or NSD's nsd_stimuli.hdf5) with"
            " --images"
        )
    with open_stimuli(path) as pixels:
        shown = Stimuli(path, pixels, crowd.splits(), coco)
        numbers = {f"subj{s + 1:02d}": s for s in range(len(crowd.widths)) if crowd.n_images(s)}
        names = select(options.subjects, numbers, folder)
        recordings = [_recording(name, numbers[name], crowd, shown, masks) for name in names]
        return import_recordings(recordings, out, options, {"dataset": "ube", "images": path.name})


def _the_one(folder: Folder, pattern: str, given: str | Path | None = None) -> Path | None:
    """A file by its path, or else the one in the folder, if there is one."""
    if given is not None:
        if not Path(given).is_file():
            raise UbrainError(f"{given}: no such file")
        return Path(given)
    found = folder.search(pattern)
    if len(found) > 1:
        names = ", ".join(folder.name(path) for path in found)
        raise UbrainError(f"{folder} has several: {names}; keep one there")
    return found[0] if found else None


# --- responses


class _Responses:
    """What fmri_v2.npz says, checked; the responses themselves stay in the file.

    Attributes
    ----------
    widths : numbers of voxels of the subjects, (n_subjects,).
    single : NSD's numbers, from 0, of the images that one subject has seen, (n_single,), the rows
        of single_sub_fmri.
    owner : that subject, from 0, (n_single,).
    shared : the same for images that several subjects have seen, (n_shared,), the rows of
        multi_sub_fmri.
    seen : who has seen them, (n_shared, n_subjects).
    """

    def __init__(self, folder: Folder, design: Design | None) -> None:
        path = _the_one(folder, r"fmri_v2\.npz") or _the_one(folder, r"fmri\.npz")
        if path is None:
            raise UbrainError(f"{folder} has no fmri_v2.npz")
        self.path, self.design, self.names = path, design, npz_names(path)
        kinds = self._whole("type_sample", "iuf", (IMAGES,))
        if not np.isin(kinds, (NOT_SHOWN, SINGLE, SHARED)).all():
            raise UbrainError(
                f"{path}: type_sample: expected 0, 1 or 2 for each of NSD's {IMAGES} images"
            )
        self.single, self.shared = np.flatnonzero(kinds == SINGLE), np.flatnonzero(kinds == SHARED)
        self.widths, self.halves = self._widths(folder)
        self.ends = np.cumsum(self.widths)
        self.starts = self.ends - self.widths
        self.single_fmri = self._rows("single_sub_fmri", len(self.single), int(self.widths.max()))
        self.shared_fmri = self._rows("multi_sub_fmri", len(self.shared), int(self.widths.sum()))
        self.owner = self._owners()
        self.seen = self._seen()
        self.validation = self._validation()
        self.shared, self.order = self._order_of_shared()

    def _whole(
        self, name: str, kinds: str, shape: Sequence[int | None], longest: int = IMAGES
    ) -> NDArray:
        where = f"{self.path}: {name!r}"
        array: NpzArray = check_array(open_npz(self.path, name), where, kinds, shape)
        _check_length(array, longest, where)
        return array.load()

    def _rows(self, name: str, n: int, width: int) -> NpzArray:
        where = f"{self.path}: {name!r}"
        array: NpzArray = check_array(open_npz(self.path, name), where, "f", (n, width))
        if array.fortran:
            raise UbrainError(
                f"{where} is stored column by column (Fortran order), but is read by rows; save it"
                " again after numpy.ascontiguousarray"
            )
        return array

    def _widths(self, folder: Folder) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Voxels per subject, (n_subjects,), and per hemisphere if known, (n_subjects, 2)."""
        widths, halves = np.zeros(0, dtype=np.int64), None
        path = _the_one(folder, r"num_voxels_all_subjects\.npy")
        if path is not None:
            numbers = load_npy(path)
            check_array(numbers, str(path), "iuf", (None, 2) if numbers.ndim == 2 else (None,))
            _check_length(numbers, UBE.subjects, path)
            widths = _counts(numbers, path)
            widths, halves = (widths.sum(1), widths) if widths.ndim == 2 else (widths, None)
        if "num_voxels_subjects" in self.names:
            inside = self._whole("num_voxels_subjects", "iuf", (None,), UBE.subjects)
            if path is not None and not np.array_equal(inside, widths):
                raise UbrainError(
                    f"{path} has other numbers of voxels than {self.path}: {widths.tolist()}, not"
                    f" {inside.tolist()}; is it of another file?"
                )
            widths = _counts(inside, self.path)
        elif path is None:
            raise UbrainError(
                f"{self.path} has no num_voxels_subjects, and there is no"
                " num_voxels_all_subjects.npy"
            )
        return widths, halves

    # ------------------------------------------------------------------------------------------
    # whose is a row

    def _owners(self) -> NDArray[np.int64]:
        """The subject, from 0, of each row of single_sub_fmri.

        The authors' code to write the file counts subjects from 1, their code to read it from 0.
        What is right is seen from the rows: behind a subject's voxels there are zeros, up to the
        width of the widest subject.
        """
        numbers = self._whole("single_sub", "iuf", (len(self.single),))
        owner = numbers.astype(np.int64)
        low, high, n = int(owner.min()), int(owner.max()), len(self.widths)
        bases = [base for base in (0, 1) if base <= low and high < n + base]
        if not bases or (owner != numbers).any():
            raise UbrainError(
                f"{self.path}: single_sub: expected the numbers of {n} subjects, counted from 0 or"
                f" from 1, got {low} to {high}"
            )
        used = self._used_widths()
        narrower = np.array(
            [self.widths[self.widths < width].max(initial=0) for width in self.widths]
        )
        fits = [
            base
            for base in bases
            if (used <= self.widths[owner - base]).all()
            and (used > narrower[owner - base]).all()
            and self._were_shown(owner - base)
        ]
        if not fits:
            raise UbrainError(
                f"{self.path}: single_sub and single_sub_fmri do not fit: rows do not end where the"
                " voxels of their subject end, or show images that it has not seen"
            )
        if len(fits) > 1:
            raise UbrainError(
                f"{self.path}: single_sub has numbers {low} to {high}, which may be counted from 0"
                " or from 1; give nsd_expdesign.mat with --design, with which that can be known"
            )
        self.base = fits[0]
        return owner - self.base

    def _used_widths(self) -> NDArray[np.int64]:
        """Number of voxels up to the last that is not 0, of each row of single_sub_fmri."""
        narrowest, widest = int(self.widths.min()), int(self.widths.max())
        used = []
        for block in self._checked(self.single_fmri):
            tail = block[:, narrowest:] != 0
            last = widest - np.argmax(tail[:, ::-1], axis=1) if tail.size else narrowest
            used.append(np.where(tail.any(axis=1), last, narrowest))
        return np.concatenate(used)

    def _were_shown(self, owner: NDArray[np.int64]) -> bool:
        """Whether the design has shown the images to these subjects; yes, where it is not there."""
        return self.design is None or all(
            np.isin(self.single[owner == s], self.design.images[s]).all() for s in np.unique(owner)
        )

    def _checked(self, array: NpzArray) -> Iterator[NDArray]:
        """All rows, with progress; their checksum is checked."""
        step = _step(array)
        yield from track(
            array.blocks(step),
            array.nbytes,
            f"checking {array.name}",
            size=lambda block: int(block.nbytes),
        )

    # ------------------------------------------------------------------------------------------
    # shared images

    def _seen(self) -> NDArray[np.bool_]:
        """Who has seen which shared image: rows of others are NaN."""
        found = [
            np.stack(
                [
                    ~np.isnan(block[:, a:b]).all(axis=1)
                    for a, b in zip(self.starts, self.ends, strict=True)
                ],
                axis=1,
            )
            for block in self._checked(self.shared_fmri)
        ]
        seen = np.concatenate(found)
        if "valid_multi_sub_fmri" in self.names:
            valid = self._whole("valid_multi_sub_fmri", "biuf", seen.shape) != 0
            if (valid != seen).any():
                row, s = np.argwhere(valid != seen)[0]
                raise UbrainError(
                    f"{self.path}: row {row} of multi_sub_fmri is"
                    f" {'not a number' if valid[row, s] else 'there'} for subject {s + 1}, but"
                    " valid_multi_sub_fmri says otherwise"
                )
        return seen

    def _order_of_shared(self) -> tuple[NDArray[np.int64], str]:
        """NSD's numbers of the rows of multi_sub_fmri, and how that is known.

        The authors' code writes them in the order of `subjectim` and reads them in ascending order.
        """
        if self.design is None:
            return (
                self.shared,
                "taken to be in ascending order of NSD's number, as the authors read them",
            )
        written = self.design.images[0, : len(self.shared)]
        if not np.array_equal(np.sort(written), self.shared):
            raise UbrainError(
                f"{self.path}: its {len(self.shared)} shared images are not the first ones of"
                " nsd_expdesign.mat"
            )
        orders = {"ascending": self.shared}
        if not np.array_equal(written, self.shared):
            orders["the written"] = written
        fits = {how: order for how, order in orders.items() if self._could_be(order, self.design)}
        if len(fits) != 1:
            both = "both ascending order and" if fits else "neither ascending order nor"
            raise UbrainError(
                f"{self.path}: the order of the rows of multi_sub_fmri is not known: who has seen"
                f" which shared image fits {both} nsd_expdesign.mat"
            )
        ((how, order),) = fits.items()
        return order, f"in {how} order, which fits nsd_expdesign.mat"

    def _could_be(self, shared: NDArray[np.int64], design: Design) -> bool:
        """Whether those who have seen the shared images can have seen them in this order of rows.

        Subjects have done different numbers of sessions, but all in the same order: what a subject
        has seen comes before what it has not.
        """
        n = len(design.order)
        first = np.full(design.images.shape[1], n)  # trial in which each image is shown first
        np.minimum.at(first, design.order, np.arange(n))
        position = {image: i for i, image in enumerate(design.images[0].tolist())}
        first = first[[position[image] for image in shared.tolist()]]
        return all(first[s].max(initial=-1) < first[~s].min(initial=n + 1) for s in self.seen.T)

    # --- splits

    def _validation(self) -> NDArray[np.int64] | None:
        """NSD's numbers of the authors' validation images, in ascending order."""
        if "val_single_ind" not in self.names:
            return None
        rows = self._whole("val_single_ind", "iu", (None,)).astype(np.int64)
        if rows.min() < 0 or rows.max() >= len(self.single) or len(np.unique(rows)) < len(rows):
            raise UbrainError(
                f"{self.path}: val_single_ind: expected different rows of single_sub_fmri, from 0"
            )
        images = np.sort(self.single[rows])
        if "val_global_ind" in self.names:  # the same, in another order
            others = self._whole("val_global_ind", "iu", (None,)).astype(np.int64)
            if not np.array_equal(np.sort(others), images):
                raise UbrainError(
                    f"{self.path}: val_single_ind and val_global_ind name different images;"
                    " type_sample or one of them is not of this file"
                )
        return images

    def splits(self) -> list[str]:
        """Split of each of NSD's images, (73000,)."""
        splits = np.full(IMAGES, "rest" if self.validation is None else "train", dtype=object)
        splits[self.shared] = "test"
        if self.validation is not None:
            splits[self.validation] = "val"
        return list(splits)

    # --- one subject

    def n_images(self, subject: int) -> int:
        """Number of images that a subject has seen."""
        return int((self.owner == subject).sum() + self.seen[:, subject].sum())

    def trials(self, subject: int) -> pd.DataFrame:
        """One row per image, as the repeats are averaged: its own images, then the shared ones."""
        shown = np.concatenate(
            [self.single[self.owner == subject], self.shared[self.seen[:, subject]]]
        )
        return pd.DataFrame({"image": shown, "session": 0})

    def blocks(self, subject: int) -> list[Block]:
        """The responses, in the order of `trials`."""
        wanted = {
            "own images": (self.single_fmri, self.owner == subject, 0),
            "shared images": (self.shared_fmri, self.seen[:, subject], int(self.starts[subject])),
        }
        blocks = []
        for name, (array, mine, first) in wanted.items():
            read = partial(
                _read, array, np.flatnonzero(mine), slice(first, first + int(self.widths[subject]))
            )
            name = f"{name}, columns from {first}"  # which another file may say
            blocks.append(Block(name, int(mine.sum()), read, (self.path,)))
        return [block for block in blocks if block.n_trials]


def _counts(numbers: NDArray, where: Path) -> NDArray[np.int64]:
    whole = np.asarray(numbers).astype(np.int64)
    if (whole != numbers).any() or whole.min() < 1 or whole.max() > 2 * ALGONAUTS.fsaverage:
        raise UbrainError(
            f"{where}: expected the numbers of voxels of subjects, got {numbers.tolist()}"
        )
    return whole


def _check_length(array: NpzArray | NDArray, longest: int, where: object) -> None:
    if array.shape[0] > longest:
        raise UbrainError(f"{where}: expected up to {longest} numbers, got {array.shape[0]}")


def _step(array: NpzArray) -> int:
    """Rows that are read at a time."""
    return max(1, PART_BYTES * array.shape[0] // array.nbytes)


def _read(array: NpzArray, wanted: NDArray[np.int64], columns: slice) -> Iterator[Part]:
    start = 0
    for rows in array.rows(wanted, columns, _step(array)):
        yield Part(rows, start)
        start += len(rows)


def _recording(
    name: str, subject: int, crowd: _Responses, pictures: Stimuli, masks: Folder
) -> Recording:
    account = [
        (
            "Responses as packaged by the authors of the Universal Brain Encoder"
            f" ({crowd.path.name}): NSD on fsaverage, z-scored per vertex and session and averaged"
            " over repeats, whose number is not known; nothing was scaled"
        ),
        f"single_sub counts subjects from {crowd.base}"
        + (
            ", as the zeros behind the voxels of narrower subjects confirm"
            if crowd.widths.min() < crowd.widths.max()
            else ""
        ),
        (
            f"Rows of shared images: {crowd.order}; rows of images that the subject has not seen"
            " were left out"
        ),
        f"Test images: the {len(crowd.shared)} shared images, as far as seen"
        + (
            f"; val images: the authors' {len(crowd.validation)}"
            if crowd.validation is not None
            else ""
        ),
        f"Images: {pictures.path.name}",
        "The subjects are those of NSD: do not count them twice",
    ]
    missing = (
        []
        if crowd.design
        else ["nsd_expdesign.mat, so the order of the shared images could not be checked"]
    )
    voxels = _voxels(name, subject, crowd, masks)
    if "vertex" not in voxels:
        missing.append(
            "all-vertices_fsaverage_space.npy masks, so it is not known where the voxels are"
            + (", only in which hemisphere" if crowd.halves is not None else "")
        )
    return Recording(
        f"ube-{name}",
        "UBE",
        "7T",
        "fsaverage" if "vertex" in voxels else "",
        pictures,
        crowd.trials(subject),
        voxels,
        crowd.blocks(subject),
        account,
        missing,
        normalise="none",
        no_sessions=AVERAGED,
        selected=[Selection("ube", "V_s", subject + 1, (len(crowd.single),), len(voxels))],
    )


def _voxels(name: str, subject: int, crowd: _Responses, masks: Folder) -> pd.DataFrame:
    """Hemisphere, vertex and areas of each voxel, left before right, as far as there are masks."""
    place = _mask_folder(masks, subject)
    width = int(crowd.widths[subject])
    if place is None:
        halves = crowd.halves[subject] if crowd.halves is not None else [width, 0]
        return pd.DataFrame(
            {"hemisphere": np.repeat(["L", "R"] if crowd.halves is not None else ["", ""], halves)}
        )
    counts = {
        side: int(read_mask(masks.need(f"{place}/{side}.{MASK}"), ALGONAUTS.fsaverage).sum())
        for side in HEMISPHERES
    }
    if sum(counts.values()) != width:
        raise UbrainError(
            f"{masks}/{place}: the masks have {' + '.join(map(str, counts.values()))} vertices, but"
            f" {name} has {width} voxels"
        )
    return pd.concat(
        [vertices(masks, place, side, n) for side, n in counts.items()], ignore_index=True
    )


def _mask_folder(masks: Folder, subject: int) -> str | None:
    """Where a subject's masks are (roi_masks/sub1, ...); best is a folder that has areas, too."""
    whose = re.compile(rf"subj?0?{subject + 1}", re.IGNORECASE)
    files = masks.search(r"lh\.all-vertices_fsaverage_space\.npy")
    places = [
        masks.name(file.parent)
        for file in files
        if any(map(whose.fullmatch, Path(masks.name(file)).parts))
    ]
    return max(
        places, key=lambda place: len(masks.glob(f"{place}/*_challenge_space.npy")), default=None
    )
