"""Scores against independent implementations (scipy, sklearn, the NSD formulas written out) and in
the awkward cases.
"""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from ubrain import scores
from ubrain.errors import UbrainError

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def pair(dtype, n=40, v=7, noise=1.0, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    p = rng.standard_normal((n, v))
    m = p + noise * rng.standard_normal((n, v))
    return (p + offset).astype(dtype), (m + offset).astype(dtype)


def reference(score, predicted, measured):
    """`score` of each voxel, by a loop in float64 over the images that both have."""
    out = []
    for p, m in zip(np.float64(predicted).T, np.float64(measured).T, strict=True):
        ok = ~(np.isnan(p) | np.isnan(m))
        out.append(score(p[ok], m[ok]))
    return np.array(out)


def scipy_r(p, m):
    return pearsonr(p, m).statistic


def sklearn_r2(p, m):
    return r2_score(m, p)


score_and_reference = pytest.mark.parametrize(
    ("score", "expected"),
    [(scores.correlation, scipy_r), (scores.r2, sklearn_r2)],
    ids=["correlation", "r2"],
)


@score_and_reference
@both_dtypes
def test_equals_reference(score, expected, dtype):
    p, m = pair(dtype)
    np.testing.assert_allclose(score(p, m), reference(expected, p, m), rtol=1e-10)


@score_and_reference
@both_dtypes
def test_missing_images_are_left_out(score, expected, dtype):
    p, m = pair(dtype)
    p[3, 0] = p[5:20, 1] = m[3, 0] = m[7, 2] = np.nan
    np.testing.assert_allclose(score(p, m), reference(expected, p, m), rtol=1e-10)


@score_and_reference
@pytest.mark.parametrize("chunk", [1, 3, 6, 7, 8])
def test_chunks_do_not_show(score, expected, chunk, monkeypatch):
    p, m = pair(np.float32)
    monkeypatch.setattr(scores, "CHUNK", chunk)
    np.testing.assert_allclose(score(p, m), reference(expected, p, m), rtol=1e-10)


@score_and_reference
@pytest.mark.parametrize(
    ("dtype", "offset"), [(np.float32, 1e4), (np.float64, 1e6), (np.float64, -1e6)]
)
def test_large_offsets(score, expected, dtype, offset):
    p, m = pair(dtype, n=300, offset=offset)
    np.testing.assert_allclose(score(p, m), reference(expected, p, m), rtol=1e-6)


@score_and_reference
def test_no_voxels(score, expected):
    assert score(np.empty((5, 0)), np.empty((5, 0))).shape == (0,)


@pytest.mark.parametrize("score", [scores.correlation, scores.r2, scores.retrieval_ranks])
def test_shapes_that_differ_are_refused(score):
    with pytest.raises(UbrainError, match=r"\(5, 2\) and \(5, 3\)"):
        score(np.zeros((5, 2)), np.zeros((5, 3)))


@both_dtypes
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -1e5 / 3])
@pytest.mark.parametrize("n", [7, 200])
def test_constant_voxels_have_no_correlation(dtype, constant, n):
    p, m = pair(dtype, n=n, v=3)
    p[:, 0] = constant
    m[:, 1] = constant
    r = scores.correlation(p, m)
    assert np.isnan(r[:2]).all()
    assert np.isfinite(r[2])
    r2 = scores.r2(p, m)
    assert np.isnan(r2[1])
    np.testing.assert_allclose(
        r2[[0, 2]], reference(sklearn_r2, p[:, [0, 2]], m[:, [0, 2]]), rtol=1e-6
    )


@both_dtypes
def test_too_few_images_give_nan(dtype):
    p, m = pair(dtype, n=6, v=3)
    p[:, 0] = np.nan
    m[1:, 1] = np.nan
    assert np.isnan(scores.correlation(p, m)).tolist() == [True, True, False]


def test_constant_only_where_both_are_known():
    p, m = pair(np.float64, n=6, v=1)
    p[:3] = 0.1
    m[3:] = np.nan
    assert np.isnan(scores.correlation(p, m)).all()


def test_correlation_ignores_scale_and_shift_and_r2_does_not():
    p, m = pair(np.float64)
    np.testing.assert_allclose(scores.correlation(-3 * p + 5, m), -scores.correlation(p, m))
    assert (scores.r2(p + 5, m) < scores.r2(p, m)).all()
    np.testing.assert_allclose(scores.r2(m, m), 1)


# --- noise ceiling


def nsd_ncsnr(trials):
    """Literal: (n_images, n_repeats, n_voxels) z-scored responses -> ncsnr, as in the NSD data
    manual.
    """
    noise_sd = np.sqrt(np.mean(np.var(trials, axis=1, ddof=1), axis=0))
    signal_sd = np.sqrt(np.maximum(1 - noise_sd**2, 0))
    return signal_sd / noise_sd


