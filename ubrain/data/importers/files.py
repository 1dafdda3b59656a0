"""Reading other people's files: nothing is executed, nothing is believed, nothing large is read at once."""

import gzip
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from ubrain.data.store import MAX_SIDE, reading
from ubrain.errors import MissingError, UbrainError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # Pillow knows others, and runs programs for some of them
PART_BYTES = 64 << 20  # responses are read in parts of about this size
MAX_BYTES = 1 << 29  # of an array that is read as a whole: tables, masks, label volumes; more is a mistake or an attack


def natural(text: object) -> list[Any]:
    """Sort key under which image2 comes before image10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(text))]


class Folder:
    """The folder of a dataset, as downloaded.

    Parameters
    ----------
    path : the folder.
    follow_links : read files that are links out of the folder, too. They may be links to anything, so only on request.
    """

    def __init__(self, path: str | Path, follow_links: bool = False) -> None:
        self.path, self.follow_links = Path(path), follow_links
        if not self.path.is_dir():
            raise UbrainError(f"{path}: no such folder")

    def __str__(self) -> str:
        return str(self.path)

    def find(self, *names: str) -> Path | None:
        """The first of several files or folders that exists; upper and lower case are the same, if need be."""
        for name in names:
            path = self._any_case(name)
            if path is not None:
                return self._inside(path)
        return None

    def need(self, *names: str) -> Path:
        """As `find`; an error if there is none."""
        path = self.find(*names)
        if path is None:
            raise MissingError(f"{self.path} has no {' or '.join(names)}")
        return path

    def glob(self, pattern: str) -> list[Path]:
        """All files of a pattern, in natural order."""
        return [self._inside(path) for path in sorted(self.path.glob(pattern), key=natural)]

    def search(self, pattern: str) -> list[Path]:
        """All files, at any depth, whose name is as the regular expression says in any case, in natural order."""
        name = re.compile(pattern, re.IGNORECASE)
        return [self._inside(path) for path in self._files if name.fullmatch(path.name)]

    @cached_property
    def _files(self) -> list[Path]:
        walk = os.walk(self.path, followlinks=True)
        return sorted((Path(folder, name) for folder, _, names in walk for name in names), key=natural)

    def name(self, path: Path) -> str:
        """The path within the folder, for messages and accounts."""
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) else path.name

    def _any_case(self, name: str) -> Path | None:
        path = self.path / name
        if path.exists():
            return path
        path = self.path
        for part in Path(name).parts:
            entries = sorted(path.iterdir()) if path.is_dir() else []
            match = next((e for e in entries if e.name == part), None)
            match = match or next((e for e in entries if e.name.lower() == part.lower()), None)
            if match is None:
                return None
            path = match
        return path if path.exists() else None

    def _inside(self, path: Path) -> Path:
        target = Path(os.path.realpath(path))  # unlike `resolve`, no error where links go round in a circle
        if not self.follow_links and not target.is_relative_to(os.path.realpath(self.path)):
            raise UbrainError(f"{path} is a link to {target}, out of {self.path}; if you have made that link "
                              f"yourself, allow it with --follow-links")  # fmt: skip
        return path


# -------------------------------------------------------------------------------------------------------- HDF5


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file (or MATLAB v7.3), for reading. What is read from it later belongs into `reading`."""
    with reading(path, "an HDF5 file"):
        if not h5py.is_hdf5(path):
            raise UbrainError(f"{path} is not an HDF5 file; it may be truncated, or an error page saved under its name")
        file = h5py.File(path, "r", rdcc_nbytes=64 << 20)
    with file:
        yield file


def hdf5_array(
    file: h5py.File, name: str, kinds: str, shape: Sequence[int | None] | None, empty: bool = False
) -> h5py.Dataset:
    """A dataset of an open file, after checking that it is there, in this file, and what is expected.

    Parameters
    ----------
    kinds : numpy's kinds of numbers, such as "iu", or a dtype such as "int16".
    shape : expected shape; None for an axis of any length, or for any shape.
    empty : whether the length may be 0.
    """
    with reading(Path(file.filename)):
        here: Any = file
        for part in name.strip("/").split("/"):
            link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
            if link is None:
                raise UbrainError(f"{file.filename}: {name!r} is missing; found {', '.join(list(file)[:12]) or 'nothing'}")
            if not isinstance(link, h5py.HardLink):
                raise UbrainError(f"{file.filename}: {name!r} is a link; expected the data themselves")
            here = here[part]
        if not isinstance(here, h5py.Dataset) or here.external or here.is_virtual:
            raise UbrainError(f"{file.filename}: {name!r} is not an array in this file")
        return check_array(here, f"{file.filename}: {name!r}", kinds, shape, empty)


