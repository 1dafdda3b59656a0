"""Notebook 07: variants differ in one thing, levels are what a smaller backbone gives, differences
are paired.
"""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_1samp

from ubrain import train
from ubrain.config import BackboneConfig, recipes
from ubrain.errors import UbrainError
from ubrain.report.lab import Lab
from ubrain.report.studies import ablations as study

CNN = BackboneConfig("tf_efficientnet_lite0", "embedded", (0, 1, 3), 64, 4, False, 0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, small_crowd):
    patch = pytest.MonkeyPatch()
    patch.setenv("UBRAIN_OUT", str(tmp_path_factory.mktemp("out") / "small-smoke"))
    patch.setattr("ubrain.report.lab.LEAST_IMAGES", {})
    made = Lab("98_test", str(small_crowd), profile="smoke")
    made.profile = replace(made.profile, backbone=CNN)
    yield made
    patch.undo()


def test_each_variant_changes_one_thing(lab):
    full, *others = study.variants(lab)
    table = study.settings_table(lab, [full, *others])
    changed = (table != table.loc[study.FULL]).drop(columns="steps").sum(axis=1)
    assert changed.drop(study.FULL).eq(1).all()
    assert len({v.name for v in others}) == len(others)
    assert {v.encoder.without for v in others} == {(), ("spatial",), ("position",), ("functional",)}
    losses = {(v.training.mse_weight, v.training.cosine_weight) for v in others}
    assert losses == {(1.0, 0.1), (0.1, 0.9)}


def test_all_variants_train_for_the_same_number_of_steps(lab):
    for v in study.variants(lab, n_steps=7):
        plan = train.Plan(lab.crowd, tuple(lab.subjects), v.training, 0)
        assert plan.epochs == -(-7 // plan.steps_per_epoch)


def test_each_difference_of_the_other_recipe_is_a_variant_and_all_of_them_are_one(lab):
    full, *others = study.variants(lab)
    *alone, whole = [v for v in others if v.group == "recipe"]
    options, paper = (
        [{**asdict(v.encoder), **asdict(v.training)} for v in alone],
        recipes()["paper"],
    )
    before = {**asdict(full.encoder), **asdict(full.training)}
    changed = [{k for k in before if o[k] != before[k]} for o in options]
    assert changed == [{name} for name in study.ALONE]
    theirs = {**paper["encoder"], **paper["training"]}
    assert {**before, **theirs} == {**asdict(whole.encoder), **asdict(whole.training)}
    assert {k for k in theirs if theirs[k] != before[k]} == {
        *study.ALONE,
        "learning_rate",
        "schedule",
    }


def test_variants_of_the_recipe_can_be_trained(lab):
    lab.records.clear()
    chosen = [v for v in study.variants(lab, n_steps=2) if v.group == "recipe"]
    table = study.train_all(lab, chosen, 2)
    assert np.isfinite(table["median_r"]).all()
    assert table.groupby("subject")["median_r"].nunique().gt(len(study.ALONE)).all()


def test_adapters_are_compared_with_training_from_images(lab):
    profile = replace(lab.profile, ablations=replace(lab.profile.ablations, adapter_rank=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "profile", profile)
        *_, images, adapters = study.variants(lab)
    assert (images.adapter_rank, images.against) == (0, study.FULL)
    assert (adapters.adapter_rank, adapters.against) == (3, images.name)


def test_variants_are_trained_and_scored_for_every_seed_and_subject(lab):
    lab.records.clear()
    names = study.FULL, "level 2 only", "without functional attention"
    chosen = [v for v in study.variants(lab, n_steps=2) if v.name in names]
    table = study.train_all(lab, chosen, 2)
    assert len(table) == 3 * 2 * len(study.subjects_of(lab))
    assert np.isfinite(table["median_r"]).all()
    sizes = table.groupby("variant")["shared"].first()
    assert sizes["level 2 only"] < sizes[study.FULL]
    assert (
        len({(r.name, r.condition, r.subject) for r in lab.records})
        == len(lab.records)
        == len(table)
    )


def test_adapters_are_trained_from_images_and_kept_with_the_encoder(lab, monkeypatch):
    vit = BackboneConfig("vit_tiny_patch16_224", "random", (1,), 32, None, True, 0)
    ablations = replace(lab.profile.ablations, adapter_rank=2)
    monkeypatch.setattr(lab, "profile", replace(lab.profile, backbone=vit, ablations=ablations))
    *_, images, adapters = study.variants(lab, n_steps=2)
    first = study.train_all(lab, [images, adapters], 2)
    monkeypatch.setattr(lab, "records", [])
    again = study.train_all(lab, [images, adapters], 2)  # from the run cache
    pd.testing.assert_frame_equal(first, again)
    moved = study.source_of(lab, adapters, lab.seed)
    lab.encoder(study.subjects_of(lab), adapters.encoder, adapters.training, lab.seed, moved)
    start = study.source_of(lab, adapters, lab.seed).adapters.state_dict()
    assert any(not torch.equal(t, start[n]) for n, t in moved.adapters.state_dict().items())


def scored(values):
    """A table as `train_all` makes it: variant -> one score per pair of seed and subject."""
    pairs = [(0, "S1"), (0, "S2"), (1, "S1"), (1, "S2")]
    return pd.DataFrame(
        [
            {"variant": v, "seed": seed, "subject": s, "median_r": x}
            for v, row in values.items()
            for (seed, s), x in zip(pairs, row, strict=True)
        ]
    )


def test_differences_are_paired_by_seed_and_subject(lab):
    lab.records.clear()
    full, *others = study.variants(lab)
    chosen = [full, replace(others[0], name="a"), replace(others[1], name="b", against="a")]
    a, b = np.array([0.5, 0.2, 0.4, 0.1]), np.array([0.45, 0.18, 0.31, 0.1])
    found = study.differences(lab, chosen, scored({study.FULL: a + 0.1, "a": a, "b": b})).set_index(
        "variant"
    )
    assert found.loc["a", "difference"] == pytest.approx(-0.1)
    interval = ttest_1samp(b - a, 0).confidence_interval(0.95)
    assert found.loc["b", ["difference", "low", "high"]].tolist() == pytest.approx(
        [(b - a).mean(), *interval]
    )
    assert {(r.name, r.condition) for r in lab.records} >= {
        ("difference in median_r", "b − a"),
        ("median_r", study.FULL),
    }


def test_outcomes_are_decided_by_the_intervals(lab):
    rows = [("x", -0.1, -0.2, -0.05), ("y", 0.0, -0.1, 0.1), ("z", 0.2, 0.1, 0.3)]
    found = pd.DataFrame(rows, columns=["variant", "difference", "low", "high"])
    found = found.assign(against=study.FULL, median_r=0.4, top1=0.5)
    lab.records.clear()
    table = study.outcomes(lab, found, found.assign(low=0.01))
    assert table["median_r outcome"].tolist() == ["worse", "open", "better"]
    assert table["top1 outcome"].tolist() == ["worse", "better", "better"]
    shares = {r.condition: r.value for r in lab.records}
    assert shares == pytest.approx({"worse": 1 / 3, "better": 1 / 3, "open": 1 / 3})


def test_one_seed_is_too_few(lab):
    with pytest.raises(UbrainError, match="need two or more"):
        study.train_all(lab, study.variants(lab), 1)
