"""Intervals and p values against brute force and scipy."""

import numpy as np
import pytest
from scipy.stats import (
    PermutationMethod,
    binomtest,
    bootstrap,
    false_discovery_control,
    kstest,
    pearsonr,
    ttest_1samp,
)

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


def column_r(p, m):
    p, m = p - p.mean(0), m - m.mean(0)
    return (p * m).sum(0) / np.sqrt((p**2).sum(0) * (m**2).sum(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_median_has_the_spread_of_other_samples(dtype):
    """Image and voxel samples of one population, many times."""
    worlds = [crowd_of_two(seed=seed) for seed in range(300)]
    found = [stats.median_r(a.astype(dtype), m.astype(dtype)) for a, m, _ in worlds]
    assert found[0].value == pytest.approx(np.median(column_r(*worlds[0][:2])), abs=1e-6)
    assert found[0].n == 40
    spread = np.std([f.value for f in found])
    width = np.mean([f.high - f.low for f in found])
    assert width == pytest.approx(2 * 2.02 * spread, rel=0.2)  # 2.02: Student's t, 39


def test_a_gain_has_the_spread_of_other_samples_and_is_paired():
    worlds = [crowd_of_two(seed=seed) for seed in range(300)]
    found = [stats.median_r(a, m, b) for a, m, b in worlds]
    a, m, b = worlds[0]
    assert found[0].value == pytest.approx(np.median(column_r(a, m)) - np.median(column_r(b, m)))
    width = np.mean([f.high - f.low for f in found])
    assert width == pytest.approx(2 * 2.02 * np.std([f.value for f in found]), rel=0.2)
    one, other = (stats.median_r(p, m) for p in (a, b))
    assert width < 0.8 * np.hypot(one.high - one.low, other.high - other.low)


def test_responses_that_voxels_have_in_common_count_as_fewer():
    rng = np.random.default_rng(0)
    signal, common = rng.standard_normal((2, 60, 1))
    own = 0.3 * rng.standard_normal((2, 60, 100))
    together = stats.median_r(signal + own[0], signal + common + own[1])
    apart = stats.median_r(signal + own[0], signal + rng.standard_normal((60, 100)) + own[1])
    assert together.high - together.low > 1.3 * (apart.high - apart.low)


def test_leaving_out_an_image_is_computed_exactly():
    a, m, _ = crowd_of_two(n=12, v=7)
    found = stats._linearised(a, m)
    r = column_r(a, m)
    without = np.array([column_r(np.delete(a, i, 0), np.delete(m, i, 0)) for i in range(12)])
    moved = 11 * (r - without)
    nearest = np.abs(r - np.median(r)).argmin()
    kernel = found.images[:, nearest] / moved[:, nearest]
    np.testing.assert_allclose(kernel, kernel[0])
    assert found.images.sum() / moved.sum() > 0
    np.testing.assert_array_equal(np.sign(found.voxels), np.sign(r - np.median(r)))


def test_gain_changes_sign_with_the_order_and_is_zero_over_itself():
    a, m, b = crowd_of_two()
    gain, loss = stats.median_r(a, m, b), stats.median_r(b, m, a)
    assert (gain.value, gain.low, gain.high) == pytest.approx((-loss.value, -loss.high, -loss.low))
    rng = np.random.default_rng(1)
    assert stats.median_r(m, m + rng.standard_normal(m.shape), a).low > 0
    none = stats.median_r(a, m, a)
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_offsets_and_scales_do_not_change_the_interval():
    a, m, _ = crowd_of_two()
    plain, moved = stats.median_r(a, m), stats.median_r(1e-3 * a + 1e4, 1e3 * m - 1e6)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (plain.value, plain.low, plain.high), abs=1e-6
    )


def test_voxels_without_a_correlation_are_left_out_of_both():
    a, m, b = crowd_of_two()
    a[:, 0], b[:, 1], m[:, 2] = 0.1, 0.1, 0.1
    found = stats.median_r(a, m, b)
    assert found.n == 37
    assert found.value == pytest.approx(
        np.median(column_r(a, m)[3:]) - np.median(column_r(b, m)[3:])
    )
    with pytest.raises(UbrainError, match="no voxel"):
        stats.median_r(np.ones_like(a), m)


@pytest.mark.parametrize(("n", "v"), [(4, 30), (3, 1), (20, 2)])
def test_few_images_or_voxels_have_an_interval_within_the_possible(n, v):
    a, m, _ = crowd_of_two(n=n, v=v)
    found = stats.median_r(a, m)
    assert -1 <= found.low <= found.value <= found.high <= 1
    perfect = stats.median_r(m, m)
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("n", "k"), [(80, 30), (200, 199), (50, 0)])
def test_a_share_has_the_interval_of_scipy(n, k):
    hits = np.arange(n) < k
    found = stats.share({"S1": hits}, {"S1": np.arange(n)})
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high, found.n) == pytest.approx((k / n, *expected, n))


