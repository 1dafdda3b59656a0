"""Other people's files: nothing is executed, nothing is believed, nothing large is read at once."""

import fnmatch
import glob
import gzip
import io
import math
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import scipy.io
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from ubrain.crowd import reading
from ubrain.data.crowdfile import MAX_SIDE
from ubrain.errors import MissingError, UbrainError
from ubrain.paths import regular
from ubrain.progress import log

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
# Pillow has others, and runs programs for some of them
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
PART_BYTES = 64 << 20  # responses are read in parts of about this size
# More than the following is a mistake or an attack; in brackets, the largest that is published.
MAX_BYTES = 1 << 29  # arrays of a file that are read as a whole (0.38 GB: vim-1, GOD, as float64)
MAX_VOLUME = 1 << 27  # a mask or a map of areas, as float64 (36 MB: NSD's at 1 mm)
MAX_VOXELS = 4_000_000  # of a subject (about 1.5 million: a whole brain at 1 mm)
MAX_CHUNK = 1 << 28  # of an HDF5 file, which reads it as a whole (73 MB: MOSAIC's merged files)
MAX_TABLE = 1 << 26  # a text file with columns (12 MB: NSD's images)
MAX_TEXT = 1 << 22  # a text file of names (0.3 MB: BOLD5000's trials)
MAX_LINE = 1000  # characters of one of its lines
MAX_TEXTS = 300_000  # names in an HDF5 file (30,000: MOSAIC's trials)
MAX_NAME = 64  # characters of the name of an area


