"""Claims as rows: what is claimed, which recorded numbers decide it, and whether they hold it.

Every file of this folder is one notebook's claims; `sources.toml` says what is known of the paper,
`questions.toml` which claims answer the README's questions. One row makes the sentence under a
notebook's title and a line of `pages`.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from operator import ge, gt, le, lt
from statistics import median
from typing import Any

from ubrain.errors import UbrainError
from ubrain.report.results import COUNTS, is_difference

Documents = Mapping[str, Mapping[str, Any]]  # notebook -> what `read_results` read
Records = Sequence[Mapping[str, Any]]
RULE = re.compile(r"(low|high|value) (>=|<=|>|<) (-?[0-9.]+|chance)")
COMPARE: dict[str, Callable[[float, float], bool]] = {">": gt, ">=": ge, "<": lt, "<=": le}
NOT_YET = "not run yet with these settings: the last cells fill this in"


@dataclass(frozen=True)
class Claim:
    """A sentence, and the recorded numbers that decide it.

    Attributes
    ----------
    id : unique over all notebooks.
    text : of a claim, reads well after "Holds: " and "Fails: "; of a number, its name.
    notebook : records the numbers.
    name, condition : of the records that decide, as patterns (`*`, `?`). Those of single subjects,
        or the one over all if there are no others.
    rule : what each record must satisfy: `low`, `high` or `value`, then `>`, `>=`, `<` or `<=`,
        then a number or `chance` (k / n, of a record named top-k); "" is a number, not judged.
    verdict : whether it is one of the sentences under the title of the notebook.
    chance : whether the gallery and the chance level of retrieval are shown with it.
    heading : of the notebook, where it is found.
    shows : the figure of the notebook that shows it, without the notebook's name.
    control : ids of the claims that say what happens when the cause is taken away.
    figure, paper, run : the figure of the paper ("" is a comparison of ours), its number, and that
        of the authors' run; "" is unknown.
    """

    id: str
    text: str
    notebook: str
    name: str
    condition: str
    rule: str = ""
    verdict: bool = False
    chance: bool = False
    heading: str = ""
    shows: str = ""
    control: str = ""
    figure: str = ""
    paper: str = ""
    run: str = ""


@dataclass(frozen=True)
class Row:
    """A claim as the recorded numbers decide it.

    Attributes
    ----------
    value : the number, or the median of several.
    low, high : its 95 % interval, or the range of several numbers.
    holds : "holds", "fails", "not testable" without such records (as of recordings without truth),
        or "" if the claim is not judged.
    n_holds, n : records that satisfy the rule, of how many.
    each : what a record is of: "subject", "comparison", or "" for the one over all.
    """

    text: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    holds: str
    n_holds: int
    n: int
    each: str


@lru_cache
def read() -> tuple[Claim, ...]:
    """All claims, in the order of the notebooks."""
    files = sorted(f.name for f in resources.files(__name__).iterdir() if f.name[:2].isdigit())
    return tuple(
        Claim(notebook=file.removesuffix(".toml"), **fields)
        for file in files
        for fields in _toml(file).get("claim", [])
    )


@lru_cache
def questions() -> list[dict[str, Any]]:
    """What the README asks, and the claims that answer it."""
    return list(_toml("questions.toml")["question"])


@lru_cache
def sources() -> dict[str, Any]:
    """What is known of the paper and of the authors' run, and which runs are shown beside."""
    return _toml("sources.toml")


def records(claim: Claim, documents: Documents) -> Records:
    """The numbers that a claim rests on: those of single subjects, or else those over all."""
    found = [
        r
        for r in documents.get(claim.notebook, {"results": []})["results"]
        if fnmatchcase(r["name"], claim.name) and fnmatchcase(r["condition"], claim.condition)
        if r["value"] is not None
    ]
    return [r for r in found if r["subject"] != "all"] or found


def judge(claim: Claim, documents: Documents) -> Row:
    """Decide a claim; records without the interval that its rule asks for do not count."""
    found, passes = records(claim, documents), []
    if claim.rule:
        what, sign, limit = _parts(claim.rule)
        found = [r for r in found if r[what] is not None]
        limits = [chance_level(r) if limit == "chance" else float(limit) for r in found]
        passes = [COMPARE[sign](r[what], x) for r, x in zip(found, limits, strict=True)]
    if not found:
        return Row(claim.text, None, None, None, "", "not testable", 0, 0, "")
    values = [r["value"] for r in found]
    return Row(
        claim.text,
        median(values),
        found[0]["low"] if len(found) == 1 else min(values),
        found[0]["high"] if len(found) == 1 else max(values),
        _unit(found[0]),
        ("holds" if all(passes) else "fails") if claim.rule else "",
        sum(passes),
        len(found),
        _each(found),
    )


def sentence(row: Row) -> str:
    """A judged claim in words."""
    if row.value is None:
        return f"Not testable here: {row.text}."
    start = f"{row.holds.capitalize()}: " if row.holds else row.text[:1].upper()
    text = f"{start}{row.text if row.holds else row.text[1:]}: {number(row)}"
    if row.each:
        counted = f"{row.n_holds} of {row.n}" if row.holds else f"{row.n}"
        text += f", in {counted} {plural(row.each, row.n)}"
    return f"{text}."


def number(row: Row) -> str:
    """A number with its 95 % interval in square brackets, or the median and the range of several
    in round ones.
    """
    if row.value is None:
        return "unknown"
    text = show(row.value, row.unit)
    if row.low is None or row.high is None:
        return text
    low, high = (show(x, row.unit).split(" ")[0] for x in (row.low, row.high))
    return f"{text} [{low}, {high}]" if row.n == 1 else f"{text} ({low} … {high})"


def verdict(document: Mapping[str, Any], notebook: str) -> str:
    """The sentences under a notebook's title, one a line."""
    mine = [c for c in read() if c.verdict and c.notebook == notebook]
    return "\n".join(sentence(judge(c, {notebook: document})) for c in mine)


def show(value: float, unit: str) -> str:
    """A number in its unit; a difference has a sign."""
    sign = "+" if unit.startswith("difference") else ""
    if unit in ("share", "points", "difference in points"):
        return f"{100 * value:{sign}.1f} {'%' if unit == 'share' else 'points'}"
    if unit in ("images", *COUNTS):
        return f"{value:.0f}"
    return f"{value:{sign}.3f}"


def _toml(file: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__name__).joinpath(file).read_text(encoding="utf-8"))


def _parts(rule: str) -> tuple[str, str, str]:
    """What of a record, the comparison, and the limit."""
    if not (found := RULE.fullmatch(rule)):
        raise UbrainError(
            f"rule {rule!r}: expected `low|high|value`, `>|>=|<|<=` and a number or `chance`, such"
            " as 'low > 0'"
        )
    return found[1], found[2], found[3]


def chance_level(record: Mapping[str, Any]) -> float:
    """Share of images that guessing finds among the first k of n."""
    k = re.match(r"top([0-9]+)", record["name"])
    if not (k and record["n"]):
        raise UbrainError(
            f"{record['name']!r} has no chance level: expected top-k with its gallery"
        )
    return int(k[1]) / record["n"]


def _unit(record: Mapping[str, Any]) -> str:
    if not is_difference(record["name"]):
        return record["unit"]
    return f"difference in {'points' if record['unit'] == 'share' else record['unit']}"


def _each(found: Records) -> str:
    if len({r["condition"] for r in found}) > 1:
        return "comparison"
    return "subject" if found[0]["subject"] != "all" else ""


def plural(word: str, n: int) -> str:
    """A noun, for so many."""
    return word if n == 1 else f"{word}s"
