"""A page to click through voxels: flat cortices, a map of all embeddings, and what each voxel does.

`gather` computes what the page shows, as plain arrays; `page` draws it as one HTML file that needs
neither a server nor a network. Images of recordings are in the file only if the crowd file says
that they may be shown: whoever gets the page has them.
"""

import base64
import copy
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady, DoubleTap, MouseLeave, MouseMove, Tap
from bokeh.models import BoxZoomTool, ColumnDataSource, CustomJS, LinearColorMapper, Range1d
from bokeh.plotting import figure as bokeh_figure
from bokeh.resources import INLINE
from IPython.display import HTML
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from ubrain import checkpoint, predict, scores
from ubrain.analysis import clusters, fields
from ubrain.analysis.clusters import Clustering
from ubrain.analysis.fields import Reading
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.exchange import hub
from ubrain.exchange.readouts import ReadoutPredictor, load_readout
from ubrain.exchange.transfers import open_encoder
from ubrain.model import UniversalEncoder
from ubrain.paths import check_out, write_text
from ubrain.progress import log, track
from ubrain.readout import LinearReadout
from ubrain.report import figures
from ubrain.report.figures.clusters import HEMISPHERES, REACH, area_votes, flat_surface, frame
from ubrain.report.lab import Lab
from ubrain.report.studies import clustering, receptive_fields

FILE = "explorer.html"  # the page; also the name of its template
BEST, LOOKS, NEAR = 5, 4, 5  # top images; of these with attention; nearest voxels of each subject
OF_CLUSTER = 12  # top images of a cluster
MOST = 10_000  # voxels of a subject
GRID = 8  # attention is shown on at most so many places across
MAP = 150.0  # side of the map of embeddings, as if it were mm
PIXEL = 0.8  # mm of a pixel of a cortex
GAP = 8.0  # mm between the hemispheres
LETTER = (6.5, 11.0)  # mm that a letter of the name of an area takes on a small picture
GROUND = ("#ffffff00", "#e6e6e6", "#d4d4d4")  # pixels without a voxel: outside, gyrus, sulcus
THUMBNAIL, QUALITY = 80, 80  # pixels of a side, of JPEG
STEP = 0.0625  # z-scores are kept in such steps
NOWHERE = 65535  # place of a voxel that is not on its subject's picture
BATCH = 8  # images


@dataclass(frozen=True)
class Picture:
    """Where the voxels of one subject are drawn.

    Attributes
    ----------
    cortex : whether it is the flat cortex; else it is the subject's part of the map of embeddings.
    size : (2,) width and height in mm.
    pixels : (rows from the bottom, columns) 0 outside, 1 gyrus, 2 sulcus, else number of the voxel
        within the subject + 3.
    places : (n_voxels, 2) in mm; NaN where a voxel is not drawn.
    outlines : lines around areas, each (n_points, 2).
    names : of areas, and where they are written.
    """

    cortex: bool
    size: tuple[float, float]
    pixels: NDArray[np.uint16]
    places: NDArray[np.float64]
    outlines: list[NDArray[np.float64]]
    names: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Explorer:
    """What the page shows; V voxels, one subject after the other, and S subjects.

    Attributes
    ----------
    title, notes : of what, and what a reader must know of the data, in sentences.
    voxels : one row per voxel: subject, voxel (number in the crowd file), hemisphere, areas, r,
        ceiling (as correlation; NaN where unknown).
    clusters : of the voxels' embeddings.
    places : (V, 2) on the map of all embeddings.
    pictures : of each subject.
    levels : (V, L) how much each level is read; sums to 1.
    best : (V, 2 · BEST) top images by measured, then by predicted response, in `images`.
    responses : (V, 2 · BEST, 2) measured and predicted responses to these, z-scored.
    attention : (V, 1 + LOOKS, GRID, GRID) at most: the mean over images, then on the first images
        of `best`; the highest is 1.
    nearest : (V, S, NEAR) the voxels of every other subject with the nearest embeddings; -1: none.
    likeness : (V, S) cosine of the nearest.
    of_clusters : (n_clusters, OF_CLUSTER) top images of each cluster by mean predicted response.
    images : ids.
    thumbnails : (n_images, THUMBNAIL, THUMBNAIL, 3); None if they may not be shown.
    first : the voxel that the page opens with.
    """

    title: str
    notes: list[str]
    voxels: pd.DataFrame
    clusters: Clustering
    places: NDArray[np.float64]
    pictures: dict[str, Picture]
    levels: NDArray[np.float64]
    best: NDArray[np.int64]
    responses: NDArray[np.float64]
    attention: NDArray[np.float64]
    nearest: NDArray[np.int64]
    likeness: NDArray[np.float64]
    of_clusters: NDArray[np.int64]
    images: list[str]
    thumbnails: NDArray[np.uint8] | None
    first: int


