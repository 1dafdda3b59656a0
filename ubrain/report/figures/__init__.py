"""One function per kind of figure: axes in, axes out; nothing is computed here, nothing is
saved.
"""

from ubrain.report.figures.ablations import ablations
from ubrain.report.figures.by_hand import looks, softmax
from ubrain.report.figures.clusters import (
    area_groups,
    cluster_colours,
    colour_key,
    composition,
    count_choice,
    falls,
    flat_values,
    flatmap,
    flatmaps,
    group_colours,
    image_rows,
    palette,
    plane,
    plane_colours,
)
from ubrain.report.figures.compact import compact
from ubrain.report.figures.controls import effects, shared_function
from ubrain.report.figures.crowd import (
    attention,
    growth,
    images,
    measured_against_predicted,
    shares,
    truth,
    with_intervals,
)
from ubrain.report.figures.datasets import area_gains, joined, subject_gains
from ubrain.report.figures.fields import (
    attention_on_images,
    field_agreement,
    level_use,
    unknown_fields,
)
from ubrain.report.figures.overview import overview
from ubrain.report.figures.retrieval import (
    controls,
    hits_against,
    hits_by_area,
    responses_on_cortex,
    retrieval,
    retrieved,
)
from ubrain.report.figures.style import (
    CEILING,
    CONDITIONS,
    DATASETS,
    colour,
    finish,
    has_tiles,
    mark,
    pictures,
    text_only,
    tiles,
)
from ubrain.report.figures.surfaces import cortex, flat_cortex
from ubrain.report.figures.transfer import learning_curves

__all__ = [
    "CEILING",
    "CONDITIONS",
    "DATASETS",
    "ablations",
    "area_gains",
    "area_groups",
    "attention",
    "attention_on_images",
    "cluster_colours",
    "colour",
    "colour_key",
    "compact",
    "composition",
    "controls",
    "cortex",
    "count_choice",
    "effects",
    "falls",
    "field_agreement",
    "finish",
    "flat_cortex",
    "flat_values",
    "flatmap",
    "flatmaps",
    "group_colours",
    "growth",
    "has_tiles",
    "hits_against",
    "hits_by_area",
    "image_rows",
    "images",
    "joined",
    "learning_curves",
    "level_use",
    "looks",
    "mark",
    "measured_against_predicted",
    "overview",
    "palette",
    "pictures",
    "plane",
    "plane_colours",
    "responses_on_cortex",
    "retrieval",
    "retrieved",
    "shared_function",
    "shares",
    "softmax",
    "subject_gains",
    "text_only",
    "tiles",
    "truth",
    "unknown_fields",
    "with_intervals",
]
