"""Claims as rows: what is claimed, which recorded numbers decide it, and whether they hold it.

Every file of this folder is one notebook's claims; `sources.toml` says what is known of the paper.
One row makes the sentence under a notebook's title, the scoreboard and the table "What holds".
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from importlib import resources
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

from ubrain import paths
from ubrain.analysis.stats import t_interval
from ubrain.errors import UbrainError
from ubrain.report.results import COUNTS, NO_SUITE, is_difference, read_results, suite_name

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
    text : reads well after "Holds: " and "Fails: "; of the scoreboard, the name of a row.
    notebook : records the numbers.
    name, condition : of the records that decide, as patterns (`*`, `?`). Those of single subjects,
        or the one over all if there are no others.
    rule : what each record must satisfy: `low`, `high` or `value`, then `>`, `>=`, `<` or `<=`,
        then a number or `chance` (k / n, of a record named top-k); "" is shown, not judged.
    share : of the records that must satisfy the rule.
    verdict : whether it is one of the sentences under the title of the notebook.
    scoreboard : whether it is a row of the scoreboard.
    also : "intervals" adds to the scoreboard how many intervals are above 0, "chance" the gallery
        and the chance level of retrieval.
    figure, paper, run : the figure of the paper ("" is a comparison of ours), its number, and that
        of the authors' run; "" is unknown.
    """

    id: str
    text: str
    notebook: str
    name: str
    condition: str
    rule: str = ""
    share: float = 1.0
    verdict: bool = False
    scoreboard: bool = False
    also: str = ""
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
        limits = [_chance(r) if limit == "chance" else float(limit) for r in found]
        passes = [COMPARE[sign](r[what], x) for r, x in zip(found, limits, strict=True)]
    if not found:
        return Row(claim.text, None, None, None, "", "not testable", 0, 0, "")
    values = [r["value"] for r in found]
    enough = sum(passes) >= claim.share * len(found) - 1e-9
    return Row(
        claim.text,
        median(values),
        found[0]["low"] if len(found) == 1 else min(values),
        found[0]["high"] if len(found) == 1 else max(values),
        _unit(found[0]),
        ("holds" if enough else "fails") if claim.rule else "",
        sum(passes),
        len(found),
        _each(found),
    )


def sentence(row: Row) -> str:
    """A judged claim in words."""
    if row.value is None:
        return f"Not testable here: {row.text}."
    start = f"{row.holds.capitalize()}: " if row.holds else row.text[:1].upper()
    lead = f"{start}{row.text if row.holds else row.text[1:]}"
    text = f"{lead}: {show(row.value, row.unit)}"
    if row.low is not None and row.high is not None:
        kind = "" if row.n > 1 else "95 % interval "
        text += f" ({kind}{show(row.low, row.unit)} … {show(row.high, row.unit)})"
    if row.each:
        counted = f"{row.n_holds} of {row.n}" if row.holds else f"{row.n}"
        text += f", in {counted} {_plural(row.each, row.n)}"
    return f"{text}."


def verdict(document: Mapping[str, Any], notebook: str) -> str:
    """The sentences under a notebook's title, one a line."""
    mine = [c for c in read() if c.verdict and c.notebook == notebook]
    return "\n".join(sentence(judge(c, {notebook: document})) for c in mine)


def table(columns: Mapping[str, Callable[[Claim], str]], claims: Sequence[Claim]) -> str:
    """Markdown: a row per claim, a column per function of it."""
    rows = [list(columns), ["---"] * len(columns)]
    rows += [[cell(claim) for cell in columns.values()] for claim in claims]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def scoreboard(folder: Path) -> str:
    """Markdown table: claim, paper, authors' run, here. What is not known stays blank.

    Runs of other seeds, as `sources.toml` names them, and every run on recordings are shown beside
    if they are in the folder beside.

    Raises
    ------
    UbrainError
        If the run has no results, or a number has no suite, or another one than it is shown with.
    """
    documents, runs = read_run(folder), sources()["runs"]
    worlds = [f"{folder.name}-seed{seed}" for seed in runs["seeds"]]
    seeds = [documents, *_beside(folder, worlds, documents)]
    columns: dict[str, Callable[[Claim], str]] = {
        "claim": lambda claim: claim.text,
        "figure": lambda claim: claim.figure,
        "paper": lambda claim: claim.paper,
        "authors' run": lambda claim: claim.run,
        f"here: {folder.name}": lambda claim: _here(claim, documents),
    }
    if len(seeds) > 1:
        columns["over worlds"] = lambda claim: _over_worlds(claim, seeds)
    note = _note(documents)
    for name, run in _recordings(folder).items():
        columns[f"here: {name}"] = partial(_here, documents=_beside(folder, [name])[0])
        note += f" {name}: {run['about']}."
    columns["notebook"] = lambda claim: _link(claim, folder)
    return f"{table(columns, [c for c in read() if c.scoreboard])}\n\n{note}"


