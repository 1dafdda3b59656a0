"""Linear readouts of new subjects: a file beside the encoder, and predictions that add them.

`readout.safetensors` in a checkpoint folder holds `<subject>.<buffer>` for each subject that has a
readout, with the buffers of `ubrain.readout.LinearReadout`; `checkpoint.save` writes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubrain import checkpoint
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.parallel import autocast
from ubrain.predict import Predictor
from ubrain.readout import BUFFERS, LinearReadout, features


def load_readout(folder: str | Path, subject: str) -> LinearReadout | None:
    """The readout of a subject of a checkpoint folder; None if it has none.

    Older folders hold it among the encoder's weights, as `rests.<subject>.*`.

    Raises
    ------
    UbrainError
        If there is no such subject, or the readout does not fit the encoder.
    """
    folder = Path(folder)
    described = checkpoint.describe(folder)
    n_voxels = checkpoint.n_voxels_of(described, subject, folder)
    with checkpoint.damaged(folder):
        found = checkpoint.read_readouts(folder, [subject])
        if not found:
            return None
        got = {name.removeprefix(f"{subject}."): tensor for name, tensor in found.items()}
        c, k = described.config, len(got["shift"])
        with torch.device("meta"):
            squares = features([torch.empty(1, c.n_tokens, c.channels)])
        n_features = len(c.widths) * sum(square[0].numel() for square in squares)
        shapes = [(n_features, k), (k,), (k, n_voxels), (n_voxels,), (n_voxels,)]
        for buffer, shape in zip(BUFFERS, shapes, strict=True):
            if (has := tuple(got[buffer].shape)) != shape:
                raise UbrainError(
                    f"{folder}: linear readout {subject}.{buffer}: expected {shape}, got {has}"
                )
        return LinearReadout(**got)


class ReadoutPredictor(Predictor):
    """A `Predictor` that adds the linear readout of its subject.

    Parameters
    ----------
    readout : of all voxels of the subject; None for none.
    options : as of `Predictor`.
    """

    def __init__(
        self,
        readout: LinearReadout | None,
        encoder: UniversalEncoder,
        subject: str,
        voxels: NDArray[np.int64] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, subject, voxels, **options)
        self.readout = None if readout is None else readout.to(self.device)
        self._voxels = slice(None) if voxels is None else torch.tensor(voxels, device=self.device)

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[Tensor]) -> NDArray[np.float32]:
        """Responses (B, n_voxels), z-scored, to images given by tokens (B, P, D) per level."""
        responses = super().__call__(tokens)
        if self.readout is None:
            return responses
        with autocast(self.device, self.precision):
            projected = self.encoder.project(tokens)
            whole = torch.from_numpy(responses).to(self.device)
            return self.readout(whole, projected, self._voxels).cpu().numpy()
