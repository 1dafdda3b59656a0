"""A reader's own brain: recordings as plain arrays, from their files to scores, clusters and a map
(notebook 08).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain import paths, scores, transfer
from ubrain.analysis import baselines, clusters
from ubrain.analysis.clusters import Clustering
from ubrain.crowd import Crowd
from ubrain.data.importers.arrays import import_arrays
from ubrain.data.simulate import simulate_crowd
from ubrain.errors import UbrainError
from ubrain.exchange import maps
from ubrain.model import UniversalEncoder
from ubrain.predict import predict
from ubrain.report import figures
from ubrain.report.lab import RIDGE, Lab
from ubrain.report.studies import clustering

GRADIENT, MATCHING, OURS = list(figures.CONDITIONS)[4:7]
METHODS = {GRADIENT: "gradient", MATCHING: "matching", OURS: "ours"}
NAME = "you"  # of the new subject
SHARE = 3 / 8  # of the images that a subject of the simulated crowd has seen; you have fewer
# between the seed of the simulated crowd and that of the simulated newcomer: another brain, other
# images
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


def recording(
    lab: Lab, images: str | None = None, responses: str | None = None, **options: Any
) -> Recording:
    """The files to work on: those given, or, if there are none, those of a simulated newcomer,
    written for the occasion.

    Raises
    ------
    UbrainError
        If only one of images and responses is given, or an option is unknown.
    """
    unknown = sorted(set(options) - set(Recording.__dataclass_fields__))
    if unknown:
        raise UbrainError(
            f"unknown option {unknown[0]!r}; known are {', '.join(Recording.__dataclass_fields__)}"
        )
    if (images is None) != (responses is None):
        raise UbrainError(
            "images and responses belong together: give both, or neither for a simulated newcomer"
        )
    if images is None or responses is None:
        return simulated_files(lab)
    given = {k: v for k, v in options.items() if v not in (None, "")}
    places: dict[str, Any] = {
        k: Path(given.pop(k)) for k in ("trials", "voxels", "test_images") if k in given
    }
    return Recording(Path(images), Path(responses), **places, **given)


def simulated_files(lab: Lab) -> Recording:
    """Write the files that a newcomer of the simulated world would bring: fewer images than the
    crowd has seen.
    """
    part = lab.profile.simulation[0]
    size = replace(
        part,
        subjects=1,
        **{k: round(SHARE * n) for k in ("images", "test_images") if (n := getattr(part, k))},
    )
    folder = lab.out / "own_brain"
    folder.mkdir(parents=True, exist_ok=True)
    crowd = folder / "simulated.h5"
    with paths.atomic(crowd) as partial:
        simulate_crowd(partial, size, lab.seed + FAR)
    with Crowd(crowd) as opened:
        only = opened[opened.subjects[0]]
        np.save(folder / "images.npy", np.stack([opened.image(i) for i in opened.image_ids]))
        test = np.flatnonzero(np.isin(np.arange(len(opened.image_ids)), opened.split_rows("test")))
        (folder / "test_images.txt").write_text("\n".join(map(str, test)))
        only.voxels[["hemisphere", "vertex", "areas"]].to_csv(folder / "voxels.csv", index=False)
    with h5py.File(crowd) as file:
        group = file["subjects"][only.name]
        np.save(folder / "responses.npy", group["responses"][:])
        pd.DataFrame({c: group["trials"][c][:] for c in ("image", "session")}).to_csv(
            folder / "trials.csv", index=False
        )
    files: dict[str, Any] = {name: folder / f"{name}.csv" for name in ("trials", "voxels")}
    return Recording(
        folder / "images.npy",
        folder / "responses.npy",
        **files,
        test_images=folder / "test_images.txt",
        scanner=only.scanner,
        space=only.space,
    )


def file_table(files: Recording) -> pd.DataFrame:
    """One row per file: its name, and what is in it."""
    rows = []
    for role in ("images", "responses", "trials", "voxels", "test_images"):
        path = getattr(files, role)
        if path is not None:
            rows.append({"file": role, "name": path.name, "holds": _contents(path)})
    return pd.DataFrame(rows).set_index("file")


def _contents(path: Path) -> str:
    if path.is_dir():
        return f"{sum(1 for _ in path.iterdir())} files"
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return f"{array.dtype} {array.shape}"
    with path.open(encoding="utf-8") as lines:
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
    with paths.atomic(out) as partial:
        import_arrays(
            files.images,
            files.responses,
            NAME,
            partial,
            scanner=files.scanner,
            space=files.space,
            trials=files.trials,
            voxels=files.voxels,
            test_images=files.test_images,
            test_fraction=files.test_fraction,
            transpose=files.transpose,
            bad_voxels="drop",
        )
    mine = Lab(lab.notebook, str(out), lab.profile.name, lab.seed)
    mine.records, mine.out = lab.records, lab.out
    return mine


def join(lab: Lab, mine: Lab, subjects: list[str]) -> tuple[UniversalEncoder, pd.DataFrame]:
    """Find embeddings for the new voxels by each method, on the frozen encoder of a crowd.

    Returns
    -------
    The crowd's encoder with one more subject for each method, named after it; and a table: method,
    chosen, held_out_r, the mean correlation on held-out images of the few, by which it was chosen.
    """
    encoder, n_voxels, rows = copy.deepcopy(lab.encoder(subjects)), mine.crowd[NAME].n_voxels, []
    crowd = copy.deepcopy(encoder)
    for condition, method in METHODS.items():
        found = transfer.fit(
            crowd, mine.source, NAME, method=method, config=lab.profile.transfer, seed=lab.seed
        )
        encoder.add_subject(method, n_voxels)
        encoder.subject(method).data = found.embeddings.to(encoder.position.device)
        if found.rest is not None:
            encoder.rests[method] = found.rest.to(encoder.position.device)
        lab.record("held_out_r", found.validation, condition, NAME, n=n_voxels, unit="r")
        rows.append({"method": condition, "chosen": found.chosen, "held_out_r": found.validation})
    return encoder, pd.DataFrame(rows).set_index("method")


def predictions(mine: Lab, encoder: UniversalEncoder) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Predicted test responses, by ridge regression on these recordings alone and by each method
    of transfer.
    """
    rows = mine.crowd[NAME].image_rows("test")
    ridge = baselines.ridge(
        mine.crowd[NAME], mine.features, mine.profile.baselines, mine.seed
    ).predicted
    found = {RIDGE: {NAME: ridge}}
    for condition, method in METHODS.items():
        found[condition] = {NAME: predict(encoder, mine.source, method, rows)}
    return found


