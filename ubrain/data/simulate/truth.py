"""The ground truth of a simulated crowd: for checks and "truth" panels, never for training."""

import json
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.crowd import Crowd
from ubrain.errors import UbrainError


def subjects(crowd: Crowd) -> list[str]:
    """Subjects whose truth is known: none in a file of recordings."""
    return [s for s in crowd.subjects if crowd.simulated and s in _group(crowd)]


def voxels(crowd: Crowd, subject: str) -> pd.DataFrame:
    """True type, receptive field (x, y, sigma in degrees of visual angle) and ncsnr of voxels."""
    group = _subject(crowd, subject)["voxels"]
    table = {c: d.asstr()[:] if d.dtype.kind == "O" else d[:] for c, d in group.items()}
    return pd.DataFrame(table).rename_axis("voxel")


def noiseless_responses(crowd: Crowd, subject: str) -> NDArray[np.float32]:
    """Noiseless responses to the test images, (n_images, n_voxels), rows as in
    `Subject.images("test")`.
    """
    return _subject(crowd, subject)["noiseless_responses"][:]


def scenes(crowd: Crowd) -> dict[str, Any]:
    """What was drawn on each image: image id -> {"place", "objects": [{"category", "x", "y",
    "size"}]}.
    """
    parts = [
        (g["id"].asstr()[:], g["description"].asstr()[:]) for g in _group(crowd)["scenes"].values()
    ]
    return {i: json.loads(t) for ids, texts in parts for i, t in zip(ids, texts, strict=True)}


def _subject(crowd: Crowd, subject: str) -> Any:
    if subject not in _group(crowd):
        raise UbrainError(
            f"no truth about subject {subject!r} in {crowd.path.name}: unknown, or recorded"
        )
    return _group(crowd)[subject]


def _group(crowd: Crowd) -> Any:
    if not crowd.simulated:
        raise UbrainError(
            f"{crowd.path.name} holds real recordings: nobody knows the truth about them"
        )
    return crowd.file["truth"]
