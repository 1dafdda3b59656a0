"""Files as their authors publish them -> crowd file; one file per dataset.

An importer is a function `(root, out, options, **own) -> str`. Those of this package are listed
here, `import_<name>` of the module of that name; those of other installed packages are their entry
points in the group `ubrain.importers`. What one is written with can be imported from here
(docs/own_importer.md).
"""

import inspect
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ubrain.errors import UbrainError as UbrainError

if TYPE_CHECKING:
    from ubrain.data.importers.pipeline import import_recordings as import_recordings
    from ubrain.data.importers.read import Folder as Folder
    from ubrain.data.importers.read import hdf5_array as hdf5_array
    from ubrain.data.importers.read import load_npy as load_npy
    from ubrain.data.importers.read import open_hdf5 as open_hdf5
    from ubrain.data.importers.read import open_volume as open_volume
    from ubrain.data.importers.read import read_lines as read_lines
    from ubrain.data.importers.read import read_mat as read_mat
    from ubrain.data.importers.read import read_table as read_table
    from ubrain.data.importers.read import read_volume as read_volume
    from ubrain.data.importers.recording import Block as Block
    from ubrain.data.importers.recording import ImageArray as ImageArray
    from ubrain.data.importers.recording import ImageFiles as ImageFiles
    from ubrain.data.importers.recording import Options as Options
    from ubrain.data.importers.recording import Part as Part
    from ubrain.data.importers.recording import Recording as Recording
    from ubrain.data.importers.recording import array_block as array_block
    from ubrain.data.importers.recording import open_images as open_images
    from ubrain.data.importers.recording import select as select

GROUP = "ubrain.importers"
BUILT_IN = {
    "nsd": "Natural Scenes Dataset (7T): folders nsddata, nsddata_betas and nsddata_stimuli.",
    "algonauts": "Algonauts 2023 challenge: NSD on fsaverage, from its folders subj01, subj02, ...",
    "ube": "Files of the Universal Brain Encoder's authors: fmri_v2.npz and nsd_images_224.npy.",
    "bold5000": "BOLD5000 (3T): release 2 with stimuli and masks of areas, or areas of release 1.",
    "god": "Generic Object Decoding (3T): Subject1.h5, .mat or the like, or sbj_1.npz, and images.",
    "vim1": "vim-1 (4T): EstimatedResponses.mat and Stimuli.mat.",
    "things": "THINGS-fMRI (3T): sub-01_ResponseData.h5 and its two tables, and images of THINGS.",
    "nod": "Natural Object Dataset (3T): ciftify's _beta.dscalar.nii of each run, and images.",
    "laion": "LAION-fMRI (7T): folders derivatives and stimuli, in either of its two layouts.",
    "mosaic": "MOSAIC: sub-01_NSD.hdf5 and the like, or merged files, and their images.",
    "rdm": "Dissimilarities (RDMs) of people, as in Algonauts 2019: patterns of their geometry.",
    "bids": "Anybody's single-trial betas: BIDS derivatives with tables of trials, or GLMsingle.",
}
_READ = (
    "Folder hdf5_array load_npy open_hdf5 open_volume read_lines read_mat read_table read_volume"
)
_RECORDING = "Block ImageArray ImageFiles Options Part Recording array_block open_images select"
_HOME = {
    "import_recordings": "pipeline",
    **dict.fromkeys(_READ.split(), "read"),
    **dict.fromkeys(_RECORDING.split(), "recording"),
}


@dataclass(frozen=True)
class Importer:
    """What the command line knows of an importer before it is used.

    Parameters
    ----------
    name : of the command, `ubrain import NAME`.
    target : where the function is, "package.module:name".
    about : one line for the list of commands.
    package : that it comes with, and its version; nothing: this one.
    """

    name: str
    target: str
    about: str
    package: str = ""

    def load(self) -> Callable[..., str]:
        """The function; whatever its module raises when it is imported goes through."""
        module, _, name = self.target.partition(":")
        function: Callable[..., str] = getattr(import_module(module), name)
        found = list(inspect.signature(function).parameters)
        if found[:3] != ["root", "out", "options"]:
            raise TypeError(f"its first parameters are {found[:3]}, expected root, out, options")
        return function


def built_in() -> list[Importer]:
    """The importers of this package."""
    return [
        Importer(name, f"{__name__}.{name}:import_{name}", about)
        for name, about in BUILT_IN.items()
    ]


def of_other_packages() -> dict[str, Importer]:
    """Importers of other installed packages by name; nothing of them is imported.

    One of which the name is taken, or is none for a command, is left out with a warning.
    """
    return _of_other_packages(tuple(sys.path))


@cache
def _of_other_packages(_path: tuple[str, ...]) -> dict[str, Importer]:
    from importlib.metadata import distributions

    found = dict[str, Importer]()
    for package in distributions():
        try:
            points = [p for p in package.entry_points if p.group == GROUP]
            origin = f"{package.name} {package.version}" if points else ""
        except Exception as error:  # whatever is wrong with a package, others can be used
            where = getattr(package, "_path", "an installed package")
            _warn(f"{where}: entry points cannot be read ({type(error).__name__}: {error})")
            continue
        for point in points:
            mine = Importer(point.name, point.value, f"From the package {origin}.", origin)
            taken = found.get(point.name)
            if point.name in BUILT_IN or point.name == "arrays":
                _warn(f"importer {point.name!r} of {origin} is left out: ubrain has one")
            elif not re.fullmatch(r"[A-Za-z0-9][\w-]{0,40}", point.name, re.ASCII):
                _warn(f"importer {point.name[:40]!r} of {origin} is left out: no name of a command")
            elif taken and taken.target != mine.target:
                _warn(f"importer {point.name!r} of {origin} is left out: {taken.package} has one")
            elif not taken:  # a package may be on the path twice
                found[point.name] = mine
    return found


def _warn(text: str) -> None:
    logging.getLogger("ubrain").warning("%s", text)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: the command line needs the list of names alone."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
