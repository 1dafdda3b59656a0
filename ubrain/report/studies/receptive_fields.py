"""Where voxels look and which levels they read, against what is known of their receptive fields
(notebook 06).
"""

import copy
import re

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
EARLY = re.compile(
    r"(V1|V2|V3)[vd]?|EarlyVis"
)  # names of early areas in the files of several datasets
BETWEEN = re.compile(r"h?V4")
BATCH = 16  # images
LEAST = 10  # voxels in an area


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
    """Average attention and use of the levels of all voxels of all subjects, on their test
    images.
    """
    return {
        s: _read(lab, encoder, s)
        for s in track(lab.subjects, len(lab.subjects), "reading attention")
    }


def most_focused(
    lab: Lab, encoder: UniversalEncoder, subject: str, val_r: NDArray, share: float = 0.1
) -> int:
    """The voxel with the smallest receptive field among the `share` that is predicted best on the
    val images.

    Parameters
    ----------
    val_r : (n_voxels,), correlations on the val images.
    """
    sigma = fields.locate(fields.weighted(_read(lab, encoder, subject)), 1).sigma
    predicted_best = np.nan_to_num(val_r) >= np.nanquantile(val_r, 1 - share)
    return int(np.argmin(np.where(predicted_best & np.isfinite(sigma), sigma, np.inf)))


def untrained(lab: Lab, encoder: UniversalEncoder) -> UniversalEncoder:
    """The trained shared weights with new embeddings for everybody: what the encoder does when it
    knows no voxel.
    """
    found = copy.deepcopy(encoder)
    torch.manual_seed(lab.seed)
    for s in lab.subjects:
        n_voxels = len(found.subject(s))
        found.drop_subject(s)
        found.add_subject(s, n_voxels)
    return found.to(encoder.position.device).eval()


def known_fields(lab: Lab, subject: str) -> pd.DataFrame | None:
    """Receptive fields that the file knows: the truth of a simulation, or pRF maps among the
    columns of the voxels.

    Centres are looked for in x and y, prf_x and prf_y, or prf_eccentricity and prf_angle (degrees,
    counter-clockwise from the right, as in NSD), sizes in sigma, prf_sigma or prf_size; all in
    degrees of visual angle, y upwards.

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
        angle = np.deg2rad(voxels["prf_angle"])
        found["x"], found["y"] = (
            voxels["prf_eccentricity"] * np.cos(angle),
            voxels["prf_eccentricity"] * np.sin(angle),
        )
    for size in ("sigma", "prf_sigma", "prf_size"):
        if size in voxels:
            found["sigma"] = voxels[size]
    return found if found["x"].notna().any() else None


def field_table(lab: Lab, readings: dict[str, Reading], view: float) -> pd.DataFrame:
    """Receptive fields of all voxels, one row per voxel and field (each level, and the levels by
    use).

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
        voxels, known = lab.crowd[s].voxels, known_fields(lab, s)
        vertex = (
            voxels["vertex"] if "vertex" in voxels and lab.crowd[s].space == "fsaverage5" else -1
        )
        base = pd.DataFrame(
            {
                "subject": s,
                "voxel": voxels.index,
                "hemisphere": voxels["hemisphere"].to_numpy(),
                "areas": voxels["areas"].to_numpy(),
                "vertex": vertex,
            }
        )
        for q in QUANTITIES:
            base[f"true_{q}"] = known[q].to_numpy() if known is not None else np.nan
        for name, attention in zip(
            field_names(reading), [*reading.attention, fields.weighted(reading)], strict=True
        ):
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
    for (area, field), mine in _by_area(table):
        for q in QUANTITIES:
            found = stats.bootstrap(
                stats.pearson,
                mine[q],
                mine[f"true_{q}"],
                n_boot=lab.profile.bootstrap,
                seed=lab.seed,
            )
            if found.n >= LEAST and np.isfinite(found.value):
                rows.append(
                    [condition, area, field, q, found.value, found.low, found.high, found.n]
                )
                lab.record(
                    f"field_r of {q} in {area}",
                    found.value,
                    f"{condition}, {field}",
                    interval=found,
                    unit="r",
                )
    return pd.DataFrame(
        rows, columns=["condition", "area", "field", "quantity", "r", "low", "high", "n_voxels"]
    )


