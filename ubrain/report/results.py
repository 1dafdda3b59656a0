"""Numbers with their conditions: records, their JSON, and the scoreboard against the paper."""

import json
import math
import platform
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from ubrain.errors import UbrainError
from ubrain.paths import project_root, write_text

VERSIONS = ("ubrain", "torch", "timm", "numpy", "scipy", "himalaya", "nilearn")
# units of numbers that are shown without decimals
COUNTED = ("images", "voxels", "subjects", "clusters", "seconds")
Claim = Mapping[str, str]
Documents = Mapping[str, Mapping[str, Any]]  # notebook -> what `read_results` read
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
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a run: notebook -> document.

    Raises
    ------
    UbrainError
        If there are none.
    """
    found = {
        p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))
    }
    if not found:
        raise UbrainError(f"no results in {folder}; make them with `make reproduce`")
    return found


def same_numbers(
    old: dict[str, Any], new: dict[str, Any], tolerance: float = 1e-6
) -> tuple[int, int]:
    """How many records of `new` are in `old` with the same value, low and high; and how many
    records there are.
    """
    known = {_key(r): r for r in old["results"]}
    same = sum(
        _key(r) in known
        and all(_close(r[k], known[_key(r)][k], tolerance) for k in ("value", "low", "high", "n"))
        for r in new["results"]
    )
    return same, max(len(old["results"]), len(new["results"]))


def scoreboard(folder: Path) -> str:
    """Markdown table: claim, paper, authors' run, here. What is not known stays blank.

    Runs of other seeds and on recordings, as `paper.toml` names them, are shown beside if they are
    in the folder beside.

    Raises
    ------
    UbrainError
        If the run has no results.
    """
    documents, paper = read_results(folder), paper_claims()
    others = [folder.with_name(f"{folder.name}-seed{seed}") for seed in paper["runs"]["seeds"]]
    seeds = [documents, *(read_results(f) for f in others if any(f.glob("*.json")))]
    real = folder.with_name(paper["runs"]["recordings"])
    columns: dict[str, Callable[[Claim], str]] = {
        "claim": lambda claim: claim["text"],
        "figure": lambda claim: claim["figure"],
        "paper": lambda claim: claim["paper"],
        "authors' run": lambda claim: claim["run"],
        f"here: {folder.name}": lambda claim: _here(claim, documents),
    }
    if len(seeds) > 1:
        columns["over seeds"] = lambda claim: _over_seeds(claim, seeds)
    note = _note(documents, paper)
    if any(real.glob("*.json")) and real != folder:
        recordings = read_results(real)
        columns[f"here: {real.name}"] = lambda claim: _here(claim, recordings)
        note += f" {real.name}: {paper['runs']['recordings_are']}."
    columns["notebook"] = lambda claim: _link(claim, folder)
    rows = [
        list(columns),
        ["---"] * len(columns),
        *([c(claim) for c in columns.values()] for claim in paper["claim"]),
    ]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", note])


def paper_claims() -> dict[str, Any]:
    """`paper.toml`: every claim of the paper, where it is checked here, and what is known of the
    authors' numbers.
    """
    return tomllib.loads(
        resources.files("ubrain").joinpath("paper.toml").read_text(encoding="utf-8")
    )


def unknown_claims(folder: Path) -> list[str]:
    """Claims of the paper for which a run has no number."""
    documents = read_results(folder)
    return [claim["text"] for claim in paper_claims()["claim"] if not _here(claim, documents)]


def write_scoreboard(readme: Path, text: str, check: bool = False) -> None:
    """Put the scoreboard between its markers in a README; with `check`, only make sure that it is
    there.

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
        raise UbrainError(
            f"{readme}: the scoreboard is stale; run `make report` and commit the README"
        )
    if not check:
        write_text(readme, new)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
    }


