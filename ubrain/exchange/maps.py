"""Responses of voxels to images as files: HDF5, NumPy archives, and maps in a volume (NIfTI) or on
a surface (GIFTI).

What is in `pred.h5` (and, under the same names, in `pred.npz`, where attributes are called
`attributes/<name>`)::

    /responses           (n_images, n_voxels) float32 or float16
    /images              (n_images,) string   names of the images
    /voxels/voxel        (n_voxels,) int64    number of the voxel in its subject
    /voxels/<column>     (n_voxels,)          the rest of the voxel table, where known
    /                    attributes: units, subject, digest of the checkpoint, ...

In maps, every image is a volume (NIfTI) or a data array of its name (GIFTI, one file per
hemisphere), NaN where no voxel is.
"""

import gzip
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.gifti import GiftiDataArray, GiftiMetaData
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray

from ubrain.errors import UbrainError
from ubrain.paths import atomic
from ubrain.resume import Sink

SUFFIXES = (".h5", ".npz", ".nii", ".nii.gz", ".func.gii", ".shape.gii")
MESHES = {f"fsaverage{n}": 10 * 4**n + 2 for n in range(3, 8)} | {
    "fsaverage": 10 * 4**7 + 2
}  # vertices per hemisphere
HEMISPHERES = {"L": ("lh", "CortexLeft"), "R": ("rh", "CortexRight")}
INTENTS = {".func.gii": "NIFTI_INTENT_TIME_SERIES", ".shape.gii": "NIFTI_INTENT_SHAPE"}
MAX_GRID = 1 << 28  # points of a volume; more is a mistake or an attack
MAX_NIFTI1 = 32767  # the largest dimension of a NIfTI-1 file; above it NIfTI-2 is written


