"""THINGS-fMRI (Hebart et al. 2023): three subjects at 3T, betas of single trials in the whole
brain, as on figshare (betas_csv) or on OpenNeuro (ds004192, ICA-betas).

The betas of a subject are a table that pandas wrote into an HDF5 file, one row per voxel and one
column per trial. It is read without pandas: names of columns are pickled there, so they are not
looked at, and the columns are taken in the order of trial_id, which counts from 0.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.layouts import join_areas, layout, ncsnr_of_ceiling, warn_absent
from ubrain.data.importers.masks import Selection
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    area_name,
    check_voxels,
    hdf5_array,
    hdf5_names,
    open_hdf5,
    read_table,
    reading,
    require_columns,
    table_header,
)
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
    select,
)
from ubrain.errors import MissingError, UbrainError

THINGS = layout("things")
PLACES = ["voxel_x", "voxel_y", "voxel_z"]
ROWS = 20_000  # of the table of voxels that are in memory at once


def import_things(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    images: str | Path | None = None,
) -> str:
    """Write THINGS-fMRI subjects into a crowd file.

    Parameters
    ----------
    root : folder that holds sub-01_ResponseData.h5, sub-01_VoxelMetadata.csv and
        sub-01_StimulusMetadata.csv (or OpenNeuro's names of them), directly or in subfolders.
    out : crowd file to write (.h5).
    options : those that all importers share.
    images : folder of the images, with subfolders, such as object_images; default: root.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the others.
    """
    folder = Folder(root, options.follow_links)
    found: dict[str, list[Path]] = {}
    for path in folder.search(THINGS.files["responses"]):
        match = re.fullmatch(THINGS.files["responses"], path.name, re.IGNORECASE)
        assert match
        found.setdefault(match["subject"].lower(), []).append(path)
    names = select(options.subjects, found, folder)
    warn_absent("responses", THINGS.subjects, found)
    subjects = complete(names, options.subjects, lambda name: _Subject(folder, name, found[name]))
    trials = pd.concat([subject.trials for subject in subjects.values()])
    source = folder if images is None else Folder(images, options.follow_links)
    shown, rows = _images(source, trials)
    recordings = [subject.recording(shown, rows) for subject in subjects.values()]
    return import_recordings(recordings, out, options, {"dataset": "things"})


def _images(folder: Folder, trials: pd.DataFrame) -> tuple[ImageFiles, dict[str, int]]:
    """The images that are there, and the number of each by its name."""
    kinds = trials.groupby("stimulus")["trial_type"].agg(set)
    if len(both := kinds.index[kinds.map(len) > 1]):
        raise UbrainError(f"{folder}: {both[0]!r} is an image of training and of test trials")
    pictures, files = Pictures(folder, kinds.index), dict[str, Path]()
    for name in kinds.index:  # concepts may have _ in their names, too
        if path := pictures.find(name, prefer=[name.rpartition("_")[0]]):
            files[name] = path
    if not files:
        raise UbrainError(
            f"{folder} has none of the {len(kinds)} images, such as {kinds.index[0]!r}; name the"
            " folder object_images of THINGS with --images"
        )
    stems = [Path(name).stem for name in files]
    shown = ImageFiles(
        list(files.values()),
        [f"things-{stem}" for stem in stems],
        ["test" if "test" in kinds[name] else "rest" for name in files],
        ["things:" + "_".join(stem.split()) for stem in stems],
    )
    return shown, {name: row for row, name in enumerate(files)}


class _Subject:
    """The files of a subject; those of responses are found already."""

    def __init__(self, folder: Folder, name: str, responses: list[Path]) -> None:
        self.name = name
        self.path = self._the_one(folder, responses, "ResponseData.h5")
        tables = {}
        for what, example in (("trials", "StimulusMetadata.csv"), ("voxels", "VoxelMetadata.csv")):
            pattern = THINGS.files[what].format(subject=name)
            tables[what] = self._the_one(folder, folder.search(pattern), example)
        self.files = tables
        self.trials = _trials(tables["trials"])
        self.voxels, self.ids = _voxels(tables["voxels"])
        self.betas = self._betas()

    def _the_one(self, folder: Folder, found: list[Path], example: str) -> Path:
        if not found:
            raise MissingError(f"{folder} has no {self.name}_{example}")
        if len(found) > 1:
            raise UbrainError(
                f"{folder}: {folder.name(found[0])} and {folder.name(found[1])} are the same; keep"
                " one of them in the folder"
            )
        return found[0]

    def _betas(self) -> "_Columns":
        """Where the betas are in the file, after checking that their rows are these voxels."""
        n_voxels, n_trials = len(self.voxels), len(self.trials)
        columns = _columns(self.path)
        shapes = ", ".join(str(c.shape) for c in columns) or "none"
        ids = [c for c in columns if c.shape == (n_voxels, 1)]
        # voxel_id is in one array with the betas, before them, if it has their type
        width = n_trials if ids else n_trials + 1
        betas = [c for c in columns if c.kind == "f" and c.shape[1] in (n_trials, width)]
        if len(betas) != 1 or betas[0].shape[0] != n_voxels:
            raise UbrainError(
                f"{self.path}: expected one table of betas as pandas writes it, {n_voxels} voxels"
                f" (rows of {self.files['voxels'].name}) × {n_trials} trials (rows of"
                f" {self.files['trials'].name}); found {shapes}"
            )
        if betas[0].shape[1] > n_trials:
            ids = betas
        with open_hdf5(self.path) as file, reading(self.path):
            for column in ids[:1]:
                first = column.parts(file, slice(1))
                written = np.concatenate([part[:, 0] for _, part in first])
                if (other := written != self.ids).any():
                    row = int(np.argmax(other))
                    raise UbrainError(
                        f"{self.path}: voxel_id of row {row} is {written[row]:g}, but"
                        f" {self.ids[row]} in {self.files['voxels'].name}; both list the voxels in"
                        " one order as published"
                    )
        return betas[0]

    def recording(self, shown: ImageFiles, rows: dict[str, int]) -> Recording:
        """All trials of which the images are there."""
        trials, absent = self.trials, sorted({*self.trials["stimulus"]} - {*rows})
        kept = trials[trials["stimulus"].isin(rows)]
        if not len(kept):
            raise UbrainError(f"{self.path}: none of its images is there, such as {absent[0]!r}")
        missing = [
            f"{len(absent)} images, such as {name}; their {len(trials) - len(kept)} trials are left"
            " out"
            for name in absent[:1]
        ]
        counts = trials.loc[trials["trial_type"] == "test", "stimulus"].value_counts()
        voxels, ceiling = self.voxels.drop(columns="nc_testset"), ""
        if len(counts):
            ncsnr = ncsnr_of_ceiling(
                self.voxels["nc_testset"].to_numpy(np.float64),
                float((1 / counts).mean()),
                f"{self.files['voxels']}: nc_testset",
            )
            voxels["ncsnr"] = ncsnr
            ceiling = f"ncsnr from the published nc_testset, for {counts.mean():g} repeats of an"
            ceiling += " image: ncsnr² = m · c / (1 − c), where c is that share, m the mean of 1/n"
        table = pd.DataFrame(
            {
                "image": kept["stimulus"].map(rows).to_numpy(),
                "session": np.unique(kept["session"], return_inverse=True)[1],
                "run": kept["run"].to_numpy(),
            }
        )
        columns = kept["trial_id"].to_numpy()
        read = partial(_read, self.path, self.betas, columns + self.betas.shape[1] - len(trials))
        return Recording(
            f"things-{self.name}",
            "THINGS-fMRI",
            "3T",
            "T1w",
            shown,
            table,
            voxels,
            [Block("all trials", len(kept), read, (self.path, self.files["trials"]))],
            [
                f"Betas of single trials as published ({self.path.name}), not scaled",
                f"Voxels: all {len(voxels)} that the file has, at voxel_x, voxel_y, voxel_z",
                "Areas: the columns of the table of voxels that are 1; l and r before a name are"
                " its hemisphere",
                "Test images: those of trial_type test",
            ],
            missing,
            ceiling=ceiling,
            selected=[
                Selection("things", "brain", int(self.name[-2:]), (len(trials),), len(voxels))
            ],
        )


# --- tables


def _separator(path: Path) -> str:
    """OpenNeuro's .tsv are separated by commas, at least some of them."""
    return "\t" if len(table_header(path, "\t", THINGS.max_table)) > 1 else ","


def _trials(path: Path) -> pd.DataFrame:
    """trial_type, session, run, trial_id and stimulus of each trial, in the order of trial_id."""
    whole = ["session", "run", "trial_id"]
    separator = _separator(path)
    table = read_table(path, ["trial_type", "stimulus", *whole], separator, whole)
    if not table["trial_type"].isin(["train", "test"]).all():
        raise UbrainError(f"{path}: column 'trial_type': expected train or test")
    if table["stimulus"].isna().any():
        raise UbrainError(f"{path}: column 'stimulus' has empty cells")
    table = table.astype({"stimulus": str}).sort_values("trial_id", ignore_index=True)
    if not (table["trial_id"] == np.arange(len(table))).all():
        raise UbrainError(
            f"{path}: column 'trial_id': expected each number from 0 to {len(table) - 1} once, as"
            " the columns of the responses count trials from 0"
        )
    return table


def _voxels(path: Path) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Hemisphere, i, j, k, areas and nc_testset of each voxel; and the voxel_id of each."""
    separator = _separator(path)
    header = table_header(path, separator, THINGS.max_table)
    wanted = ["voxel_id", *PLACES, "nc_testset"]
    require_columns(path, header, wanted)
    areas = {c: area_name(c, path) for c in header if re.fullmatch(THINGS.areas, c)}
    tables, labels, n = list[pd.DataFrame](), dict[str, list[NDArray]](), 0
    some = {"usecols": [*wanted, *areas], "chunksize": ROWS}
    with reading(path, "a table"), pd.read_csv(path, sep=separator, **some) as parts:
        for part in parts:
            for column in areas:
                values = part[column].fillna(0).to_numpy(np.float32)
                if not np.isin(values, (0, 1)).all():
                    raise UbrainError(f"{path}: column {column!r}: expected 0 and 1, as of an area")
                labels.setdefault(column, []).append(n + np.flatnonzero(values))
            tables.append(part[wanted].astype(np.float64))
            n += len(part)
            check_voxels(n, path)
        table = pd.concat(tables, ignore_index=True)
        ids = table["voxel_id"].to_numpy()
        if not np.isfinite(ids).all() or (ids % 1 != 0).any() or (np.abs(ids) > 2**53).any():
            raise UbrainError(f"{path}: column 'voxel_id': expected whole numbers")
    sides = np.full(n, "", dtype=object)
    pairs = list[tuple[NDArray, str]]()
    for column, numbers in labels.items():
        rows, name = np.concatenate(numbers), areas[column]
        if sided := re.fullmatch(THINGS.sided, column):
            sides[rows], name = sided["side"].upper(), sided["area"]
        pairs.append((rows, name))
    names = join_areas(n, ((row, name) for rows, name in pairs for row in rows.tolist()))
    places = {axis: table[column] for axis, column in zip("ijk", PLACES, strict=True)}
    found = {"hemisphere": sides, **places, "areas": names, "nc_testset": table["nc_testset"]}
    return pd.DataFrame(found), ids.astype(np.int64)


# --- betas


@dataclass(frozen=True)
class _Columns:
    """Columns of one type of a table that pandas wrote: an array of numbers (n_rows, n_columns), or
    such a field of records (format "table").
    """

    name: str
    field: str
    shape: tuple[int, int]
    kind: str
    size: int

    def parts(
        self, file: h5py.File, columns: slice | NDArray[np.int64] = slice(None)
    ) -> Iterator[tuple[int, NDArray]]:
        """First row and some columns of (n, n_columns), part by part."""
        data = hdf5_array(file, self.name, "fiuV", None)
        step = max(1, PART_BYTES // (self.size * self.shape[1]))
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            if self.field:
                yield start, data.fields(self.field)[rows].reshape(-1, self.shape[1])[:, columns]
            elif isinstance(columns, slice):
                yield start, data[rows, columns]
            else:
                yield start, data[rows][:, columns]


def _columns(path: Path) -> list[_Columns]:
    """All columns of numbers in the tables of a file."""
    found = []
    with open_hdf5(path) as file, reading(path, "a table as pandas writes it"):
        names = [
            f"{place}/{name}" for place in hdf5_names(file) for name in hdf5_names(file, place)
        ]
        for name in names:
            if re.fullmatch(r".*/block\d+_values", name):
                data = hdf5_array(file, name, "fiuO", None)
                if data.ndim == 2 and data.dtype.kind != "O":  # pickled, which is not read
                    found.append(
                        _Columns(name, "", data.shape, data.dtype.kind, data.dtype.itemsize)
                    )
            elif name.endswith("/table"):
                data = hdf5_array(file, name, "V", (None,))
                for field, (dtype, *_) in (data.dtype.fields or {}).items():
                    base, inner = dtype.subdtype or (dtype, (1,))
                    if base.kind in "fiu" and len(inner) == 1 and field != "index":
                        shape = (len(data), inner[0])
                        found.append(_Columns(name, field, shape, base.kind, base.itemsize))
    return found


def _read(path: Path, betas: _Columns, columns: NDArray[np.int64]) -> Iterator[Part]:
    with open_hdf5(path) as file, reading(path), np.errstate(over="ignore"):
        for first, part in betas.parts(file, columns):
            yield Part(np.ascontiguousarray(part.T, dtype=np.float32), 0, first)
