"""Predicted responses of the voxels of a subject, streamed over images and voxels within a memory
budget; as files, too.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubrain import scores
from ubrain.backbone import Source
from ubrain.config import EncoderConfig
from ubrain.errors import UbrainError
from ubrain.kernels import NUMBERS_PER_TILE, VOXELS_PER_TILE, VoxelTerms
from ubrain.model import UniversalEncoder

MEMORY = 2 << 30  # bytes
IMAGES = 32  # at a time, if memory allows
PRECISIONS = ("fp32", "bf16")


class Predictor:
    """An encoder, ready to answer for some voxels of one subject.

    What depends on the voxel only is computed once, or, where that would not fit, once per batch in
    blocks of voxels.

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
        _one_of(precision, PRECISIONS, "precision")
        shared = {
            id(p): p.detach() for p in (*encoder.parameters(), *encoder.buffers())
        }  # nothing is copied
        self._encoder, self._precision = copy.deepcopy(encoder, shared).eval(), precision
        self.device = encoder.position.device
        embedding = encoder.subject(subject).detach()
        chosen = slice(None) if voxels is None else torch.tensor(voxels, device=self.device)
        self._embedding = embedding[chosen]
        self._subject, self._voxels = subject, chosen
        self.n_voxels = len(self._embedding)
        costs = _Costs(encoder.config, self.n_voxels, batch, precision, self.device.type)
        self.images, self.block = _shares(costs, memory, batch)
        self._blocks = [slice(i, i + self.block) for i in range(0, self.n_voxels, self.block)]
        self._kept: list[VoxelTerms] | None = None

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[Tensor]) -> NDArray[np.float32]:
        """Responses to images given by tokens, one (B, P, D) per level: (B, n_voxels), z-scored
        units.
        """
        out = np.empty((len(tokens[0]), self.n_voxels), np.float32)
        with autocast(self.device, self._precision):
            for block in self._blocks:
                out[:, block] = (
                    self._encoder.respond(tokens, self._terms(block)).float().cpu().numpy()
                )
            if self._subject not in self._encoder.rests:
                return out
            responses = torch.from_numpy(out).to(self.device)
            return (
                self._encoder.with_rest(responses, tokens, self._subject, self._voxels)
                .cpu()
                .numpy()
            )

    def _terms(self, block: slice) -> list[VoxelTerms]:
        if self._kept is not None:
            return self._kept
        terms = self._encoder.voxel_terms(self._embedding[block])
        if len(self._blocks) == 1:
            self._kept = terms
        return terms


class _Costs:
    """Bytes that a prediction needs, by what they grow with.

    Attributes
    ----------
    image : of each image in a batch: its tokens, two copies of the largest level on the way, its
        responses.
    voxel : of each voxel in a block: its terms, its query and, under bf16, the wider copy of one
        level's terms.
    pair : of each image with each voxel of a block: the levels' parts, their stack and their sum.
    tile_voxel : of each voxel in a tile: scores, weights, what is pooled and normalised, the MLP's
        hidden units.
    tile : voxels in a tile.
    """

    def __init__(
        self, config: EncoderConfig, n_voxels: int, batch: int, precision: str, device: str
    ) -> None:
        c, p, hidden, n_levels = (
            config.channels,
            config.n_tokens,
            config.mlp_ratio * config.channels,
            len(config.widths),
        )
        terms = 2 * c + p + hidden + 1
        self.image = 4 * (p * (sum(config.widths) + 2 * max(config.widths)) + n_voxels)
        self.voxel = 4 * (terms * n_levels + config.embedding_size)
        if precision == "bf16":
            self.voxel = 2 * terms * n_levels + 4 * (terms + config.embedding_size)
        self.pair = 4 * (2 * n_levels + 1)
        kind = device if device in VOXELS_PER_TILE else "cuda"
        self.tile = VOXELS_PER_TILE[kind]
        images = min(
            batch, max(1, NUMBERS_PER_TILE[kind] // max(p, hidden) // self.tile)
        )  # in a tile
        self.tile_voxel = 4 * images * (2 * p + 5 * c + 2 * hidden)


def _shares(costs: _Costs, memory: int, batch: int) -> tuple[int, int]:
    """Images at a time, from half of the memory or what one voxel leaves, and voxels at a time,
    from the rest.
    """
    one = costs.voxel + costs.tile_voxel
    images = min(
        batch, max(memory // 2 // costs.image, 1), (memory - one) // (costs.image + costs.pair)
    )
    if images < 1:
        raise UbrainError(
            f"{memory} bytes of memory are too little for these tokens and voxels; 1 image at a"
            f" time, and voxel by voxel, it takes at least {costs.image + costs.pair + one} bytes"
        )
    rest, voxel = memory - images * costs.image, costs.voxel + images * costs.pair
    block = rest // (voxel + costs.tile_voxel)
    if block > costs.tile:
        block = (rest - costs.tile * costs.tile_voxel) // voxel // costs.tile * costs.tile
    return images, block


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _one_of(value: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        raise UbrainError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")


def predict(
    encoder: UniversalEncoder,
    source: Source,
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
    parts = [p for _, p in stream(encoder, source, subject, rows, precision, memory)]
    return (
        np.concatenate(parts) if parts else np.empty((0, len(encoder.subject(subject))), np.float32)
    )


def correlate(
    encoder: UniversalEncoder,
    source: Source,
    subject: str,
    rows: NDArray[np.int64],
    precision: str = "fp32",
    memory: int = MEMORY,
) -> NDArray[np.float64]:
    """Correlation of predicted with measured responses of each voxel over images, (n_voxels,);
    nothing is held as a whole.
    """
    running = scores.RunningCorrelation(len(encoder.subject(subject)))
    for some, predicted in stream(encoder, source, subject, rows, precision, memory):
        running.add(predicted, source.crowd[subject].responses_to(some))
    return running.value()


def stream(
    encoder: UniversalEncoder,
    source: Source,
    subject: str,
    rows: NDArray[np.int64],
    precision: str = "fp32",
    memory: int = MEMORY,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Batches of image rows, with the predicted responses (n_images, n_voxels) of all voxels of a
    subject.
    """
    predictor = Predictor(encoder, subject, memory=memory, precision=precision)
    for start in range(0, len(rows), predictor.images):
        some = rows[start : start + predictor.images]
        with torch.inference_mode(), autocast(predictor.device, precision):
            tokens = source.tokens(some, predictor.device)
        yield some, predictor(tokens)