def natural(text: object) -> list[Any]:
    """Sort key under which image2 comes before image10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(text))]


def spellings(name: str) -> set[str]:
    """What a file is looked for by: its name with and without its suffix, in lower case."""
    return {name.lower(), Path(name).stem.lower()}


def visible(name: str) -> bool:
    """Whether a file is of the dataset: macOS leaves ._NAME and .DS_Store beside the others."""
    return not name.startswith(".")


def entries(folder: Path) -> list[Path]:
    """What is in a folder, and visible."""
    with reading(folder, "a folder"):
        return [p for p in folder.iterdir() if visible(p.name)] if folder.is_dir() else []


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


@contextmanager
def listing(folder: Path) -> Iterator[None]:
    """Turn what the system says about a folder, or a name in it, into one clear error."""
    try:
        yield
    except UbrainError:
        raise
    except (OSError, ValueError) as error:
        name = Path(getattr(error, "filename", None) or folder).name[:60]
        reason = getattr(error, "strerror", None) or error
        raise UbrainError(f"{str(folder)[:400]}: {name!r}: {str(reason)[:200]}") from error


class Folder:
    """The folder of a dataset, as downloaded. Names are found in any case; hidden files are not.

    Parameters
    ----------
    path : the folder.
    follow_links : read files that are links out of the folder, too. They may be links to anything,
        so only on request.
    """

    def __init__(self, path: str | Path, follow_links: bool = False) -> None:
        self.path, self.follow_links = Path(path), follow_links
        with listing(self.path):
            if not self.path.is_dir():
                what = "is a file; expected a folder" if self.path.exists() else "no such folder"
                raise UbrainError(f"{path}: {what}")

    def __str__(self) -> str:
        return str(self.path)

    def find(self, *names: str) -> Path | None:
        """The first of several files or folders that exists."""
        paths = (self._any_case(name) for name in names)
        with listing(self.path):
            path = next((path for path in paths if path is not None), None)
        return None if path is None else self._inside(path)

    def need(self, *names: str) -> Path:
        """As `find`; an error if there is none."""
        path = self.find(*names)
        if path is None:
            raise MissingError(f"{self.path} has no {' or '.join(names)}")
        return path

    def glob(self, pattern: str) -> list[Path]:
        """All files and folders of a pattern, in natural order."""
        found = [self.path]
        with listing(self.path):
            for part in Path(pattern).parts:
                name = re.compile(fnmatch.translate(part), re.IGNORECASE)
                inside = (path for place in found for path in entries(place))
                found = [path for path in inside if name.fullmatch(path.name)]
        return self._all(found)

    def search(self, pattern: str) -> list[Path]:
        """All files, at any depth, whose name matches, in natural order."""
        name = re.compile(pattern, re.IGNORECASE)
        return self._all(
            Path(place, file)
            for place, files in self._files
            for file in files
            if name.fullmatch(file)
        )

    def pictures(self, names: Collection[str]) -> list[Path]:
        """All pictures, at any depth, with one of these names or stems, in natural order."""
        wanted = {name.lower() for name in names}
        return self._all(
            Path(place, file)
            for place, files in self._walk()
            for file in files
            if _is_picture(file) and not wanted.isdisjoint(spellings(file))
        )

    def _all(self, paths: Iterable[Path]) -> list[Path]:
        return [self._inside(path) for path in sorted(paths, key=natural)]

    @cached_property
    def _files(self) -> list[tuple[str, list[str]]]:
        """All folders and the files in them, but pictures, which may be millions."""
        return [
            (place, [file for file in files if not _is_picture(file)])
            for place, files in self._walk()
        ]

    def _walk(self) -> Iterator[tuple[str, list[str]]]:
        """All folders, each once, and the files in them; links out of it only on request."""

        def refuse(error: OSError) -> NoReturn:
            raise UbrainError(f"{error.filename} cannot be read: {error.strerror}") from error

        root, seen, starts = os.path.realpath(self.path), set[str](), [str(self.path)]
        for start in starts:  # where real folders end there are links, which come later
            for place, folders, files in os.walk(start, onerror=refuse):
                real = os.path.realpath(place)
                inside = self.follow_links or Path(real).is_relative_to(root)
                if not inside:
                    log.warning(
                        "%s is a link to %s, out of %s, and left out; if you have made that link"
                        " yourself, allow it with --follow-links",
                        place,
                        real,
                        self.path,
                    )
                if not inside or real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                inner = (os.path.join(place, folder) for folder in folders)
                starts += filter(os.path.islink, inner)
                yield place, list(filter(visible, files))

    def name(self, path: Path) -> str:
        """The path within the folder, for messages and accounts."""
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) else path.name

    def _any_case(self, name: str) -> Path | None:
        exact = self.path / name
        found = [exact] if exact.exists() else self.glob(glob.escape(name))
        return next((path for path in found if path.exists()), None)

    def _inside(self, path: Path) -> Path:
        # Unlike `resolve`, `realpath` raises no error where links go round in a circle
        target = Path(os.path.realpath(path))
        if not self.follow_links and not target.is_relative_to(os.path.realpath(self.path)):
            raise UbrainError(
                f"{path} is a link to {target}, out of {self.path}; if you have made that link "
                "yourself, allow it with --follow-links"
            )
        return path


# --- HDF5


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file (or MATLAB v7.3); what is read from it later belongs into `reading`."""
    with reading(path, "an HDF5 file"):
        if not h5py.is_hdf5(path):
            raise UbrainError(
                f"{path} is not an HDF5 file; it may be truncated, or an error page saved under its"
                " name"
            )
        file = h5py.File(path, "r", rdcc_nbytes=64 << 20)
    with file:
        yield file