def explore(
    folder: str | Path,
    crowd: str | Path,
    out: str | Path = FILE,
    profile: str = "fast",
    voxels: int = 1000,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Write a page on which the voxels of an encoder can be clicked through.

    Parameters
    ----------
    folder : checkpoint folder, or `owner/name` on the Hugging Face hub.
    crowd : crowd file (.h5) that the encoder was trained on, or that it was transferred to.
    out : HTML file to write.
    profile : smoke, fast or paper: how the clusters are searched for.
    voxels : at most so many of each subject, drawn at random; 1,000 voxels are about 0.7 MB.
    seed : of what is random.
    device : auto, cpu, cuda, cuda:1, mps.

    Raises
    ------
    UbrainError
        If the encoder is not of the subjects of the crowd file, there are too many voxels, or `out`
        cannot be written.
    """
    out = Path(out)
    check_out(out)
    if voxels > MOST:
        raise UbrainError(f"--voxels {voxels}: expected at most {MOST:,}; a page is not for more")
    folder = hub.fetch(folder)
    described = checkpoint.describe(folder)
    with Crowd(crowd) as opened:
        check_same(folder, opened)
    scheme = described.facts.get("settings", {}).get("split_scheme")
    lab = Lab("explorer", str(crowd), profile, seed, list(described.subjects), scheme)
    lab.profile = replace(lab.profile, backbone=checkpoint.backbone_config(folder))
    encoder, lab.source = open_encoder(folder, lab.crowd, device)
    readouts = {s: load_readout(folder, s) for s in described.subjects}
    write_text(out, page(gather(lab, encoder, voxels, readouts)))
    return out


def show(lab: Lab, encoder: UniversalEncoder, named: bool = True) -> HTML | None:
    """The page in a notebook, and as a file in the folder of what the notebook writes; clusters
    have names, or only numbers for those who have still to name them.

    An executed notebook that is kept (a run) stays small: there it is one line that says how to get
    the page.
    """
    if "UBRAIN_OUT" in os.environ:
        print("the voxel explorer opens here when this notebook is run by hand")
        return None
    found = gather(lab, encoder)
    if not named:
        found = replace(found, clusters=found.clusters.named([""] * found.clusters.n_clusters))
    html = page(found)
    write_text(lab.out / FILE, html)
    print(f"also in {lab.out / FILE}")
    inside = html.replace("&", "&amp;").replace('"', "&quot;")
    within = f'<iframe srcdoc="{inside}" style="width:100%;height:800px;border:0"></iframe>'
    return HTML(f"<div>{within}</div>")


def check_same(folder: Path, crowd: Crowd) -> None:
    """Refuse an encoder that is not of this crowd file: every subject has to be there, with the
    voxels that the checkpoint knows.
    """
    for name, n_voxels in checkpoint.describe(folder).subjects.items():
        subject = crowd[name]
        with checkpoint.damaged(folder):
            known = checkpoint.read_table(folder, name)
        same = subject.n_voxels == n_voxels
        if same and known is not None:
            snr = known["ncsnr"].to_numpy(), subject.voxels["ncsnr"].to_numpy()
            same = list(known["areas"]) == list(subject.voxels["areas"])
            same = same and np.allclose(*snr, rtol=1e-4, equal_nan=True)
        if not same:
            raise UbrainError(
                f"{folder} and {crowd.path.name} do not belong together: the voxels of {name!r}"
                " differ; expected the crowd file that the encoder was trained on"
            )


def gather(
    lab: Lab,
    encoder: UniversalEncoder,
    most: int = 1000,
    readouts: Mapping[str, LinearReadout | None] | None = None,
) -> Explorer:
    """Everything that the page shows.

    Parameters
    ----------
    most : voxels of each subject; of more, so many are drawn at random. Clusters are those of the
        drawn voxels.
    readouts : linear readouts of subjects, whose part is added to predicted responses; what else is
        shown is the encoder's.
    """
    whole = copy.copy(lab)
    whole.subjects = list(encoder.embeddings)
    embeddings, voxels = clustering.gather(whole, encoder)
    outlines = clustering.outlines(voxels)
    rng, drawn = np.random.default_rng(lab.seed), {}
    for s, e in embeddings.items():
        chosen = rng.permutation(len(e))[:most] if len(e) > most else np.arange(len(e))
        drawn[s] = np.sort(chosen)
    inside, few = _only(whole, encoder, drawn)
    starts = np.cumsum([0, *map(len, embeddings.values())])
    kept = np.concatenate([a + d for a, d in zip(starts, drawn.values(), strict=False)])
    embeddings = {s: e[drawn[s]] for s, e in embeddings.items()}
    voxels = voxels.iloc[kept].assign(voxel=np.concatenate(list(drawn.values())))
    voxels = voxels.reset_index(drop=True)

    log.info("clusters and a map of %d embeddings", len(voxels))
    everyone = clustering.pooled(embeddings)
    found, of_clusters = name_clusters(inside, few, everyone, voxels)
    sample = lab.profile.clusters.map_sample
    places = lab.kept(clusters.map_2d, everyone, sample, seed=lab.seed)
    parts = []
    for s in track(inside.subjects, len(inside.subjects), "reading voxels"):
        readout = (readouts or {}).get(s)
        parts.append(_read(inside, few, ReadoutPredictor(readout, encoder, s, drawn[s]), s))
    r, ceiling, levels, best, responses, attention = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    nearest, likeness = nearest_elsewhere(embeddings)
    drawings = pictures(inside.subjects, voxels, places, outlines)
    used = np.unique(np.concatenate([best.ravel(), of_clusters.ravel()]))
    shown = lab.crowd.images_may_be_shown
    return Explorer(
        title=_title(inside, len(voxels)),
        notes=_notes(lab, {s: (len(e), lab.crowd[s].n_voxels) for s, e in embeddings.items()}),
        voxels=voxels.assign(r=r, ceiling=ceiling),
        clusters=found,
        places=places,
        pictures=drawings,
        levels=levels,
        best=np.searchsorted(used, best),
        responses=responses,
        attention=attention,
        nearest=nearest,
        likeness=likeness,
        of_clusters=np.searchsorted(used, of_clusters),
        images=[str(image) for image in lab.crowd.image_ids[used]],
        thumbnails=_thumbnails(lab.pictures(used)) if shown else None,
        first=opening(inside, few, found, voxels, drawings[inside.subjects[0]]),
    )


def name_clusters(
    lab: Lab, encoder: UniversalEncoder, everyone: NDArray[np.float32], voxels: pd.DataFrame
) -> tuple[Clustering, NDArray[np.int64]]:
    """Clusters as `05_clusters` finds and names them, and their top images as rows of the crowd
    file, (n_clusters, OF_CLUSTER).
    """
    size, seed = lab.profile.clusters, lab.seed
    table = clusters.count_table(
        everyone, size.counts, size.runs, restarts=size.restarts, seed=seed
    )
    found = clusters.kmeans(everyone, clusters.best_count(table), size.restarts, seed)
    rows, names = clustering.test_rows(lab), []
    if (without := clustering.counterfactuals(lab, rows)) is not None:
        falls = clustering.predicted_falls(lab, encoder, found, rows, without)
        names = clustering.counterfactual_names(lab, falls, without)
    in_areas = clusters.enrichment(found.members, clustering.area_features(voxels))
    responses = clustering.mean_responses(lab, encoder, found.labels, rows)
    best = rows[clustering.top_images(responses, OF_CLUSTER)]
    return clustering.name_clusters(found, voxels, names, in_areas), best


def nearest_elsewhere(
    embeddings: Mapping[str, NDArray[np.float32]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The voxels of every other subject whose embeddings have the smallest angle, nearest first.

    Returns
    -------
    (V, S, NEAR) rows, -1 where there is none; and (V, S) the cosine of the nearest, NaN if none.
    """
    unit = [clusters.unit(e) for e in embeddings.values()]
    starts = np.cumsum([0, *map(len, unit)])
    nearest = np.full((starts[-1], len(unit), NEAR), -1)
    likeness = np.full((starts[-1], len(unit)), np.nan)
    for a, mine in enumerate(unit):
        rows = slice(starts[a], starts[a + 1])
        for b, theirs in enumerate(unit):
            if a != b:
                cosine = mine @ theirs.T
                order = np.argsort(-cosine, axis=1, kind="stable")[:, :NEAR]
                nearest[rows, b, : order.shape[1]] = starts[b] + order
                likeness[rows, b] = cosine.max(1)
    return nearest, likeness


def pictures(
    subjects: Sequence[str],
    voxels: pd.DataFrame,
    places: NDArray[np.float64],
    outlines: Mapping[str, pd.DataFrame],
) -> dict[str, Picture]:
    """The flat cortex of each subject, all of the same part of it; of a subject whose voxels have
    no place on fsaverage5, its part of the map of embeddings.

    Parameters
    ----------
    places : on that map, (V, 2).
    outlines : subject -> voxels that say where areas are.
    """
    found = {}
    limits = {h: frame(voxels, h, 1, REACH + 4) for h in HEMISPHERES}
    grounds = {h: _ground(h, ends) for h, ends in limits.items() if ends is not None}
    for s in subjects:
        mine = (voxels["subject"] == s).to_numpy()
        if (mine & (voxels["vertex"] >= 0) & voxels["hemisphere"].isin(list(grounds))).any():
            found[s] = _cortex(voxels[mine], grounds, outlines.get(s))
        else:
            found[s] = _part_of_map(places, mine)
    return found


def opening(
    lab: Lab,
    encoder: UniversalEncoder,
    found: Clustering,
    voxels: pd.DataFrame,
    picture: Picture,
) -> int:
    """The voxel that the page opens with, of the first subject: of those that are predicted best on
    the val images the one that looks at the smallest part of the image; if possible among those
    that are drawn and in the largest cluster outside of the early areas.
    """
    s = lab.subjects[0]
    predicted = predict.predict(encoder, lab.source, s, lab.crowd[s].image_rows("val"))
    r = scores.correlation(predicted, lab.crowd[s].responses("val"))
    chosen = clustering.largest_category_cluster(found, voxels)
    good = np.isfinite(r) & np.isfinite(picture.places[:, 0]) & (found.labels[: len(r)] == chosen)
    r = np.where(good, r, np.nan) if good.any() else r
    return receptive_fields.most_focused(lab, encoder, s, r)


def page(explorer: Explorer) -> str:
    """The page as HTML, with everything that it needs in it."""
    document = Document()
    drawn = [_draw(picture, i) for i, picture in enumerate(explorer.pictures.values())]
    plane, dots, lit = _draw_map(explorer)
    for root in (*(figure for figure, _ in drawn), plane):
        document.add_root(root)
    args = {"pictures": [parts for _, parts in drawn], "dots": dots, "lit": lit}
    start = CustomJS(args=args, code="explorer.start(pictures, dots, lit)")
    document.js_on_event(DocumentReady, start)
    template = resources.files("ubrain.report").joinpath(FILE).read_text(encoding="utf-8")
    data = json.dumps(_payload(explorer), allow_nan=False).replace("<", "\\u003c")
    given = {
        "subjects": list(explorer.pictures),
        "cortex": any(picture.cortex for picture in explorer.pictures.values()),
        "notes": explorer.notes,
        "data": data,
    }
    return file_html(document, INLINE, explorer.title, template=template, template_variables=given)


def _only(
    lab: Lab, encoder: UniversalEncoder, drawn: Mapping[str, NDArray[np.int64]]
) -> tuple[Lab, UniversalEncoder]:
    """The workbench and the encoder, as if subjects had only some of their voxels."""
    inside, few = copy.copy(lab), encoder.frozen()
    inside.crowd = lab.crowd.select(*(lab.crowd[s].select(voxels=v) for s, v in drawn.items()))
    for s, chosen in drawn.items():
        few.embeddings[s] = nn.Parameter(encoder.subject(s).detach()[torch.tensor(chosen)])
    return inside, few


def _read(
    lab: Lab, encoder: UniversalEncoder, predictor: ReadoutPredictor, subject: str
) -> tuple[NDArray, ...]:
    """Of the voxels of a subject: r, ceiling, levels, best (rows of the crowd file), responses and
    attention, as in `Explorer`.
    """
    rows, measured = lab.crowd[subject].image_rows("test"), lab.measured(subject)
    predicted = np.concatenate([part for _, part in predict.stream(predictor, lab.source, rows)])
    orders = [np.argsort(-x, axis=0, kind="stable")[:BEST].T for x in (measured, predicted)]
    best = np.concatenate(orders, axis=1)
    both = [np.take_along_axis(x.T, best, 1) for x in (measured, predicted)]
    reading = receptive_fields.read_one(lab, encoder, subject)
    looks = [fields.weighted(reading)[:, None]]
    looks.append(_attention(lab, encoder, reading, subject, rows[best[:, :LOOKS]]))
    maps = np.nan_to_num(fields.on_grid(np.concatenate(looks, axis=1)))
    if maps.shape[-1] > GRID:
        maps = adaptive_avg_pool2d(torch.from_numpy(maps), GRID).numpy()
    highest = maps.max((-2, -1), keepdims=True)
    return (
        scores.correlation(predicted, measured),
        lab.ceiling_r(subject),
        fields.level_weights(reading.share).T,
        rows[best],
        np.stack(both, axis=-1),
        np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0),
    )


