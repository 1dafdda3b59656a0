"""One function per kind of figure: axes in, axes out; nothing is computed here, nothing is saved."""

from ubrain.figures.clusters import (
    cluster_colours,
    colour_key,
    composition,
    count_choice,
    flatmap,
    flatmaps,
    group_colours,
    image_rows,
    palette,
    plane,
    plane_colours,
)
from ubrain.figures.ablations import ablations
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
from ubrain.figures.overview import overview
from ubrain.figures.fields import (
    attention_on_images,
    field_agreement,
    field_positions,
    level_use,
    receptive_fields,
    unknown_fields,
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
from ubrain.figures.transfer import learning_curves

__all__ = [
    "CEILING", "CONDITIONS", "areas", "attention", "colour", "cortex", "finish", "growth", "images", "mark_simulated",
    "measured_against_predicted", "overview", "retrieval", "text_only", "truth", "voxel_quartiles",
    "CEILING", "CONDITIONS", "areas", "attention", "colour", "cortex", "finish", "growth", "images",
    "learning_curves", "mark_simulated", "measured_against_predicted", "retrieval", "text_only", "truth", "voxel_quartiles",
    "CEILING", "CONDITIONS", "areas", "attention", "cluster_colours", "colour", "colour_key", "composition", "cortex",
    "count_choice", "finish", "flatmap", "flatmaps", "group_colours", "growth", "image_rows", "images", "mark_simulated",
    "measured_against_predicted", "palette", "plane", "plane_colours", "retrieval", "text_only", "truth",
    "voxel_quartiles",
    "CEILING", "CONDITIONS", "ablations", "areas", "attention", "attention_on_images", "colour", "cortex", "field_agreement",
    "field_positions", "finish", "growth", "images", "level_use", "mark_simulated", "measured_against_predicted",
    "receptive_fields", "retrieval", "text_only", "truth", "unknown_fields", "voxel_quartiles",
    "CEILING", "CONDITIONS", "area_gains", "areas", "attention", "colour", "controls", "cortex", "finish", "flat_cortex",
    "growth", "hits_against", "hits_by_area", "images", "joined", "mark_simulated", "measured_against_predicted",
    "responses_on_cortex", "retrieval", "retrieved", "subject_gains", "text_only", "truth", "voxel_quartiles",
    "learning_curves", "mark_simulated", "measured_against_predicted", "retrieval", "shares", "text_only", "truth",
    "voxel_quartiles",
]  # fmt: skip