def hdf5_array(
    file: h5py.File, name: str, kinds: str, shape: Sequence[int | None] | None, empty: bool = False
) -> h5py.Dataset:
    """A dataset of an open file, after checking that it is there, in this file, and as expected.

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
                raise UbrainError(
                    f"{file.filename}: {name!r} is missing; found"
                    f" {', '.join(list(file)[:12]) or 'nothing'}"
                )
            if not isinstance(link, h5py.HardLink):
                raise UbrainError(
                    f"{file.filename}: {name!r} is a link; expected the data themselves"
                )
            here = here[part]
        if not isinstance(here, h5py.Dataset) or here.external or here.is_virtual:
            raise UbrainError(f"{file.filename}: {name!r} is not an array in this file")
        if here.chunks:
            check_size(
                math.prod(here.chunks) * here.dtype.itemsize,
                MAX_CHUNK,
                f"{file.filename}: a chunk of {name!r}",
            )
        return check_array(here, f"{file.filename}: {name!r}", kinds, shape, empty)


def hdf5_texts(file: h5py.File, name: str) -> list[str]:
    """All texts of a dataset (n,) of an open file."""
    data, where = hdf5_array(file, name, "OS", (None,)), f"{file.filename}: {name!r}"
    if len(data) > MAX_TEXTS:
        raise UbrainError(f"{where} has {len(data)} texts, too many to be what is expected here")
    check_size(data.dtype.itemsize, MAX_TEXT, where)
    texts: list[str] = []
    length = 0
    for start in range(0, len(data), 16):  # a few at a time: nobody knows how long they are
        texts.extend(data.asstr()[start : start + 16])
        length += sum(map(len, texts[start:]))
        check_size(length, 4 * MAX_TEXT, where)
    return texts


def hdf5_text(data: h5py.Dataset) -> str:
    """A text, as a dataset that has been checked."""
    check_size(data.dtype.itemsize, MAX_TEXT, f"{data.file.filename}: {data.name!r}")
    return str(data.asstr()[()])


def hdf5_names(file: h5py.File, place: str = "") -> list[str]:
    """Names in a group of an open file, in the order in which they were written if the file has
    it; none, if it is no group, or reached by a link, which may lead out of the file.
    """
    with reading(Path(file.filename)):
        here: Any = file
        for part in filter(None, place.split("/")):
            link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
            if not isinstance(link, h5py.HardLink):
                return []
            here = here[part]
        return list(here) if isinstance(here, h5py.Group) else []


def check_size(size: int, limit: int, where: object) -> None:
    """Refuse what has more than so many bytes."""
    if size > limit:
        raise UbrainError(
            f"{where}: {size:,} bytes are too large to be what is expected here, up to {limit:,}"
        )


def area_name(text: str, where: object) -> str:
    """The name of an area as it is written into the crowd file, where commas separate names."""
    if len(text) > MAX_NAME:
        raise UbrainError(f"{where}: {text[:MAX_NAME]!r}... is too long for the name of an area")
    return text.strip().replace(",", "-")


def check_array(
    array: Any, where: str, kinds: str, shape: Sequence[int | None] | None, empty: bool = False
) -> Any:
    """Return `array` if its kind of numbers and its shape are as expected; see `hdf5_array`."""
    shape = [None] * len(array.shape) if shape is None else shape
    kind_fits = array.dtype.kind in kinds if len(kinds) <= 4 else array.dtype == np.dtype(kinds)
    shape_fits = len(array.shape) == len(shape) and all(
        e in (None, n) and (n > 0 or empty) for e, n in zip(shape, array.shape, strict=True)
    )
    if not kind_fits or not shape_fits:
        axes = ", ".join("n" if n is None else str(n) for n in shape)
        raise UbrainError(
            f"{where}: expected ({axes}) of kind {kinds!r}, got {tuple(array.shape)} {array.dtype}"
        )
    return array


def whole_numbers(array: NDArray, where: str) -> NDArray[np.int64]:
    """As int64, after checking that they are whole numbers, and that there are some."""
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int64) if array.dtype.kind in "biuf" and array.size else None
    if (
        whole is None
        or not np.array_equal(whole, array)
        or not -(2**53) <= whole.min() <= whole.max() <= 2**53
    ):
        raise UbrainError(f"{where}: expected whole numbers, got {array.shape} {array.dtype}")
    return whole


# --- numpy


def load_npy(path: Path) -> NDArray:
    """Open a .npy file without reading it as a whole and without executing anything it may hold."""
    regular(path)
    try:
        with path.open("rb") as file:
            _npy_header(file)
        array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != path.stat().st_size:
            raise ValueError(
                f"it says {array.shape} {array.dtype}, but has {path.stat().st_size - array.offset}"
                " bytes"
            )
        return array
    except Exception as error:
        raise UbrainError(f"{path} cannot be read as a .npy array: {error}") from error


def let_go(array: NDArray) -> None:
    """Take what has been read of a mapped file out of memory, where it would stay to the end."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        base.madvise(mmap.MADV_DONTNEED)


