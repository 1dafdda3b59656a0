"""Damage to the files of a dataset, at random but the same for the same seed: any file, array,
table or picture.

`spoil(root, rng)` changes one file below a folder. It says what it did, and whether numbers were
changed in a way that nobody can notice (another number in its place, in an array or a table of the
same shape), so that other numbers in the crowd file are no mistake.
"""

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io
from PIL import Image

from ubrain.data.importers.read import MAX_BYTES, MAX_VOLUME, MAX_VOXELS

PICTURES = (".png", ".jpg", ".jpeg")
TEXT = (".csv", ".tsv", ".txt", ".ctab")
NEARLY = MAX_BYTES * 9 // 10  # bytes that an importer may read
Rng = np.random.Generator


class Damage(NamedTuple):
    """What was done to which file, and whether other numbers, or other names of images, are to be
    expected.
    """

    file: Path
    what: str
    plausible: bool


def spoil(root: Path, rng: Rng) -> Damage:
    """Damage one file of a folder: its bytes, or what is in it. Each kind of file is as likely as
    any other.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file())
    kinds = sorted({path.suffix.lower() for path in files})
    kind = kinds[rng.integers(len(kinds))]
    path = pick([f for f in files if f.suffix.lower() == kind], rng)
    path.write_bytes(path.read_bytes()) if path.stat().st_nlink == 1 else unlinked(path)
    if rng.random() < 0.35:
        return Damage(path, *damage_bytes(path, rng))
    for suffixes, inside in INSIDE.items():
        if path.name.lower().endswith(suffixes) or (
            kind == ".mat" and h5py.is_hdf5(path) and ".h5" in suffixes
        ):
            return Damage(path, *inside(path, rng))
    return Damage(path, *damage_bytes(path, rng))


def pick(choices: Any, rng: Rng) -> Any:
    return choices[int(rng.integers(len(choices)))]


def unlinked(path: Path) -> None:
    """A copy in place of a hard link, so that the original stays as it is."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


# --- any file


