"""How sure are we: paired bootstrap over images and voxels, permutation tests, false discovery
rate.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from ubrain import scores
from ubrain.errors import UbrainError

Array = NDArray[np.float64]
NUMBERS = 1 << 22  # that a bootstrap draws at a time


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, and the number of units resampled."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_median_r(
    predicted: ArrayLike,
    measured: ArrayLike,
    against: ArrayLike | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Interval:
    """Median voxel correlation with a 95 % percentile interval, or the gain in it over another
    prediction.

    Each resample draws images and voxels with replacement; with `against`, both predictions are
    scored on the same draw (paired), and the interval is that of the difference of the medians.

    Parameters
    ----------
    predicted, measured, against : (n_images, n_voxels)
        No missing values. A voxel that is constant in any of them is left out of all.

    Returns
    -------
    Interval, with n the number of voxels.
    """
    m = np.asarray(measured, dtype=np.float64)
    if not np.isfinite(m).all():
        raise UbrainError(
            "bootstrap: the measured responses have missing values; leave out those voxels"
        )
    candidates = [np.asarray(p, dtype=np.float64) for p in (predicted, against) if p is not None]
    full = [scores.correlation(p, m) for p in candidates]
    keep = np.logical_and.reduce([np.isfinite(r) for r in full])
    if not keep.any():
        raise UbrainError("bootstrap: no voxel has a correlation (all constant or missing)")
    weights, draws = _resamples(m[:, keep], n_boot, seed)
    medians = [
        _median_of_draws(_weighted_correlation(p[:, keep], m[:, keep], weights), draws)
        for p in candidates
    ]
    values = [float(np.median(r[keep])) for r in full]
    samples = medians[0] - medians[1] if against is not None else medians[0]
    value = values[0] - values[1] if against is not None else values[0]
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Interval(value, float(low), float(high), int(keep.sum()))


def bootstrap_mean(
    values: ArrayLike, against: ArrayLike | None = None, n_boot: int = 1000, seed: int = 0
) -> Interval:
    """Mean of one number per image (a retrieval hit, say) with a 95 % percentile interval over
    images.

    With `against`, the interval is that of the paired difference of the means.

    Parameters
    ----------
    values, against : (n_images,)
    """
    x = np.asarray(values, dtype=np.float64)
    if against is not None:
        x = x - np.asarray(against, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(x), size=(n_boot, len(x)))
    low, high = np.percentile(x[draws].mean(1), [2.5, 97.5])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def resampled_scores(
    predicted: ArrayLike, measured: ArrayLike, n_boot: int = 1000, seed: int = 0
) -> tuple[Array, Array]:
    """Median voxel correlation and top-1 retrieval in resamples of images and voxels.

    The same seed draws the same images and voxels, so scores of several predictions of the same
    responses are paired. For retrieval, queries are drawn and the gallery stays. A voxel that is
    constant in a resample counts as r = 0.

    Parameters
    ----------
    predicted, measured : (n_images, n_voxels), no missing values.

    Returns
    -------
    (n_boot,) medians, and (n_boot,) shares of hits.
    """
    p, m = (np.asarray(a, dtype=np.float64) for a in (predicted, measured))
    weights, draws = _resamples(m, n_boot, seed)
    r = np.nan_to_num(_weighted_correlation(p, m, weights))
    return _median_of_draws(r, draws), weights @ (scores.retrieval_ranks(p, m) < 1) / len(m)


def bootstrap_units(
    values: ArrayLike, resampled: ArrayLike, n_boot: int = 1000, seed: int = 0
) -> Interval:
    """Mean over units (newcomers, say), with a 95 % percentile interval over units and over what
    each was measured with.

    Parameters
    ----------
    values : (n_units,), a score of each unit.
    resampled : (n_units, n_resamples), the same score in resamples of the unit's images, as from
        `resampled_scores`. If units share images, resample i draws the same ones in all. Only their
        spread is used: the median of a resample is not the median of all, so they are shifted to
        have the mean of `values`.

    Returns
    -------
    Interval, with n the number of units.
    """
    x, samples = np.asarray(values, dtype=np.float64), np.asarray(resampled, dtype=np.float64)
    samples = samples + (x - samples.mean(1))[:, None]
    rng = np.random.default_rng(seed)
    units, draw = (
        rng.integers(len(x), size=(n_boot, len(x))),
        rng.integers(samples.shape[1], size=(n_boot, 1)),
    )
    low, high = np.percentile(samples[units, draw].mean(1), [2.5, 97.5])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def bootstrap(
    statistic: Callable[..., Array], *columns: ArrayLike, n_boot: int = 1000, seed: int = 0
) -> Interval:
    """Any statistic of paired columns, with a 95 % percentile interval over their rows (voxels,
    say).

    Parameters
    ----------
    statistic : takes as many arrays (..., n_rows) as there are columns, gives (...).
    columns : (n_rows,) each. Rows with a missing value in any of them are left out.

    Returns
    -------
    Interval, with n the number of rows; all NaN if there are none.
    """
    full = np.stack([np.asarray(c, dtype=np.float64) for c in columns])
    full = full[:, np.isfinite(full).all(0)]
    n = full.shape[1]
    if not n:
        return Interval(np.nan, np.nan, np.nan, 0)
    rng, samples = np.random.default_rng(seed), list[Array]()
    step = max(1, NUMBERS // n)
    for start in range(0, n_boot, step):
        draws = rng.integers(n, size=(min(step, n_boot - start), n))
        samples.append(statistic(*(c[draws] for c in full)))
    found = np.concatenate(samples)
    low, high = (
        np.percentile(found[np.isfinite(found)], [2.5, 97.5])
        if np.isfinite(found).any()
        else (np.nan, np.nan)
    )
    return Interval(float(statistic(*full)), float(low), float(high), n)


def pearson(x: Array, y: Array) -> Array:
    """Correlation along the last axis, (..., n) with (..., n) -> (...); NaN where one of them is
    constant.
    """
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    norm = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), norm, out=np.full_like(norm, np.nan), where=norm > 1e-12)


def bootstrap_mean_of_subjects(
    values: Mapping[str, ArrayLike],
    images: Mapping[str, ArrayLike],
    n_boot: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean over subjects of the mean of one number per image, with a 95 % percentile interval over
    images.

    An image that several subjects saw is drawn, or not, for all of them together: subjects find the
    same images hard. The subjects are not resampled.

    Parameters
    ----------
    values : subject -> (n_images,); NaN is left out.
    images : subject -> (n_images,), what tells images apart, such as rows of the crowd file.

    Returns
    -------
    Interval, with n the number of different images.
    """
    x = {s: np.asarray(v, dtype=np.float64) for s, v in values.items()}
    known, column = np.unique(
        np.concatenate([np.asarray(images[s]) for s in x]), return_inverse=True
    )
    table, start = np.full((len(x), len(known)), np.nan), 0
    for row, v in enumerate(x.values()):
        table[row, column[start : start + len(v)]] = v
        start += len(v)
    weights = np.random.default_rng(seed).multinomial(
        len(known), np.full(len(known), 1 / len(known)), size=n_boot
    )
    present, filled = np.isfinite(table).astype(np.float64), np.nan_to_num(table)
    count = weights @ present.T
    drawn = np.divide(
        weights @ filled.T, count, out=np.full_like(count, np.nan), where=count > 0
    )  # (n_boot, n_subjects)
    low, high = np.nanpercentile(drawn.mean(1), [2.5, 97.5])
    return Interval(
        float(np.mean(filled.sum(1) / present.sum(1))), float(low), float(high), len(known)
    )


