"""From recordings to a crowd file: check everything, read block by block, continue after an
interruption, say what was done.

Responses are read once, into a working folder beside the crowd file (`.<name>.import/<subject>/`),
one file per block. Only then is it known which voxels are usable everywhere, and the crowd file is
written from there in one go. It appears under its name when it is complete, and the working folder
goes away. A command that was interrupted, given again, reads only the blocks that are not there
yet.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ubrain.crowd import SPLITS, check_name, open_crowd
from ubrain.data.crowdfile import PIXELS, CrowdWriter, content_digest, split_by_content, write_crowd
from ubrain.data.importers.recording import (
    PLACE,
    Images,
    Options,
    Recording,
    check_preparation,
    kept_voxels,
    shrink,
    shrunk,
    to_rgb,
)
from ubrain.data.importers.stage import Stage, read_all, work_folder
from ubrain.errors import UbrainError
from ubrain.progress import log, track
from ubrain.resume import require_space as require_space_for
from ubrain.trials import NORMALISE


def import_recordings(
    recordings: Sequence[Recording],
    out: str | Path,
    options: Options,
    settings: dict[str, Any] | None = None,
) -> str:
    """Write recordings into a crowd file.

    Parameters
    ----------
    recordings : of one dataset, one per subject.
    settings : the importer's own options, to be kept with the data; an interrupted import continues
        only with the same.

    Returns
    -------
    What was done, subject by subject; with `options.dry_run`, what would be done.

    Raises
    ------
    UbrainError
        If files, tables and options do not fit together, a subject is in the crowd already, the
        disk is too small, or an unfinished import has other settings.
    """
    out, settings = Path(out), {**(settings or {}), "dtype": options.dtype}
    _check_out(recordings, out, options)
    recordings = [recording.normalised(options.normalise) for recording in recordings]
    for recording in recordings:
        _check_recording(recording)
    plan = _Plan(recordings, out, options)
    if options.dry_run:
        return plan.text()
    for recording in recordings:
        for what in recording.missing:
            log.warning("%s: %s", recording.name, what)
    with work_folder(out) as folder:
        stages = [Stage(r, folder, {**settings, "normalise": r.normalise}) for r in recordings]
        plan.require_space(sum(stage.bytes_left for stage in stages))
        read_all(stages)
        accounts = _write(stages, out, options, plan)
        for stage in stages:
            stage.remove()
    return "\n\n".join(accounts)


# --- checks


def _check_out(recordings: Sequence[Recording], out: Path, options: Options) -> None:
    if not recordings:
        raise UbrainError("nothing to import")
    if options.dtype not in ("float16", "float32"):
        raise UbrainError(f"--dtype {options.dtype}: expected float16 or float32")
    if options.image_size is not None and options.image_size < 1:
        raise UbrainError(f"--image-size {options.image_size}: expected at least 1 pixel")
    check_preparation(options.normalise, options.bad_voxels)
    split_by_content(options.val_fraction, 0)
    names = [check_name(recording.name) for recording in recordings]
    taken: set[str] = set()
    if options.append:
        with open_crowd(out) as file:
            taken = set(file["subjects"])
    elif out.exists():
        raise UbrainError(
            f"{out} exists; choose another name, delete it, or append to it with --append"
        )
    for name in names:
        if name in taken or names.count(name) > 1:
            raise UbrainError(f"subject {name!r} is already in {out}; leave it out with --subjects")


def _check_recording(recording: Recording) -> None:
    trials, voxels, where = recording.trials, recording.voxels, recording.source
    n = sum(block.n_trials for block in recording.blocks)
    if not len(trials) or not len(voxels):
        raise UbrainError(
            f"{where}: {len(trials)} trials and {len(voxels)} voxels; nothing to import"
        )
    if n != len(trials):
        raise UbrainError(f"{where}: the table of trials has {len(trials)} rows, the responses {n}")
    for column in [c for c in ("image", "session", "run", "repeat") if c in trials]:
        if trials[column].dtype.kind not in "iu" or trials[column].min() < 0:
            raise UbrainError(f"{where}: trials, column {column!r}: expected whole numbers from 0")
    if trials["image"].max() >= len(recording.images.ids):
        raise UbrainError(
            f"{where}: a trial shows image number {trials['image'].max()}, of"
            f" {len(recording.images.ids)}"
        )
    if "repeat" in trials and trials.duplicated(["image", "repeat"]).any():
        twice = int(np.flatnonzero(trials.duplicated(["image", "repeat"]))[0])
        image = recording.images.ids[trials["image"].iloc[twice]]
        raise UbrainError(
            f"{where}: trial {twice} is listed twice: an earlier one is the same repeat of image"
            f" {image!r}"
        )
    places = [c for c in PLACE if c in voxels]
    if len(places) > 1 and voxels.duplicated(places).any():
        row = int(np.flatnonzero(voxels.duplicated(places))[0])
        raise UbrainError(f"{where}: voxel {row} is there twice, at {recording.place(row)}")
    if recording.normalise not in NORMALISE or (
        recording.normalise == "run" and "run" not in trials
    ):
        raise UbrainError(f"{where}: cannot z-score per {recording.normalise!r}")
    sizes = np.bincount(recording.units())
    if recording.normalise != "none" and sizes.min() < 2:
        raise UbrainError(
            f"{where}: a {recording.normalise} has a single trial, which cannot be z-scored"
        )


# --- plan


class _Plan:
    """What an import would read and write. Making it looks at the header of every image."""

    def __init__(self, recordings: Sequence[Recording], out: Path, options: Options) -> None:
        self.recordings, self.out, self.options = recordings, out, options
        self.shapes: dict[tuple[int, int], int] = {}
        used: dict[int, tuple[Images, set[int]]] = {}
        for recording in recordings:
            used.setdefault(id(recording.images), (recording.images, set()))[1].update(
                recording.trials["image"]
            )
        wanted = [(images, i) for images, numbers in used.values() for i in sorted(numbers)]
        for images, i in track(wanted, len(wanted), "looking at images"):
            shape = images.shape(int(i))
            self.shapes[shape] = self.shapes.get(shape, 0) + 1
        self.n_images = len(wanted)
        self.image_bytes = sum(
            n * 3 * int(np.prod(shrunk(s, options.image_size))) for s, n in self.shapes.items()
        )
        self.response_bytes = (
            sum(len(r.trials) * len(r.voxels) for r in recordings)
            * np.dtype(options.dtype).itemsize
        )

    def require_space(self, to_read: int) -> None:
        """Raise an error unless the disk has room for the working folder and the crowd file."""
        before = self.out.stat().st_size if self.options.append else 0
        require_space_for(self.out, to_read + self.response_bytes + self.image_bytes + before)

    def text(self) -> str:
        """The plan in words."""
        lines = []
        for r in self.recordings:
            files = {file for block in r.blocks for file in block.files}
            source = sum(file.stat().st_size for file in files)
            lines += [
                (
                    f"{r.name} ({r.dataset}, {r.scanner}, {r.space}): {len(r.trials)} trials of"
                    f" {r.trials['image'].nunique()} images in {r.trials['session'].nunique()}"
                    f" session(s), up to {len(r.voxels)} voxels; from {len(files)} file(s),"
                    f" {source / 1e9:.2f} GB"
                ),
                *(f"  - {line}" for line in (*r.account, f"Responses: {NORMALISE[r.normalise]}")),
                *(f"  ! {line}" for line in r.missing),
            ]
        side = self.options.image_size
        sizes = ", ".join(f"{n} of {w} × {h}" for (h, w), n in sorted(self.shapes.items())[:5])
        lines += [
            (
                f"images: {self.n_images} ({sizes}{', ...' if len(self.shapes) > 5 else ''}),"
                f" {self.image_bytes / 1e9:.2f} GB"
                f"{f' after shrinking to {side} pixels' if side else ''}"
            ),
            (
                f"{self.out}: about {(self.image_bytes + self.response_bytes) / 1e9:.2f} GB"
                f" {'more ' if self.options.append else ''}({self.options.dtype}), and"
                f" {self.response_bytes / 1e9:.2f} GB while importing; nothing has been written"
                " (--dry-run)"
            ),
        ]
        return "\n".join(lines)


# --- writing


def _write(stages: Sequence[Stage], out: Path, options: Options, plan: _Plan) -> list[str]:
    usable = [stage.usable(options.bad_voxels) for stage in stages]
    kept = {
        "val_fraction": options.val_fraction,
        "image_size": options.image_size,
        "bad_voxels": options.bad_voxels,
    }
    accounts = []
    with write_crowd(out, options.append, plan.image_bytes + plan.response_bytes) as writer:
        rows = _write_images(writer, [stage.recording for stage in stages], options, plan.n_images)
        for stage, (good, dropped) in zip(stages, usable, strict=True):
            r = stage.recording
            mine = rows[id(r.images)]
            trials = r.trials.assign(image=[mine[i] for i in r.trials["image"]])
            n_copies = r.trials["image"].nunique() - trials["image"].nunique()
            if n_copies:
                trials = trials.drop(columns="repeat", errors="ignore")
            account = _account(r, trials, int(good.sum()), dropped, n_copies, writer, options)
            log.info("%s: writing %d trials, %d voxels", r.name, len(trials), good.sum())
            writer.add_subject(
                r.name,
                trials,
                kept_voxels(r.voxels, good),
                stage.rows(good),
                dataset=r.dataset,
                scanner=r.scanner,
                space=r.space,
                account=account,
                dtype=options.dtype,
                normalise=r.normalise,
                settings=json.dumps({"ubrain": version("ubrain"), **stage.settings, **kept}),
            )
            accounts.append(account)
    return accounts


def _write_images(
    writer: CrowdWriter, recordings: Sequence[Recording], options: Options, total: int
) -> dict[int, dict[int, int]]:
    """Write the images that were shown; rows in the crowd file of the numbers in each dataset's
    images.
    """
    rows: dict[int, dict[int, int]] = {}
    wanted = ((r.images, int(i)) for r in recordings for i in np.unique(r.trials["image"]))
    draw: Callable[[str], str] = split_by_content(options.val_fraction, 0)

    def first_time(pairs: Iterable[tuple[Images, int]]) -> Iterator[tuple[Images, int]]:
        return ((images, i) for images, i in pairs if i not in rows.setdefault(id(images), {}))

    for images, i in track(first_time(wanted), total, "writing images"):
        name, split = images.ids[i], images.split(i)
        if split not in (*SPLITS, "rest"):
            raise UbrainError(f"image {name!r}: unknown split {split!r}")
        pixels = to_rgb(images.pixels(i), name)
        small = shrink(pixels, options.image_size)
        before = "" if small is pixels else f"{PIXELS}{content_digest(pixels)}"
        rows[id(images)][i] = writer.add_image(
            name, small, draw if split == "rest" else split, f"{images.key(i)} {before}".strip()
        )
    if writer.kept_splits:
        log.warning(
            "%d images were already in the crowd under another split, which they keep",
            writer.kept_splits,
        )
    if writer.torn_apart:
        log.warning(
            "%d photographs are in the crowd in two versions, imported earlier under two splits;"
            " import the dataset that names both first",
            writer.torn_apart,
        )
    return rows


def _account(
    r: Recording,
    trials: pd.DataFrame,
    n_voxels: int,
    dropped: list[str],
    n_copies: int,
    writer: CrowdWriter,
    options: Options,
) -> str:
    """What was done to a subject's numbers, in words."""
    counts = trials["image"].value_counts()
    splits = writer.split_of(counts.index.to_numpy())
    images = ", ".join(
        f"{(splits == s).sum()} {s} ({_repeats(counts[splits == s])})"
        for s in SPLITS
        if (splits == s).any()
    )
    drawn = any(r.images.split(int(i)) == "rest" for i in r.trials["image"].unique())
    lines = [
        (
            f"{r.name} ({r.dataset}, {r.scanner}, {r.space}): {len(trials)} trials of {len(counts)}"
            f" images in {trials['session'].nunique()} session(s), {n_voxels} voxels."
        ),
        *r.account,
        *(f"Not there: {line}" for line in r.missing),
        *dropped,
        f"Images: {images}"
        + (
            f"; val images are a share of {options.val_fraction:g}, drawn by content"
            if drawn
            else ""
        ),
        (
            f"Responses are stored as {options.dtype}, trial by trial; {NORMALISE[r.normalise]},"
            " and trials of the same image are averaged"
        ),
        f"Noise ceiling: {_ceiling(r, int(counts.max()))}",
    ]
    if options.image_size:
        lines.append(
            f"Images were shrunk so that the shorter side has at most {options.image_size} pixels"
        )
    if n_copies:
        lines.append(
            f"{n_copies} images are identical to other images of the dataset; each is one image"
            " with more repeats"
        )
    if writer.kept_splits:
        lines.append(
            f"{writer.kept_splits} images of this import were in the crowd already, themselves or"
            " as another version of the photograph, under another split, which they keep"
        )
    return "\n".join(line if line.endswith((".", ":")) else line + "." for line in lines)


def _repeats(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return (
        f"{low} trial{'s' if low > 1 else ''} each"
        if low == high
        else f"{low} to {high} trials each"
    )


def _ceiling(r: Recording, most_repeats: int) -> str:
    if "ncsnr" in r.voxels and r.voxels["ncsnr"].notna().any():
        return r.ceiling
    return (
        "ncsnr computed from the repeats"
        if most_repeats > 1
        else "unknown, as there are no repeats"
    )