def commit() -> str:
    """Commit of the project, with + if files have changed since; "" outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=project_root(),
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def _records(claim: Claim, documents: Documents) -> list[dict[str, Any]]:
    """The numbers that a claim rests on: those of single subjects, or the one over all of them if
    there are no others.
    """
    results = documents.get(claim["notebook"], {"results": []})["results"]
    wanted = claim["name"], claim["condition"]
    found = [r for r in results if (r["name"], r["condition"]) == wanted and r["value"] is not None]
    return [r for r in found if r["subject"] != "all"] or found


def _here(claim: Claim, documents: Documents) -> str:
    """What a run has to say on a claim; "" if nothing."""
    found = _records(claim, documents)
    if not found:
        return ""
    unit, values = _unit(found[0]), [r["value"] for r in found]
    if found[0]["subject"] == "all":
        low, high = (found[0][end] for end in ("low", "high"))
        text = _show(values[0], unit)
        return (
            text
            if low is None or high is None
            else f"{text} (95 % interval {_show(low, unit)} … {_show(high, unit)})"
        )
    text = (
        f"{_show(_median(values), unit)} ({_show(min(values), unit)} … {_show(max(values), unit)}),"
        f" {_count(found)}"
    )
    if claim.get("also") == "intervals":
        above = sum(r["low"] is not None and r["low"] > 0 for r in found)
        below = sum(r["high"] is not None and r["high"] < 0 for r in found)
        text += (
            f"; 95 % interval above 0 in {above} of {len(found)}"
            + f", below in {below}" * bool(below)
        )
    if claim.get("also") == "chance":
        galleries = sorted({r["n"] for r in found})
        chance = " / ".join(_show(int(claim["name"][3:]) / n, unit) for n in galleries)
        text += f"; gallery {' / '.join(map(str, galleries))}, chance {chance}"
    return text


def _count(found: Sequence[dict[str, Any]]) -> str:
    return f"{len(found)} subject{'s' if len(found) > 1 else ''}"


def _over_seeds(claim: Claim, runs: Sequence[Documents]) -> str:
    """Range over simulated worlds of the median over subjects, and how many worlds have it."""
    records = [found for documents in runs if (found := _records(claim, documents))]
    middles = [_median([r["value"] for r in found]) for found in records]
    if len(middles) < 2:
        return ""
    unit = _unit(records[0][0])
    return f"{_show(min(middles), unit)} … {_show(max(middles), unit)}, {len(middles)} seeds"


def _link(claim: Claim, folder: Path) -> str:
    """The executed notebook, as a link from the top of the project."""
    file = folder / f"{claim['notebook']}.ipynb"
    return (
        f"[{file.stem[:2]}]({folder.parent.name}/{folder.name}/{file.name})"
        if file.exists()
        else ""
    )


def _note(documents: Documents, paper: dict[str, Any]) -> str:
    first = next(iter(documents.values()))
    sources = "; ".join(f"*{what}*: {text}" for what, text in paper["sources"].items())
    return (
        f"Here: {'simulated crowd' if first['simulated'] else first['crowd']}, profile"
        f" {first['profile']}, seed {first['seed']}, median over subjects, range over subjects in"
        " brackets, unless the row says otherwise. Numbers from different data cannot be compared:"
        " read along the claims, not along the columns. *Over seeds*: the smallest and the largest"
        " of this number over simulated worlds. A blank is a number that is not known, not run, or"
        f" does not exist for these data. Sources: {sources}."
    )


def _unit(record: Mapping[str, Any]) -> str:
    """The unit, in which a difference of shares is one of percentage points."""
    return (
        "points"
        if record["unit"] == "share" and record["name"].startswith(("gain", "difference"))
        else record["unit"]
    )


def _show(value: float, unit: str) -> str:
    if unit in ("share", "points"):
        return f"{100 * value:.1f} {'%' if unit == 'share' else 'points'}"
    return f"{value:.0f}" if unit in COUNTED else f"{value:.3f}"


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
