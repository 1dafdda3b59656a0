"""Numbers on disk, and the scoreboard made from them."""

import json
from pathlib import Path

import numpy as np
import pytest

from ubrain.errors import UbrainError
from ubrain.report import results
from ubrain.report.results import END, START, Record

ROOT = Path(__file__).parents[1]
FACTS = {"simulated": True, "crowd": "simulated, seed 0", "profile": "smoke", "seed": 0}
CLAIMS = results.paper_claims()["claim"]
GAIN = "encoder, crowd − encoder, one subject"


def write(path, *records, **facts):
    results.write_results(path, path.stem, records, {**FACTS, **facts})
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    """A run of four subjects: the gain is above 0 in two, unknown in one."""
    folder = tmp_path / "simulated-smoke"
    medians = {"S0": 0.1, "S1": 0.4, "S2": 0.2, "S3": 0.3}
    records = [
        Record("median_r", r, "encoder, crowd", s, r - 0.1, r + 0.1, 60, "r")
        for s, r in medians.items()
    ]
    records += [
        Record("gain_median_r", 0.03, GAIN, "S0", 0.01, 0.05, 60, "r"),
        Record("gain_median_r", 0.02, GAIN, "S1", 0.001, 0.05, 60, "r"),
        Record("gain_median_r", 0.01, GAIN, "S2", -0.01, 0.05, 60, "r"),
        Record("gain_median_r", np.nan, GAIN, "S3", np.nan, np.nan, 60, "r"),
        Record("top1", 0.125, "encoder, crowd", "S0", 0, 0.3, 40, "share"),
        Record("top1", 0.375, "encoder, crowd", "S1", 0, 0.5, 40, "share"),
        Record("claim_holds", 0.5, "encoder, crowd", "all", unit="share"),
    ]
    write(folder / "01_crowd_gains.json", *records)
    return folder


def row(text, claim):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {claim} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


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
    assert document["results"][0] == {
        "name": "r",
        "value": 0.5,
        "condition": "x",
        "subject": "S1",
        "low": 0.25,
        "high": 1,
        "n": 7,
        "unit": "r",
    }
    assert (document["results"][1]["value"], document["results"][1]["high"]) == (None, None)
    assert document["results"][1]["low"] is None
    assert document["results"][2]["condition"] == "≈ −"
    assert document["versions"].keys() == {"python", *results.VERSIONS}
    assert isinstance(document["commit"], str)


def test_file_is_strict_json(tmp_path):
    write(tmp_path / "a.json", Record("r", float("nan"), low=float("-inf"), high=float("inf")))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert not [word for word in ("NaN", "Infinity") if word in text]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_same_record_twice_is_refused(tmp_path):
    with pytest.raises(UbrainError, match=r"a: recorded more than once: \('r', 'x', 'S1'\)"):
        write(
            tmp_path / "a.json",
            Record("r", 1, "x", "S1"),
            Record("r", 2, "x", "S2"),
            Record("r", 3, "x", "S1"),
        )
    assert not (tmp_path / "a.json").exists()


def documents(tmp_path, old, new):
    return write(tmp_path / "old.json", *old), write(tmp_path / "new.json", *new)


A, B, C = (
    Record("a", 1.0, low=0.5, high=1.5, n=3),
    Record("b", float("nan")),
    Record("c", 0.0, "x", "S1"),
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([A, B, C], [A, B, C], (3, 3)),
        ([A, B, C], [C, A, B], (3, 3)),
        ([A, B, C], [A, B], (2, 3)),
        ([A], [A, B, C], (1, 3)),
        ([A], [Record("a", 1.0 + 1e-9, low=0.5, high=1.5, n=3)], (1, 1)),
        ([A], [Record("a", 1.001, low=0.5, high=1.5, n=3)], (0, 1)),
        ([A], [Record("a", 1.0, low=0.4, high=1.5, n=3)], (0, 1)),
        ([A], [Record("a", 1.0, low=0.5, high=1.6, n=3)], (0, 1)),
        ([A], [Record("a", 1.0, low=0.5, high=1.5, n=4)], (0, 1)),
        ([A], [Record("a", 1.0, "other", low=0.5, high=1.5, n=3)], (0, 1)),
        ([A], [Record("a", float("nan"), low=0.5, high=1.5, n=3)], (0, 1)),
        ([B], [Record("b", 0.0)], (0, 1)),
        ([C], [Record("c", 0.0, "x", "S2")], (0, 1)),
    ],
)
def test_same_numbers(tmp_path, old, new, expected):
    assert results.same_numbers(*documents(tmp_path, old, new)) == expected


