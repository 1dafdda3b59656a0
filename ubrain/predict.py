"""Predicted responses of all voxels of a subject, streamed over images and voxels within a memory budget."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubrain.errors import UbrainError
from ubrain.fused import VoxelTerms
from ubrain.model import UniversalEncoder

T = TypeVar("T")
MEMORY = 1 << 30  # bytes for what depends on the number of voxels; tokens and the encoder come on top
IMAGES = 32  # at a time, if memory allows


class Predictor:
    """An encoder, ready to answer for some voxels of one subject.

    What depends on the voxel only is computed once, or, where that would not fit, once per batch in blocks of voxels.

    Parameters
    ----------
    voxels : indices (n_voxels,); all of the subject by default.
    memory : budget in bytes.
    precision : "fp32", or "bf16" for autocast.

    Attributes
    ----------
    n_voxels : number of voxels.
    images : how many images to give at a time.
    """

    def __init__(
        self, encoder: UniversalEncoder, subject: str, voxels: NDArray[np.int64] | None = None, memory: int = MEMORY,
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        self._encoder, self._precision = encoder.eval(), precision
        self.device = encoder.position.device
        embedding = encoder.subject(subject).detach()
        self._embedding = embedding if voxels is None else embedding[torch.from_numpy(voxels).to(self.device)]
        self.n_voxels = len(self._embedding)
        c = encoder.config
        per_voxel = 4 * len(c.widths) * (2 * c.channels + c.n_tokens + c.mlp_ratio * c.channels + 1) + 4 * c.embedding_size
        block = memory // 2 // per_voxel
        self.images = int(min(IMAGES, memory // 4 // (4 * max(self.n_voxels, 1))))
        if block < 1 or self.images < 1:
            need = max(2 * per_voxel, 16 * self.n_voxels)
            raise UbrainError(f"a memory budget of {memory} bytes is too small for {self.n_voxels} voxels; "
                              f"give at least {need}")  # fmt: skip
        self._blocks = [slice(i, i + block) for i in range(0, self.n_voxels, block)]
        self._kept: list[VoxelTerms] | None = None

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[Tensor]) -> NDArray[np.float32]:
        """Responses to images given by tokens, one (B, P, D) per level: (B, n_voxels), z-scored units."""
        out = np.empty((len(tokens[0]), self.n_voxels), np.float32)
        with autocast(self.device, self._precision):
            for block in self._blocks:
                out[:, block] = self._encoder.respond(tokens, self._terms(block)).float().cpu().numpy()
        return out

    def _terms(self, block: slice) -> list[VoxelTerms]:
        if self._kept is not None:
            return self._kept
        terms = self._encoder.voxel_terms(self._embedding[block])
        if len(self._blocks) == 1:
            self._kept = terms
        return terms


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def batches(items: Sequence[T] | NDArray, size: int) -> Iterator[Sequence[T] | NDArray]:
    """`items` in pieces of up to `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
