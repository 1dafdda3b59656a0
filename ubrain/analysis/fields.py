"""Where a voxel looks and what it reads: receptive fields from spatial attention, levels from
functional attention.

Both are read off a trained encoder and images; no measured response takes part. A receptive field
is the spatial attention of a voxel averaged over images. How much a voxel uses a level is that
level's share of the variance of its predicted response over images::

    share_l = cov(part_l, Σ_k part_k) / var(Σ_k part_k),    Σ_l share_l = 1

A share is below 0 where a level's part is cancelled by others. Tokens are a square grid in reading
order; a class token in front of it has no place and is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ubrain import kernels
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder

Array = NDArray[np.float64]
NUMBERS = 1 << 24  # (image, voxel, token) triples at a time


@dataclass(frozen=True)
class Reading:
    """What voxels read: L levels, V voxels, P tokens.

    Attributes
    ----------
    attention : (L, V, P), spatial attention averaged over images; sums to 1 over tokens.
    share : (L, V), share of each level in the variance of the predicted response over images; sums
        to 1 over levels, NaN for a voxel whose prediction is constant.
    norm : (L, V), length of the voxel's functional attention to each level's channels.
    """

    attention: NDArray[np.float32]
    share: Array
    norm: Array


@dataclass(frozen=True)
class Places:
    """Centres and sizes of receptive fields, in degrees of visual angle (or in whatever unit the
    field of view was given).

    Attributes
    ----------
    x, y : centre, from the middle of the image, x to the right, y upwards.
    sigma : size, as the standard deviation of a Gaussian.
    """

    x: Array
    y: Array
    sigma: Array


@torch.inference_mode()
def read(encoder: UniversalEncoder, subject: str, batches: Iterable[Sequence[Tensor]]) -> Reading:
    """Average spatial attention of every voxel of a subject and its use of the levels, streamed
    over images and voxels.

    Parameters
    ----------
    batches : of images, each as one (B, P, D) per level, on the encoder's device.

    Raises
    ------
    UbrainError
        If there are fewer than two images.
    """
    embedding, config = encoder.subject(subject).detach(), encoder.config
    shape = (len(config.widths), len(embedding))
    device = embedding.device
    attention = torch.zeros((*shape, config.n_tokens), device=device)
    parts, products = (
        np.zeros(shape),
        np.zeros(shape),
    )  # sums over images of part_l and of part_l · response
    total, square, n_images = np.zeros(shape[1]), np.zeros(shape[1]), 0
    encoder = encoder.frozen()
    for tokens in batches:
        n_images += len(tokens[0])
        projected = encoder.project(tokens)
        for block in _blocks(len(embedding), len(tokens[0]) * config.n_tokens):
            terms = kernels.voxel_terms(encoder, embedding[block])
            maps = [kernels.attention(x, v) for x, v in zip(projected, terms, strict=True)]
            attention[:, block] += torch.stack([m.sum(0) for m in maps])
            by_level = kernels.respond_by_level(encoder, projected, terms)
            part = by_level.double().cpu().numpy()  # (L, B, v)
            response = part.sum(0)
            parts[:, block] += part.sum(1)
            products[:, block] += (part * response).sum(1)
            total[block] += response.sum(0)
            square[block] += (response**2).sum(0)
    if n_images < 2:
        raise UbrainError(
            f"receptive fields of {subject!r}: expected two images or more to average over, got"
            f" {n_images}"
        )
    variance = square / n_images - (total / n_images) ** 2
    covariance = products / n_images - parts * total / n_images**2
    share = np.divide(covariance, variance, out=np.full(shape, np.nan), where=variance > 1e-12)
    return Reading((attention / n_images).cpu().numpy(), share, _norms(encoder, embedding))


def level_weights(share: ArrayLike) -> Array:
    """How much a voxel uses each level, not below 0 and with sum 1 over levels; equal where
    nothing is known: (L, V).
    """
    used = np.clip(np.nan_to_num(np.asarray(share, np.float64)), 0, None)
    used = np.where(used.sum(0) > 0, used, 1.0)
    return used / used.sum(0)


def depth(share: ArrayLike) -> Array:
    """Mean level that a voxel reads, from 1 (first) to L (deepest), weighted by its use of the
    levels: (V,).
    """
    weights = level_weights(share)
    return np.arange(1, len(weights) + 1) @ weights


def weighted(reading: Reading) -> Array:
    """Average attention over the levels, weighted by how much the voxel uses each level: (V, P)."""
    return np.einsum("lv,lvp->vp", level_weights(reading.share), reading.attention)


def side_of(n_tokens: int) -> int:
    """Side of the square grid of tokens, with or without a class token in front.

    Raises
    ------
    UbrainError
        If neither all tokens nor all but the first are a square.
    """
    for n in (n_tokens, n_tokens - 1):
        side = round(n**0.5)
        if side > 0 and side**2 == n:
            return side
    raise UbrainError(
        f"{n_tokens} tokens are not a square grid, with or without a class token in front"
    )


def on_grid(attention: ArrayLike) -> Array:
    """Attention as maps (..., rows from the top, columns from the left), without the class token,
    with sum 1.

    A voxel that looks at the class token only has no place: its map is NaN.
    """
    weights = np.asarray(attention, np.float64)
    side = side_of(weights.shape[-1])
    maps = weights[..., weights.shape[-1] - side**2 :].reshape(*weights.shape[:-1], side, side)
    total = maps.sum((-2, -1), keepdims=True)
    return maps / np.where(total > 0, total, np.nan)


def locate(attention: ArrayLike, field_of_view: float) -> Places:
    """Centre and size of receptive fields.

    The centre is the mean place of the attention. The size is that of the Gaussian with the same
    concentration: a Gaussian in cells of area a has Σ p² = a / (4π σ²), so σ = sqrt(a / (4π Σ p²));
    a single token has σ = 0.28 of its side. Unlike the standard deviation, it changes little with a
    faint even background.

    Parameters
    ----------
    attention : (..., P)
    field_of_view : width and height of the image, in degrees of visual angle; its unit is that of
        the result.

    Returns
    -------
    Places, each array of shape (...).
    """
    maps = on_grid(attention)
    cell = field_of_view / maps.shape[-1]
    across = (np.arange(maps.shape[-1]) + 0.5) * cell - field_of_view / 2
    x, y = maps.sum(-2) @ across, maps.sum(-1) @ -across  # rows go down, y goes up
    return Places(x, y, np.sqrt(cell**2 / (4 * np.pi * (maps**2).sum((-2, -1)))))


def _norms(encoder: UniversalEncoder, embedding: Tensor) -> Array:
    read_by = [terms.readout[0].norm(dim=1) for terms in kernels.voxel_terms(encoder, embedding)]
    return torch.stack(read_by).double().cpu().numpy()


def _blocks(n_voxels: int, pairs: int) -> Iterator[slice]:
    step = max(1, NUMBERS // pairs)
    return (slice(start, start + step) for start in range(0, n_voxels, step))
