"""Simulated brains: voxels with a functional type, a receptive field, tuning and noise.

Early voxels read Gabor energy of the pixels under their receptive field, hV4 reads colour opponency
and curvature, category voxels read the description of the scene. These functions come from a list
that all brains share; a voxel may have a function of its own brain instead, see
`ubrain.data.simulate.private`. The encoder sees none of these, only the pixels.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.simulate import cortex
from ubrain.data.simulate.maps import FREQUENCIES, ORIENTATIONS, energy_maps, field_weights
from ubrain.data.simulate.private import PrivateFunctions
from ubrain.data.simulate.scenes import CATEGORIES, Scene, render

REFERENCE_SCENES, REFERENCE_OFFSET = 300, 10**9  # to scale signals on; no subject sees them
SEMANTIC = (*CATEGORIES, "indoor", "outdoor")

# area: (voxels, mean of four NSD subjects at 1.8 mm; counts of food, RSC and LO are our guess),
# share of types
AREAS: dict[str, tuple[int, dict[str, float]]] = {
    "V1": (1176, {"V1": 1}),
    "V2": (1144, {"V2": 1}),
    "V3": (984, {"V3": 1}),
    "hV4": (527, {"hV4": 1}),
    "OFA": (363, {"face": 0.8, "body": 0.1, "animal": 0.1}),
    "FFA": (548, {"face": 0.8, "body": 0.1, "animal": 0.1}),
    "EBA": (2676, {"body": 0.75, "face": 0.1, "animal": 0.15}),
    "FBA": (614, {"body": 0.75, "face": 0.1, "animal": 0.15}),
    "OPA": (1052, {"place": 0.9, "vehicle": 0.1}),
    "PPA": (745, {"place": 0.9, "vehicle": 0.1}),
    "RSC": (400, {"place": 0.95, "vehicle": 0.05}),
    "OWFA": (388, {"word": 0.75, "face": 0.1, "food": 0.15}),
    "VWFA": (711, {"word": 0.75, "face": 0.1, "food": 0.15}),
    "food": (400, {"food": 0.85, "word": 0.15}),
    "LO": (600, {"animal": 0.45, "vehicle": 0.45, "body": 0.1}),
}
# receptive field size: sigma = a + b * eccentricity, degrees of visual angle
SIGMA = {"V1": (0.25, 0.1), "V2": (0.35, 0.15), "V3": (0.5, 0.2), "hV4": (0.8, 0.28)}
EARLY = ("V1", "V2", "V3", "hV4")
TYPES = (*EARLY, *CATEGORIES, "place")  # that all brains share


@dataclass
class Brain:
    """One simulated subject.

    Attributes
    ----------
    units : one row per unit (a voxel averages one or more): voxel, hemisphere, vertex, area, type,
        x, y, sigma, private.
    voxels : one row per voxel: the truth about it, with its ncsnr.
    private : functions that no other brain has, of the units marked so; None if there are none.
    """

    units: pd.DataFrame
    voxels: pd.DataFrame
    early_tuning: NDArray[np.float32]  # (n_units, n_maps)
    semantic_tuning: NDArray[np.float32]  # (n_units, len(SEMANTIC))
    exponent: NDArray[np.float32]  # (n_units,)
    mean: NDArray[np.float32]  # (n_voxels,), of the raw signal over the reference scenes
    scale: NDArray[np.float32]
    private: PrivateFunctions | None = None

    def signals(
        self,
        pixels: NDArray[np.uint8],
        scenes: list[Scene],
        maps: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Noiseless responses, mean 0 and variance 1 over reference scenes: (n_images, n_voxels).

        Parameters
        ----------
        pixels : (n_images, SIZE, SIZE, 3), what was shown.
        scenes : what is on each image.
        maps : `energy_maps` of the pixels, if they are known.
        """
        raw = self._raw(pixels, scenes, energy_maps(pixels) if maps is None else maps)
        return ((raw - self.mean) / self.scale).astype(np.float32)

    def calibrate(
        self, pixels: NDArray[np.uint8], scenes: list[Scene], maps: NDArray[np.float32]
    ) -> None:
        """Set mean and scale from reference scenes and their `energy_maps`."""
        raw = self._raw(pixels, scenes, maps)
        self.mean, self.scale = raw.mean(0), np.maximum(raw.std(0), 1e-6)

    def _raw(
        self, pixels: NDArray[np.uint8], scenes: list[Scene], maps: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        early = self.units.area.isin(EARLY).to_numpy()
        private = self.units.private.to_numpy()
        out = np.empty((len(scenes), len(self.units)), np.float32)
        out[:, early & ~private] = self._early(maps, early & ~private)
        out[:, ~early & ~private] = self._semantic(scenes, ~early & ~private)
        if self.private is not None:
            out[:, private] = self.private.responses(pixels, scenes)
        counts = np.bincount(self.units.voxel)
        sums = np.add.reduceat(out, np.cumsum(counts) - counts, axis=1)
        return (sums / counts).astype(np.float32)

    def _early(self, maps: NDArray[np.float32], which: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(mean of the maps under the receptive field · tuning) ^ exponent: (n_images, n_units)."""
        field = field_weights(self.units[which])
        drive = np.zeros((len(maps), len(field)), np.float32)
        flat = maps.reshape(len(maps), maps.shape[1], -1)
        for m in range(maps.shape[1]):
            drive += (flat[:, m] @ field.T) * self.early_tuning[which][:, m]
        return np.maximum(drive, 0) ** self.exponent[which]

    def _semantic(self, scenes: list[Scene], which: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Saturating sum over objects of tuning · size · receptive field, and of the place."""
        u, tuning = self.units[which], self.semantic_tuning[which]
        x, y, sigma = (u[c].to_numpy() for c in ("x", "y", "sigma"))
        drive = np.zeros((len(scenes), len(u)), np.float32)
        for row, scene in enumerate(scenes):
            for thing in scene.things:
                near = np.exp(-((thing.x - x) ** 2 + (thing.y - y) ** 2) / (2 * sigma**2))
                weight = tuning[:, SEMANTIC.index(thing.category)]
                drive[row] += weight * np.sqrt(thing.size / 3) * near
            if scene.place != "none":
                drive[row] += tuning[:, SEMANTIC.index(scene.place)]
        return drive / (drive + 0.7)


def make_brain(
    seed: int,
    number: int,
    n_voxels: int,
    units_per_voxel: int = 1,
    snr: float = 1.0,
    spread: float = 1.0,
    lacking: str = "",
    shared_function: float = 1.0,
) -> Brain:
    """Grow the brain of subject `number`: its own voxels, shares of areas, tuning and noise.

    Parameters
    ----------
    units_per_voxel : how many neighbouring tunings a voxel averages (more for large voxels).
    snr : factor on every ncsnr.
    spread : factor on how much subjects differ in the shares of areas and types.
    lacking : a functional type whose units take another type of their area.
    shared_function : share of voxels whose type is one of the types of all brains. Which voxels
        these are, everything else about the brain stays the same.
    """
    rng = np.random.default_rng([seed, number, 0xB8A1])
    voxels = _draw_voxels(rng, n_voxels, spread)
    units = voxels.loc[voxels.index.repeat(units_per_voxel)].rename_axis("voxel").reset_index()
    units["type"] = _draw_types(rng, units.area, spread, lacking)
    _draw_fields(rng, units)
    brain = Brain(
        units,
        voxels,
        _early_tuning(rng, units),
        _semantic_tuning(rng, units),
        rng.uniform(0.3, 0.6, len(units)).astype(np.float32),
        np.zeros(0, np.float32),
        np.ones(0, np.float32),
    )
    # The first unit stands for a voxel's type; its receptive field is the mean of its units'.
    brain.voxels["type"] = units.groupby("voxel").type.first()
    brain.voxels[["x", "y", "sigma"]] = units.groupby("voxel")[["x", "y", "sigma"]].mean()
    brain.voxels["ncsnr"] = snr * _draw_ncsnr(rng, voxels.area.isin(EARLY).to_numpy())
    own = np.random.default_rng([seed, number, 0x0E17])
    brain.voxels["private"] = own.random(len(voxels)) >= shared_function
    units["private"] = brain.voxels.private.to_numpy()[units.voxel]
    if units.private.any():
        for table in (units, brain.voxels):
            table.loc[table.private, "type"] = table.type.map(
                {name: f"S{number + 1}-{k}" for k, name in enumerate(TYPES, 1)}
            )
        brain.private = PrivateFunctions.draw(
            own, units[units.private], units.area[units.private].isin(EARLY).to_numpy()
        )
    return brain


def reference_scenes(seed: int) -> tuple[NDArray[np.uint8], list[Scene]]:
    """Scenes on which signals are scaled; no subject sees them."""
    drawn = [render(seed, REFERENCE_OFFSET + i) for i in range(REFERENCE_SCENES)]
    return np.stack([p for p, _ in drawn]), [s for _, s in drawn]


def _draw_voxels(rng: np.random.Generator, n_voxels: int, spread: float) -> pd.DataFrame:
    """Voxels at vertices of each area: hemisphere, vertex, area, x, y (NaN without a map)."""
    share = np.array([n for n, _ in AREAS.values()]) * rng.lognormal(0, 0.25 * spread, len(AREAS))
    counts = np.maximum(np.round(n_voxels * share / share.sum()).astype(int), 1)
    parts = []
    for area, count in zip(AREAS, counts, strict=True):
        places = cortex.vertices()
        places = places[places.area == area]
        chosen = rng.choice(len(places), count, replace=count > len(places))
        parts.append(places.iloc[np.sort(chosen)])
    return pd.concat(parts, ignore_index=True)


def _draw_types(
    rng: np.random.Generator, areas: pd.Series, spread: float, lacking: str
) -> NDArray[np.object_]:
    """Functional type of each unit, from its area's shares, which differ between subjects."""
    types = np.empty(len(areas), dtype=object)
    for area, (_, everybodys) in AREAS.items():
        here = (areas == area).to_numpy()
        shares = {name: share for name, share in everybodys.items() if name != lacking}
        own = rng.dirichlet(12 / spread**2 * np.array(list(shares.values())))
        types[here] = rng.choice(list(shares), here.sum(), p=own)
    return types


def _draw_fields(rng: np.random.Generator, units: pd.DataFrame) -> None:
    """Receptive fields: the vertex's map with jitter in V1–V3, elsewhere by magnification."""
    n = len(units)
    eccentricity = 0.75 * ((4.2 / 0.75 + 1) ** rng.random(n) - 1)
    side = np.where(units.hemisphere == "L", 1, -1)
    angle = rng.normal(0, np.deg2rad(50), n)
    units["x"] = units.x.fillna(pd.Series(side * eccentricity * np.cos(angle)))
    units["y"] = units.y.fillna(pd.Series(eccentricity * np.sin(angle)))
    eccentricity = np.hypot(units.x, units.y)
    units["sigma"] = rng.uniform(1.8, 3.5, n)
    for area, (a, b) in SIGMA.items():
        here = (units.area == area).to_numpy()
        units.loc[here, "sigma"] = ((a + b * eccentricity) * rng.lognormal(0, 0.15, n))[here]
        units.loc[here, "x"] += (0.25 * units.sigma * rng.normal(size=n))[here]
        units.loc[here, "y"] += (0.25 * units.sigma * rng.normal(size=n))[here]
    units.loc[~units.area.isin(EARLY), ["x", "y"]] *= 0.5  # category areas look at the centre


def _early_tuning(rng: np.random.Generator, units: pd.DataFrame) -> NDArray[np.float32]:
    """Weights of each unit on the maps of `energy_maps`: (n_units, n_maps)."""
    n = len(units)
    orientation = rng.uniform(0, np.pi, n)[:, None]
    angles = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    concentration = rng.uniform(0.3, 2.5, n)[:, None]
    by_orientation = np.exp(concentration * (np.cos(2 * (angles - orientation)) - 1))
    octave = np.log2(np.array(FREQUENCIES))[None] - rng.uniform(-0.7, 1.7, n)[:, None]
    by_frequency = np.exp(-(octave**2) / 2)
    energy = (by_frequency[:, :, None] * by_orientation[:, None, :]).reshape(n, -1)
    v4 = (units.type == "hV4").to_numpy()[:, None]
    colour = rng.gamma(0.5, 1, (n, 4)) * np.where(v4, 3.0, 0.15)
    curvature = np.where(v4, by_orientation * rng.uniform(0.5, 2, n)[:, None], 0)
    return np.concatenate([energy * np.where(v4, 0.2, 1), colour, curvature], 1).astype(np.float32)


def _semantic_tuning(rng: np.random.Generator, units: pd.DataFrame) -> NDArray[np.float32]:
    """Weights on categories and places, one strong, the others weak: (n_units, n_semantic)."""
    tuning = 0.15 * rng.random((len(units), len(SEMANTIC)))
    strength = rng.uniform(0.7, 1.3, len(units))
    for column, name in enumerate(SEMANTIC):
        mine = (units.type == name).to_numpy()
        tuning[mine, column] += strength[mine]
    places = (units.type == "place").to_numpy()
    tuning[places, -2:] += rng.uniform(0.2, 1.2, (places.sum(), 2))
    return tuning.astype(np.float32)


def _draw_ncsnr(rng: np.random.Generator, early: NDArray[np.bool_]) -> NDArray[np.float64]:
    """ncsnr with the quantiles measured in NSD: gamma distributed; category areas are cut below
    0.2.

    Early areas, 5/25/50/75/95 %: 0.14 / 0.27 / 0.40 / 0.57 / 0.88, times a factor of the subject.
    """
    draw = rng.gamma(3.7, 0.4 / 3.375, (64, len(early))) * rng.uniform(0.82, 1.18)
    draw = np.where(early, draw, 0.9 * draw)
    usable = early | (draw > 0.2)  # the first of 64 draws that passes the cut
    return np.minimum(np.take_along_axis(draw, usable.argmax(0)[None], 0)[0], 1.6)
