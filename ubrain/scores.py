"""How good is a prediction: correlation, R², noise ceiling, retrieval. Arrays in, arrays out."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubrain.errors import UbrainError

Array = NDArray[np.float64]
CHUNK = 4096  # voxels at a time


def correlation(predicted: ArrayLike, measured: ArrayLike) -> Array:
    """Pearson correlation over images, for each voxel.

    Parameters
    ----------
    predicted, measured : (n_images, n_voxels)
        An image that is NaN in a voxel, in either array, is left out for that voxel.

    Returns
    -------
    (n_voxels,) in -1..1; NaN where either side is constant or fewer than two images are left.
    """
    out = []
    for p, m in _voxel_chunks(predicted, measured):
        p, m = _centred(p, m)
        norms = np.sqrt((p**2).sum(0) * (m**2).sum(0))
        with np.errstate(invalid="ignore", divide="ignore"):
            out.append(np.where(norms > 0, (p * m).sum(0) / norms, np.nan))
    return np.clip(np.concatenate(out), -1, 1) if out else np.empty(0)


class RunningCorrelation:
    """`correlation` over images that come in batches, for data larger than memory.

    Means and sums of products of batches are merged without loss, in float64 (Chan, Golub & LeVeque
    1979).
    """

    def __init__(self, n_voxels: int) -> None:
        self._n = 0
        self._mean = np.zeros((2, n_voxels))
        self._products = np.zeros(
            (3, n_voxels)
        )  # of predicted with itself, of measured with itself, of both

    def add(self, predicted: ArrayLike, measured: ArrayLike) -> None:
        """Take in a batch, both (n_images, n_voxels), without missing values."""
        n, start = len(np.asarray(predicted)), 0
        if n == 0:
            return
        for pair in _voxel_chunks(predicted, measured):
            both = np.stack(pair)
            voxels = slice(start, start + both.shape[2])
            mean = both.mean(1)
            both -= mean[:, None]
            shift, weight = mean - self._mean[:, voxels], self._n * n / (self._n + n)
            for row, (a, b) in enumerate(((0, 0), (1, 1), (0, 1))):
                self._products[row, voxels] += (both[a] * both[b]).sum(0) + shift[a] * shift[
                    b
                ] * weight
            self._mean[:, voxels] += shift * n / (self._n + n)
            start = voxels.stop
        self._n += n

    def value(self) -> Array:
        """(n_voxels,) in -1..1; NaN where a side is constant or there is one image only."""
        norms = np.sqrt(self._products[0] * self._products[1])
        tiny = self._n * (1e-7 * self._mean) ** 2  # what rounding leaves of a constant
        varies = (self._products[:2] > tiny).all(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(np.where(varies, self._products[2] / norms, np.nan), -1, 1)


def r2(predicted: ArrayLike, measured: ArrayLike) -> Array:
    """R² over images, for each voxel: 1 − residual / total sum of squares.

    Shapes and missing values as in `correlation`; NaN where the measured response is constant.
    """
    out = []
    for p, m in _voxel_chunks(predicted, measured):
        missing = np.isnan(p) | np.isnan(m)
        residual = np.where(missing, 0, m - p)
        _, centred = _centred(p, m)
        total = (centred**2).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            out.append(np.where(total > 0, 1 - (residual**2).sum(0) / total, np.nan))
    return np.concatenate(out) if out else np.empty(0)


def ncsnr(squared_deviation: ArrayLike, degrees_of_freedom: ArrayLike) -> Array:
    """Noise-ceiling signal-to-noise ratio of each voxel, from the variance over repeats.

    The noise variance is pooled over the images: v² = Σ squared deviations from the image's mean /
    Σ (repeats − 1); where all images have the same number of repeats it is the mean over images of
    the variance (ddof 1). The responses are z-scored, so the signal has the rest of the variance:
    ncsnr = sqrt(max(1 − v², 0)) / v (Allen et al. 2022, Natural Scenes Dataset,
    `export_noiseceiling`).

    Parameters
    ----------
    squared_deviation : (n_voxels,)
        Sum, over images and repeats, of the squared deviation from the mean of the image.
    degrees_of_freedom : scalar or (n_voxels,)
        Sum, over images, of repeats − 1.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = np.asarray(squared_deviation, dtype=np.float64) / np.asarray(
            degrees_of_freedom, dtype=np.float64
        )
        return np.sqrt(np.maximum(1 - noise, 0)) / np.sqrt(noise)


