"""Files with one volume, map or array per trial, opened: how many trials, which places, and how to
read the responses at some of them. And maps of the same places: masks, atlases.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.crowd import reading
from ubrain.data.importers.read import (
    MAX_TABLE,
    PART_BYTES,
    area_name,
    check_size,
    check_voxels,
    entries,
    hdf5_array,
    hdf5_names,
    open_hdf5,
    open_volume,
    read_lines,
    read_mat,
    read_table,
    read_volume,
)
from ubrain.data.importers.recording import Part
from ubrain.data.importers.surfaces import gifti_arrays, open_cifti
from ubrain.errors import UbrainError, some

SAME_PLACE = 1e-3  # by which affines may differ, in mm


@dataclass(frozen=True)
class Betas:
    """An opened file of betas, or one per hemisphere.

    Parameters
    ----------
    shape : (x, y, z), (left vertices, right vertices), or (n,); places are numbered in C order.
    places : makes the table of them, one row per place.
    read : the responses at some places, in ascending order.
    """

    files: tuple[Path, ...]
    n_trials: int
    shape: tuple[int, ...]
    places: Callable[[], pd.DataFrame]
    read: Callable[[NDArray[np.int64]], Iterator[Part]]
    affine: NDArray[np.float64] | None = None

    def same_places(self, other: "Betas") -> bool:
        """Whether place by place it is that of others."""
        alike = len(self.shape) == 3 or self.shape != other.shape
        alike = alike or self.places().equals(other.places())
        return self.shape == other.shape and alike and same_place(self.affine, other.affine)


def volume_betas(path: Path) -> Betas:
    """A NIfTI image (x, y, z, trials)."""
    image = open_volume(path)
    if len(image.shape) != 4 or image.dtype.kind not in "fiu":
        raise UbrainError(
            f"{path}: expected betas (x, y, z, trials), one volume per trial, got {image.shape}"
            f" {image.dtype}"
        )
    grid = image.shape[:3]

    def read(places: NDArray[np.int64]) -> Iterator[Part]:
        for start, values in image.trials(_fortran(places, grid)):
            yield Part(values, start)

    return Betas((path,), image.shape[3], grid, partial(_grid, path, grid), read, image.affine)


def _grid(path: Path, shape: tuple[int, ...]) -> pd.DataFrame:
    """i, j, k of all voxels in C order; nothing, if they are no volume."""
    check_voxels(int(np.prod(shape)), path)
    places = np.indices(shape, dtype=np.int32).reshape(len(shape), -1)
    return pd.DataFrame(
        dict(zip("ijk", places, strict=True)) if len(shape) == 3 else {}, range(places.shape[1])
    )


def _fortran(places: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Numbers of places when the first axis runs fastest."""
    return np.ravel_multi_index(np.unravel_index(places, shape), shape, order="F")


