"""Scores as other people define them, to compare with the numbers that they publish. Arrays in,
arrays out.

Brain-Score (AlexNet and ridge on fMRI): split, ridge, and ceiling of repetitions. Algonauts 2023:
the share of the noise ceiling. Algonauts 2019: representational dissimilarity matrices (RDMs).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve
from scipy.stats import spearmanr
from sklearn.model_selection import ShuffleSplit

from ubrain import scores
from ubrain.errors import UbrainError

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
NO_CEILING = 1e-14  # that Algonauts 2023 takes for a ceiling of 0


def brain_score_split(n: int, seed: int = 42, share: float = 0.8) -> tuple[Rows, Rows]:
    """Positions of train and test images among n, both ascending: numpy's legacy generator shuffles
    them, and the first `share` are train images (Brain-Score, `Allen2022_fmri`).
    """
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    return np.sort(order[: int(share * n)]), np.sort(order[int(share * n) :])


def centred_kernel(features: NDArray, train: Rows) -> Array:
    """Linear kernel (n_images, n_images) of features (n_images, n_units), centred over the images
    `train`, in float64; wide features are taken some units at a time.
    """
    n, step = len(features), max(1, (1 << 25) // len(features))
    kernel = np.zeros((n, n))
    for start in range(0, features.shape[1], step):
        x = features[:, start : start + step].astype(np.float64)
        x -= x[train].mean(0)
        kernel += x @ x.T
    return kernel


def ridge(kernel: Array, train: Rows, test: Rows, y: ArrayLike, alpha: float = 1.0) -> Array:
    """Ridge regression in its dual form, with an intercept that is not penalised.

    Parameters
    ----------
    kernel : `centred_kernel` of all images.
    train, test : positions of images in the kernel.
    y : (n_train, n_voxels)

    Returns
    -------
    Predictions (n_test, n_voxels): mean of y + K_test (K + alpha I)⁻¹ (y − mean of y).
    """
    y = np.asarray(y, np.float64)
    penalised = kernel[np.ix_(train, train)] + alpha * np.eye(len(train))
    dual = solve(penalised, y - y.mean(0), assume_a="pos")
    return np.asarray(y.mean(0) + kernel[np.ix_(test, train)] @ dual)


def choose_alpha(values: Array, vectors: Array, y: ArrayLike, alphas: Sequence[float]) -> float:
    """The penalty with the least squared error over all voxels when each train image is predicted
    from all others (generalised cross-validation, as scikit-learn's RidgeCV).

    The residuals of a linear smoother with the hat matrix H give those errors: e / (1 − diag H),
    where I − H = alpha (K + alpha I)⁻¹ − 1/n, of which the last term is the intercept.

    Parameters
    ----------
    values, vectors : eigenvalues (n,) and eigenvectors (n, n) of the kernel of the n train images,
        centred over them.
    y : (n, n_voxels)
    """
    y, errors = np.asarray(y, np.float64), []
    turned, squares = vectors.T @ (y - y.mean(0)), vectors**2
    for alpha in alphas:
        weight = alpha / (np.maximum(values, 0) + alpha)
        residual = vectors @ (weight[:, None] * turned)
        left = squares @ weight - 1 / len(y)  # 1 − diag H
        errors.append(np.mean((residual / left[:, None]) ** 2))
    return float(alphas[int(np.argmin(errors))])


def repetition_splits(n_repetitions: int, n_splits: int = 10) -> Iterator[tuple[Rows, Rows]]:
    """Two halves of the repetitions, drawn as Brain-Score does (of three, one against two)."""
    halves = ShuffleSplit(n_splits, train_size=0.5, random_state=1)
    yield from halves.split(np.arange(n_repetitions))


def consistency(repetitions: NDArray) -> Array:
    """Reliability of averaged responses: r of two halves of the repetitions over images, corrected
    to all of them by 2r / (1 + r) (Spearman and Brown).

    Parameters
    ----------
    repetitions : (n_repetitions, n_images, n_voxels)

    Returns
    -------
    (n_splits, n_voxels), a row for each of `repetition_splits`.
    """
    found = []
    for one, other in repetition_splits(len(repetitions)):
        r = scores.correlation(repetitions[one].mean(0), repetitions[other].mean(0))
        found.append(2 * r / (1 + r))
    return np.stack(found)


def ceiling(consistencies: Array) -> float:
    """Median over voxels of `consistency`, mean over splits."""
    return float(np.nanmedian(consistencies, axis=1).mean())


def algonauts_2023(r: ArrayLike, ceilings: ArrayLike) -> Array:
    """Noise-normalised r² in percent, as the Algonauts 2023 challenge defines it.

    A negative r is 0; r² is divided by the ceiling, of which 0 counts as 1e-14; what is above 100
    is 100. `ubrain.scores.noise_normalised` is the same but for voxels with almost no ceiling,
    which have no number there, and 0 or 100 here.

    Parameters
    ----------
    r : (n_voxels,) correlation over test images; NaN, of a constant prediction, counts as 0.
    ceilings : (n_voxels,) in units of r², as a fraction of 1; NaN gives NaN.
    """
    r = np.maximum(np.nan_to_num(np.asarray(r, np.float64)), 0)
    most = np.asarray(ceilings, np.float64)
    most = np.where(most == 0, NO_CEILING, most)
    return np.minimum(100 * r**2 / most, 100)


# --- representational dissimilarity


def rdm(patterns: ArrayLike) -> Array:
    """1 − Pearson correlation over voxels of each two images' patterns (n_images, n_voxels)."""
    x = np.asarray(patterns, np.float64)
    x = x - x.mean(1, keepdims=True)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x / norm
    return 1 - x @ x.T


def rdm_similarity(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Spearman correlation of the upper triangles of two RDMs (Algonauts 2019)."""
    a, b = np.asarray(a), np.asarray(b)
    upper = np.triu_indices(len(a), 1)
    return float(spearmanr(a[upper], b[upper]).statistic ** 2)


def leave_one_image_out(features: NDArray, y: ArrayLike, alpha: float = 1.0) -> Array:
    """What `ridge`, fitted on all other images, predicts for each image beyond the mean of these
    others: (n_images, n_voxels).

    Features and patterns are centred in each fold, over its training images. The mean of the
    others is left out, since it lacks the image, and so tells its pattern with the sign reversed:
    an RDM of such predictions, centred over images, would resemble the measured one whatever the
    features.

    Patterns that come from an RDM (`ubrain import rdm`) have coordinates from a decomposition of
    all images; with one penalty for all voxels predictions turn with the coordinates, so nothing
    of the image that is left out decides where its prediction lies relative to the others. What is
    chosen voxel by voxel (a penalty, a selection) would know the image through the axes.
    """
    y, n = np.asarray(y, np.float64), len(features)
    if len(y) != n or n < 3:
        raise UbrainError(f"expected features and patterns of at least 3 images, got {n}, {len(y)}")
    plain = centred_kernel(features, np.arange(n))
    out, everyone = np.empty_like(y), np.arange(n)
    for i in everyone:
        train = np.delete(everyone, i)
        mean = plain[:, train].mean(1)
        kernel = plain - mean[:, None] - mean + mean[train].mean()  # centred over `train` alone
        out[i] = ridge(kernel, train, everyone[i : i + 1], y[train] - y[train].mean(0), alpha)[0]
    return out


def similarity_to_others(predicted: ArrayLike, y: ArrayLike) -> float:
    """Does a predicted pattern lie near the right images? Spearman correlation of its products with
    the patterns of all other images, and of the measured pattern's; mean over images.

    Its expectation is 0 for predictions of `leave_one_image_out` from features that tell nothing:
    the similarity of two images has no part in what is predicted for it. (An RDM of predictions has
    none such: either image was a training image of the other.)
    """
    p, y = np.asarray(predicted, np.float64), np.asarray(y, np.float64)
    mine, measured, found = p @ y.T, y @ y.T, []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        found.append(spearmanr(mine[i, rest], measured[i, rest]).statistic)
    return float(np.mean(found))
