"""Anybody's recordings: a folder or array of images, an array of responses, optional tables of
trials and voxels.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.crowd import check_name
from ubrain.data.crowdfile import Split, split_by_content, write_crowd
from ubrain.data.importers.read import SUFFIXES, let_go, load_npy, natural, read_rgb
from ubrain.data.importers.recording import check_preparation, kept_voxels
from ubrain.data.importers.stage import LISTED, NOTHING
from ubrain.errors import UbrainError
from ubrain.progress import log, track
from ubrain.trials import NORMALISE

BLOCK = 256  # trials at a time


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
    append: bool = False,
) -> None:
    """Write one subject's recordings into a crowd file.

    Parameters
    ----------
    images : folder of images (in natural order of their names), or .npy (n_images, height, width[,
        3]) uint8.
    responses : .npy or .csv (n_images or n_trials, n_voxels); row i belongs to image i, or to row i
        of `trials`.
    trials : .csv with the columns image (file name, its stem, or row number from 0), and optionally
        session, run (within the session), repeat.
    voxels : .csv with one row per voxel: any of hemisphere, vertex, i, j, k, areas, ncsnr.
    test_images : text file, one image name (or row number) per line. Without it a share of the
        images is drawn by their content, so that copies of an image stay together; all other images
        are train or val.
    transpose : the responses are (n_voxels, n_images or n_trials).
    normalise : z-score each voxel per "session" (all rows, if `trials` has none) or "run", or
        "none"; "auto": per session.
    bad_voxels : "refuse" voxels that are constant or not finite, or "drop" them.

    Raises
    ------
    UbrainError
        If files cannot be read, do not fit together, or an image would be both train and test.
    """
    check_preparation(normalise, bad_voxels)
    normalise = "session" if normalise == "auto" else normalise
    source = ImageSource(Path(images))
    values = _read_responses(Path(responses), transpose)
    table = (
        _read_trials(Path(trials), source)
        if trials
        else pd.DataFrame({"image": np.arange(len(source))})
    )
    what = f"rows of {Path(trials).name}" if trials else f"images in {images}"
    if normalise == "run" and "run" not in table:
        raise UbrainError(
            "--normalise run:"
            f" {f'{trials} has no column run' if trials else 'name the runs with --trials'}"
        )
    if len(values) != len(table):
        side = "few" if len(values) < len(table) else "many"
        hint = (
            "; are they the other way round (--transpose)?" if values.shape[1] == len(table) else ""
        )
        raise UbrainError(
            f"responses of subject {subject!r}: expected ({len(table)}, n_voxels), one row for each"
            f" of the {len(table)} {what}, got {values.shape}; {responses} has"
            f" {abs(len(values) - len(table))} row(s) too {side}{hint}"
        )
    good = _usable_voxels(values, subject, bad_voxels == "drop")
    voxel_table = (
        _read_voxels(Path(voxels), values.shape[1])
        if voxels
        else pd.DataFrame(index=range(values.shape[1]))
    )
    split = _splits(source, Path(test_images) if test_images else None, test_fraction, val_fraction)
    account = (
        f"{Path(responses).name}: {values.shape[0]} rows, {values.shape[1]}"
        f" voxels{_dropped(~good)}; {NORMALISE[normalise]}, and rows of the same image are"
        " averaged; test images"
        f" {'as listed in ' + Path(test_images).name if test_images else 'drawn by content'}"
    )
    settings = {
        "ubrain": version("ubrain"),
        "dataset": "arrays",
        "normalise": normalise,
        "bad_voxels": bad_voxels,
        "val_fraction": val_fraction,
        "image_size": None,
    }
    with write_crowd(out, append=append, needs=source.bytes + 4 * values.size) as writer:
        rows = np.array(
            [
                writer.add_image(source.ids[i], source.pixels(i), split[i])
                for i in track(range(len(source)), len(source), "images")
            ]
        )
        table = table.assign(image=rows[table["image"].to_numpy()])
        if "session" not in table:
            table["session"] = 0
        writer.add_subject(
            subject,
            table,
            kept_voxels(voxel_table, good),
            _blocks(values, good),
            dataset=dataset,
            scanner=scanner,
            space=space,
            account=account,
            normalise=normalise,
            settings=json.dumps(settings),
        )
        if writer.kept_splits:
            log.warning(
                "%d images were already in the crowd under another split, which they keep",
                writer.kept_splits,
            )
    log.info("%s: %s", subject, account)


class ImageSource:
    """Images of a folder or of an array, one at a time."""

    def __init__(self, path: Path) -> None:
        self._array: NDArray | None = None
        self._files: list[Path] = []
        if path.is_dir():
            names = (
                f
                for f in path.iterdir()
                if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")
            )
            self._files = sorted(names, key=lambda f: natural(f.name))
            if not self._files:
                raise UbrainError(
                    f"{path}: no images found (looked for {', '.join(sorted(SUFFIXES))})"
                )
            self.ids = [f.stem for f in self._files]
            if len(set(self.ids)) < len(self.ids):
                self.ids = [f.name for f in self._files]
            self.bytes = 0
        elif path.suffix == ".npy":
            self._array = load_npy(path)
            if (
                self._array.ndim not in (3, 4)
                or self._array.dtype != np.uint8
                or self._array.shape[3:] not in ((), (3,))
            ):
                raise UbrainError(
                    f"{path}: expected images (n, height, width[, 3]) uint8 in 0..255, "
                    f"got {self._array.shape} {self._array.dtype}"
                )
            self.ids = [f"{path.stem}-{i:06d}" for i in range(len(self._array))]
            self.bytes = self._array.nbytes
        else:
            raise UbrainError(f"{path}: expected a folder of images or a .npy file")
        self.path = path

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def files(self) -> list[Path]:
        """The files that are read: one per image, in order, or the array's."""
        return self._files or [self.path]

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """Image number i as (height, width, 3)."""
        if self._array is not None:
            pixels = np.array(self._array[i])
            let_go(self._array)
            return pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)
        return read_rgb(self._files[i])

    def find(self, names: Sequence[object], where: Path) -> list[int]:
        """Positions of images: all given by file name or stem, or else all by row number from 0."""
        known = {image_id: i for i, image_id in enumerate(self.ids)}
        known |= {f.name: i for i, f in enumerate(self._files)}
        texts = [str(name).strip() for name in names]
        if all(t in known for t in texts):
            return [known[t] for t in texts]
        if all(t.isdecimal() and int(t) < len(self) for t in texts):
            return [int(t) for t in texts]
        unknown = [t for t in texts if t not in known]
        worst = next((t for t in unknown if not t.isdecimal() or int(t) >= len(self)), unknown[0])
        raise UbrainError(
            f"{where}: no image {worst!r} in {self.path} ({len(self)} images, first"
            f" {self.ids[0]!r}); give all images by name, or all by row number from 0"
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
    if table.isna().any().any():
        raise UbrainError(
            f"{path}: row {int(np.argmax(table.isna().any(axis=1)))} has an empty cell"
        )
    if "repeat" in table and (table["repeat"].dtype.kind not in "iu" or table["repeat"].min() < 0):
        raise UbrainError(f"{path}: column 'repeat': expected whole numbers from 0")
    return table.assign(image=source.find(list(table["image"]), path))


def _read_voxels(path: Path, n_voxels: int) -> pd.DataFrame:
    table = _read_csv(path)
    if len(table) != n_voxels:
        raise UbrainError(
            f"{path}: expected one row for each of the {n_voxels} voxels, got {len(table)}"
        )
    for column in table:
        check_name(str(column), f"{path}: voxel column")
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


def _splits(source: ImageSource, listed: Path | None, test: float, val: float) -> list[Split]:
    if listed is None:
        return [split_by_content(val, test)] * len(source)
    try:
        names = [
            line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise UbrainError(f"{listed} cannot be read as a list of test images: {error}") from error
    if not names:
        raise UbrainError(f"{listed}: no test images are listed")
    chosen = set(source.find(names, listed))
    return ["test" if i in chosen else split_by_content(val, 0) for i in range(len(source))]


def _usable_voxels(values: NDArray, subject: str, drop: bool) -> NDArray[np.bool_]:
    """Which voxels are finite everywhere and not constant; refuses the others unless they may be
    dropped.
    """
    n_voxels = values.shape[1]
    finite, low, high = (
        np.ones(n_voxels, bool),
        np.full(n_voxels, np.inf),
        np.full(n_voxels, -np.inf),
    )
    for block in _blocks(values, slice(None)):
        finite &= np.isfinite(block).all(0)
        low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
    finite &= high - low < np.finfo(np.float32).max
    constant = finite & (high - low <= NOTHING)
    for bad, what in (
        (~finite, "missing or infinite values"),
        (constant, "the same value in every row"),
    ):
        if bad.any() and not drop:
            first = ", ".join(map(str, np.flatnonzero(bad)[:5]))
            raise UbrainError(
                f"responses of subject {subject!r}: {bad.sum()} of {values.shape[1]} voxels have"
                f" {what} (voxel {first}{', ...' if bad.sum() > 5 else ''}); repair them, or leave"
                " them out with --bad-voxels drop"
            )
    good: NDArray[np.bool_] = finite & ~constant
    if not good.any():
        raise UbrainError(f"responses of subject {subject!r}: no usable voxel is left")
    return good


def _dropped(bad: NDArray[np.bool_]) -> str:
    listed = ", ".join(map(str, np.flatnonzero(bad)[:LISTED])) + (
        ", ..." if bad.sum() > LISTED else ""
    )
    return f", {bad.sum()} constant or not finite and dropped ({listed})" if bad.any() else ""


def _blocks(values: NDArray, voxels: NDArray[np.bool_] | slice) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(values), BLOCK):
        yield np.array(values[start : start + BLOCK][:, voxels], dtype=np.float32)
        let_go(values)
