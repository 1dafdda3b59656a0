"""Numbers on disk, how runs are compared, claims, and the tables made from them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

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
        (Record("over ridge, matching (ours)", 0.1, "crowd", low=0.05, high=0.15), 0.005),
        (Record("over ridge, gradient", -0.1, "untrained", low=-0.15, high=-0.05), 0.005),
        (Record("over ridge, matching (ours)", -0.1, "untrained", low=-0.15, high=-0.05), 0.05),
        (Record("gain of the crowd", 0.0, "partners of S1 shuffled", low=-0.01, high=0.01), 0.01),
        (Record("difference in top1", 0.1, low=0.08, high=0.12, n=4, unit="share"), 0.02),
        (Record("stability", 0.8, "12 clusters", n=5, unit="ARI"), 0.08),
        (Record("stability", 1.0, "9 clusters", n=5, unit="ARI"), 0.01),
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
    ("rule", "holds", "n_holds"),
    [
        ("low > 0", "fails", 2),
        ("high >= 0", "holds", 4),
        ("value < 0.2", "fails", 2),
        ("value <= 0.3", "holds", 4),
        ("value > -1", "holds", 4),
        ("", "", 0),
    ],
)
def test_a_rule_decides_each_record(rule, holds, n_holds):
    run = document(*records(0.05, 0.1, 0.2, 0.3), Record("r", -9, "c"), Record("q", -9, "c", "S1"))
    row = claims.judge(replace(CLAIM, rule=rule), run)
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
            "Holds: all is well: +0.030 [+0.010, +0.050].",
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
    known = {c.id: c for c in all_claims}
    assert len(known) == len(all_claims)
    assert len({(c.notebook, c.name, c.condition, c.rule) for c in all_claims}) == len(all_claims)
    assert len({c.text for c in all_claims}) == len(all_claims)
    for claim in all_claims:
        assert (ROOT / "notebooks" / f"{claim.notebook}.py").exists()
        assert claim.heading, claim.id
        assert "|" not in claim.text + claim.paper + claim.run + claim.heading
        assert all(known[i].rule for i in claim.control.split()), claim.id
    for notebook in {c.notebook for c in all_claims}:
        assert 1 <= sum(c.verdict for c in all_claims if c.notebook == notebook) <= 3
    for question in claims.questions():
        ids = [*question["answers"].values(), *question.get("limits", {}).values()]
        assert set(ids) <= set(known)
        assert all(known[i].rule for i in question.get("limits", {}).values())


def test_every_shipped_claim_is_decided_by_the_committed_run():
    documents = results.read_results(RUN)
    undecided = [c.id for c in claims.read() if claims.judge(c, documents).holds == "not testable"]
    assert undecided == []
