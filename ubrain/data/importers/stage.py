"""The working folder of an import: responses of one subject, block by block, kept through
interruptions.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ubrain.data.importers.recording import Block, Part, Recording
from ubrain.errors import UbrainError
from ubrain.paths import write_text
from ubrain.progress import log, track

VALUES = 4 << 20  # responses that are in memory at once while the crowd file is written
# steps: a voxel whose range in a session has fewer is badly served by the type it is stored in
COARSE = 64
# a response that varies by less does not vary; divided by its standard deviation it would be
# infinite
NOTHING = 1e-30
LISTED = 12  # dropped voxels that are listed in the account


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """The working folder of an import, for this process alone."""
    folder = out.with_name(f".{out.name}.import")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UbrainError(f"could not write {out}: {error}") from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UbrainError(f"another import is writing {out}; wait for it, or stop it") from None
    try:
        for left_behind in out.parent.glob(
            f".{out.name}.*.partial"
        ):  # by an import that was killed: we hold the lock
            left_behind.unlink()
        yield folder
    finally:
        lock.release()
        if {path.name for path in folder.iterdir()} <= {"lock"}:
            shutil.rmtree(folder, ignore_errors=True)


class Stage:
    """The responses of one subject in the working folder.

    `<number>.raw` holds the responses of a block as (n_trials, n_voxels), `<number>.npy` the lowest
    and the highest of each voxel in each session (or run) of the block, (2, n_units, n_voxels); the
    latter is written when the block is done.
    """

    def __init__(self, recording: Recording, work: Path, settings: dict[str, Any]) -> None:
        self.recording, self.settings, self.dtype = recording, settings, np.dtype(settings["dtype"])
        self.n_voxels, self.units = len(recording.voxels), recording.units()
        self.starts = np.cumsum([0, *(block.n_trials for block in recording.blocks)])
        self.folder = work / recording.name
        self.manifest = {"settings": settings, "subject": _fingerprint(recording)}
        self._compare_manifest()
        self.left = [i for i in range(len(recording.blocks)) if not self._done(i)]
        if len(self.left) < len(recording.blocks):
            log.info(
                "%s: continuing, %d of %d block(s) are there",
                recording.name,
                len(recording.blocks) - len(self.left),
                len(recording.blocks),
            )

    def _compare_manifest(self) -> None:
        path = self.folder / "manifest.json"
        now = json.loads(json.dumps(self.manifest))
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            differ = [
                f"{key} was {before[part].get(key)!r}, is {now[part].get(key)!r}"
                for part in ("settings", "subject")
                for key in {**before[part], **now[part]}
                if before[part].get(key) != now[part].get(key)
            ]
            if differ:
                raise UbrainError(
                    f"the unfinished import of {self.recording.name} had other settings or files: "
                    f"{'; '.join(differ)[:400]}. Finish it with the same, or delete {self.folder}"
                )
        self.folder.mkdir(exist_ok=True)
        write_text(path, json.dumps(now))

    def _done(self, i: int) -> bool:
        raw = self._raw(i)
        size = self.recording.blocks[i].n_trials * self.n_voxels * self.dtype.itemsize
        return self._ranges(i).exists() and raw.exists() and raw.stat().st_size == size

    def _raw(self, i: int) -> Path:
        return self.folder / f"{i:04d}.raw"

    def _ranges(self, i: int) -> Path:
        return self.folder / f"{i:04d}.npy"

    @property
    def bytes_left(self) -> int:
        """Size of the blocks that have still to be read."""
        return (
            sum(self.recording.blocks[i].n_trials for i in self.left)
            * self.n_voxels
            * self.dtype.itemsize
        )

    def read(self) -> Iterator[int]:
        """Read the blocks that are not there yet; yields the bytes of each part after it has been
        written.
        """
        for i in self.left:
            block = self.recording.blocks[i]
            where = ", ".join(
                [self.recording.name, *(file.name for file in block.files), block.name]
            )
            units = self.units[self.starts[i] : self.starts[i + 1]]
            ranges = _Ranges(units, self.n_voxels)
            filled = np.zeros(block.n_trials, dtype=np.int64)
            partial = self._raw(i).with_suffix(".partial")
            with partial.open("wb", buffering=0) as file:
                for part in block.read():
                    values = _checked_part(part, block, self.n_voxels, where)
                    ranges.add(values, part.first_trial, part.first_voxel)
                    self._write(file, self._stored(values, part, where), part)
                    filled[part.first_trial : part.first_trial + len(values)] += values.shape[1]
                    yield values.size * self.dtype.itemsize
                os.fsync(file.fileno())
            if (filled != self.n_voxels).any():
                trial = int(np.flatnonzero(filled != self.n_voxels)[0])
                raise UbrainError(
                    f"{where}: trial {trial} has {filled[trial]} responses, expected"
                    f" {self.n_voxels}"
                )
            partial.replace(self._raw(i))
            temporary = self.folder / "ranges.partial"
            with temporary.open("wb") as stream:
                np.save(stream, ranges.array)
            temporary.replace(self._ranges(i))

    def _stored(self, values: NDArray[np.float32], part: Part, where: str) -> NDArray:
        limit = np.finfo(self.dtype).max
        lost = (values > limit) | (values < -limit)
        if lost.any() and (lost & np.isfinite(values)).any():
            trial, voxel = np.argwhere(lost & np.isfinite(values))[0]
            self.refuse(
                f"{where}: the response of voxel {part.first_voxel + voxel} in trial"
                f" {part.first_trial + trial} is {values[trial, voxel]:g}, too large for float16;"
                " use --dtype float32"
            )
        return values.astype(self.dtype, copy=False)

    def _write(self, file: Any, stored: NDArray, part: Part) -> None:
        width = self.n_voxels * self.dtype.itemsize
        begin = part.first_trial * width + part.first_voxel * self.dtype.itemsize
        rows = [stored] if stored.shape[1] == self.n_voxels else stored
        for number, row in enumerate(rows):
            file.seek(begin + number * width)
            data = np.ascontiguousarray(row).data.cast("B")
            while data:
                data = data[file.write(data) :]

    def usable(self, bad_voxels: str = "drop") -> tuple[NDArray[np.bool_], list[str]]:
        """Which voxels can be used, (n_voxels,), and what is said about the others.

        Raises
        ------
        UbrainError
            If none can be used, if the type of the stored responses rounds them off, or if there
            are others and `bad_voxels` is "refuse".
        """
        endless, constant, coarse = (np.zeros(self.n_voxels, dtype=bool) for _ in range(3))
        for low, high in self._unit_ranges():
            with np.errstate(invalid="ignore"):
                largest, spread = np.maximum(np.abs(low), np.abs(high)), high - low
                endless |= ~np.isfinite(spread)
                constant |= spread <= np.maximum(1e-6 * largest, NOTHING)
                coarse |= spread < COARSE * np.finfo(self.dtype).eps / 2 * largest
        unit = {
            "session": "in all trials of a session",
            "run": "in all trials of a run",
            "none": "in all trials",
        }
        same = f"the same number {unit[self.recording.normalise]}"
        verdict = "were dropped" if bad_voxels == "drop" else "cannot be used"
        bad = ((endless, "not a number, or infinite, in some trial"), (constant & ~endless, same))
        said = [self._list(which, f"{verdict}: {why}") for which, why in bad if which.any()]
        good: NDArray[np.bool_] = ~endless & ~constant
        if not good.any():
            self.refuse(f"{self.recording.source}: no usable voxel is left: {'; '.join(said)}")
        if said and bad_voxels == "refuse":
            raise UbrainError(
                f"{self.recording.source}: {'; '.join(said)}. Import without them with --bad-voxels"
                f" drop, which continues with what has been read, or delete {self.folder}"
            )
        if (coarse & good).sum() > 0.01 * good.sum():
            self.refuse(
                f"{self.recording.source}: {(coarse & good).sum()} voxels vary so little around a"
                f" large mean that {self.dtype} would round them off; use --dtype float32"
            )
        return good, said or [f"No voxel was dropped: all are finite, and none is {same}"]

    def _unit_ranges(self) -> Iterator[NDArray[np.float32]]:
        """Lowest and highest response of each voxel, (2, n_voxels), for each session (or run),
        which may span blocks.
        """
        left, running = np.bincount(self.units), dict[int, NDArray[np.float32]]()
        for i in range(len(self.recording.blocks)):
            units, counts = np.unique(
                self.units[self.starts[i] : self.starts[i + 1]], return_counts=True
            )
            for unit, count, (low, high) in zip(
                units, counts, np.load(self._ranges(i)).swapaxes(0, 1), strict=True
            ):
                if unit in running:
                    low, high = (
                        np.minimum(low, running[unit][0]),
                        np.maximum(high, running[unit][1]),
                    )
                running[unit] = np.stack([low, high])
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
                n = min(step, block.n_trials - start)
                offset = start * self.n_voxels * self.dtype.itemsize
                values = np.fromfile(
                    self._raw(i), self.dtype, n * self.n_voxels, offset=offset
                ).reshape(n, self.n_voxels)
                yield values if voxels.all() else values[:, voxels]

    def remove(self) -> None:
        """Delete the subject's files from the working folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def refuse(self, message: str) -> NoReturn:
        """Raise an error that the same command would meet again, so there is nothing to
        continue.
        """
        self.remove()
        raise UbrainError(message)


