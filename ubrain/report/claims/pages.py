"""Pages that are made of claims: the README's answers, the claim index, the numbers behind.

Every cell is a claim as published runs decide it, so nothing on these pages is written by hand.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ubrain import paths
from ubrain.analysis.stats import t_interval
from ubrain.errors import UbrainError
from ubrain.report import claims
from ubrain.report.claims import Claim, Documents
from ubrain.report.results import NO_SUITE, read_results, suite_name

ABSENT = ("not testable", "no such data")  # of a claim, of a number


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


def columns(folder: Path) -> dict[str, list[Documents]]:
    """What is shown beside each other: the worlds of a run, and every run on recordings.

    Returns
    -------
    Title -> runs: of the worlds that `sources.toml` names those that are published, the first of
    which is `folder` itself; then one run of each recording that lies in the folder beside.

    Raises
    ------
    UbrainError
        If the run has no results, or a number has no suite, or another one than it is shown with.
    """
    shown = claims.sources()["runs"]
    documents = read_run(folder)
    first = next(iter(documents.values()))
    expected = suite_name(first, world=False)
    worlds, seeds = [documents], [first["seed"]]
    for seed in shown["seeds"]:
        beside = folder.with_name(f"{folder.name}-seed{seed}")
        if any(beside.glob("*.json")):
            worlds.append(world := read_run(beside))
            seeds.append(seed)
            _same_suite(beside.name, suite_name(next(iter(world.values())), world=False), expected)
    found = {f"simulated, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}": worlds}
    for beside in sorted({file.parent for file in folder.parent.glob("*/*.json")} - {folder}):
        other = next(iter(read_results(beside).values()))
        if beside.name in shown["recordings"] or not other.get("simulated", True):
            title = shown["recordings"].get(beside.name, {}).get("title", beside.name)
            found[title] = [read_run(beside)]
    return found


def cell(claim: Claim, runs: Sequence[Documents], brief: bool = False) -> str:
    """What runs of one kind say on a claim: a word, how many records satisfy it, the number; of
    several runs, the mean over them with Student's 95 % interval.

    Parameters
    ----------
    brief : no word if it holds, no number of worlds, no gallery.
    """
    rows = [row for run in runs if (row := claims.judge(claim, run)).n]
    if not rows:
        return ABSENT[not claim.rule]
    number, said = claims.number(rows[0]), list[str]()
    if len(rows) > 1:
        mean = t_interval([row.value for row in rows if row.value is not None])
        over = replace(rows[0], value=mean.value, low=mean.low, high=mean.high, n=1)
        number = claims.number(over) + ("" if brief else f" over {len(rows)} worlds")
    if claim.rule and not (brief and all(row.holds == "holds" for row in rows)):
        n_holds = sum(row.holds == "holds" for row in rows)
        some = f"holds in {n_holds} of {len(rows)} worlds"
        said.append({0: "fails", len(rows): "holds"}.get(n_holds, some))
    said.append(number)
    n, unit = sum(row.n for row in rows), rows[0].each
    if unit:
        counted = f"{sum(row.n_holds for row in rows)} of {n}" if claim.rule else f"{n}"
        said.append(f"{counted} {claims.plural(unit, n)}")
    if claim.chance and not brief:
        levels = {r["n"]: claims.chance_level(r) for d in runs for r in claims.records(claim, d)}
        ends = sorted({min(levels), max(levels)})
        shares = " to ".join(claims.show(levels[n], "share") for n in ends)
        said.append(f"gallery {' to '.join(map(str, ends))}, chance {shares}")
    return ", ".join(said)


def answers(folder: Path, up: str = "") -> str:
    """Markdown table: a question, what the claims that answer it say, and those of its claims that
    fail somewhere.
    """
    shown, known = columns(folder), {c.id: c for c in claims.read()}
    rows = []
    for question in claims.questions():
        said = {label: known[i] for label, i in question["answers"].items()}
        fails = [
            f"{label}: {text} ({title.split(',')[0]})"
            for label, i in question.get("limits", {}).items()
            for title, runs in shown.items()
            if (text := cell(known[i], runs, brief=True)).startswith(("fails", "holds in"))
        ]
        here = [
            "<br>".join(
                f"{k}: {text}"
                for k, c in said.items()
                if (text := cell(c, r, brief=True)) not in ABSENT
            )
            for r in shown.values()
        ]
        link = _notebook(folder, next(iter(said.values())), up)
        rows.append(
            [
                f"[{question['text']}]({link})",
                *(text or ABSENT[0] for text in here),
                "<br>".join(fails) or "nowhere yet",
            ]
        )
    return _table(["question", *shown, "where it fails"], rows)


def index(folder: Path, up: str = "") -> str:
    """Markdown table of every judged claim: the paper's figure, the cell that decides it, its
    figure here, what each kind of run says, and the control that backs it.
    """
    shown, known = columns(folder), {c.id: c for c in claims.read()}
    first = next(iter(shown.values()))
    rows = []
    for c in sorted((c for c in known.values() if c.rule), key=lambda c: c.figure or "ours"):
        file = f"{up}figures/{folder.name}/{c.notebook}__{c.shows}.png"
        controls = [f"[{i}](#{i}) {cell(known[i], first).split(',')[0]}" for i in c.control.split()]
        rows.append(
            [
                f'<a id="{c.id}"></a>{c.text}',
                c.figure or "ours",
                f"[{c.notebook.split('_')[0]}: {c.heading}]({_notebook(folder, c, up)})",
                f"[{c.shows}]({file})" if c.shows else "a number",
                *(cell(c, runs) for runs in shown.values()),
                "<br>".join(controls) or "none",
            ]
        )
    return _table(["claim", "paper", "cell", "figure", *shown, "control"], rows)


def numbers(folder: Path, up: str = "") -> str:
    """Markdown table of the numbers that are shown and not judged, and what is known of the
    paper's.
    """
    shown = columns(folder)
    rows = [
        [
            c.text,
            c.figure or "ours",
            *(cell(c, runs) for runs in shown.values()),
            f"[{c.notebook.split('_')[0]}: {c.heading}]({_notebook(folder, c, up)})",
        ]
        for c in claims.read()
        if not c.rule
    ]
    known = [
        f"- {c.text} ({c.figure}): {who}, {number}."
        for c in claims.read()
        for who, number in (("paper", c.paper), ("authors' run", c.run))
        if number
    ]
    about = [f"- *{what}*: {text}." for what, text in claims.sources()["sources"].items()]
    about += [
        f"- *{r['title']}*: {r['about']}." for r in claims.sources()["runs"]["recordings"].values()
    ]
    table = _table(["number", "paper", *shown, "cell"], rows)
    return "\n".join([table, "", "What is known of the paper's numbers:", "", *known, "", *about])


PAGES = {"README.md": {"answers": answers}, "docs/claims.md": {"index": index, "numbers": numbers}}


def write(root: Path, folder: Path, check: bool = False) -> None:
    """Put the tables of a run between their markers in the project's pages; with `check`, only make
    sure that they are there.

    Raises
    ------
    UbrainError
        If markers are missing, or with `check` if a page is stale.
    """
    for page, blocks in PAGES.items():
        old = new = (root / page).read_text(encoding="utf-8")
        for name, make in blocks.items():
            start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
            if new.count(start) != 1 or new.count(end) != 1 or new.index(start) > new.index(end):
                raise UbrainError(f"{page}: expected the markers {start} and {end} once each")
            before, rest = new.split(start)
            text = make(folder, "../" * page.count("/"))
            new = f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"
        if check and new != old:
            raise UbrainError(f"{page} is stale; run `make report` and commit it")
        if not check:
            paths.write_text(root / page, new)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _notebook(folder: Path, claim: Claim, up: str) -> str:
    """Where the executed notebook shows a claim; anchors as Jupyter makes them of headings."""
    file = f"{up}{folder.parent.name}/{folder.name}/{claim.notebook}.ipynb"
    return f"{file}#{claim.heading.replace(' ', '-')}" if claim.heading else file


def _same_suite(what: str, suite: str, expected: str) -> None:
    if suite == NO_SUITE:
        raise UbrainError(f"{what}: its numbers do not say of which suite they are; run it again")
    if suite != expected:
        raise UbrainError(
            f"{what}: its numbers are of {suite}, expected {expected}: they cannot stand in one"
            " table; run it again"
        )
