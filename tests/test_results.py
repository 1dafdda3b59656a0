"""Numbers on disk, how runs are compared, claims, and the tables made from them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from ubrain.errors import UbrainError
from ubrain.report import claims, results
from ubrain.report.claims import Claim
from ubrain.report.results import Record

ROOT = Path(__file__).parents[1]
RUN = ROOT / "papermill_runs" / "simulated-fast"
SUITE = {"name": "ubrain-sim-smoke", "version": 1, "digest": "abc"}
FACTS = {"simulated": True, "crowd": "simulated, seed 0", "profile": "smoke", "seed": 0}
FACTS |= {"suite": SUITE}

GAIN = "encoder, crowd − encoder, one subject"


def write(path, *records, **facts):
    results.write_results(path, path.stem, records, {**FACTS, **facts})
    return json.loads(path.read_text(encoding="utf-8"))


# --- numbers on disk


def test_what_is_written_is_read(tmp_path):
    records = [
        Record("r", np.float32(0.5), "x", "S1", np.float64(0.25), 1, np.int64(7), "r"),
        Record("r", float("nan"), "x", "S2", float("inf"), None),
        Record("r", 1.0, "≈ −"),
    ]
    write(tmp_path / "run" / "01_x.json", *records)
    ((name, document),) = results.read_results(tmp_path / "run").items()
    assert name == document["notebook"] == "01_x"
    assert {k: document[k] for k in FACTS} == FACTS
    first = {"name": "r", "value": 0.5, "condition": "x", "subject": "S1"}
    assert document["results"][0] == {**first, "low": 0.25, "high": 1, "n": 7, "unit": "r"}
    assert [document["results"][1][k] for k in ("value", "low", "high")] == [None] * 3
    assert document["results"][2]["condition"] == "≈ −"
    assert document["versions"].keys() == {"python", *results.VERSIONS}
    assert isinstance(document["commit"], str)
    text = (tmp_path / "run" / "01_x.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text


def test_same_record_twice_is_refused(tmp_path):
    records = [Record("r", 1, "x", "S1"), Record("r", 2, "x", "S2"), Record("r", 3, "x", "S1")]
    with pytest.raises(UbrainError, match=r"a: recorded more than once: \('r', 'x', 'S1'\)"):
        write(tmp_path / "a.json", *records)
    assert not (tmp_path / "a.json").exists()


# --- comparing

A = Record("a", 1.0, low=0.5, high=1.5, n=3, unit="r")
B = Record("b", float("nan"))
C = Record("c", 0.0, "x", "S1")


@pytest.mark.parametrize(
    ("old", "new", "n_agree", "n"),
    [
        ([A, B, C], [C, A, B], 3, 3),
        ([A, B, C], [A, B], 2, 3),
        ([A], [A, B, C], 1, 3),
        ([A], [replace(A, value=1.049)], 1, 1),
        ([A], [replace(A, value=1.051)], 0, 1),
        ([A], [replace(A, low=0.4)], 0, 1),
        ([A], [replace(A, high=1.6)], 0, 1),
        ([A], [replace(A, n=4)], 0, 1),
        ([A], [replace(A, condition="other")], 0, 2),
        ([A], [replace(A, value=float("nan"))], 0, 1),
        ([B], [replace(B, value=0.0)], 0, 1),
        ([C], [replace(C, subject="S2")], 0, 2),
    ],
)
def test_numbers_agree_within_their_tolerance(tmp_path, old, new, n_agree, n):
    found = results.compare(write(tmp_path / "old.json", *old), write(tmp_path / "new.json", *new))
    assert (found.n_agree, found.n) == (n_agree, n)
    assert len(found.differences) == n - n_agree
    assert str(found).startswith(f"{n_agree} of {n} agree (largest difference ")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Record("voxels", 555, unit="voxels"), 0),
        (Record("median_r", 0.5, unit="r"), 1e-3),
        (Record("median_r", 0.5, low=0.49, high=0.50, n=60, unit="r"), 1e-3),
        (Record("median_r", 0.5, low=0.4, high=0.6, n=60, unit="r"), 0.01),
        (Record("top1", 0.9, low=0.88, high=0.92, n=200, unit="share"), 1 / 200),
        (Record("top1", 0.9, low=0.7, high=1.0, n=200, unit="share"), 0.015),
        (Record("gain_top1", 0.1, low=0.08, high=0.12, n=200, unit="share"), 2 / 200),
        (Record("claim_holds", 1.0, low=1, high=1, n=6, unit="share"), 0.01),
        (Record("images for 90 %", 25.0, unit="images"), 1),
        (Record("images for 90 %", 200.0, unit="images"), 4),
        (Record("cluster_size", 40, unit="voxels"), 2),
        (Record("transfer over ridge, x", 0.1, "crowd", low=0.05, high=0.15), 0.005),
        (Record("transfer over ridge, x", -0.1, "untrained", low=-0.15, high=-0.05), 0.05),
    ],
)
def test_a_tolerance_follows_from_the_kind_of_number(record, expected):
    assert results.tolerance(vars(record)) == pytest.approx(expected)


def test_what_differs_is_named(tmp_path):
    old = write(tmp_path / "a.json", A, replace(A, name="b"), Record("n", 5, unit="voxels"))
    new = write(
        tmp_path / "a.json", A, replace(A, name="b", value=1.2), Record("n", 6, unit="voxels")
    )
    b, n = results.compare(old, new).differences
    assert (b.name, b.subject, b.published, b.here, b.tolerance) == ("b", "all", 1.0, 1.2, 0.05)
    assert (n.published, n.here, n.tolerance) == (5, 6, 0)


def test_the_committed_runs_agree_with_themselves_and_not_with_other_numbers():
    for file in sorted(RUN.glob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        assert not results.compare(document, document).differences
    other = results.read_results(RUN)["01_crowd_gains"]
    for record in other["results"]:
        record["value"] += 0.05
    found = results.compare(results.read_results(RUN)["01_crowd_gains"], other)
    assert found.n_agree < found.n / 10


# --- claims

CLAIM = Claim("id", "all is well", "03_x", "r", "c", "low > 0")


def document(*records):
    return {"03_x": {"results": [vars(r) for r in records]}}


def records(*values, width=0.1, subject="S", **more):
    """One record per value, of subjects S0, S1, ..., with intervals of that half width."""
    return [
        Record("r", v, "c", f"{subject}{i}", v - width, v + width, **{"n": 50, "unit": "r", **more})
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("rule", "share", "holds", "n_holds"),
    [
        ("low > 0", 1.0, "fails", 2),
        ("low > 0", 0.5, "holds", 2),
        ("high >= 0", 1.0, "holds", 4),
        ("value < 0.2", 0.5, "holds", 2),
        ("value <= 0.2", 0.75, "holds", 3),
        ("value > -1", 1.0, "holds", 4),
        ("", 1.0, "", 0),
    ],
)
def test_a_rule_decides_each_record(rule, share, holds, n_holds):
    run = document(*records(0.05, 0.1, 0.2, 0.3), Record("r", -9, "c"), Record("q", -9, "c", "S1"))
    row = claims.judge(replace(CLAIM, rule=rule, share=share), run)
    assert (row.holds, row.n_holds, row.n, row.each) == (holds, n_holds, 4, "subject")
    assert row.value == pytest.approx(0.15)
    assert (row.low, row.high) == (0.05, 0.3)


def test_conditions_are_patterns():
    found = [Record("r", v, f"{v} images, ours", unit="r") for v in (1, 2, 3)]
    claim = replace(CLAIM, condition="* images, ours", rule="value > 1")
    row = claims.judge(claim, document(*found, Record("r", 9, "other")))
    assert claims.sentence(row) == (
        "Fails: all is well: 2.000 (1.000 … 3.000), in 2 of 3 comparisons."
    )


def test_chance_is_that_of_each_gallery():
    found = [Record("top5", 0.2, "c", f"S{n}", 0.12, 0.3, n, "share") for n in (20, 100)]
    row = claims.judge(replace(CLAIM, name="top5", rule="low > chance"), document(*found))
    assert (row.n_holds, row.n) == (1, 2)


@pytest.mark.parametrize(
    "found",
    [[], [Record("r", 0.5, "c", "S1", unit="r")], [Record("r", float("nan"), "c", "S1", 0, 1)]],
    ids=["no record", "no interval", "no value"],
)
def test_without_such_numbers_a_claim_is_not_testable(tmp_path, found):
    run = {"03_x": write(tmp_path / "03_x.json", *found)}
    row = claims.judge(CLAIM, run)
    assert row.holds == "not testable"
    assert claims.sentence(row) == "Not testable here: all is well."


@pytest.mark.parametrize(
    ("record", "rule", "expected"),
    [
        (
            Record("gain_r", 0.03, low=0.01, high=0.05, unit="r"),
            "low > 0",
            "Holds: all is well: +0.030 (95 % interval +0.010 … +0.050).",
        ),
        (Record("gain_top1", 0.1, unit="share"), "value > 1", "Fails: all is well: +10.0 points."),
        (Record("top1", 0.1, unit="share"), "value < 1", "Holds: all is well: 10.0 %."),
        (Record("images", 27.6, unit="images"), "", "All is well: 28."),
        (
            Record("r", 0.1, subject="S1", unit="r"),
            "value > 0",
            "Holds: all is well: 0.100, in 1 of 1 subject.",
        ),
    ],
)
def test_sentences(record, rule, expected):
    claim = replace(CLAIM, name="*", condition="*", rule=rule)
    assert claims.sentence(claims.judge(claim, document(record))) == expected


@pytest.mark.parametrize("rule", ["low", "low = 0", "mean > 0", "low > x", "low > 0; value > 1"])
def test_a_malformed_rule_is_refused(rule):
    with pytest.raises(UbrainError, match="expected `low"):
        claims.judge(replace(CLAIM, rule=rule), document(*records(1)))


def test_shipped_claims_are_well_formed():
    all_claims = claims.read()
    assert len({c.id for c in all_claims}) == len(all_claims)
    shown = [c for c in all_claims if c.scoreboard]
    assert len({(c.notebook, c.name, c.condition) for c in shown}) == len(shown)
    assert len({c.text for c in all_claims}) == len(all_claims)
    for claim in all_claims:
        assert (ROOT / "notebooks" / f"{claim.notebook}.py").exists()
        assert claim.also in ("", "intervals", "chance")
        assert claim.scoreboard or claim.rule or claim.verdict, claim.id
        assert 0 < claim.share <= 1
        assert "|" not in claim.text + claim.paper + claim.run
    for notebook in {c.notebook for c in all_claims}:
        assert sum(c.verdict for c in all_claims if c.notebook == notebook) <= 3


def test_every_shipped_claim_is_decided_by_the_committed_run():
    documents = results.read_results(RUN)
    undecided = [c.id for c in claims.read() if claims.judge(c, documents).holds == "not testable"]
    assert undecided == []
    assert claims.unknown(RUN) == []


# --- tables


@pytest.fixture
def paper(monkeypatch):
    """Claims of a paper about which everything is known."""
    texts = (("each", "03_x"), ("whole", "03_x"), ("images", "03_x"), ("lost", "04_y"))
    rows = [
        Claim(t, t, n, t, "c", "value > 0.55" if t != "images" else "value < 100", scoreboard=True)
        for t, n in texts
    ]
    beside = {
        "seeds": [1, 2, 5],
        "recordings": {"macaque-fast": {"title": "V4", "about": "neurons"}},
    }
    known = {"sources": {"paper": "book"}, "runs": {**beside, "worlds": [0, 1]}}
    monkeypatch.setattr(claims, "read", lambda: rows)
    monkeypatch.setattr(claims, "sources", lambda: known)
    return rows


def world(folder, by):
    """A run of 03_x in which everything is `by` larger."""
    write(
        folder / "03_x.json",
        Record("each", 0.1 + by, "c", "S1"),
        Record("each", 0.2 + by, "c", "S2"),
        Record("each", 9, "c", "all"),
        Record("whole", 0.5 + by, "c", low=0.25 + by, high=0.75 + by, unit="share"),
        Record("images", 25 + 100 * by, "c", unit="images"),
    )


def row(text, claim):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {claim} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_scoreboard(tmp_path, paper):
    world(tmp_path / "fast", 0)
    (tmp_path / "fast" / "03_x.ipynb").write_text("")
    text = claims.scoreboard(tmp_path / "fast")
    header = "| claim | figure | paper | authors' run | here: fast | notebook |"
    assert text.splitlines()[0] == header
    assert "Here: simulated crowd, profile smoke, seed 0" in text
    link = f"[03]({tmp_path.name}/fast/03_x.ipynb)"
    assert row(text, "each")[1:] == ["", "", "", "0.150 (0.100 … 0.200), 2 subjects", link]
    assert row(text, "whole")[4] == "50.0 % (95 % interval 25.0 % … 75.0 %)"
    assert row(text, "images")[4] == "25"
    assert row(text, "lost")[1:] == [""] * 5
    assert claims.unknown(tmp_path / "fast") == ["lost"]
    paper[0] = replace(paper[0], figure="Fig. 1", paper="0.7", run="0.6")
    assert row(claims.scoreboard(tmp_path / "fast"), "each")[1:4] == ["Fig. 1", "0.7", "0.6"]


def test_scoreboard_counts_intervals_and_shows_chance(tmp_path, paper):
    paper[:] = [replace(CLAIM, text="gain", name="gain_r", also="intervals")]
    paper += [replace(CLAIM, text="found", name="top1", also="chance")]
    paper[:] = [replace(c, scoreboard=True) for c in paper]
    found = [replace(r, name="gain_r") for r in records(0.2, 0.11, 0.05, -0.3)]
    found += [Record("top1", v, "c", f"S{v}", 0, 1, 40, "share") for v in (0.125, 0.375)]
    (tmp_path / "run").mkdir()  # what lies beside a run is looked at, too
    write(tmp_path / "run" / "03_x.json", *found)
    text = claims.scoreboard(tmp_path / "run")
    assert row(text, "gain")[4] == (
        "0.080 (-0.300 … 0.200), 4 subjects; 95 % interval above 0 in 2 of 4, below in 1"
    )
    assert row(text, "found")[4] == (
        "25.0 % (12.5 % … 37.5 %), 2 subjects; gallery 40, chance 2.5 %"
    )


def test_other_worlds_and_recordings_are_shown_beside(tmp_path, paper):
    runs = {"": 0, "-seed1": 0.1, "-seed2": 0.04, "-seed3": 0.9}
    for name, by in runs.items():
        world(tmp_path / f"fast{name}", by)
    world(tmp_path / "macaque-fast", 0.4)
    text = claims.scoreboard(tmp_path / "fast")
    assert text.splitlines()[0].endswith("| over worlds | here: macaque-fast | notebook |")
    mean, low, high = (f"{x:.3f}" for x in t_of(0.15, 0.25, 0.19))
    assert row(text, "each")[5:7] == [
        f"{mean} (95 % interval {low} … {high}), 3 worlds",
        "0.550 (0.500 … 0.600), 2 subjects",
    ]
    assert row(text, "images")[4] == "25"
    assert row(text, "images")[6] == "65"
    assert row(text, "lost")[4:] == [""] * 4
    assert text.endswith(" macaque-fast: neurons.")
    assert "over worlds" not in claims.scoreboard(tmp_path / "macaque-fast").splitlines()[0]
    text = claims.holds(tmp_path / "fast")
    mean, low, high = (f"{x:.3f}" for x in t_of(0.15, 0.25))
    over = f"; {mean} (95 % interval {low} … {high}), 2 worlds"
    assert row(text, "each")[1] == f"fails: 0 of 2, 0 of 2 subjects{over}"
    assert row(text, "each")[2] == "fails: 1 of 2 subjects"
    assert row(text, "whole")[1].startswith("holds in 1 of 2: 50.0 %, 60.0 %; 55.0 % (95 % ")
    assert row(text, "whole")[2] == "holds: 90.0 %"
    assert row(text, "images")[1].startswith("holds: 25, 35; 30 (95 % ")
    assert row(text, "lost")[1:3] == ["not testable", "not testable"]
    world(tmp_path / "mine-fast", 0.2)
    file = tmp_path / "mine-fast" / "03_x.json"
    file.write_text(file.read_text().replace('"simulated": true', '"simulated": false'))
    assert row(claims.scoreboard(tmp_path / "fast"), "images")[6:8] == ["65", "45"]
    assert row(claims.holds(tmp_path / "fast"), "images")[2:4] == ["holds: 65", "holds: 45"]


def t_of(*values):
    """Mean and 95 % t interval, by scipy."""
    return np.mean(values), *ttest_1samp(values, 0).confidence_interval()


OTHER = {**SUITE, "digest": "def"}


@pytest.mark.parametrize("make", [claims.scoreboard, claims.holds])
@pytest.mark.parametrize(
    ("where", "suite", "said"),
    [
        ("fast/04_y", None, "fast/04_y: its numbers do not say of which suite"),
        ("fast/04_y", OTHER, r"fast/04_y: its numbers are of suite ubrain-sim-smoke v1 \(def\)"),
        ("fast-seed1/03_x", None, "fast-seed1/03_x: its numbers do not say"),
        (
            "fast-seed1/03_x",
            {**OTHER, "version": 2},
            "fast-seed1: .* of suite ubrain-sim-smoke v2,",
        ),
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


@pytest.mark.parametrize("suite", [None, OTHER])
def test_a_comparison_of_other_suites_says_so(tmp_path, suite):
    old, new = write(tmp_path / "a.json", A, suite=suite), write(tmp_path / "b.json", A)
    name = "suite ubrain-sim-smoke v1 (def)" if suite else "no suite"
    found = results.compare(old, new)
    assert str(found).endswith(
        f"; published numbers of {name}, here of suite ubrain-sim-smoke v1 (abc): not comparable"
    )
    assert results.compare(new, new).suite == ""


@pytest.mark.parametrize("make", [claims.scoreboard, claims.holds])
def test_tables_need_results(tmp_path, make):
    with pytest.raises(UbrainError, match="make reproduce"):
        make(tmp_path)


BLOCKS = [f"<!-- {name}:{end} -->" for name in ("scoreboard", "holds") for end in ("start", "end")]


def test_tables_go_between_their_markers(tmp_path, paper):
    readme, run = tmp_path / "README.md", tmp_path / "fast"
    a, b, c, d = BLOCKS
    readme.write_text(f"# before\n\n{a}\nold\n{b}\nbetween\n{c}{d}\nafter\n", encoding="utf-8")
    world(run, 0)
    with pytest.raises(UbrainError, match="stale"):
        claims.write_readme(readme, run, check=True)
    assert "old" in readme.read_text(encoding="utf-8")
    claims.write_readme(readme, run)
    board, table = claims.scoreboard(run), claims.holds(run)
    new = f"# before\n\n{a}\n{board}\n{b}\nbetween\n{c}\n{table}\n{d}\nafter\n"
    assert readme.read_text(encoding="utf-8") == new
    claims.write_readme(readme, run, check=True)
    world(run, 0.1)
    with pytest.raises(UbrainError, match="stale"):
        claims.write_readme(readme, run, check=True)


@pytest.mark.parametrize(
    "order", [[], [0], [1], [0, 1], [2, 3], [0, 1, 2], [1, 0, 2, 3], [0, *range(4)]]
)
def test_missing_markers_are_refused(tmp_path, paper, order):
    readme, text = tmp_path / "README.md", "\n".join(BLOCKS[i] for i in order)
    readme.write_text(text, encoding="utf-8")
    world(tmp_path / "fast", 0)
    with pytest.raises(UbrainError, match="markers"):
        claims.write_readme(readme, tmp_path / "fast")
    assert readme.read_text(encoding="utf-8") == text


def test_readme_shows_the_committed_run():
    claims.write_readme(ROOT / "README.md", RUN, check=True)