@dataclass(frozen=True)
class Responses:
    """Responses on their way to a file.

    Attributes
    ----------
    images : names, (n_images,).
    voxels : voxel table, (n_voxels,) rows.
    facts : what else should be known of them.
    batches : called, gives the responses as arrays (n, n_voxels) of `dtype`, in the order of
        `images`.
    """

    images: Sequence[str]
    voxels: pd.DataFrame
    dtype: np.dtype
    facts: Mapping[str, str]
    batches: Callable[[], Iterator[NDArray]]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_images, n_voxels)"""
        return len(self.images), len(self.voxels)


Writer = Callable[[Responses], list[Path]]


def writer(
    out: Path, voxels: pd.DataFrame, space: str, dtype: np.dtype, reference: Path | None = None
) -> Writer:
    """A function that writes `Responses` in the format that the name of `out` asks for, and gives
    the files' names.

    Parameters
    ----------
    voxels : voxel table; for maps it has to know the place of every voxel.
    space : of the places in the table, for example fsaverage5.
    reference : a NIfTI file on the grid of the voxels' i, j, k; for volumes.

    Raises
    ------
    UbrainError
        If the format is unknown or cannot hold `dtype`, or the places are not known well enough.
    """
    suffix = suffix_of(out)
    if reference is not None and not suffix.startswith(".nii"):
        raise UbrainError(f"--reference gives the grid of a .nii or .nii.gz; {out.name} needs none")
    if suffix == ".h5":
        return partial(_write_h5, out)
    if suffix == ".npz":
        return partial(_write_npz, out)
    if dtype != np.float32:
        raise UbrainError(
            f"{out.name}: {suffix} holds float32, not {dtype}; for float16 choose .h5 or .npz"
        )
    if suffix.startswith(".nii"):
        return partial(_write_nifti, out, _Grid(voxels, space, reference))
    return partial(_write_gifti, out, _Surface(voxels, space))


def suffix_of(out: Path) -> str:
    """The ending of a file name that tells its format."""
    found = [suffix for suffix in SUFFIXES if out.name.endswith(suffix) and out.name != suffix]
    if not found:
        raise UbrainError(
            f"{out}: unknown format; expected a name that ends in {', '.join(SUFFIXES)}"
        )
    return found[0]


def files_of(out: Path) -> list[Path]:
    """The files that are written for `out`: itself, or one per hemisphere."""
    suffix = suffix_of(out)
    if suffix not in INTENTS:
        return [out]
    return [
        out.with_name(f"{out.name.removesuffix(suffix)}.{side}{suffix}")
        for side, _ in HEMISPHERES.values()
    ]


def _write_h5(out: Path, responses: Responses) -> list[Path]:
    with atomic(out) as path, Sink(path, "w+") as sink:
        try:
            with h5py.File(sink, "w") as file:
                file.attrs.update(responses.facts)
                for name, values in _columns(responses).items():
                    file[name] = (
                        values.tolist() if values.dtype.kind == "U" else values
                    )  # h5py takes text as str only
                dataset, start = (
                    file.create_dataset("responses", responses.shape, responses.dtype),
                    0,
                )
                for batch in responses.batches():
                    dataset[start : start + len(batch)] = batch
                    start += len(batch)
                    sink.check()
        finally:
            sink.check()  # the disk's error, not what HDF5 makes of it
    return [out]


def _write_npz(out: Path, responses: Responses) -> list[Path]:
    facts = {f"attributes/{name}": np.array(value) for name, value in responses.facts.items()}
    head = {
        "descr": np.lib.format.dtype_to_descr(responses.dtype),
        "fortran_order": False,
        "shape": responses.shape,
    }
    with atomic(out) as path, zipfile.ZipFile(path, "w") as archive:
        for name, values in {**_columns(responses), **facts}.items():
            with _member(archive, name) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
        with _member(archive, "responses") as file:
            np.lib.format.write_array_header_1_0(file, head)
            for batch in responses.batches():
                file.write(batch.tobytes())
    return [out]


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(
        zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True
    )  # always of the same date: the same bytes


def _columns(responses: Responses) -> dict[str, NDArray]:
    """Names of images and columns of the voxel table; text as text, never as objects."""
    table = {f"voxels/{name}": column.to_numpy() for name, column in responses.voxels.items()}
    columns = {"images": np.array(responses.images, dtype=np.str_), **table}
    return {
        name: values if values.dtype.kind in "iufb" else values.astype(np.str_)
        for name, values in columns.items()
    }


class _Grid:
    """Where voxels are in a volume."""

    def __init__(self, voxels: pd.DataFrame, space: str, reference: Path | None) -> None:
        _require(voxels, ("i", "j", "k"), "NIfTI")
        if reference is None:
            raise UbrainError(
                "a NIfTI file needs the grid and the affine of i, j, k; the checkpoint says only"
                f" that their space is {space!r}; give --reference, a NIfTI file of the subject on"
                " that grid"
            )
        self.shape, self.affine = _read_grid(reference)
        self.index = tuple(
            _whole_numbers(voxels, c, n, str(reference))
            for c, n in zip("ijk", self.shape, strict=True)
        )
        _refuse_shared(np.ravel_multi_index(self.index, self.shape), voxels)

    def header(self, responses: Responses) -> Any:
        """NIfTI header of one volume per image; facts and names of the images are in an
        extension.
        """
        shape = (*self.shape, len(responses.images))
        kind = nib.Nifti1Image if max(shape) <= MAX_NIFTI1 else nib.Nifti2Image
        header = kind(np.broadcast_to(np.float32(0), shape), self.affine).header
        header.set_xyzt_units("mm")
        facts = {**responses.facts, "images": list(responses.images)}
        header.extensions.append(Nifti1Extension("comment", json.dumps(facts).encode()))
        return header


def _read_grid(reference: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    try:
        image: Any = nib.load(reference)
        shape, affine = (
            tuple(int(n) for n in image.shape[:3]),
            np.asarray(image.affine, dtype=np.float64),
        )
    except Exception as error:  # of many kinds, for a file that is damaged or something else
        raise UbrainError(
            f"--reference {reference} cannot be read: {error}; expected a NIfTI file"
        ) from error
    if (
        len(shape) != 3
        or not 0 < np.prod(shape, dtype=np.float64) <= MAX_GRID
        or not np.isfinite(affine).all()
    ):
        raise UbrainError(
            f"--reference {reference}: expected a volume of up to {MAX_GRID} points with an affine,"
            f" got {shape}"
        )
    return shape, affine


def _write_nifti(out: Path, grid: _Grid, responses: Responses) -> list[Path]:
    with atomic(out) as path, _opened(path, compressed=out.name.endswith(".gz")) as file:
        grid.header(responses).write_to(file)
        volume = np.full(grid.shape, np.nan, np.float32, order="F")
        for batch in responses.batches():
            for values in batch:
                volume[grid.index] = values
                file.write(volume.ravel(order="F").data)
    return [out]


@contextmanager
def _opened(path: Path, compressed: bool) -> Iterator[Any]:
    with path.open("wb") as file:
        if not compressed:
            yield file
            return
        with gzip.GzipFile(
            "", "wb", compresslevel=3, fileobj=file, mtime=0
        ) as packed:  # no name, no date: the same bytes
            yield packed


class _Surface:
    """Where voxels are on both hemispheres of a mesh."""

    def __init__(self, voxels: pd.DataFrame, space: str) -> None:
        _require(voxels, ("hemisphere", "vertex"), "GIFTI")
        if space not in MESHES:
            raise UbrainError(
                "a GIFTI file needs to know of which surface the vertices are: expected a space of"
                f" {', '.join(sorted(MESHES))}, the checkpoint says {space or 'nothing'!r}"
            )
        sides = voxels["hemisphere"].to_numpy()
        if (unknown := ~np.isin(sides, list(HEMISPHERES))).any():
            name, side = voxels["voxel"].iloc[np.argmax(unknown)], sides[np.argmax(unknown)]
            raise UbrainError(
                f"voxel table: hemisphere of voxel {name} is {side!r}; expected L or R"
            )
        self.n_vertices = MESHES[space]
        vertices = _whole_numbers(voxels, "vertex", self.n_vertices, space)
        _refuse_shared(vertices + self.n_vertices * (sides == "R"), voxels)
        columns = {side: np.flatnonzero(sides == side) for side in HEMISPHERES}
        self.places = {side: (vertices[some], some) for side, some in columns.items()}


def _write_gifti(out: Path, surface: _Surface, responses: Responses) -> list[Path]:
    intent, outs = INTENTS[suffix_of(out)], files_of(out)
    with ExitStack() as stack:
        files = [stack.enter_context(stack.enter_context(atomic(path)).open("wb")) for path in outs]
        for file, (_, structure) in zip(files, HEMISPHERES.values(), strict=True):
            file.write(
                _gifti_head(
                    len(responses.images),
                    {"AnatomicalStructurePrimary": structure, **responses.facts},
                )
            )
        names = iter(responses.images)
        for batch in responses.batches():
            for values in batch:
                name = next(names)
                for file, (vertices, columns) in zip(files, surface.places.values(), strict=True):
                    values_there = np.full(surface.n_vertices, np.nan, np.float32)
                    values_there[vertices] = values[columns]
                    file.write(_gifti_array(values_there, name, intent))
        for file in files:
            file.write(b"</GIFTI>\n")
    return outs


def _gifti_head(n_arrays: int, facts: Mapping[str, str]) -> bytes:
    return (
        b'<?xml version="1.0" encoding="UTF-8"?>\n'
        b'<!DOCTYPE GIFTI SYSTEM "http://www.nitrc.org/frs/download.php/115/gifti.dtd">\n'
        b'<GIFTI Version="1.0" NumberOfDataArrays="%d">' % n_arrays
    ) + GiftiMetaData(facts).to_xml()


def _gifti_array(values: NDArray[np.float32], name: str, intent: str) -> bytes:
    return GiftiDataArray(
        values,
        intent=intent,
        datatype="NIFTI_TYPE_FLOAT32",
        encoding="GIFTI_ENCODING_B64GZ",
        meta={"Name": name},
    ).to_xml()


def _require(voxels: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [column for column in columns if column not in voxels]
    if missing:
        raise UbrainError(
            f"a {what} file needs {', '.join(columns)} of every voxel, but the checkpoint's voxel"
            f" table has no {', '.join(missing)}; it has {', '.join(map(str, voxels.columns))}."
            " Write .h5 or .npz"
        )


def _whole_numbers(voxels: pd.DataFrame, column: str, below: int, where: str) -> NDArray[np.int64]:
    values = pd.to_numeric(voxels[column], errors="coerce").to_numpy(np.float64)
    bad = ~((values >= 0) & (values < below) & (values == np.floor(values)))
    if bad.any():
        first = np.argmax(bad)
        raise UbrainError(
            f"voxel table: {column} of voxel {voxels['voxel'].iloc[first]} is"
            f" {voxels[column].iloc[first]}; expected a whole number from 0 to {below - 1} (of"
            f" {where})"
        )
    return values.astype(np.int64)


def _refuse_shared(places: NDArray[np.int64], voxels: pd.DataFrame) -> None:
    order = np.argsort(places, kind="stable")
    same = np.flatnonzero(np.diff(places[order]) == 0)
    if len(same):
        first, second = voxels["voxel"].to_numpy()[order[same[0] : same[0] + 2]]
        raise UbrainError(
            f"voxel table: voxels {first} and {second} are at the same place, so a map cannot show"
            " both; write .h5 or .npz"
        )
