"""A reader's own brain: recordings as plain arrays, from their files to scores, clusters and a map
(notebook 08).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain import paths, scores
from ubrain.analysis import clusters
from ubrain.analysis.clusters import Clustering
from ubrain.crowd import SPLITS, Crowd
from ubrain.data.importers.arrays import import_arrays
from ubrain.errors import UbrainError
from ubrain.exchange import maps
from ubrain.model import UniversalEncoder
from ubrain.report.lab import Lab, simulated_crowd
from ubrain.report.studies import clustering
from ubrain.report.studies.newcomers import OURS

NAME = "you"  # of the new subject
SHARE = 3 / 8  # of the images that a subject of the simulated crowd has seen; you have fewer
# from the seed of the simulated crowd to that of the newcomer: another brain, other images
FAR = 1_000_000


@dataclass(frozen=True)
class Recording:
    """Files of one subject, as `ubrain import arrays` takes them; see
    `ubrain.data.importers.arrays.import_arrays`.
    """

    images: Path
    responses: Path
    trials: Path | None = None
    voxels: Path | None = None
    test_images: Path | None = None
    transpose: bool = False
    test_fraction: float = 0.2
    scanner: str = ""
    space: str = ""
    schemes: Path | None = None
    val_fraction: float = 0.1
    normalise: str = "auto"
    image_source: str = ""
    images_may_be_shown: bool = False


def recording(
    lab: Lab,
    images: str | None = None,
    responses: str | None = None,
    *,
    trials: str | None = None,
    voxels: str | None = None,
    test_images: str | None = None,
    transpose: bool = False,
    test_fraction: float = 0.2,
    scanner: str = "",
    space: str = "",
) -> Recording:
    """The files to work on: those given, or, if there are none, written for the occasion those of
    a simulated newcomer, or of the last subject of recordings, who leaves `lab.subjects`.

    Raises
    ------
    UbrainError
        If only one of images and responses is given.
    """
    if (images is None) != (responses is None):
        raise UbrainError(
            "images and responses belong together: give both, or neither for a made-up newcomer"
        )
    if images is None or responses is None:
        return simulated_files(lab) if lab.crowd.simulated else left_out_files(lab)
    return Recording(
        Path(images),
        Path(responses),
        Path(trials) if trials else None,
        Path(voxels) if voxels else None,
        Path(test_images) if test_images else None,
        transpose,
        test_fraction,
        scanner,
        space,
    )


def simulated_files(lab: Lab) -> Recording:
    """Write the files that a newcomer of the simulated world would bring: fewer images than the
    crowd has seen.
    """
    part = lab.profile.simulation[0]
    fewer = {k: round(SHARE * n) for k in ("images", "test_images") if (n := getattr(part, k))}
    alone = replace(lab.profile, simulation=(replace(part, subjects=1, **fewer),))
    with Crowd(simulated_crowd(alone, lab.seed + FAR)) as crowd:
        return write_files(crowd, crowd.subjects[0], lab.out / "own_brain")


def left_out_files(lab: Lab) -> Recording:
    """Write the files that the last subject would bring, if it were not in the crowd; it is no
    longer among `lab.subjects`.

    Raises
    ------
    UbrainError
        If there is one subject only.
    """
    if len(lab.subjects) < 2:
        raise UbrainError(
            f"{lab.crowd_name} has one subject, and no crowd to join: give images and responses"
        )
    name = lab.subjects.pop()
    files = write_files(lab.crowd, name, lab.out / "own_brain")
    drawn = lab.crowd[name].settings  # a lower draw is test, the next val: so its splits stay
    share = drawn.get("test_fraction", 0.0) + drawn.get("val_fraction", files.val_fraction)
    if lab.crowd.scheme:
        path = files.images.with_name("schemes.csv")
        split_table(lab.crowd, name).to_csv(path, index=False)
        files = replace(files, schemes=path)
    return replace(files, val_fraction=share)


def split_table(crowd: Crowd, name: str) -> pd.DataFrame:
    """Split of every image that a subject has seen, by the scheme of the crowd, as `ubrain import
    arrays --schemes` takes it; images by their row in `images.npy`.
    """
    rows = np.unique(crowd[name].trials.image)
    table = pd.DataFrame({"image": np.arange(len(rows)), crowd.scheme: ""})
    for split in SPLITS:
        table.loc[np.isin(rows, crowd.split_rows(split)), crowd.scheme] = split
    return table


def write_files(crowd: Crowd, name: str, folder: Path) -> Recording:
    """Write a subject of a crowd file as arrays and tables: all trials, as measured."""
    folder.mkdir(parents=True, exist_ok=True)
    subject, group = crowd[name], crowd.file[f"subjects/{name}"]
    rows, image = np.unique(subject.trials.image, return_inverse=True)  # image: row in images.npy
    np.save(folder / "images.npy", np.stack(crowd.pixels(rows)))
    np.save(folder / "responses.npy", group["responses"][:])
    is_test = np.isin(rows, crowd.split_rows("test"))
    np.savetxt(folder / "test_images.txt", np.flatnonzero(is_test), fmt="%d")
    trials = pd.DataFrame({"image": image, "session": subject.trials.session})
    trials.to_csv(folder / "trials.csv", index=False)
    known = [c for c in ("hemisphere", "vertex", "i", "j", "k", "areas") if c in subject.voxels]
    subject.voxels[known].to_csv(folder / "voxels.csv", index=False)
    return Recording(
        folder / "images.npy",
        folder / "responses.npy",
        folder / "trials.csv",
        folder / "voxels.csv",
        folder / "test_images.txt",
        scanner=subject.scanner,
        space=subject.space,
        # what is not to be z-scored (patterns of an RDM, averages) stays as it is
        normalise="none" if subject.trials.normalise == "none" else "auto",
        image_source=crowd.image_source,
        images_may_be_shown=crowd.images_may_be_shown,
    )


def file_table(files: Recording) -> pd.DataFrame:
    """One row per file: its name, and what is in it."""
    given = {role: path for role, path in asdict(files).items() if isinstance(path, Path)}
    rows = [[role, path.name, contents(path)] for role, path in given.items()]
    return pd.DataFrame(rows, columns=["file", "name", "holds"]).set_index("file")


def contents(path: Path) -> str:
    """What is in a folder, an array, a table or a list: how many files, which shape, how long."""
    if path.is_dir():
        return f"{sum(1 for _ in path.iterdir())} files"
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return f"{array.dtype} {array.shape}"
    with path.open(encoding="utf-8-sig") as lines:
        first, rest = next(lines, "").strip(), sum(1 for _ in lines)
    return f"{rest} rows of {first}" if path.suffix == ".csv" else f"{rest + 1} lines"


def bring(lab: Lab, files: Recording) -> Lab:
    """Import the files into a crowd file of their own, and open it with a workbench that shares
    this notebook's records.

    Raises
    ------
    UbrainError
        If the files do not fit together; see `ubrain.data.importers.arrays.import_arrays`.
    """
    out = lab.out / "own_brain" / "crowd.h5"
    options = {f: getattr(files, f) for f in files.__dataclass_fields__}
    images, responses = options.pop("images"), options.pop("responses")
    with paths.atomic(out) as partial:
        import_arrays(images, responses, NAME, partial, bad_voxels="drop", **options)
    scheme = lab.split_scheme if files.schemes else None
    mine = Lab(lab.notebook, str(out), lab.profile.name, lab.seed, None, scheme)
    mine.records, mine.out = lab.records, lab.out
    return mine


def crowd_clusters(lab: Lab, encoder: UniversalEncoder) -> Clustering:
    """The crowd's voxels in clusters with names, as in notebook 05."""
    embeddings, voxels = clustering.gather(lab, encoder)
    _, count = clustering.choose_count(lab, embeddings)
    everyone, restarts = clustering.pooled(embeddings), lab.profile.clusters.restarts
    found, rows = clusters.kmeans(everyone, count, restarts, lab.seed), clustering.test_rows(lab)
    responses = clustering.mean_responses(lab, encoder, found.labels, rows)
    return clustering.evidence(lab, found, voxels, responses, rows)[0]


