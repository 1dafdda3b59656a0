"""Newcomers: who is new to whom, views with few images, and tables made from curves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ubrain import transfer
from ubrain.config import SimulationConfig
from ubrain.crowd import Crowd
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.report.lab import RIDGE, Lab
from ubrain.report.studies import newcomers
from ubrain.report.studies.newcomers import GRADIENT, MATCHING, OURS


def table_of(curves, n_images=(10, 100), direction="a → b", all_images=100, noise=(0.0, 0.0)):
    """Curves given as method -> one median r per number of images, for one newcomer and two
    draws.
    """
    noise = np.asarray(noise)
    rows = [
        {
            "direction": direction,
            "subject": "S4",
            "method": method,
            "draw": draw,
            "n_images": n,
            "all_images": n == all_images,
            "median_r": r,
            "top1": r,
            "gallery": 20,
            "ceiling": 0.6,
            "seconds": 1.0,
            "chosen": "",
            "resampled_median_r": r + noise,
            "resampled_top1": r + noise,
        }
        for method, values in curves.items()
        for n, r in zip(n_images, values, strict=True)
        for draw in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_directions_follow_from_the_datasets(lab):
    found = {d.name: (d.crowd, d.newcomers) for d in newcomers.directions(lab)}
    assert found == {
        "a new subject": (("S1", "S2"), ("S3",)),
        "7T → 3T": (("S1", "S2", "S3"), ("S4",)),
        "7T → 4T": (("S1", "S2", "S3"), ("S6",)),
        "3T → 7T": (("S4", "S5"), ("S3",)),
    }
    overview = newcomers.overview(lab, newcomers.directions(lab)).set_index("direction")
    assert overview.loc["7T → 3T", "images"] == str(len(transfer.images_of(lab.crowd, "S4")))


def test_nobody_is_new_where_there_is_one_subject(small_crowd):
    lab = Lab("97_test", str(small_crowd), profile="smoke", subjects=["S1"])
    assert newcomers.directions(lab) == []
    table = newcomers.curves(lab, [])
    assert table.empty
    needed, against = newcomers.images_needed(lab, table), newcomers.against_best(lab, table)
    assert "nothing to compare" in newcomers.verdict(table, needed, against, against)
    assert newcomers.time_table(table).empty
    figure = newcomers.draw([], newcomers.summarise(table), "r")
    assert "no newcomer" in figure.axes[0].texts[0].get_text()


def test_a_view_has_only_its_images_and_voxels(lab):
    subject = lab.crowd["S4"]
    rows, voxels = transfer.images_of(lab.crowd, "S4", 30, 1), np.array([3, 1, 7])
    view = newcomers.FewImages(subject, rows, voxels)
    train, val = view.image_rows("train"), view.image_rows("val")
    assert (len(train), len(val)) == (24, 6)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), rows)
    np.testing.assert_array_equal(view.image_rows("test"), subject.image_rows("test"))
    np.testing.assert_array_equal(view.responses_to(rows), subject.responses_to(rows)[:, voxels])
    assert len(view.voxels) == view.n_voxels == 3
    assert view.scanner == "3T"


def test_draws_are_nested_and_all_images_are_drawn_once(lab):
    cases = list(newcomers._cases(lab, None, "S3", [12, 30, 10**6]))
    assert [(len(case.rows), draw, is_all) for case, draw, is_all in cases] == [
        (12, 0, False),
        (30, 0, False),
    ]
    assert set(cases[0][0].rows) < set(cases[1][0].rows)
    *_, (last, _, is_all) = newcomers._cases(lab, None, "S3", None)
    assert is_all
    assert len(last.rows) == len(transfer.images_of(lab.crowd, "S3"))
    with pytest.raises(UbrainError, match="at least 10, got 3"):
        list(newcomers._cases(lab, None, "S3", [3]))


def test_every_method_predicts_and_is_recorded(lab):
    direction = newcomers.directions(lab)[1]
    lab.records.clear()
    table = newcomers.curves(lab, [direction], [20])
    assert table["method"].tolist() == [RIDGE, GRADIENT, MATCHING, OURS]
    assert table["median_r"].between(-1, 1).all()
    assert (table["gallery"] == 20).all()
    view_ceiling = lab.ceiling_r("S4")[
        np.sort(np.random.default_rng(0).permutation(lab.crowd["S4"].n_voxels)[:10])
    ]
    assert table["ceiling"].iloc[0] == pytest.approx(np.nanmedian(view_ceiling))
    recorded = {(r.name, r.condition): r.value for r in lab.records}
    row = table[table["method"] == OURS].iloc[0]
    assert recorded["transfer_median_r", f"7T → 3T, {OURS}, 20 images"] == row["median_r"]


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
    against = newcomers.against_best(lab, table).set_index("n_images")
    assert against["best of the others"].tolist() == [RIDGE, GRADIENT]
    np.testing.assert_allclose(against["difference"], [0.05, -0.1])
    in_top1 = newcomers.against_best(
        lab, table.assign(top1=[*table["top1"][:-2], 0.9, 0.9]), "top1"
    )
    text = newcomers.verdict(
        table, newcomers.images_needed(lab, table), against.reset_index(), in_top1
    )
    assert f"{GRADIENT} is above {RIDGE} in median r: 1 of 2; not a → b at 10" in text
    assert (
        "a → b: 90 % of its own best with 63 of 100 images; median r 0.20 with 10, 0.40 with 100"
        " images; " in text
    )
    assert "at most half of the images: 0 of 1; not a → b" in text
    assert "beside it, with 100: ridge 0.20, ceiling 0.60" in text
    assert (
        "in median r, by the 95 % intervals: below in 1 of 2: a → b at 100 (-0.100); above in 1,"
        " neither in 0" in text
    )
    assert "in top-1, by the 95 % intervals: below in 0 of 2; above in 2" in text


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


def test_where_all_images_were_not_tried_nothing_is_said_of_the_own_best(lab):
    table = table_of({GRADIENT: (0.2, 0.4), OURS: (0.3, 0.4)}, all_images=500)
    against = newcomers.against_best(lab, table)
    text = newcomers.verdict(table, newcomers.images_needed(lab, table), against, against)
    assert "half of the images: 0 of 0\n" in text
    assert text.endswith("half of the paper's images: 0 of 0")
    assert "its own best with" not in text.splitlines()[0]


def test_a_failure_of_half_the_images_is_said(lab):
    table = table_of({GRADIENT: (0.38, 0.4), OURS: (0.2, 0.4)})
    against = newcomers.against_best(lab, table)
    text = newcomers.verdict(table, newcomers.images_needed(lab, table), against, against)
    assert "at most half of the paper's images: 0 of 1; not a → b" in text


def test_a_panel_says_that_the_ceiling_is_unknown(lab):
    table = table_of({GRADIENT: [0.1, 0.2]}, direction="7T → 4T").assign(ceiling=np.nan)
    mean = newcomers.summarise(table, "median_r", n_boot=10, seed=0)
    figure = newcomers.draw(
        [newcomers.Direction("7T → 4T", ("S1",), ("S6",))], mean, "r", ceiling=True
    )
    assert figure.axes[0].get_title() == "7T → 4T (ceiling unknown)"


def test_other_crowds_score_voxels_of_a_type_that_the_crowd_lacks(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path))
    part = SimulationConfig(subjects=1, images=90, test_images=20, voxels=120)
    crowds = {"lacks": (3, (replace(part, subjects=2, lacking="place"), part))}
    records = len(lab.records)
    table = newcomers.robustness(lab, crowds, n_images=(20,), steps=5)
    assert {v.split(" ")[0] for v in table["voxels"]} == {"all", "place"}
    assert set(table["method"]) == {RIDGE, GRADIENT, MATCHING, OURS}
    (path,) = tmp_path.glob("simulated-variant-*.h5")
    with Crowd(path) as crowd:
        has_place = ["place" in set(truth.voxels(crowd, s)["type"]) for s in crowd.subjects]
    assert has_place == [False, False, True]
    mean = newcomers.robustness_table(table)
    assert len(lab.records) - records == mean.size
    del lab.records[records:]


def test_other_crowds_are_summed_up_in_words():
    rows = [
        ("a", 10, OURS, 0.30),
        ("a", 10, GRADIENT, 0.20),
        ("a", 10, RIDGE, 0.28),
        ("a", 90, OURS, 0.30),
        ("a", 90, GRADIENT, 0.33),
        ("a", 90, RIDGE, 0.28),
    ]
    table = pd.DataFrame(rows, columns=["crowd", "n_images", "method", "median_r"]).assign(
        voxels="all"
    )
    below, above = newcomers.robustness_verdict(table).splitlines()
    assert "1 of 2; not a at all at 90" in below
    assert "1 of 2" in above