def permutation_p(
    predicted: ArrayLike, measured: ArrayLike, n_permutations: int = 1000, seed: int = 0
) -> Array:
    """One-sided p of each voxel's correlation when the images of the prediction are shuffled.

    p = (1 + number of shuffles that correlate at least as well) / (1 + n_permutations): never 0
    (Phipson & Smyth 2010). All voxels share the shuffles.

    Returns
    -------
    (n_voxels,); NaN where the correlation is, and where a value is missing.
    """
    p, m = (np.asarray(a, dtype=np.float64) for a in (predicted, measured))
    observed, p, m = scores.correlation(p, m), p - p.mean(0), m - m.mean(0)
    least = (observed - 1e-12) * np.sqrt((p**2).sum(0) * (m**2).sum(0))
    rng = np.random.default_rng(seed)
    exceed = np.zeros(p.shape[1])
    for _ in range(n_permutations):
        exceed += np.einsum("iv,iv->v", p[rng.permutation(len(p))], m) >= least
    return np.where(np.isnan(least), np.nan, (1 + exceed) / (1 + n_permutations))


def fdr(p: ArrayLike) -> Array:
    """Benjamini–Hochberg adjusted p values; NaN stay NaN and do not count."""
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full_like(p, np.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = false_discovery_control(p[known])
    return adjusted


def _median_of_draws(r: Array, draws: NDArray[np.int64]) -> Array:
    """Median over drawn voxels, (n_boot,); NaN where a resample had only copies of one image."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        return np.nanmedian(np.take_along_axis(r, draws, axis=1), axis=1)


def _resamples(measured: Array, n_boot: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """How often each image is drawn, (n_boot, n_images), and which voxels are, (n_boot,
    n_voxels).
    """
    (n_images, n_voxels), rng = measured.shape, np.random.default_rng(seed)
    weights = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=n_boot).astype(
        np.float64
    )
    return weights, rng.integers(n_voxels, size=(n_boot, n_voxels))


def _weighted_correlation(p: Array, m: Array, weights: Array) -> Array:
    """Correlation of each voxel under each row of image weights: (n_boot, n_voxels), by matrix
    products only.
    """
    p, m = (
        p - p.mean(0),
        m - m.mean(0),
    )  # a shift changes nothing but keeps the products well conditioned
    total = weights.sum(1, keepdims=True)
    mean_p, mean_m = weights @ p / total, weights @ m / total
    covariance = weights @ (p * m) / total - mean_p * mean_m
    variance_p = weights @ p**2 / total - mean_p**2
    variance_m = weights @ m**2 / total - mean_m**2
    norm = np.sqrt(np.maximum(variance_p, 0) * np.maximum(variance_m, 0))
    return np.divide(covariance, norm, out=np.full_like(norm, np.nan), where=norm > 1e-12)
