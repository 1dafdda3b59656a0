"""A number per voxel on the flattened cortex."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from nilearn import datasets, surface
from numpy.typing import ArrayLike, NDArray

from ubrain.report.figures.style import text_only

MARGIN = 12  # mm of flat cortex shown around the voxels


def cortex(values: ArrayLike, voxels: pd.DataFrame, label: str, limit: float) -> Figure:
    """A number per voxel on the flattened fsaverage5 surface, with its colour scale.

    Parameters
    ----------
    values, voxels, limit : as of `flat_cortex`; without voxels the figure says so.
    """
    figure, ax = plt.subplots(figsize=(6.4, 5.6))
    if not len(voxels):
        text_only(ax, "this crowd file does not say where\non fsaverage5 the voxels are")
        return figure
    flat_cortex(ax, values, voxels, limit)
    scale = ScalarMappable(Normalize(-limit, limit), "RdBu_r")
    figure.colorbar(scale, ax=ax, shrink=0.6, pad=0.02, label=label)
    return figure


def flat_cortex(ax: Axes, values: ArrayLike, voxels: pd.DataFrame, limit: float) -> Axes:
    """A number per voxel on the flattened fsaverage5 surface, cut to where voxels are, left
    hemisphere on the left.

    Parameters
    ----------
    values : (n_voxels,); voxels at the same vertex are averaged, and vertices next to a voxel take
        its colour.
    voxels : hemisphere and vertex of each voxel.
    limit : the colour scale ends at ± this.
    """
    mesh = datasets.fetch_surf_fsaverage("fsaverage5")
    frame = pd.DataFrame(
        {"side": voxels["hemisphere"], "vertex": voxels["vertex"], "value": np.asarray(values)}
    )
    # points of the triangles drawn: left to itself, the plot would make room for the whole cortex
    shown = []
    for side, sign in (("left", 1), ("right", -1)):  # the occipital poles lie towards the middle
        flat = surface.load_surf_mesh(mesh[f"flat_{side}"])
        full = _per_vertex(frame[frame["side"] == side[0].upper()], len(flat.coordinates))
        full = _spread(full, flat.faces, rings=2)
        coloured = np.isfinite(full[flat.faces]).any(1)
        if not coloured.any():
            continue
        x, y, _ = flat.coordinates.T
        points, corners = flat.coordinates[:, :2], flat.coordinates[flat.faces[coloured], :2]
        inside = (
            (points > corners.min((0, 1)) - MARGIN) & (points < corners.max((0, 1)) + MARGIN)
        ).all(1)
        near = flat.faces[inside[flat.faces].all(1)]
        x = x - sign * ((sign * x[near]).max() + MARGIN / 4)
        shown += [np.column_stack([x, y])[near].reshape(-1, 2)]
        depth = surface.load_surf_data(mesh[f"sulc_{side}"])[near].mean(1)
        ax.tripcolor(
            x, y, near, facecolors=-np.sign(depth), cmap="Greys_r", vmin=-6, vmax=2, rasterized=True
        )
        ax.tripcolor(
            x,
            y,
            flat.faces[coloured],
            facecolors=np.nanmean(full[flat.faces[coloured]], axis=1),
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            rasterized=True,
        )
        ax.text(x[near].mean(), y[near].max(), side, ha="center", va="bottom", fontsize=10)
    if shown:
        low, high = np.concatenate(shown).min(0), np.concatenate(shown).max(0)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _per_vertex(frame: pd.DataFrame, n: int) -> NDArray[np.float64]:
    """Mean value of the voxels at each of n vertices; NaN where there is none, and what is beyond
    is left out.
    """
    mean = frame.groupby("vertex")["value"].mean()
    mean = mean[(mean.index >= 0) & (mean.index < n)]
    full = np.full(n, np.nan)
    full[mean.index.to_numpy(dtype=int)] = mean.to_numpy()
    return full


def _spread(values: NDArray, faces: NDArray, rings: int) -> NDArray:
    """Give vertices without a value the mean of the neighbours that have one, `rings` times."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    for _ in range(rings):
        known = edges[np.isfinite(values[edges[:, 1]])]
        total = np.bincount(known[:, 0], values[known[:, 1]], len(values))
        count = np.bincount(known[:, 0], minlength=len(values))
        fill = np.isnan(values) & (count > 0)
        values = np.where(fill, total / np.maximum(count, 1), values)
    return values