def _attention(
    lab: Lab,
    encoder: UniversalEncoder,
    reading: Reading,
    subject: str,
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Spatial attention of each voxel on images of its own (V, n), given by rows of the crowd file:
    (V, n, P).
    """
    everyone = np.arange(len(rows))
    found = np.zeros((*rows.shape, encoder.config.n_tokens))
    for some in np.array_split(every := np.unique(rows), -(-len(every) // BATCH)):
        on = receptive_fields.on_images(lab, encoder, reading, subject, everyone, some)
        voxel, place = np.nonzero(np.isin(rows, some))
        found[voxel, place] = on[voxel, np.searchsorted(some, rows[voxel, place])]
    return found


def _title(lab: Lab, n_voxels: int) -> str:
    datasets = ", ".join(dict.fromkeys(lab.crowd[s].dataset for s in lab.subjects))
    subjects = f"{n} subjects" if (n := len(lab.subjects)) > 1 else "1 subject"
    return f"Voxel explorer: {datasets}, {subjects}, {n_voxels:,} voxels"


def _notes(lab: Lab, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    notes = []
    if lab.crowd.simulated:
        notes.append(
            "Simulated crowd: images were rendered and responses computed, nobody was scanned."
        )
    if any(drawn < every for drawn, every in sizes.values()):
        parts = ", ".join(f"{s} {drawn} of {every}" for s, (drawn, every) in sizes.items())
        notes.append(
            f"Only some voxels of each subject, drawn at random (seed {lab.seed}): {parts}."
        )
    if not lab.crowd.images_may_be_shown:
        source = lab.crowd.image_source
        notes.append(f"Grey tiles: the images may not be shown here; they come from {source}.")
    return notes


def _thumbnails(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    side = (THUMBNAIL, THUMBNAIL)
    return np.stack([np.asarray(Image.fromarray(image).resize(side)) for image in pixels])


@dataclass(frozen=True)
class _Ground:
    """The flat surface of a hemisphere in its frame: `pixels` as in `Picture`, without voxels."""

    hemisphere: str
    corner: NDArray[np.float64]
    size: tuple[float, float]
    pixels: NDArray[np.uint16]
    centres: NDArray[np.float64]  # (rows, columns, 2), in mm of the flat surface


def _ground(hemisphere: str, limits: NDArray[np.float64]) -> _Ground:
    xy, faces, sulcus = flat_surface(hemisphere)
    width, height = limits[1] - limits[0]
    centres = limits[0] + _centres(width, height)
    inside = np.all((xy > limits[0] - 20) & (xy < limits[1] + 20), axis=1)
    find = Triangulation(xy[:, 0], xy[:, 1], faces[inside[faces].all(1)]).get_trifinder()
    _, nearest = cKDTree(xy).query(centres)
    outside = np.asarray(find(centres[..., 0], centres[..., 1])) < 0
    pixels = np.where(outside, 0, 1 + sulcus[nearest])
    return _Ground(hemisphere, limits[0], (width, height), pixels.astype(np.uint16), centres)


def _centres(width: float, height: float) -> NDArray[np.float64]:
    """Middles of the pixels of a picture: (rows from the bottom, columns, 2)."""
    x = (np.arange(round(width / PIXEL)) + 0.5) * PIXEL
    y = (np.arange(round(height / PIXEL)) + 0.5) * PIXEL
    return np.stack(np.meshgrid(x, y), axis=-1)


def _cortex(
    voxels: pd.DataFrame, grounds: Mapping[str, _Ground], outlines: pd.DataFrame | None
) -> Picture:
    """Both hemispheres of a subject, side by side."""
    places = np.full((len(voxels), 2), np.nan)
    height, left = max(g.size[1] for g in grounds.values()), 0.0
    parts, lines, names = [], [], []
    rows = round(height / PIXEL)
    for h, ground in grounds.items():
        xy, faces, _ = flat_surface(h)
        shift = np.array([left, 0.0]) - ground.corner
        here = np.flatnonzero((voxels["hemisphere"] == h) & (voxels["vertex"] >= 0))
        pixels = ground.pixels.copy()
        if len(here):
            at = xy[voxels["vertex"].to_numpy(dtype=int)[here]]
            seen = np.all((at > ground.corner) & (at < ground.corner + ground.size), axis=1)
            places[here[seen]] = at[seen] + shift
            distance, near = cKDTree(at).query(ground.centres)
            on = (distance <= REACH) & (pixels > 0)
            pixels[on] = len(GROUND) + here[near[on]]
        known = pd.DataFrame() if outlines is None else outlines[outlines["hemisphere"] == h]
        for area, votes in area_votes(xy, known).items():
            lines += [line + shift for line in _around(xy, faces, votes)]
            x, y = np.median(xy[votes > 0.5], axis=0) + shift
            names.append((area, float(x), float(y)))
        parts.append(np.pad(pixels, ((0, rows - len(pixels)), (0, round(GAP / PIXEL)))))
        left += parts[-1].shape[1] * PIXEL
    whole = np.concatenate(parts, axis=1)
    size = whole.shape[1] * PIXEL, whole.shape[0] * PIXEL
    return Picture(True, size, whole, places, lines, _apart(names, size))


def _around(xy: NDArray, faces: NDArray, votes: NDArray) -> list[NDArray[np.float64]]:
    """The lines around an area on the flat surface."""
    triangles = Triangulation(xy[:, 0], xy[:, 1], faces)
    drawn = Figure().add_subplot().tricontour(triangles, votes, levels=[0.5])
    parts = [part for path in drawn.get_paths() for part in path.to_polygons(closed_only=False)]
    return [np.asarray(part, np.float64) for part in parts]


def _apart(
    names: Sequence[tuple[str, float, float]], size: tuple[float, float]
) -> list[tuple[str, float, float]]:
    """The names of areas that do not cover one another; of two, the first stays."""
    kept: list[tuple[str, float, float]] = []
    for area, x, y in names:
        free = all(
            abs(x - x2) > LETTER[0] * (len(area) + len(other)) / 2 or abs(y - y2) > LETTER[1]
            for other, x2, y2 in kept
        )
        if free and 0 < x < size[0] and 0 < y < size[1]:
            kept.append((area, x, y))
    return kept


def _part_of_map(places: NDArray[np.float64], mine: NDArray[np.bool_]) -> Picture:
    """The voxels of one subject on the map of all embeddings, each as a small disc."""
    at = _on_map(places)[mine]
    distance, near = cKDTree(at).query(_centres(MAP, MAP))
    radius = np.clip(0.2 * MAP / np.sqrt(len(at)), 1.5, 5)
    pixels = np.where(distance <= radius, len(GROUND) + near, 1).astype(np.uint16)
    return Picture(False, (MAP, MAP), pixels, at, [], [])


def _on_map(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map of embeddings stretched to a square with a margin."""
    low, extent = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-9)
    return MAP * (0.04 + 0.92 * (places - low) / extent)