@both_dtypes
def test_ncsnr_is_that_of_nsd(dtype):
    rng = np.random.default_rng(1)
    sd = np.linspace(0.2, 1.3, 8)  # the last is all noise
    trials = np.sqrt(np.maximum(1 - sd**2, 0)) * rng.standard_normal(
        (50, 1, 8)
    ) + sd * rng.standard_normal((50, 3, 8))
    deviation = ((trials - trials.mean(1, keepdims=True)) ** 2).sum((0, 1)).astype(dtype)
    found = scores.ncsnr(deviation, 50 * 2)
    np.testing.assert_allclose(
        found, nsd_ncsnr(trials), rtol=1e-4 if dtype == np.float32 else 1e-12
    )
    assert found[-1] == 0


def test_ncsnr_pools_images_with_different_repeats():
    rng = np.random.default_rng(2)
    groups = [0.6 * rng.standard_normal(n) for n in (2, 3, 5, 1)]
    deviation = sum(((g - g.mean()) ** 2).sum() for g in groups)
    variance = sum((len(g) - 1) * np.var(g, ddof=1) for g in groups if len(g) > 1) / (1 + 2 + 4)
    np.testing.assert_allclose(
        scores.ncsnr([deviation], [7]), np.sqrt(1 - variance) / np.sqrt(variance)
    )


def test_ncsnr_is_unknown_without_repeats():
    assert np.isnan(scores.ncsnr([0.0], 0)).all()
    assert np.isnan(scores.noise_ceiling(scores.ncsnr([0.0], 0), [1, 1])).all()


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_ceiling_formula(n):
    snr = np.array([0, 0.3, 1, 4])
    np.testing.assert_allclose(scores.noise_ceiling(snr, [n] * 6), snr**2 / (snr**2 + 1 / n))


def test_ceiling_formula_with_mixed_repeats():
    snr = np.array([0.2, 1.5])
    a, b, c = 5, 2, 4  # images with 3, 2 and 1 repeats
    expected = snr**2 / (snr**2 + (a / 3 + b / 2 + c / 1) / (a + b + c))
    np.testing.assert_allclose(scores.noise_ceiling(snr, [3] * a + [2] * b + [1] * c), expected)


def test_ceiling_of_a_voxel_without_noise_is_one():
    snr = scores.ncsnr([0.0], 10)
    assert np.isposinf(snr).all()
    np.testing.assert_allclose(scores.noise_ceiling(snr, [3, 3]), 1)


@pytest.mark.parametrize(
    "repeats",
    [[1] * 6000, [3] * 6000, [3] * 2000 + [2] * 2000 + [1] * 2000],
    ids=["1", "3", "mixed"],
)
def test_the_true_signal_scores_the_ceiling(repeats):
    snr = np.array([0.3, 0.7, 1.0, 2.0])
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((len(repeats), len(snr)))
    noise = rng.standard_normal(signal.shape) / snr / np.sqrt(repeats)[:, None]
    r = scores.correlation(signal, signal + noise)
    np.testing.assert_allclose(r**2, scores.noise_ceiling(snr, repeats), atol=0.03)


def test_noise_normalised():
    found = scores.noise_normalised(
        [0.5, -0.5, 0.9, 0.5, 0.5, 0.5, np.nan], [0.5, 0.5, 0.5, 0.01, 0.0, np.nan, 0.5]
    )
    np.testing.assert_allclose(found, [0.5, 0, 1, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(scores.noise_normalised([0.1], [0.05], floor=0.1), [np.nan])


# --- retrieval


def brute_force_ranks(predicted, measured):
    p, m = np.float64(predicted), np.float64(measured)
    similarity = np.corrcoef(m, p - p.mean(0))[: len(m), len(m) :]  # (n_queries, n_gallery)
    return np.array(
        [sum(s >= row[i] for j, s in enumerate(row) if j != i) for i, row in enumerate(similarity)]
    )


@both_dtypes
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_ranks_equal_brute_force(dtype, noise):
    p, m = pair(dtype, n=25, v=30, noise=noise)
    ranks = scores.retrieval_ranks(p, m)
    np.testing.assert_array_equal(ranks, brute_force_ranks(p, m))
    assert scores.top_k(ranks, 1) == np.mean(ranks == 0)


@both_dtypes
def test_ranks_of_predictions_far_from_zero(dtype):
    p, m = pair(dtype, n=400, v=30, noise=3.0)
    p = (np.float64(p) + 1e3 * np.arange(1, 31)).astype(dtype)
    np.testing.assert_array_equal(scores.retrieval_ranks(p, m), brute_force_ranks(p, m))


def test_perfect_predictions_are_found_and_a_common_pattern_does_not_matter():
    m = np.random.default_rng(4).standard_normal((30, 20))
    assert scores.retrieval_ranks(m, m).max() == 0
    assert scores.retrieval_ranks(m + 100 * np.arange(20), m).max() == 0


@both_dtypes
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4 / 3])
def test_constant_predictions_are_never_right(dtype, constant):
    _, m = pair(dtype, n=50, v=30)
    ranks = scores.retrieval_ranks(np.full_like(m, constant), m)
    assert (ranks == 49).all()
    ranks = scores.retrieval_ranks(
        np.tile(np.linspace(-1, 1, 30, dtype=dtype) * constant, (50, 1)), m
    )
    assert (ranks == 49).all()