def hdf5_names(file: h5py.File, place: str = "") -> list[str]:
    """Names in a group of an open file, in the order in which they were written if the file knows it; none, if no group.

    Links are not followed, because they may lead out of the file.
    """
    with reading(Path(file.filename)):
        here: Any = file
        for part in filter(None, place.split("/")):
            link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
            if not isinstance(link, h5py.HardLink):
                return []
            here = here[part]
        return list(here) if isinstance(here, h5py.Group) else []


def check_array(array: Any, where: str, kinds: str, shape: Sequence[int | None] | None, empty: bool = False) -> Any:
    """Return `array` if its kind of numbers and its shape are as expected; an axis of length 0 only if it may be empty."""
    shape = [None] * len(array.shape) if shape is None else shape
    kind_fits = array.dtype.kind in kinds if len(kinds) <= 4 else array.dtype == np.dtype(kinds)
    shape_fits = len(array.shape) == len(shape) and all(
        e in (None, n) and (n > 0 or empty) for e, n in zip(shape, array.shape, strict=True)
    )
    if not kind_fits or not shape_fits:
        axes = ", ".join("n" if n is None else str(n) for n in shape)
        raise UbrainError(f"{where}: expected ({axes}) of kind {kinds!r}, got {tuple(array.shape)} {array.dtype}")
    return array


def whole_numbers(array: NDArray, where: str) -> NDArray[np.int64]:
    """As int64, after checking that they are whole numbers, and that there are some."""
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int64) if array.dtype.kind in "biuf" and array.size else None
    if whole is None or not np.array_equal(whole, array) or whole.min() < -(2**53) or whole.max() > 2**53:
        raise UbrainError(f"{where}: expected whole numbers, got {array.shape} {array.dtype}")
    return whole


# ----------------------------------------------------------------------------------------- numpy, MATLAB, tables