def positions(table: pd.DataFrame, found: pd.DataFrame, most: int = 4) -> pd.DataFrame:
    """Estimated and known centres of the voxels of the first areas, early ones first: what is drawn
    as dots.

    Parameters
    ----------
    found : `agreement` of the same table.

    Returns
    -------
    One row per voxel and area, for the levels by use: area, x, y, true_x, true_y, and r_x, r_y of
    the area.
    """
    r = (
        found[found["field"] == BY_USE]
        .pivot(index="area", columns="quantity", values="r")
        .reindex(found["area"].unique())
    )
    chosen = sorted(
        r.index, key=lambda a: EARLY.fullmatch(a) is None and BETWEEN.fullmatch(a) is None
    )[:most]
    parts = []
    for (area, _), mine in _by_area(table[table["field"] == BY_USE]):
        if area in chosen:
            columns = ["area", "x", "y", "true_x", "true_y"]
            parts.append(mine[columns].dropna().assign(r_x=r.loc[area, "x"], r_y=r.loc[area, "y"]))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["area"])


def layout_alone(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """The same correlations when voxels are shuffled within subject, area and hemisphere: what
    layout alone explains.

    Returns
    -------
    As `agreement`, with r the mean over shuffles, low and high the range of 95 % of them; for the
    levels by use.
    """
    rows, rng = [], np.random.default_rng(lab.seed)
    for (area, field), mine in _by_area(table[table["field"] == BY_USE]):
        shuffled = _shuffles(
            mine.groupby(["subject", "hemisphere"]).ngroup().to_numpy(),
            lab.profile.fields.shuffles,
            rng,
        )
        for q in QUANTITIES:
            x, y = mine[q].to_numpy(), mine[f"true_{q}"].to_numpy()
            r = stats.pearson(np.broadcast_to(x, shuffled.shape), y[shuffled])
            if len(mine) >= LEAST and np.isfinite(r).all():
                low, high = np.percentile(r, [2.5, 97.5])
                rows.append([SHUFFLED, area, field, q, r.mean(), low, high, len(mine)])
                lab.record(
                    f"field_r of {q} in {area}",
                    r.mean(),
                    f"{SHUFFLED}, {field}",
                    unit="r",
                    interval=stats.Interval(float(r.mean()), float(low), float(high), len(mine)),
                )
    return pd.DataFrame(
        rows, columns=["condition", "area", "field", "quantity", "r", "low", "high", "n_voxels"]
    )


def size_beyond_eccentricity(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """Partial correlation of estimated with known size at equal known eccentricity, per area,
    levels by use; recorded.

    Receptive fields grow with eccentricity. So an attention that only spreads more the further out
    a voxel looks has a size that correlates with the known one, without knowing it.

    Returns
    -------
    One row per area: area, r, low, high, n_voxels; no rows if no size is known.
    """
    rows = []
    for (area, _), mine in _by_area(table[table["field"] == BY_USE]):
        eccentricity = np.hypot(mine["true_x"], mine["true_y"])
        found = stats.bootstrap(
            _partial,
            mine["sigma"],
            mine["true_sigma"],
            eccentricity,
            n_boot=lab.profile.bootstrap,
            seed=lab.seed,
        )
        if found.n >= LEAST and np.isfinite(found.value):
            rows.append([area, found.value, found.low, found.high, found.n])
            lab.record(
                f"field_r of sigma at equal eccentricity in {area}",
                found.value,
                f"{CROWD}, {BY_USE}",
                interval=found,
                unit="r",
            )
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
    rows = []
    for (area, _), mine in _by_area(
        table[table["field"] == BY_USE].dropna(subset=["true_x", "true_y"])
    ):
        away = np.hypot(mine["x"] - mine["true_x"], mine["y"] - mine["true_y"])
        middle = np.hypot(mine["true_x"], mine["true_y"])
        nearer = stats.bootstrap(
            _median, middle - away, n_boot=lab.profile.bootstrap, seed=lab.seed
        )
        if nearer.n >= LEAST:
            lab.record(
                f"field_distance in {area}",
                away.median(),
                f"{CROWD}, {BY_USE}",
                n=nearer.n,
                unit="degrees",
            )
            lab.record(
                f"field_distance in {area}",
                middle.median(),
                "middle of the image",
                n=nearer.n,
                unit="degrees",
            )
            lab.record(
                f"field_nearer in {area}",
                nearer.value,
                f"{CROWD}, {BY_USE}",
                interval=nearer,
                unit="degrees",
            )
            rows.append(
                [
                    area,
                    away.median(),
                    middle.median(),
                    nearer.value,
                    nearer.low,
                    nearer.high,
                    mine["sigma"].median(),
                    mine["true_sigma"].median(),
                    nearer.n,
                ]
            )
    names = [
        "area",
        "distance",
        "of_the_middle",
        "nearer",
        "low",
        "high",
        "size",
        "known_size",
        "n_voxels",
    ]
    return pd.DataFrame(rows, columns=names)


def use_of_levels(lab: Lab, readings: dict[str, Reading], condition: str = CROWD) -> pd.DataFrame:
    """Mean use of each level and mean depth per area, over the voxels of all subjects; recorded,
    and the depth per subject.

    Returns
    -------
    One row per area, in the order of the file: condition, area, depth with low and high, n_voxels,
    and the mean weight of each level ("level 1", ...), as in
    `ubrain.analysis.fields.level_weights`.
    """
    rows = []
    for s, reading in readings.items():
        lab.record(
            "depth",
            fields.depth(reading.share).mean(),
            condition,
            s,
            n=reading.share.shape[1],
            unit="level",
        )
    for area, mine in _depths(lab, readings).groupby("area", sort=False):
        if len(mine) >= LEAST:
            found = stats.bootstrap(
                _mean, mine["depth"], n_boot=lab.profile.bootstrap, seed=lab.seed
            )
            lab.record(f"depth of {area}", found.value, condition, interval=found, unit="level")
            levels = mine.filter(regex=r"^level \d+$").mean()
            rows.append(
                {
                    "condition": condition,
                    "area": area,
                    "depth": found.value,
                    "low": found.low,
                    "high": found.high,
                    "n_voxels": len(mine),
                    **levels,
                }
            )
            for name, weight in levels.items():
                lab.record(f"use of {name} in {area}", weight, condition, n=len(mine), unit="share")
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
    depths = _depths(lab, readings, one_row_per_voxel=True)
    rows = []
    for subject in ["all", *readings]:
        mine = depths if subject == "all" else depths[depths["subject"] == subject]
        early, known = mine["early"], mine["early"].notna()
        if (early == 1).sum() < LEAST or (early == 0).sum() < LEAST:
            continue
        gap = stats.bootstrap(
            _gap, mine["depth"][known], early[known], n_boot=lab.profile.bootstrap, seed=lab.seed
        )
        lab.record("depth_gap", gap.value, condition, subject, gap, unit="levels")
        means = mine.groupby("early")["depth"].mean()
        rows.append([condition, subject, means[1], means[0], gap.value, gap.low, gap.high, gap.n])
    return pd.DataFrame(
        rows, columns=["condition", "subject", "early", "higher", "gap", "low", "high", "n_voxels"]
    )


def examples(lab: Lab, encoder: UniversalEncoder, subject: str, most: int = 6) -> pd.DataFrame:
    """The voxel of each area that is predicted best on the val images, so that no test image takes
    part in the choice.

    Returns
    -------
    One row per area: area, voxel, val_r; of more than `most` areas, so many evenly spread over
    their order in the file. Without areas: the best voxels of all.
    """
    rows = lab.crowd[subject].image_rows("val")
    r = scores.correlation(
        predict.predict(encoder, lab.source, subject, rows), lab.crowd[subject].responses("val")
    )
    frame = pd.DataFrame(
        {
            "area": lab.crowd[subject].voxels["areas"].to_numpy(),
            "voxel": np.arange(len(r)),
            "val_r": r,
        }
    )
    frame = frame.dropna(subset=["val_r"]).sort_values("val_r", ascending=False, kind="stable")
    if (frame["area"] != "").any():
        order = list(
            dict.fromkeys(
                a for names in lab.crowd[subject].voxels["areas"] for a in names.split(",") if a
            )
        )
        frame["area"] = frame["area"].str.split(",")
        frame = (
            frame.explode("area")
            .query("area != ''")
            .drop_duplicates("area")
            .drop_duplicates("voxel")
        )
        frame = frame.set_index("area").reindex(order).dropna().reset_index().astype({"voxel": int})
        frame = frame.iloc[
            np.unique(np.linspace(0, len(frame) - 1, min(most, len(frame))).round().astype(int))
        ]
    return frame.head(most).reset_index(drop=True)


def on_images(
    lab: Lab,
    encoder: UniversalEncoder,
    reading: Reading,
    subject: str,
    voxels: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Spatial attention of voxels on single images, levels weighted by use: (n_voxels, n_images,
    P).
    """
    device = encoder.position.device
    with torch.inference_mode():
        tokens = lab.source.tokens(rows, device)
        attention = (
            encoder.attention(tokens, subject, torch.tensor(voxels, device=device)).cpu().numpy()
        )
    return np.einsum("lv,lbvp->vbp", fields.level_weights(reading.share[:, voxels]), attention)


def field_maps(reading: Reading, voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Receptive fields of voxels as maps: (n_voxels, n_levels + 1, rows, columns), the levels by
    use last.
    """
    every = np.concatenate([reading.attention, fields.weighted(reading)[None]])
    return fields.on_grid(every[:, voxels]).transpose(1, 0, 2, 3)


def early_areas(areas: pd.Series) -> NDArray[np.bool_]:
    """Which voxels are in V1–V3 or V4, by their area names, separated by commas: (n_voxels,)."""
    return (areas.map(_early).ne(0) & areas.ne("")).to_numpy()


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
    mine = table[
        (table["field"] == BY_USE) & (table["vertex"] >= 0) & table["areas"].map(_early).eq(1)
    ].dropna(subset=[x, y])
    if not len(mine):
        return np.empty(0), pd.DataFrame()
    return np.rad2deg(np.arctan2(mine[y], mine[x].abs())).to_numpy(), mine[["hemisphere", "vertex"]]


def verdict(
    lab: Lab,
    found: pd.DataFrame,
    controls: pd.DataFrame,
    sizes: pd.DataFrame,
    away: pd.DataFrame | None,
    gaps: pd.DataFrame,
) -> str:
    """What the numbers say, in words.

    Parameters
    ----------
    found : `agreement` of the trained encoder.
    controls : `layout_alone` and `agreement` of an untrained encoder, one after the other.
    sizes : `size_beyond_eccentricity`.
    away : `distances`, where places are in degrees.
    gaps : `depth_gap` of both encoders, one after the other.
    """
    lines, counts = [], dict[str, list[str]]()
    if found.empty:
        lines.append(
            "positions and sizes: this file knows no receptive fields, so nothing can be compared"
        )
    mine = found[found["field"] == BY_USE].set_index(["area", "quantity"])
    limit = controls[controls["field"] == BY_USE].groupby(["area", "quantity"])["high"].max()
    for q, what in zip(
        QUANTITIES, ("horizontal position", "vertical position", "size"), strict=True
    ):
        if q not in mine.index.get_level_values("quantity"):
            continue
        rows = mine.xs(q, level="quantity")
        above = rows["low"] > limit.xs(q, level="quantity").reindex(rows.index).fillna(0)
        early = rows[[EARLY.fullmatch(a) is not None for a in rows.index]]
        shown = ", ".join(f"{a} {r:.2f}" for a, r in early["r"].items()) or "no early area"
        counts[q] = list(rows.index[above])
        lines.append(
            f"{what}: {shown}; interval above all controls in {len(counts[q])} of {len(rows)} areas"
            f"{': ' * bool(counts[q])}{', '.join(counts[q])}"
        )
        lab.record(
            f"field_areas_above_controls of {q}",
            above.mean(),
            f"{CROWD}, {BY_USE}",
            n=len(rows),
            unit="share",
        )
    if len(sizes):
        lines.append(
            f"size at equal eccentricity: interval above 0 in {(sizes['low'] > 0).sum()} of"
            f" {len(sizes)} areas: {', '.join(sizes['area'][sizes['low'] > 0]) or 'none'}"
        )
        explained = sizes["area"][(sizes["low"] <= 0) & sizes["area"].isin(counts.get("sigma", []))]
        lines.append(
            "size above all controls, but not at equal eccentricity, so that eccentricity may be"
            f" all of it: {', '.join(explained) or 'no area'}"
        )
    if away is not None and len(away):
        for where, rows in (
            ("nearer to", away[away["low"] > 0]),
            ("farther from", away[away["high"] < 0]),
        ):
            by = (
                f": {', '.join(rows['area'])}; by up to {rows['nearer'].abs().max():.2f} degrees"
                if len(rows)
                else ""
            )
            lines.append(
                f"centres are {where} the known ones than the middle of the image is, interval"
                f" clear of 0, in {len(rows)} of {len(away)} areas{by}"
            )
        for what, rows in (
            ("too large", away["size"] > away["known_size"]),
            ("too small", away["size"] < away["known_size"]),
        ):
            pairs = zip(*(away[rows][c] for c in ("area", "size", "known_size")), strict=True)
            text = ", ".join(f"{area} ({size:.2f} for {known:.2f})" for area, size, known in pairs)
            lines.append(f"median size {what}, in degrees: {text or 'nowhere'}")
    lines += _level_lines(found)
    return "\n".join([*lines, *_gap_lines(gaps)])


def _level_lines(found: pd.DataFrame) -> list[str]:
    """Which level knows the place best, in the early areas."""
    mine = found[
        found["quantity"].isin(["x", "y"])
        & found["area"].map(lambda a: EARLY.fullmatch(a) is not None)
    ]
    if mine.empty:
        return []
    r = mine.groupby(["area", "field"], sort=False)["r"].mean().unstack(sort=False)
    return [
        "position by level, mean r of x and y: "
        + "; ".join(
            f"{area}: " + ", ".join(f"{field} {value:.2f}" for field, value in row.items())
            for area, row in r.iterrows()
        )
    ]


def _gap_lines(gaps: pd.DataFrame) -> list[str]:
    if gaps.empty:
        return ["levels: not enough voxels with known areas, of V1–V3 and beyond hV4, to compare"]
    lines = []
    for condition, rows in gaps.groupby("condition", sort=False):
        every, each = rows[rows["subject"] == "all"].iloc[0], rows[rows["subject"] != "all"]
        says = (
            "deeper"
            if every["low"] > 0
            else "less deep"
            if every["high"] < 0
            else "neither deeper nor less deep"
        )
        lines.append(
            f"levels, {condition}: areas beyond hV4 read {says} than V1–V3: gap {every['gap']:+.2f}"
            f" levels [{every['low']:+.2f}, {every['high']:+.2f}]; interval above 0 in"
            f" {(each['low'] > 0).sum()} of {len(each)} subjects"
        )
    return lines


def _read(lab: Lab, encoder: UniversalEncoder, subject: str) -> Reading:
    rows = lab.crowd[subject].image_rows("test")
    if len(rows) > lab.profile.fields.images:
        rows = np.sort(
            np.random.default_rng(lab.seed).choice(rows, lab.profile.fields.images, replace=False)
        )
    device = encoder.position.device
    batches = (lab.source.tokens(rows[i : i + BATCH], device) for i in range(0, len(rows), BATCH))
    return fields.read(encoder, subject, batches)


def _by_area(table: pd.DataFrame) -> pd.core.groupby.DataFrameGroupBy:
    frame = table.assign(area=table["areas"].str.split(",")).explode("area")
    return frame[frame["area"] != ""].groupby(["area", "field"], sort=False)


def _depths(
    lab: Lab, readings: dict[str, Reading], one_row_per_voxel: bool = False
) -> pd.DataFrame:
    """Depth and use of the levels per voxel: subject, depth, level 1, ..., early (1, 0 or NaN),
    and area unless one row.
    """
    parts = []
    for s, reading in readings.items():
        weights = fields.level_weights(reading.share)
        parts.append(
            pd.DataFrame(
                {
                    "subject": s,
                    "area": lab.crowd[s].voxels["areas"].to_numpy(),
                    "depth": fields.depth(reading.share),
                    **{f"level {i + 1}": w for i, w in enumerate(weights)},
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    frame["early"] = frame["area"].map(_early)
    if one_row_per_voxel:
        return frame
    frame = frame.assign(area=frame["area"].str.split(",")).explode("area")
    return frame[frame["area"] != ""]


def _early(areas: str) -> float:
    """1 for a voxel of V1–V3, 0 for one of other named areas, NaN for V4 and for a voxel without
    areas.
    """
    names = [a.split(":")[-1] for a in areas.split(",") if a]
    if any(EARLY.fullmatch(a) for a in names):
        return 1.0
    return np.nan if not names or any(BETWEEN.fullmatch(a) for a in names) else 0.0


def _shuffles(groups: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Permutations within groups, (n, n_voxels)."""
    shuffled = np.argsort(
        groups + rng.random((n, len(groups))), axis=1
    )  # by group, in random order inside
    out = np.empty_like(shuffled)
    out[:, np.argsort(groups, kind="stable")] = shuffled
    return out


def _mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x.mean(-1)


def _median(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.median(x, -1)


def _partial(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correlation of x and y along the last axis with the linear part of z taken from both."""
    xy, xz, yz = stats.pearson(x, y), stats.pearson(x, z), stats.pearson(y, z)
    rest = np.sqrt(np.maximum((1 - xz**2) * (1 - yz**2), 0))  # rounding may leave it just below 0
    return np.divide(xy - xz * yz, rest, out=np.full_like(rest, np.nan), where=rest > 1e-9)


def _gap(depth: NDArray[np.float64], early: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean depth where early is 0, minus that where it is 1, along the last axis."""
    with np.errstate(invalid="ignore"):  # a resample may have none of one kind
        return (depth * (1 - early)).sum(-1) / (1 - early).sum(-1) - (depth * early).sum(
            -1
        ) / early.sum(-1)