def holds(folder: Path) -> str:
    """Markdown table of every judged claim: in simulated worlds, and on recordings.

    Raises
    ------
    UbrainError
        If the run has no results.
    """
    runs = sources()["runs"]
    documents = read_run(folder)
    names = {s: f"{folder.name}-seed{s}" if s else folder.name for s in runs["worlds"]}
    there = {s: n for s, n in names.items() if any(folder.with_name(n).glob("*.json"))}
    worlds = _beside(folder, list(there.values()), documents)
    columns: dict[str, Callable[[Claim], str]] = {
        "claim": lambda claim: claim.text,
        f"simulated (seeds {', '.join(map(str, there))})": lambda c: _cell(c, worlds),
    }
    for name, run in _recordings(folder).items():
        columns[run["title"]] = partial(_cell, runs=_beside(folder, [name]))
    columns["notebook"] = lambda claim: _link(claim, folder)
    return table(columns, [c for c in read() if c.rule])


def write_readme(readme: Path, folder: Path, check: bool = False) -> None:
    """Put the scoreboard and the table of what holds between their markers in a README; with
    `check`, only make sure that they are there.

    Raises
    ------
    UbrainError
        If markers are missing, or with `check` if the README is stale.
    """
    old = new = readme.read_text(encoding="utf-8")
    for name, text in (("scoreboard", scoreboard(folder)), ("holds", holds(folder))):
        start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
        if new.count(start) != 1 or new.count(end) != 1 or new.index(start) > new.index(end):
            raise UbrainError(f"{readme}: expected the markers {start} and {end} once each")
        before, rest = new.split(start)
        new = f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"
    if check and new != old:
        raise UbrainError(f"{readme}: the scoreboard is stale; run `make report` and commit it")
    if not check:
        paths.write_text(readme, new)


def unknown(folder: Path) -> list[str]:
    """Rows of the scoreboard for which a run has no number."""
    documents = read_results(folder)
    return [c.text for c in read() if c.scoreboard and not records(c, documents)]


def show(value: float, unit: str) -> str:
    """A number in its unit; a difference has a sign."""
    sign = "+" if unit.startswith("difference") else ""
    if unit in ("share", "points", "difference in points"):
        return f"{100 * value:{sign}.1f} {'%' if unit == 'share' else 'points'}"
    if unit in ("images", *COUNTS):
        return f"{value:.0f}"
    return f"{value:{sign}.3f}"


