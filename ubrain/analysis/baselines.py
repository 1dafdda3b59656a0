"""What the encoder has to beat: ridge regression with an honest search, and a factorised space ×
feature readout.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV, MultipleKernelRidgeCV
from himalaya.scoring import r2_score
from numpy.typing import NDArray
from sklearn.model_selection import KFold
from torch import Tensor, nn

from ubrain import scores
from ubrain.config import BaselineConfig
from ubrain.crowd import Subject
from ubrain.errors import UbrainError
from ubrain.features import Features
from ubrain.progress import log

ALPHAS = np.logspace(-3, 5, 17)
Kernels = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """Predictions of a baseline for the test images, and what its search chose."""

    predicted: NDArray[np.float32]  # (n_images, n_voxels)
    chosen: str
    validation: float  # mean over voxels of the score by which it was chosen


def ridge(subject: Subject, features: Features, config: BaselineConfig, seed: int = 0) -> Fitted:
    """Ridge regression on the features, with a penalty of its own for every voxel.

    The train and val images are one training set here; candidates are compared by cross-validated
    R² on it. They are: all features, their first principal components, random projections, and
    banded ridge, which also chooses a weight for every level, scale and voxel by random search
    (himalaya: Dupré la Tour et al. 2022). Features are the tokens of each level, and the same
    pooled over squares of tokens up to the whole image, so that a voxel may look at a point or at
    everything. All are linear kernels, so wide features cost no more than narrow ones. Banded ridge
    takes the best of many weightings, so its cross-validated R² is the most optimistic; on the test
    images all start even.

    Returns
    -------
    Fitted, with predictions for the test images.
    """
    backend = set_backend("torch")
    rows = np.sort(np.concatenate([subject.image_rows("train"), subject.image_rows("val")]))
    test = subject.image_rows("test")
    y = subject.responses_to(rows)
    kernels, kernels_test = level_kernels(features, rows, test)
    mean = y.mean(0)
    folds = KFold(min(config.folds, len(rows) // 2), shuffle=True, random_state=seed)
    best: Fitted | None = None
    for name, k, k_test in _candidates(kernels, kernels_test, config, seed):
        if name == "banded":
            both: list[NDArray] = [np.stack(k), np.stack(k_test)]
            solver = {
                "n_iter": config.band_draws,
                "alphas": ALPHAS,
                "progress_bar": False,
                "n_targets_batch": 2000,
                "score_func": r2_score,
            }
            model = MultipleKernelRidgeCV(
                "precomputed", solver_params=solver, cv=folds, random_state=seed
            )
        else:
            both = [np.sum(k, axis=0), np.sum(k_test, axis=0)]
            model = KernelRidgeCV(
                ALPHAS, "precomputed", cv=folds, solver_params={"score_func": r2_score}
            )
        model.fit(both[0].astype(np.float32), (y - mean).astype(np.float32))
        found = np.atleast_2d(
            backend.to_numpy(model.cv_scores_)
        )  # one row, or one per random weighting
        validation = float(np.nanmean(found.max(0)))
        if best is None or validation > best.validation:
            predicted = backend.to_numpy(model.predict(both[1].astype(np.float32))) + mean
            best = Fitted(predicted.astype(np.float32), name, validation)
    assert best is not None
    log.info("ridge of %s: %s, cross-validated R² %.3f", subject.name, best.chosen, best.validation)
    return best


def level_kernels(
    features: Features, rows: NDArray[np.int64], test: NDArray[np.int64], batch: int = 64
) -> tuple[list[Kernels], list[Kernels]]:
    """Linear kernels of each level and scale: (n, n) among the images `rows`, and (n_test, n) from
    `test` to them.

    Every token is centred over `rows`, and every channel divided by its standard deviation over
    images and tokens. Scales are squares of 1, 2, 4, ... tokens up to the whole image (a class
    token counts as a scale of its own). Each kernel is divided by its mean diagonal, so that all
    weigh the same. One level is held in memory at a time.
    """
    kernels, kernels_test = [], []
    edges = np.cumsum([0, *features.widths])
    for start, stop in pairwise(edges):
        level, level_test = (_level(features, r, slice(start, stop), batch) for r in (rows, test))
        for x, x_test in zip(_scales(level), _scales(level_test), strict=True):
            mean, std = x.mean(0), x.std((0, 1))
            scale = np.where(std > 1e-6, 1 / np.maximum(std, 1e-6), 0)
            x, x_test = (((v - mean) * scale).reshape(len(v), -1) for v in (x, x_test))
            kernel, kernel_test = (x @ x.T).astype(np.float64), (x_test @ x.T).astype(np.float64)
            size = np.trace(kernel) / len(kernel)
            kernels.append(kernel / size)
            kernels_test.append(kernel_test / size)
    return kernels, kernels_test


def _level(
    features: Features, rows: NDArray[np.int64], columns: slice, batch: int
) -> NDArray[np.float32]:
    """One level's features, (n_images, P, D) float32."""
    parts = [
        features.read(rows[i : i + batch])[:, :, columns].astype(np.float32)
        for i in range(0, len(rows), batch)
    ]
    return np.concatenate(parts)


