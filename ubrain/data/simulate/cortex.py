"""Where the simulated voxels sit on fsaverage5, so that maps look like maps.

The positions are approximate centres from the literature, in millimetres of the right hemisphere's
white surface (the left one is its mirror image). They serve to draw, not to localise.
"""

from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FOVEA, CALCARINE_END = (14, -98, -4), (17, -62, 6)  # the two ends of V1
# Radians on the sphere: distance from the calcarine, and length of V1 along it.
BANDS = {"V1": (0.0, 0.2), "V2": (0.2, 0.34), "V3": (0.34, 0.46)}
LENGTH = 0.75
# Degrees of visual angle; cortical distance ~ log(eccentricity + 0.75).
MAX_ECCENTRICITY, MAGNIFICATION = 5.5, 0.75
CENTRES = {  # area -> (centre, radius in radians on the sphere)
    "hV4": ((30, -79, -14), 0.17),
    "OFA": ((41, -78, -11), 0.14),
    "FFA": ((42, -53, -20), 0.15),
    "EBA": ((47, -72, 5), 0.26),
    "FBA": ((41, -43, -22), 0.13),
    "OPA": ((33, -84, 20), 0.2),
    "PPA": ((25, -46, -10), 0.18),
    "RSC": ((15, -55, 12), 0.15),
    "OWFA": ((44, -70, -14), 0.12),
    "VWFA": ((46, -57, -14), 0.13),
    "food": ((32, -62, -14), 0.12),
    "LO": ((43, -78, -2), 0.15),
}


@cache
def vertices() -> pd.DataFrame:
    """All vertices of fsaverage5 that belong to an area.

    Returns
    -------
    One row per vertex: hemisphere ("L", "R"), vertex, area, and for V1–V3 the centre of the
    receptive field, x and y in degrees of visual angle (NaN elsewhere): the contralateral half
    field, mirrored at the borders between areas.
    """
    return pd.concat([_hemisphere("L"), _hemisphere("R")], ignore_index=True)


def _hemisphere(side: str) -> pd.DataFrame:
    from nilearn import datasets, surface  # takes longer to import than all else here

    mesh = datasets.fetch_surf_fsaverage("fsaverage5")
    name = {"L": "left", "R": "right"}[side]
    white = surface.load_surf_mesh(mesh[f"white_{name}"]).coordinates
    sphere = surface.load_surf_mesh(mesh[f"sphere_{name}"]).coordinates
    sphere = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    mirror = np.array([-1 if side == "L" else 1, 1, 1])

    def on_sphere(point: tuple[int, int, int]) -> NDArray:
        return sphere[np.argmin(((white - mirror * point) ** 2).sum(1))]

    area = np.full(len(sphere), "", dtype=object)
    nearest = np.ones(len(sphere))
    for name, (centre, radius) in CENTRES.items():
        distance = np.arccos(np.clip(sphere @ on_sphere(centre), -1, 1)) / radius
        area[distance < nearest] = name
        nearest = np.minimum(nearest, distance)

    fovea, end = on_sphere(FOVEA), on_sphere(CALCARINE_END)
    along = end - (end @ fovea) * fovea
    along /= np.linalg.norm(along)
    across = np.cross(fovea, along)
    dorsal = sphere[np.argmax(white[:, 2])]
    across *= np.sign(across @ dorsal)
    u = np.arctan2(sphere @ along, sphere @ fovea)  # along the calcarine, from the fovea
    v = np.arcsin(np.clip(sphere @ across, -1, 1))  # away from it, dorsal positive
    inside = (u > 0) & (u < LENGTH)
    eccentricity = MAGNIFICATION * (
        (MAX_ECCENTRICITY / MAGNIFICATION + 1) ** (np.clip(u, 0, LENGTH) / LENGTH) - 1
    )
    # 0: horizontal meridian, ±90: vertical meridian; dorsal cortex sees below
    angle = np.full(len(sphere), np.nan)
    for name, (near, far) in BANDS.items():
        band = inside & (np.abs(v) >= near) & (np.abs(v) < far)
        share = (np.abs(v) - near) / (far - near)
        degrees = {"V1": 90 * share, "V2": 90 * (1 - share), "V3": 90 * share}[name]
        angle = np.where(band, -np.sign(v) * degrees, angle)
        area[band] = name
    side_of_field = 1 if side == "L" else -1
    radians = np.deg2rad(angle)
    table = pd.DataFrame(
        {
            "hemisphere": side,
            "vertex": np.arange(len(sphere)),
            "area": area,
            "x": side_of_field * eccentricity * np.cos(radians),
            "y": eccentricity * np.sin(radians),
        }
    )
    return table[table.area != ""]