def noise_ceiling(snr: ArrayLike, repeats: ArrayLike) -> Array:
    """Share of the variance of an averaged response that an ideal model could explain (r² units).

    ncsnr² / (ncsnr² + mean over images of 1 / repeats), as in the Natural Scenes Dataset and
    Algonauts 2023.

    Parameters
    ----------
    snr : (n_voxels,)
        `ncsnr`.
    repeats : (n_images,)
        Repeats averaged in the response to each image.
    """
    power = np.asarray(snr, dtype=np.float64) ** 2
    with np.errstate(invalid="ignore"):
        ceiling = power / (power + np.mean(1 / np.asarray(repeats, dtype=np.float64)))
    return np.where(np.isposinf(power), 1.0, ceiling)


def noise_normalised(r: ArrayLike, ceiling: ArrayLike, floor: float = 0.01) -> Array:
    """Explained share of the explainable variance, r² / ceiling; negative r is 0, 1 the cap.

    The metric of Algonauts 2023; voxels whose ceiling is not above `floor` have no meaningful ratio
    and give NaN.
    """
    r, ceiling = np.asarray(r, dtype=np.float64), np.asarray(ceiling, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(ceiling > floor, np.minimum(np.maximum(r, 0) ** 2 / ceiling, 1), np.nan)


def retrieval_ranks(predicted: ArrayLike, measured: ArrayLike) -> NDArray[np.int64]:
    """Rank of the true image when each measured response searches a gallery of predicted ones.

    Similarity is the Pearson correlation across voxels. Every voxel's prediction is first centred
    over the gallery, so that a response common to all images does not decide; the measured response
    is used as it is. Ties count against the true image: predictions that do not depend on the image
    are never right.

    Parameters
    ----------
    predicted, measured : (n_images, n_voxels)
        Row i of both is the same image. A voxel with a NaN anywhere is left out.

    Returns
    -------
    (n_images,), 0 is best; the gallery has n_images entries, so chance for the top k is k /
    n_images.
    """
    p, m = _checked(predicted, measured)
    keep = ~(np.isnan(p).any(0) | np.isnan(m).any(0))
    if not keep.any():
        raise UbrainError(
            "retrieval: every voxel has a missing value; at least one complete voxel is needed"
        )
    p = p[:, keep] - p[:, keep].mean(0, dtype=np.float64)
    similarity = _rows_to_unit(m[:, keep]) @ _rows_to_unit(p).T  # (n_queries, n_gallery)
    own = np.diag(similarity)[:, None]
    return (similarity >= own - 1e-12).sum(1) - 1


def top_k(ranks: ArrayLike, k: int) -> float:
    """Share of queries whose true image is among the k best."""
    return float(np.mean(np.asarray(ranks) < k))


def _checked(predicted: ArrayLike, measured: ArrayLike) -> tuple[Array, Array]:
    p, m = np.asarray(predicted), np.asarray(measured)
    if p.ndim != 2 or p.shape != m.shape:
        raise UbrainError(
            f"expected two arrays of the same shape (n_images, n_voxels), got {p.shape} and"
            f" {m.shape}"
        )
    return p, m


def _voxel_chunks(predicted: ArrayLike, measured: ArrayLike) -> Iterator[tuple[Array, Array]]:
    """The arrays in float64, some voxels at a time: a crowd of voxels costs no second copy."""
    p, m = _checked(predicted, measured)
    for start in range(0, p.shape[1], CHUNK):
        voxels = slice(start, start + CHUNK)
        yield p[:, voxels].astype(np.float64), m[:, voxels].astype(np.float64)


def _centred(p: Array, m: Array) -> tuple[Array, Array]:
    """Both arrays minus their mean over images present in both; missing and constants are 0."""
    missing = np.isnan(p) | np.isnan(m)
    count = np.maximum((~missing).sum(0), 1)
    centred = []
    for values in (p, m):
        values = np.where(missing, 0, values)
        deviation = np.where(missing, 0, values - values.sum(0) / count)
        tiny = 1e-7 * np.abs(values).max(0, initial=0)  # what rounding leaves of a constant
        centred.append(np.where(np.abs(deviation).max(0, initial=0) <= tiny, 0, deviation))
    return centred[0], centred[1]


def _rows_to_unit(x: Array) -> Array:
    """Rows centred and scaled to length 1 (a constant row becomes 0)."""
    x = x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 1e-12)