def _npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order, and type; headers of other versions may have gigabytes."""
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f"expected version 1.0 of the format, got {'.'.join(map(str, version))}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, fortran, dtype


@dataclass(frozen=True)
class NpzArray:
    """An array of a .npz file, of which only the header has been read.

    `begin` is where its numbers are in the member of the archive, and `offset` where they are in
    the file, if the member is not compressed.
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
        check_size(self.nbytes, MAX_BYTES, f"{self.path}: {self.name!r}")
        with self._stream() as stream:
            data = _exactly(stream, self.nbytes)
            _at_end(stream)
        return np.frombuffer(data, self.dtype).reshape(
            self.shape, order="F" if self.fortran else "C"
        )

    def blocks(self, step: int) -> Iterator[NDArray]:
        """All rows, `step` at a time, (step, ...); at the end, the checksum is checked."""
        with self._stream() as stream:
            for start in range(0, self.shape[0], step):
                shape = (min(step, self.shape[0] - start), *self.shape[1:])
                data = _exactly(stream, int(np.prod(shape)) * self.dtype.itemsize)
                yield np.frombuffer(data, self.dtype).reshape(shape)
            _at_end(stream)

    def rows(self, wanted: NDArray[np.int64], columns: slice, step: int) -> Iterator[NDArray]:
        """Some rows, in ascending order, up to `step` at a time, of an array with two axes.

        Other rows and columns are not read, if the file allows that.
        """
        if self.offset is None:
            for number, block in enumerate(self.blocks(step)):
                inside = np.searchsorted(wanted, [number * step, (number + 1) * step])
                if inside[0] < inside[1]:
                    yield block[wanted[slice(*inside)] - number * step, columns]
            return
        first, end, _ = columns.indices(self.shape[1])
        width, size = self.shape[1] * self.dtype.itemsize, (end - first) * self.dtype.itemsize
        begin = self.offset + first * self.dtype.itemsize
        for start in range(0, len(wanted), step):
            rows = wanted[start : start + step].tolist()
            with reading(self.path, "a .npz file"), self.path.open("rb") as file:
                data = b"".join([_exactly(file, size, begin + row * width) for row in rows])
            yield np.frombuffer(data, self.dtype).reshape(len(rows), end - first)

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
            shape, fortran, dtype = _npy_header(stream)
            begin = stream.tell()
        if dtype.hasobject:
            raise UbrainError(
                f"{path}: {name!r} holds pickled objects, which are not read because they could do"
                " harm"
            )
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if begin + size != member.file_size:
            raise UbrainError(
                f"{path}: {name!r} is {shape} {dtype}, but has {member.file_size - begin} bytes,"
                f" not {size}"
            )
        plain = member.compress_type == zipfile.ZIP_STORED
        return NpzArray(
            path,
            name,
            shape,
            dtype,
            fortran,
            begin,
            _data_offset(path, member) + begin if plain else None,
        )


def load_npz(path: Path, name: str) -> NDArray:
    """One array of a .npz file: as a whole if the file is small, else mapped, which needs a file
    that is not compressed.
    """
    array = open_npz(path, name)
    with reading(path, "a .npz file"):
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total <= MAX_BYTES:
            return array.load()
        if array.offset is None:
            raise UbrainError(
                f"{path} is compressed and unpacks to {total / 1e9:.1f} GB; store it uncompressed"
                " with numpy.savez"
            )
        return np.memmap(
            path, array.dtype, "r", array.offset, array.shape, "F" if array.fortran else "C"
        )


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UbrainError(f"{path}: damaged zip archive; get it again")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra


# --- MATLAB. Headers are read here, because scipy.io.whosmat takes as much memory for a name as the
# file says (151 MB for one of 0.3 MB; still 64 MB if it is given the first bytes only).


def read_mat(path: Path, names: Sequence[str], limit: int | None = None) -> dict[str, NDArray]:
    """Numeric arrays of a MATLAB file, v5 or v7.3, in MATLAB's orientation. Names that it does not
    have are left out.

    Parameters
    ----------
    limit : bytes that they may have together, as float64; default: MAX_BYTES.
    """
    limit = MAX_BYTES if limit is None else limit
    with reading(path, "a MATLAB file"):
        if h5py.is_hdf5(path):
            with open_hdf5(path) as file:
                there = set(file)
                found = {n: hdf5_array(file, n, "biuf", None) for n in names if n in there}
                check_size(
                    sum(8 * d.size for d in found.values()), limit, f"{path}: {', '.join(found)}"
                )
                return {n: d[:].T for n, d in found.items()}
        variables = [v for v in _mat_variables(path) if v.name in names]
        for variable in variables:
            if variable.kind not in _MAT_NUMBERS:
                raise UbrainError(f"{path}: {variable.name!r} is not an array of numbers")
        check_size(
            sum(8 * math.prod(v.shape) for v in variables), limit, f"{path}: {', '.join(names)}"
        )
        content = load_mat(path, dict.fromkeys(names, limit))
        return {
            n: check_array(content[n], f"{path}: {n!r}", "biuf", None, empty=True)
            for n in names
            if n in content
        }


