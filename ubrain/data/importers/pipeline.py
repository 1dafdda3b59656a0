"""From recordings to a crowd file: check everything, read block by block, continue after an
interruption, say what was done.

Responses are read once, into a work folder beside the crowd file (`.<name>.import/<subject>/`), one
file per block. Only then is it known which voxels are usable everywhere, and the crowd file is
written from there in one go. It appears under its name when it is complete, and the work folder
goes away. A command that was interrupted, given again, reads only the blocks that are not there
yet, and those of which the files have been replaced since.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ubrain.crowd import SPLITS, open_crowd
from ubrain.data.crowdfile import (
    PIXELS,
    CrowdWriter,
    Split,
    Splits,
    content_digest,
    split_by_content,
    write_crowd,
)
from ubrain.data.importers.masks import compare
from ubrain.data.importers.recording import PLACE, Block, Images, Options, Part, Recording, within
from ubrain.errors import UbrainError
from ubrain.paths import atomic, check_name
from ubrain.progress import log, track
from ubrain.resume import in_bytes, locked, remove_partials, require_space, same_settings
from ubrain.trials import NORMALISE

VALUES = 4 << 20  # responses that are in memory at once while the crowd file is written
ALARMING = 0.1  # share of dropped voxels above which a file may be damaged
COARSE = 64  # a voxel whose range in a session has fewer steps is badly served by its type
# A response that varies by less does not vary: divided by its deviation it would be infinite
NOTHING = 1e-30
LISTED = 12  # dropped voxels that are listed in the account
# Options that decide what is in the crowd file; bad_voxels may change while an import continues
DECIDING = ["dtype", "val_fraction", "test_fraction", "image_size", "image_source"]
DECIDING += ["images_may_be_shown", "areas", "min_ncsnr"]
CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float16", "float32"),
    "normalise": ("auto", *NORMALISE),
    "bad_voxels": ("drop", "refuse"),
}


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
    settings : the importer's own options, to be kept with the data. An interrupted import continues
        only with the same, and with the same `options`, but for `bad_voxels`.

    Returns
    -------
    What was done, subject by subject; with `options.dry_run`, what would be done.

    Raises
    ------
    UbrainError
        If files, tables and options do not fit together, a subject is in the crowd already, the
        disk is too small, or an unfinished import has other settings.
    """
    out, settings = Path(out), {**{k: getattr(options, k) for k in DECIDING}, **(settings or {})}
    folder, what = out.with_name(f".{out.name}.import"), f"the import of {out}"
    if folder.exists() and out.exists():  # who is killed after the crowd file is there leaves these
        with open_crowd(out) as file, locked(folder, what):
            for name in file["subjects"]:
                shutil.rmtree(folder / name, ignore_errors=True)
    _check_options(recordings, out, options)
    recordings = [
        replace(r, account=[*r.account, *compare(r.selected, options.unusual, r.source)])
        for r in recordings
    ]
    recordings = [r.normalised(options.normalise) for r in within(recordings, options)]
    for recording in recordings:
        _check_recording(recording)
    if schemes := _digests([r.images for r in recordings]):
        settings["schemes"] = schemes
    plan = Plan(recordings, out, options)
    if options.dry_run:
        return plan.text()
    for recording in recordings:
        for line in recording.missing:
            log.warning("%s: missing: %s", recording.name, line)
    with locked(folder, what):
        remove_partials(out.parent, out.name)
        stages = [Stage(recording, folder / recording.name, settings) for recording in recordings]
        plan.require_space(sum(stage.bytes_left for stage in stages))
        sizes = (size for stage in stages for size in stage.read())
        total = sum(stage.bytes_left for stage in stages)
        try:
            for _ in track(sizes, total, "reading responses", size=int):
                pass
            accounts = _write(stages, plan, {**settings, "bad_voxels": options.bad_voxels})
        except UbrainError as error:
            if not any(any(stage.folder.glob("*.npy")) for stage in stages):
                raise
            kept = f"What has been read is kept in {folder}; the same command continues with it"
            raise UbrainError(f"{error}. {kept}") from error
        for stage in stages:
            stage.remove()
    return "\n\n".join(accounts)


# --- checks


