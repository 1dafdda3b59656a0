"""One function per kind of figure: axes in, axes out; nothing is computed here, nothing is saved."""

from ubrain.figures.crowd import (
    areas,
    attention,
    cortex,
    growth,
    images,
    measured_against_predicted,
    retrieval,
    shares,
    truth,
    voxel_quartiles,
)  # fmt: skip
from ubrain.figures.style import CEILING, CONDITIONS, colour, finish, mark_simulated, text_only
from ubrain.figures.transfer import learning_curves

__all__ = [
    "CEILING", "CONDITIONS", "areas", "attention", "colour", "cortex", "finish", "growth", "images",
    "learning_curves", "mark_simulated", "measured_against_predicted", "retrieval", "shares", "text_only", "truth",
    "voxel_quartiles",
]  # fmt: skip
