"""BData, the file format of the Kamitani lab (BrainDecoderToolbox2, bdpy): a table of trials and
what its columns mean.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ubrain.data.importers.read import (
    MAX_BYTES,
    check_array,
    check_size,
    hdf5_array,
    hdf5_names,
    hdf5_text,
    hdf5_texts,
    load_mat,
    open_hdf5,
    reading,
)
from ubrain.errors import UbrainError

# More is a mistake or an attack; in brackets, what is published.
MAX_TRIALS = 35_000  # (3,450)
# of what is said about columns (2 MB; for the whole brain in 400 areas it would be 320 MB)
MAX_META = MAX_BYTES
MAX_DESCRIPTION = 1 << 25  # bytes of the same in a MATLAB file, where a byte may be an object
MAX_LABELS = 100_000  # of a column (1,200)


@dataclass
class BData:
    """An open file. `value` says, for a key, which columns belong to it, or a number for each of
    them.

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
        """The column that is a property of the trials, (n_trials,), never rounded; None if there
        is none.
        """
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
            keys = hdf5_texts(file, f"{meta}/key")
            value = hdf5_array(file, f"{meta}/value", "f", (len(keys), rows.shape[1]))
            _check_sizes(path, rows.shape, value.shape)
            labels = {key: _labels(file, key) for key in hdf5_names(file, "vmap")}
            data = BData(path, rows, keys, value[:], labels)
        yield data


def _mat_bdata(path: Path) -> BData:
    with reading(path, "a MATLAB file with dataSet and metaData"):
        if h5py.is_hdf5(path):
            raise UbrainError(
                f"{path} has been converted to MATLAB's version 7.3; get the published file again"
            )
        tables, descriptions = ("dataSet", "dataset"), ("metaData", "metadata")
        content = load_mat(
            path, dict.fromkeys(tables, MAX_BYTES) | dict.fromkeys(descriptions, MAX_DESCRIPTION)
        )
        rows = content[_first(path, content, *tables)]
        meta = content[_first(path, content, *descriptions)][0, 0]
        keys = [str(np.squeeze(cell)).strip() for cell in meta["key"].reshape(-1)]
        check_array(rows, f"{path}: dataSet", "biuf", (None, None))
        value = check_array(
            meta["value"], f"{path}: metaData.value", "biuf", (len(keys), rows.shape[1])
        )
        _check_sizes(path, rows.shape, value.shape)
        return BData(path, rows, keys, value, {})


def _first(path: Path, there: Iterable[str], *names: str) -> str:
    found = [name for name in names if name in there]
    if not found:
        raise UbrainError(
            f"{path}: {' or '.join(map(repr, names))} is missing; found"
            f" {', '.join(sorted(there)[:12])}"
        )
    return found[0]


def _check_sizes(path: Path, rows: tuple[int, ...], value: tuple[int, ...]) -> None:
    if rows[0] > MAX_TRIALS:
        raise UbrainError(
            f"{path}: {rows[0]} trials are too many to be what is expected here, up to {MAX_TRIALS}"
        )
    check_size(8 * value[0] * value[1], MAX_META, f"{path}: {value} metadata")


def _labels(file: h5py.File, key: str) -> dict[float, str]:
    """Names of the numbers in a column."""
    numbers = hdf5_names(file, f"vmap/{key}")
    if len(numbers) > MAX_LABELS:
        raise UbrainError(
            f"{file.filename}: vmap/{key} has {len(numbers)} names, too many to be what is expected"
            " here"
        )
    return {float(n): hdf5_text(hdf5_array(file, f"vmap/{key}/{n}", "OS", ())) for n in numbers}
