"""Algonauts 2023 challenge (Gifford et al. 2023): NSD on fsaverage, z-scored and averaged, as its
authors packaged it.
"""

import hashlib
import pickletools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.crowdfile import split_by_content
from ubrain.data.importers.layouts import check_choice, join_areas, layout, npy_array
from ubrain.data.importers.masks import Selection
from ubrain.data.importers.nsd import HEMISPHERES, IMAGES, NSD, coco_numbers, image_key, read_mask
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import Folder, area_name, check_voxels, let_go, reading
from ubrain.data.importers.recording import (
    AVERAGED,
    DEFAULTS,
    PART_BYTES,
    Block,
    ImageFiles,
    Options,
    Part,
    Recording,
    complete,
    select,
)
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log

ALGONAUTS = layout("algonauts")


def import_algonauts(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    test: str = "auto",
    test_fraction: float = 0.1,
    stim_info: str | Path | None = None,
) -> str:
    """Write subjects of the Algonauts 2023 challenge into a crowd file.

    Parameters
    ----------
    root : folder that holds subj01, subj02, ...
    out : crowd file to write (.h5).
    options : those that all importers share.
    test : which images are test images: "official", "shared", "drawn" or "auto". "official": those
        of test_split, whose responses were withheld during the challenge; "shared": images that
        several subjects of the folder have seen, which are those of NSD's shared 1000; "drawn": a
        share of the images, by their content; "auto": the first of these that is possible.
    test_fraction : share of test images, if drawn.
    stim_info : nsd_stim_info_merged.csv, which says from which COCO photographs the images were
        cut, so that other datasets with the same photographs keep their splits.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the others.
    """
    check_choice("test", test, ALGONAUTS.tests)
    split_by_content(0, test_fraction)
    folder = Folder(root, options.follow_links)
    there = [
        path.name
        for path in folder.glob("subj*")
        if re.fullmatch(r"subj\d+", path.name, re.IGNORECASE)
    ]
    subjects = complete(
        select(options.subjects, there, folder),
        options.subjects,
        lambda name: _Subject(folder, name),
    )
    others = [_Subject(folder, name, whole=False) for name in there if name not in subjects]
    rule = _TestRule([*subjects.values(), *others], list(subjects.values()), test, test_fraction)
    coco = coco_numbers(Path(stim_info)) if stim_info is not None else {}
    recordings = [_recording(subject, rule, coco) for subject in subjects.values()]
    settings = {
        "dataset": "algonauts",
        "test": rule.kind,
        "test_fraction": test_fraction if rule.kind == "drawn" else None,
    }
    return import_recordings(recordings, out, options, settings)


