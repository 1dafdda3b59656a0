"""Numbers with their conditions: records, their JSON, and whether two runs agree on them."""

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ubrain import paths
from ubrain.errors import UbrainError

VERSIONS = ("ubrain", "torch", "timm", "numpy", "scipy", "himalaya", "nilearn")
# units of numbers that are counts: settings and sizes, the same on every machine
COUNTS = ("voxels", "subjects", "clusters", "numbers", "findings", "steps")
# Units in which a number without an interval differs between processors, by how much at most. Sums
# in another order change r in the fifth digit; R² of single voxels, and r² over a small ceiling,
# vary more. A voxel that changes its cluster moves an ARI by about 2 / n, and some change together.
MOVES = {"R2": 2e-3, "r2 / ceiling": 2e-3, "level": 5e-3, "levels": 5e-3, "degrees": 1e-2}
MOVES |= dict.fromkeys(("share", "ARI", "homogeneity", "completeness", "silhouette"), 1e-2)
NO_SUITE = "no suite"  # what numbers are of that do not say on what they were judged
# Where no embedding of the crowd fits (09), the last digit decides what matching chooses; and where
# images are shuffled, what is learnt (beginnings of conditions).
NOTHING_FITS = ("untrained", "shared function 0")
SHUFFLED = ("trained on shuffled images", "partners of ")
LEAST = 1e-3  # tolerance of r, and of every unit that is not named
LEAST_GALLERY = 20  # a share of fewer is one of subjects, areas or repetitions, not of images


@dataclass(frozen=True)
class Record:
    """One number: what it is, of whom, with its interval, and how many units it rests on."""

    name: str
    value: float
    condition: str = ""
    subject: str = "all"
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class Difference:
    """A number on which two runs do not agree; None where a run has no such number."""

    name: str
    condition: str
    subject: str
    published: float | None
    here: float | None
    tolerance: float


@dataclass(frozen=True)
class Comparison:
    """How a run compares with the published one.

    Attributes
    ----------
    n, n_agree : numbers that either has, and those on which they agree.
    largest, tolerance : of the number that comes closest to its tolerance, or exceeds it most, the
        difference and the tolerance.
    suite : one sentence if the two are not known to be of one suite, else "".
    """

    n: int
    n_agree: int
    largest: float
    tolerance: float
    differences: list[Difference] = field(default_factory=list)
    suite: str = ""

    def __str__(self) -> str:
        return (
            f"{self.n_agree} of {self.n} agree (largest difference {self.largest:.2g}, tolerance"
            f" {self.tolerance:.2g}){self.suite and f'; {self.suite}'}"
        )


def write_results(
    path: Path, notebook: str, records: Sequence[Record], facts: dict[str, Any]
) -> None:
    """Write the numbers of a notebook, with what they were made with.

    Raises
    ------
    UbrainError
        If two records have the same name, condition and subject.
    """
    keys = [(r.name, r.condition, r.subject) for r in records]
    twice = {k for k in keys if keys.count(k) > 1}
    if twice:
        raise UbrainError(f"{notebook}: recorded more than once: {sorted(twice)[0]}")
    rows = [{k: _finite(v) for k, v in asdict(r).items()} for r in records]
    document = {
        "notebook": notebook,
        **facts,
        "commit": commit(),
        "versions": versions(),
        "results": rows,
    }
    paths.write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a run: notebook -> document.

    Raises
    ------
    UbrainError
        If there are none.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UbrainError(f"no results in {folder}; `ubrain run` makes them")
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in files}


def published(run: str, notebook: str) -> dict[str, Any] | None:
    """The committed results of a notebook; None if this run has none."""
    path = paths.run_dir(run) / f"{notebook}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def tolerance(record: Mapping[str, Any]) -> float:
    """By how much value, low and high of a number may differ between machines.

    It follows from what the number is: nothing for counts; a twentieth of the interval where there
    is one, half of it where there is nothing to choose by or to learn; what sums in another order
    can do to its unit; for the stability of clusters, one run that ends in another optimum; and for
    shares of images one image, since nothing lies between. A difference of two shares has two.
    """
    unit, n = record["unit"], record["n"]
    if unit == "images":  # interpolated on a curve, flat where the number is large
        return max(1, 0.02 * abs(record["value"] or 0))
    if record["name"] == "cluster_size":  # a voxel leaves one cluster and joins another
        return max(2, 0.01 * abs(record["value"] or 0))
    if unit in COUNTS:
        return 0
    if record["name"] == "stability" and n:  # mean over all pairs of n runs, of which a run is in 2
        return max(2 / n * (1 - record["value"]), MOVES["ARI"])
    if record["low"] is None or record["high"] is None:
        return MOVES.get(unit, LEAST)
    chance = record["name"].endswith("(ours)") and record["condition"] in NOTHING_FITS
    chance = chance or record["condition"].startswith(SHUFFLED)
    width = (0.5 if chance else 0.05) * (record["high"] - record["low"])
    if unit == "share":
        images = 2 if is_difference(record["name"]) else 1
        return max(width, images / n if n and n >= LEAST_GALLERY else images * MOVES["share"])
    return max(width, LEAST)


def is_difference(name: str) -> bool:
    """Whether a number is one minus another, which has a sign and, of shares, is in points."""
    return name.startswith(("gain", "difference", "ours_minus"))


def compare(published: Mapping[str, Any], here: Mapping[str, Any]) -> Comparison:
    """Compare two results of a notebook number by number, each with its `tolerance`.

    A number that only one of them has, or that rests on another n, is a difference.
    """
    old, new = ({_key(r): r for r in d["results"]} for d in (published, here))
    differences, worst = [], (0.0, 0.0, 0.0)
    keys = list(dict.fromkeys([*old, *new]))
    for key in keys:
        allowed = tolerance(old.get(key) or new[key])
        was, now = (d.get(key) for d in (old, new))
        gaps = (
            [_gap(was[k], now[k]) for k in ("value", "low", "high")] if was and now else [math.inf]
        )
        if was and now and was["n"] != now["n"]:
            gaps.append(math.inf)
        gap = max(gaps)
        excess = gap / allowed if allowed else math.inf if gap else 0.0
        worst = max(worst, (excess, gap, allowed))
        if gap > allowed * (1 + 1e-9):  # a difference of exactly one image agrees
            value, other = (r["value"] if r else None for r in (was, now))
            differences.append(Difference(*key, value, other, allowed))
    suites = [suite_name(d) for d in (published, here)]
    suite = f"published numbers of {suites[0]}, here of {suites[1]}: not comparable"
    same = suites[0] == suites[1] != NO_SUITE
    n_agree = len(keys) - len(differences)
    return Comparison(len(keys), n_agree, *worst[1:], differences, "" if same else suite)


def suite_name(document: Mapping[str, Any], world: bool = True) -> str:
    """The suite that the numbers of a document are of, in words; without its digest, which tells
    worlds of one kind apart, unless `world`.
    """
    if not (known := document.get("suite")):
        return NO_SUITE
    digest = f" ({known['digest']})" if world else ""
    return f"suite {known['name']} v{known['version']}{digest}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
    }


def commit() -> str:
    """Commit of the project, with + if files have changed since; "" outside a git checkout."""
    return git("describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*") or ""


def git(*words: str) -> str | None:
    """What git answers on the project; None if it fails, as outside a checkout."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=paths.project_root(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _finite(value: Any) -> Any:
    """Values that JSON knows: NaN becomes null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _key(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["name"], record["condition"], record["subject"]


def _gap(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    return abs(a - b)