def cluster_table(lab: Lab, crowd: Clustering, labels: NDArray[np.int64]) -> pd.DataFrame:
    """Share of the voxels in each cluster, of the newcomer, whose clusters are `labels`, and of the
    crowd; recorded.

    Returns
    -------
    One row per cluster: crowd, least and most (of its subjects), the newcomer's, and whether that
    is outside of the range of the crowd's subjects.
    """
    owner = np.repeat(lab.subjects, [lab.crowd[s].n_voxels for s in lab.subjects])
    of_each = pd.crosstab(crowd.labels, owner, normalize="columns").to_numpy()
    mine = np.bincount(labels, minlength=crowd.n_clusters) / len(labels)
    for title, share in zip(crowd.titles, mine, strict=True):
        lab.record(f"share of cluster {title}", share, OURS, NAME, n=len(labels), unit="share")
    columns = {
        "crowd": crowd.sizes / crowd.sizes.sum(),
        "least": of_each.min(1),
        "most": of_each.max(1),
        NAME: mine,
    }
    table = pd.DataFrame(columns, index=pd.Index(crowd.titles, name="cluster"))
    return table.assign(outside=(mine < table["least"]) | (mine > table["most"]))


def export(
    mine: Lab, values: Mapping[str, NDArray], reference: str | None = None
) -> tuple[list[Path], str]:
    """Write numbers of voxels as maps: GIFTI for a surface, NIfTI for a volume with a reference,
    else a NumPy archive.

    Parameters
    ----------
    values : name of the map -> (n_voxels,).
    reference : a NIfTI file on the grid of the voxels' i, j, k.

    Returns
    -------
    The files, and why they are not maps, if they are not.
    """
    subject = mine.crowd[NAME]
    voxels = subject.voxels.reset_index(drop=True)
    voxels.insert(0, "voxel", np.arange(len(voxels)))
    facts = {"format": "ubrain-maps", "subject": NAME, "space": subject.space}
    rows = np.stack([np.asarray(v, np.float32) for v in values.values()])
    content = maps.Responses(
        list(values), voxels, np.dtype(np.float32), facts, lambda: iter([rows])
    )
    suffix = ".nii.gz" if reference else ".func.gii" if "vertex" in voxels else ".npz"
    place = mine.out / "own_brain"

    def write(name: str, grid: Path | None = None) -> list[Path]:
        return maps.writer(place / name, voxels, subject.space, content.dtype, grid)(content)

    try:
        written = write(f"maps{suffix}", Path(reference) if reference else None)
    except UbrainError as error:
        return write("maps.npz"), str(error)
    return written, "the places of the voxels are not known" if suffix == ".npz" else ""


def voxel_maps(
    mine: Lab, found: Mapping[str, Mapping[str, NDArray]], labels: NDArray[np.int64]
) -> dict[str, NDArray]:
    """Numbers worth a map, (n_voxels,) each: correlation of the transferred voxels, cluster (from
    1), and the ceiling where known.
    """
    r = scores.correlation(found[OURS][NAME], mine.measured(NAME))
    ceiling = mine.ceiling_r(NAME)
    table = {"r": r, "cluster": labels + 1.0}
    return {**table, "ceiling_r": ceiling} if np.isfinite(ceiling).any() else table