def damage_bytes(path: Path, rng: Rng) -> tuple[str, bool]:
    data = bytearray(path.read_bytes())
    n = len(data)

    def flip(where: int, count: int) -> bytes:
        for place in rng.integers(0, max(1, min(where, n)), count if n else 0):
            data[place] ^= 1 << int(rng.integers(8))
        return bytes(data)

    def link_out(target: Path) -> None:
        path.rename(target)
        path.symlink_to(target)

    outside = path_outside(path)
    kinds: dict[str, Callable[[], object]] = {
        "cut": lambda: path.write_bytes(data[: int(rng.integers(0, n))]),
        "a byte short": lambda: path.write_bytes(data[:-1]),
        "empty": lambda: path.write_bytes(b""),
        "a web page": lambda: path.write_bytes(
            b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
        ),
        "noise": lambda: path.write_bytes(rng.bytes(min(n, 1 << 16))),
        "flipped bits": lambda: path.write_bytes(flip(n, int(rng.integers(1, 20)))),
        "flipped bits in the header": lambda: path.write_bytes(flip(600, int(rng.integers(1, 4)))),
        "zeros": lambda: path.write_bytes(
            data[: n // 3] + bytes(min(4096, n // 3)) + data[n // 3 + min(4096, n // 3) :]
        ),
        "twice": lambda: path.write_bytes(data + data),
        "deleted": lambda: path.unlink(),
        "a folder": lambda: (path.unlink(), path.mkdir()),
        "a named pipe": lambda: (path.unlink(), os.mkfifo(path)),
        "without end": lambda: (path.unlink(), path.symlink_to("/dev/zero")),
        "not to be read": lambda: path.chmod(0),
        "a link out": lambda: link_out(outside),
        "a link to nothing": lambda: (path.unlink(), path.symlink_to("nothing")),
        "a link to itself": lambda: (path.unlink(), path.symlink_to(path.name)),
    }
    what = pick(list(kinds), rng)
    kinds[what]()
    if path.name.lower().endswith(TEXT):
        return what, path.is_file() and same_cells(bytes(data), path.read_bytes())
    return what, what.startswith(("flipped", "zeros"))


def same_cells(before: bytes, after: bytes) -> bool:
    """Whether two texts have as many lines, with as many cells each."""
    counts = [
        [line.count(b"\t" if b"\t" in before else b",") for line in text.splitlines()]
        for text in (before, after)
    ]
    return counts[0] == counts[1]


def path_outside(path: Path) -> Path:
    """A place that is not in the dataset's folder: beside the folder that is called `data`."""
    root = next(parent for parent in path.parents if parent.name == "data")
    return root.parent / f"outside{path.suffix}"


# --- arrays


def other_array(array: np.ndarray, rng: Rng) -> tuple[str, np.ndarray, bool]:
    """Another dtype, another shape, or other numbers."""
    array = np.asarray(array)
    number = array.dtype.kind in "biuf"

    def some(value: float) -> np.ndarray:
        copy = array.astype(np.float64) if array.dtype.kind != "f" else array.copy()
        copy.reshape(-1)[rng.integers(0, max(1, copy.size), max(1, copy.size // 50))] = value
        return (
            copy if array.dtype.kind == "f" or not np.isfinite(value) else copy.astype(array.dtype)
        )

    kinds: dict[str, Callable[[], np.ndarray]] = {
        "float64": lambda: array.astype(np.float64),
        "complex": lambda: array.astype(np.complex64),
        "texts": lambda: array.astype("S8"),
        "bool": lambda: array != 0,
        "int8": lambda: array.astype(np.int8),
        "uint64": lambda: array.astype(np.uint64),
        "other byte order": lambda: array.astype(array.dtype.newbyteorder()),
        "a row less": lambda: array[:-1],
        "a row more": lambda: np.concatenate([array, array[-1:]]),
        "a column less": lambda: array[..., :-1],
        "an axis more": lambda: array[None],
        "an axis at the end": lambda: array[..., None],
        "flat": lambda: array.reshape(-1),
        "turned": lambda: array.T,
        "no rows": lambda: array[:0],
        "a single number": lambda: array.reshape(-1)[0],
        "some NaN": lambda: some(np.nan),
        "some infinite": lambda: some(np.inf),
        "some negative": lambda: some(-1),
        "some too large": lambda: some(100),
        "some huge": lambda: some(
            1e300 if array.dtype == np.float64 else 1e30 if array.dtype.kind == "f" else 120
        ),
        "all NaN": lambda: np.full(array.shape, np.nan),
        "all the same": lambda: np.full(array.shape, array.reshape(-1)[0]),
        "last number too large": (
            lambda: np.append(array.reshape(-1)[:-1], 10**6).reshape(array.shape)
        ),
    }
    if not number or not array.size:
        kinds = {
            name: kinds[name]
            for name in ("a row less", "an axis more", "flat", "no rows")
            if array.ndim
        } or {"a number": lambda: np.zeros(3)}
    elif not array.ndim:
        kinds = {name: kinds[name] for name in ("float64", "texts", "an axis more")}
    what = pick(list(kinds), rng)
    with np.errstate(all="ignore"):
        try:
            made = kinds[what]()
        except (ValueError, TypeError, IndexError, OverflowError):
            made = np.zeros((2, 2))
    changed = what.startswith(("some", "all", "last", "bool", "int8", "uint64", "turned"))
    return what, made, changed and made.shape == array.shape


def damage_npy(path: Path, rng: Rng) -> tuple[str, bool]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        _, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or rng.random() < 0.3:
        return lie_in_header(path, rng), False
    what, array, plausible = other_array(np.load(path), rng)
    np.save(path, array)
    return what, plausible


def zeros(size: int) -> Iterator[bytes]:
    """So many bytes, part by part."""
    yield from (bytes(min(1 << 20, size - start)) for start in range(0, size, 1 << 20))


def npy_header(shape: tuple[int, ...], descr: str = "<f4", fortran: bool = False) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


HEADERS = {
    "a header of a huge array": npy_header((10**9, 10**9)),
    "a header of a large array": npy_header((73000, 3 * 10**5)),
    "a header of objects": npy_header((2, 2), "|O"),
    "a header of no numbers": npy_header((0, 0)),
    "a header with a negative size": npy_header((-1, 4)),
    "a header of records": npy_header((3,), "<V7"),
    "a header that is no header": (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"__import__('os').getcwd()".ljust(40)
    ),
    "a header of a future version": b"\x93NUMPY\x09\x00" + b"\x10\x00" + b" " * 16,
}


def lie_in_header(path: Path, rng: Rng) -> str:
    what = pick(list(HEADERS), rng)
    path.write_bytes(HEADERS[what] + path.read_bytes()[128:])
    return what


def damage_npz(path: Path, rng: Rng) -> tuple[str, bool]:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = pick(sorted(members), rng)
    kinds = [
        "gone",
        "header",
        *["array"] * 3,
        "bomb",
        "nearly too large",
        "other name",
        "cut",
        "packed",
    ]
    kind, plausible = pick(kinds, rng), False
    if kind == "bomb":
        return f"{name}: {write_bomb(path, members, name, rng)}", False
    if kind == "nearly too large":
        write_bomb(path, members, name, rng, NEARLY - sum(map(len, members.values())))
        return f"{name}: {kind}", False
    if kind == "gone":
        del members[name]
    elif kind == "header":
        kind = pick(list(HEADERS), rng)
        members[name] = HEADERS[kind] + members[name][128:]
    elif kind == "other name":
        members[f"../{name}"] = members.pop(name)
    elif kind == "cut":
        members[name] = members[name][:-1]
    elif kind == "array":
        buffer = io.BytesIO()
        try:
            kind, array, plausible = other_array(np.load(io.BytesIO(members[name])), rng)
        except ValueError:  # pickled
            kind, array = "a number", np.zeros(1)
        np.save(buffer, array)
        members[name] = buffer.getvalue()
    packed = zipfile.ZIP_DEFLATED if kind == "packed" or rng.random() < 0.3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packed) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return f"{name}: {kind}", plausible


def write_bomb(path: Path, members: dict[str, bytes], name: str, rng: Rng, honest: int = 0) -> str:
    """An array of zeros with as many rows as there were, in a few MB of the file: of 4 GB as it
    says, or honestly of less.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, data in members.items():
            if member != name:
                archive.writestr(member, data)
        header = io.BytesIO(members[name])
        np.lib.format.read_magic(header)
        shape, _, _ = np.lib.format.read_array_header_1_0(header)
        rows = shape[0] if shape else 1
        columns = (honest or (4 << 30)) // (4 * rows)
        size = 4 * rows * columns if honest else pick([1 << 20, 256 << 20], rng)
        with archive.open(name, "w", force_zip64=True) as stream:
            stream.write(npy_header((rows, columns)))
            stream.writelines(zeros(size))
    return f"says 4 GB, unpacks to {size >> 20} MB"


# -----------------------------------------------------------------------------------------------
# HDF5 and MATLAB


def damage_hdf5(path: Path, rng: Rng) -> tuple[str, bool]:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        large = [n for n in names if isinstance(file[n], h5py.Dataset)]
        name = pick(large if rng.random() < 0.85 else names, rng)
        what, plausible = damage_object(file, name, path_outside(path), rng)
    return f"{name}: {what}", plausible


def damage_object(file: h5py.File, name: str, outside: Path, rng: Rng) -> tuple[str, bool]:
    item = file[name]
    array = item[()] if isinstance(item, h5py.Dataset) and item.dtype.kind != "O" else None
    shape = item.shape if isinstance(item, h5py.Dataset) else ()
    attributes = dict(item.attrs)
    plausible = False
    kind = pick(
        [
            "gone",
            "group",
            "soft link",
            "link to itself",
            "link out",
            "stored outside",
            "virtual",
            "huge",
            "long",
            "nearly too large",
            "text",
            "attributes",
            *["array"] * 12,
        ],
        rng,
    )
    if kind == "attributes" and attributes:
        key = pick(sorted(attributes), rng)
        value = pick(
            [None, b"\xff\xfe", -1, np.nan, np.arange(4), np.array([10**9, -5]), "x" * 1000], rng
        )
        del item.attrs[key]
        if value is not None:
            item.attrs[key] = value
        return f"attribute {key} is {value!r:.40}", True
    del file[name]
    if kind == "group":
        file.create_group(name)
    elif kind == "soft link":
        file[name] = h5py.SoftLink("/nothing")
    elif kind == "link to itself":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "link out":
        with h5py.File(outside, "w") as other:
            other["x"] = np.zeros(3) if array is None else array
        file[name] = h5py.ExternalLink(str(outside), "x")
    elif kind == "stored outside" and array is not None and array.ndim:
        outside.write_bytes(array.tobytes())
        file.create_dataset(
            name, array.shape, array.dtype, external=[(str(outside), 0, max(1, array.nbytes))]
        )
    elif kind == "virtual" and array is not None and array.ndim:
        with h5py.File(outside, "w") as other:
            other["x"] = array
        layout = h5py.VirtualLayout(array.shape, array.dtype)
        layout[...] = h5py.VirtualSource(str(outside), "x", array.shape)
        file.create_virtual_dataset(name, layout)
    elif kind == "huge":
        file.create_dataset(name, (10**6,) * max(1, min(3, len(shape))), np.float32, chunks=True)
    elif kind == "long" and shape:
        dtype = array.dtype if array is not None else h5py.string_dtype()
        file.create_dataset(name, (10**10, *shape[1:]), dtype, chunks=True)
    elif kind == "nearly too large" and shape:
        file.create_dataset(
            name, (shape[0], max(1, NEARLY // (8 * max(1, shape[0])))), np.float64, chunks=True
        )
    elif kind == "text":
        file[name] = "text"
    elif kind == "array" and array is not None:
        kind, array, plausible = other_array(array, rng)
        made = file.create_dataset(name, data=array)
        made.attrs.update(attributes)
    else:
        kind = "gone"
    return kind, plausible


def damage_mat(path: Path, rng: Rng) -> tuple[str, bool]:
    content = {n: v for n, v in scipy.io.loadmat(path).items() if not n.startswith("__")}
    name = pick(sorted(content), rng)
    kind, plausible = (
        pick(["gone", "text", "cell", "struct", "large", "nearly too large", *["array"] * 8], rng),
        False,
    )
    if kind == "nearly too large":
        rows = content[name].shape[0]
        mat_zeros(path, {name: (rows, NEARLY // (8 * rows))})
        return f"{name}: {kind}", False
    if kind == "array":
        kind, content[name], plausible = other_array(content[name], rng)
    elif kind == "gone":
        del content[name]
    elif kind == "large":
        content[name] = np.zeros((20000, 2500), np.uint8)
    else:
        content[name] = {
            "text": "text",
            "cell": np.array([[1, "x"]], dtype=object),
            "struct": {"a": 1},
        }[kind]
    scipy.io.savemat(path, content or {"nothing": 1}, do_compression=rng.random() < 0.5)
    return f"{name}: {kind}", plausible


def mat_zeros(
    path: Path,
    shapes: dict[str, tuple[int, int]],
    size: int | None = None,
    kind: int = 6,
    compressed: bool = True,
) -> None:
    """A MATLAB file of zeros of a kind (6: float64), and so many bytes of them, whatever their
    header says.
    """

    def element(number: int, data: bytes) -> bytes:
        return struct.pack("<II", number, len(data)) + data + bytes(-len(data) % 8)

    with path.open("wb") as file:
        file.write(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM")
        for name, shape in shapes.items():
            n = 8 * shape[0] * shape[1] if size is None else size
            header = element(6, struct.pack("<II", kind, 0)) + element(
                5, struct.pack("<2i", *shape)
            )
            header += element(1, name.encode()) + struct.pack("<II", 9, n)
            tag = struct.pack("<II", 14, len(header) + n)
            if not compressed:
                file.write(tag + header)
                file.writelines(zeros(n))
                continue
            pack = zlib.compressobj(1)
            data = b"".join(
                [pack.compress(tag + header), *map(pack.compress, zeros(n)), pack.flush()]
            )
            file.write(struct.pack("<II", 15, len(data)) + data)


# --- volumes


def damage_volume(path: Path, rng: Rng) -> tuple[str, bool]:
    """A header that says something else, or more or fewer numbers behind it."""
    packed = path.name.lower().endswith(("gz", "mgz"))
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    surface = path.name.lower().endswith((".mgh", ".mgz"))
    fields = {
        "size": (4, ">i", [0, -1, 10**9, 3]),
        "last size": (16, ">i", [0, 10**9, 1, 751]),
        "type": (20, ">i", [0, 1, 99]),
    }
    if not surface:
        fields = {
            "number of axes": (40, "<h", [0, 3, 5, 99, -1]),
            "size": (42, "<h", [0, -1, 32767, 3]),
            "last size": (48, "<h", [0, -5, 32767, 2]),
            "type": (70, "<h", [2, 64, 0, 1792, 9999]),
            "offset": (108, "<f", [0, -100, 1e9, np.nan]),
            "scale": (112, "<f", [2, 1e30, np.nan]),
        }
    what = pick(
        [
            *fields,
            "cut",
            "more",
            "bomb",
            *([] if surface else ["nearly too large", "nearly too many"]),
        ],
        rng,
    )
    if what in fields:
        place, form, values = fields[what]
        value = pick(values, rng)
        data[place : place + struct.calcsize(form)] = struct.pack(form, value)
        what = f"{what} is {value}"
    elif what.startswith("nearly"):
        n = (MAX_VOXELS if what == "nearly too many" else MAX_VOLUME // 8) * 9 // 10
        data[40:48], data[70:74] = (
            struct.pack("<4h", 3, 100, 100, n // 10000),
            struct.pack("<2h", 2, 8),
        )
        data[108:112], data[112:120] = struct.pack("<f", 352), bytes(8)
        data[352:] = b"\1" * (n // 10000 * 10000)
    elif what == "cut":
        del data[-int(rng.integers(1, 400)) :]
    else:
        data += bytes(300)
    stored = gzip.compress(bytes(data), 1) if packed else bytes(data)
    if what == "bomb" and packed:
        pack = zlib.compressobj(9, zlib.DEFLATED, 31)
        stored = (
            pack.compress(bytes(data))
            + b"".join(pack.compress(bytes(1 << 20)) for _ in range(400))
            + pack.flush()
        )
    path.write_bytes(stored)
    return what, what.startswith("scale")


# --- text
# and pictures


def damage_text(path: Path, rng: Rng) -> tuple[str, bool]:
    lines = path.read_text(encoding="utf-8").splitlines()
    row = int(rng.integers(len(lines)))
    separator = "\t" if "\t" in lines[row] else ","
    cells = lines[row].split(separator)
    column = int(rng.integers(len(cells)))
    value = pick(
        [
            "",
            "nan",
            "-1",
            "1e400",
            "99999999999999999999",
            "x" * 5000,
            "../../etc/passwd",
            '"',
            "0.5",
            "\0",
            "é",
        ],
        rng,
    )
    changed = separator.join([*cells[:column], value, *cells[column + 1 :]])
    kinds: dict[str, Callable[[], list[str]]] = {
        "a line less": lambda: lines[:row] + lines[row + 1 :],
        "a line twice": lambda: lines[: row + 1] + lines[row:],
        "no first line": lambda: lines[1:],
        f"a cell is {value[:20]!r}": lambda: [*lines[:row], changed, *lines[row + 1 :]],
        "a column less": lambda: [separator.join(line.split(separator)[1:]) for line in lines],
        "two lines swapped": lambda: [*lines[1:2], *lines[:1], *lines[2:]],
        "a long line": lambda: [*lines, "x" * (1 << 20)],
    }
    what = pick([*kinds, "other encoding"], rng)
    text = "\n".join(lines if what == "other encoding" else kinds[what]()) + "\n"
    before = path.read_bytes()
    path.write_bytes(text.encode("utf-16" if what == "other encoding" else "utf-8"))
    return what, same_cells(before, path.read_bytes())


def damage_picture(path: Path, rng: Rng) -> tuple[str, bool]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))

    def huge() -> None:
        data = bytearray(path.read_bytes())
        header = struct.pack(">II", 60000, 60000)
        data[16:24] = header
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        path.write_bytes(data)

    kinds: dict[str, Callable[[], None]] = {
        "says 60000 pixels": huge,
        "one pixel": lambda: Image.fromarray(pixels[:1, :1]).save(path, "PNG"),
        "larger than is allowed": lambda: Image.new("L", (9000, 20)).save(path, "PNG"),
        "16 bits": (
            lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path, "PNG")
        ),
        "CMYK": lambda: Image.fromarray(pixels).convert("CMYK").save(path, "JPEG"),
        "animated": (
            lambda: Image.fromarray(pixels).save(
                path, "GIF", save_all=True, append_images=[Image.fromarray(pixels)]
            )
        ),
        "a script": lambda: path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
        ),
    }
    what = pick(list(kinds), rng)
    kinds[what]()
    return what, what in ("one pixel", "CMYK", "animated")


INSIDE: dict[tuple[str, ...], Callable[[Path, Rng], tuple[str, bool]]] = {
    (".npy",): damage_npy,
    (".npz",): damage_npz,
    (".h5", ".hdf5"): damage_hdf5,
    (".mat",): damage_mat,
    (".nii", ".nii.gz", ".mgh", ".mgz"): damage_volume,
    TEXT: damage_text,
    PICTURES: damage_picture,
}