def cifti_betas(path: Path) -> Betas:
    """A CIFTI file with a map per trial, whose numbers run along the maps first."""
    image, _, table = open_cifti(path)

    def read(places: NDArray[np.int64]) -> Iterator[Part]:
        start, step = 0, max(1, PART_BYTES // (image.shape[4] * image.dtype.itemsize))
        for block in image.blocks(step):
            first, last = np.searchsorted(places, [start, start + block.shape[-1]])
            if first < last:
                some = block[0, 0, 0, 0][:, places[first:last] - start]
                yield Part(image.scaled(some), 0, int(first))
            start += block.shape[-1]

    return Betas((path,), image.shape[4], (len(table),), lambda: table, read)


def gifti_betas(files: Sequence[Path]) -> Betas:
    """GIFTI files of the left and the right hemisphere, with a data array per trial."""
    counts, n_trials = [], set()
    for path, name in zip(files, ("cortexleft", "cortexright"), strict=True):
        arrays = [(side, n) for side, n, _ in gifti_arrays(path, decode=False)]
        sides, sizes = {side.lower() for side, _ in arrays} - {""}, {n for _, n in arrays}
        if sides - {name}:
            raise UbrainError(f"{path}: its name and its structure ({some(sides)}) contradict")
        if len(sizes) != 1:
            raise UbrainError(f"{path}: expected one data array per trial, all of one length")
        n_trials.add(len(arrays))
        counts.append(sizes.pop())
    if len(n_trials) != 1:
        raise UbrainError(f"{files[0]} and {files[1].name} have {some(n_trials)} data arrays")
    check_voxels(sum(counts), files[0])
    table = pd.DataFrame(
        {
            "hemisphere": np.repeat(["L", "R"], counts),
            "vertex": np.r_[tuple(map(np.arange, counts))],
        }
    )

    def read(places: NDArray[np.int64]) -> Iterator[Part]:
        for path, begin, n in zip(files, (0, counts[0]), counts, strict=True):
            first, last = np.searchsorted(places, [begin, begin + n])
            mine, rows, start = places[first:last] - begin, [], 0
            for _, _, values in gifti_arrays(path) if first < last else ():
                rows.append(values[mine])  # type: ignore[index]
                if len(rows) * len(mine) * 8 > PART_BYTES:
                    yield Part(np.stack(rows), start, int(first))
                    start, rows = start + len(rows), []
            if rows:
                yield Part(np.stack(rows), start, int(first))

    return Betas(tuple(files), n_trials.pop(), tuple(counts), lambda: table, read)


def glmsingle_betas(path: Path) -> Betas:
    """Betas (x, y, z, trials) or (units[, 1, 1], trials); MATLAB's HDF5 has the axes reversed."""
    turned = path.suffix.lower() == ".mat"
    if path.suffix.lower() == ".npy":
        refuse_pickle(path)
    with reading(path, "an HDF5 or MATLAB file"):
        in_hdf5 = h5py.is_hdf5(path)
    if in_hdf5:
        with open_hdf5(path) as file:
            key = next((k for k in ("betasmd", "modelmd") if k in hdf5_names(file)), "betasmd")
            data = hdf5_array(file, key, "f", None)
            stored, size = data.shape[::-1] if turned else data.shape, data.dtype.itemsize
        memory = None
    else:
        content = read_mat(path, ["modelmd", "betasmd"])
        if not content:
            raise UbrainError(f"{path}: 'modelmd' is missing")
        key, memory = next(iter(content.items()))
        stored, size, turned = memory.shape, memory.dtype.itemsize, False
    if len(stored) not in (2, 4):
        raise UbrainError(f"{path}: {key!r}: expected (x, y, z, trials), got {stored}")
    grid = stored[:1] if stored[1:-1] == (1, 1) else stored[:-1]

    def parts(data: Any, places: NDArray[np.int64]) -> Iterator[Part]:
        n, inner, row = stored[-1], int(np.prod(stored[1:-1])), int(np.prod(stored[:-1])) * size
        if turned:
            index, step = _fortran(places, grid), max(1, PART_BYTES // row)
            for start in range(0, n, step):
                values = data[start : start + step]
                yield Part(values.reshape(len(values), -1)[:, index], start)
            return
        wide = max(1, min(n, PART_BYTES // (inner * size)))  # trials at a time
        step = max(1, PART_BYTES // (inner * wide * size))
        for a in range(0, stored[0], step):
            first, last = np.searchsorted(places, [a * inner, (a + step) * inner])
            for start in range(0, n if first < last else 0, wide):
                values = data[a : a + step, ..., start : start + wide]
                mine = values.reshape(-1, values.shape[-1])[places[first:last] - a * inner]
                yield Part(np.ascontiguousarray(mine.T), start, int(first))

    def read(places: NDArray[np.int64]) -> Iterator[Part]:
        if memory is not None:
            yield from parts(memory, places)
            return
        with open_hdf5(path) as file, reading(path):
            yield from parts(hdf5_array(file, key, "f", None), places)

    return Betas((path,), stored[-1], grid, partial(_grid, path, grid), read)


def refuse_pickle(path: Path | None) -> None:
    """An error that says how to save a pickled file otherwise; nothing, if there is no file."""
    if path is not None:
        raise UbrainError(
            f"{path} is a pickled Python object, which could run anything and is never read; save"
            " it as HDF5: GLMsingle with wanthdf5=1, or, where you trust the file, h5py.File(...)"
            " with the array betasmd of numpy.load(..., allow_pickle=True).item(), and stimorder"
            " and numtrialrun of DESIGNINFO.npy"
        )


# --- masks and atlases


def fill(text: str, subject: str, hemi: str = "") -> str:
    """A path with a subject and, if given, a hemisphere in their places."""
    text = text.replace("{subject}", subject)
    return text.replace("{hemi}", hemi) if hemi else text


def same_place(a: NDArray | None, b: NDArray | None) -> bool:
    """Whether affines agree, as far as they are known."""
    return a is None or b is None or bool(np.allclose(a, b, rtol=0, atol=SAME_PLACE))


def map_on(betas: Betas, text: str) -> NDArray:
    """Values of a file at all places of the betas, (n,)."""
    if len(betas.shape) == 2:
        both = [next(gifti_arrays(Path(fill(text, "", h))), ("", 0, None)) for h in "LR"]
        if tuple(n for _, n, _ in both) != betas.shape:
            raise UbrainError(
                f"{text}: expected values at {betas.shape} vertices, got"
                f" {tuple(n for _, n, _ in both)}; {{hemi}} in the name stands for L and R"
            )
        return np.concatenate([values for _, _, values in both if values is not None])
    path = Path(text)
    image = open_volume(path)
    if len(betas.shape) == 1 and "vertex" not in betas.places():
        raise UbrainError(f"{path}: where the units of {betas.files[0].name} are is not known")
    if len(betas.shape) == 1 and not open_cifti(path).places.equals(betas.places()):
        raise UbrainError(
            f"{path}: its brain models are not those of {betas.files[0].name}, so its values are of"
            " other places"
        )
    if image.shape not in (betas.shape, (*betas.shape, 1), (1, 1, 1, 1, 1, *betas.shape)):
        raise UbrainError(
            f"{path}: {image.shape}, but the betas of {betas.files[0].name} are {betas.shape};"
            " resample it to their grid"
        )
    if not same_place(image.affine, betas.affine):
        off = np.abs(np.subtract(image.affine, betas.affine)).max()  # type: ignore[arg-type]
        raise UbrainError(
            f"{path}: its affine differs from that of {betas.files[0].name} by up to {off:.3g}, so"
            " its voxels are elsewhere; resample it to their grid"
        )
    return read_volume(path).reshape(betas.shape).reshape(-1)


def label_names(path: Path) -> tuple[dict[int, str], str]:
    """Names of the labels of an atlas, from a table beside it."""
    stem = re.sub(r"(\.(d?label|func|shape|dscalar))?\.(nii(\.gz)?|gii|mgz)$", "", path.name)
    beside = {file.name.lower(): file for file in entries(path.parent)}
    for suffix in (".tsv", ".csv", ".ctab", ".txt", ".json"):
        file = beside.get(f"{stem}{suffix}".lower())
        if file is None:
            continue
        if suffix == ".json":
            with reading(file, "a JSON object of labels and names"):
                check_size(file.stat().st_size, MAX_TABLE, file)
                pairs = [(str(k), str(v)) for k, v in json.loads(file.read_text()).items()]
                pairs = [(k, v) if k.isdecimal() else (v, k) for k, v in pairs]
        elif suffix in (".tsv", ".csv"):
            table = read_table(file, None, "\t" if suffix == ".tsv" else ",")
            columns = ["index", "name"] if {"index", "name"} <= {*table} else list(table)[:2]
            pairs = [(str(row[0]), str(row[-1])) for row in table[columns].to_numpy()]
        else:
            split = (line.split() for line in read_lines(file))
            pairs = [(words[0], words[1]) for words in split if len(words) > 1]
        named = {int(k): area_name(v, file) for k, v in pairs if k.isdecimal()}
        return named, f"from {file.name}"
    return {}, "unknown, their numbers are used"
