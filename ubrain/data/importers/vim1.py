"""vim-1 (Kay et al. 2008, Naselaris et al. 2009): two subjects at 4T, grey images, from its two
MATLAB files.
"""

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.layouts import layout, warn_absent
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    check_array,
    open_hdf5,
    read_mat,
    whole_numbers,
)
from ubrain.data.importers.recording import (
    AVERAGED,
    DEFAULTS,
    ImageArray,
    Options,
    Recording,
    array_block,
    select,
)
from ubrain.errors import UbrainError

VIM1 = layout("vim1")
N_PLACES = int(np.prod(VIM1.volume))


def import_vim1(root: str | Path, out: str | Path, options: Options = DEFAULTS) -> str:
    """Write vim-1 subjects into a crowd file.

    Parameters
    ----------
    root : folder that holds EstimatedResponses.mat and Stimuli.mat.
    out : crowd file to write (.h5).
    options : those that all importers share.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the other.
    """
    folder = Folder(root, options.follow_links)
    files = _mat_files(folder, "EstimatedResponses")
    shown, n_train = _images(_mat_files(folder, "Stimuli")[0])
    there = {
        subject: path
        for path in reversed(files)
        for subject in VIM1.subjects
        if read_mat(path, [f"roi{subject}"])
    }
    names = select(options.subjects, there, f"{folder}: EstimatedResponses.mat")
    warn_absent("responses", VIM1.subjects, there)
    recordings = [_recording(name, there[name], shown, n_train) for name in names]
    return import_recordings(recordings, out, options, {"dataset": "vim1"})


def _mat_files(folder: Folder, name: str) -> list[Path]:
    """The file of that name, and its variants such as EstimatedResponses2.mat."""
    found = [
        path
        for path in folder.glob(f"{name}*.mat")
        if re.fullmatch(rf"{name}\d*\.mat", path.name, re.IGNORECASE)
    ]
    return found or [folder.need(f"{name}.mat")]


# --- images


def _images(path: Path) -> tuple[ImageArray, int]:
    """All images, those of training before those of validation, and the number of the former."""
    train, val = _images_first(
        path,
        *(
            check_array(_need(path, name), f"{path}: {name!r}", "iuf", (None, None, None))
            for name in ("stimTrn", "stimVal")
        ),
    )
    ids = [f"vim1-train{i:04d}" for i in range(len(train))]
    ids += [f"vim1-val{i:04d}" for i in range(len(val))]
    splits = ["rest"] * len(train) + ["test"] * len(val)
    return ImageArray(_grey(path, train, val), ids, splits), len(train)


def _images_first(path: Path, train: NDArray, val: NDArray) -> tuple[NDArray, NDArray]:
    """Both as (n_images, height, width): the number of images is where the shapes differ.

    As published, images are the first axis. Somebody may have moved them to the end, and may have
    converted the file into HDF5 with Python, which does not reverse the axes as MATLAB does.
    """
    if h5py.is_hdf5(path) and not _of_matlab(path):
        train, val = train.T, val.T
    differ = [axis for axis in range(3) if train.shape[axis] != val.shape[axis]] or [0]
    if differ == [2]:
        train, val = (np.moveaxis(a, 2, 0) for a in (train, val))
    elif differ != [0]:
        raise UbrainError(
            f"{path}: expected images (n, height, width) of one size, got {train.shape} and"
            f" {val.shape}"
        )
    return train, val


def _of_matlab(path: Path) -> bool:
    """Whether MATLAB wrote this HDF5 file: by its first bytes, or the attribute of an array."""
    with open_hdf5(path) as file, path.open("rb") as start:
        return start.read(10) == b"MATLAB 7.3" or "MATLAB_class" in file["stimTrn"].attrs


def _grey(path: Path, *stacks: NDArray) -> NDArray[np.uint8]:
    """Grey images (n, height, width): the darkest value of all becomes 0, the brightest 255."""
    if all(stack.dtype == np.uint8 for stack in stacks):
        return np.concatenate(stacks)
    low, high = np.min([s.min() for s in stacks]), np.max([s.max() for s in stacks])
    if not np.isfinite([low, high]).all() or low == high:
        raise UbrainError(
            f"{path}: expected images of different, finite grey values; they go from {low} to"
            f" {high}"
        )
    grey = (
        np.rint((image - low) * (255 / (high - low))).astype(np.uint8)
        for stack in stacks
        for image in stack
    )
    return np.stack(list(grey))


# --- responses


def _recording(name: str, path: Path, shown: ImageArray, n_train: int) -> Recording:
    voxels = _voxels(name, path)
    n_val = len(shown.ids) - n_train
    train = _responses(path, f"dataTrn{name}", n_train, len(voxels))
    val = _responses(path, f"dataVal{name}", n_val, len(voxels))
    trials = pd.DataFrame({"image": np.arange(n_train + n_val), "session": 0})
    blocks = [
        array_block("training responses", train, [path]),
        array_block("validation responses", val, [path]),
    ]
    with np.errstate(invalid="ignore"):
        spread = float(np.nanmedian(train.std(0)))
    account = [
        (
            "Responses as published: averaged over the repeats of an image, whose numbers are not"
            " in the files, and z-scored (the standard deviation over the training images is"
            f" {spread:.2f}, median over voxels); nothing was scaled"
        ),
        "Images are grey: the lowest value of all images became black, the highest white",
        "Test images: the validation images",
        f"Voxels: all that the files have of the volume {' × '.join(map(str, VIM1.volume))}",
    ]
    return Recording(
        f"vim1-{name}",
        "vim-1",
        "4T",
        "volume",
        shown,
        trials,
        voxels,
        blocks,
        account,
        normalise="none",
        no_sessions=AVERAGED,
    )


def _voxels(name: str, path: Path) -> pd.DataFrame:
    """i, j, k and areas of each voxel."""
    index, codes = (
        whole_numbers(_need(path, f"{what}{name}"), f"{path}: {what}{name}").reshape(-1)
        for what in ("voxIdx", "roi")
    )
    if len(index) != len(codes):
        raise UbrainError(
            f"{path}: voxIdx{name} has {len(index)} voxels, roi{name} has {len(codes)}"
        )
    for values, low, high, what in (
        (index, 1, N_PLACES, "voxIdx"),
        (codes, 0, len(VIM1.areas) - 1, "roi"),
    ):
        if values.min() < low or values.max() > high:
            raise UbrainError(
                f"{path}: {what}{name}: expected numbers from {low} to {high}, got {values.min()}"
                f" to {values.max()}"
            )
    i, j, k = np.unravel_index(index - 1, VIM1.volume, order="F")  # as MATLAB numbers them
    return pd.DataFrame({"i": i, "j": j, "k": k, "areas": np.array(VIM1.areas)[codes]})


def _responses(path: Path, name: str, n_images: int, n_voxels: int) -> NDArray[np.float32]:
    """(n_images, n_voxels); in MATLAB it is the other way round, in some copies as here."""
    values = check_array(_need(path, name), f"{path}: {name!r}", "f", (None, None))
    if values.shape == (n_voxels, n_images):
        values = values.T
    elif values.shape != (n_images, n_voxels):
        raise UbrainError(
            f"{path}: {name!r}: expected {n_voxels} voxels × {n_images} images, got {values.shape}"
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def _need(path: Path, name: str) -> NDArray:
    content = read_mat(path, [name])
    if name not in content:
        raise UbrainError(f"{path}: {name!r} is missing")
    return content[name]
