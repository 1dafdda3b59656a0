"""Newcomers: who is new to whom, views with few images, and tables made from curves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ubrain import transfer
from ubrain.config import SimulationConfig
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.report.lab import ALONE, RIDGE, Lab, simulated_crowd
from ubrain.report.studies import newcomers
from ubrain.report.studies.newcomers import GRADIENT, MATCHING, OURS


def table_of(curves, n_images=(10, 100), direction="a → b", noise=(0.0, 0.0)):
    """Curves, method -> one median r per number of images, for one newcomer and two draws."""
    noise = np.asarray(noise)
    rows = [
        [direction, "S4", method, draw, n, n == 100, r, r, 0.6, 1.0, r + noise, r + noise]
        for method, values in curves.items()
        for n, r in zip(n_images, values, strict=True)
        for draw in (0, 1)
    ]
    return pd.DataFrame(rows, columns=newcomers.COLUMNS)


def test_directions_follow_from_the_datasets(lab):
    found = {d.name: (d.crowd, d.newcomers) for d in newcomers.directions(lab)}
    assert found == {
        "a new subject": (("S1", "S2"), ("S3",)),
        "7T → 3T": (("S1", "S2", "S3"), ("S4",)),
        "7T → 4T": (("S1", "S2", "S3"), ("S6",)),
        "3T → 7T": (("S4", "S5"), ("S3",)),
    }


def test_nobody_is_new_where_there_is_one_subject(small_crowd):
    lab = Lab("97_test", str(small_crowd), profile="smoke", subjects=["S1"])
    assert newcomers.directions(lab) == []
    table = newcomers.curves(lab, [])
    assert table.empty
    assert newcomers.images_needed(lab, table).empty
    assert newcomers.against_best(lab, table).empty
    figure = newcomers.draw([], newcomers.summarise(table), "r")
    assert "no newcomer" in figure.axes[0].texts[0].get_text()


def test_a_view_has_only_its_images_and_voxels(lab):
    (few,) = newcomers.few_images(lab, "S4", [30])
    whole, view = lab.crowd["S4"], few.subject
    train, val = view.image_rows("train"), view.image_rows("val")
    assert (len(train), len(val)) == (24, 6)
    assert set(train) | set(val) <= set(transfer.images_of(lab.crowd, "S4"))
    np.testing.assert_array_equal(view.image_rows("test"), whole.image_rows("test"))
    np.testing.assert_array_equal(view.responses("val"), whole.responses_to(val, few.voxels))
    assert len(view.voxels) == view.n_voxels == len(few.voxels) == lab.profile.transfer.voxels


def test_draws_are_nested_and_all_images_are_drawn_once(lab):
    fewer, more = newcomers.few_images(lab, "S3", [12, 30, 10**6])
    assert [(f.n_images, f.draw, f.all_images) for f in (fewer, more)] == [
        (12, 0, False),
        (30, 0, False),
    ]
    rows = [
        set(np.concatenate([f.subject.image_rows(s) for s in ("train", "val")]).tolist())
        for f in (fewer, more)
    ]
    assert rows[0] < rows[1]
    *_, last = newcomers.few_images(lab, "S3")
    assert last.all_images
    assert last.n_images == len(transfer.images_of(lab.crowd, "S3"))
    with pytest.raises(UbrainError, match="at least 10, got 3"):
        newcomers.few_images(lab, "S3", [3])


def test_every_method_predicts_and_is_recorded(lab):
    direction = newcomers.directions(lab)[1]
    lab.records.clear()
    table = newcomers.curves(lab, [direction])
    few = table[table["n_images"] == 12]
    assert few["method"].tolist() == [RIDGE, GRADIENT, MATCHING, OURS]
    assert table[table["all_images"]]["method"].tolist() == [RIDGE, ALONE, GRADIENT, MATCHING, OURS]
    assert table["median_r"].between(-1, 1).all()
    voxels = newcomers.few_images(lab, "S4")[0].voxels
    assert few["ceiling"].iloc[0] == pytest.approx(np.nanmedian(lab.ceiling_r("S4")[voxels]))
    recorded = {(r.name, r.condition): r.value for r in lab.records}
    row = few[few["method"] == OURS].iloc[0]
    assert recorded["transfer_median_r", f"7T → 3T, {OURS}, 12 images"] == row["median_r"]


def test_images_needed_lie_on_the_line_between_two_numbers(lab):
    table = table_of({GRADIENT: (0.2, 0.4), OURS: (0.38, 0.5), RIDGE: (0.1, 0.2)})
    needed = newcomers.images_needed(lab, table).set_index("method")["90 % of gradient with all"]
    assert needed[GRADIENT] == pytest.approx(10 * 10 ** ((0.36 - 0.2) / 0.2))
    assert needed[OURS] == pytest.approx(10)
    assert np.isnan(needed[RIDGE])


def test_ours_is_compared_with_the_best_of_the_others(lab):
    table = table_of(
        {RIDGE: (0.3, 0.2), GRADIENT: (0.2, 0.4), MATCHING: (0.1, 0.1), OURS: (0.35, 0.3)}
    )
    against = newcomers.against_best(lab, table)
    assert against["best of the others"].tolist() == [RIDGE, GRADIENT]
    np.testing.assert_allclose(against["difference"], [0.05, -0.1])
    better = table.assign(top1=[*table["top1"][:-2], 0.9, 0.9])
    in_top1 = newcomers.against_best(lab, better, "top1")
    np.testing.assert_allclose(in_top1["difference"], [0.05, 0.5])
    names = {r.name for r in lab.records[-4:]}
    assert names == {"ours_minus_best", "ours_minus_best in top1"}


def test_a_difference_within_the_noise_of_the_test_images_is_neither(lab):
    table = table_of({MATCHING: (0.4, 0.4), OURS: (0.39, 0.39)}, noise=np.linspace(-0.1, 0.1, 50))
    paired = newcomers.against_best(lab, table)
    assert (paired["high"] < 0).all()  # the same noise in both: it cancels
    ours = table["method"] == OURS
    other = np.linspace(0.1, -0.1, 50)
    table["resampled_median_r"] = [
        x + other * mine for x, mine in zip(table["resampled_median_r"], ours, strict=True)
    ]
    apart = newcomers.against_best(lab, table)
    assert ((apart["low"] < 0) & (apart["high"] > 0)).all()
    np.testing.assert_allclose(apart["difference"], -0.01)


def test_a_panel_says_that_the_ceiling_is_unknown(lab):
    table = table_of({GRADIENT: [0.1, 0.2]}, direction="7T → 4T").assign(ceiling=np.nan)
    mean = newcomers.summarise(table)
    figure = newcomers.draw(
        [newcomers.Direction("7T → 4T", ("S1",), ("S6",))], mean, "r", ceiling=True
    )
    assert figure.axes[0].get_title() == "7T → 4T (ceiling unknown)"


def test_other_crowds_score_voxels_of_a_type_that_the_crowd_lacks(lab):
    part = SimulationConfig(subjects=1, images=90, test_images=20, voxels=100)
    parts = (replace(part, subjects=2, lacking="place"), part)
    records = len(lab.records)
    table = newcomers.robustness(lab, {"lacks": (3, parts)}, n_images=(20,), steps=5)
    groups = table.index.get_level_values("voxels").str.split(" ").str[0]
    assert list(groups) == ["all", "place"]
    assert list(table) == [RIDGE, GRADIENT, MATCHING, OURS, "ours − best"]
    best = table[[RIDGE, GRADIENT, MATCHING]].max(axis=1)
    np.testing.assert_allclose(table["ours − best"], table[OURS] - best)
    assert len(lab.records) - records == 2 * 4
    del lab.records[records:]
    path = simulated_crowd(replace(lab.profile, simulation=parts), 3)  # from the cache
    with Lab("97_test", str(path), profile="smoke").crowd as crowd:
        has_place = ["place" in set(truth.voxels(crowd, s)["type"]) for s in crowd.subjects]
    assert has_place == [False, False, True]