def _check_options(recordings: Sequence[Recording], out: Path, options: Options) -> None:
    if not recordings:
        raise UbrainError("nothing to import")
    for name, allowed in CHOICES.items():
        if (value := getattr(options, name)) not in allowed:
            raise UbrainError(
                f"--{name.replace('_', '-')} {value}: expected {', '.join(allowed[:-1])} or"
                f" {allowed[-1]}"
            )
    if options.image_size is not None and options.image_size < 1:
        raise UbrainError(f"--image-size {options.image_size}: expected at least 1 pixel")
    split_by_content(options.val_fraction, options.test_fraction)
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
            raise UbrainError(
                f"subject {name!r} is already in {out}; leave it out, or choose another name"
            )


def _check_recording(recording: Recording) -> None:
    trials, voxels, where = recording.trials, recording.voxels, recording.source
    n, ids = sum(block.n_trials for block in recording.blocks), recording.images.ids
    if not len(trials) or not len(voxels):
        raise UbrainError(
            f"{where}: {len(trials)} trials and {len(voxels)} voxels; nothing to import"
        )
    if n != len(trials):
        raise UbrainError(f"{where}: the table of trials has {len(trials)} rows, the responses {n}")
    for column in [c for c in ("image", "session", "run", "repeat") if c in trials]:
        if trials[column].dtype.kind not in "iu" or trials[column].min() < 0:
            raise UbrainError(f"{where}: trials, column {column!r}: expected whole numbers from 0")
    if (last := trials["image"].max()) >= len(ids):
        raise UbrainError(f"{where}: a trial shows image number {last}, of {len(ids)}")
    if "repeat" in trials and (again := trials.duplicated(["image", "repeat"])).any():
        trial = int(np.argmax(again))
        raise UbrainError(
            f"{where}: trial {trial} is listed twice: an earlier one is the same repeat of image"
            f" {ids[trials['image'].iloc[trial]]!r}"
        )
    for column in voxels:
        check_name(str(column), f"{where}: voxel column")
    places = [c for c in PLACE if c in voxels]
    for column in [c for c in places if c != "hemisphere"]:
        numbers = pd.to_numeric(voxels[column], errors="coerce")
        wrong = (numbers % 1 != 0) & voxels[column].notna()  # also NaN and infinity
        if (wrong := wrong | (numbers < 0) & (column == "vertex")).any():
            row = int(np.argmax(wrong))
            raise UbrainError(
                f"{where}: voxels, column {column!r}: expected whole numbers, got"
                f" {str(voxels[column].iloc[row])[:40]!r} in row {row}"
            )
    if places and places != ["hemisphere"]:
        again = voxels.duplicated(places) & voxels[places].notna().all(axis=1)
        if again.any():
            row = int(np.argmax(again))
            raise UbrainError(f"{where}: voxel {row} is there twice, at {recording.place(row)}")
    for scheme, splits in recording.images.schemes.items():
        what = f"split scheme {check_name(scheme, 'split scheme')}"
        if len(splits) != len(ids):
            raise UbrainError(f"{where}: {what}: {len(splits)} splits of {len(ids)} images")
        for image, split in zip(ids, splits, strict=True):
            if split not in (*SPLITS, ""):
                raise UbrainError(
                    f"{where}: {what}, image {image!r}: expected {', '.join(SPLITS)} or nothing,"
                    f" got {str(split)[:40]!r}"
                )
        if lacking := [split for split in ("train", "test") if split not in splits]:
            log.warning("%s has no %s images", what, " and no ".join(lacking))
    unit = recording.normalise
    if unit not in NORMALISE or (unit == "run" and "run" not in trials):
        raise UbrainError(f"{where}: cannot z-score per {unit!r}")
    if unit != "none" and np.bincount(recording.units()).min() < 2:
        raise UbrainError(f"{where}: a {unit} has a single trial, which cannot be z-scored")


def _digests(sources: Sequence[Images]) -> dict[str, str]:
    """Digest of every named scheme: of the names of the images, and their splits."""
    said: dict[str, list[tuple[str, str]]] = {}
    for images in {id(images): images for images in sources}.values():
        for scheme, splits in images.schemes.items():
            said.setdefault(scheme, []).extend(zip(images.ids, splits, strict=True))
    return {scheme: _digest(json.dumps(splits)) for scheme, splits in said.items()}


# --- plan


