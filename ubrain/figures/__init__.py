"""One function per kind of figure: axes in, axes out; nothing is computed here, nothing is saved."""

from ubrain.figures.crowd import (
    areas,
    attention,
    cortex,
    growth,
    images,
    measured_against_predicted,
    truth,
    voxel_quartiles,
)  # fmt: skip
from ubrain.figures.datasets import area_gains, joined, subject_gains
from ubrain.figures.retrieval import (
    controls,
    flat_cortex,
    hits_against,
    hits_by_area,
    responses_on_cortex,
    retrieval,
    retrieved,
)
from ubrain.figures.style import CEILING, CONDITIONS, colour, finish, mark_simulated, text_only

__all__ = [
    "CEILING", "CONDITIONS", "area_gains", "areas", "attention", "colour", "controls", "cortex", "finish", "flat_cortex",
    "growth", "hits_against", "hits_by_area", "images", "joined", "mark_simulated", "measured_against_predicted",
    "responses_on_cortex", "retrieval", "retrieved", "subject_gains", "text_only", "truth", "voxel_quartiles",
]  # fmt: skip
