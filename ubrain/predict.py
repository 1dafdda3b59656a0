"""Predicted responses of a subject's voxels, streamed over images and voxels in bounded memory."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubrain import kernels, scores
from ubrain.batches import n_readers, read_ahead
from ubrain.config import EncoderConfig
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.parallel import autocast

if TYPE_CHECKING:
    from ubrain.features import Source

MEMORY = 2 << 30  # bytes
IMAGES = 32  # at a time, if memory allows
PRECISIONS = ("fp32", "bf16")


class Predictor:
    """An encoder, ready to answer for some voxels of one subject.

    What depends on the voxel only is computed once, or, where that would not fit and on a GPU, once
    per batch in blocks of voxels.

    Parameters
    ----------
    voxels : indices (n_voxels,); all of the subject by default.
    memory : budget in bytes for a batch of tokens, what is computed from them, and what depends on
        the voxel. Weights, embeddings and what the backbone needs for itself come on top.
    precision : "fp32", or "bf16" for autocast.
    batch : images at a time, if memory allows.

    Attributes
    ----------
    n_voxels : number of voxels.
    images : how many images to give at a time.
    block : how many voxels are computed at a time.

    Raises
    ------
    UbrainError
        If the subject is unknown, or the budget is too small for one image.
    """

    def __init__(
        self,
        encoder: UniversalEncoder,
        subject: str,
        voxels: NDArray[np.int64] | None = None,
        memory: int = MEMORY,
        precision: str = "fp32",
        batch: int = IMAGES,
    ) -> None:
        if precision not in PRECISIONS:
            raise UbrainError(
                f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}"
            )
        self.encoder, self.precision = encoder.frozen(), precision
        self.device = encoder.position.device
        embedding = encoder.subject(subject).detach()
        chosen = slice(None) if voxels is None else torch.tensor(voxels, device=self.device)
        self._embedding = embedding[chosen]
        self.n_voxels = len(self._embedding)
        self.images, self.block = share_memory(
            encoder.config, self.n_voxels, memory, batch, precision, self.device.type
        )
        self._blocks = [slice(i, i + self.block) for i in range(0, self.n_voxels, self.block)]
        self._kept: list[kernels.VoxelTerms] | None = None

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[Tensor]) -> NDArray[np.float32]:
        """Responses (B, n_voxels), z-scored, to images given by tokens (B, P, D) per level."""
        out = np.empty((len(tokens[0]), self.n_voxels), np.float32)
        with autocast(self.device, self.precision):
            projected = self.encoder.project(tokens)
            for block in self._blocks:
                if self.encoder.tiled:
                    part = kernels.respond(self.encoder, projected, self._terms(block))
                else:
                    part = self.encoder.respond(projected, self._embedding[block])
                out[:, block] = part.float().cpu().numpy()
        return out

    def _terms(self, block: slice) -> list[kernels.VoxelTerms]:
        if self._kept is not None:
            return self._kept
        terms = kernels.voxel_terms(self.encoder, self._embedding[block])
        if len(self._blocks) == 1:
            self._kept = terms
        return terms


def share_memory(
    config: EncoderConfig, n_voxels: int, memory: int, batch: int, precision: str, device: str
) -> tuple[int, int]:
    """Images at a time, and voxels at a time, for a budget in bytes.

    Images get half of the memory, or what one voxel leaves of it; voxels the rest.

    Raises
    ------
    UbrainError
        If there is not enough for one image and one voxel.
    """
    c, p, n_levels = config.channels, config.n_tokens, len(config.widths)
    hidden = config.mlp_ratio * c
    terms = 2 * c + p + hidden + 1
    # Bytes of each image in a batch: its tokens, two copies of the largest level on the way, what
    # is projected, its responses.
    image = 4 * (p * (sum(config.widths) + 2 * max(config.widths) + n_levels * c) + n_voxels)
    # Of each voxel in a block: its terms, its query and, under bf16, the wider copy of one level.
    voxel = 4 * (terms * n_levels + config.embedding_size)
    if precision == "bf16":
        voxel = 2 * terms * n_levels + 4 * (terms + config.embedding_size)
    pair = 4 * (2 * n_levels + 1)  # each image with each voxel of a block: levels, stack and sum
    # Of each voxel in a tile: scores, weights, what is pooled and normalised, hidden units. A GPU
    # has one tile, of all images and voxels, and its queries instead of scores.
    tile, together, scored = max(1, n_voxels), batch, max(c, config.embedding_size)
    if device != "cuda":
        tile, scored = kernels.VOXELS_PER_TILE, p
        together = max(1, kernels.NUMBERS_PER_TILE // max(p, hidden) // tile)
    in_tile = 4 * min(batch, together) * (2 * scored + 5 * c + 2 * hidden)

    one = voxel + in_tile
    images = min(batch, max(memory // 2 // image, 1), (memory - one) // (image + pair))
    if images < 1:
        raise UbrainError(
            f"{memory} bytes of memory are too little for these tokens and voxels; 1 image at a"
            f" time, and voxel by voxel, it takes at least {image + pair + one} bytes"
        )
    left, voxel = memory - images * image, voxel + images * pair
    block = left // (voxel + in_tile)
    if block > tile:
        block = (left - tile * in_tile) // voxel // tile * tile
    return images, block


def stream(
    predictor: Predictor, source: "Source", rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Batches of image rows of the crowd file, with the responses (n_images, n_voxels) to them."""
    parts = [rows[i : i + predictor.images] for i in range(0, len(rows), predictor.images)]
    ahead = read_ahead(source.read, parts, n_readers(predictor.device))
    for some, read in zip(parts, ahead, strict=True):
        with torch.inference_mode(), autocast(predictor.device, predictor.precision):
            tokens = source.levels(source.ready(read.to(predictor.device)))
        yield some, predictor(tokens)


def predict(
    encoder: UniversalEncoder,
    source: "Source",
    subject: str,
    rows: NDArray[np.int64],
    precision: str = "fp32",
    memory: int = MEMORY,
) -> NDArray[np.float32]:
    """Predicted responses of all voxels of a subject to images, given as rows of the crowd file.

    Returns
    -------
    (n_images, n_voxels) float32
    """
    predictor = Predictor(encoder, subject, memory=memory, precision=precision)
    parts = [responses for _, responses in stream(predictor, source, rows)]
    return np.concatenate(parts) if parts else np.empty((0, predictor.n_voxels), np.float32)


def correlate(
    predictor: Predictor, source: "Source", subject: str, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Correlation of predicted with measured responses of each voxel over images, (n_voxels,).

    Batch by batch: nothing is held as a whole.
    """
    running = scores.RunningCorrelation(predictor.n_voxels)
    for some, predicted in stream(predictor, source, rows):
        running.add(predicted, source.crowd[subject].responses_to(some))
    return running.value()


def pairs(
    predictor: Predictor,
    source: "Source",
    subject: str,
    rows: NDArray[np.int64],
    voxels: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Predicted and measured responses (2, n_images, V) of voxels (n_images, V) of each image."""
    done, parts = 0, []
    for some, predicted in stream(predictor, source, rows):
        mine, done = voxels[done : done + len(some)], done + len(some)
        both = predicted, source.crowd[subject].responses_to(some)
        parts.append([np.take_along_axis(responses, mine, 1) for responses in both])
    return np.concatenate(parts, 1)