class Plan:
    """What an import would read and write. Making it looks at the header of every image."""

    def __init__(self, recordings: Sequence[Recording], out: Path, options: Options) -> None:
        self.recordings, self.out, self.options = recordings, out, options
        wanted = {(id(r.images), i): (r.images, i) for r in recordings for i in r.shown()}
        self.images = list(wanted.values())
        looked_at = track(self.images, len(self.images), "looking at images")
        self.shapes = Counter(images.shape(i) for images, i in looked_at)
        self.image_bytes = sum(
            n * 3 * int(np.prod(shrunk(shape, options.image_size)))
            for shape, n in self.shapes.items()
        )
        n_responses = sum(len(r.trials) * len(r.voxels) for r in recordings)
        self.response_bytes = n_responses * np.dtype(options.dtype).itemsize

    @property
    def bytes(self) -> int:
        """What the crowd file grows by."""
        return self.image_bytes + self.response_bytes

    def require_space(self, to_read: int) -> None:
        """Raise an error unless the disk has room for the work folder and the crowd file."""
        before = self.out.stat().st_size if self.options.append else 0
        require_space(self.out, to_read + self.bytes + before)

    def text(self) -> str:
        """The plan in words."""
        lines = []
        for r in self.recordings:
            files = {file for block in r.blocks for file in block.files}
            source = sum(file.stat().st_size for file in files)
            lines += [
                f"{r.origin}: {len(r.trials)} trials of {r.trials['image'].nunique()} images in"
                f" {r.trials['session'].nunique()} session(s), up to {len(r.voxels)} voxels; from"
                f" {len(files)} file(s), {in_bytes(source)}",
                *(f"  - {line}" for line in (*r.account, f"Responses: {NORMALISE[r.normalise]}")),
                *(f"  ! missing: {line}" for line in r.missing),
            ]
        sizes = [f"{n} of {w} × {h}" for (h, w), n in sorted(self.shapes.items())]
        listed = ", ".join(sizes[:5]) + (", ..." if len(sizes) > 5 else "")
        if schemes := dict.fromkeys(s for r in self.recordings for s in r.images.schemes):
            lines.append(f"split schemes: {', '.join(schemes)}")
        side, more = self.options.image_size, " more" if self.options.append else ""
        lines += [
            f"images: {len(self.images)} ({listed}), {in_bytes(self.image_bytes)}"
            + (f" after shrinking to {side} pixels" if side else ""),
            f"{self.out}: about {in_bytes(self.bytes)}{more} ({self.options.dtype}), and"
            f" {in_bytes(self.response_bytes)} while importing; nothing has been written"
            " (--dry-run)",
        ]
        return "\n".join(lines)


# --- reading