def _plain(width: float, height: float, name: str) -> Any:
    """A figure without axes, on which a box zooms in."""
    zoom = BoxZoomTool(match_aspect=True)
    drawn = bokeh_figure(
        name=name,
        width=round(2 * width),
        height=round(2 * height),
        x_range=Range1d(start=0, end=width),
        y_range=Range1d(start=0, end=height),
        sizing_mode="scale_width",
        tools=[zoom, "reset"],
        active_drag=zoom,
        toolbar_location=None,
        min_border=0,
        outline_line_color=None,
        background_fill_alpha=0,
        border_fill_alpha=0,
    )
    drawn.axis.visible = False
    drawn.grid.visible = False
    calls = {Tap: "tap", MouseMove: "point"}
    for event, call in calls.items():
        drawn.js_on_event(event, CustomJS(code=f"explorer.{call}({name!r}, cb_obj.x, cb_obj.y)"))
    drawn.js_on_event(MouseLeave, CustomJS(code="explorer.leave()"))
    drawn.js_on_event(DoubleTap, CustomJS(args={"figure": drawn}, code="figure.reset.emit()"))
    return drawn


def _draw(picture: Picture, number: int) -> tuple[Any, dict[str, Any]]:
    """A picture of a subject, and of it what the page reads and changes: the numbers of the voxels
    in its pixels, their colours, and the marks.
    """
    width, height = picture.size
    drawn = _plain(width, height, f"picture-{number}")
    n = len(GROUND) + len(picture.places)
    mapper = LinearColorMapper(palette=["#ffffff"] * n, low=-0.5, high=n - 0.5)
    pixels = drawn.image([picture.pixels], 0, 0, width, height, color_mapper=mapper)
    xs, ys = [line[:, 0] for line in picture.outlines], [line[:, 1] for line in picture.outlines]
    drawn.multi_line(xs, ys, line_color="#222222", line_width=0.9)
    marks = ColumnDataSource({"x": [], "y": [], "size": []})
    for colour, line in (("#ffffff", 4.5), ("#111111", 2)):
        look = {"fill_alpha": 0, "line_color": colour, "line_width": line}
        drawn.scatter("x", "y", size="size", source=marks, **look)
    words = [list(column) for column in zip(*picture.names, strict=True)] or [[], [], []]
    for halo in ("#ffffff", None):
        look = {"text_font_size": "9px", "text_align": "center", "text_baseline": "middle"}
        drawn.text(words[1], words[2], words[0], text_outline_color=halo, **look)
    return drawn, {"pixels": pixels.data_source, "colours": mapper, "marks": marks}


