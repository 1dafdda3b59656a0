"""Where things lie: the project's folders, the cache, and files that appear only when complete."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from ubrain.errors import UbrainError

USED = "UBRAIN_USED"
MOST_NAME = 200  # bytes of a file name; what is written beside it has a longer one


def project_root() -> Path:
    """The nearest folder upwards with `notebooks/` and `pyproject.toml`; else this one."""
    here = Path.cwd()
    folders = (here, *here.parents)
    return next(
        (f for f in folders if (f / "notebooks").is_dir() and (f / "pyproject.toml").is_file()),
        here,
    )


def cache_root() -> Path:
    """Folder of what can be computed again: `$UBRAIN_CACHE`, or `.cache` in the project."""
    return Path(os.environ.get("UBRAIN_CACHE") or project_root() / ".cache")


def note_use(path: Path) -> None:
    """Note that this process has read something of the cache, in the file `$UBRAIN_USED`, if that
    is set: so a pack knows what it has to hold.
    """
    if listing := os.environ.get(USED):
        with open(listing, "a", encoding="utf-8") as file:
            file.write(f"{path.relative_to(cache_root()).as_posix()}\n")


def notebooks_dir() -> Path:
    """Folder of the notebooks."""
    return project_root() / "notebooks"


def run_dir(run: str) -> Path:
    """Folder of the executed notebooks and numbers of one run, such as `simulated-fast`."""
    return project_root() / "papermill_runs" / run


def figure_dir(run: str) -> Path:
    """Folder of the figures of one run."""
    return project_root() / "figures" / run


def regular(path: Path, limit: int | None = None) -> int:
    """Bytes of a file of anybody's, before it is opened: a pipe or a device could keep its reader
    for ever. An error if it is not there, may not be read, is no file, or has more than `limit`.
    """
    try:
        found = path.stat()
        if not os.access(path, os.R_OK):
            raise PermissionError("Permission denied")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UbrainError(f"{path} cannot be read: {reason}") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise UbrainError(f"{path} is {what}; expected a file")
    if limit is not None and found.st_size > limit:
        raise UbrainError(f"{path} has {found.st_size} bytes; expected at most {limit}")
    return found.st_size


def open_regular(path: Path, limit: int | None = None) -> BufferedReader:
    """Open a file of anybody's for reading; see `regular`."""
    regular(path, limit)
    return path.open("rb")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name at the end, unless there was an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_out(out: Path, folder: bool = False) -> None:
    """Refuse a file, or a folder, that cannot be written, before the work; nothing is written.

    Raises
    ------
    UbrainError
        If something else has the name, or there is no folder above it that can be written into.
    """
    if len(os.fsencode(out.name)) > MOST_NAME:
        raise UbrainError(f"the name of {out} is too long; choose a shorter one")
    if out.exists() and out.is_dir() != folder:
        is_what = "no folder; expected one" if folder else "a folder; expected the name of a file"
        raise UbrainError(f"{out} is {is_what} to write")
    places = [out] if folder else []
    above = next(p for p in (*places, *out.absolute().parents) if p.exists())
    if not above.is_dir():
        raise UbrainError(f"{out} cannot be written: {above} is no folder")
    if not os.access(above, os.W_OK):
        raise UbrainError(f"{out} cannot be written: no right to write into {above}")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never half of it."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_name(name: str, what: str = "subject") -> str:
    """A name that can be an HDF5 group, a parameter of the encoder and part of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UbrainError(f"{what} name {name!r}: expected up to 64 letters, digits, '_' or '-'")
    return name
