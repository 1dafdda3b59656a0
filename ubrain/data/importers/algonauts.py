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
from ubrain.data.importers.nsd import HEMISPHERES, IMAGES, LABELS
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    area_name,
    check_array,
    check_voxels,
    let_go,
    load_npy,
    read_table,
    reading,
)
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

TESTS = ("auto", "official", "shared", "drawn")
FSAVERAGE = 163842  # vertices of a hemisphere
MAX_MAPPING = 1 << 20  # bytes


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
    options : those that all importers share.
    test : which images are test images. "official": those of test_split, whose responses were
        withheld during the challenge; "shared": images that several subjects of the folder have
        seen, which are those of NSD's shared 1000; "drawn": a share of the images, by their
        content; "auto": the first of these that is possible.
    test_fraction : the share, if drawn.
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
    if test not in TESTS:
        raise UbrainError(f"--test {test}: expected one of {', '.join(TESTS)}")
    split_by_content(0, test_fraction)
    folder = Folder(root, options.follow_links)
    there = sorted(
        f.name for f in folder.path.iterdir() if re.fullmatch(r"subj\d+", f.name, re.IGNORECASE)
    )
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
        self.test = self._images("test", "test") if self.has_test_responses else {}

    def _images(self, split: str, prefix: str) -> dict[int, Path]:
        """Files by NSD's number of the image (from 0), in the order of the number in the split
        (from 1): that of the rows.
        """
        place = f"{self.name}/{split}_split/{split}_images"
        pattern = re.compile(rf"{prefix}-(\d+)_nsd-(\d+)\.png", re.IGNORECASE)
        found = [
            (match, path)
            for path in self.folder.glob(f"{place}/*")
            if (match := pattern.fullmatch(path.name))
        ]
        found.sort(key=lambda pair: int(pair[0][1]))
        numbers = [int(match[1]) for match, _ in found]
        if self.whole and numbers != list(range(1, len(found) + 1)):
            gap = next((n for n, number in enumerate(numbers, start=1) if n != number), 1)
            raise UbrainError(
                f"{self.folder}/{place}: expected {prefix}-0001, {prefix}-0002, ..., one for each"
                f" row of the responses; number {gap} is missing"
            )
        images = {int(match[2]): path for match, path in found}
        if not self.whole:
            return images
        if not images:
            raise MissingError(
                f"{self.folder}/{place} has no files such as {prefix}-0001_nsd-00013.png"
            )
        if len(images) < len(found) or max(images) >= IMAGES:
            raise UbrainError(
                f"{self.folder}/{place}: expected different images with NSD's numbers below"
                f" {IMAGES}"
            )
        return images

    @property
    def has_test_responses(self) -> bool:
        """Whether the responses to the test images are there, too."""
        return all(
            self.folder.find(f"{self.name}/test_split/test_fmri/{side}_test_fmri.npy")
            for side in HEMISPHERES
        )

    def responses(self, split: str, n_rows: int) -> tuple[list[Path], list[NDArray]]:
        """Files and arrays (n_images, n_vertices) of both hemispheres."""
        place = f"{self.name}/{split}_split/{split}_fmri"
        files = [self.folder.need(f"{place}/{side}_{split}_fmri.npy") for side in HEMISPHERES]
        arrays = [check_array(load_npy(file), str(file), "f", (None, None)) for file in files]
        for file, array in zip(files, arrays, strict=True):
            check_voxels(array.shape[1], file)
            if len(array) != n_rows:
                raise UbrainError(
                    f"{file}: {len(array)} rows, but there are {n_rows} images; is the download"
                    " complete?"
                )
        return files, arrays


class _TestRule:
    """Which images are test images: a property of the image, the same for all subjects."""

    def __init__(
        self, subjects: Sequence[_Subject], chosen: Sequence[_Subject], test: str, fraction: float
    ) -> None:
        official = all(s.test for s in chosen)
        counts = Counter(image for s in subjects for image in s.training)
        shared = {image for image, n in counts.items() if n > 1}
        if test == "auto":
            test = (
                "official"
                if official
                else "shared"
                if any(shared & s.training.keys() for s in chosen)
                else "drawn"
            )
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
        self.images = (
            {image for s in subjects for image in s.test} if test == "official" else shared
        )
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
    images = {**subject.training, **subject.test} if rule.kind == "official" else subject.training
    files, arrays = subject.responses("training", len(subject.training))
    blocks = [_block("training responses", files, arrays)]
    missing = []
    if rule.kind == "official":
        test_files, test_arrays = subject.responses("test", len(subject.test))
        if [a.shape[1] for a in test_arrays] != [a.shape[1] for a in arrays]:
            raise UbrainError(
                f"{test_files[0].parent}: other numbers of vertices than the training responses"
            )
        blocks.append(_block("test responses", test_files, test_arrays))
    else:
        missing = ["responses to the images of test_split"]
    order = list(images)
    rows = [*subject.training, *(subject.test if rule.kind == "official" else [])]
    position = {image: i for i, image in enumerate(order)}
    trials = pd.DataFrame({"image": [position[image] for image in rows], "session": 0})
    keys = [f"coco:{coco[i]} nsd:{i}" if i in coco else f"nsd:{i}" for i in order]
    shown = ImageFiles(
        [images[i] for i in order],
        [f"nsd-{i:05d}" for i in order],
        [rule.split(i) for i in order],
        keys,
    )
    tables = [
        _voxels(subject, side, a.shape[1]) for side, a in zip(HEMISPHERES, arrays, strict=True)
    ]
    voxels = pd.concat(tables, ignore_index=True)
    if "vertex" not in voxels:
        missing.append(
            "roi_masks/*.all-vertices_fsaverage_space.npy, so it is not known where the voxels are"
        )
    space = "fsaverage" if "vertex" in voxels else ""
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
        space,
        shown,
        trials,
        voxels,
        blocks,
        account,
        missing,
        normalise="none",
        ceiling=ceiling,
        no_sessions=AVERAGED,
    )


