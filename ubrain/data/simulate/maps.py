"""What early voxels read: maps of energy and colour, and the mean under a receptive field."""

from itertools import product

import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import NDArray

from ubrain.data.simulate.scenes import FIELD_OF_VIEW, SIZE

GRID = 28  # maps are pooled to this many points per side
ORIENTATIONS, FREQUENCIES = 6, (0.75, 1.5, 3.0)  # cycles per degree


def energy_maps(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Gabor energy, colour opponency and curvature of images.

    Parameters
    ----------
    pixels : (n_images, SIZE, SIZE, 3)

    Returns
    -------
    (n_images, n_maps, GRID, GRID): energy at every frequency and orientation; then red, green, blue
    and yellow; then products of energies at neighbouring orientations, which are large where
    contours bend.
    """
    rgb = pixels.astype(np.float32) / 255
    grey = rgb.mean(3)
    spectrum = scipy.fft.fft2(grey - grey.mean((1, 2), keepdims=True), workers=2)
    energy = np.empty((len(rgb), len(FREQUENCIES) * ORIENTATIONS, GRID, GRID), np.float32)
    angles = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    for m, (frequency, angle) in enumerate(product(FREQUENCIES, angles)):
        window = gabor_window(frequency, angle)
        energy[:, m] = pool(np.abs(scipy.fft.ifft2(spectrum * window, workers=2)) ** 2)
    red, green, blue = np.moveaxis(rgb, 3, 0)
    opponent = red - green, blue - (red + green) / 2
    colour = np.stack([pool(np.maximum(s * c, 0)) for c in opponent for s in (1, -1)], 1)
    middle = energy[:, ORIENTATIONS : 2 * ORIENTATIONS]
    curvature = np.sqrt(middle * np.roll(middle, 2, axis=1))
    return np.concatenate([energy * 30, colour, curvature * 30], 1)


def gabor_window(frequency: float, angle: float, size: int = SIZE) -> NDArray[np.float32]:
    """Transfer function of a quadrature pair of Gabor filters, (size, size): a Gaussian on one side
    of frequencies; cycles per degree and radians.
    """
    fx = scipy.fft.fftfreq(size, FIELD_OF_VIEW / size)[None]
    fy = fx.T
    distance = (fx - frequency * np.cos(angle)) ** 2 + (fy - frequency * np.sin(angle)) ** 2
    return np.exp(-distance / (2 * (0.4 * frequency) ** 2)).astype(np.float32)


def pool(maps: NDArray) -> NDArray[np.float32]:
    """Means over squares of pixels: (n_images, size, size) -> (n_images, GRID, GRID)."""
    step = maps.shape[1] // GRID
    return maps.reshape(len(maps), GRID, step, GRID, step).mean((2, 4), dtype=np.float32)


def field_weights(units: pd.DataFrame) -> NDArray[np.float32]:
    """Receptive fields over the points of a map, each of sum 1: (n_units, GRID²)."""
    axis = (np.arange(GRID) + 0.5) / GRID * FIELD_OF_VIEW - FIELD_OF_VIEW / 2
    sigma = units.sigma.to_numpy()[:, None]
    across = np.exp(-((axis - units.x.to_numpy()[:, None]) ** 2) / (2 * sigma**2))
    down = np.exp(-((-axis - units.y.to_numpy()[:, None]) ** 2) / (2 * sigma**2))
    field = (down[:, :, None] * across[:, None, :]).reshape(len(units), GRID**2).astype(np.float32)
    return field / (field.sum(1, keepdims=True) + 1e-6)