class _Subject:
    """The files of one subject.

    Parameters
    ----------
    whole : whether there must be responses, and an image for each row of them; otherwise only the
        images count, to tell which of them other subjects have seen, too.
    """

    def __init__(self, folder: Folder, name: str, whole: bool = True) -> None:
        self.folder, self.name, self.whole = folder, name, whole
        if whole:
            for what in ("images", *(f"fmri/{side}_training_fmri.npy" for side in HEMISPHERES)):
                folder.need(f"{name}/training_split/training_{what}")
        self.training = self._images("training", "train")
        answers = (f"{name}/test_split/test_fmri/{side}_test_fmri.npy" for side in HEMISPHERES)
        self.test = self._images("test", "test") if all(map(folder.find, answers)) else {}

    def _images(self, split: str, prefix: str) -> dict[int, Path]:
        """Files by NSD's number of the image (from 0), in the order of the rows (from 1)."""
        place = f"{self.name}/{split}_split/{split}_images"
        where = f"{self.folder}/{place}"
        pattern = re.compile(rf"{prefix}-(\d+)_nsd-(\d+)\.png", re.IGNORECASE)
        found = sorted(
            (int(match[1]), int(match[2]), path)
            for path in self.folder.glob(f"{place}/*")
            if (match := pattern.fullmatch(path.name))
        )
        images = {image: path for _, image, path in found}
        if not self.whole:
            return images
        for expected, (number, _, _) in enumerate(found, start=1):
            if number != expected:
                raise UbrainError(
                    f"{where}: expected {prefix}-0001, {prefix}-0002, ..., one for each row of the"
                    f" responses; number {expected} is missing"
                )
        if not images:
            raise MissingError(f"{where} has no files such as {prefix}-0001_nsd-00013.png")
        if len(images) < len(found) or max(images) >= IMAGES:
            raise UbrainError(
                f"{where}: expected different images with NSD's numbers below {IMAGES}"
            )
        return images

    def responses(self, split: str, n_rows: int) -> tuple[Block, list[int]]:
        """Responses of both hemispheres, and the number of vertices of each."""
        place = f"{self.name}/{split}_split/{split}_fmri"
        files = [self.folder.need(f"{place}/{side}_{split}_fmri.npy") for side in HEMISPHERES]
        arrays = [npy_array(file, "f", (None, None)) for file in files]
        for file, array in zip(files, arrays, strict=True):
            check_voxels(array.shape[1], file)
            if len(array) != n_rows:
                raise UbrainError(
                    f"{file}: {len(array)} rows, but there are {n_rows} images; is the download"
                    " complete?"
                )
        widths = [array.shape[1] for array in arrays]
        step = max(1, PART_BYTES // (4 * sum(widths)))

        def read() -> Iterator[Part]:
            for start in range(0, n_rows, step):
                with reading(files[0]):
                    rows = np.concatenate([a[start : start + step] for a in arrays], axis=1)
                for array in arrays:
                    let_go(array)
                yield Part(rows, start)

        return Block(f"{split} responses", n_rows, read, tuple(files)), widths


class _TestRule:
    """Which images are test images: a property of the image, the same for all subjects."""

    def __init__(
        self, subjects: Sequence[_Subject], chosen: Sequence[_Subject], test: str, fraction: float
    ) -> None:
        counts = Counter(image for s in subjects for image in s.training)
        shared = {image for image, n in counts.items() if n > 1}
        official = all(s.test for s in chosen)
        if test == "auto" and official:
            test = "official"
        elif test == "auto":
            test = "shared" if any(shared & s.training.keys() for s in chosen) else "drawn"
        if test == "official" and not official:
            raise UbrainError(
                f"{chosen[0].folder}: test_split/test_fmri is not there for every subject; use"
                " --test shared"
            )
        if test == "shared" and not all(shared & s.training.keys() for s in chosen):
            raise UbrainError(
                f"{chosen[0].folder}: no images that several subjects have seen; use --test drawn"
            )
        self.kind = test
        answered = {image for s in subjects for image in s.test}
        self.images = answered if test == "official" else shared
        self._draw = split_by_content(0, fraction)

    def split(self, image: int) -> str:
        """test, or rest."""
        if self.kind == "drawn":
            drawn = self._draw(hashlib.blake2b(f"test of nsd:{image}".encode()).hexdigest())
            return "test" if drawn == "test" else "rest"
        return "test" if image in self.images else "rest"

    def account(self) -> str:
        """In words."""
        return {
            "official": (
                "Test images: those of the challenge; an image that is one for some subject is one"
                " for all"
            ),
            "shared": "Test images: those that several subjects have seen, from NSD's shared 1000",
            "drawn": "Test images: drawn by NSD's number of the image",
        }[self.kind]


def _recording(subject: _Subject, rule: _TestRule, coco: dict[int, int]) -> Recording:
    block, widths = subject.responses("training", len(subject.training))
    blocks, rows, files = [block], [*subject.training], {**subject.training}
    missing = []
    if rule.kind == "official":
        block, test_widths = subject.responses("test", len(subject.test))
        if test_widths != widths:
            raise UbrainError(
                f"{block.files[0].parent}: other numbers of vertices than the training responses"
            )
        blocks, rows, files = [*blocks, block], [*rows, *subject.test], {**files, **subject.test}
    else:
        missing = ["responses to the images of test_split"]
    position = {image: i for i, image in enumerate(files)}
    shown = ImageFiles(
        list(files.values()),
        [f"nsd-{i:05d}" for i in files],
        [rule.split(i) for i in files],
        [image_key(i, coco) for i in files],
    )
    place, number = f"{subject.name}/roi_masks", int(subject.name[4:])
    tables = [
        vertices(subject.folder, place, side, n).assign(ncsnr=_ncsnr(subject, side, n))
        for side, n in zip(HEMISPHERES, widths, strict=True)
    ]
    voxels = pd.concat(tables, ignore_index=True)
    unknown = [s for s, table in zip(HEMISPHERES, tables, strict=True) if "vertex" not in table]
    if unknown:
        which = "*" if len(unknown) > 1 else unknown[0]
        missing.append(
            f"roi_masks/{which}.all-vertices_fsaverage_space.npy, so it is not known where the"
            " voxels are"
        )
    account = [
        (
            "Responses as packaged for Algonauts 2023: z-scored per vertex and session and averaged"
            " over repeats, whose number is not known; nothing was scaled"
        ),
        rule.account(),
        "The subjects are those of NSD: do not count them twice",
    ]
    ceiling = (
        "ncsnr from the published noise ceiling of averaged responses to the official test images"
        + ("" if rule.kind == "official" else ", which are not the test images here")
    )
    return Recording(
        f"algonauts-{subject.name.lower()}",
        "Algonauts2023",
        "7T",
        "fsaverage" if "vertex" in voxels else "",
        shown,
        pd.DataFrame({"image": [position[image] for image in rows], "session": 0}),
        voxels,
        blocks,
        account,
        missing,
        normalise="none",
        ceiling=ceiling,
        no_sessions=AVERAGED,
        selected=[
            Selection("algonauts", f"all-vertices ({s})", number, (len(subject.training),), n)
            for s, n in zip(("left", "right"), widths, strict=True)
        ],
    )


def vertices(folder: Folder, place: str, side: str, n_vertices: int) -> pd.DataFrame:
    """Hemisphere, vertex (if it is known) and areas of the vertices, from the masks in `place`."""
    table = pd.DataFrame({"hemisphere": [HEMISPHERES[side]] * n_vertices})
    path = folder.find(f"{place}/{side}.all-vertices_fsaverage_space.npy")
    if path is not None:
        kept = np.flatnonzero(read_mask(path, ALGONAUTS.fsaverage))
        table["vertex"] = _as_many(path, kept, n_vertices)
    found: list[tuple[int, str]] = []
    for path in folder.glob(f"{place}/{side}.*_challenge_space.npy"):
        kind = path.name[len(f"{side}.") : -len("_challenge_space.npy")]
        values = np.asarray(npy_array(path, "biu", (None,)))
        names = label_names(folder.find(f"{place}/mapping_{kind}.npy"), kind)
        rows = np.flatnonzero(_as_many(path, values, n_vertices) > 0)
        found += [(r, names.get(int(values[r]), f"{kind}:{values[r]}")) for r in rows.tolist()]
    return table.assign(areas=join_areas(n_vertices, found))


def _as_many(path: Path, values: NDArray, n_vertices: int) -> NDArray:
    if len(values) != n_vertices:
        raise UbrainError(f"{path}: {len(values)} vertices, but the responses have {n_vertices}")
    return values


def _ncsnr(subject: _Subject, side: str, n_vertices: int) -> NDArray[np.float32]:
    """ncsnr that gives the published ceiling, a share of the variance of averaged responses."""
    path = subject.folder.find(f"{subject.name}/test_split/noise_ceiling/{side}_noise_ceiling.npy")
    if path is None or not subject.test:
        return np.full(n_vertices, np.nan, dtype=np.float32)
    ceiling = np.asarray(npy_array(path, "f", (n_vertices,)), np.float64)
    low, high = np.nanmin(ceiling), np.nanmax(ceiling)
    if low < 0 or high > 1:
        raise UbrainError(
            f"{path}: expected shares of variance from 0 to 1, got {low:g} to {high:g}"
        )
    ceiling = np.minimum(ceiling, 0.999)
    return np.sqrt(ceiling / (1 - ceiling)).astype(np.float32)


def label_names(path: Path | None, kind: str) -> dict[int, str]:
    """Names of the labels of an area file: from its mapping, or else as NSD names them.

    The mapping is a pickled dict {0: "Unknown", 1: "V1v", ...} in a .npy file. A pickle can do harm
    when it is loaded, so it is not: its instructions are listed, and the numbers and texts among
    them read off.
    """
    names = dict(enumerate(NSD.labels.get(kind.lower(), "").split(), start=1))
    if path is None:
        return names
    with reading(path, "a table of labels"):
        if path.stat().st_size > ALGONAUTS.max_mapping:
            raise UbrainError(f"{path}: too large to be a table of labels")
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            steps = [(step.name, argument) for step, argument, _ in pickletools.genops(file.read())]
    begin = max(
        (i for i, (name, _) in enumerate(steps) if name == "EMPTY_DICT"), default=len(steps)
    )
    found: list[Any] = [
        a
        for name, a in steps[begin:]
        if name.startswith(("BININT", "LONG", "INT")) or "UNICODE" in name
    ]
    if not found or [type(a) for a in found] != [int, str] * (len(found) // 2):
        log.warning("%s: not a table of numbers and names; areas are named as in NSD", path)
        return names
    return {
        number: area_name(name, path) for number, name in zip(found[::2], found[1::2], strict=True)
    }