def matrices(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of numbers with two axes in an HDF5 or MATLAB file, by their names."""
    with reading(path, "an HDF5 or MATLAB file"):
        if not h5py.is_hdf5(path):
            variables = (v for v in _mat_variables(path) if v.kind in _MAT_NUMBERS)
            return {v.name: v.shape for v in variables if len(v.shape) == 2}
        with open_hdf5(path) as file:
            links = {name: file.get(name, getlink=True) for name in hdf5_names(file)}
            own = {n: file[n] for n, link in links.items() if isinstance(link, h5py.HardLink)}
            arrays = {n: data for n, data in own.items() if isinstance(data, h5py.Dataset)}
            return {n: d.shape for n, d in arrays.items() if d.ndim == 2 and d.dtype.kind in "fiu"}


def load_mat(path: Path, limits: Mapping[str, int]) -> dict[str, Any]:
    """Variables of a MATLAB file, v5, as scipy reads them; `limits` are their bytes, unpacked."""
    with open(path, "rb") as file:
        for variable in _mat_variables(path):
            if variable.name in limits:
                size = _unpacked_size(file, variable, limits[variable.name])
                check_size(size, limits[variable.name], f"{path}: {variable.name!r}")
    with _Bounded(path, max(1 << 20, *limits.values())) as stream:
        return scipy.io.loadmat(stream, variable_names=list(limits))


class _MatVariable(NamedTuple):
    """Header of a variable of a MATLAB file, and where it is in the file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    place: int
    size: int
    compressed: bool


_MAT_NUMBERS = range(6, 16)  # of MATLAB's kinds of arrays; others are cells, texts, ...
_MAT_COMPRESSED = 15  # of its kinds of elements


def _mat_variables(path: Path) -> list[_MatVariable]:
    """Headers of all variables."""
    found = []
    with path.open("rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:])
        if order is None:
            raise ValueError("not of version 5 or 7.3")
        while tag := file.read(8):
            kind, size = struct.unpack(f"{order}II", tag)
            place = file.tell()
            begin = file.read(min(size, 1 << 12))
            if kind == _MAT_COMPRESSED:
                begin = zlib.decompressobj().decompress(begin, 512)[8:]
            flags, at = _mat_element(begin, 0, order)
            axes, at = _mat_element(begin, at, order)
            name, at = _mat_element(begin, at, order)
            shape = struct.unpack(f"{order}{len(axes) // 4}i", axes)
            number = struct.unpack(f"{order}II", flags)[0] & 0xFF
            if min(shape) < 0:
                raise ValueError(f"its header says {shape}")
            packed, text = kind == _MAT_COMPRESSED, name.decode("latin-1")
            found.append(_MatVariable(text, number, shape, place, size, packed))
            file.seek(place + size)
    return found


def _mat_element(data: bytes, at: int, order: str) -> tuple[bytes, int]:
    """An element of a variable, and where the next begins; up to 4 bytes are in the tag itself."""
    kind, size = struct.unpack_from(f"{order}II", data, at)
    begin, end = (at + 4, at + 8) if kind >> 16 else (at + 8, at + 8 + -(-size // 8) * 8)
    if end > len(data):
        raise ValueError("a header of a variable is too long")
    return data[begin : begin + (kind >> 16 or size)], end


def _unpacked_size(file: BinaryIO, variable: _MatVariable, limit: int) -> int:
    """Bytes of a variable, counted no further than the limit."""
    file.seek(variable.place)
    if not variable.compressed:
        return variable.size
    unpack, left, total = zlib.decompressobj(), variable.size, 0
    while left and total <= limit and (packed := file.read(min(left, 1 << 16))):
        left -= len(packed)
        while packed and total <= limit:
            total += len(unpack.decompress(packed, 1 << 24))
            packed = unpack.unconsumed_tail
    return total


class _Bounded(io.FileIO):
    """A file of which only so many bytes are read at once, whatever its headers say."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(path)
        self._limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes."""
        if size is not None and size > self._limit:
            raise ValueError(f"a header says {size} bytes")
        return super().read(size)


# --- tables and texts


def table_header(path: Path, separator: str = ",", limit: int | None = None) -> list[str]:
    """Names of the columns of a table; an error if the file has more bytes than `limit`."""
    with reading(path, "a table"):
        check_size(path.stat().st_size, limit or MAX_TABLE, path)
        with path.open("rb") as file:
            check_size(len(file.readline(MAX_TEXT)), 10 * MAX_LINE, f"{path}, first line")
        return [str(name) for name in pd.read_csv(path, sep=separator, nrows=0)]


def require_columns(path: Path, there: Sequence[str], wanted: Iterable[str]) -> None:
    """Refuse a table that lacks a column."""
    if missing := [name for name in wanted if name not in there]:
        raise UbrainError(f"{path}: no column {missing[0]!r}; found {', '.join(there)}")


def read_table(
    path: Path, columns: Sequence[str] | None, separator: str = ",", whole: Sequence[str] = ()
) -> pd.DataFrame:
    """Some columns of a table with a header line; those in `whole` have to be whole numbers. None:
    all columns, as text.
    """
    header = table_header(path, separator)
    require_columns(path, header, columns or [])
    with reading(path, "a table"):
        if columns is None:
            return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
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
        check_size(path.stat().st_size, MAX_TEXT, path)
        stripped = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
        lines = [line for line in stripped if line]
        check_size(max(map(len, lines), default=0), MAX_LINE, f"{path}, longest line")
        return lines


# --- volumes and surfaces. Only the headers are nibabel's: its `load` reads an extension as long as
# the file says (71 MB for one of 0.3 MB), and slices of `dataobj` miss numbers after the last.


@dataclass(frozen=True)
class Volume:
    """A NIfTI or MGH image, of which only the header has been read: (i, j, k[, trials])."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: tuple[float, float]  # slope and intercept that the header asks for
    offset: int
    affine: NDArray[np.float64] | None = None  # (4, 4), of a NIfTI image that says it

    def blocks(self, step: int) -> Iterator[NDArray]:
        """The stored numbers, not scaled, `step` along the last axis at a time: (i, j, k, step)."""
        with reading(self.path, "an image as its header says"), _stream(self.path) as stream:
            stream.seek(self.offset)
            for start in range(0, self.shape[-1], step):
                shape = (*self.shape[:-1], min(step, self.shape[-1] - start))
                size = int(np.prod(shape)) * self.dtype.itemsize
                data = stream.read(size)
                if len(data) < size:
                    raise EOFError("the file ends too early")
                yield np.frombuffer(data, self.dtype).reshape(shape, order="F")
            # Compressed files have their checksum at the end
            if stream.read(1 << 16) and not _is_surface(self.path):
                raise ValueError("there are more numbers than the header says")

    def trials(self, places: NDArray[np.int64]) -> Iterator[tuple[int, NDArray]]:
        """The numbers at some places (the first axis runs fastest), as the header means them: first
        trial and (trials, places), part by part.
        """
        size = int(np.prod(self.shape[:-1]))
        step = max(1, PART_BYTES // (size * self.dtype.itemsize))
        for number, block in enumerate(self.blocks(step)):
            values = block.reshape(size, -1, order="F").T[:, places]
            yield number * step, self.scaled(values)

    def scaled(self, values: NDArray) -> NDArray:
        """Stored numbers as the header means them."""
        slope, inter = map(np.float32, self.scale)
        return values if self.scale == (1, 0) else values * slope + inter


def _is_surface(path: Path) -> bool:
    return path.name.lower().endswith((".mgh", ".mgz"))


def _stream(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith((".gz", ".mgz")) else path.open("rb")


def open_volume(path: Path) -> Volume:
    """Read the header of a NIfTI (1 or 2) or MGH image."""
    surface = _is_surface(path)
    with reading(path, "a NIfTI or MGH image"), _stream(path) as stream:
        if surface:
            header, least, affine = nib.MGHImage.header_class.from_fileobj(stream), 284, None
            slope, inter = None, None
        else:
            start = stream.read(348)
            second = start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 540, its length
            header = (
                nib.Nifti2Header(start + stream.read(192)) if second else nib.Nifti1Header(start)
            )
            least, (slope, inter) = 540 if second else 348, header.get_slope_inter()
            affine = (
                header.get_best_affine() if header["sform_code"] or header["qform_code"] else None
            )
        shape = tuple(int(n) for n in header.get_data_shape())
        if not shape or min(shape) < 1:
            raise ValueError(f"its header says {shape}")
        offset = int(header.get_data_offset())
        if offset < least:
            raise ValueError(f"its header says that the data begin at byte {offset}")
        scale = (slope or 1.0, inter or 0.0)
        return Volume(path, shape, header.get_data_dtype(), scale, offset, affine)


def check_voxels(n: int, where: object) -> None:
    """Refuse more voxels than a subject can have."""
    if n > MAX_VOXELS:
        raise UbrainError(
            f"{where}: {n} voxels are too many to be what is expected here, up to {MAX_VOXELS}"
        )


def read_volume(path: Path, shape: Sequence[int] | None = None) -> NDArray:
    """A small image as a whole: (i, j, k), or (vertices,) for a surface; optionally of an expected
    shape.
    """
    image = open_volume(path)
    found: tuple[int, ...] = image.shape
    if _is_surface(path):
        found = (int(np.prod(image.shape, dtype=object)),)
    if shape is not None and found != tuple(shape):
        raise UbrainError(f"{path}: expected {tuple(shape)}, got {found}")
    check_size(math.prod(image.shape) * max(8, image.dtype.itemsize), MAX_VOLUME, path)
    (values,) = image.blocks(image.shape[-1])
    slope, inter = image.scale
    return (values if (slope, inter) == (1, 0) else values * slope + inter).reshape(
        found, order="F"
    )


def whole_labels(values: NDArray, where: object) -> NDArray[np.int64]:
    """Labels of areas, or a mask; NaN, which some write outside of the brain, is no label."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    labels = np.where(np.isnan(values), 0, values)
    with np.errstate(invalid="ignore"):
        fits = (np.abs(labels - np.rint(labels)) < 1e-3) & (np.abs(labels) < 2**31)
    if not fits.all():
        raise UbrainError(
            f"{where}: expected whole numbers, as of areas, got {labels[~fits].flat[0]:g}"
        )
    return np.rint(labels).astype(np.int64)


def read_labels(path: Path, shape: Sequence[int] | None = None) -> NDArray[np.int64]:
    """A map of areas, or a mask, as `read_volume`."""
    return whole_labels(read_volume(path, shape), path)


# --- pictures


EXIF = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF says how the stored pixels have to be turned to be upright; by the header
    alone.
    """
    if image.format == "TIFF" or EXIF.isdisjoint(image.info):  # Pillow itself turns the former
        return 1
    try:
        said = int(image.getexif().get(ExifTags.Base.Orientation) or 1)
    except Exception:  # damaged, and of no use for anything else
        return 1
    return said if said in range(2, 9) else 1


@contextmanager
def _picture(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    if data is None:
        regular(path)
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=FORMATS) as image:
            check_side(f"image {path}", image.size)
            yield image
    except UbrainError:
        raise
    except Exception as error:  # Pillow can raise anything at a damaged file
        raise UbrainError(f"image {path} cannot be read: {error}") from error


def read_rgb(
    path: Path, data: bytes | None = None, background: float | None = None
) -> NDArray[np.uint8]:
    """A picture as (height, width, 3).

    Parameters
    ----------
    data : what such a file would have in it, if there is none of that name.
    background : grey value, 0 to 255, that is seen through what is transparent; None: how
        transparent something is does not matter.
    """
    with _picture(path, data) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
            raise UbrainError(f"image {path} has more than 8 bits a channel; save it with 8")
        turned = image if orientation(image) == 1 else ImageOps.exif_transpose(image)
        if background is None or not image.has_transparency_data:
            return np.asarray(turned.convert("RGB"))
        *colours, alpha = np.moveaxis(np.asarray(turned.convert("RGBA"), np.float32), 2, 0)
        seen = np.stack(colours, axis=2) * alpha[..., None] + background * (255 - alpha[..., None])
        return np.rint(seen / 255).astype(np.uint8)


def rgb_shape(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """Height and width of a picture, from its header alone; `data` as in `read_rgb`."""
    with _picture(path, data) as image:
        shape = image.height, image.width
        return shape if orientation(image) < 5 else shape[::-1]


def check_side(where: object, size: Sequence[int]) -> None:
    """Refuse pictures that are larger than the crowd file allows."""
    if max(size) > MAX_SIDE:
        raise UbrainError(f"{where} is {tuple(size)} pixels; sides above {MAX_SIDE} are refused")
