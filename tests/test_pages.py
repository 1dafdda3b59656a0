"""The pages made of claims: cells, tables, what may stand beside each other, anchors that work."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbconvert.filters import markdown2html
from scipy.stats import ttest_1samp

from ubrain.errors import UbrainError
from ubrain.report import claims, results
from ubrain.report.claims import Claim, pages
from ubrain.report.results import Record

ROOT = Path(__file__).parents[1]
RUN = ROOT / "papermill_runs" / "simulated-fast"
SUITE = {"name": "ubrain-sim-smoke", "version": 1, "digest": "abc"}
OTHER = {**SUITE, "digest": "def"}
TABLES = [pages.answers, pages.index, pages.numbers]


def write(path, *records, suite=SUITE, simulated=True):
    seed = int(path.parent.name.partition("-seed")[2] or 0)
    facts = {"simulated": simulated, "crowd": "x.h5", "profile": "smoke", "seed": seed}
    results.write_results(path, path.stem, records, {**facts, "suite": suite})


@pytest.fixture
def paper(monkeypatch):
    """Claims of a paper about which everything is known."""
    more = {"heading": "Is it so?", "figure": "Fig. 1"}
    rows = [
        Claim("each", "each gains", "03_x", "gain_each", "c", "value > 0.55", control="whole"),
        Claim("whole", "all gain", "03_x", "whole", "c", "value > 0.55", shows="it", **more),
        Claim("images", "Images", "03_x", "images", "c", paper="12", **more),
        Claim("lost", "nothing", "04_y", "lost", "c", "low > 0"),
    ]
    asked = [
        {"text": "Why?", "answers": {"gain": "each", "lost": "lost"}, "limits": {"no": "each"}}
    ]
    about = {"macaque-fast": {"title": "V4", "about": "neurons"}}
    known = {"sources": {"paper": "book"}, "runs": {"seeds": [1, 2, 5], "recordings": about}}
    monkeypatch.setattr(claims, "read", lambda: rows)
    monkeypatch.setattr(claims, "questions", lambda: asked)
    monkeypatch.setattr(claims, "sources", lambda: known)
    return rows


def world(folder, by, **facts):
    """A run of 03_x in which everything is `by` larger."""
    write(
        folder / "03_x.json",
        Record("gain_each", 0.1 + by, "c", "S1", unit="r"),
        Record("gain_each", 0.2 + by, "c", "S2", unit="r"),
        Record("gain_each", 9, "c", "all"),
        Record("whole", 0.5 + by, "c", low=0.25 + by, high=0.75 + by, unit="share"),
        Record("images", 25 + 100 * by, "c", unit="images"),
        **facts,
    )


def row(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_index_has_a_row_per_judged_claim(tmp_path, paper):
    world(tmp_path / "fast", 0)
    text = pages.index(tmp_path / "fast", "../")
    assert text.splitlines()[0] == (
        "| claim | paper | cell | figure | simulated, seed 0 | control |"
    )
    assert row(text, '<a id="each">')[1:] == [
        "ours",
        f"[03: ](../{tmp_path.name}/fast/03_x.ipynb)",
        "a number",
        "fails, +0.150 (+0.100 … +0.200), 0 of 2 subjects",
        "[whole](#whole) fails",
    ]
    assert row(text, '<a id="whole">')[1:] == [
        "Fig. 1",
        f"[03: Is it so?](../{tmp_path.name}/fast/03_x.ipynb#Is-it-so?)",
        "[it](../figures/fast/03_x__it.png)",
        "fails, 50.0 % [25.0, 75.0]",
        "none",
    ]
    assert row(text, '<a id="lost">')[4] == "not testable"
    assert "Images" not in text


def test_numbers_that_are_not_judged_and_what_is_known_of_the_paper(tmp_path, paper):
    world(tmp_path / "fast", 0)
    text = pages.numbers(tmp_path / "fast")
    link = f"[03: Is it so?]({tmp_path.name}/fast/03_x.ipynb#Is-it-so?)"
    assert row(text, "Images") == ["Images", "Fig. 1", "25", link]
    assert "- Images (Fig. 1): paper, 12." in text
    assert "- *paper*: book." in text
    assert "all gain" not in text


def test_a_question_is_answered_by_its_claims_and_says_where_they_fail(tmp_path, paper):
    world(tmp_path / "fast", 0)
    world(tmp_path / "macaque-fast", 0.9)
    text = pages.answers(tmp_path / "fast")
    assert text.splitlines()[0] == "| question | simulated, seed 0 | V4 | where it fails |"
    assert row(text, "[Why?]")[1:] == [
        "gain: fails, +0.150 (+0.100 … +0.200), 0 of 2 subjects",
        "gain: +1.050 (+1.000 … +1.100), 2 of 2 subjects",
        "no: fails, +0.150 (+0.100 … +0.200), 0 of 2 subjects (simulated)",
    ]
    paper[0] = replace(paper[0], rule="value > 0")
    assert row(pages.answers(tmp_path / "fast"), "[Why?]")[3] == "nowhere yet"


def test_chance_is_shown_with_its_galleries(tmp_path, paper):
    paper[:] = [Claim("top", "found", "03_x", "top1", "c", "low > chance", chance=True)]
    found = [Record("top1", 0.5, "c", f"S{n}", 0.2, 1, n, "share") for n in (40, 100, 80)]
    write(tmp_path / "fast" / "03_x.json", *found)
    expected = (
        "holds, 50.0 % (50.0 … 50.0), 3 of 3 subjects, gallery 40 to 100, chance 2.5 % to 1.0 %"
    )
    assert row(pages.index(tmp_path / "fast"), '<a id="top">')[4] == expected


def test_worlds_are_averaged_and_recordings_stand_beside(tmp_path, paper):
    for name, by in {"": 0, "-seed1": 0.1, "-seed2": 0.04, "-seed3": 0.9}.items():
        world(tmp_path / f"fast{name}", by)
    world(tmp_path / "macaque-fast", 0.4)
    world(tmp_path / "mine-fast", 0.2, simulated=False)
    text = pages.index(tmp_path / "fast")
    assert text.splitlines()[0].endswith("| simulated, seeds 0, 1, 2 | V4 | mine-fast | control |")
    mean, (low, high) = t_of(0.15, 0.25, 0.19)
    assert row(text, '<a id="each">')[4:7] == [
        f"fails, {mean:+.3f} [{low:+.3f}, {high:+.3f}] over 3 worlds, 0 of 6 subjects",
        "fails, +0.550 (+0.500 … +0.600), 1 of 2 subjects",
        "fails, +0.350 (+0.300 … +0.400), 0 of 2 subjects",
    ]
    assert row(text, '<a id="whole">')[4].startswith("holds in 1 of 3 worlds, 54.7 % [")
    assert row(text, '<a id="whole">')[5] == "holds, 90.0 % [65.0, 115.0]"


def t_of(*values):
    """Mean and 95 % t interval, by scipy."""
    return np.mean(values), ttest_1samp(values, 0).confidence_interval()


@pytest.mark.parametrize("make", TABLES)
@pytest.mark.parametrize(
    ("where", "suite", "said"),
    [
        ("fast/04_y", None, "fast/04_y: its numbers do not say of which suite"),
        ("fast/04_y", OTHER, r"fast/04_y: its numbers are of suite ubrain-sim-smoke v1 \(def\)"),
        ("fast-seed1/03_x", None, "fast-seed1/03_x: its numbers do not say"),
        ("fast-seed1/03_x", {**OTHER, "version": 2}, "fast-seed1: .* ubrain-sim-smoke v2,"),
        ("fast-seed1/03_x", {**OTHER, "name": "x"}, "fast-seed1: its numbers are of suite x v1,"),
        ("macaque-fast/03_x", None, "macaque-fast/03_x: its numbers do not say"),
        ("fast-seed1/03_x", OTHER, ""),
        ("macaque-fast/03_x", OTHER, ""),
    ],
)
def test_numbers_without_their_suite_are_refused(tmp_path, paper, make, where, suite, said):
    world(tmp_path / "fast", 0)
    write(tmp_path / f"{where}.json", Record("lost", 1, "c"), suite=suite)
    if said:
        with pytest.raises(UbrainError, match=said) as error:
            make(tmp_path / "fast")
        assert str(error.value).count(". ") == 0  # one sentence
    else:
        make(tmp_path / "fast")


@pytest.mark.parametrize("make", TABLES)
def test_tables_need_results(tmp_path, paper, make):
    with pytest.raises(UbrainError, match="`ubrain run` makes them"):
        make(tmp_path)


def test_tables_go_between_their_markers(tmp_path, paper, monkeypatch):
    readme, run = tmp_path / "README.md", tmp_path / "fast"
    monkeypatch.setattr(pages, "PAGES", {"README.md": {"a": pages.index, "b": pages.numbers}})
    a, b, c, d = (f"<!-- {name}:{end} -->" for name in "ab" for end in ("start", "end"))
    readme.write_text(f"# before\n\n{a}\nold\n{b}\nbetween\n{c}{d}\nafter\n", encoding="utf-8")
    world(run, 0)
    with pytest.raises(UbrainError, match="stale"):
        pages.write(tmp_path, run, check=True)
    assert "old" in readme.read_text(encoding="utf-8")
    pages.write(tmp_path, run)
    first, second = pages.index(run), pages.numbers(run)
    new = f"# before\n\n{a}\n{first}\n{b}\nbetween\n{c}\n{second}\n{d}\nafter\n"
    assert readme.read_text(encoding="utf-8") == new
    pages.write(tmp_path, run, check=True)
    world(run, 0.1)
    with pytest.raises(UbrainError, match="stale"):
        pages.write(tmp_path, run, check=True)


@pytest.mark.parametrize("order", ["", "a", "b", "ba", "aba", "abb"])
def test_missing_markers_are_refused(tmp_path, paper, monkeypatch, order):
    monkeypatch.setattr(pages, "PAGES", {"README.md": {"x": pages.index}})
    markers = {"a": "<!-- x:start -->", "b": "<!-- x:end -->"}
    readme, text = tmp_path / "README.md", "\n".join(markers[i] for i in order)
    readme.write_text(text, encoding="utf-8")
    world(tmp_path / "fast", 0)
    with pytest.raises(UbrainError, match="markers"):
        pages.write(tmp_path, tmp_path / "fast")
    assert readme.read_text(encoding="utf-8") == text


# --- the project's own pages


def test_the_pages_show_the_committed_run():
    pages.write(ROOT, RUN, check=True)


def test_every_anchor_is_a_heading_of_the_rendered_notebook_and_every_figure_is_there():
    claimed = {(c.notebook, c.heading): c.id for c in claims.read()}
    for notebook in {c.notebook for c in claims.read()}:
        cells = nbformat.read(RUN / f"{notebook}.ipynb", as_version=4).cells
        html = markdown2html("\n\n".join(c.source for c in cells if c.cell_type == "markdown"))
        ids = set(re.findall(r'<h[1-6] id="([^"]+)"', html))
        for (where, heading), claim in claimed.items():
            assert where != notebook or heading.replace(" ", "-") in ids, (claim, heading, ids)
    for claim in claims.read():
        file = ROOT / "figures" / RUN.name / f"{claim.notebook}__{claim.shows}.png"
        assert not claim.shows or file.exists(), claim.id


def test_links_of_the_pages_lead_to_files():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_another_run_is_not_written_into_the_pages(run_cli):
    done = run_cli("report", "--profile", "smoke", "--write")
    assert done.returncode == 1
    assert "the pages show the run simulated-fast, not simulated-smoke" in done.stderr


def test_the_readme_is_short():
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) < 900


def test_a_world_is_named_by_its_own_seed(tmp_path, paper):
    world(tmp_path / "fast-seed7", 0)
    assert list(pages.columns(tmp_path / "fast-seed7")) == ["simulated, seed 7"]


def test_recordings_are_known_by_what_their_run_says(tmp_path, paper):
    world(tmp_path / "fast", 0)
    world(tmp_path / "lab-fast", 0, simulated=False)
    document = json.loads((tmp_path / "lab-fast" / "03_x.json").read_text(encoding="utf-8"))
    assert document["simulated"] is False
    assert list(pages.columns(tmp_path / "fast")) == ["simulated, seed 0", "lab-fast"]
