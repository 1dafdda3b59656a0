"""Where voxels look and which levels they read, against what is known of them (notebook 06)."""

import copy
import re
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ubrain import predict, scores
from ubrain.analysis import fields, stats
from ubrain.analysis.fields import Reading
from ubrain.data.simulate import truth
from ubrain.data.simulate.scenes import FIELD_OF_VIEW
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.progress import track
from ubrain.report.lab import CROWD, Lab

UNTRAINED, SHUFFLED = "untrained embeddings", "shuffled voxels"
# the attention averaged over levels, each weighted by how much the voxel uses it
BY_USE = "levels by use"
QUANTITIES = ("x", "y", "sigma")
# names of early areas in the files of several datasets
EARLY, BETWEEN = re.compile(r"(V1|V2|V3)[vd]?|EarlyVis"), re.compile(r"h?V4")
BATCH = 16  # images
LEAST = 10  # voxels in an area
AGREEMENT = ["condition", "area", "field", "quantity", "r", "low", "high", "n_voxels"]


def field_of_view(lab: Lab, given: float | None) -> tuple[float, str]:
    """Side of the images and its unit: as given in degrees, as simulated, or else 1 image width."""
    if given is not None:
        if given <= 0:
            raise UbrainError(
                f"field_of_view: expected degrees of visual angle above 0, or None, got {given}"
            )
        return given, "degrees"
    return (FIELD_OF_VIEW, "degrees") if lab.crowd.simulated else (1.0, "image widths")


def read_all(lab: Lab, encoder: UniversalEncoder) -> dict[str, Reading]:
    """Average attention and use of the levels of all voxels of all subjects, on test images."""
    subjects = track(lab.subjects, len(lab.subjects), "reading attention")
    return {s: read_one(lab, encoder, s) for s in subjects}


def read_one(lab: Lab, encoder: UniversalEncoder, subject: str) -> Reading:
    """Average attention and use of the levels of a subject's voxels, on some test images."""
    rows, most = lab.crowd[subject].image_rows("test"), lab.profile.fields.images
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(lab.seed).choice(rows, most, replace=False))
    device = encoder.position.device
    batches = (lab.source.tokens(rows[i : i + BATCH], device) for i in range(0, len(rows), BATCH))
    return fields.read(encoder, subject, batches)


def most_focused(
    lab: Lab, encoder: UniversalEncoder, subject: str, val_r: NDArray, share: float = 0.1
) -> int:
    """The voxel with the smallest receptive field among the `share` that is predicted best.

    Parameters
    ----------
    val_r : (n_voxels,), correlations on the val images.
    """
    sigma = fields.locate(fields.weighted(read_one(lab, encoder, subject)), 1).sigma
    predicted_best = np.nan_to_num(val_r) >= np.nanquantile(val_r, 1 - share)
    return int(np.argmin(np.where(predicted_best & np.isfinite(sigma), sigma, np.inf)))


def untrained(lab: Lab, encoder: UniversalEncoder) -> UniversalEncoder:
    """The trained shared weights with new embeddings: an encoder that knows no voxel."""
    found = copy.deepcopy(encoder)
    torch.manual_seed(lab.seed)
    for s in lab.subjects:
        n_voxels = len(found.subject(s))
        found.drop_subject(s)
        found.add_subject(s, n_voxels)
    return found.to(encoder.position.device).eval()


def known_fields(lab: Lab, subject: str) -> pd.DataFrame | None:
    """Receptive fields that the file knows: the truth of a simulation, or pRF maps of the voxels.

    Centres are looked for in the columns x and y, prf_x and prf_y, or prf_eccentricity and
    prf_angle (degrees, counter-clockwise from the right, as in NSD), sizes in sigma, prf_sigma or
    prf_size; all in degrees of visual angle, y upwards.

    Returns
    -------
    One row per voxel: x, y, sigma (NaN where unknown); None if the file knows no centres.
    """
    if subject in truth.subjects(lab.crowd):
        return truth.voxels(lab.crowd, subject)[list(QUANTITIES)].astype(float)
    voxels = lab.crowd[subject].voxels
    found = pd.DataFrame(index=voxels.index, columns=QUANTITIES, dtype=float)
    for x, y in (("x", "y"), ("prf_x", "prf_y")):
        if {x, y} <= set(voxels):
            found["x"], found["y"] = voxels[x], voxels[y]
    if {"prf_eccentricity", "prf_angle"} <= set(voxels):
        away, angle = voxels["prf_eccentricity"], np.deg2rad(voxels["prf_angle"])
        found["x"], found["y"] = away * np.cos(angle), away * np.sin(angle)
    for size in ("sigma", "prf_sigma", "prf_size"):
        if size in voxels:
            found["sigma"] = voxels[size]
    return found if found["x"].notna().any() else None


