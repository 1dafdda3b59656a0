"""Which images of a crowd file are one picture: resized, compressed, cropped, turned, recoloured.

Perceptual hashes are not enough: of 250 rendered scenes less 8 % of the side, pHash of the library
imagehash finds 9 % before it takes two scenes for one, the comparison here 100 % (100 % and 99 % of
scenes at half the size and after JPEG at quality 30, where pHash finds as many).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.optimize import minimize

from ubrain.data.crowdfile import content_digest
from ubrain.progress import track
from ubrain.trials import Rows

SIDE, COARSE = 32, 16  # pixels of thumbnails, and of the outlines by which they are searched
WORKING_SIDE = 64  # pixels; enough to fit a crop
CANDIDATES = 3  # best matches of each image that are compared more closely
SEARCH = 0.6  # correlation of outlines below which nobody looks closer
# Share of the variance of the pixels that one image has to explain in the other.
SAME_COLOURS, SAME_GREY = 0.9, 0.95
SAME_STRUCTURE = 0.92  # correlation of their fine structure
# As SAME_GREY, with one of CROPS instead of the best crop; of 8 % crops 1 in 100 is lost by it.
ROUGHLY = 0.65
LARGEST_CROP = 0.12  # of the side
SEARCHING = {"maxfev": 80, "xatol": 2e-3, "fatol": 2e-3}  # how the crop that fits best is found
BLOCK = 512  # images at a time
# the two ways in which colour is taken away
GREY = np.array([[1, 1, 1], [0.897, 1.761, 0.342]], dtype=np.float32) / 3

Thumbnails = NDArray[np.uint8]
VARIANTS: dict[str, Callable[[NDArray], NDArray]] = {  # of images (..., side, side, 3)
    "as it is": lambda x: x,
    "mirrored": lambda x: x[..., :, ::-1, :],
    "upside down": lambda x: x[..., ::-1, :, :],
    "turned by 180 degrees": lambda x: x[..., ::-1, ::-1, :],
    "with rows and columns swapped": lambda x: x.swapaxes(-3, -2),
    "turned by 90 degrees": lambda x: x.swapaxes(-3, -2)[..., :, ::-1, :],
    "turned by 270 degrees": lambda x: x.swapaxes(-3, -2)[..., ::-1, :, :],
    "with rows and columns swapped, turned by 180 degrees": lambda x: x.swapaxes(-3, -2)[
        ..., ::-1, ::-1, :
    ],
}
CHANNELS = "with red and blue swapped"


@dataclass(frozen=True)
class Lookalike:
    """Two images of a crowd file that are one picture: `image`, changed by `variant`, is `other`.

    `similarity` is the share of the variance of the pixels that the one explains in the other,
    after a crop was undone.
    """

    image: int
    other: int
    variant: str
    similarity: float


@dataclass(frozen=True)
class Gallery:
    """Thumbnails of images of a crowd file.

    Attributes
    ----------
    pixels : gives the image of a row of the crowd file, (height, width, 3).
    rows : (n_images,), rows in the crowd file, ascending.
    thumbnails : (n_images, SIDE, SIDE, 3) uint8
    altered : (n_images,), whether the pixels are not those whose digest is in the file.
    contrast : (n_images,), standard deviation over pixels and channels, in steps of 0..255.
    """

    pixels: Callable[[int], NDArray[np.uint8]]
    rows: Rows
    thumbnails: Thumbnails
    altered: NDArray[np.bool_]
    contrast: NDArray[np.float64]
    _kept: dict[bytes, tuple[NDArray, NDArray]] = field(default_factory=dict)

    def outlines(self, places: Rows) -> tuple[NDArray, NDArray]:
        """What images share, (SIDE, SIDE, 3), and their outlines less that; the last are kept."""
        key = places.tobytes()
        if key not in self._kept:
            self._kept.clear()
            mean = self.thumbnails[places[:: max(1, len(places) // 5000)]].mean(0)
            blocks = [
                _outlines(self.thumbnails[places[s : s + BLOCK]] - mean)
                for s in range(0, len(places), BLOCK)
            ]
            self._kept[key] = mean, np.concatenate(blocks)
        return self._kept[key]

    def places(self, rows: Rows) -> Rows:
        """Where in this gallery rows of the crowd file are, less those that are not here."""
        return np.flatnonzero(np.isin(self.rows, rows))


def make_gallery(file: h5py.File, rows: Rows) -> Gallery:
    """Read images once, in the order in which they lie in the file; keep a thumbnail of each."""
    rows = np.unique(rows)
    thumbnails = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
    altered, contrast = np.zeros(len(rows), bool), np.zeros(len(rows))
    known, read = file["images/content"].asstr()[:], _reader(file)
    order = np.lexsort((file["images/row"][:][rows], *file["images/shape"][:][rows].T))
    for place in track(order, len(rows), "images"):
        pixels = read(rows[place])
        thumbnails[place] = _resized(pixels, SIDE)
        altered[place] = content_digest(pixels) != known[rows[place]]
        contrast[place] = pixels.std()
    return Gallery(read, rows, thumbnails, altered, contrast)


def find_lookalikes(
    gallery: Gallery,
    images: Rows,
    others: Rows,
    variant: str = "as it is",
    crops: bool = True,
    most: int = 2000,
) -> Iterator[Lookalike]:
    """Find, for images, the ones among others that are the same picture after a change.

    Two steps. Outlines (band-passed thumbnails, less what all images share) name the most
    correlated images; that costs a matrix product and survives a small crop. Then the pixels
    decide: one image is laid over the other, with the crop that fits best, and has to explain 90 %
    of the variance of the colours (or 95 % of that of the grey values where one of the two has no
    colours), and its fine structure has to correlate at 0.92.

    Where these numbers come from: among 18 million pairs of photographs (6000, of macaque V4
    recordings) the same picture in two files reached 0.98 and two pictures 0.86; among 4.5 million
    pairs of rendered scenes of the simulation two pictures reached 0.84 in colour, and in grey 0.93
    with a structure of 0.86. After JPEG at quality 30, at half the size, or with a crop of 8 % of
    the side, 99 of 100 photographs and scenes stay above 0.92 in colour, 0.96 in grey, 0.9 in
    structure.

    Parameters
    ----------
    images, others : places in the gallery; an image is not compared with itself.
    variant : name of a change in `VARIANTS`; pairs with swapped channels are found under each of
        them and named so.
    crops : undo a crop; without, only thumbnails are compared, which is 50 times faster.
    most : the largest number of pairs compared by their pixels, best first.
    """
    if not len(images) or not len(others):
        return
    change = VARIANTS[variant]
    pairs = _candidates(gallery, images, others, change)
    for i, j in sorted(pairs, key=lambda pair: -pairs[pair])[:most]:
        a, b = gallery.rows[i], gallery.rows[j]
        if crops:
            similarity, channels = compare(change(gallery.pixels(a)), gallery.pixels(b))
        else:
            thumbnails = (change(gallery.thumbnails[i]), gallery.thumbnails[j])
            similarity, channels = _similarity(*(t.astype(np.float32) for t in thumbnails))
        if similarity > 0:
            swapped = CHANNELS if variant == "as it is" else f"{variant}, {CHANNELS}"
            name = swapped if channels else variant
            yield Lookalike(int(a), int(b), name, similarity)


def _candidates(
    gallery: Gallery, images: Rows, others: Rows, change: Callable[[NDArray], NDArray]
) -> dict[tuple[int, int], float]:
    """Pairs (image, other) of places that are worth a closer look; correlation of outlines."""
    thumbnails = gallery.thumbnails
    mean, against = gallery.outlines(others)
    pairs: dict[tuple[int, int], float] = {}
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        r = _outlines(change(thumbnails[block]) - mean) @ against.T
        r[block[:, None] == others] = -1
        best = np.argpartition(-r, min(CANDIDATES, r.shape[1] - 1), axis=1)[:, :CANDIDATES]
        for row, column in zip(*np.nonzero(np.take_along_axis(r, best, 1) > SEARCH), strict=True):
            j = best[row, column]
            i, other = int(block[row]), int(others[j])
            if (other, i) not in pairs and _alike(change(thumbnails[i]), thumbnails[other]):
                pairs[i, other] = float(r[row, j])
    return pairs


def _alike(a: NDArray, b: NDArray) -> bool:
    """Whether two thumbnails could be one picture: less one of CROPS, one explains the other."""
    x, y = (thumbnail.mean(2, dtype=np.float32) for thumbnail in (a, b))
    return any(_explained(_all_crops(p), q).max() > ROUGHLY - 0.1 for p, q in ((x, y), (y, x)))


def _outlines(thumbnails: NDArray) -> NDArray[np.float32]:
    """Band-passed grey thumbnails of length 1, (n, COARSE²): no shading, no detail to be moved."""
    grey = thumbnails.mean(3).astype(np.float32)
    f = SIDE * np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))  # cycles per image
    band = np.fft.irfft2(np.fft.rfft2(grey) * f * np.exp(-(f**2) / (2 * 3**2)), s=(SIDE, SIDE))
    step = SIDE // COARSE
    flat = band.reshape(len(band), COARSE, step, COARSE, step).mean((2, 4)).reshape(len(band), -1)
    flat -= flat.mean(1, keepdims=True)
    return (flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)).astype(np.float32)


def compare(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[float, bool]:
    """How far two images (height, width, 3) are one, if one may be a small crop of the other.

    Returns
    -------
    Share of the variance that the one explains in the other, at most 1, or 0 if they are two
    pictures; and whether red and blue had to be swapped.
    """
    best = (0.0, False)
    copies = _working_copy(a), _working_copy(b)
    for scene, part in (copies, copies[::-1]):
        target = _cut(part, np.zeros(4))
        crop = _fitted_crop(scene.mean(2), target.mean(2))
        if crop is not None:
            best = max(best, _similarity(_cut(scene, crop), target))
    return best


def _similarity(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[float, bool]:
    """As `compare`, of two thumbnails that lie exactly over one another."""
    if np.corrcoef(_structure(a), _structure(b))[0, 1] < SAME_STRUCTURE:
        return 0.0, False
    if min(_colourfulness(a), _colourfulness(b)) < 2:
        grey = max(float(_explained(a @ w, b @ w)) for w in GREY)
        return (grey, False) if grey >= SAME_GREY else (0.0, False)
    colours = max((_in_colour(a, b), False), (_in_colour(a[..., ::-1], b), True))
    return colours if colours[0] >= SAME_COLOURS else (0.0, False)


def _fitted_crop(scene: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray | None:
    """What to cut off a grey scene to make it the target; None if nothing comes near it.

    At the left, top, right and bottom, as shares of the side.
    """
    rough = _explained(_all_crops(scene), target)
    if rough.max() < ROUGHLY:
        return None

    def loss(crop: NDArray) -> float:
        inside = np.clip(crop, 0, LARGEST_CROP)
        outside = float(np.abs(crop - inside).sum())
        return 1 - float(_explained(_cut(scene, inside), target)) + 10 * outside

    start = CROPS[rough.argmax()]
    simplex = start + np.vstack([np.zeros(4), 0.02 * np.eye(4)])
    options = SEARCHING | {"initial_simplex": simplex}
    found = minimize(loss, start, method="Nelder-Mead", options=options).x
    return np.clip(found, 0, LARGEST_CROP)


def _working_copy(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The image as (WORKING_SIDE, WORKING_SIDE, 3), whatever size and proportions it had."""
    return _resized(pixels, WORKING_SIDE).astype(np.float32)


