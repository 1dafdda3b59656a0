"""Figures of clusters: how many, on the cortex, on the map of all embeddings, and their images."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.tri import Triangulation
from nilearn import datasets, surface
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ubrain.report.figures.style import finish, text_only

OUTLIER_GREY = (0.75, 0.75, 0.75)
REACH = 7.0  # mm on the flat surface: a voxel colours the vertices around it
# areas of one function, by their names in the files of several datasets
AREA_GROUPS = {
    "early visual": r"(^|:)(V1|V2|V3|h?V4)[vd]?$|^EarlyVis",
    "face": "OFA|FFA|[Ff]ace",
    "body": "EBA|FBA|[Bb]od(y|ies)",
    "place": "OPA|PPA|RSC|[Pp]lace|TOS",
    "word": "WFA|[Ww]ord",
    "object": r"(^|:)(LO|LOC|pFus)$",
}
HEMISPHERES = {"L": "left", "R": "right"}


def cluster_colours(labels: ArrayLike, n_clusters: int) -> NDArray[np.float64]:
    """Colour of each voxel by its cluster, grey for outliers: (n_voxels, 3)."""
    return np.array([*palette(n_clusters), OUTLIER_GREY])[np.asarray(labels)]


def palette(n: int) -> list[tuple[float, float, float]]:
    """So many colours, as different as that number allows; the same first ones for up to 20."""
    strong = sns.color_palette("tab20", 20)
    return ([*strong[::2], *strong[1::2]] if n <= 20 else sns.color_palette("husl", n))[:n]


def plane_colours(places: ArrayLike) -> NDArray[np.float64]:
    """Colour of each place on a 2-D map, changing smoothly over it: (n, 3).

    Parameters
    ----------
    places : (n, 2)
    """
    xy = np.asarray(places, dtype=np.float64)
    x, y = ((xy - xy.min(0)) / np.maximum(np.ptp(xy, axis=0), 1e-12)).T[:, :, None]
    corners = np.array(
        [(0.10, 0.25, 0.85), (0.95, 0.15, 0.20), (0.05, 0.75, 0.45), (1.0, 0.85, 0.10)]
    )
    return (1 - y) * ((1 - x) * corners[0] + x * corners[1]) + y * (
        (1 - x) * corners[2] + x * corners[3]
    )


def count_choice(axes: Sequence[Axes], table: pd.DataFrame, chosen: int) -> Sequence[Axes]:
    """Stability and silhouette against the number of clusters, a panel each; the chosen number is
    marked.

    Parameters
    ----------
    axes : two.
    table : one row per number: n_clusters, stability, low, high, silhouette.
    """
    titles = {"stability": "stability (ARI between runs)", "silhouette": "silhouette"}
    for ax, (score, title) in zip(axes, titles.items(), strict=True):
        ax.plot(table["n_clusters"], table[score], "o-", color="#0072B2")
        ax.axvline(chosen, color="#333333", ls="--", lw=1, label=f"chosen: {chosen}")
        ax.set_xticks(table["n_clusters"], [str(n) for n in table["n_clusters"]])
        ax.set(xlabel="number of clusters", title=title)
        ax.set_ylim(min(0, 1.1 * table[score].min()), 1.15 * table[score].max())
        finish(ax, legend="")
    ends = table["n_clusters"], table["low"], table["high"]
    axes[0].fill_between(*ends, color="#0072B2", alpha=0.15, lw=0, label="range over pairs of runs")
    axes[0].legend(frameon=False, fontsize=10, loc="lower right")
    return axes


def composition(ax: Axes, table: pd.DataFrame, of: str) -> Axes:
    """Share of each group's voxels in each cluster; what is below half a per cent stays blank.

    Parameters
    ----------
    table : (n_groups, n_clusters) shares.
    of : what the groups are.
    """
    sns.heatmap(
        100 * table,
        ax=ax,
        cmap="Blues",
        vmin=0,
        vmax=100,
        annot=(100 * table).map(lambda x: f"{x:.0f}" if x >= 0.5 else "").to_numpy(),
        fmt="",
        annot_kws={"fontsize": 9},
        cbar_kws={"label": f"% of the voxels of the {of}"},
        linewidths=0.5,
    )
    ax.set(xlabel="cluster", ylabel=of)
    ax.set_xticks(ax.get_xticks(), table.columns, rotation=45, ha="right")
    ax.tick_params(axis="y", rotation=0)
    return ax


def falls(ax: Axes, table: pd.DataFrame, of: str) -> Axes:
    """How much response each cluster loses without something.

    Parameters
    ----------
    table : (n_clusters, n_features), standard deviations.
    of : whose response it is.
    """
    sns.heatmap(
        table,
        ax=ax,
        cmap="RdBu_r",
        vmin=-2,
        vmax=2,
        annot=True,
        fmt=".1f",
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "lost response (standard deviations)"},
        linewidths=0.5,
    )
    ax.set(title=of, xlabel="left out of the scene", ylabel="cluster")
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=45)
    return ax


def plane(
    ax: Axes,
    places: ArrayLike,
    colours: ArrayLike,
    keys: Mapping[str, tuple] | None = None,
    title: str = "",
) -> Axes:
    """All embeddings on a 2-D map, one dot per voxel.

    Parameters
    ----------
    places : (n_voxels, 2)
    colours : (n_voxels, 3)
    keys : what a colour means; drawn as a legend beside.
    """
    order = np.random.default_rng(0).permutation(len(np.asarray(places)))  # no group covers another
    x, y = np.asarray(places)[order].T
    ax.scatter(
        x,
        y,
        c=np.asarray(colours)[order],
        s=max(1.5, min(8, 20_000 / len(x))),
        lw=0,
        rasterized=True,
    )
    ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    if keys:
        dots = [
            Line2D([], [], marker="o", ls="", ms=6, color=colour, label=name)
            for name, colour in keys.items()
        ]
        beside: dict[str, Any] = {
            "loc": "center left",
            "bbox_to_anchor": (1, 0.5),
            "handletextpad": 0,
        }
        ax.legend(handles=dots, frameon=False, fontsize=10, **beside)
    return ax


def area_groups(areas: Sequence[str]) -> list[str]:
    """What each area is known for, in the words of `AREA_GROUPS`; the name of any other area."""
    return [
        next((group for group, names in AREA_GROUPS.items() if re.search(names, area)), area)
        for area in areas
    ]


def group_colours(groups: Sequence[str]) -> tuple[NDArray[np.float64], dict[str, tuple]]:
    """Colour of each voxel by its group (area, subject), "none" in grey, and which colour means
    what.
    """
    names = [g for g in dict.fromkeys(groups) if g != "none"]
    keys = dict(zip(names, palette(len(names)), strict=True))
    keys |= {"none": OUTLIER_GREY} if "none" in set(groups) else {}
    return np.array([keys[g] for g in groups]), keys


def flatmap(
    ax: Axes,
    voxels: pd.DataFrame,
    colours: ArrayLike,
    hemisphere: str,
    outlines: pd.DataFrame,
    around: pd.DataFrame | None = None,
) -> Axes:
    """Colours of voxels on the flattened fsaverage5 surface, with outlines and names of areas.

    Parameters
    ----------
    voxels : hemisphere and vertex of each voxel (-1: not on the surface). A vertex takes the colour
        of the nearest voxel, if that is less than 7 mm away.
    colours : (n_voxels, 3)
    hemisphere : "L" or "R".
    outlines : hemisphere, vertex and area of the voxels that say where areas are; may be empty.
    around : voxels that say which part of the cortex is shown; None: these and the outlines.
    """
    xy, faces, shade = flat_surface(hemisphere)
    _show(ax, pd.concat([voxels, outlines]) if around is None else around, hemisphere)
    places, (x, y) = xy[faces].mean(1), (ax.get_xlim(), ax.get_ylim())
    seen = (places > [x[0] - REACH, y[0] - REACH]) & (places < [x[1] + REACH, y[1] + REACH])
    faces = faces[seen.all(1)]
    face_colours = np.repeat(0.93 - 0.12 * shade[faces].mean(1)[:, None], 3, axis=1)
    mine = ((voxels["hemisphere"] == hemisphere) & (voxels["vertex"] >= 0)).to_numpy()
    if not mine.any():
        return text_only(ax, "this crowd file does not say where\non fsaverage5 these voxels are")
    near, found = _nearest_voxel(xy, voxels["vertex"].to_numpy()[mine], xy[faces].mean(1))
    face_colours[found] = np.asarray(colours)[mine][near[found]]
    patches = PolyCollection(
        list(xy[faces]), facecolors=face_colours, edgecolors="face", linewidths=0.1, rasterized=True
    )
    ax.add_collection(patches)
    _outlines(ax, xy, faces, outlines[outlines["hemisphere"] == hemisphere])
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def flatmaps(
    voxels: pd.DataFrame, colours: ArrayLike, outlines: Mapping[str, pd.DataFrame]
) -> Figure:
    """A `flatmap` of both hemispheres of each subject, all of the same part of the cortex.

    A few voxels may be out of sight: those that the cut of the flat surface has put far from the
    others.

    Parameters
    ----------
    voxels : subject, hemisphere and vertex of each voxel.
    colours : (n_voxels, 3)
    outlines : subject -> voxels that say where areas are.

    Returns
    -------
    A figure of its own, since the number of axes follows from that of the subjects.
    """
    columns = min(6, 2 * len(outlines))
    n_rows = -(-2 * len(outlines) // columns)
    figure, axes = plt.subplots(
        n_rows, columns, figsize=(2.2 * columns, 4.6 * n_rows), squeeze=False
    )
    pairs = iter(axes.ravel().tolist())
    for subject, known in outlines.items():
        mine = (voxels["subject"] == subject).to_numpy()
        for hemisphere, side in HEMISPHERES.items():
            mine_in = (voxels[mine], np.asarray(colours)[mine], hemisphere, known, voxels)
            ax = flatmap(next(pairs), *mine_in)
            ax.set_title(f"{subject}, {side}", fontsize=10)
    for ax in pairs:
        ax.set_axis_off()
    return figure


def flat_values(
    maps: Mapping[str, tuple[ArrayLike, pd.DataFrame]],
    outlines: pd.DataFrame,
    label: str,
    limits: tuple[float, float],
    cmap: str = "viridis",
) -> Figure:
    """Numbers of voxels on the flattened fsaverage5 surface: both hemispheres of each map, in a
    row, all with the same colours and limits.

    Parameters
    ----------
    maps : title -> (n_voxels,) numbers, and hemisphere and vertex of these voxels; those at the
        same vertex are averaged.
    outlines : hemisphere, vertex and area of the voxels that say where areas are; may be empty.
    label : of the colour bar.

    Returns
    -------
    A figure of its own, since the number of axes follows from that of the maps.
    """
    figure, axes = plt.subplots(1, 2 * len(maps), figsize=(5 * len(maps) + 1, 5), squeeze=False)
    if not all(len(voxels) for _, voxels in maps.values()):
        text_only(axes[0, 0], "this crowd file does not say where\non fsaverage5 the voxels are")
        for ax in axes[0, 1:]:
            ax.set_axis_off()
        return figure
    scale, places = ScalarMappable(Normalize(*limits), cmap), ["hemisphere", "vertex"]
    pairs = iter(axes[0])
    for title, (values, voxels) in maps.items():
        mean = voxels[places].assign(value=np.asarray(values)).groupby(places).mean().reset_index()
        for hemisphere, side in HEMISPHERES.items():
            tints = scale.to_rgba(mean["value"].to_numpy())[:, :3]
            ax = flatmap(next(pairs), mean, tints, hemisphere, outlines)
            ax.set_title(f"{title}{side} hemisphere", fontsize=10)
    figure.colorbar(scale, ax=axes, shrink=0.6, pad=0.02, label=label)
    return figure


def colour_key(figure: Figure, keys: Mapping[str, tuple]) -> Figure:
    """What the colours mean, below all axes of a figure."""
    patches = [Patch(color=colour, label=name) for name, colour in keys.items()]
    figure.legend(
        handles=patches,
        loc="outside lower left",
        ncols=min(6, len(keys)),
        frameon=False,
        fontsize=9,
    )
    return figure


@cache
def flat_surface(
    hemisphere: str,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Flat places of the vertices in mm, faces, and 1 in a sulcus, 0 on a gyrus."""
    side, files = HEMISPHERES[hemisphere], datasets.fetch_surf_fsaverage("fsaverage5")
    mesh = surface.load_surf_mesh(files[f"flat_{side}"])
    depth = np.asarray(surface.load_surf_data(files[f"sulc_{side}"]))
    return mesh.coordinates[:, :2].astype(np.float64), mesh.faces, (depth > 0).astype(np.float64)


