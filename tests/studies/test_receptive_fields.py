"""Notebook 06: fields are compared with the right voxels, controls stay where layout puts them,
early areas are told apart.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from ubrain.analysis.fields import Reading
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.report.studies import receptive_fields as study

SIDE, VIEW = 8, 8.4


@pytest.fixture
def readings(lab):
    """Stand-ins: level 1 looks where the voxel looks, level 2 everywhere; early voxels read level
    1, the others level 2.
    """
    centres = (np.arange(SIDE) + 0.5) / SIDE * VIEW - VIEW / 2
    found = {}
    for s in lab.subjects:
        true = truth.voxels(lab.crowd, s)
        x, y, sigma = (true[c].to_numpy()[:, None, None] for c in study.QUANTITIES)
        distance = (centres[None, None] - x) ** 2 + (-centres[None, :, None] - y) ** 2
        here = np.exp(-(distance - distance.min((1, 2), keepdims=True)) / (2 * sigma**2)).reshape(
            len(true), -1
        )
        flat = np.ones_like(here) / SIDE**2
        early = np.where(true["type"].isin(["V1", "V2", "V3"]), 0.9, 0.2)
        attention = np.stack([here / here.sum(1, keepdims=True), flat])
        found[s] = Reading(
            attention.astype(np.float32), np.stack([early, 1 - early]), np.ones((2, len(true)))
        )
    lab.records.clear()
    return found


def test_agreement_is_the_correlation_over_voxels(lab, readings):
    table = study.field_table(lab, readings, VIEW)
    found = study.agreement(lab, table).set_index(["area", "field", "quantity"])
    mine = table[(table["field"] == "level 1") & (table["areas"] == "EBA")]
    for q in study.QUANTITIES:
        row = found.loc["EBA", "level 1", q]
        assert row["r"] == pytest.approx(pearsonr(mine[q], mine[f"true_{q}"])[0])
        assert row["low"] < row["r"] < row["high"]
        assert row["n_voxels"] == len(mine)
    assert found.loc["V1", "level 1", "y"]["r"] > 0.9
    assert "level 2" not in found.loc["V1"].index  # looks everywhere: a constant has no correlation
    recorded = {(r.name, r.condition): r.value for r in lab.records}
    assert (
        recorded["field_r of y in V1", "encoder, crowd, level 1"]
        == found.loc["V1", "level 1", "y"]["r"]
    )


def test_layout_alone_keeps_what_the_hemisphere_tells_and_nothing_else(lab, readings):
    table = study.field_table(lab, readings, VIEW)
    table["x"] = np.where(table["hemisphere"] == "L", 1.0, -1.0)  # knows the hemisphere only
    table["y"] = table["true_y"]
    r = study.agreement(lab, table).set_index(["field", "area", "quantity"])["r"][study.BY_USE]
    alone = study.layout_alone(lab, table).set_index(["area", "quantity"])
    assert alone.loc[("V1", "x"), "r"] == pytest.approx(r["V1", "x"])
    assert r["V1", "x"] > 0.5
    assert r["V1", "y"] == pytest.approx(1)
    assert alone.loc[("V1", "y"), "high"] < 0.7


def test_shuffles_stay_within_their_groups():
    groups = np.array([1, 0, 1, 0, 2, 1])
    shuffled = study.shuffles(groups, 50, np.random.default_rng(0))
    assert (groups[shuffled] == groups).all()
    assert (np.sort(shuffled, axis=1) == np.arange(6)).all()
    assert len(np.unique(shuffled, axis=0)) == 12


def test_a_size_that_only_follows_eccentricity_is_no_size(lab, readings):
    table = study.field_table(lab, readings, VIEW)
    eccentricity = np.hypot(table["true_x"], table["true_y"])
    noise = np.random.default_rng(0).normal(size=len(table))
    table["true_sigma"], table["sigma"] = 0.3 + 0.2 * eccentricity + 0.01 * noise, eccentricity
    follows = study.size_beyond_eccentricity(lab, table).set_index("area")
    table["sigma"] = eccentricity + noise
    knows = study.size_beyond_eccentricity(lab, table).set_index("area")
    assert follows.empty  # nothing is left of it
    assert knows["r"].to_numpy() == pytest.approx(1)
    x, y, z = np.random.default_rng(1).normal(size=(3, 30))
    fit = np.c_[np.ones(30), z]
    rest = [v - fit @ np.linalg.lstsq(fit, v)[0] for v in (x, y)]
    assert study.partial_correlation(x, y, z) == pytest.approx(pearsonr(*rest)[0])


def test_distances_compare_with_the_middle_of_the_image(lab, readings):
    table = study.field_table(lab, readings, VIEW)
    table["x"], table["y"] = table["true_x"] + 0.3, table["true_y"] - 0.4
    away = study.distances(lab, table).set_index("area")
    np.testing.assert_allclose(away["distance"], 0.5)
    v1 = table[(table["areas"] == "V1") & (table["field"] == study.BY_USE)]
    middle = np.hypot(v1["true_x"], v1["true_y"])
    assert away.loc["V1", "of_the_middle"] == pytest.approx(np.median(middle))
    assert away.loc["V1", "nearer"] == pytest.approx(np.median(middle) - 0.5)


def test_early_areas_read_early_levels(lab, readings):
    gaps = study.depth_gap(lab, readings).set_index("subject")
    np.testing.assert_allclose(gaps["gap"], 0.7)
    assert list(gaps.index) == ["all", *lab.subjects]
    use = study.use_of_levels(lab, readings).set_index("area")
    assert use.loc["V1", ["level 1", "level 2", "depth"]].tolist() == pytest.approx([0.9, 0.1, 1.1])
    assert use.loc["EBA", "depth"] == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        ("V1", 1),
        ("V2v", 1),
        ("prf-visualrois:V3d,ecc1", 1),
        ("EarlyVis", 1),
        ("hV4", np.nan),
        ("V4", np.nan),
        ("", np.nan),
        ("FFA", 0),
        ("V3A", 0),
    ],
)
def test_early_areas_are_known_by_the_names_of_several_datasets(areas, expected):
    np.testing.assert_equal(study.is_early(areas), expected)


def test_untrained_embeddings_leave_the_trained_weights_alone(lab):
    import torch

    from ubrain.config import EncoderConfig
    from ubrain.model import UniversalEncoder

    encoder = UniversalEncoder(
        EncoderConfig(widths=(3,), n_tokens=4, embedding_size=4, channels=5),
        {s: lab.crowd[s].n_voxels for s in lab.subjects},
    )
    before = {n: p.clone() for n, p in encoder.named_parameters()}
    blank = dict(study.untrained(lab, encoder).named_parameters())
    for name, p in encoder.named_parameters():
        assert torch.equal(p, before[name])
        assert torch.equal(blank[name], p) != name.startswith("embeddings.")


def voxels_of(lab, monkeypatch, **columns):
    subject = lab.crowd[lab.subjects[0]]
    table = pd.DataFrame({k: np.resize(v, subject.n_voxels) for k, v in columns.items()})
    monkeypatch.setattr(truth, "subjects", lambda crowd: [])
    monkeypatch.setitem(subject.__dict__, "voxels", table)
    return study.known_fields(lab, subject.name)


def test_prf_maps_are_read_in_polar_form(lab, monkeypatch):
    known = voxels_of(lab, monkeypatch, prf_eccentricity=2.0, prf_angle=[0.0, 90.0], prf_size=0.7)
    np.testing.assert_allclose(known.iloc[:2], [[2, 0, 0.7], [0, 2, 0.7]], atol=1e-12)


def test_prf_centres_without_sizes_are_enough(lab, monkeypatch):
    known = voxels_of(lab, monkeypatch, prf_x=1.0, prf_y=-2.0)
    assert known[["x", "y"]].iloc[0].tolist() == [1, -2]
    assert known["sigma"].isna().all()


def test_a_recording_without_prf_maps_has_no_known_fields(lab, monkeypatch):
    assert voxels_of(lab, monkeypatch, areas="V1") is None


def test_areas_count_whose_interval_is_above_both_controls(lab):
    areas, by_use = ["V1", "V2", "FFA"], study.BY_USE
    found = pd.DataFrame({"area": areas, "field": by_use, "quantity": "x", "low": [0.5, 0.3, 0.1]})
    coarse = found.assign(field="level 1", low=0.9)  # takes no part
    controls = pd.DataFrame({"area": ["V1", "V2"] * 2, "field": by_use, "quantity": "x"})
    controls["high"] = [0.2, 0.2, 0.1, 0.4]
    table = study.above_controls(lab, pd.concat([found, coarse]), controls)
    assert table.loc["x"].tolist() == [3, 2, pytest.approx(2 / 3), "V1, FFA"]
    assert lab.records.pop().name == "field_areas_above_controls of x"
    assert study.above_controls(lab, found[:0], controls[:0]).empty


def test_field_of_view_is_known_of_simulations_and_checked(lab):
    assert study.field_of_view(lab, None) == (8.4, "degrees")
    assert study.field_of_view(lab, 12.0) == (12.0, "degrees")
    with pytest.raises(UbrainError, match="above 0"):
        study.field_of_view(lab, 0)