def test_equal_predictions_count_against_each_other():
    m = np.random.default_rng(5).standard_normal((4, 20))
    p = m[[0, 0, 2, 3]]
    ranks = scores.retrieval_ranks(p, m)
    assert ranks[0] == 1
    assert ranks[2] == 0


def test_voxels_with_missing_values_are_left_out():
    p, m = pair(np.float64, n=20, v=15, noise=2)
    broken_p, broken_m = np.insert(p, 4, 99, axis=1), np.insert(m, 4, -99, axis=1)
    broken_p[3, 4] = np.nan
    np.testing.assert_array_equal(
        scores.retrieval_ranks(broken_p, broken_m), scores.retrieval_ranks(p, m)
    )
    with pytest.raises(UbrainError, match="missing"):
        scores.retrieval_ranks(np.full_like(p, np.nan), m)


def test_random_predictions_are_at_chance():
    rng = np.random.default_rng(6)
    ranks = np.concatenate(
        [
            scores.retrieval_ranks(rng.standard_normal((40, 10)), rng.standard_normal((40, 10)))
            for _ in range(100)
        ]
    )
    for k in (1, 5, 20):
        assert scores.top_k(ranks, k) == pytest.approx(k / 40, abs=4 * np.sqrt(k / 40 / len(ranks)))
    assert ranks.min() == 0
    assert ranks.max() == 39


def test_order_of_images_and_voxels_does_not_matter():
    p, m = pair(np.float64, n=30, v=25, noise=3)
    rng = np.random.default_rng(7)
    images, voxels = rng.permutation(30), rng.permutation(25)
    np.testing.assert_array_equal(
        scores.retrieval_ranks(p[images], m[images]), scores.retrieval_ranks(p, m)[images]
    )
    np.testing.assert_array_equal(
        scores.retrieval_ranks(p[:, voxels], m[:, voxels]), scores.retrieval_ranks(p, m)
    )
    np.testing.assert_allclose(scores.correlation(p[images], m[images]), scores.correlation(p, m))
    np.testing.assert_allclose(
        scores.correlation(p[:, voxels], m[:, voxels]), scores.correlation(p, m)[voxels]
    )


def running(p, m, cuts):
    score = scores.RunningCorrelation(p.shape[1])
    for some_p, some_m in zip(np.split(p, cuts), np.split(m, cuts), strict=True):
        score.add(some_p, some_m)
    return score.value()


@both_dtypes
@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 100, 299], [0, 150, 150], range(1, 300)])
def test_correlation_in_batches_is_the_correlation(dtype, cuts):
    p, m = pair(dtype, n=300)
    np.testing.assert_allclose(running(p, m, cuts), scores.correlation(p, m), rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8])
def test_chunks_of_voxels_do_not_show_in_batches_either(chunk, monkeypatch):
    p, m = pair(np.float64, n=60)
    expected = running(p, m, [20])
    monkeypatch.setattr(scores, "CHUNK", chunk)
    np.testing.assert_allclose(running(p, m, [20]), expected, rtol=1e-12)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_correlation_in_batches_stands_large_offsets_and_drift(offset):
    p, m = pair(np.float64, n=300)
    drift = offset * np.linspace(0, 1, 300)[:, None]
    expected = reference(
        scipy_r, p, m
    )  # of the values without the offset: a sum of squares would have lost them
    np.testing.assert_allclose(running(p + offset, m + offset, [7, 150]), expected, atol=1e-8)
    np.testing.assert_allclose(
        running(p + drift, m, [7, 150]), scores.correlation(p + drift, m), atol=1e-10
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e6 / 7])
def test_correlation_in_batches_with_a_constant_is_unknown(constant):
    _, m = pair(np.float64, n=57)
    flat = np.full_like(m, constant)
    assert np.isnan(running(flat, m, [7, 18, 23])).all()
    assert np.isnan(running(m, flat, [7, 18, 23])).all()


def test_correlation_in_batches_needs_two_images():
    p, m = pair(np.float64, n=3)
    assert np.isnan(running(p[:1], m[:1], [])).all()
    assert np.isnan(running(p[:0], m[:0], [])).all()
    assert np.isfinite(running(p[:2], m[:2], [1])).all()