class Stage:
    """The responses of one subject in the work folder.

    `<key>.raw` holds the responses of a block as (n_trials, n_voxels), `<key>.npy` the lowest and
    the highest of each voxel in each session (or run) of the block, (2, n_units, n_voxels); the
    latter is written when the block is done. The key is a digest of all that decides them, the
    block's files included, so what is left of other files or tables is not found.
    """

    def __init__(self, recording: Recording, folder: Path, settings: dict[str, Any]) -> None:
        self.recording, self.folder, self.dtype = recording, folder, np.dtype(settings["dtype"])
        self.n_voxels, self.units = len(recording.voxels), recording.units()
        self.starts = np.cumsum([0, *(block.n_trials for block in recording.blocks)])
        self.width = self.n_voxels * self.dtype.itemsize
        folder.mkdir(exist_ok=True)
        remove_partials(folder)
        everything = {**settings, "normalise": recording.normalise}
        same_settings(folder, everything, f"the import of {recording.name}")
        n, staged = len(recording.blocks), {path.stem for path in folder.glob("*.npy")}
        voxels = _digest(recording.voxels.to_csv())
        self.keys = [self._key(i, voxels) for i in range(n)]
        assert len({*self.keys}) == n, "blocks have different names"
        self.left = [i for i in range(n) if not self._done(i)]
        if done := n - len(self.left):
            log.info("%s: continuing, %d of %d block(s) are there", recording.name, done, n)
        if others := len(staged - {*self.keys}):
            log.info("%s: %d block(s) that were read of other files", recording.name, others)

    def _key(self, i: int, voxels: str) -> str:
        """Digest of all that decides what is read of a block, that of the voxels included."""
        r, block, rows = self.recording, self.recording.blocks[i], slice(*self.starts[i : i + 2])
        shown = [r.images.ids[image] for image in r.trials["image"].iloc[rows]]
        units = np.unique(self.units[rows], return_inverse=True)[1].tolist()
        stats = [(file.name, file.stat()) for file in block.files]
        # The time of the last change of an inode tells a file that was fetched again with its times
        files = [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats]
        return _digest(json.dumps([block.name, files, shown, units, str(self.dtype), voxels]))

    def _raw(self, i: int) -> Path:
        return self.folder / f"{self.keys[i]}.raw"

    def _ranges(self, i: int) -> Path:
        return self.folder / f"{self.keys[i]}.npy"

    def _done(self, i: int) -> bool:
        size = self.recording.blocks[i].n_trials * self.width
        raw = self._raw(i)
        return self._ranges(i).exists() and raw.exists() and raw.stat().st_size == size

    @property
    def bytes_left(self) -> int:
        """Size of the blocks that have still to be read."""
        return sum(self.recording.blocks[i].n_trials for i in self.left) * self.width

    def read(self) -> Iterator[int]:
        """Read the blocks that are not there yet; yields the bytes of each part after it has been
        written.
        """
        for i in self.left:
            block = self.recording.blocks[i]
            files = (file.name for file in block.files)
            where = ", ".join([self.recording.name, *files, block.name])
            units, row = np.unique(
                self.units[self.starts[i] : self.starts[i + 1]], return_inverse=True
            )
            ranges = np.empty((2, len(units), self.n_voxels), dtype=np.float32)
            ranges[0], ranges[1] = np.inf, -np.inf
            filled = np.zeros(block.n_trials, dtype=np.int64)
            with atomic(self._raw(i)) as partial:
                with partial.open("wb", buffering=0) as file:
                    for part in block.read():
                        values = _checked_part(part, block, self.n_voxels, where)
                        _widen(ranges, row, values, part)
                        self._store(file, values, part, where)
                        filled[part.first_trial : part.first_trial + len(values)] += values.shape[1]
                        yield values.size * self.dtype.itemsize
                    os.fsync(file.fileno())
                if (short := filled != self.n_voxels).any():
                    trial = int(np.argmax(short))
                    raise UbrainError(
                        f"{where}: trial {trial} has {filled[trial]} responses, expected"
                        f" {self.n_voxels}"
                    )
            with atomic(self._ranges(i)) as partial, partial.open("wb") as stream:
                np.save(stream, ranges)

    def _store(self, file: Any, values: NDArray[np.float32], part: Part, where: str) -> None:
        limit = np.finfo(self.dtype).max
        lost = (values > limit) | (values < -limit)
        if lost.any() and (lost & np.isfinite(values)).any():
            trial, voxel = np.argwhere(lost & np.isfinite(values))[0]
            self.refuse(
                f"{where}: the response of voxel {part.first_voxel + voxel} in trial"
                f" {part.first_trial + trial} is {values[trial, voxel]:g}, too large for float16;"
                " use --dtype float32"
            )
        stored = values.astype(self.dtype, copy=False)
        begin = part.first_trial * self.width + part.first_voxel * self.dtype.itemsize
        rows = [stored] if stored.shape[1] == self.n_voxels else stored
        for number, row in enumerate(rows):
            file.seek(begin + number * self.width)
            data = np.ascontiguousarray(row).data.cast("B")
            while data:
                data = data[file.write(data) :]

    def usable(self, bad_voxels: str) -> tuple[NDArray[np.bool_], list[str]]:
        """Which voxels can be used, (n_voxels,), and what is said about the others.

        Raises
        ------
        UbrainError
            If none can be used, if the type of the stored responses rounds them off, or if there
            are others and `bad_voxels` is "refuse".
        """
        endless, constant, coarse = (np.zeros(self.n_voxels, dtype=bool) for _ in range(3))
        for low, high in self._unit_ranges():
            with np.errstate(invalid="ignore", over="ignore"):
                largest, spread = np.maximum(np.abs(low), np.abs(high)), high - low
                endless |= ~np.isfinite(spread)
                constant |= spread <= np.maximum(1e-6 * largest, NOTHING)
                coarse |= spread < COARSE * np.finfo(self.dtype).eps / 2 * largest
        where, unit = self.recording.source, self.recording.normalise
        same = "the same number in all trials" + (f" of a {unit}" if unit != "none" else "")
        verdict = "were dropped" if bad_voxels == "drop" else "cannot be used"
        bad = ((endless, "not a number, or infinite, in some trial"), (constant & ~endless, same))
        said = [self._list(which, f"{verdict}: {why}") for which, why in bad if which.any()]
        good: NDArray[np.bool_] = ~endless & ~constant
        if not good.any():
            raise UbrainError(f"{where}: no usable voxel is left: {'; '.join(said)}")
        if said and bad_voxels == "refuse":
            advice = "Import without them with --bad-voxels drop"
            raise UbrainError(f"{where}: {'; '.join(said)}. {advice}")
        if (~good).mean() > ALARMING:
            names = [b.name for i, b in enumerate(self.recording.blocks) if self._spoils(i, ~good)]
            few = f"{len(names)} of {len(self.keys)} block(s), such as {names[0]}" if names else ""
            log.warning(
                "%s: %.0f %% of the voxels are lost: %s%s",
                where,
                100 * (~good).mean(),
                "; ".join(said),
                f"; that comes from {few}: is a file damaged?" if few else "",
            )
        if (coarse & good).sum() > 0.01 * good.sum():
            advice = "use --dtype float32" if self.dtype == np.float16 else "subtract the means"
            self.refuse(
                f"{where}: {(coarse & good).sum()} voxels vary so little around a large mean that"
                f" {self.dtype} would round them off; {advice}"
            )
        return good, said or [f"No voxel was dropped: all are finite, and none is {same}"]

    def _spoils(self, i: int, bad: NDArray[np.bool_]) -> bool:
        """Whether a block has values that are not finite in some of the bad voxels."""
        return not np.isfinite(np.load(self._ranges(i))[..., bad]).all()

    def _unit_ranges(self) -> Iterator[NDArray[np.float32]]:
        """Lowest and highest response of each voxel, (2, n_voxels), for each session (or run),
        which may span blocks.
        """
        left, running = np.bincount(self.units), dict[int, NDArray[np.float32]]()
        for i in range(len(self.recording.blocks)):
            mine = self.units[self.starts[i] : self.starts[i + 1]]
            units, counts = np.unique(mine, return_counts=True)
            ranges = np.load(self._ranges(i)).swapaxes(0, 1)
            for unit, count, (low, high) in zip(units, counts, ranges, strict=True):
                before = running.pop(unit, np.stack([low, high]))
                running[unit] = np.stack([np.minimum(low, before[0]), np.maximum(high, before[1])])
                left[unit] -= count
                if not left[unit]:
                    yield running.pop(unit)

    def _list(self, bad: NDArray[np.bool_], what: str) -> str:
        rows = np.flatnonzero(bad)
        listed = "; ".join(self.recording.place(int(row)) for row in rows[:LISTED])
        more = "; ..." if len(rows) > LISTED else ""
        return f"{len(rows)} of {self.n_voxels} voxels {what} (at {listed}{more})"

    def rows(self, voxels: NDArray[np.bool_]) -> Iterator[NDArray]:
        """Responses of some voxels, in the order of the trials."""
        step = max(1, VALUES // self.n_voxels)
        for i, block in enumerate(self.recording.blocks):
            for start in range(0, block.n_trials, step):
                n, offset = min(step, block.n_trials - start), start * self.width
                values = np.fromfile(self._raw(i), self.dtype, n * self.n_voxels, offset=offset)
                values = values.reshape(n, self.n_voxels)
                yield values if voxels.all() else values[:, voxels]

    def varied(self, blocks: Iterator[NDArray], train: NDArray[np.bool_]) -> Iterator[NDArray]:
        """The same rows; an error at the end if those of all training trials are the same."""
        first, varied, start = None, False, 0
        for block in blocks:
            mine = block[train[start : start + len(block)]]
            start += len(block)
            if len(mine) and not varied:
                first = mine[0] if first is None else first
                varied = bool((mine != first).any())
            yield block
        if train.sum() > 1 and not varied and first is not None:
            raise UbrainError(
                f"{self.recording.source}: the responses to all training images are the same, such"
                f" as {first[0]:g}; is the file complete?"
            )

    def remove(self) -> None:
        """Delete the subject's files from the work folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def refuse(self, message: str) -> NoReturn:
        """Raise an error that asks for another dtype: nothing that was read is of use for it."""
        for other in (path for path in self.folder.parent.iterdir() if path.is_dir()):
            shutil.rmtree(other, ignore_errors=True)
        raise UbrainError(message)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _checked_part(part: Part, block: Block, n_voxels: int, where: str) -> NDArray[np.float32]:
    values = part.values
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise UbrainError(
            f"{where}: expected responses (n_trials, n_voxels), got {values.shape} {values.dtype}"
        )
    first = (part.first_trial, part.first_voxel)
    end = (first[0] + values.shape[0], first[1] + values.shape[1])
    if min(first) < 0 or end[0] > block.n_trials or end[1] > n_voxels or not values.size:
        raise UbrainError(
            f"{where}: expected responses to {block.n_trials} trials in {n_voxels} voxels, got"
            f" {values.shape} at {first}"
        )
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)


def _widen(ranges: NDArray, row: NDArray, values: NDArray[np.float32], part: Part) -> None:
    """Extend the ranges of sessions (or runs), (2, n_units, n_voxels), of which `row` is that of
    each trial of the block; a NaN stays.
    """
    row = row[part.first_trial : part.first_trial + len(values)]
    columns = slice(part.first_voxel, part.first_voxel + values.shape[1])
    for unit in np.unique(row):
        mine = values if (row == unit).all() else values[row == unit]
        low, high = ranges[0, unit, columns], ranges[1, unit, columns]
        np.minimum(low, mine.min(0), out=low)
        np.maximum(high, mine.max(0), out=high)


# --- writing


def _write(stages: Sequence[Stage], plan: Plan, settings: dict[str, Any]) -> list[str]:
    options, accounts = plan.options, []
    usable = [stage.usable(options.bad_voxels) for stage in stages]
    with write_crowd(plan.out, options.append, plan.bytes) as writer:
        rows = _write_images(writer, plan)
        for stage, (good, said) in zip(stages, usable, strict=True):
            r = stage.recording
            trials = r.trials.assign(image=[rows[id(r.images), i] for i in r.trials["image"]])
            n_copies = r.trials["image"].nunique() - trials["image"].nunique()
            if n_copies:
                trials = trials.drop(columns="repeat", errors="ignore")
                said = [
                    *said,
                    f"{n_copies} images are identical to other images of the dataset; each is one"
                    " image with more repeats",
                ]
            number = np.arange(len(good)) if r.source_rows is None else r.source_rows
            voxels = r.voxels[good].assign(source_row=number[good]).reset_index(drop=True)
            account = _account(r, trials, len(voxels), said, writer, options)
            train = writer.split_of(trials["image"].to_numpy()) == "train"
            log.info("%s: writing %d trials, %d voxels", r.name, len(trials), len(voxels))
            writer.add_subject(
                r.name,
                trials,
                voxels,
                stage.varied(stage.rows(good), train),
                dataset=r.dataset,
                scanner=r.scanner,
                space=r.space,
                account=account,
                dtype=options.dtype,
                normalise=r.normalise,
                settings=json.dumps(
                    {"ubrain": version("ubrain"), **settings, "normalise": r.normalise}
                ),
            )
            accounts.append(account)
    return accounts


def _write_images(writer: CrowdWriter, plan: Plan) -> dict[tuple[int, int], int]:
    """Write the images; their rows in the crowd file, by whose (`id`) and which (number)."""
    options, rows = plan.options, {}
    draw = split_by_content(options.val_fraction, options.test_fraction)
    drawn, draw_val = _drawn_schemes(plan), split_by_content(options.val_fraction, 0)
    for images, i in track(plan.images, len(plan.images), "writing images"):
        name, split = images.ids[i], images.split(i)
        if split not in (*SPLITS, "rest"):
            raise UbrainError(f"image {name!r}: unknown split {split!r}")
        schemes: dict[str, Split] = {s: splits[i] for s, splits in images.schemes.items()}
        for scheme in drawn & {s for s, said in schemes.items() if said == "train"}:
            schemes[scheme] = draw_val
        pixels = images.pixels(i)
        small = shrink(pixels, options.image_size)
        before = "" if small is pixels else f"{PIXELS}{content_digest(pixels)}"
        key, given = f"{images.key(i)} {before}".strip(), draw if split == "rest" else split
        rows[id(images), i] = writer.add_image(name, small, given, key, schemes)
    for splits in (writer.splits, *writer.schemes.values()):
        where = f" in scheme {splits.scheme}" if splits.scheme else ""
        if splits.kept:
            log.warning(
                "%d images were already in the crowd under another split%s, which they keep",
                splits.kept,
                where,
            )
        if splits.versions:
            log.warning(
                "%d photographs are in the crowd in two versions, imported earlier under two"
                " splits%s; import the dataset that names both first",
                splits.versions,
                where,
            )
    return rows


def _drawn_schemes(plan: Plan) -> set[str]:
    """Schemes without val images, which are drawn from their train images."""
    said: dict[str, set[str]] = {}
    for images, i in plan.images:
        for scheme, splits in images.schemes.items():
            said.setdefault(scheme, set()).add(splits[i])
    return {scheme for scheme, splits in said.items() if "val" not in splits}


def shrunk(shape: tuple[int, int], shorter_side: int | None) -> tuple[int, int]:
    """Height and width of an image after `shrink`."""
    if shorter_side is None or min(shape) <= shorter_side:
        return shape
    scale = shorter_side / min(shape)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def shrink(pixels: NDArray[np.uint8], shorter_side: int | None) -> NDArray[np.uint8]:
    """Shrink an image, with antialiasing, so that its shorter side is `shorter_side`; smaller
    images stay as they are.
    """
    height, width = shrunk((pixels.shape[0], pixels.shape[1]), shorter_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _account(
    r: Recording,
    trials: pd.DataFrame,
    n_voxels: int,
    said: list[str],
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
    if any(r.images.split(i) == "rest" for i in r.shown()):
        if options.test_fraction:
            images += f"; test images are a share of {options.test_fraction:g}, drawn by content"
        images += f"; val images are a share of {options.val_fraction:g}, drawn by content"
    schemes = [_in_scheme(name, writer.split_of(counts.index, name)) for name in writer.schemes]
    ceiling = "unknown, as there are no repeats"
    if "ncsnr" in r.voxels and r.voxels["ncsnr"].notna().any():
        ceiling = r.ceiling
    elif counts.max() > 1:
        ceiling = "ncsnr computed from the repeats"
    lines = [
        f"{r.origin}: {len(trials)} trials of {len(counts)} images in"
        f" {trials['session'].nunique()} session(s), {n_voxels} voxels.",
        *r.account,
        *(f"Not there: {line}" for line in r.missing),
        *said,
        f"Images: {images}",
        f"Responses are stored as {options.dtype}, trial by trial; {NORMALISE[r.normalise]}, and"
        " trials of the same image are averaged",
        f"Noise ceiling: {ceiling}",
    ]
    if options.image_size:
        lines.append(
            f"Images were shrunk so that the shorter side has at most {options.image_size} pixels"
        )
    if schemes:
        lines.append(f"Images in named schemes of splits: {'; '.join(schemes)}")
    if r.images.schemes:
        lines.append(
            "Where a scheme names no val images, they are a share of"
            f" {options.val_fraction:g} of its train images, drawn by content"
        )
    lines += [_kept(splits) for splits in (writer.splits, *writer.schemes.values()) if splits.kept]
    return "\n".join(line if line.endswith((".", ":")) else line + "." for line in lines)


def _in_scheme(name: str, splits: NDArray[np.str_]) -> str:
    counts = [f"{(splits == split).sum()} {split or 'in none'}" for split in (*SPLITS, "")]
    return f"{name} {', '.join(counts)}"


def _kept(splits: Splits) -> str:
    where = f" in scheme {splits.scheme}" if splits.scheme else ""
    return (
        f"{splits.kept} images of this import were in the crowd already, themselves or as another"
        f" version of the photograph, under another split{where}, which they keep"
    )


def _repeats(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    few = f"{low} trial{'s' if low > 1 else ''}"
    return f"{few} each" if low == high else f"{low} to {high} trials each"
