"""The ground truth of a simulated crowd: for checks and "truth" panels, never for training."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.config import SimulationConfig
from ubrain.crowd import Crowd
from ubrain.data.simulate.crowd import VERSION, grow, shown
from ubrain.data.simulate.scenes import CATEGORIES, PLACES, Scene, render
from ubrain.errors import UbrainError


def subjects(crowd: Crowd) -> list[str]:
    """Subjects whose truth is known: none in a file of recordings."""
    return [s for s in crowd.subjects if crowd.simulated and s in _group(crowd)]


def voxels(crowd: Crowd, subject: str) -> pd.DataFrame:
    """True type, receptive field (x, y, sigma in degrees of visual angle) and ncsnr of voxels; and
    whether their type is private, one of a brain's own.
    """
    group = _subject(crowd, subject)["voxels"]
    table = {c: d.asstr()[:] if d.dtype.kind == "O" else d[:] for c, d in group.items()}
    return pd.DataFrame(table).rename_axis("voxel")


def noiseless_responses(crowd: Crowd, subject: str) -> NDArray[np.float32]:
    """Noiseless responses to the test images, (n_images, n_voxels), rows as in
    `Subject.images("test")`.
    """
    return _subject(crowd, subject)["noiseless_responses"][:]


def scenes(crowd: Crowd) -> dict[str, Any]:
    """What was drawn on each image: image id -> {"place", "objects": [{"category", "x", "y",
    "size"}]}.
    """
    parts = [
        (g["id"].asstr()[:], g["description"].asstr()[:]) for g in _group(crowd)["scenes"].values()
    ]
    return {i: json.loads(t) for ids, texts in parts for i, t in zip(ids, texts, strict=True)}


def contents(crowd: Crowd) -> pd.DataFrame:
    """What is on the images, as columns to choose images by.

    Returns
    -------
    One row per image of the crowd file, booleans: a column for each category, for "none" (coloured
    noise), "indoor" and "outdoor". An image without a scene has none of them.
    """
    known, rows = scenes(crowd), []
    for image in crowd.image_ids:
        scene = known.get(image, {"place": "", "objects": []})
        on_it = {scene["place"], *(o["category"] for o in scene["objects"])}
        rows.append([what in on_it for what in (*CATEGORIES, *PLACES)])
    return pd.DataFrame(rows, columns=[*CATEGORIES, *PLACES])


def render_again(
    crowd: Crowd,
    image: str,
    instead: Mapping[int, str] | None = None,
    without_place: bool = False,
) -> tuple[NDArray[np.uint8], Scene]:
    """The scene of an image with objects left out or replaced, as its subjects would see it.

    This designs a stimulus: it tells nothing about any brain.

    Parameters
    ----------
    image : id of an image of the crowd file.
    instead, without_place : number of an object -> the category in its place, or "" for none; and
        whether to leave out indoor or outdoor. See `ubrain.data.simulate.scenes.render`.

    Returns
    -------
    (SIZE, SIZE, 3) pixels, and what is on them.
    """
    for name, group in _group(crowd)["scenes"].items():
        if image in group["id"].asstr()[:]:
            scanner, number = name.rsplit("-", 1)  # of the last subject of its simulation
            seed = _same_version(crowd, f"S{number}")["seed"]
            pixels, scene = render(seed, int(image.removeprefix("scene-")), instead, without_place)
            return shown(pixels[None], scanner)[0], scene
    raise UbrainError(f"no scene of image {image!r} in {crowd.path.name}")


def responses(
    crowd: Crowd,
    subject: str,
    pixels: NDArray[np.uint8],
    on_them: Sequence[Scene],
    maps: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Noiseless responses of a subject to any images, (n_images, n_voxels).

    Its brain is grown again from the settings in the file.

    Parameters
    ----------
    pixels : (n_images, SIZE, SIZE, 3), as its scanner shows them.
    on_them : what is on each image.
    maps : `energy_maps` of the pixels, to compute them once for several subjects.
    """
    found = _same_version(crowd, subject)
    config = SimulationConfig(**found["config"])
    brain = grow(config, found["seed"], found["number"], found["n_voxels"])
    brain.mean, brain.scale = _subject(crowd, subject)["signal_moments"][:]
    return brain.signals(pixels, list(on_them), maps)


def settings(crowd: Crowd, subject: str) -> dict[str, Any]:
    """How a subject was simulated: version, seed, number, config and the voxels asked for."""
    group = _subject(crowd, subject)
    found = json.loads(group["settings"].asstr()[()]) if "settings" in group else {"version": 0}
    return dict(found)


def _same_version(crowd: Crowd, subject: str) -> dict[str, Any]:
    """The settings, from which its brain can be grown again."""
    found = settings(crowd, subject)
    if found["version"] != VERSION:
        raise UbrainError(
            f"{crowd.path.name}: another version of ubrain has simulated subject {subject!r}; its"
            " brain cannot be grown again. Simulate the crowd again"
        )
    return found


def _subject(crowd: Crowd, subject: str) -> Any:
    if subject not in _group(crowd):
        raise UbrainError(
            f"no truth about subject {subject!r} in {crowd.path.name}: unknown, or recorded"
        )
    return _group(crowd)[subject]


def _group(crowd: Crowd) -> Any:
    if not crowd.simulated:
        raise UbrainError(
            f"{crowd.path.name} holds real recordings: nobody knows the truth about them"
        )
    return crowd.file["truth"]
