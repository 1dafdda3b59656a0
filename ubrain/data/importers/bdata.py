"""BData, the file format of the Kamitani lab (BrainDecoderToolbox2, bdpy): a table of trials and what its columns mean."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from ubrain.data.importers.files import MAX_BYTES, check_array, hdf5_array, hdf5_names, open_hdf5, reading
from ubrain.errors import UbrainError

MAX_KEYS = 100_000


@dataclass
class BData:
    """An open file. `value` says, for a key, which columns belong to it, or a number for each of them.

    Parameters
    ----------
    path : the file.
    rows : (n_trials, n_columns), a dataset of an HDF5 file or an array.
    keys : of the columns.
    value : (n_keys, n_columns); NaN where a key says nothing about a column.
    labels : for a key, names of the numbers in its column.
    """

    path: Path
    rows: Any
    keys: list[str]
    value: Any
    labels: dict[str, dict[float, str]]

    def described(self, key: str) -> NDArray[np.float64]:
        """What a key says about each column, (n_columns,)."""
        return np.asarray(self.value[self.keys.index(key)], dtype=np.float64)

    def column(self, key: str) -> NDArray[np.float64] | None:
        """The column that is a property of the trials, (n_trials,), never rounded; None if there is none."""
        if key not in self.keys:
            return None
        (columns,) = np.nonzero(self.described(key) == 1)
        if len(columns) != 1:
            raise UbrainError(f"{self.path}: {key!r} has {len(columns)} columns, expected one")
        return np.asarray(self.rows[:, columns[0]], dtype=np.float64)


@contextmanager
def open_bdata(path: Path) -> Iterator[BData]:
    if path.suffix.lower() == ".mat":
        yield _mat_bdata(path)
        return
    with open_hdf5(path) as file:
        with reading(path, "BData"):
            names = hdf5_names(file)
            rows = hdf5_array(file, _first(path, names, "dataset", "dataSet"), "f", (None, None))
            meta = _first(path, names, "metadata", "metaData")
            keys = hdf5_array(file, f"{meta}/key", "OS", (None,))
            value = hdf5_array(file, f"{meta}/value", "f", (len(keys), rows.shape[1]))
            _check_sizes(path, rows.shape, value.shape)
            labels = {key: _labels(file, key) for key in hdf5_names(file, "vmap")}
            data = BData(path, rows, keys.asstr()[:].tolist(), value, labels)
        yield data


def _mat_bdata(path: Path) -> BData:
    with reading(path, "a MATLAB file with dataSet and metaData"):
        if h5py.is_hdf5(path):
            raise UbrainError(f"{path} has been converted to MATLAB's version 7.3; get the published file again")
        _check_unpacked(path)
        content = scipy.io.loadmat(path, variable_names=["dataSet", "dataset", "metaData", "metadata"])
        rows = content[_first(path, content, "dataSet", "dataset")]
        meta = content[_first(path, content, "metaData", "metadata")][0, 0]
        keys = [str(np.squeeze(cell)).strip() for cell in meta["key"].reshape(-1)]
        check_array(rows, f"{path}: dataSet", "biuf", (None, None))
        value = check_array(meta["value"], f"{path}: metaData.value", "biuf", (len(keys), rows.shape[1]))
        return BData(path, rows, keys, value, {})


def _first(path: Path, there: Iterable[str], *names: str) -> str:
    found = [name for name in names if name in there]
    if not found:
        raise UbrainError(f"{path}: {' or '.join(map(repr, names))} is missing; found {', '.join(sorted(there)[:12])}")
    return found[0]


def _check_sizes(path: Path, rows: tuple[int, ...], value: tuple[int, ...]) -> None:
    if max(*rows, *value) * 8 > MAX_BYTES or value[0] > MAX_KEYS:
        raise UbrainError(f"{path}: {rows} responses with {value} metadata are too many to be what is expected here")


def _check_unpacked(path: Path) -> None:
    """Refuse a MATLAB file of which the variables, which are compressed, unpack to far more than such a file can hold."""
    total = 0
    with path.open("rb") as file:
        file.seek(128)
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack("<II", tag)  # of one variable; 15: compressed
            unpack, left = zlib.decompressobj(), size
            while left and (packed := file.read(min(left, 1 << 16))):
                left -= len(packed)
                while packed and kind == 15 and total <= 4 * MAX_BYTES:
                    total += len(unpack.decompress(packed, 1 << 24))
                    packed = unpack.unconsumed_tail
            if total > 4 * MAX_BYTES:
                raise UbrainError(f"{path} unpacks to more than {4 * MAX_BYTES / 1e9:.0f} GB, too much to be what is expected")


def _labels(file: h5py.File, key: str) -> dict[float, str]:
    """Names of the numbers in a column."""
    numbers = hdf5_names(file, f"vmap/{key}")
    if len(numbers) > MAX_KEYS:
        raise UbrainError(f"{file.filename}: vmap/{key} has {len(numbers)} names, too many to be what is expected here")
    return {float(n): str(hdf5_array(file, f"vmap/{key}/{n}", "OS", ()).asstr()[()]) for n in numbers}