def test_scoreboard_shows_middle_and_range(run):
    cells = row(results.scoreboard(run), "Median voxel r, encoder on the crowd")
    assert cells[1:] == ["Fig. 4", "", "0.5289", "0.250 (0.100 … 0.400), 4 subjects", ""]


def test_scoreboard_leaves_blank_what_is_not_known(run):
    text = results.scoreboard(run)
    assert row(text, "Median voxel r, encoder on one subject")[2:] == ["", "", "", ""]
    assert row(text, "Gain in median r: crowd − ridge")[2:] == ["", "", "", ""]


def test_scoreboard_counts_intervals_above_zero(run):
    assert (
        row(results.scoreboard(run), "Gain in median r: crowd − one subject")[4]
        == "0.020 (0.010 … 0.030), 3 subjects; 95 % interval above 0 in 2 of 3"
    )


def test_scoreboard_shows_gallery_and_chance(run):
    assert (
        row(results.scoreboard(run), "Top-1 retrieval, encoder on the crowd")[4]
        == "25.0 % (12.5 % … 37.5 %), 2 subjects; gallery 40, chance 2.5 %"
    )


def test_scoreboard_says_what_it_was_made_with(run):
    text = results.scoreboard(run)
    assert (
        text.splitlines()[0]
        == "| claim | figure | paper | authors' run | here: simulated-smoke | notebook |"
    )
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "Here: simulated crowd, profile smoke, seed 0" in text
    write(run / "01_crowd_gains.json", Record("median_r", 0.5), simulated=False, crowd="nsd.h5")
    assert "Here: nsd.h5, profile smoke" in results.scoreboard(run)


def test_scoreboard_of_other_notebooks_only_is_blank_here(tmp_path):
    write(tmp_path / "00_start_here.json", Record("median_r", 0.9, "encoder, crowd", "S1"))
    assert row(results.scoreboard(tmp_path), "Median voxel r, encoder on the crowd")[4] == ""


def test_scoreboard_links_to_the_executed_notebook(run):
    (run / "01_crowd_gains.ipynb").write_text("")
    link = f"[01]({run.parent.name}/simulated-smoke/01_crowd_gains.ipynb)"
    assert {
        row(results.scoreboard(run), c["text"])[5]
        for c in CLAIMS
        if c["notebook"] == "01_crowd_gains"
    } == {link}


@pytest.fixture
def claims(monkeypatch):
    """Claims of a paper about which everything is known."""
    paper = {
        "sources": {"paper": "book"},
        "runs": {"seeds": [1, 2, 5], "recordings": "macaque-fast", "recordings_are": "neurons"},
        "claim": [
            {
                "text": t,
                "figure": "",
                "notebook": n,
                "name": t,
                "condition": "c",
                "paper": "",
                "run": "",
            }
            for t, n in (("each", "03_x"), ("whole", "03_x"), ("images", "03_x"), ("lost", "04_y"))
        ],
    }
    monkeypatch.setattr(results, "paper_claims", lambda: paper)


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


def test_a_number_over_all_subjects_is_shown_with_its_interval(tmp_path, claims):
    world(tmp_path / "fast", 0)
    text = results.scoreboard(tmp_path / "fast")
    assert row(text, "whole")[4] == "50.0 % (95 % interval 25.0 % … 75.0 %)"
    assert row(text, "images")[4] == "25"
    assert row(text, "each")[4] == "0.150 (0.100 … 0.200), 2 subjects"
    assert results.unknown_claims(tmp_path / "fast") == ["lost"]


