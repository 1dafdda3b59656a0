"""Work that may be interrupted, and writes that do not fail silently.

Training, prediction to files, transfer, import, the feature cache and sweeps all keep what is done
in a work folder until it is complete. `work` opens one: for one process at a time, with the
settings it was begun with. Killed at any moment, the same command continues, and ends in the same
result; with other settings it is refused, in the same words everywhere.
"""

import io
import json
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from ubrain.errors import UbrainError
from ubrain.paths import atomic, write_text

SETTINGS, LOCK = "settings.json", "lock"
BUSY = "another process is busy with"


@contextmanager
def work(
    folder: Path, settings: Mapping[str, Any], what: str, keep: bool = False
) -> Iterator[Path]:
    """A work folder, for this process alone.

    What killed processes left half-written in it (`.*.partial`) is removed at the start.

    Parameters
    ----------
    folder : made if it is not there; removed at the end, and after an error if nothing is in it.
    settings : everything that decides the result, as plain values.
    what : is done here, in words such as "the import of nsd.h5".
    keep : leave the folder at the end, without the lock.

    Raises
    ------
    UbrainError
        If another process is at work there, the folder cannot be written, or holds work that was
        begun with other settings.
    """
    with locked(folder, what):
        same_settings(folder, settings, what)
        yield folder
        if not keep:
            empty(folder)


@contextmanager
def locked(folder: Path, what: str, wait: bool = False) -> Iterator[Path]:
    """A folder for this process alone; see `work`.

    Parameters
    ----------
    wait : for another process to be done, instead of refusing.
    """
    new = [path for path in folder.parents if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UbrainError(f"{BUSY} {what}; wait for it, or stop it") from None
    except OSError as error:
        raise UbrainError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        remove_partials(folder)
        yield folder
    finally:
        if not wait:  # others may wait for this very file
            left = {path.name for path in folder.iterdir()} if folder.exists() else set()
            if left <= {LOCK, SETTINGS}:
                (folder / SETTINGS).unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)  # last, and while it is held
            with suppress(OSError):
                for path in (folder, *new):  # those above, too, if nothing came of it
                    path.rmdir()
        lock.release()


def empty(folder: Path) -> None:
    """Remove what is in a work folder; its settings stay to the last, for who is killed here."""
    for path in [p for p in folder.iterdir() if p.name not in (LOCK, SETTINGS)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Make a file that is not there, by a function that writes to a temporary name. Of several
    processes that want it, one makes it; nothing is locked where it is there, so a cache that is
    complete may be read-only.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            remove_partials(path.parent, path.name)
            with atomic(path) as partial:
                make(partial)


def remove_partials(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written (of `name`); only for who holds the lock."""
    beside = re.compile(rf"\.+{re.escape(name)}\.\d+\.partial" if name else r"\..*\.partial")
    for path in folder.iterdir() if folder.is_dir() else ():
        if beside.match(path.name):  # also what was made beside a file half-written
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def same_settings(folder: Path, settings: Mapping[str, Any], what: str) -> None:
    """Write the settings into a work folder, or refuse it if it has others."""
    path = folder / SETTINGS
    done = {p.name for p in folder.iterdir()} - {LOCK, SETTINGS}
    if done and not path.exists():
        raise UbrainError(
            f"{folder} holds {what}, begun by an earlier version; delete it to start anew"
        )
    if not done:
        write_text(path, json.dumps(settings, indent=1))
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UbrainError(
            f"{path} cannot be read: {error}; delete {folder} to start anew"
        ) from error
    refuse_others(before, settings, what, folder)


def refuse_others(
    before: Mapping[str, Any], settings: Mapping[str, Any], what: str, folder: Path
) -> None:
    """Raise an error, naming them, if some settings are not those that `folder` was made with."""
    was, now = _flat(before), _flat(json.loads(json.dumps(settings)))
    differ = [
        f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
        for key in {**was, **now}
        if was.get(key) != now.get(key)
    ]
    if differ:
        raise UbrainError(
            f"{what} was begun with other settings ({'; '.join(differ)[:400]}). Finish it with the"
            f" same, choose another place, or delete {folder} to start anew"
        )


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings within settings by their path, such as "training.epochs"."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return found


class Sink(io.FileIO):
    """The file below HDF5, which crashes when a write fails or does not read back what it wrote.

    The first failure, Ctrl-C and the like among them, is kept for `check`; what is written from
    then on goes to memory, for HDF5 to read until it is closed.
    """

    failure: BaseException | None = None

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._unwritten: list[tuple[int, bytes]] = []
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only there signals arrive
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self._before[number] = signal.signal(number, partial(self._heard, handler))

    def _heard(self, handler: Callable[..., None], number: int, frame: FrameType | None) -> None:
        """Handle a signal, but nothing is raised where HDF5 waits for what a method gives back."""
        mine = {method.__code__ for method in (Sink.write, Sink.readinto, Sink.truncate)}
        try:
            handler(number, frame)
        except BaseException as error:
            if frame is None or frame.f_code not in mine:
                raise
            self.failure = error

    def close(self) -> None:
        """Close the file; signals are no longer its concern."""
        super().close()
        while self._before:
            signal.signal(*self._before.popitem())

    def write(self, data: Any) -> int:
        """Write all of `data`; after a failure, to memory."""
        rest = memoryview(data).cast("B")
        try:
            while rest and self.failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        if rest:
            self._unwritten.append((self.tell(), bytes(rest)))
            self.seek(len(rest), io.SEEK_CUR)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Fill all of `buffer`, with zeros where nothing was written."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        n_read = super().readinto(view)
        view[n_read:] = bytes(len(view) - n_read)
        for at, data in self._unwritten:
            low, high = max(at, start), min(at + len(data), start + len(view))
            if low < high:
                view[low - start : high - start] = data[low - at : high - at]
        self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file; after a failure, do nothing."""
        try:
            return super().truncate(size) if self.failure is None else size or 0
        except OSError as error:
            self.failure = error
            return size or 0

    def check(self) -> None:
        """Raise the failure, if there was one."""
        if self.failure is not None:
            raise self.failure


def require_space(
    path: Path, needs: int, advice: str = "free some space, or choose another disk"
) -> None:
    """Refuse to begin writing `needs` bytes to `path` if the disk has less."""
    folder = next(p for p in path.absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if needs > free:
        raise UbrainError(
            f"{path} needs about {in_bytes(needs)}, but only {in_bytes(free)} are free in {folder};"
            f" {advice}"
        )


def in_bytes(size: int) -> str:
    """A number of bytes in words, such as 1.5 GB."""
    power = min(max(len(str(size)) - 1, 0) // 3, 4)
    return f"{size / 1000**power:.{power and 1}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
