"""What is known of each dataset, as data (layouts.toml), and what several importers do alike."""

import tomllib
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubrain.data.importers.read import Volume, check_array, load_npy, load_npz, open_volume
from ubrain.errors import UbrainError
from ubrain.progress import log


@cache
def _layouts() -> dict[str, dict[str, object]]:
    text = resources.files(__package__).joinpath("layouts.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def layout(dataset: str) -> SimpleNamespace:
    """The entries of a dataset in layouts.toml."""
    return SimpleNamespace(**_layouts()[dataset])


def check_choice(option: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a value that an option does not have."""
    if value not in allowed:
        raise UbrainError(f"--{option} {value}: expected one of {', '.join(allowed)}")


def warn_absent(what: str, expected: Iterable[str], there: Collection[str]) -> None:
    """Say which subjects of a dataset are not there."""
    if absent := [name for name in expected if name not in there]:
        log.warning("no %s of %s", what, ", ".join(absent))


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers in words: 1-3, 5."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and ends[-1][-1] == number - 1:
            ends[-1][1:] = [number]
        else:
            ends.append([number])
    return ", ".join("-".join(map(str, span)) for span in ends)


def chosen_sessions(
    subject: str, wanted: Sequence[int] | None, there: Collection[int]
) -> list[int]:
    """Sessions that are meant: all, or those that are asked for, which must be there."""
    if wanted and (absent := [s for s in wanted if s not in there]):
        raise UbrainError(
            f"{subject}: no responses of session {spans(absent)}; there are sessions"
            f" {spans(sorted(there))}"
        )
    return list(wanted or sorted(there))


def join_areas(n_voxels: int, found: Iterable[tuple[int, str]]) -> list[str]:
    """Areas of each voxel, each once, joined by commas; from pairs of voxel and area."""
    names: list[dict[str, None]] = [{} for _ in range(n_voxels)]
    for voxel, name in found:
        names[voxel][name] = None
    return [",".join(areas) for areas in names]


def ncsnr_of_ceiling(percent: NDArray, share: float, where: object) -> NDArray[np.float64]:
    """ncsnr from a published noise ceiling, NaN where that is not finite.

    The ceiling is 100 · ncsnr² / (ncsnr² + share) percent, where `share` is the mean over images of
    1 / repeats that were averaged (Allen et al. 2022).

    Raises
    ------
    UbrainError
        If it is not in percent.
    """
    values = percent.astype(np.float64)
    known = values[np.isfinite(values)]
    if known.size and (known.min() < 0 or known.max() > 100.001 or 0 < known.max() <= 1):
        raise UbrainError(
            f"{where}: expected percent from 0 to 100, got {known.min():g} to {known.max():g}"
        )
    part = np.minimum(np.where(np.isfinite(values), values, np.nan) / 100, 0.999)
    return np.asarray(np.sqrt(share * part / (1 - part)))


def npy_array(path: Path, kinds: str, shape: Sequence[int | None]) -> Any:
    """The array of a .npy file, mapped; kinds and shape as in `check_array`."""
    return check_array(load_npy(path), str(path), kinds, shape)


def npz_array(path: Path, name: str, kinds: str, shape: Sequence[int | None]) -> Any:
    """An array of a .npz file; kinds and shape as in `check_array`."""
    return check_array(load_npz(path, name), f"{path}: {name!r}", kinds, shape)


def open_betas(path: Path, kinds: str, shape: Sequence[int | None]) -> Volume:
    """Betas in a NIfTI or MGH image; kinds and shape as in `check_array`.

    Raises
    ------
    UbrainError
        If it is not what is expected, or its header scales the numbers: no published one does.
    """
    image: Volume = check_array(open_volume(path), str(path), kinds, shape)
    if image.scale != (1, 0):
        raise UbrainError(
            f"{path}: its header scales the numbers by {image.scale[0]:g}; the published betas are"
            " not scaled, so somebody has changed this file"
        )
    return image