def crowd_clusters(lab: Lab, encoder: UniversalEncoder) -> Clustering:
    """The crowd's voxels in clusters with names, as in notebook 05."""
    embeddings, voxels = clustering.gather(lab, encoder)
    _, count = clustering.choose_count(lab, embeddings)
    found = clusters.kmeans(
        clustering.pooled(embeddings), count, lab.profile.clusters.restarts, lab.seed
    )
    rows = clustering.test_rows(lab)
    (responses,) = clustering.profiles(lab, encoder, [found.labels], rows)
    return clustering.evidence(lab, found, voxels, responses, rows)[0]


def cluster_table(lab: Lab, crowd: Clustering, labels: NDArray[np.int64]) -> pd.DataFrame:
    """Share of the voxels in each cluster, of the newcomer, whose clusters are `labels`, and of the
    crowd; recorded.

    Returns
    -------
    One row per cluster: crowd, least and most (of its subjects), and the newcomer's.
    """
    owner = np.repeat(lab.subjects, [lab.crowd[s].n_voxels for s in lab.subjects])
    of_each = np.stack([_shares(crowd.labels[owner == s], crowd.n_clusters) for s in lab.subjects])
    mine = _shares(labels, crowd.n_clusters)
    table = pd.DataFrame(
        {
            "cluster": crowd.titles,
            "crowd": crowd.sizes / crowd.sizes.sum(),
            "least": of_each.min(0),
            "most": of_each.max(0),
            NAME: mine,
        }
    )
    for title, share in zip(crowd.titles, mine, strict=True):
        lab.record(f"share of cluster {title}", share, OURS, NAME, n=len(labels), unit="share")
    return table.set_index("cluster")


