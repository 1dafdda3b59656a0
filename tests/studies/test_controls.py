"""Effects turned off: partners that cannot help, chance, what is expected of a control."""

import numpy as np
import pytest

from ubrain.analysis.stats import Interval
from ubrain.report.lab import Lab
from ubrain.report.studies import controls as study


@pytest.fixture
def lab(small_crowd, tmp_path, monkeypatch):
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UBRAIN_OUT", str(tmp_path / "small-smoke"))
    return Lab("09_controls", str(small_crowd), "smoke")


def test_shuffled_partners_keep_their_responses_and_lose_their_images(lab):
    s, other = lab.subjects[:2]
    crowd = study.shuffled(lab, [s]).crowd
    assert crowd.fingerprint != lab.crowd.fingerprint
    for split in ("train", "val"):
        rows = lab.crowd[s].image_rows(split)
        np.testing.assert_array_equal(crowd[s].image_rows(split), rows)
        before, after = lab.crowd[s].responses(split), crowd[s].responses(split)
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(np.sort(before, 0), np.sort(after, 0), atol=1e-6)
        np.testing.assert_array_equal(
            lab.crowd[other].responses(split), crowd[other].responses(split)
        )
    np.testing.assert_array_equal(lab.crowd[s].responses("test"), crowd[s].responses("test"))
    again = study.shuffled(lab, [s]).crowd
    assert again.fingerprint == crowd.fingerprint


def test_chance_is_taken_off():
    measured = np.random.default_rng(0).standard_normal((50, 30))
    found = study.above_chance(measured, measured)
    assert found.value == pytest.approx(0.98)
    nothing = study.above_chance(np.random.default_rng(1).standard_normal((50, 30)), measured)
    assert nothing.low < 0 < nothing.high


def test_what_is_expected_of_a_control(lab):
    costs, nothing, something = Interval(-2, -3, -1, 5), Interval(0, -1, 1, 5), Interval(2, 1, 3, 5)
    effects = {
        study.GAIN: {study.AS_IT_IS: something, "a": costs, "b": something},
        study.TOP1: {study.AS_IT_IS: something, "a": costs, "b": nothing},
    }
    table = study.table(lab, effects)
    assert list(table["as_expected"]) == [None, True, False, None, False, True]
    (share,) = (r for r in lab.records if r.name == "controls as expected")
    assert (share.value, share.n) == (0.5, 4)


def test_the_mean_of_intervals_does_not_narrow():
    found = study.mean([Interval(1, 0, 2, 10), Interval(3, 2, 4, 20)])
    assert found == Interval(2, 1, 3, 30)
