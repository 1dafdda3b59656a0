"""Dissimilarities of people's responses to images (RDMs), as in Algonauts 2019: patterns with
exactly that geometry take the place of voxels.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.crowdfile import content_digest
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import Folder, check_array, load_npz, npz_names, read_mat
from ubrain.data.importers.recording import (
    DEFAULTS,
    Images,
    Options,
    Recording,
    array_block,
    open_images,
    select,
)
from ubrain.errors import UbrainError
from ubrain.paths import regular

MAT, AREAS = "target_fmri.mat", ("EVC", "IT")
NPZ = re.compile(r"(?:fmri_)?(?P<area>\w+)_RDMs?\.npz", re.IGNORECASE)
KEYS = ("Net_RDM", "arr_0")
MOST_IMAGES = 2000  # (118)
NO_SESSIONS = "an RDM has no sessions, and its patterns stand in the units of its geometry"


def import_rdm(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    images: str | Path,
    dataset: str = "algonauts2019",
    test_fraction: float = 0.2,
    most_negative: float = 0.01,
) -> str:
    """Write patterns that have the geometry of RDMs into a crowd file, in float32.

    Parameters
    ----------
    root : folder that holds target_fmri.mat (EVC_RDMs, IT_RDMs), or fmri_EVC_RDMs.npz and
        fmri_IT_RDMs.npz, or other AREA_RDMs.npz: (n_subjects, n, n) each, 1 − correlation.
    out : crowd file to write (.h5).
    options : those that all importers share.
    images : folder of the n images, of which the order of names is that of the RDM's rows.
    dataset : name of the dataset, and the beginning of its subjects' names.
    test_fraction : share of test images, drawn by content.
    most_negative : refuse an RDM of which negative eigenvalues have a larger share in the sum of
        all, without sign: it is none of correlations.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, no RDM, or does not fit the images.
    """
    if not 0 <= most_negative <= 1:
        raise UbrainError(f"--most-negative {most_negative}: expected a share from 0 to 1")
    folder, pictures = Folder(root, options.follow_links), open_images(Path(images))
    if len(pictures.ids) > MOST_IMAGES:
        raise UbrainError(f"{images}: {len(pictures.ids)} images; expected {MOST_IMAGES} at most")
    seen: dict[str, str] = {}
    for i, name in enumerate(pictures.ids):
        first = seen.setdefault(content_digest(pictures.pixels(i)), name)
        if first != name:  # repeats would need responses that are z-scored
            raise UbrainError(
                f"{images}: {first!r} and {name!r} are the same image; average the responses to it"
                " before the RDM is computed, which has one row for each image"
            )
    found = _rdms(folder, len(pictures.ids))
    counts = {len(rdms) for rdms, _ in found.values()}
    if len(counts) > 1:
        raise UbrainError(f"{folder}: areas of {' and '.join(map(str, sorted(counts)))} subjects")
    names = [f"subj{i:02d}" for i in range(1, counts.pop() + 1)]
    recordings = [
        _recording(f"{dataset}-{name}", dataset, names.index(name), found, pictures, most_negative)
        for name in select(options.subjects, names, folder)
    ]
    settings = {"dataset": dataset, "most_negative": most_negative}
    exact = replace(options, dtype="float32", test_fraction=test_fraction)
    return import_recordings(recordings, out, exact, settings)


def _rdms(folder: Folder, n: int) -> dict[str, tuple[NDArray[np.float64], Path]]:
    """RDMs (n_subjects, n, n) of each area, and their files."""
    files, found = dict[str, Path](), {}
    for path in folder.glob("*.npz"):
        if match := NPZ.fullmatch(path.name):
            other = files.setdefault(match["area"], path)
            if other != path:
                raise UbrainError(
                    f"{folder}: {other.name} and {path.name} are both of {match['area']}; keep one"
                    " of them in the folder"
                )
    for area, path in files.items():
        regular(path)
        keys = [key for key in KEYS if key in npz_names(path)]
        if not keys:
            raise UbrainError(f"{path}: expected an array called {' or '.join(KEYS)}")
        found[area] = load_npz(path, keys[0]), path
    if not found:
        path = folder.need(MAT, "fmri_EVC_RDMs.npz")
        content = read_mat(path, [f"{area}_RDMs" for area in AREAS])
        found = {name.removesuffix("_RDMs"): (rdms, path) for name, rdms in content.items()}
        if not found:
            raise UbrainError(f"{path}: expected variables such as EVC_RDMs")
    return {area: (_checked(rdms, n, f"{p}: {area}"), p) for area, (rdms, p) in found.items()}


def _checked(rdms: NDArray, n: int, where: str) -> NDArray[np.float64]:
    """(n_subjects, n, n), whichever axis is that of the subjects."""
    if rdms.shape == (n, n):
        rdms = rdms[None]
    elif rdms.ndim == 3 and rdms.shape[1:] != (n, n) and rdms.shape[:2] == (n, n):
        rdms = np.moveaxis(rdms, 2, 0)
    check_array(rdms, f"{where}, with {n} images", "fiu", (None, n, n))
    rdms = rdms.astype(np.float64)
    if not np.isfinite(rdms).all():
        raise UbrainError(f"{where}: a dissimilarity is not a number, or infinite")
    turned = np.abs(rdms - rdms.swapaxes(1, 2)).max()
    diagonal = np.abs(np.diagonal(rdms, axis1=1, axis2=2)).max()
    if turned > 1e-4 or diagonal > 1e-4 or rdms.min() < -1e-4 or rdms.max() > 2 + 1e-4:
        raise UbrainError(
            f"{where}: expected symmetric dissimilarities 1 − correlation, from 0 (on the diagonal)"
            f" to 2; they go from {rdms.min():.3g} to {rdms.max():.3g}, differ by {turned:.3g} from"
            f" those of the other triangle, and reach {diagonal:.3g} on the diagonal"
        )
    return (rdms + rdms.swapaxes(1, 2)) / 2


def patterns_of(
    rdm: NDArray[np.float64], most_negative: float = 0.01
) -> tuple[NDArray[np.float64], float]:
    """Patterns (n, k) of which 1 − Pearson correlation over components is the RDM (n, n).

    1 − D is the Gram matrix of patterns of length 1, V diag(λ) Vᵀ, so X = V diag(√λ) has their
    geometry. Pearson's correlation centres each pattern over its components; so a component of
    zeros is added to X, and the axis that belongs to it is reflected to the direction of (1, ...,
    1), after which the components of each pattern sum to 0 and centring changes nothing. Patterns
    are multiplied by √k, so that the mean square of their components is 1.

    Returns
    -------
    The patterns, and the share of negative eigenvalues in the sum of all without sign. They are
    set to 0, and patterns made as long as the others again, which changes the geometry.

    Raises
    ------
    UbrainError
        If that share is above `most_negative`.
    """
    values, vectors = np.linalg.eigh(1 - rdm)
    negative = float(np.abs(values[values < 0]).sum() / np.abs(values).sum())
    if negative > most_negative:
        raise UbrainError(
            f"negative eigenvalues have a share of {negative:.3g}, more than {most_negative:g}: no"
            " patterns have these dissimilarities as 1 − correlation"
        )
    kept = np.flatnonzero(values > 1e-12 * values.max())[::-1]
    x = vectors[:, kept] * np.sqrt(values[kept])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = np.column_stack([x, np.zeros(len(x))])
    k = x.shape[1]
    axis = np.full(k, -1 / np.sqrt(k))
    axis[-1] += 1
    return (x - 2 * np.outer(x @ axis, axis) / (axis @ axis)) * np.sqrt(k), negative


def _recording(
    name: str,
    dataset: str,
    number: int,
    found: dict[str, tuple[NDArray[np.float64], Path]],
    pictures: Images,
    most_negative: float,
) -> Recording:
    parts, areas, account = [], list[str](), list[str]()
    for area, (rdms, path) in found.items():
        try:
            x, negative = patterns_of(rdms[number], most_negative)
        except UbrainError as error:
            raise UbrainError(f"{path}: {area} of {name}: {error}") from None
        normal = x / np.linalg.norm(x, axis=1, keepdims=True)
        off = np.abs(1 - normal @ normal.T - rdms[number]).max()
        account.append(
            f"{area}: {x.shape[1]} components in place of voxels, from the RDM in {path.name};"
            f" negative eigenvalues had a share of {negative:.2g}, and no dissimilarity changed by"
            f" more than {off:.2g}"
        )
        parts.append(x)
        areas += [area] * x.shape[1]
    account += [
        "1 − Pearson correlation over the components of an area is the RDM; only that is measured,"
        " components are not voxels, and their axes come from all images, test images included",
        "Responses are stored as float32, whatever --dtype says",
    ]
    files = list(dict.fromkeys(path for _, path in found.values()))
    values = np.concatenate(parts, axis=1).astype(np.float32)
    return Recording(
        name,
        dataset,
        "3T" if dataset == "algonauts2019" else "",
        "",
        pictures,
        pd.DataFrame({"image": np.arange(len(values)), "session": 0}),
        pd.DataFrame({"areas": areas}),
        [array_block("all images", values, files)],
        account,
        normalise="none",
        no_sessions=NO_SESSIONS,
    )
