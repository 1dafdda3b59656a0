"""Linear readouts of new subjects: a file beside the encoder, and predictions that add them.

`readout.safetensors` in a checkpoint folder holds `<subject>.<buffer>` for each subject that has a
readout, with the buffers of `ubrain.readout.LinearReadout`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ubrain import checkpoint
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.paths import atomic
from ubrain.predict import Predictor, autocast
from ubrain.readout import BUFFERS, LinearReadout, features

READOUT = "readout.safetensors"


def save_readouts(folder: str | Path, readouts: Mapping[str, LinearReadout | None]) -> None:
    """Write the readouts of subjects into a checkpoint folder, in place of those that it had.

    Call it before `checkpoint.save`, whose `config.json` marks the folder as complete.
    """
    tensors = {
        f"{subject}.{name}": tensor.cpu().contiguous()
        for subject, readout in readouts.items()
        if readout is not None
        for name, tensor in readout.state_dict().items()
    }
    if not tensors:
        (Path(folder) / READOUT).unlink(missing_ok=True)
        return
    with atomic(Path(folder) / READOUT) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial)
        partial.chmod(mode)  # safetensors lets nobody else read what it writes


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
    places = (READOUT, f"{subject}."), (checkpoint.WEIGHTS, f"{checkpoint.READOUTS}{subject}.")
    with checkpoint.damaged(folder):
        for name, start in places:
            if not (folder / name).is_file():
                continue
            with safe_open(folder / name, framework="pt") as file:
                got = {b: file.get_tensor(start + b) for b in BUFFERS if start + b in file.keys()}  # noqa: SIM118
            if not got:
                continue
            c = described.config
            with torch.device("meta"):
                squares = features([torch.empty(1, c.n_tokens, c.channels)])
            n_features = len(c.widths) * sum(square[0].numel() for square in squares)
            k = len(got["shift"])
            shapes = [(n_features, k), (k,), (k, n_voxels), (n_voxels,), (n_voxels,)]
            for buffer, shape in zip(BUFFERS, shapes, strict=True):
                if tuple(got[buffer].shape) != shape:
                    raise UbrainError(
                        f"{folder / name}: {start}{buffer}: expected {shape}, got"
                        f" {tuple(got[buffer].shape)}"
                    )
            return LinearReadout(**got)
    return None


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
        self._voxels = slice(None) if voxels is None else torch.from_numpy(voxels).to(self.device)

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