def field_table(lab: Lab, readings: dict[str, Reading], view: float) -> pd.DataFrame:
    """Receptive fields: a row per voxel and field (each level, and the levels by use).

    Parameters
    ----------
    view : side of the images, in the unit of the places.

    Returns
    -------
    subject, voxel, hemisphere, areas, vertex (-1 where unknown), field, x, y, sigma, and true_x,
    true_y, true_sigma (NaN where unknown).
    """
    parts = []
    for s, reading in readings.items():
        subject, known = lab.crowd[s], known_fields(lab, s)
        on_surface = "vertex" in subject.voxels and subject.space == "fsaverage5"
        base = subject.voxels[["hemisphere", "areas"]].assign(
            subject=s,
            voxel=np.arange(subject.n_voxels),
            vertex=subject.voxels["vertex"] if on_surface else -1,
            **{f"true_{q}": np.nan if known is None else known[q].to_numpy() for q in QUANTITIES},
        )
        every = [*reading.attention, fields.weighted(reading)]
        for name, attention in zip(field_names(reading), every, strict=True):
            places = fields.locate(attention, view)
            parts.append(base.assign(field=name, x=places.x, y=places.y, sigma=places.sigma))
    return pd.concat(parts, ignore_index=True)


def field_names(reading: Reading) -> list[str]:
    """Names of a voxel's receptive fields: one per level, and that of the levels by use."""
    return [*(f"level {i + 1}" for i in range(len(reading.share))), BY_USE]


def agreement(lab: Lab, table: pd.DataFrame, condition: str = CROWD) -> pd.DataFrame:
    """Correlation over voxels of estimated with known position and size, per area and field, with
    intervals; recorded.

    Returns
    -------
    One row per area, field and quantity (x, y, sigma): condition, area, field, quantity, r, low,
    high, n_voxels. No rows if no receptive field is known. A voxel of several areas counts in each.
    """
    rows = []
    for area, field, mine in by_area(table):
        for q in QUANTITIES:
            found = _bootstrap(lab, stats.pearson, mine[q], mine[f"true_{q}"])
            if found.n >= LEAST and np.isfinite(found.value):
                name, where = f"field_r of {q} in {area}", f"{condition}, {field}"
                lab.record(name, found.value, where, interval=found, unit="r")
                row = [condition, area, field, q, found.value, found.low, found.high, found.n]
                rows.append(row)
    return pd.DataFrame(rows, columns=AGREEMENT)


