"""Anybody's recordings: a folder or array of images, an array of responses, optional tables of
trials and voxels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import PART_BYTES, load_npy
from ubrain.data.importers.recording import (
    ImageFiles,
    ImageSource,
    Options,
    Recording,
    array_block,
    open_images,
)
from ubrain.errors import UbrainError
from ubrain.progress import log


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
    test_fraction: float = 0.1,
    val_fraction: float = 0.1,
    transpose: bool = False,
    normalise: str = "auto",
    bad_voxels: str = "refuse",
    image_source: str = "",
    images_may_be_shown: bool = False,
    append: bool = False,
) -> None:
    """Write one subject's recordings into a crowd file.

    Parameters
    ----------
    images : folder of images (in natural order of their names), or .npy (n_images, height, width[,
        3]) uint8.
    responses : .npy or .csv (n_images or n_trials, n_voxels); row i belongs to image i, or to row i
        of `trials`.
    subject : name of the subject.
    out : crowd file to write (.h5).
    dataset : name of the dataset.
    scanner : for example 3T.
    space : space of the voxel table's vertex or i, j, k, for example fsaverage5.
    trials : .csv with the columns image (file name, its stem, or row number from 0), and optionally
        session, run (within the session), repeat.
    voxels : .csv with one row per voxel: any of hemisphere, vertex, i, j, k, areas, ncsnr.
    test_images : text file, one image name (or row number) per line. Without it a share of the
        images is drawn by their content, so that copies of an image stay together; all other images
        are train or val.
    test_fraction : share of test images, if none are listed.
    val_fraction : share of images held out for validation.
    transpose : the responses are (n_voxels, n_images or n_trials).
    normalise : z-score each voxel per "session" (all rows, if `trials` has none) or "run", or
        "none"; "auto": per session.
    bad_voxels : "refuse" voxels that are not finite, or constant where they are z-scored, or "drop"
        them.
    image_source : where the images come from, and their terms; said where figures leave them out.
    images_may_be_shown : their terms allow everybody to show them, as in a published notebook.
    append : add to an existing crowd file.

    Raises
    ------
    UbrainError
        If files cannot be read, do not fit together, or an image would be both train and test.
    """
    source, values = open_images(Path(images)), _read_responses(Path(responses), transpose)
    table = pd.DataFrame({"image": np.arange(len(source))})
    what = f"images in {images}"
    if trials:
        table, what = _read_trials(Path(trials), source), f"rows of {Path(trials).name}"
    if len(values) != len(table):
        side = "few" if len(values) < len(table) else "many"
        turned = values.shape[1] == len(table)
        raise UbrainError(
            f"responses of subject {subject!r}: expected ({len(table)}, n_voxels), one row for each"
            f" of the {len(table)} {what}, got {values.shape}; {responses} has"
            f" {abs(len(values) - len(table))} row(s) too {side}"
            f"{'; are they the other way round (--transpose)?' if turned else ''}"
        )
    n_voxels, account = values.shape[1], [f"Read from {Path(responses).name}"]
    if test_images:
        chosen = _read_test_images(Path(test_images), source)
        source.splits = ["test" if i in chosen else "rest" for i in range(len(source))]
        account.append(f"Test images are those listed in {Path(test_images).name}")
    step = max(1, 8 * PART_BYTES // (4 * n_voxels))
    recording = Recording(
        subject,
        dataset,
        scanner,
        space,
        source,
        table.assign(session=table.get("session", 0)),
        _read_voxels(Path(voxels), n_voxels) if voxels else pd.DataFrame(index=range(n_voxels)),
        [
            array_block(f"rows from {i}", values[i : i + step], [Path(responses)])
            for i in range(0, len(values), step)
        ],
        account,
        all_images=True,
    )
    options = Options(
        append=append,
        dtype="float32",
        val_fraction=val_fraction,
        test_fraction=0 if test_images else test_fraction,
        normalise=normalise,
        bad_voxels=bad_voxels,
        image_source=image_source,
        images_may_be_shown=images_may_be_shown,
    )
    log.info("%s", import_recordings([recording], out, options, {"dataset": "arrays"}))


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


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype={"image": str})  # 0003 is a name, not the number 3
    except (OSError, ValueError) as error:
        raise UbrainError(f"{path} cannot be read as a table: {error}") from error


def _read_responses(path: Path, transpose: bool) -> NDArray:
    if path.suffix == ".npy":
        values = load_npy(path)
    elif path.suffix == ".csv":
        try:
            values = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float32)
        except (OSError, ValueError) as error:
            raise UbrainError(
                f"{path}: expected numbers only, separated by commas, without a header: {error}"
            ) from error
    else:
        raise UbrainError(f"{path}: expected responses as .npy or .csv")
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise UbrainError(
            f"{path}: expected responses (n_images or n_trials, n_voxels), got {values.shape}"
            f" {values.dtype}"
        )
    return values.T if transpose else values


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


def _read_voxels(path: Path, n_voxels: int) -> pd.DataFrame:
    table = _read_csv(path)
    if len(table) != n_voxels:
        raise UbrainError(
            f"{path}: expected one row for each of the {n_voxels} voxels, got {len(table)}"
        )
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UbrainError(f"{path} cannot be read as a list of test images: {error}") from error
    names = [line for line in lines if line.strip()]
    if not names:
        raise UbrainError(f"{path}: no test images are listed")
    return set(_rows_of(source, names, path))
