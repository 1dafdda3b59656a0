"""Intervals and p values against brute force and scipy."""

import numpy as np
import pytest
from scipy.stats import PermutationMethod, bootstrap, false_discovery_control, kstest, pearsonr

from ubrain import scores
from ubrain.analysis import stats
from ubrain.errors import UbrainError


def crowd_of_two(n=60, v=40, seed=0, shared=1.0):
    """Measured responses and two predictions of them that share much of their error."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n, v))
    common = shared * rng.standard_normal((n, v))
    a, b = (signal + common + s * rng.standard_normal((n, v)) for s in (0.2, 0.5))
    return a, signal + rng.standard_normal((n, v)), b


def brute_force(predictions, m, n_boot, seed):
    """Median r of each prediction in resamples of images and voxels, one by one; (n_boot,
    n_predictions).
    """
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n_boot):
        images, voxels = (
            rng.integers(len(m), size=len(m)),
            rng.integers(m.shape[1], size=m.shape[1]),
        )
        out.append([np.median(column_r(p[images], m[images])[voxels]) for p in predictions])
    return np.array(out)


def column_r(p, m):
    p, m = p - p.mean(0), m - m.mean(0)
    return (p * m).sum(0) / np.sqrt((p**2).sum(0) * (m**2).sum(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_interval_of_the_median_equals_brute_force(dtype):
    a, m, _ = crowd_of_two()
    found = stats.bootstrap_median_r(a.astype(dtype), m.astype(dtype), n_boot=2000, seed=1)
    expected = brute_force([a], m, 2000, seed=99)[:, 0]
    low, high = np.percentile(expected, [2.5, 97.5])
    tolerance = 0.2 * (high - low)
    assert found.low == pytest.approx(low, abs=tolerance)
    assert found.high == pytest.approx(high, abs=tolerance)
    assert found.value == pytest.approx(np.median(column_r(a, m)), abs=1e-6)
    assert found.n == 40


def test_interval_of_the_gain_equals_brute_force():
    a, m, b = crowd_of_two()
    found = stats.bootstrap_median_r(a, m, b, n_boot=2000, seed=1)
    samples = brute_force([a, b], m, 2000, seed=99)
    low, high = np.percentile(samples[:, 0] - samples[:, 1], [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.2 * (high - low))
    assert found.high == pytest.approx(high, abs=0.2 * (high - low))
    assert found.value == pytest.approx(np.median(column_r(a, m)) - np.median(column_r(b, m)))


def test_paired_gain_is_narrower_than_two_separate_intervals():
    a, m, b = crowd_of_two(shared=2.0)
    paired = stats.bootstrap_median_r(a, m, b, n_boot=500)
    one, other = (stats.bootstrap_median_r(p, m, n_boot=500) for p in (a, b))
    unpaired = np.hypot(one.high - one.low, other.high - other.low)
    assert paired.high - paired.low < 0.7 * unpaired


def test_gain_changes_sign_with_the_order_and_is_zero_over_itself():
    a, m, b = crowd_of_two()
    gain, loss = stats.bootstrap_median_r(a, m, b, 300), stats.bootstrap_median_r(b, m, a, 300)
    assert (gain.value, gain.low, gain.high) == pytest.approx((-loss.value, -loss.high, -loss.low))
    rng = np.random.default_rng(1)
    assert stats.bootstrap_median_r(m, m + rng.standard_normal(m.shape), a, 300).low > 0
    none = stats.bootstrap_median_r(a, m, a, 300)
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_offsets_and_scales_do_not_change_the_interval():
    a, m, _ = crowd_of_two()
    plain = stats.bootstrap_median_r(a, m, n_boot=200)
    moved = stats.bootstrap_median_r(1e-3 * a + 1e4, 1e3 * m - 1e6, n_boot=200)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (plain.value, plain.low, plain.high), abs=1e-6
    )


def test_voxels_without_a_correlation_are_left_out_of_both():
    a, m, b = crowd_of_two()
    a[:, 0], b[:, 1], m[:, 2] = 0.1, 0.1, 0.1
    found = stats.bootstrap_median_r(a, m, b, 100)
    assert found.n == 37
    assert found.value == pytest.approx(
        np.median(column_r(a, m)[3:]) - np.median(column_r(b, m)[3:])
    )
    with pytest.raises(UbrainError, match="no voxel"):
        stats.bootstrap_median_r(np.ones_like(a), m)


def test_few_images_may_leave_a_resample_constant():
    a, m, _ = crowd_of_two(n=4, v=30)
    found = stats.bootstrap_median_r(a, m, n_boot=500)
    assert -1 <= found.low <= found.high <= 1


@pytest.mark.parametrize("kind", ["hits", "numbers"])
def test_mean_interval_equals_scipy(kind):
    rng = np.random.default_rng(3)
    x = rng.random(80) < 0.4 if kind == "hits" else rng.standard_normal(80)
    found = stats.bootstrap_mean(x, n_boot=4000)
    expected = bootstrap(
        (x.astype(float),),
        np.mean,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(8),
    )
    low, high = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))
    assert (found.value, found.n) == (pytest.approx(x.mean()), 80)


def test_mean_difference_is_paired():
    rng = np.random.default_rng(4)
    a = rng.random(100) < 0.5
    assert stats.bootstrap_mean(a, a) == stats.Interval(0, 0, 0, 100)
    b = a.copy()
    b[:10] = ~b[:10]
    found, direct = (
        stats.bootstrap_mean(a, b, seed=5),
        stats.bootstrap_mean(a.astype(float) - b, seed=5),
    )
    assert found == direct
    assert found.value == pytest.approx(a.mean() - b.mean())


def test_permutation_p_equals_scipy():
    rng = np.random.default_rng(5)
    m = rng.standard_normal((25, 6))
    p = np.array([0, 0.1, 0.2, 0.3, 0.5, -0.3]) * m + rng.standard_normal((25, 6))
    found = stats.permutation_p(p, m, 3000)
    for i in range(6):
        method = PermutationMethod(n_resamples=3000, rng=np.random.default_rng(i))
        expected = pearsonr(p[:, i], m[:, i], alternative="greater", method=method).pvalue
        assert found[i] == pytest.approx(
            expected, abs=5 * np.sqrt(2 * expected * (1 - expected) / 3000) + 1e-3
        )


def test_permutation_p_is_uniform_without_an_effect():
    rng = np.random.default_rng(6)
    p, m = rng.standard_normal((2, 30, 600))
    found = stats.permutation_p(p, m, 199)
    assert kstest(found, "uniform").pvalue > 0.01
    assert found.min() >= 1 / 200


def test_permutation_p_of_a_perfect_prediction_is_the_smallest_and_nan_of_a_constant():
    m = np.random.default_rng(7).standard_normal((30, 2))
    p = m.copy()
    p[:, 1] = 0.1
    np.testing.assert_allclose(stats.permutation_p(p, m, 99), [1 / 100, np.nan])


@pytest.mark.parametrize("missing", [[], [0, 3], list(range(8))])
def test_fdr_equals_scipy_on_what_is_known(missing):
    p = np.array([0.001, 0.2, 0.03, 0.04, 0.5, 0.9, 0.02, 1.0])
    p[missing] = np.nan
    found, known = stats.fdr(p), ~np.isnan(p)
    assert np.isnan(found[~known]).all()
    if known.any():
        np.testing.assert_allclose(found[known], false_discovery_control(p[known]))


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_numbers(seed):
    a, m, b = crowd_of_two()
    for function, *arguments in (
        (stats.bootstrap_median_r, a, m, b, 50),
        (stats.bootstrap_mean, a[:, 0], b[:, 0], 50),
        (stats.permutation_p, b, m, 50),
    ):
        first, again, other = (function(*arguments, seed=s) for s in (seed, seed, seed + 1))
        np.testing.assert_equal(np.array(first, dtype=object), np.array(again, dtype=object))
        assert not np.array_equal(np.array(first, dtype=object), np.array(other, dtype=object))


def test_value_is_the_median_of_the_voxel_correlations():
    a, m, _ = crowd_of_two()
    assert stats.bootstrap_median_r(a, m, n_boot=10).value == pytest.approx(
        np.median(scores.correlation(a, m))
    )
    assert str(stats.Interval(0.12345, -0.1, 0.2, 3)) == "0.123 [-0.100, 0.200]"


def test_bootstrap_of_a_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    found = stats.bootstrap(stats.pearson, np.append(x, np.nan), np.append(y, 1.0), n_boot=1000)
    expected = bootstrap(
        (x, y),
        lambda a, b: pearsonr(a, b)[0],
        paired=True,
        vectorized=False,
        n_resamples=500,
        method="percentile",
        random_state=1,
    )
    assert found.value == pytest.approx(pearsonr(x, y)[0])
    np.testing.assert_allclose([found.low, found.high], expected.confidence_interval, atol=0.05)
    assert found.n == 60


def test_bootstrap_of_nothing_is_nan():
    assert np.isnan(stats.bootstrap(stats.pearson, [np.nan], [1.0]).value)
    assert np.isnan(stats.pearson(np.ones(5), np.arange(5.0)))


def test_the_mean_of_subjects_weighs_them_equally_and_leaves_out_missing_images():
    values = {"S1": [1.0, 0.0, 1.0, 1.0], "S2": [0.0, np.nan]}
    found = stats.bootstrap_mean_of_subjects(values, {"S1": [4, 5, 6, 7], "S2": [4, 9]}, n_boot=300)
    assert found.value == pytest.approx((0.75 + 0.0) / 2)
    assert found.n == 5
    assert found.low <= found.value <= found.high


def test_one_subject_gives_the_interval_of_its_images():
    hits = (np.random.default_rng(0).random(80) < 0.3).astype(float)
    one = stats.bootstrap_mean_of_subjects({"S1": hits}, {"S1": np.arange(80)}, n_boot=4000)
    expected = stats.bootstrap_mean(hits, n_boot=4000)
    assert one.value == expected.value
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_subjects_that_saw_the_same_images_are_drawn_together():
    hits = (np.random.default_rng(0).random(60) < 0.5).astype(float)
    same = stats.bootstrap_mean_of_subjects(
        dict.fromkeys("ab", hits), dict.fromkeys("ab", np.arange(60))
    )
    apart = stats.bootstrap_mean_of_subjects(
        dict.fromkeys("ab", hits), {"a": np.arange(60), "b": np.arange(60, 120)}
    )
    assert (apart.high - apart.low) < 0.85 * (same.high - same.low)  # 1 / sqrt(2) of it


def test_resampled_scores_are_those_of_the_drawn_images_and_voxels():
    rng = np.random.default_rng(1)
    p, m = rng.normal(size=(30, 7)), rng.normal(size=(30, 7))
    p += m
    r, top1 = stats.resampled_scores(p, m, n_boot=20, seed=3)
    weights, voxels = stats._resamples(m, 20, 3)
    hits = scores.retrieval_ranks(p, m) < 1
    for i in range(20):
        images = np.repeat(np.arange(30), weights[i].astype(int))
        expected = [np.corrcoef(p[images, v], m[images, v])[0, 1] for v in voxels[i]]
        assert r[i] == pytest.approx(np.median(expected))
        assert top1[i] == pytest.approx(hits[images].mean())
    shifted = stats.resampled_scores(p + 1, m, n_boot=20, seed=3)[0]
    np.testing.assert_allclose(shifted, r)  # the same draws
    constant = stats.resampled_scores(np.zeros_like(p), m, n_boot=5)[0]
    np.testing.assert_array_equal(constant, 0)


def test_units_are_resampled_together_with_what_they_were_measured_on():
    rng = np.random.default_rng(1)
    values, noise = np.array([0.2, 0.4]), rng.normal(size=(1, 4000))
    exact = stats.bootstrap_units(values, np.repeat(values[:, None], 10, 1))
    assert (exact.value, exact.low, exact.high, exact.n) == (
        pytest.approx(0.3),
        pytest.approx(0.2),
        pytest.approx(0.4),
        2,
    )
    one = stats.bootstrap_units(
        [0.2], 0.7 + 0.1 * noise, n_boot=20_000
    )  # the resamples' own mean plays no part
    np.testing.assert_allclose([one.low, one.high], [0.2 - 0.196, 0.2 + 0.196], atol=0.01)
    shared = stats.bootstrap_units([0.2, 0.2], np.repeat(0.1 * noise, 2, 0), n_boot=20_000)
    assert shared.high - shared.low == pytest.approx(
        one.high - one.low, rel=0.05
    )  # the same images: no second sample
