"""Anybody's recordings: a folder or array of images, arrays of responses, optional tables of trials
and voxels.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.crowd import reading
from ubrain.data.importers.betas import same_place
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    PART_BYTES,
    check_voxels,
    entries,
    hdf5_array,
    load_npy,
    matrices,
    natural,
    open_hdf5,
    open_volume,
    read_lines,
    read_mat,
    read_volume,
    whole_numbers,
)
from ubrain.data.importers.recording import (
    Block,
    ImageFiles,
    ImageSource,
    Options,
    Part,
    Recording,
    array_block,
    open_images,
)
from ubrain.errors import UbrainError
from ubrain.paths import regular

NIFTI = (".nii", ".nii.gz")
BLOCK_BYTES = 8 * PART_BYTES  # an interrupted import continues after the last block


def import_arrays(
    images: str | Path,
    responses: str | Path,
    subject: str,
    out: str | Path,
    *,
    dataset: str = "arrays",
    scanner: str = "",
    space: str = "",
    trials: str | Path | None = None,
    voxels: str | Path | None = None,
    test_images: str | Path | None = None,
    schemes: str | Path | None = None,
    transpose: bool = False,
    dtype: str = "float32",
    test_fraction: float = 0.1,
    val_fraction: float = 0.1,
    bad_voxels: str = "refuse",
    **shared: Any,
) -> str:
    """Write one subject's recordings into a crowd file.

    Parameters
    ----------
    images : folder of images (in natural order of their names), or .npy (n_images, height, width[,
        3]) uint8.
    responses : .npy, .csv, .h5 or .mat (n_images or n_trials, n_voxels), or .nii (x, y, z, n_images
        or n_trials); or a folder of such files, one per session, in natural order of their names.
        Row i belongs to image i, or to row i of `trials`.
    subject : name of the subject.
    out : crowd file to write (.h5).
    dataset : name of the dataset.
    scanner : for example 3T.
    space : space of the voxel table's vertex or i, j, k, for example fsaverage5.
    trials : .csv with the columns image (file name, its stem, or row number from 0), and optionally
        session, run (within the session), repeat.
    voxels : .csv with one row per voxel: any of hemisphere, vertex, i, j, k, areas, ncsnr. For .nii
        i, j, k say which voxels are taken; or .nii, a mask of them.
    test_images : text file, one image name (or row number) per line. Without it a share of the
        images is drawn by their content, so that copies of an image stay together; all other images
        are train or val.
    schemes : .csv with the column image, and for every named scheme of splits a column of train,
        val, test or nothing. An image that is not listed is in none of them.
    transpose : the responses are (n_voxels, n_images or n_trials).
    dtype : of the stored responses, "float16" or "float32".
    test_fraction : share of test images, if none are listed.
    val_fraction : share of images held out for validation.
    bad_voxels : "refuse" voxels that are not finite, or constant where they are z-scored, or "drop"
        them.
    shared : the other `Options`.

    Returns
    -------
    What was done, or with `dry_run` would be done.

    Raises
    ------
    UbrainError
        If files cannot be read, do not fit together, or an image would be both train and test.
    """
    for table_file in (trials, voxels, test_images, schemes):
        if table_file:
            regular(Path(table_file))
    source, path = open_images(Path(images)), Path(responses)
    files = sorted(entries(path), key=natural) if path.is_dir() else [path]
    if not files:
        raise UbrainError(f"{path}: no files of responses there")
    volumes = [file for file in files if file.name.lower().endswith(NIFTI)]
    if voxels and str(voxels).lower().endswith(NIFTI):
        if volumes != files:
            raise UbrainError(
                f"{voxels}: a mask is for responses that are volumes; in which order the voxels of"
                " others are, a table of voxels can say"
            )
        volumes = [Path(voxels), *volumes]
    _check_grids(volumes)
    places = _read_voxels(Path(voxels)) if voxels else _all_places(files[0])
    sessions = [_open_responses(file, transpose, places) for file in files]
    widths, counts = ([shape[axis] for shape, _ in sessions] for axis in (1, 0))
    shape, table = (sum(counts), widths[0]), pd.DataFrame({"image": np.arange(len(source))})
    what = f"images in {images}"
    if trials:
        table, what = _read_trials(Path(trials), source), f"rows of {Path(trials).name}"
    if shape[0] != len(table):
        raise UbrainError(
            f"responses of subject {subject!r}: expected ({len(table)}, n_voxels), one row for each"
            f" of the {len(table)} {what}, got {shape}; {responses} has"
            f" {abs(shape[0] - len(table))} row(s) too {'few' if shape[0] < len(table) else 'many'}"
            + ("; are they the other way round (--transpose)?" if shape[1] == len(table) else "")
        )
    for file, width in zip(files, widths, strict=True):
        check_voxels(width, file)
        if width != widths[0]:
            raise UbrainError(f"{file}: {width} voxels, but {files[0].name} has {widths[0]}")
    if places is not None and len(places) != shape[1]:
        raise UbrainError(
            f"{voxels}: expected one row for each of the {shape[1]} voxels, got {len(places)}"
        )
    more = ", ..." if len(files) > 3 else ""
    account = [f"Read from {', '.join(file.name for file in files[:3])}{more}"]
    if test_images:
        chosen = _read_test_images(Path(test_images), source)
        source.splits = ["test" if i in chosen else "rest" for i in range(len(source))]
        account.append(f"Test images are those listed in {Path(test_images).name}")
    if schemes:
        source.schemes = _read_schemes(Path(schemes), source)
    recording = Recording(
        subject,
        dataset,
        scanner,
        space,
        source,
        table if "session" in table else table.assign(session=np.repeat(range(len(files)), counts)),
        pd.DataFrame(index=range(shape[1])) if places is None else places,
        [block for _, blocks in sessions for block in blocks],
        account,
        all_images=True,
    )
    options = Options(
        dtype=dtype,
        val_fraction=val_fraction,
        test_fraction=0 if test_images else test_fraction,
        bad_voxels=bad_voxels,
        **shared,
    )
    return import_recordings(
        [recording], out, options, {"dataset": "arrays", "transpose": transpose}
    )


# --- responses


def _open_responses(
    path: Path, transpose: bool, places: pd.DataFrame | None
) -> tuple[tuple[int, int], list[Block]]:
    """Shape (n_trials, n_voxels) and blocks of a file."""
    regular(path)
    name = path.name.lower()
    if name.endswith(NIFTI) and places is not None:
        return _volumes(path, places)
    if name.endswith((".h5", ".hdf5")) or (name.endswith(".mat") and h5py.is_hdf5(path)):
        return _hdf5(path, transpose)
    values = _array(path)
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise UbrainError(
            f"{path}: expected responses (n_images or n_trials, n_voxels), got {values.shape}"
            f" {values.dtype}"
        )
    values = values.T if transpose else values
    step = max(1, BLOCK_BYTES // (4 * values.shape[1]))
    return values.shape, [
        array_block(f"rows from {i}", values[i : i + step], [path])
        for i in range(0, len(values), step)
    ]


def _array(path: Path) -> NDArray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return load_npy(path)
    if suffix == ".mat":
        name = _name(path)
        return read_mat(path, [name])[name]
    if suffix != ".csv":
        raise UbrainError(f"{path}: expected responses as .npy, .csv, .h5, .mat, .nii or .nii.gz")
    try:
        return np.loadtxt(path, np.float32, delimiter=",", ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UbrainError(
            f"{path}: expected numbers only, separated by commas, without a header: {error}"
        ) from error


def _name(path: Path) -> str:
    """The array of responses in an HDF5 or MATLAB file: the only one, or that of this name."""
    found = matrices(path)
    names = [name for name, shape in found.items() if min(shape) > 1] or list(found)
    names = [name for name in names if name.lower() == "responses"] or names
    if len(names) != 1:
        raise UbrainError(
            f"{path}: expected one array of numbers (n_images or n_trials, n_voxels), or one that"
            f" is called responses; found {', '.join(names)[:400] or 'none'}"
        )
    return names[0]


def _hdf5(path: Path, transpose: bool) -> tuple[tuple[int, int], list[Block]]:
    name, turned = _name(path), transpose != (path.suffix.lower() == ".mat")  # as MATLAB writes it
    with open_hdf5(path) as file:
        data = hdf5_array(file, name, "fiu", (None, None))
        n, width = data.shape[::-1] if turned else data.shape
        step = max(1, PART_BYTES // (data.dtype.itemsize * width))

    def read(start: int, stop: int) -> Iterable[Part]:
        with open_hdf5(path) as file, reading(path):
            data = hdf5_array(file, name, "fiu", (None, None))
            for first in range(start, stop, step):
                some = slice(first, min(first + step, stop))
                yield Part(data[:, some].T if turned else data[some], first - start)

    ends = [*range(0, n, 8 * step), n]
    return (n, width), [
        Block(f"rows from {a}", b - a, partial(read, a, b), (path,)) for a, b in pairwise(ends)
    ]


def _check_grids(files: Sequence[Path]) -> None:
    """Refuse volumes, a mask among them, of which the voxels are not those of the first."""
    images = [open_volume(file) for file in files]
    for image in images:
        if image.shape[:3] != images[0].shape[:3] or not same_place(image.affine, images[0].affine):
            raise UbrainError(
                f"{image.path}: its voxels are not those of {images[0].path.name} (shapes"
                f" {image.shape[:3]} and {images[0].shape[:3]}, or affines); resample one of them"
            )


def _volumes(path: Path, places: pd.DataFrame) -> tuple[tuple[int, int], list[Block]]:
    image = open_volume(path)
    if len(image.shape) != 4 or image.dtype.kind not in "fiu":
        raise UbrainError(
            f"{path}: expected responses (x, y, z, n_images or n_trials), got {image.shape}"
            f" {image.dtype}"
        )
    if missing := [axis for axis in "ijk" if axis not in places]:
        raise UbrainError(f"{path}: the table of voxels needs i, j, k, but has no {missing[0]!r}")
    at = [whole_numbers(places[axis].to_numpy(), f"voxels, column {axis!r}") for axis in "ijk"]
    if any(a.min() < 0 or a.max() >= n for a, n in zip(at, image.shape, strict=False)):
        raise UbrainError(f"{path}: {image.shape[:3]} voxels; some i, j, k are outside")
    index = np.ravel_multi_index(at, image.shape[:3], order="F")

    def read() -> Iterable[Part]:
        for start, values in image.trials(index):
            yield Part(values, start)

    return (image.shape[3], len(index)), [Block("all trials", image.shape[3], read, (path,))]


def _all_places(path: Path) -> pd.DataFrame | None:
    """i, j, k of all voxels, where responses are volumes."""
    if not path.name.lower().endswith(NIFTI):
        return None
    shape = open_volume(path).shape[:3]
    check_voxels(math.prod(shape), path)
    return pd.DataFrame(np.argwhere(np.ones(shape[::-1]))[:, ::-1], columns=[*"ijk"][: len(shape)])


# --- tables


def _rows_of(source: ImageSource, names: Sequence[object], where: Path) -> list[int]:
    """Positions of images: all given by file name or stem, or else all by row number from 0."""
    known = {image_id: i for i, image_id in enumerate(source.ids)}
    if isinstance(source, ImageFiles):
        known |= {file.name: i for i, file in enumerate(source.files)}
    texts = [str(name).strip() for name in names]
    unknown = [text for text in texts if text not in known]
    if not unknown:
        return [known[text] for text in texts]
    if all(text.isdecimal() and int(text) < len(source) for text in texts):
        return [int(text) for text in texts]
    no_row = (t for t in unknown if not t.isdecimal() or int(t) >= len(source))
    raise UbrainError(
        f"{where}: no image {next(no_row, unknown[0])!r} ({len(source)} images, first"
        f" {source.ids[0]!r}); give all images by name, or all by row number from 0"
    )


def _read_csv(path: Path, dtype: type | None = None) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=dtype or {"image": str})  # 0003 is a name, not the number 3
    except (OSError, ValueError) as error:
        raise UbrainError(f"{path} cannot be read as a table: {error}") from error


def _read_trials(path: Path, source: ImageSource) -> pd.DataFrame:
    table = _read_csv(path)
    if "image" not in table:
        raise UbrainError(
            f"{path}: expected a column 'image', got {', '.join(map(str, table.columns))}"
        )
    table = table[[c for c in ("image", "session", "run", "repeat") if c in table]]
    if (empty := table.isna().any(axis=1)).any():
        raise UbrainError(f"{path}: row {int(np.argmax(empty))} has an empty cell")
    for column in {"session", "run"} & set(table):  # whatever their names are
        table = table.assign(**{column: np.unique(table[column], return_inverse=True)[1]})
    return table.assign(image=_rows_of(source, list(table["image"]), path))


def _read_voxels(path: Path) -> pd.DataFrame:
    if path.name.lower().endswith(NIFTI):
        mask = read_volume(path, open_volume(path).shape[:3]) > 0
        return pd.DataFrame(np.argwhere(mask.T)[:, ::-1], columns=[*"ijk"][: mask.ndim])
    table = _read_csv(path)
    if "ncsnr" in table:
        wrong = table["ncsnr"].notna() & pd.to_numeric(table["ncsnr"], errors="coerce").isna()
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UbrainError(
                f"{path}: column 'ncsnr': expected numbers, got {str(table['ncsnr'][row])[:40]!r}"
                f" in row {row}"
            )
    text = [c for c in ("hemisphere", "areas") if c in table]
    return table.fillna(dict.fromkeys(text, "")).astype(dict.fromkeys(text, str))


def _read_test_images(path: Path, source: ImageSource) -> set[int]:
    names = read_lines(path)
    if not names:
        raise UbrainError(f"{path}: no test images are listed")
    return set(_rows_of(source, names, path))


def _read_schemes(path: Path, source: ImageSource) -> dict[str, list[str]]:
    table = _read_csv(path, str).fillna("")
    names = [str(column) for column in table if column != "image"]
    if "image" not in table or not names:
        raise UbrainError(
            f"{path}: expected a column 'image' and one for every scheme of splits, got"
            f" {', '.join(map(str, table.columns))[:400]}"
        )
    rows = _rows_of(source, list(table["image"]), path)
    if len(set(rows)) < len(rows):
        raise UbrainError(f"{path}: an image is listed twice")
    found = {name: [""] * len(source) for name in names}
    for name, splits in found.items():
        for row, split in zip(rows, table[name], strict=True):
            splits[row] = split.strip()
    return found