def _block(name: str, files: Sequence[Path], arrays: Sequence[NDArray]) -> Block:
    n, width = len(arrays[0]), sum(a.shape[1] for a in arrays)
    step = max(1, PART_BYTES // (4 * width))

    def read() -> Iterator[Part]:
        for start in range(0, n, step):
            with reading(files[0]):
                rows = np.concatenate([a[start : start + step] for a in arrays], axis=1)
            for array in arrays:
                let_go(array)
            yield Part(rows, start)

    return Block(name, n, read, tuple(files))


def _voxels(subject: _Subject, side: str, n_vertices: int) -> pd.DataFrame:
    """The vertices of a hemisphere: hemisphere, vertex, areas, ncsnr."""
    table = vertices(subject.folder, f"{subject.name}/roi_masks", side, n_vertices)
    return table.assign(ncsnr=_ncsnr(subject, side, n_vertices))


def vertices(folder: Folder, place: str, side: str, n_vertices: int) -> pd.DataFrame:
    """The vertices of a hemisphere, from the challenge's masks in `place`: hemisphere, vertex if
    it is known, areas.
    """
    table = pd.DataFrame({"hemisphere": [HEMISPHERES[side]] * n_vertices})
    path = folder.find(f"{place}/{side}.all-vertices_fsaverage_space.npy")
    if path is not None:
        table["vertex"] = _as_many(path, read_mask(path), n_vertices)
    labels: list[list[str]] = [[] for _ in range(n_vertices)]
    for path in folder.glob(f"{place}/{side}.*_challenge_space.npy"):
        kind = path.name.removeprefix(f"{side}.").removesuffix("_challenge_space.npy")
        values = np.asarray(check_array(load_npy(path), str(path), "biu", (None,)))
        names = label_names(folder.find(f"{place}/mapping_{kind}.npy"), kind)
        for row in np.flatnonzero(_as_many(path, values, n_vertices) > 0):
            labels[row].append(names.get(int(values[row]), f"{kind}:{values[row]}"))
    table["areas"] = [",".join(dict.fromkeys(names)) for names in labels]
    return table


def read_mask(path: Path) -> NDArray[np.int64]:
    """Numbers of the vertices of fsaverage that the challenge has kept, in the order of its
    responses.
    """
    mask = check_array(load_npy(path), str(path), "biuf", (FSAVERAGE,))
    return np.flatnonzero(np.asarray(mask) != 0)  # 2: in both of the masks that were added


def _as_many(path: Path, values: NDArray, n_vertices: int) -> NDArray:
    if len(values) != n_vertices:
        raise UbrainError(f"{path}: {len(values)} vertices, but the responses have {n_vertices}")
    return values


def _ncsnr(subject: _Subject, side: str, n_vertices: int) -> NDArray[np.float32]:
    """What gives the published noise ceiling, a share of the variance of the averaged test
    response, for one repeat.
    """
    path = subject.folder.find(f"{subject.name}/test_split/noise_ceiling/{side}_noise_ceiling.npy")
    if path is None or not subject.test:
        return np.full(n_vertices, np.nan, dtype=np.float32)
    ceiling = np.asarray(
        check_array(load_npy(path), str(path), "f", (n_vertices,)), dtype=np.float64
    )
    if np.nanmin(ceiling) < 0 or np.nanmax(ceiling) > 1:
        raise UbrainError(
            f"{path}: expected shares of variance from 0 to 1, got {np.nanmin(ceiling):g} to "
            f"{np.nanmax(ceiling):g}"
        )
    ceiling = np.minimum(ceiling, 0.999)
    return np.sqrt(ceiling / (1 - ceiling)).astype(np.float32)


def label_names(path: Path | None, kind: str) -> dict[int, str]:
    """Names of the labels of an area file: from its mapping, or else as NSD names them.

    The mapping is a pickled dict {0: "Unknown", 1: "V1v", ...} in a .npy file. A pickle can do harm
    when it is loaded, so it is not: its instructions are listed, and the numbers and texts among
    them read off.
    """
    names = dict(enumerate(LABELS.get(kind, "").split(), start=1))
    if path is None:
        return names
    with reading(path, "a table of labels"):
        if path.stat().st_size > MAX_MAPPING:
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


def coco_numbers(path: Path) -> dict[int, int]:
    """COCO's number of each of NSD's images, from nsd_stim_info_merged.csv."""
    table = read_table(path, ["nsdId", "cocoId"], whole=["nsdId", "cocoId"])
    return dict(zip(table["nsdId"], table["cocoId"], strict=True))
