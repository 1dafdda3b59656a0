"""Functions of voxels that one brain has and no other.

An early voxel with a private function compares the energies of a few random filters: gratings of
random frequency and orientation, on a random axis of colour. A category voxel has a random smooth
function of what an object is, where, how large and in which colour, and of the place around it.
Both are drawn anew in each brain, so those of two brains are uncorrelated on average, though pairs
may agree or disagree by chance. Both follow from the image alone.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import NDArray

from ubrain.data.simulate.maps import GRID, field_weights, gabor_window, pool
from ubrain.data.simulate.scenes import CATEGORIES, DEGREES, PLACES, SIZE, Scene

FILTERS = 6  # of each early type
HALF = SIZE // 2  # side of their images: frequencies up to 2 cycles per degree need no more
WAVES = 24  # random cosines that make up one function of an object
FLOOR = 1e-5  # added to energies before their logarithm


@dataclass
class PrivateFunctions:
    """The private functions of one brain.

    Attributes
    ----------
    units : the units that have them; see `Brain.units`.
    early : (n_units,), which of them are in early areas.
    windows, colours : (n_filters, HALF, HALF) and (n_filters, 3), of the random filters.
    filter_tuning : (n_early, n_filters), each row of sum 0.
    waves, phases : (n_attributes, n_functions, WAVES) and (n_functions, WAVES), of the functions of
        an object's attributes, f(a) = √(2 / WAVES) Σ cos(a · wave + phase).
    tuning : (n_others, n_functions), weights of category units on these functions.
    """

    units: pd.DataFrame
    early: NDArray[np.bool_]
    windows: NDArray[np.float32]
    colours: NDArray[np.float32]
    filter_tuning: NDArray[np.float32]
    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    tuning: NDArray[np.float32]

    @classmethod
    def draw(
        cls, rng: np.random.Generator, units: pd.DataFrame, early: NDArray[np.bool_]
    ) -> "PrivateFunctions":
        """Draw the functions of a brain; units of the same type have nearly the same."""
        kinds, kind = np.unique(units.type[early], return_inverse=True)
        n_filters = FILTERS * len(kinds)
        frequency, angle = np.exp2(rng.uniform(-1, 1, n_filters)), rng.uniform(0, np.pi, n_filters)
        colours = rng.normal(size=(n_filters, 3))
        mine = np.repeat(np.arange(len(kinds)), FILTERS) == kind[:, None]
        weights = rng.normal(size=mine.shape) * mine
        weights -= mine * weights.sum(1, keepdims=True) / FILTERS
        others, other = np.unique(units.type[~early], return_inverse=True)
        own = np.eye(len(others))[other]
        return cls(
            units,
            early,
            np.array([gabor_window(f, a, HALF) for f, a in zip(frequency, angle, strict=True)]),
            (colours / np.linalg.norm(colours, axis=1, keepdims=True)).astype(np.float32),
            weights.astype(np.float32),
            rng.normal(size=(len(SCALES), len(others), WAVES)),
            rng.uniform(0, 2 * np.pi, (len(others), WAVES)),
            (own + 0.15 * rng.normal(size=own.shape)).astype(np.float32),
        )

    def responses(self, pixels: NDArray[np.uint8], scenes: list[Scene]) -> NDArray[np.float32]:
        """Raw responses to images and what is on them, (n_images, n_units)."""
        out = np.empty((len(scenes), len(self.units)), np.float32)
        out[:, self.early] = self._early(pixels)
        out[:, ~self.early] = self._category(pixels, scenes)
        return out

    def _early(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Σ tuning · mean of log energy under the receptive field: (n_images, n_early)."""
        rgb = pixels.reshape(-1, HALF, 2, HALF, 2, 3).mean((2, 4), dtype=np.float32) / 255
        spectrum = scipy.fft.fft2(rgb - rgb.mean((1, 2), keepdims=True), axes=(1, 2))
        field = field_weights(self.units[self.early])
        drive = np.zeros((len(pixels), len(field)), np.float32)
        for m, (window, colour) in enumerate(zip(self.windows, self.colours, strict=True)):
            energy = pool(np.abs(scipy.fft.ifft2((spectrum @ colour) * window, workers=2)) ** 2)
            found = np.log(energy + FLOOR).reshape(len(pixels), GRID**2) @ field.T
            drive += found * self.filter_tuning[:, m]
        return drive

    def _category(self, pixels: NDArray[np.uint8], scenes: list[Scene]) -> NDArray[np.float32]:
        """tanh of the sum over objects of function · size · receptive field, and of the background:
        (n_images, n_others).
        """
        units = self.units[~self.early]
        x, y, sigma = (units[c].to_numpy() for c in ("x", "y", "sigma"))
        drive = np.zeros((len(scenes), len(units)), np.float32)
        for row, (image, scene) in enumerate(zip(pixels, scenes, strict=True)):
            found = np.cos(np.tensordot(attributes(image, scene), self.waves, 1) + self.phases)
            functions = np.sqrt(2 / WAVES) * found.sum(2)  # (1 + n_objects, n_functions)
            preferred = functions @ self.tuning.T
            drive[row] = preferred[0]
            for thing, value in zip(scene.things, preferred[1:], strict=True):
                near = np.exp(-((thing.x - x) ** 2 + (thing.y - y) ** 2) / (2 * sigma**2))
                drive[row] += value * np.sqrt(thing.size / 3) * near
        return np.tanh(drive)


# how far the functions change over one unit of an attribute: categories, places, x, y, log2 size,
# colour
SCALES = np.array([1.2] * len(CATEGORIES) + [0.8] * len(PLACES) + [0.25, 0.25, 0.7] + [2.0] * 3)


def attributes(image: NDArray[np.uint8], scene: Scene) -> NDArray[np.float64]:
    """What the private functions of objects depend on, scaled: the background, then each object.

    Returns
    -------
    (1 + n_objects, n_attributes): one of each category, one of each place, x, y and log2 size (all
    0 for the background), and the mean red, green and blue around the object's centre.
    """
    place = [float(scene.place == name) for name in PLACES]
    colour = image.mean((0, 1)) / 255 - 0.5
    rows = [[0.0] * len(CATEGORIES) + place + [0.0, 0.0, 0.0, *colour]]
    for thing in scene.things:
        column, row = SIZE / 2 + thing.x / DEGREES, SIZE / 2 - thing.y / DEGREES
        half = thing.size / DEGREES / 4
        top, bottom, left, right = (
            int(v) for v in (row - half, row + half, column - half, column + half)
        )
        colour = image[top : bottom + 1, left : right + 1].mean((0, 1)) / 255 - 0.5
        category = [float(thing.category == name) for name in CATEGORIES]
        rows.append([*category, *place, thing.x, thing.y, np.log2(thing.size / 3), *colour])
    return np.array(rows) * SCALES
