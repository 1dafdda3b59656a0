"""Files of surfaces: GIFTI, one per hemisphere, and CIFTI, both of them and more in one."""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from xml.parsers import expat

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.crowd import reading
from ubrain.data.importers.read import (
    MAX_BYTES,
    MAX_TABLE,
    Volume,
    area_name,
    check_size,
    open_volume,
)


class Cifti(NamedTuple):
    """A CIFTI-2 file with maps and brain models, of which only the header has been read.

    Parameters
    ----------
    image : the numbers, (1, 1, 1, 1, n_maps, n_grayordinates).
    maps : names of the maps, as far as they have names.
    places : of each grayordinate hemisphere and vertex, or i, j, k (NaN where there is none), and
        the structure as area, such as cortex_left.
    """

    image: Volume
    maps: list[str]
    places: pd.DataFrame


def open_cifti(path: Path, limit: int = MAX_TABLE) -> Cifti:
    """Read the header of a CIFTI-2 file, of which up to `limit` bytes are about its axes."""
    image = open_volume(path)
    with reading(path, "a CIFTI file with maps and brain models"), path.open("rb") as file:
        file.seek(540)
        more, size, code = struct.unpack("<4sii", file.read(12))
        if not more[0] or code != 32:
            raise ValueError("its header has no CIFTI extension")
        check_size(size, limit, f"{path}: what is said about its axes")
        text = file.read(size - 8).rstrip(b"\0")
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise ValueError("its XML defines names of its own")
        if image.offset < 544 + size:
            raise ValueError(f"its header says that the data begin at byte {image.offset}")
        parser = nib.cifti2.parse_cifti2.Cifti2Parser()
        parser.parse(string=text)
        header: Any = parser.header
        maps, models = (header.get_axis(i) for i in (0, 1))
        if (1, 1, 1, 1, len(maps), len(models)) != image.shape:
            raise ValueError(f"its axes are {len(maps)} × {len(models)}, its data {image.shape}")
        for name, last in models.nvertices.items():
            if models.vertex[models.name == name].max() >= last:
                raise ValueError(f"{name} has {last} vertices, but not those that are named")
        sides = np.select(
            [np.char.endswith(models.name.astype(str), f"CORTEX_{s}") for s in ("LEFT", "RIGHT")],
            ["L", "R"],
            "",
        )
        places = pd.DataFrame({"hemisphere": sides, "vertex": models.vertex})
        places[[*"ijk"]] = models.voxel
        nowhere = places.columns[1:]
        places[nowhere] = places[nowhere].where(places[nowhere] >= 0)
        areas = {
            name: area_name(str(name).removeprefix("CIFTI_STRUCTURE_").lower(), path)
            for name in {*models.name}
        }
        places["areas"] = [areas[name] for name in models.name]
        return Cifti(image, [str(name).strip() for name in getattr(maps, "name", ())], places)


_TYPES = {"UINT8": "u1", "INT16": "i2", "INT32": "i4", "FLOAT32": "f4", "FLOAT64": "f8"}


def gifti_arrays(path: Path, decode: bool = True) -> Iterator[tuple[str, int, NDArray | None]]:
    """The data arrays of a GIFTI file one after the other: structure as far as said (CortexLeft),
    number of vertices, and, with `decode`, their values (n_vertices,).

    nibabel's reader unpacks as much as the file says, and opens other files that it names.
    """
    found: list[tuple[str, int, NDArray | None]] = []
    text: list[str] = []
    now = {"tag": "", "name": "", "structure": ""}
    array: dict[str, str] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        text.clear()
        now["tag"] = tag
        if tag == "DataArray":
            array.clear()
            array.update(attributes)

    def more(piece: str) -> None:
        if decode or now["tag"] != "Data":
            text.append(piece)

    def end(tag: str) -> None:
        if tag == "Name":
            now["name"] = "".join(text).strip()
        elif tag == "Value" and now["name"] == "AnatomicalStructurePrimary":
            now["structure"] = "".join(text).strip()
        elif tag == "Data":
            for column in _gifti_columns(path, array, "".join(text) if decode else None):
                found.append((now["structure"], int(array["Dim0"]), column))
        text.clear()

    def refuse(*_: object) -> NoReturn:
        raise ValueError("it defines entities of XML")

    with reading(path, "a GIFTI file"), path.open("rb") as file:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler, parser.EntityDeclHandler = more, refuse
        while piece := file.read(1 << 20):
            parser.Parse(piece)
            yield from found
            found.clear()
        parser.Parse(b"", True)
        yield from found


def _gifti_columns(
    path: Path, array: Mapping[str, str], text: str | None
) -> Iterable[NDArray | None]:
    """What a data array holds: (n_vertices,), or the columns of (n_vertices, n)."""
    shape = [int(array[f"Dim{i}"]) for i in range(int(array["Dimensionality"]))]
    code = _TYPES[array["DataType"].removeprefix("NIFTI_TYPE_")]
    if not 1 <= len(shape) <= 2 or min(shape) < 1:
        raise ValueError(f"a data array is {shape}")
    size, n = math.prod(shape) * np.dtype(code).itemsize, math.prod(shape[1:])
    check_size(size, MAX_BYTES, f"{path}: a data array")
    if text is None:
        return [None] * n
    kind = array["Encoding"].removesuffix("Binary")
    if kind == "ASCII":
        values = np.array(text.split(), code)
    elif kind in ("Base64", "GZipBase64"):
        data = base64.b64decode(text)
        if kind != "Base64":
            data = zlib.decompressobj().decompress(data, size + 1)
        order = {"LittleEndian": "<", "BigEndian": ">"}[array["Endian"]]
        values = np.frombuffer(data, np.dtype(f"{order}{code}"))
    else:
        raise ValueError(f"its numbers are stored as {kind[:40]!r}, not in the file itself")
    if len(values) != math.prod(shape):
        raise ValueError(f"a data array has {len(values)} numbers, expected {shape}")
    columns = array.get("ArrayIndexingOrder", "") == "ColumnMajorOrder"
    return list(values.reshape(shape[0], n, order="F" if columns else "C").T)