def test_other_seeds_and_recordings_are_shown_beside(tmp_path, claims):
    for name, by in (
        ("fast", 0),
        ("fast-seed1", 0.1),
        ("fast-seed2", 0.04),
        ("fast-seed3", 0.9),
        ("macaque-fast", 0.7),
    ):
        world(tmp_path / name, by)
    text = results.scoreboard(tmp_path / "fast")
    assert (
        text.splitlines()[0]
        == "| claim | figure | paper | authors' run | here: fast | over seeds | here: macaque-fast"
        " | notebook |"
    )
    each = [
        "0.150 (0.100 … 0.200), 2 subjects",
        "0.150 … 0.250, 3 seeds",
        "0.850 (0.800 … 0.900), 2 subjects",
    ]
    assert row(text, "each")[4:] == [*each, ""]
    assert row(text, "images")[4:7] == ["25", "25 … 35, 3 seeds", "95"]
    assert row(text, "lost")[4:] == ["", "", "", ""]
    assert text.endswith(" macaque-fast: neurons.")
    points = Record("gain", 0.1, "c", "S1", 0.05, 0.15, unit="share")
    assert results._show(points.value, results._unit(vars(points))) == "10.0 points"
    assert results._show(points.value, results._unit({**vars(points), "name": "top1"})) == "10.0 %"
    write(tmp_path / "fast-seed2" / "03_x.json", Record("each", float("nan"), "c", "S1"))
    assert row(results.scoreboard(tmp_path / "fast"), "each")[5] == "0.150 … 0.250, 2 seeds"
    assert "over seeds" not in results.scoreboard(tmp_path / "macaque-fast").splitlines()[0]


def test_scoreboard_needs_results(tmp_path):
    with pytest.raises(UbrainError, match="make reproduce"):
        results.scoreboard(tmp_path)


def test_scoreboard_goes_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# before\n\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    with pytest.raises(UbrainError, match="stale"):
        results.write_scoreboard(readme, "| new |", check=True)
    assert "old" in readme.read_text(encoding="utf-8")
    results.write_scoreboard(readme, "| new |")
    assert readme.read_text(encoding="utf-8") == f"# before\n\n{START}\n| new |\n{END}\nafter\n"
    results.write_scoreboard(readme, "| new |", check=True)
    with pytest.raises(UbrainError, match="stale"):
        results.write_scoreboard(readme, "| newer |", check=True)


@pytest.mark.parametrize(
    "text", ["", START, END, f"{START}{START}{END}", f"{START}{END}{END}", f"{END}\n{START}"]
)
@pytest.mark.parametrize("check", [True, False])
def test_missing_markers_are_refused(tmp_path, text, check):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(UbrainError, match="markers"):
        results.write_scoreboard(readme, "| new |", check)
    assert readme.read_text(encoding="utf-8") == text


def test_readme_shows_the_committed_run():
    run = ROOT / "papermill_runs" / "simulated-fast"
    readme = ROOT / "README.md"
    if not list(run.glob("*.json")) or START not in readme.read_text(encoding="utf-8"):
        pytest.skip("no committed run, or no scoreboard in the README")
    results.write_scoreboard(readme, results.scoreboard(run), check=True)


def test_claims_are_well_formed():
    needed = {"text", "figure", "notebook", "name", "condition", "paper", "run"}
    for claim in CLAIMS:
        assert needed <= claim.keys() <= needed | {"also"}, claim
        assert claim.get("also", "chance") in ("intervals", "chance")
        assert "|" not in "".join(claim.values())
    assert len({(c["notebook"], c["name"], c["condition"]) for c in CLAIMS}) == len(CLAIMS)
    assert len({c["text"] for c in CLAIMS}) == len(CLAIMS)


def test_every_claim_of_the_paper_has_a_number_in_the_committed_run():
    assert results.unknown_claims(ROOT / "papermill_runs" / "simulated-fast") == []
