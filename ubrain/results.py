"""Numbers with their conditions: records, their JSON, and the scoreboard against the paper."""

import json
import math
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from ubrain.errors import UbrainError
from ubrain.paths import project_root, write_text

VERSIONS = ("ubrain", "torch", "timm", "numpy", "scipy", "himalaya", "nilearn")
START, END = "<!-- scoreboard:start -->", "<!-- scoreboard:end -->"


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


def write_results(path: Path, notebook: str, records: Sequence[Record], facts: dict[str, Any]) -> None:
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
    document = {"notebook": notebook, **facts, "commit": commit(), "versions": versions(), "results": rows}
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a run: notebook -> document."""
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}


def same_numbers(old: dict[str, Any], new: dict[str, Any], tolerance: float = 1e-6) -> tuple[int, int]:
    """How many records of `new` are in `old` with the same value, low and high; and how many records there are."""
    known = {_key(r): r for r in old["results"]}
    same = sum(
        _key(r) in known and all(_close(r[k], known[_key(r)][k], tolerance) for k in ("value", "low", "high", "n"))
        for r in new["results"]
    )
    return same, max(len(old["results"]), len(new["results"]))


def scoreboard(folder: Path) -> str:
    """Markdown table: claim, paper, authors' run, here. What is not known stays blank.

    Raises
    ------
    UbrainError
        If the run has no results.
    """
    documents = read_results(folder)
    if not documents:
        raise UbrainError(f"no results in {folder}; make them with `make reproduce`")
    paper = tomllib.loads(resources.files("ubrain").joinpath("paper.toml").read_text(encoding="utf-8"))
    lines = [
        f"| claim | figure | paper | authors' run | here: {folder.name} |",
        "|---|---|---|---|---|",
        *(_claim_row(claim, documents, folder) for claim in paper["claim"]),
    ]
    first = next(iter(documents.values()))
    sources = "; ".join(f"*{what}*: {text}" for what, text in paper["sources"].items())
    note = (f"Here: {'simulated crowd' if first['simulated'] else first['crowd']}, profile {first['profile']}, seed "
            f"{first['seed']}, median over subjects unless the row says otherwise, range over subjects in brackets. "
            f"Numbers from different data cannot be compared: read along the claims, not along the columns. "
            f"A blank is a number that we do not know. Sources: {sources}.")  # fmt: skip
    return "\n".join([*lines, "", note])


def write_scoreboard(readme: Path, text: str, check: bool = False) -> None:
    """Put the scoreboard between its markers in a README; with `check`, only make sure that it is there.

    Raises
    ------
    UbrainError
        If the markers are missing, or with `check` if the README is stale.
    """
    old = readme.read_text(encoding="utf-8")
    if old.count(START) != 1 or old.count(END) != 1 or old.index(START) > old.index(END):
        raise UbrainError(f"{readme}: expected the markers {START} and {END} once each")
    before, rest = old.split(START)
    new = f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}"
    if check and new != old:
        raise UbrainError(f"{readme}: the scoreboard is stale; run `make report` and commit the README")
    if not check:
        write_text(readme, new)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}}


def commit() -> str:
    """Commit of the project, with + if files have changed since; "" outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=project_root(), capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def _claim_row(claim: dict[str, str], documents: dict[str, dict[str, Any]], folder: Path) -> str:
    document = documents.get(claim["notebook"])
    found = [r for r in document["results"] if (r["name"], r["condition"]) == (claim["name"], claim["condition"])
             ] if document else []  # fmt: skip
    subjects = [r["value"] for r in found if r["subject"] != "all" and r["value"] is not None]
    here = ""
    if subjects:
        unit = found[0]["unit"]
        low, middle, high = (_show(v, unit) for v in (min(subjects), _median(subjects), max(subjects)))
        here = f"{middle} ({low} … {high}), {len(subjects)} subjects"
        if claim["name"].startswith("gain"):
            above = sum(r["low"] is not None and r["low"] > 0 for r in found if r["subject"] != "all")
            here += f"; 95 % interval above 0 in {above} of {len(subjects)}"
        if claim["name"].startswith("top"):
            galleries = sorted({r["n"] for r in found if r["subject"] != "all"})
            chance = " / ".join(_show(int(claim["name"][3:]) / n, unit) for n in galleries)
            here += f"; gallery {' / '.join(map(str, galleries))}, chance {chance}"
    return f"| {claim['text']} | {claim['figure']} | {claim['paper']} | {claim['run']} | {here} |"


def _show(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3f}"


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _finite(value: Any) -> Any:
    """Values that JSON knows: NaN becomes null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _key(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["name"], record["condition"], record["subject"]


def _close(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