def load_npy(path: Path) -> NDArray:
    """Open a .npy file without reading it as a whole and without executing anything it may hold."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        raise UbrainError(f"{path} cannot be read as a .npy array: {error}") from error


@dataclass(frozen=True)
class NpzArray:
    """An array of a .npz file, of which only the header has been read.

    `begin` is where its numbers are in the member of the archive, and `offset` where they are in the file, if the member is
    not compressed.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    begin: int
    offset: int | None

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def load(self) -> NDArray:
        """The whole array; the checksum of the archive is checked."""
        if self.nbytes > 4 * MAX_BYTES:
            raise UbrainError(f"{self.path}: {self.name!r} unpacks to {self.nbytes / 1e9:.1f} GB, which is too large to be "
                              f"read as a whole")  # fmt: skip
        with self._stream() as stream:
            data = _exactly(stream, self.nbytes)
            _at_end(stream)
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")

    def blocks(self, step: int) -> Iterator[NDArray]:
        """All rows, `step` at a time, (step, ...); after the last one, the checksum of the archive is checked."""
        with self._stream() as stream:
            for start in range(0, self.shape[0], step):
                shape = (min(step, self.shape[0] - start), *self.shape[1:])
                data = _exactly(stream, int(np.prod(shape)) * self.dtype.itemsize)
                yield np.frombuffer(data, self.dtype).reshape(shape)
            _at_end(stream)

    def rows(self, wanted: NDArray[np.int64], step: int) -> Iterator[NDArray]:
        """Some rows, in ascending order, up to `step` at a time; the others are not read, if the file allows that."""
        if self.offset is None:
            for number, block in enumerate(self.blocks(step)):
                inside = np.searchsorted(wanted, [number * step, (number + 1) * step])
                if inside[0] < inside[1]:
                    yield block[wanted[slice(*inside)] - number * step]
            return
        width = self.nbytes // self.shape[0]
        for start in range(0, len(wanted), step):
            rows = wanted[start : start + step].tolist()
            with reading(self.path, "a .npz file"), self.path.open("rb") as file:
                data = b"".join([_exactly(file, width, self.offset + row * width) for row in rows])
            yield np.frombuffer(data, self.dtype).reshape(len(rows), *self.shape[1:])

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        with (
            reading(self.path, "a .npz file"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as stream,
        ):
            _exactly(stream, self.begin)
            yield stream


def _exactly(stream: Any, size: int, offset: int | None = None) -> bytes:
    if offset is not None:
        stream.seek(offset)
    data: bytes = stream.read(size)
    if len(data) < size:
        raise EOFError("the file ends too early")
    return data


def _at_end(stream: Any) -> None:
    if stream.read(1):
        raise ValueError("there are more numbers than the header says")


def npz_names(path: Path) -> list[str]:
    """Names of the arrays of a .npz file."""
    with reading(path, "a .npz file"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def open_npz(path: Path, name: str) -> NpzArray:
    """Read the header of an array of a .npz file."""
    with reading(path, "a .npz file"), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise UbrainError(f"{path}: no array {name!r}; found {', '.join(npz_names(path)[:12])}")
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(stream)
            begin = stream.tell()
        if dtype.hasobject:
            raise UbrainError(f"{path}: {name!r} holds pickled objects, which are not read because they could do harm")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if begin + size != member.file_size:
            raise UbrainError(f"{path}: {name!r} is {shape} {dtype}, but has {member.file_size - begin} bytes, not {size}")
        plain = member.compress_type == zipfile.ZIP_STORED
        return NpzArray(path, name, shape, dtype, fortran, begin, _data_offset(path, member) + begin if plain else None)


def load_npz(path: Path, name: str) -> NDArray:
    """One array of a .npz file: as a whole if it is small, else mapped, which needs a file that is not compressed."""
    array = open_npz(path, name)
    if array.nbytes > MAX_BYTES and array.offset is not None:
        with reading(path, "a .npz file"):
            return np.memmap(path, array.dtype, "r", array.offset, array.shape, "F" if array.fortran else "C")
    if array.nbytes > 4 * MAX_BYTES:
        raise UbrainError(f"{path}: {name!r} is compressed and unpacks to {array.nbytes / 1e9:.1f} GB; store it uncompressed "
                          f"with numpy.savez")  # fmt: skip
    return array.load()


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UbrainError(f"{path}: damaged zip archive; get it again")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra


def read_mat(path: Path, names: Sequence[str]) -> dict[str, NDArray]:
    """Numeric arrays of a MATLAB file, v5 or v7.3, in MATLAB's orientation. Names that it does not have are left out."""
    with reading(path, "a MATLAB file"):
        if h5py.is_hdf5(path):
            with open_hdf5(path) as file:
                there = set(file)
                found = {n: hdf5_array(file, n, "biuf", None) for n in names if n in there}
                _check_sizes(path, {n: d.shape for n, d in found.items()})
                return {n: d[:].T for n, d in found.items()}
        _check_sizes(path, {n: shape for n, shape, _ in scipy.io.whosmat(path) if n in names})
        content = scipy.io.loadmat(path, variable_names=list(names))
        arrays = {n: content[n] for n in names if n in content}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                raise UbrainError(f"{path}: {name!r} is not an array of numbers")
        return arrays


def _check_sizes(path: Path, shapes: dict[str, Sequence[int]]) -> None:
    for name, shape in shapes.items():
        if int(np.prod(shape, dtype=object)) * 8 > 4 * MAX_BYTES:
            raise UbrainError(f"{path}: {name!r} is {tuple(shape)}, too large to be what is expected here")


def read_table(path: Path, columns: Sequence[str], separator: str = ",", whole: Sequence[str] = ()) -> pd.DataFrame:
    """Some columns of a table with a header line; those in `whole` have to be whole numbers."""
    with reading(path, "a table"):
        head = pd.read_csv(path, sep=separator, nrows=0)
        missing = [c for c in columns if c not in head]
        if missing:
            raise UbrainError(f"{path}: no column {missing[0]!r}; found {', '.join(map(str, head))}")
        table = pd.read_csv(path, sep=separator, usecols=list(columns), low_memory=False)
        for column in whole:
            numbers = pd.to_numeric(table[column])
            if (numbers % 1 != 0).any() or (numbers.abs() >= 2**53).any():
                raise UbrainError(f"{path}: column {column!r}: expected whole numbers")
            table[column] = numbers.astype(np.int64)
        return table


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty."""
    with reading(path, "text"):
        if path.stat().st_size > MAX_BYTES:
            raise UbrainError(f"{path}: too large for a text file")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


# ------------------------------------------------------------------------------------------- volumes and surfaces


@dataclass(frozen=True)
class Volume:
    """A NIfTI or MGH image, of which only the header has been read; `shape` is (i, j, k) or (i, j, k, trials)."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: tuple[float, float]  # slope and intercept that the header asks for
    offset: int

    def blocks(self, step: int) -> Iterator[NDArray]:
        """The stored numbers, not scaled, `step` along the last axis at a time, forwards: (i, j, k, step)."""
        with reading(self.path, "an image as its header says"), _stream(self.path) as stream:
            stream.seek(self.offset)
            for start in range(0, self.shape[-1], step):
                shape = (*self.shape[:-1], min(step, self.shape[-1] - start))
                size = int(np.prod(shape)) * self.dtype.itemsize
                data = stream.read(size)
                if len(data) < size:
                    raise EOFError("the file ends too early")
                yield np.frombuffer(data, self.dtype).reshape(shape, order="F")
            stream.read(1 << 16)  # to the end, where a compressed file has its checksum

    def trials(self, places: NDArray[np.int64]) -> Iterator[tuple[int, NDArray]]:
        """The stored numbers at some places (the first axis runs fastest): first trial and (trials, places), part by part."""
        size = int(np.prod(self.shape[:-1]))
        step = max(1, PART_BYTES // (size * self.dtype.itemsize))
        for number, block in enumerate(self.blocks(step)):
            yield number * step, block.reshape(size, -1, order="F").T[:, places]


def _stream(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith((".gz", ".mgz")) else path.open("rb")


def open_volume(path: Path) -> Volume:
    """Read the header of a NIfTI or MGH image."""
    surface = path.name.lower().endswith((".mgh", ".mgz"))
    with reading(path, "a NIfTI or MGH image"), _stream(path) as stream:
        header = (nib.MGHImage if surface else nib.Nifti1Image).header_class.from_fileobj(stream)
        slope, inter = (None, None) if surface else header.get_slope_inter()
        shape = tuple(int(n) for n in header.get_data_shape())
        if not shape or min(shape) < 1:
            raise ValueError(f"its header says {shape}")
        offset = int(header.get_data_offset())
        if offset < (284 if surface else 348):  # size of the header
            raise ValueError(f"its header says that the data begin at byte {offset}")
        return Volume(path, shape, header.get_data_dtype(), (slope or 1.0, inter or 0.0), offset)


def read_volume(path: Path, shape: Sequence[int] | None = None) -> NDArray:
    """A small image as a whole: (i, j, k), or (vertices,) for a surface; optionally of an expected shape."""
    image = open_volume(path)
    found: tuple[int, ...] = image.shape
    if path.name.lower().endswith((".mgh", ".mgz")):
        found = (int(np.prod(image.shape, dtype=object)),)
    if shape is not None and found != tuple(shape):
        raise UbrainError(f"{path}: expected {tuple(shape)}, got {found}")
    if int(np.prod(image.shape, dtype=object)) * 8 > 4 * MAX_BYTES:
        raise UbrainError(f"{path}: {image.shape} is too large for a mask or a map of areas")
    (values,) = image.blocks(image.shape[-1])
    slope, inter = image.scale
    return (values if (slope, inter) == (1, 0) else values * slope + inter).reshape(found, order="F")


# ------------------------------------------------------------------------------------------------------ pictures


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """A picture as (height, width, 3)."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_side(path, image)
            if image.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
                raise UbrainError(f"image {path} has more than 8 bits a channel; save it with 8")
            return np.asarray(image.convert("RGB"))
    except UbrainError:
        raise
    except Exception as error:
        raise UbrainError(f"image {path} cannot be read: {error}") from error


def rgb_shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture, from its header alone."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_side(path, image)
            return image.height, image.width
    except UbrainError:
        raise
    except Exception as error:
        raise UbrainError(f"image {path} cannot be read: {error}") from error


def _check_side(path: Path, image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE:
        raise UbrainError(f"image {path} is {image.size} pixels; sides above {MAX_SIDE} are refused")