def _resized(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _cut(image: NDArray[np.float32], crop: NDArray) -> NDArray[np.float32]:
    """A working copy less a crop, at (SIDE, SIDE) and with its channels."""
    down, across = (_means(WORKING_SIDE, crop[i], crop[i + 2]) for i in (1, 0))
    return np.tensordot(down, np.tensordot(image, across, (1, 1)), (1, 0)).swapaxes(1, -1)


def _means(size: int, before: float, after: float) -> NDArray[np.float32]:
    """Weights (SIDE, size) that shrink an axis, less what is cut off, by averaging pixels."""
    edges = np.linspace(before, 1 - after, SIDE + 1) * size
    before_edges = np.clip(edges[:, None] - np.arange(size), 0, 1)  # share of each pixel
    weights = np.diff(before_edges, axis=0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


PLACES = [(x, y) for x in (0, 0.5, 1) for y in (0, 0.5, 1)]
CROPS = np.array(
    [np.zeros(4)]
    + [[x * c, y * c, c - x * c, c - y * c] for c in (0.03, 0.06, 0.09) for x, y in PLACES]
)


@cache
def _crop_weights(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights of all CROPS: down (n_crops, SIDE, size) and across (n_crops, size, SIDE)."""
    down, across = (np.stack([_means(size, c[i], c[i + 2]) for c in CROPS]) for i in (1, 0))
    return down, across.transpose(0, 2, 1).copy()


def _all_crops(grey: NDArray[np.float32]) -> NDArray:
    """Every one of CROPS of a grey image: (n_crops, SIDE, SIDE)."""
    down, across = _crop_weights(len(grey))
    return down @ grey @ across


def _explained(a: NDArray, b: NDArray) -> NDArray:
    """Share of the variance over pixels that image a, (..., side, side), explains in b."""
    variance = np.minimum(a.var((-2, -1)), b.var((-2, -1)))
    return 1 - ((a - b) ** 2).mean((-2, -1)) / np.maximum(variance, 1)


def _in_colour(a: NDArray, b: NDArray) -> float:
    """As `_explained`, over pixels and channels."""
    variance = min(a.var((0, 1)).mean(), b.var((0, 1)).mean())
    return 1 - float(((a - b) ** 2).mean() / max(variance, 1))


def _structure(image: NDArray) -> NDArray:
    """Grey values less their surroundings: edges and texture."""
    grey = image.mean(2)
    # never exactly constant, so that it can be correlated
    return (grey - uniform_filter(grey, 7, mode="nearest")).ravel() + 1e-9 * np.arange(grey.size)


def _colourfulness(image: NDArray) -> float:
    """Standard deviation between the channels of a pixel, in steps of 0..255."""
    return float(image.std(2).mean())


def _reader(file: h5py.File) -> Callable[[int], NDArray[np.uint8]]:
    """A function from a row of the crowd file to its image; what it looks up is looked up once."""
    shapes, places = file["images/shape"][:], file["images/row"][:]
    pixels = dict(file["images/pixels"].items())
    return lambda row: pixels["{}x{}".format(*shapes[row])][places[row]]