def _shares(labels: NDArray[np.int64], n_clusters: int) -> NDArray[np.float64]:
    return np.bincount(labels, minlength=n_clusters) / len(labels)


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
    place, grid = mine.out / "own_brain", Path(reference) if reference else None
    try:
        write = maps.writer(place / f"maps{suffix}", voxels, subject.space, content.dtype, grid)
        return write(content), "the places of the voxels are not known" if suffix == ".npz" else ""
    except UbrainError as error:
        return maps.writer(place / "maps.npz", voxels, subject.space, content.dtype)(content), str(
            error
        )


def gain_table(mine: Lab, found: Mapping[str, Mapping[str, NDArray]]) -> pd.DataFrame:
    """Paired gains of our transfer over the paper's and over ridge, with 95 % intervals; recorded,
    see `Lab.gain_table`.
    """
    return mine.gain_table(found, OURS, over=(GRADIENT, RIDGE)).drop(columns="subject")


def verdict(
    lab: Lab,
    mine: Lab,
    table: pd.DataFrame,
    gains: pd.DataFrame,
    by_area: pd.DataFrame,
    shares: pd.DataFrame,
) -> str:
    """What transfer brought to these recordings, in words.

    Parameters
    ----------
    table, gains, by_area, shares : from `Lab.score_table`, `gain_table`, `Lab.area_table` and
        `cluster_table`.
    """
    median = table.set_index("condition")["median_r"]
    ceiling = mine.ceiling_r(NAME)
    n = len(np.concatenate([mine.crowd[NAME].image_rows(s) for s in ("train", "val")]))
    lines = [
        f"{n} images, {mine.crowd[NAME].n_voxels} voxels; crowd: {lab.crowd_name}",
        *(f"median r, {condition}: {value:.3f}" for condition, value in median.items()),
    ]
    if np.isfinite(ceiling).any():
        lines.append(f"median noise ceiling: {np.nanmedian(ceiling):.3f}")
    for g in gains.itertuples():
        for what, value, low, high in (
            ("median r", g.gain, g.low, g.high),
            ("top-1", g.top1_gain, g.top1_low, g.top1_high),
        ):
            says = "better" if low > 0 else "worse" if high < 0 else "not told apart"
            lines.append(
                f"{OURS} minus {g.over}, {what}: {value:+.3f} [{low:+.3f}, {high:+.3f}]: {says}"
            )
    if len(by_area):
        r = by_area.pivot(index="area", columns="condition", values="median_r").reindex(
            by_area["area"].unique()
        )
        for of, over in ((OURS, RIDGE), (GRADIENT, RIDGE), (OURS, GRADIENT)):
            below = (r[of] - r[over])[r[of] < r[over]]
            where = ": " * bool(len(below)) + ", ".join(
                f"{area} {by:+.3f}" for area, by in below.items()
            )
            lines.append(
                f"{of} is below {over} in {len(below)} of {len(r)} areas (medians, without"
                f" intervals){where}"
            )
    outside = shares[(shares[NAME] < shares["least"]) | (shares[NAME] > shares["most"])]
    lines.append(
        f"shares of clusters outside of the range of the crowd's subjects: {len(outside)} of"
        f" {len(shares)}"
        + "".join(
            f"; {title} {row[NAME]:.1%}, crowd {row['least']:.1%} to {row['most']:.1%}"
            for title, row in outside.iterrows()
        )
    )
    return "\n".join(lines)


def voxel_maps(
    mine: Lab, found: Mapping[str, Mapping[str, NDArray]], labels: NDArray[np.int64]
) -> dict[str, NDArray]:
    """Numbers worth a map: correlation of the transferred voxels, the ceiling where known, and the
    cluster (from 1).
    """
    ceiling = mine.ceiling_r(NAME)
    table = {
        "r": scores.correlation(found[OURS][NAME], mine.measured(NAME)),
        "cluster": labels + 1.0,
    }
    return table | ({"ceiling_r": ceiling} if np.isfinite(ceiling).any() else {})