def test_a_gain_in_share_is_paired():
    a, images = np.random.default_rng(4).random(100) < 0.5, {"S1": np.arange(100)}

    def gain(x, y):
        return stats.gain_in_share({"S1": x.astype(float) - y}, images)

    none = gain(a, a)
    assert (none.value, none.n) == (0, 100)
    assert -none.low == pytest.approx(none.high)
    b = a.copy()
    b[:10] = ~b[:10]
    found = gain(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert none.high < found.high - found.value < 0.1
    swapped = gain(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_subjects_that_saw_the_same_images_gain_together():
    gains = np.random.default_rng(4).integers(-1, 2, 100)
    one = stats.gain_in_share({"a": gains}, {"a": np.arange(100)})
    same = stats.gain_in_share(dict.fromkeys("ab", gains), dict.fromkeys("ab", np.arange(100)))
    other = {"a": np.arange(100), "b": np.arange(100, 200)}
    apart = stats.gain_in_share(dict.fromkeys("ab", gains), other)
    assert same == one
    assert apart.high - apart.low < 0.75 * (one.high - one.low)


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
        (stats.bootstrap, stats.pearson, a[:, 0], b[:, 0]),
        (stats.resampled_scores, a, m, 50),
        (stats.permutation_p, b, m, 50),
    ):
        first, again, other = (function(*arguments, seed=s) for s in (seed, seed, seed + 1))
        np.testing.assert_equal(np.array(first, dtype=object), np.array(again, dtype=object))
        assert not np.array_equal(np.array(first, dtype=object), np.array(other, dtype=object))


def test_an_interval_is_shown_with_three_digits():
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
    found = stats.share(values, {"S1": [4, 5, 6, 7], "S2": [4, 9]})
    assert found.value == pytest.approx((0.75 + 0.0) / 2)
    assert found.n == 5
    assert found.low <= found.value <= found.high


def test_subjects_that_saw_the_same_images_are_one_sample():
    hits = np.random.default_rng(0).random(60) < 0.5
    one = stats.share({"a": hits}, {"a": np.arange(60)})
    same = stats.share(dict.fromkeys("ab", hits), dict.fromkeys("ab", np.arange(60)))
    assert (same.low, same.high) == pytest.approx((one.low, one.high))
    apart = stats.share(dict.fromkeys("ab", hits), {"a": np.arange(60), "b": np.arange(60, 120)})
    assert apart.high - apart.low == pytest.approx((one.high - one.low) / np.sqrt(2), rel=0.05)


def test_resampled_scores_spread_as_the_interval_does_and_are_paired():
    a, m, b = crowd_of_two()
    (r, top1), (r_b, _) = (stats.resampled_scores(p, m, n_boot=4000, seed=3) for p in (a, b))
    found, hits = stats.median_r(a, m), scores.retrieval_ranks(a, m) < 1
    assert 2 * 2.02 * r.std() == pytest.approx(found.high - found.low, rel=0.1)
    assert (r.mean(), top1.mean()) == pytest.approx((found.value, hits.mean()), abs=0.01)
    assert top1.std() == pytest.approx(hits.std() / np.sqrt(60), rel=0.1)
    assert (r - r_b).std() < 0.8 * np.hypot(r.std(), r_b.std())
    constant = stats.resampled_scores(np.zeros_like(a), m, n_boot=5)[0]
    np.testing.assert_array_equal(constant, 0)


def test_units_add_their_spread_to_that_of_what_they_were_measured_on():
    noise = 0.1 * np.random.default_rng(1).normal(size=(1, 20_000))
    values = np.array([0.2, 0.3, 0.7])
    exact = stats.mean_of_units(values, np.zeros((3, 10)))
    expected = stats.t_interval(values)
    assert (exact.low, exact.high) == pytest.approx((expected.low, expected.high))
    one = stats.mean_of_units([0.2], noise + 5)  # only the spread of resamples plays a part
    np.testing.assert_allclose([one.low, one.high], [0.2 - 0.196, 0.2 + 0.196], atol=0.01)
    same = stats.mean_of_units([0.2, 0.2], np.repeat(noise, 2, 0))  # no second sample
    assert same.high - same.low == pytest.approx(one.high - one.low, rel=0.05)
    both = stats.mean_of_units(values, np.repeat(noise, 3, 0))
    assert both.value == pytest.approx(0.4)
    assert both.high - both.low < exact.high - exact.low  # the noise adds degrees of freedom


def test_a_t_interval_is_that_of_scipy():
    x = np.array([0.03, 0.05, 0.02])
    expected = ttest_1samp(x, 0).confidence_interval()
    found = stats.t_interval(x)
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), *expected))
    assert np.isnan(stats.t_interval([1.0]).low)
