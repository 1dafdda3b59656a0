"""One function per kind of figure: axes in, axes out; nothing is computed here, nothing is saved."""

from ubrain.figures.ablations import ablations
from ubrain.figures.crowd import (
    areas,
    attention,
    cortex,
    growth,
    images,
    measured_against_predicted,
    retrieval,
    truth,
    voxel_quartiles,
)  # fmt: skip
from ubrain.figures.fields import (
    attention_on_images,
    field_agreement,
    field_positions,
    level_use,
    receptive_fields,
    unknown_fields,
)
from ubrain.figures.style import CEILING, CONDITIONS, colour, finish, mark_simulated, text_only

__all__ = [
    "CEILING", "CONDITIONS", "ablations", "areas", "attention", "attention_on_images", "colour", "cortex", "field_agreement",
    "field_positions", "finish", "growth", "images", "level_use", "mark_simulated", "measured_against_predicted",
    "receptive_fields", "retrieval", "text_only", "truth", "unknown_fields", "voxel_quartiles",
]  # fmt: skip