def layout_alone(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """The same correlations when voxels are shuffled within subject, area and hemisphere: what
    layout alone explains; recorded.

    Returns
    -------
    As `agreement`, with r the mean over shuffles, low and high the range of 95 % of them; for the
    levels by use.
    """
    rows, rng = [], np.random.default_rng(lab.seed)
    for area, field, mine in by_area(table[table["field"] == BY_USE]):
        groups = mine.groupby(["subject", "hemisphere"]).ngroup().to_numpy()
        order = shuffles(groups, lab.profile.fields.shuffles, rng)
        for q in QUANTITIES:
            x, y = mine[q].to_numpy(), mine[f"true_{q}"].to_numpy()
            r = stats.pearson(np.broadcast_to(x, order.shape), y[order])
            if len(mine) >= LEAST and np.isfinite(r).all():
                low, high = np.percentile(r, [2.5, 97.5])
                found = stats.Interval(float(r.mean()), float(low), float(high), len(mine))
                name, where = f"field_r of {q} in {area}", f"{SHUFFLED}, {field}"
                lab.record(name, found.value, where, interval=found, unit="r")
                row = [SHUFFLED, area, field, q, found.value, found.low, found.high, found.n]
                rows.append(row)
    return pd.DataFrame(rows, columns=AGREEMENT)


def above_controls(lab: Lab, found: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """In which areas the interval of the levels by use is above both controls; recorded.

    Parameters
    ----------
    found : `agreement` of the trained encoder.
    controls : `layout_alone` and `agreement` of an untrained encoder, one after the other.

    Returns
    -------
    One row per quantity: areas (how many have a correlation), above, share, and their names.
    """
    mine = found[found["field"] == BY_USE]
    limit = controls[controls["field"] == BY_USE].groupby(["quantity", "area"])["high"].max()
    rows = {}
    for q, group in mine.groupby("quantity", sort=False):
        highest = limit.reindex([(q, area) for area in group["area"]]).fillna(0).to_numpy()
        above = group["low"].to_numpy() > highest
        where = f"{CROWD}, {BY_USE}"
        name, share = f"field_areas_above_controls of {q}", above.mean()
        lab.record(name, share, where, n=len(group), unit="share")
        names = ", ".join(group["area"][above])
        rows[q] = {"areas": len(group), "above": above.sum(), "share": share, "names": names}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("quantity")


def size_beyond_eccentricity(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """Partial correlation of estimated with known size at equal known eccentricity, per area, for
    the levels by use; recorded.

    Receptive fields grow with eccentricity. So an attention that only spreads more the further out
    a voxel looks has a size that correlates with the known one, without knowing it.

    Returns
    -------
    One row per area: area, r, low, high, n_voxels; no rows if no size is known.
    """
    rows = []
    for area, field, mine in by_area(table[table["field"] == BY_USE]):
        away = np.hypot(mine["true_x"], mine["true_y"])
        found = _bootstrap(lab, partial_correlation, mine["sigma"], mine["true_sigma"], away)
        if found.n >= LEAST and np.isfinite(found.value):
            rows.append([area, found.value, found.low, found.high, found.n])
            name, where = f"field_r of sigma at equal eccentricity in {area}", f"{CROWD}, {field}"
            lab.record(name, found.value, where, interval=found, unit="r")
    return pd.DataFrame(rows, columns=["area", "r", "low", "high", "n_voxels"])


def distances(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """How far estimated centres are from the known ones, and by how much nearer than the middle of
    the image; recorded.

    Only the levels by use; places must be in degrees.

    Returns
    -------
    One row per area: area, distance (median), of_the_middle (that of the image's middle), nearer
    (median over voxels of the paired difference) with low and high, size, known_size (medians), all
    in degrees, and n_voxels.
    """
    rows, where = [], f"{CROWD}, {BY_USE}"
    known = table[table["field"] == BY_USE].dropna(subset=["true_x", "true_y"])
    for area, _, mine in by_area(known):
        away = np.hypot(mine["x"] - mine["true_x"], mine["y"] - mine["true_y"])
        middle = np.hypot(mine["true_x"], mine["true_y"])
        nearer = _bootstrap(lab, lambda x: np.median(x, -1), middle - away)
        if nearer.n >= LEAST:
            name, n = f"field_distance in {area}", nearer.n
            lab.record(name, away.median(), where, n=n, unit="degrees")
            lab.record(name, middle.median(), "middle of the image", n=n, unit="degrees")
            name = f"field_nearer in {area}"
            lab.record(name, nearer.value, where, interval=nearer, unit="degrees")
            paired = [nearer.value, nearer.low, nearer.high]
            sizes = [mine["sigma"].median(), mine["true_sigma"].median()]
            rows.append([area, away.median(), middle.median(), *paired, *sizes, n])
    columns = ["area", "distance", "of_the_middle", "nearer", "low", "high", "size", "known_size"]
    return pd.DataFrame(rows, columns=[*columns, "n_voxels"])


def use_of_levels(lab: Lab, readings: dict[str, Reading], condition: str = CROWD) -> pd.DataFrame:
    """Mean use of each level and mean depth per area, over the voxels of all subjects; recorded,
    and the depth per subject.

    Returns
    -------
    One row per area, in the order of the file: condition, area, depth with low and high, n_voxels,
    and the mean weight of each level ("level 1", ...), as in `fields.level_weights`.
    """
    for s, reading in readings.items():
        mean, n = fields.depth(reading.share).mean(), reading.share.shape[1]
        lab.record("depth", mean, condition, s, n=n, unit="level")
    rows = []
    for area, _, mine in by_area(depths(lab, readings).assign(field="")):
        if len(mine) < LEAST:
            continue
        found = _bootstrap(lab, lambda x: x.mean(-1), mine["depth"])
        lab.record(f"depth of {area}", found.value, condition, interval=found, unit="level")
        levels = mine.filter(regex=r"^level \d+$").mean()
        for name, weight in levels.items():
            lab.record(f"use of {name} in {area}", weight, condition, n=len(mine), unit="share")
        row = {"condition": condition, "area": area, "depth": found.value, "low": found.low}
        rows.append({**row, "high": found.high, "n_voxels": len(mine), **levels})
    return pd.DataFrame(rows)


def depth_gap(lab: Lab, readings: dict[str, Reading], condition: str = CROWD) -> pd.DataFrame:
    """How much deeper voxels of areas beyond hV4 read than those of V1–V3, per subject and for all;
    recorded.

    hV4 itself (or V4), between the two, takes no part.

    Returns
    -------
    One row per subject and one for all: condition, subject, early, higher (mean depths), gap, low,
    high, n_voxels; no rows where there are not enough voxels of both kinds.
    """
    table = depths(lab, readings).dropna(subset="early")
    rows = []
    for subject in ["all", *readings]:
        mine = table if subject == "all" else table[table["subject"] == subject]
        if (mine["early"] == 1).sum() < LEAST or (mine["early"] == 0).sum() < LEAST:
            continue
        gap = _bootstrap(lab, _gap, mine["depth"], mine["early"])
        lab.record("depth_gap", gap.value, condition, subject, gap, unit="levels")
        means = mine.groupby("early")["depth"].mean()
        rows.append([condition, subject, means[1], means[0], gap.value, gap.low, gap.high, gap.n])
    columns = ["condition", "subject", "early", "higher", "gap", "low", "high", "n_voxels"]
    return pd.DataFrame(rows, columns=columns)


def depths(lab: Lab, readings: dict[str, Reading]) -> pd.DataFrame:
    """Depth and use of the levels, a row per voxel: subject, areas, depth, level 1, ..., early (1,
    0 or NaN; see `is_early`).
    """
    parts = []
    for s, reading in readings.items():
        base = pd.DataFrame({"subject": s, "areas": lab.crowd[s].voxels["areas"].to_numpy()})
        levels = {f"level {i + 1}": w for i, w in enumerate(fields.level_weights(reading.share))}
        parts.append(base.assign(depth=fields.depth(reading.share), **levels))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(early=frame["areas"].map(is_early))


def examples(lab: Lab, encoder: UniversalEncoder, subject: str, most: int = 6) -> pd.DataFrame:
    """The voxel of each area that is predicted best on the val images, so that no test image takes
    part in the choice.

    Returns
    -------
    One row per area: area, voxel, val_r; of more than `most` areas, so many evenly spread over
    their order in the file. Without areas: the best voxels of all.
    """
    mine = lab.crowd[subject]
    predicted = predict.predict(encoder, lab.source, subject, mine.image_rows("val"))
    r = scores.correlation(predicted, mine.responses("val"))
    areas = mine.voxels["areas"].str.split(",").to_numpy()
    frame = pd.DataFrame({"area": areas, "voxel": np.arange(len(r)), "val_r": r}).explode("area")
    order = list(frame["area"][frame["area"] != ""].unique())
    frame = frame.dropna().sort_values("val_r", ascending=False, kind="stable")
    if order:
        best = frame[frame["area"] != ""].drop_duplicates("area").drop_duplicates("voxel")
        best = best.set_index("area").reindex(order).dropna().reset_index().astype({"voxel": int})
        spread = np.linspace(0, len(best) - 1, min(most, len(best))).round().astype(int)
        frame = best.iloc[np.unique(spread)]
    return frame.head(most).reset_index(drop=True)


def on_images(
    lab: Lab,
    encoder: UniversalEncoder,
    reading: Reading,
    subject: str,
    voxels: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Spatial attention on single images, levels weighted by use: (n_voxels, n_images, P)."""
    with torch.inference_mode():
        embeddings = encoder.subject(subject)[torch.tensor(voxels)]
        tokens = lab.source.tokens(rows, embeddings.device)
        attention = encoder.attention(tokens, embeddings).cpu().numpy()
    return np.einsum("lv,lbvp->vbp", fields.level_weights(reading.share[:, voxels]), attention)


def field_maps(reading: Reading, voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Receptive fields of voxels as maps: (n_voxels, n_levels + 1, rows, columns), the levels by
    use last.
    """
    every = np.concatenate([reading.attention, fields.weighted(reading)[None]])
    return fields.on_grid(every[:, voxels]).transpose(1, 0, 2, 3)


def early_areas(areas: pd.Series) -> NDArray[np.bool_]:
    """Which voxels are in V1–V3 or V4, by their area names, separated by commas: (n_voxels,)."""
    return (areas.map(is_early).ne(0) & areas.ne("")).to_numpy()


def is_early(areas: str) -> float:
    """1 for a voxel of V1–V3, 0 of other named areas, NaN for V4 and for a voxel without areas."""
    names = [a.split(":")[-1] for a in areas.split(",") if a]
    if any(EARLY.fullmatch(a) for a in names):
        return 1.0
    return np.nan if not names or any(BETWEEN.fullmatch(a) for a in names) else 0.0


def angles(table: pd.DataFrame, known: bool = False) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Angle from the horizontal meridian of early voxels that have a place on fsaverage5: −90°
    down, 0° sideways, 90° up.

    Parameters
    ----------
    known : the angle of the known receptive fields, not of the estimated ones.

    Returns
    -------
    (n_voxels,) degrees, and hemisphere and vertex of these voxels; both empty if there are none.
    """
    x, y = ("true_x", "true_y") if known else ("x", "y")
    placed = table[(table["field"] == BY_USE) & (table["vertex"] >= 0)]
    mine = placed[placed["areas"].map(is_early).eq(1)].dropna(subset=[x, y])
    if not len(mine):
        return np.empty(0), pd.DataFrame()
    return np.rad2deg(np.arctan2(mine[y], mine[x].abs())).to_numpy(), mine[["hemisphere", "vertex"]]


def outlines(table: pd.DataFrame) -> pd.DataFrame:
    """Voxels from which the outlines of areas are drawn: hemisphere, vertex, area."""
    placed = table[(table["field"] == BY_USE) & (table["vertex"] >= 0) & (table["areas"] != "")]
    return placed.assign(area=placed["areas"].str.split(",").str[0])


def by_area(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Area, field and rows of a table with columns areas and field; a voxel may be in several."""
    frame = table.assign(area=table["areas"].str.split(",")).explode("area")
    groups = frame[frame["area"] != ""].groupby(["area", "field"], sort=False)
    return ((area, field, mine) for (area, field), mine in groups)


def shuffles(groups: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Permutations within groups, (n, n_voxels)."""
    shuffled = np.argsort(groups + rng.random((n, len(groups))), axis=1)  # by group, then at random
    out = np.empty_like(shuffled)
    out[:, np.argsort(groups, kind="stable")] = shuffled
    return out


def partial_correlation(x: NDArray, y: NDArray, z: NDArray) -> NDArray[np.float64]:
    """Correlation of x and y along the last axis with the linear part of z taken from both."""
    xy, xz, yz = stats.pearson(x, y), stats.pearson(x, z), stats.pearson(y, z)
    rest = np.sqrt(np.maximum((1 - xz**2) * (1 - yz**2), 0))  # rounding may leave it just below 0
    return np.divide(xy - xz * yz, rest, out=np.full_like(rest, np.nan), where=rest > 1e-9)


def _gap(depth: NDArray[np.float64], early: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean depth where early is 0, minus that where it is 1, along the last axis."""
    with np.errstate(invalid="ignore"):  # a resample may have none of one kind
        higher, lower = 1 - early, early
        return (depth * higher).sum(-1) / higher.sum(-1) - (depth * lower).sum(-1) / lower.sum(-1)


def _bootstrap(
    lab: Lab, statistic: Callable[..., NDArray[np.float64]], *columns: pd.Series
) -> stats.Interval:
    return stats.bootstrap(statistic, *columns, n_boot=lab.profile.bootstrap, seed=lab.seed)
