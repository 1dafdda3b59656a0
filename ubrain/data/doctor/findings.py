"""What the doctor says: findings, and the thresholds from which on something is one."""

import tomllib
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubrain.data.doctor.sample import Sample

EXPECTED, CHANCE, SURE, ONCE = (
    8.0,
    3.0,
    6.0,
    4.5,
)  # standard deviations; see `ubrain.data.doctor.check`
LEVELS = ("error", "warning", "note")

TO_DO: dict[str, str] = tomllib.loads(  # every code, and what to do about it
    resources.files("ubrain.data.doctor").joinpath("advice.toml").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that could not be checked.

    Attributes
    ----------
    code : kind of finding, for programs.
    level : "error" (results would be wrong), "warning" (look at it) or "note".
    where : subject, and sessions, voxels or images.
    what : what was found, with the numbers.
    how_bad : the number on which the finding rests; `what` says which.
    """

    code: str
    level: str
    where: str
    what: str
    how_bad: float

    @property
    def to_do(self) -> str:
        """What to do about it."""
        return TO_DO[self.code]


def listed(names: ArrayLike, most: int = 6) -> str:
    """Names or numbers, of which only the first are shown."""
    all_names = [str(n) for n in np.asarray(names, dtype=object)]
    more = len(all_names) - most
    return ", ".join(all_names[:most]) + (f" and {more} more" if more > 0 else "")


def in_voxels(s: Sample, which: NDArray[np.bool_]) -> str:
    """A subject and some of its voxels."""
    return f"{s.name}, voxels {listed(np.flatnonzero(which))}"


def in_units(s: Sample, which: NDArray[np.int64]) -> str:
    """Sessions, or runs where responses are z-scored by run."""
    return f"{s.name}, {'runs' if s.trials.normalise == 'run' else 'sessions'} {listed(which)}"