def frame(
    voxels: pd.DataFrame, hemisphere: str, left_out: float = 4, margin: float = 3 * REACH
) -> NDArray[np.float64] | None:
    """The part of the flat surface where nearly all of these voxels are, in mm: a cut may put a few
    far from the others.

    Parameters
    ----------
    left_out : per cent of the voxels that may lie outside before the margin, on each side.

    Returns
    -------
    (2, 2): left and bottom, right and top; None without voxels.
    """
    here = voxels[(voxels["hemisphere"] == hemisphere) & (voxels["vertex"] >= 0)]
    if not len(here):
        return None
    xy = flat_surface(hemisphere)[0][here["vertex"].to_numpy(dtype=int)]
    ends = np.percentile(xy, [left_out, 100 - left_out], axis=0)
    return ends + np.array([[-margin], [margin]])


def _show(ax: Axes, voxels: pd.DataFrame, hemisphere: str) -> None:
    """Limit axes to the `frame` of some voxels."""
    if (limits := frame(voxels, hemisphere)) is not None:
        (left, bottom), (right, top) = limits
        ax.set(xlim=(left, right), ylim=(bottom, top))


def _nearest_voxel(
    xy: NDArray, vertices: NDArray, places: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each place, which voxel is nearest, and whether it is near enough."""
    distance, near = cKDTree(xy[vertices.astype(int)]).query(places)
    return near, distance <= REACH


def _outlines(ax: Axes, xy: NDArray, faces: NDArray, known: pd.DataFrame) -> None:
    """Line around each area and its name in the middle."""
    triangles = Triangulation(xy[:, 0], xy[:, 1], faces)
    for area, votes in area_votes(xy, known).items():
        ax.tricontour(triangles, votes, levels=[0.5], colors="black", linewidths=0.9)
        x, y = np.median(xy[votes > 0.5], axis=0)
        halo = withStroke(linewidth=1.8, foreground="white")
        ax.text(x, y, area, fontsize=7, ha="center", va="center", path_effects=[halo], clip_on=True)


def area_votes(xy: NDArray, known: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Share of the voxels near each vertex that are in an area, (n_vertices,) of each area that is
    anywhere the most frequent one.

    Parameters
    ----------
    xy : (n_vertices, 2), flat places.
    known : vertex and area of voxels of one hemisphere.
    """
    if not len(known):
        return {}
    vertices, areas = known["vertex"].to_numpy(dtype=int), known["area"].to_numpy()
    distance, near = cKDTree(xy[vertices]).query(xy, k=min(5, len(vertices)))
    near, far = near.reshape(len(xy), -1), distance.reshape(len(xy), -1) > REACH
    found = {}
    for area in dict.fromkeys(areas):
        votes = np.where(far, 0.0, areas[near] == area).sum(1) / np.maximum((~far).sum(1), 1)
        if (votes > 0.5).sum() >= 3:
            found[area] = votes
    return found


def image_rows(
    axes: NDArray, pixels: Sequence[Sequence[NDArray]], titles: Sequence[str]
) -> NDArray:
    """A row of images for each cluster, best first, its title at the left.

    Parameters
    ----------
    axes : (n_clusters, n_images)
    """
    for row, shown, title in zip(np.atleast_2d(axes), pixels, titles, strict=True):
        for ax in row:
            ax.set_axis_off()
        for ax, image in zip(row, shown, strict=False):
            ax.imshow(image)
        row[0].text(
            -0.15, 0.5, title, transform=row[0].transAxes, ha="right", va="center", fontsize=10
        )
    return axes