class _Ranges:
    """Lowest and highest response of each voxel in each session (or run) of a block; NaN if one of
    them is NaN.
    """

    def __init__(self, units: NDArray[np.int64], n_voxels: int) -> None:
        names, self.row = np.unique(units, return_inverse=True)
        self.array = np.empty((2, len(names), n_voxels), dtype=np.float32)
        self.array[0], self.array[1] = np.inf, -np.inf

    def add(self, values: NDArray[np.float32], first_trial: int, first_voxel: int) -> None:
        row, columns = (
            self.row[first_trial : first_trial + len(values)],
            slice(first_voxel, first_voxel + values.shape[1]),
        )
        for unit in np.unique(row):
            mine = values if (row == unit).all() else values[row == unit]
            low, high = self.array[0, unit, columns], self.array[1, unit, columns]
            np.minimum(low, mine.min(0), out=low)
            np.maximum(high, mine.max(0), out=high)


def _checked_part(part: Part, block: Block, n_voxels: int, where: str) -> NDArray[np.float32]:
    values = part.values
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise UbrainError(
            f"{where}: expected responses (n_trials, n_voxels), got {values.shape} {values.dtype}"
        )
    end = part.first_trial + values.shape[0], part.first_voxel + values.shape[1]
    if (
        min(part.first_trial, part.first_voxel) < 0
        or end[0] > block.n_trials
        or end[1] > n_voxels
        or not values.size
    ):
        raise UbrainError(
            f"{where}: expected responses to {block.n_trials} trials in {n_voxels} voxels, got"
            f" {values.shape} at ({part.first_trial}, {part.first_voxel})"
        )
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)


def _fingerprint(recording: Recording) -> dict[str, Any]:
    """What an unfinished import is compared with: tables as digests, files with their size and
    time.
    """
    tables = {"trials": recording.trials, "voxels": recording.voxels}
    digests = {
        name: hashlib.blake2b(t.to_csv().encode(), digest_size=8).hexdigest()
        for name, t in tables.items()
    }
    files = {file for block in recording.blocks for file in block.files}
    stats = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    return {**digests, "blocks": [[b.name, b.n_trials] for b in recording.blocks], **stats}


def read_all(stages: Sequence[Stage]) -> None:
    """Read what is not there yet, with progress."""
    sizes = (size for stage in stages for size in stage.read())
    for _ in track(sizes, sum(stage.bytes_left for stage in stages), "reading responses", size=int):
        pass
