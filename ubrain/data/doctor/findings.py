"""What the doctor says: findings, and the thresholds from which on something is one."""

import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain.data.doctor.sample import Sample

EXPECTED, CHANCE, SURE, ONCE = 8.0, 3.0, 6.0, 4.5  # standard deviations; see `ubrain.data.doctor`
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


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if there are errors, 1 if there are warnings, else 0."""
    return max((2 - LEVELS.index(f.level) for f in findings), default=0)


def table(findings: Iterable[Finding]) -> pd.DataFrame:
    """The findings as a table, one a row; for notebooks."""
    rows = [asdict(f) | {"to_do": f.to_do} for f in findings]
    return pd.DataFrame(rows, columns=[*Finding.__dataclass_fields__, "to_do"])


def as_json(findings: Iterable[Finding]) -> str:
    """The findings as a JSON list of objects with the columns of `table`."""
    return str(table(findings).to_json(orient="records", indent=1, force_ascii=False))


def report(findings: list[Finding]) -> str:
    """The findings as text: how many, and for each what was found, where, and what to do."""
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    lines = [", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items())]
    for f in findings:
        lines += [
            f"{f.level:<8} {f.code} | {f.where}",
            f"         {f.what}",
            f"         to do: {f.to_do}",
        ]
    return "\n".join(lines)


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