def _scales(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Tokens (n, P, D), and their means over squares: side 1, 2, 4, ... while they divide the
    grid, and the whole grid.
    """
    n, n_tokens, width = x.shape
    side = math.isqrt(n_tokens)
    if n_tokens - side**2 > 1:  # no square grid
        return [x, x.mean(1, keepdims=True)]
    found = [x[:, :1]] if n_tokens > side**2 else []
    grid = x[:, n_tokens - side**2 :].reshape(n, side, side, width)
    for square in sorted({2**i for i in range(side.bit_length()) if side % 2**i == 0} | {side}):
        m = side // square
        found.append(
            grid.reshape(n, m, square, m, square, width).mean((2, 4)).reshape(n, m * m, width)
        )
    return found


def _candidates(
    kernels: list[Kernels], kernels_test: list[Kernels], config: BaselineConfig, seed: int
) -> Sequence[tuple[str, list[Kernels], list[Kernels]]]:
    """Name, kernels among training images and kernels to the test images of everything that ridge
    may choose from.
    """
    found = [("all features", kernels, kernels_test)]
    total, total_test = np.sum(kernels, axis=0), np.sum(kernels_test, axis=0)
    values, vectors = np.linalg.eigh(total)
    real = values > 1e-6 * values.max()  # what is left is rounding
    values, vectors = values[real][::-1], vectors[:, real][:, ::-1]
    for n in config.pca:
        if n < len(total):  # the first components of the centred features, from the kernel
            top = vectors[:, :n] / np.sqrt(values[:n])
            found.append(_projected(f"{n} principal components", total @ top, total_test @ top))
    for n in (
        n for n in config.random_projection if n < len(total)
    ):  # of the kernel's coordinates, which span the features
        axes = vectors / np.sqrt(values)
        project = (
            axes @ np.random.default_rng([seed, n]).standard_normal((len(values), n)) / math.sqrt(n)
        )
        x, x_test = total @ project, total_test @ project
        found.append(_projected(f"random projection to {n}", x, x_test))
    if config.band_draws:
        found.append(("banded", kernels, kernels_test))
    return found


def _projected(name: str, x: Kernels, x_test: Kernels) -> tuple[str, list[Kernels], list[Kernels]]:
    return name, [x @ x.T], [x_test @ x.T]


class FactorisedReadout(nn.Module):
    """Each voxel has its own place (P) and its own features (C) at each level; response = Σ_l Σ_p
    Σ_c s_p f_c x_pc.

    The kind of single-subject network that the paper compares with: a shared linear layer brings
    each level to C channels, and what a voxel reads is factorised into space × feature (Klindt et
    al. 2017; St-Yves & Naselaris 2018).
    """

    def __init__(self, widths: Sequence[int], n_tokens: int, n_voxels: int, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.inputs = nn.ModuleList(nn.Linear(width, channels) for width in widths)
        self.space = nn.Parameter(torch.full((len(widths), n_voxels, n_tokens), 1 / n_tokens))
        self.feature = nn.Parameter(
            torch.randn(len(widths), n_voxels, channels) / (channels * len(widths)) ** 0.5
        )
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Tokens, one (B, P, D) per level -> responses (B, V)."""
        out = self.bias
        for norm, linear, space, feature, x in zip(
            self.norms, self.inputs, self.space, self.feature, levels, strict=True
        ):
            y = linear(norm(x)).transpose(0, 1)  # (P, B, C)
            pooled = (space @ y.flatten(1)).unflatten(1, y.shape[1:])  # (V, B, C)
            out = out + (pooled @ feature[:, :, None])[:, :, 0].T
        return out

    def penalty(self) -> Tensor:
        """Sum of squares of the features and of the place relative to 1 / P, per voxel."""
        n_voxels, n_tokens = self.space.shape[1:]
        return (
            self.feature.square().sum() + (self.space * n_tokens).square().sum() / n_tokens
        ) / n_voxels


def factorised(
    subject: Subject, features: Features, config: BaselineConfig, seed: int = 0
) -> Fitted:
    """Train a `FactorisedReadout` on one subject; the penalty and the number of epochs are chosen
    on the val images.

    Returns
    -------
    Fitted, with predictions for the test images.
    """
    rows, val = subject.image_rows("train"), subject.image_rows("val")
    if len(val) < 2:
        raise UbrainError(
            f"subject {subject.name!r} has {len(val)} val images; the readout needs some to"
            " choose by"
        )
    rng, models = np.random.default_rng(seed), list[FactorisedReadout]()
    for _ in config.factorised_penalties:  # all see the same batches, which are read once
        torch.manual_seed(seed)
        sizes = features.n_tokens, subject.n_voxels, config.factorised_channels
        models.append(FactorisedReadout(features.widths, *sizes))
    parameters = nn.ModuleList(models).parameters()
    optimiser = torch.optim.Adam(parameters, lr=3e-3, fused=True)
    per_epoch, n_epochs = -(-len(rows) // 32), config.factorised_epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=per_epoch * n_epochs
    )
    measured = subject.responses_to(val)
    best, words, kept = -np.inf, "", models[0]
    for epoch in range(1, n_epochs + 1):
        for batch in map(np.sort, np.array_split(rng.permutation(rows), per_epoch)):
            tokens, target = _tokens(features, batch), torch.from_numpy(subject.responses_to(batch))
            for penalty, model in zip(config.factorised_penalties, models, strict=True):
                loss = nn.functional.mse_loss(model(tokens), target) + penalty * model.penalty()
                loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        for i, predicted in enumerate(_read_out(models, features, val)):
            score = float(np.nanmean(scores.correlation(predicted, measured)))
            if score > best:
                penalty, kept = config.factorised_penalties[i], copy.deepcopy(models[i])
                best, words = score, f"penalty {penalty:g}, {epoch} of {n_epochs} epochs"
    (predicted,) = _read_out([kept], features, subject.image_rows("test"))
    log.info("factorised readout of %s: %s, val r %.3f", subject.name, words, best)
    return Fitted(predicted, words, best)


@torch.inference_mode()
def _read_out(
    models: Sequence[FactorisedReadout], features: Features, rows: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """Predicted responses (n_images, n_voxels) of each model."""
    batches = (_tokens(features, rows[i : i + 64]) for i in range(0, len(rows), 64))
    parts = [[model(tokens) for model in models] for tokens in batches]
    return [torch.cat(mine).numpy() for mine in zip(*parts, strict=True)]


def _tokens(features: Features, rows: NDArray[np.int64]) -> list[Tensor]:
    return features.levels(torch.from_numpy(features.read(rows)).float())
