"""Small files of each dataset, as its authors publish them, what is in them, and how they can be
damaged: what `test_conformance.py` and `fuzz.py` hold every importer to.
"""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from ubrain.data.importers import BUILT_IN, Options

EXACT = Options(dtype="float32", val_fraction=0.2)
Damages = Mapping[str, tuple[Callable[[Any], object], str]]  # what is done, what the error says


class Truth(NamedTuple):
    """What a crowd file must have of a subject: image and response of each trial, (n_trials,) and
    (n_trials, n_voxels), as stored; its test images; and the unit within which it is z-scored.
    """

    shown: list[str]
    values: np.ndarray
    test: set[str]
    normalise: str = "session"
    units: np.ndarray | None = None  # number of the session or run of each trial; None: not known
    dropped: int = 0  # voxels that cannot be used


class Dataset:
    """A folder as one gets it; subclasses write the files."""

    root: Path

    def at(self, root: Path) -> "Dataset":
        """The same in another folder, into which the files have been copied."""
        other = copy.copy(self)
        other.root = root
        return other

    def file(self, name: str) -> Path:
        """A place to write to."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def truth(self) -> dict[str, Truth]:
        """What is published of each subject, by its name in the crowd file."""
        raise NotImplementedError

    def pixels_of(self, image_id: str) -> np.ndarray:
        """(height, width, 3) of an image of the crowd file."""
        raise NotImplementedError


@dataclass(frozen=True)
class Form:
    """A form in which a dataset is handed out.

    Parameters
    ----------
    make : writes it into a folder that is not there.
    run : the importer: (root, out, options, **options of its own).
    more : options of its own that this form needs.
    needed : files without which it is refused, by name.
    link : a file that may be a link.
    checked : a file with checksums.
    sessions : whether it is known which trials are of one session.
    damages : what is refused, and the message.
    options : options that make no sense, and the message.
    """

    make: Callable[[Path], Dataset]
    run: Callable[..., str]
    more: Callable[[Path], dict[str, Any]] = lambda root: {}
    needed: tuple[str, ...] = ()
    link: str = ""
    checked: str = ""
    sessions: bool = True
    damages: Damages = field(default_factory=dict)
    options: tuple[tuple[dict[str, Any], str], ...] = ()
    command: str = ""

    def act(self, root: Path, out: Path, options: Options = EXACT, **more: Any) -> str:
        """Import it."""
        return self.run(root, out, options, **{**self.more(root), **more})


def forms() -> dict[str, Form]:
    """All forms of all datasets."""
    modules = [import_module(f"published.{name}") for name in BUILT_IN]
    return {name: form for module in modules for name, form in module.FORMS.items()}


# --- damage


def cut(path: Path) -> None:
    """As if a download had stopped."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def web_page(path: Path) -> None:
    """What some servers send instead of a file."""
    path.write_text("<html>Access denied</html>")


def flip(path: Path, at: float = 0.5, n: int = 1) -> None:
    """Change n bytes."""
    data = bytearray(path.read_bytes())
    place = int(len(data) * at)
    data[place : place + n] = bytes(byte ^ 0xFF for byte in data[place : place + n])
    path.write_bytes(data)


def move_out(path: Path, root: Path) -> None:
    """A link out of the dataset's folder in place of a file."""
    outside = root.parent / f"outside-{path.name}"
    os.rename(path, outside)
    path.symlink_to(outside)


def rewrite(path: Path, **arrays: Any) -> None:
    """An HDF5 file of these arrays alone."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def links_within(path: Path) -> None:
    """An HDF5 file all of whose content is elsewhere."""
    hidden = path.with_name(f"hidden{path.suffix}.bak")
    os.rename(path, hidden)
    with h5py.File(hidden) as before, h5py.File(path, "w") as file:
        for name in before:
            file[name] = h5py.ExternalLink(hidden.name, name)