def median(values: Sequence[float]) -> float:
    """The middle of some numbers."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


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


def _chance(record: Mapping[str, Any]) -> float:
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


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def read_run(folder: Path) -> Documents:
    """The results of a run, all of one suite.

    Raises
    ------
    UbrainError
        If there are none, or one has no suite, or another than the first.
    """
    documents = read_results(folder)
    first = suite_name(next(iter(documents.values())))
    for notebook, document in documents.items():
        _same_suite(f"{folder.name}/{notebook}", suite_name(document), first)
    return documents


def _same_suite(what: str, suite: str, expected: str) -> None:
    if suite == NO_SUITE:
        raise UbrainError(f"{what}: its numbers do not say of which suite they are; run it again")
    if suite != expected:
        raise UbrainError(
            f"{what}: its numbers are of {suite}, expected {expected}: they cannot stand in one"
            " table; run it again"
        )


def _beside(folder: Path, names: Sequence[str], like: Documents | None = None) -> list[Documents]:
    """The runs of these names that are there; other worlds of the suite of `like`, if given."""
    folders = [f for name in names if any((f := folder.with_name(name)).glob("*.json"))]
    found = [read_run(f) for f in folders]
    if like:
        expected = suite_name(next(iter(like.values())), world=False)
        for f, documents in zip(folders, found, strict=True):
            _same_suite(f.name, suite_name(next(iter(documents.values())), world=False), expected)
    return found


def _recordings(folder: Path) -> dict[str, dict[str, str]]:
    """Title and description of the runs of recordings beside a run: those of `sources.toml`, and
    whichever else was published.
    """
    told, found = sources()["runs"]["recordings"], {}
    for beside in sorted({file.parent for file in folder.parent.glob("*/*.json")} - {folder}):
        document = next(iter(read_results(beside).values()))
        if beside.name in told or not document.get("simulated", True):
            unknown = {"title": beside.name, "about": f"recordings, {document['crowd']}"}
            found[beside.name] = told.get(beside.name, unknown)
    return found


def _here(claim: Claim, documents: Documents) -> str:
    """The cell of the scoreboard: what a run has to say on a claim; "" if nothing."""
    found = records(claim, documents)
    if not found:
        return ""
    row = judge(claim, documents)
    unit, values = row.unit.removeprefix("difference in "), [r["value"] for r in found]
    text = show(median(values), unit)
    if row.each:
        text += f" ({show(min(values), unit)} … {show(max(values), unit)}),"
        text += f" {len(found)} {_plural(row.each, len(found))}"
    elif row.low is not None and row.high is not None:
        text += f" (95 % interval {show(row.low, unit)} … {show(row.high, unit)})"
    if claim.also == "intervals":
        above = sum(r["low"] is not None and r["low"] > 0 for r in found)
        below = sum(r["high"] is not None and r["high"] < 0 for r in found)
        text += f"; 95 % interval above 0 in {above} of {len(found)}"
        text += f", below in {below}" if below else ""
    if claim.also == "chance":
        galleries = {r["n"]: show(_chance(r), unit) for r in sorted(found, key=lambda r: r["n"])}
        text += f"; gallery {' / '.join(map(str, galleries))}, chance"
        text += f" {' / '.join(galleries.values())}"
    return text


def _over_worlds(claim: Claim, runs: Sequence[Documents]) -> str:
    """Mean over simulated worlds of the median over subjects, with its 95 % t interval."""
    found = [r for documents in runs if (r := records(claim, documents))]
    if len(found) < 2:
        return ""
    mean = t_interval([median([r["value"] for r in world]) for world in found])
    unit = _unit(found[0][0]).removeprefix("difference in ")
    ends = f"{show(mean.low, unit)} … {show(mean.high, unit)}"
    return f"{show(mean.value, unit)} (95 % interval {ends}), {mean.n} worlds"


def _cell(claim: Claim, runs: Sequence[Documents]) -> str:
    """The cell of "What holds": a word for all runs, what each of them has, and over worlds."""
    rows = [row for run in runs if (row := judge(claim, run)).n]
    if not rows:
        return "not testable"
    n_holds = sum(row.holds == "holds" for row in rows)
    word = {0: "fails", len(rows): "holds"}.get(n_holds, f"holds in {n_holds} of {len(rows)}")
    if each := rows[0].each:
        counts = ", ".join(f"{row.n_holds} of {row.n}" for row in rows)
        text = f"{word}: {counts} {_plural(each, rows[0].n)}"
    else:
        values = [show(row.value, row.unit) for row in rows if row.value is not None]
        text = f"{word}: {', '.join(values)}"
    over = _over_worlds(claim, runs)
    return f"{text}; {over}" if over else text


def _link(claim: Claim, folder: Path) -> str:
    """The executed notebook, as a link from the top of the project."""
    file = folder / f"{claim.notebook}.ipynb"
    target = f"{folder.parent.name}/{folder.name}/{file.name}"
    return f"[{file.stem[:2]}]({target})" if file.exists() else ""


def _note(documents: Documents) -> str:
    first = next(iter(documents.values()))
    known = "; ".join(f"*{what}*: {text}" for what, text in sources()["sources"].items())
    return (
        f"Here: {'simulated crowd' if first['simulated'] else first['crowd']}, profile"
        f" {first['profile']}, seed {first['seed']}, median over subjects, range over subjects in"
        " brackets, unless the row says otherwise. Numbers from different data cannot be compared:"
        " read along the claims, not along the columns. *Over worlds*: the mean of this number over"
        " simulated worlds, with Student's 95 % interval. A blank is a number that is not known,"
        f" not run, or does not exist for these data. Sources: {known}."
    )