def _draw_map(explorer: Explorer) -> tuple[Any, ColumnDataSource, ColumnDataSource]:
    """The map of all embeddings; all dots, and those that are lit."""
    drawn = _plain(MAP, MAP, "map")
    x, y = _on_map(explorer.places).T.astype(np.float32)
    n = len(x)
    dots = ColumnDataSource({"x": x, "y": y, "colour": ["#cccccc"] * n})
    lit = ColumnDataSource({"x": [], "y": [], "colour": [], "size": []})
    size = float(np.clip(20_000 / n, 2, 6) * 0.8)
    drawn.scatter("x", "y", size=size, source=dots, fill_color="colour", line_color=None)
    drawn.scatter(
        "x", "y", size="size", source=lit, fill_color="colour", line_color="#111111", line_width=1.2
    )
    return drawn, dots, lit


def _payload(explorer: Explorer) -> dict[str, Any]:
    """Everything behind the pictures, as JSON: numbers of voxels in few bytes, in base64."""
    voxels, found = explorer.voxels, explorer.clusters
    names = list(explorer.pictures)
    areas, area = np.unique(voxels["areas"].to_numpy(str), return_inverse=True)
    owner = voxels["subject"].map({s: i for i, s in enumerate(names)}).to_numpy()
    places = np.concatenate([p.places for p in explorer.pictures.values()])
    hundredths = np.round(100 * voxels[["r", "ceiling"]].fillna(-1.28).to_numpy())
    responses = np.clip(np.round(np.nan_to_num(explorer.responses) / STEP), -127, 127)
    arrays = {
        "owner": owner.astype(np.uint16),
        "number": voxels["voxel"].to_numpy(np.uint32),
        "left": (voxels["hemisphere"] == "L").to_numpy(np.uint8),
        "right": (voxels["hemisphere"] == "R").to_numpy(np.uint8),
        "area": area.astype(np.uint16),
        "cluster": found.labels.astype(np.int16),
        "score": hundredths.astype(np.int8),
        "levels": np.round(255 * explorer.levels).astype(np.uint8),
        "best": explorer.best.astype(np.uint16),
        "responses": responses.astype(np.int8),
        "attention": np.round(255 * explorer.attention).astype(np.uint8),
        "nearest": explorer.nearest.astype(np.int32),
        "likeness": np.round(100 * np.nan_to_num(explorer.likeness)).astype(np.int8),
        "place": np.where(np.isfinite(places), np.round(10 * places), NOWHERE).astype(np.uint16),
        "map": np.round(10 * _on_map(explorer.places)).astype(np.uint16),
    }
    colours = [to_hex(c) for c in figures.palette(found.n_clusters)]
    highest = np.nan_to_num(voxels[["r", "ceiling"]].quantile(0.99).max())
    return {
        "subjects": [
            {
                "name": s,
                "cortex": p.cortex,
                "size": p.size,
                "shape": p.pixels.shape,
                "first": int(np.argmax(owner == i)),
                "voxels": int((owner == i).sum()),
                "hidden": int(np.isnan(p.places[:, 0]).sum()),
            }
            for i, (s, p) in enumerate(explorer.pictures.items())
        ],
        "clusters": [
            {"title": title, "colour": colour, "best": best.tolist()}
            for title, colour, best in zip(found.titles, colours, explorer.of_clusters, strict=True)
        ],
        "areas": areas.tolist(),
        "images": explorer.images,
        "ground": GROUND,
        "scale": [to_hex(c) for c in mpl.colormaps["viridis"](np.linspace(0, 1, 64))],
        "highest": float(np.ceil(20 * np.clip(highest, 0.05, 1)) / 20),
        "grid": explorer.attention.shape[-1],
        "best": explorer.best.shape[1] // 2,
        "looks": explorer.attention.shape[1],
        "near": explorer.nearest.shape[2],
        "step": STEP,
        "nowhere": NOWHERE,
        "first": explorer.first,
        "sprite": None if explorer.thumbnails is None else _sprite(explorer.thumbnails),
        "arrays": {name: _encoded(array) for name, array in arrays.items()},
    }


def _encoded(array: NDArray) -> dict[str, str]:
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"type": array.dtype.name, "data": base64.b64encode(data).decode()}


def _sprite(thumbnails: NDArray[np.uint8]) -> dict[str, Any]:
    """All thumbnails in one picture, row by row."""
    columns = int(np.ceil(np.sqrt(len(thumbnails))))
    rows = -(-len(thumbnails) // columns)
    sheet = np.full((rows * columns, *thumbnails.shape[1:]), 255, np.uint8)
    sheet[: len(thumbnails)] = thumbnails
    side = thumbnails.shape[1]
    tiled = sheet.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(tiled.reshape(rows * side, columns * side, 3)).save(
        file, "JPEG", quality=QUALITY
    )
    data = base64.b64encode(file.getvalue()).decode()
    return {"columns": columns, "rows": rows, "data": f"data:image/jpeg;base64,{data}"}
