"""Generic Object Decoding (Horikawa & Kamitani 2017): five subjects at 3T, from any of the three
forms it is handed out in.

original: Subject1.h5 or Subject1.mat, ...: BData with training, test and imagery in one file.
fmriprep: Subject1_ImageNetTraining.h5, Subject1_ImageNetTest.h5, ...: BData, preprocessed later.
npz: sbj_1.npz, ... and images_112.npz, as released with SelfSuperReconst (Gaziv et al. 2022).

BData is the file format of the Kamitani lab (BrainDecoderToolbox2, bdpy): a table of trials, and
what its columns mean. The images of the first two forms are sent on request; they are files named
n01443537_22563.JPEG.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.layouts import check_choice, join_areas, layout, npz_array, warn_absent
from ubrain.data.importers.masks import Selection
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    MAX_BYTES,
    SUFFIXES,
    Folder,
    area_name,
    check_array,
    check_size,
    check_voxels,
    hdf5_array,
    hdf5_names,
    hdf5_text,
    hdf5_texts,
    load_mat,
    load_npz,
    natural,
    npz_names,
    open_hdf5,
    read_lines,
    reading,
)
from ubrain.data.importers.recording import (
    DEFAULTS,
    PART_BYTES,
    Block,
    ImageArray,
    ImageFiles,
    Options,
    Part,
    Pictures,
    Recording,
    photograph_key,
    select,
)
from ubrain.errors import UbrainError
from ubrain.progress import log

GOD = layout("god")
TRAINING, PERCEPTION, IMAGERY = 1, 2, 3  # of a trial, in the column DataType


def import_god(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    images: str | Path | None = None,
    areas: str = "VC",
    release: str = "auto",
) -> str:
    """Write GOD subjects into a crowd file. Trials of imagery are left out.

    Responses are z-scored per run where runs are known, otherwise per session (training, test; as
    far as known their sessions); those of npz are z-scored already.

    Parameters
    ----------
    root : folder that holds the files of the subjects, directly or in subfolders.
    out : crowd file to write (.h5).
    options : those that all importers share.
    images : folder of the images, with subfolders; default: root.
    areas : whose voxels are wanted, separated by commas; "none": all voxels that the files have.
    release : "original", "fmriprep" or "npz"; "auto": the first of these that is there.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the others.
    """
    check_choice("release", release, ("auto", *GOD.releases))
    folder = Folder(root, options.follow_links)
    release, subjects = _subjects(folder, release)
    names = select(options.subjects, subjects, folder)
    warn_absent("files", GOD.subjects, subjects)
    if release == "npz":
        recordings = _npz_recordings(folder, {name: subjects[name] for name in names}, areas)
    else:
        shown = Folder(images, options.follow_links) if images is not None else folder
        index = _ImageIndex(folder)
        sets = {name: [_read_set(path, areas, index) for path in subjects[name]] for name in names}
        recordings = _bdata_recordings(sets, shown, release)
    if areas.lower() == "vc":
        for r in recordings:
            size, number = (len(r.trials),), int(r.name.removeprefix("god-S"))
            r.selected = [Selection(f"god {release}", "VC", number, size, len(r.voxels))]
    return import_recordings(
        recordings, out, options, {"dataset": "god", "release": release, "areas": areas}
    )


def _subjects(folder: Folder, release: str) -> tuple[str, dict[str, list[Path]]]:
    """The release, and the files of each subject: training before test, HDF5 before MATLAB."""
    found: dict[str, dict[str, list[Path]]] = {}
    for name, pattern in GOD.releases.items():
        for path in folder.search(pattern):
            if match := re.fullmatch(pattern, path.name, re.IGNORECASE):
                subject = f"S{int(match['subject'])}"
                found.setdefault(name, {}).setdefault(subject, []).append(path)
    there = list(found)
    if release == "auto" and len(there) > 1:
        log.warning(
            "several releases are there (%s); taking %s, others with --release",
            ", ".join(there),
            there[0],
        )
    chosen = release if release != "auto" else [*there, "original"][0]
    return chosen, {
        subject: _one_of_each(folder, files) for subject, files in found.get(chosen, {}).items()
    }


def _one_of_each(folder: Folder, files: list[Path]) -> list[Path]:
    tasks: dict[str, Path] = {}
    for path in sorted(files, key=lambda p: (p.suffix.lower(), natural(p))):  # .h5 before .mat
        task = "test" if "_imagenettest" in path.name.lower() else ""
        other = tasks.setdefault(task, path)
        if other != path and other.suffix.lower() == path.suffix.lower():
            raise UbrainError(
                f"{folder}: two files of one subject, {folder.name(other)} and {folder.name(path)};"
                " keep one of them in the folder"
            )
    return [tasks[task] for task in sorted(tasks)]


# --- BData


@dataclass
class BData:
    """An open file. `value` says, for a key, which columns belong to it, or a number for each of
    them.

    Parameters
    ----------
    path : the file.
    rows : (n_trials, n_columns), a dataset of an HDF5 file or an array.
    keys : of the columns.
    value : (n_keys, n_columns); NaN where a key says nothing about a column.
    labels : for a key, names of the numbers in its column.
    """

    path: Path
    rows: Any
    keys: list[str]
    value: Any
    labels: dict[str, dict[float, str]]

    def described(self, key: str) -> NDArray[np.float64]:
        """What a key says about each column, (n_columns,)."""
        return np.asarray(self.value[self.keys.index(key)], dtype=np.float64)

    def column(self, key: str) -> NDArray[np.float64] | None:
        """The one column of a key, (n_trials,), never rounded; None if there is none."""
        if key not in self.keys:
            return None
        (columns,) = np.nonzero(self.described(key) == 1)
        if len(columns) != 1:
            raise UbrainError(f"{self.path}: {key!r} has {len(columns)} columns, expected one")
        return np.asarray(self.rows[:, columns[0]], dtype=np.float64)


@contextmanager
def open_bdata(path: Path) -> Iterator[BData]:
    """Open a file of BData, HDF5 or MATLAB's version 5."""
    if path.suffix.lower() == ".mat":
        yield _mat_bdata(path)
        return
    with open_hdf5(path) as file:
        with reading(path, "BData"):
            names = hdf5_names(file)
            rows = hdf5_array(file, _first(path, names, "dataset", "dataSet"), "f", (None, None))
            meta = _first(path, names, "metadata", "metaData")
            keys = hdf5_texts(file, f"{meta}/key")
            value = hdf5_array(file, f"{meta}/value", "f", (len(keys), rows.shape[1]))
            _check_sizes(path, rows.shape, value.shape)
            labels = {key: _labels(file, key) for key in hdf5_names(file, "vmap")}
            data = BData(path, rows, keys, value[:], labels)
        yield data


def _mat_bdata(path: Path) -> BData:
    with reading(path, "a MATLAB file with dataSet and metaData"):
        if h5py.is_hdf5(path):
            raise UbrainError(
                f"{path} has been converted to MATLAB's version 7.3; get the published file again"
            )
        tables, descriptions = ("dataSet", "dataset"), ("metaData", "metadata")
        content = load_mat(
            path,
            dict.fromkeys(tables, MAX_BYTES) | dict.fromkeys(descriptions, GOD.max_description),
        )
        rows = content[_first(path, content, *tables)]
        meta = content[_first(path, content, *descriptions)][0, 0]
        keys = [str(np.squeeze(cell)).strip() for cell in meta["key"].reshape(-1)]
        check_array(rows, f"{path}: dataSet", "biuf", (None, None))
        value = check_array(
            meta["value"], f"{path}: metaData.value", "biuf", (len(keys), rows.shape[1])
        )
        _check_sizes(path, rows.shape, value.shape)
        return BData(path, rows, keys, value, {})


def _first(path: Path, there: Iterable[str], *names: str) -> str:
    found = [name for name in names if name in there]
    if not found:
        raise UbrainError(
            f"{path}: {' or '.join(map(repr, names))} is missing; found"
            f" {', '.join(sorted(there)[:12])}"
        )
    return found[0]


def _check_sizes(path: Path, rows: tuple[int, ...], value: tuple[int, ...]) -> None:
    if rows[0] > GOD.max_trials:
        raise UbrainError(
            f"{path}: {rows[0]} trials are too many to be what is expected here, up to"
            f" {GOD.max_trials}"
        )
    check_size(8 * value[0] * value[1], MAX_BYTES, f"{path}: {value} metadata")


def _labels(file: h5py.File, key: str) -> dict[float, str]:
    """Names of the numbers in a column."""
    numbers = hdf5_names(file, f"vmap/{key}")
    if len(numbers) > GOD.max_labels:
        raise UbrainError(
            f"{file.filename}: vmap/{key} has {len(numbers)} names, too many to be what is expected"
            " here"
        )
    return {float(n): hdf5_text(hdf5_array(file, f"vmap/{key}/{n}", "OS", ())) for n in numbers}


# ----------------------------------------------------------------------------------------------
# trials and voxels


@dataclass
class _Set:
    """The trials of one BData file in which an image of a known name was seen.

    Parameters
    ----------
    trials : row (in the file), name (of the image), kind, session and, if known, run.
    columns : of the file, (n_voxels,).
    voxels : their table.
    n_imagery, n_nameless : trials that are not in `trials`.
    """

    path: Path
    trials: pd.DataFrame
    columns: NDArray[np.int64]
    voxels: pd.DataFrame
    n_imagery: int
    n_nameless: int


def _read_set(path: Path, areas: str, index: "_ImageIndex") -> _Set:
    with open_bdata(path) as data, reading(path, "BData"):
        trials = pd.DataFrame({"row": np.arange(len(data.rows)), "kind": _kinds(data)})
        for column in ("session", "run"):
            values = data.column(column.capitalize())
            if values is not None:
                trials[column] = values
        trials = trials[trials["kind"] != IMAGERY].reset_index(drop=True)
        trials["name"] = _image_names(data, trials, index)
        n_imagery, n_nameless = len(data.rows) - len(trials), int((trials["name"] == "").sum())
        trials = trials[trials["name"] != ""].reset_index(drop=True)
        for column in {"session", "run"} & {*trials}:
            if not (trials[column] % 1 == 0).all():
                raise UbrainError(f"{path}: {column}: expected whole numbers")
        columns, voxels = _voxels(data, areas)
        return _Set(path, trials, columns, voxels, n_imagery, n_nameless)


def _kinds(data: BData) -> NDArray[np.int64]:
    """TRAINING, PERCEPTION or IMAGERY of each trial: from its column, or the file's name."""
    kinds = data.column("DataType")
    if kinds is None:
        match = re.fullmatch(GOD.releases["fmriprep"], data.path.name, re.IGNORECASE)
        if not match:
            raise UbrainError(
                f"{data.path}: 'DataType' is missing; found {', '.join(data.keys[:12])}"
            )
        return np.full(len(data.rows), PERCEPTION if match["task"].lower() == "test" else TRAINING)
    if not np.isin(kinds, (TRAINING, PERCEPTION, IMAGERY)).all():
        raise UbrainError(f"{data.path}: DataType: expected {TRAINING}, {PERCEPTION} or {IMAGERY}")
    return kinds.astype(np.int64)


def _image_names(data: BData, trials: pd.DataFrame, index: "_ImageIndex") -> list[str]:
    """Name of the image of each trial, such as n01443537_22563; empty where the file names none."""
    for key in GOD.image_columns:
        column = data.column(key)
        if column is None:
            continue
        values = column[trials["row"]]
        known, names = np.isfinite(values), np.full(len(values), "", dtype=object)
        if data.labels.get(key):
            names[known] = _labelled(data, key, values[known])
        elif key == "image_index":
            names[known] = index.names(data.path, trials["kind"].to_numpy()[known], values[known])
        else:
            names[known] = _names_of_ids(data.path, key, values[known])
        return names.tolist()
    raise UbrainError(
        f"{data.path}: nothing says which image was shown; expected one of"
        f" {', '.join(GOD.image_columns)}, found {', '.join(data.keys[:12])}"
    )


def _labelled(data: BData, key: str, values: NDArray[np.float64]) -> list[str]:
    labels = data.labels[key]
    if unknown := set(values.tolist()) - set(labels):
        raise UbrainError(
            f"{data.path}: {key} is {min(unknown):g} in some trial, for which vmap has no name"
        )
    return [_stem(labels[value]) for value in values.tolist()]


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name


def _names_of_ids(path: Path, key: str, ids: NDArray[np.float64]) -> list[str]:
    """Names of images from ids: 1443537.022563 is n01443537_22563, the nearest number with six
    decimals.

    This takes all 16 digits of a float64. A float32 has 7: of the 1200 training images it leaves
    150.
    """
    if len(ids) and (ids == ids.astype(np.float32)).all():
        raise UbrainError(
            f"{path}: {key} holds whole numbers, or has been rounded to float32, so it does not say"
            " which image was shown; expected numbers such as 1443537.022563. Get the file as"
            " published"
        )
    millionths = np.rint(ids * 1e6)
    if (np.abs(ids * 1e6 - millionths) > 0.1).any() or (ids < 1).any() or (ids >= 1e8).any():
        raise UbrainError(
            f"{path}: {key}: expected numbers such as 1443537.022563, a synset and six digits of an"
            " image"
        )
    synsets, images = np.divmod(millionths.astype(np.int64), 10**6)
    return [
        f"n{synset:08d}_{image}"
        for synset, image in zip(synsets.tolist(), images.tolist(), strict=True)
    ]


class _ImageIndex:
    """Names of images by their number in stimulus_ImageNet{Training,Test}.tsv."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._names = folder, dict[int, dict[float, str]]()

    def names(
        self, path: Path, kinds: NDArray[np.int64], numbers: NDArray[np.float64]
    ) -> list[str]:
        """For trials of the file `path`."""
        try:
            return [
                self._table(path, kind)[number]
                for kind, number in zip(kinds.tolist(), numbers.tolist(), strict=True)
            ]
        except KeyError as error:
            raise UbrainError(
                f"{path}: image number {error.args[0]:g} has no name in {self._folder}"
            ) from None

    def _table(self, path: Path, kind: int) -> dict[float, str]:
        if kind not in self._names:
            name = f"stimulus_ImageNet{'Test' if kind == PERCEPTION else 'Training'}.tsv"
            tables = self._folder.search(re.escape(name))
            if not tables:
                raise UbrainError(
                    f"{path} only has numbers of images; put {name}, which names them, into"
                    f" {self._folder}"
                )
            with reading(tables[0], "lines of name, id, category and number"):
                cells = [line.split("\t") for line in read_lines(tables[0])]
                self._names[kind] = {float(number): _stem(image) for image, _, _, number in cells}
        return self._names[kind]


def _voxels(data: BData, areas: str) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Columns of the voxels of some areas, and the table of these voxels."""
    if "VoxelData" not in data.keys:
        raise UbrainError(f"{data.path}: 'VoxelData' is missing; found {', '.join(data.keys[:12])}")
    member = {
        area_name(key.removeprefix("ROI_"), data.path): data.described(key) == 1
        for key in data.keys
        if key.startswith("ROI_")
    }
    columns = np.flatnonzero((data.described("VoxelData") == 1) & _wanted(data.path, areas, member))
    check_voxels(len(columns), data.path)
    table = pd.DataFrame(index=range(len(columns)))
    for name in "ijkxyz":
        key, whole = f"voxel_{name}", name in "ijk"
        values = data.described(key)[columns] if key in data.keys else np.array([np.nan])
        if np.isfinite(values).all() and not (whole and (values % 1).any()):
            table[name] = values.astype(np.int64) if whole else values
    table["areas"] = _area_names(
        data.path, {name: mask[columns] for name, mask in member.items()}, len(columns)
    )
    return columns, table


def _wanted(
    path: Path, areas: str, member: dict[str, NDArray[np.bool_]]
) -> NDArray[np.bool_] | bool:
    if areas.lower() == "none":
        return True
    chosen = []
    for area in areas.split(","):
        match = [
            name for name in member if name.lower() == area.strip().lower().removeprefix("roi_")
        ]
        if not match:
            raise UbrainError(
                f"{path}: no area {area.strip()!r}; found {', '.join(member) or 'none'}; --areas"
                " none takes all voxels"
            )
        chosen.append(member[match[0]])
    return np.any(chosen, axis=0)


def _area_names(path: Path, member: dict[str, NDArray[np.bool_]], n_voxels: int) -> list[str]:
    check_size(
        sum(int(mask.sum()) * (len(name) + 8) for name, mask in member.items()),
        MAX_BYTES,
        f"{path}: names of areas",
    )
    return join_areas(
        n_voxels,
        ((r, name) for name, mask in member.items() for r in np.flatnonzero(mask).tolist()),
    )


# -------------------------------------------------------------------------------------------
# recordings from BData


def _bdata_recordings(sets: dict[str, list[_Set]], shown: Folder, release: str) -> list[Recording]:
    trials = pd.concat([s.trials for subject in sets.values() for s in subject])
    names = sorted(set(trials["name"]), key=natural)
    pictures = Pictures(shown, [*names, *map(_padded, names)])
    files = {name: pictures.find(name, _padded(name)) for name in names}
    there = {name: path for name, path in files.items() if path is not None}
    if not there:
        raise UbrainError(
            f"{shown} has none of the {len(files)} images, such as {min(files)}.JPEG. Their owners "
            f"send them on request ({GOD.images_form}); name their folder with --images"
        )
    tested = set(trials.loc[trials["kind"] == PERCEPTION, "name"])
    images = ImageFiles(
        list(there.values()),
        [f"god-{name}" for name in there],
        ["test" if name in tested else "rest" for name in there],
        [photograph_key(name) for name in there],
    )
    number = {name: i for i, name in enumerate(there)}
    return [
        _bdata_recording(name, subject, images, number, release) for name, subject in sets.items()
    ]


def _padded(name: str) -> str:
    """The name with the number of the image in six digits."""
    synset, _, image = name.partition("_")
    return f"{synset}_{image.zfill(6)}"


def _bdata_recording(
    name: str, sets: list[_Set], images: ImageFiles, number: dict[str, int], release: str
) -> Recording:
    voxels = sets[0].voxels
    if not all(s.voxels.equals(voxels) for s in sets):
        raise UbrainError(f"{sets[1].path}: its voxels are not those of {sets[0].path.name}")
    shown = pd.concat([s.trials for s in sets], keys=range(len(sets)), names=["set"]).reset_index(
        "set"
    )
    absent = shown.loc[~shown["name"].isin(number), "name"]
    shown = shown[shown["name"].isin(number)].reset_index(drop=True)
    by_session = ["kind", "session"] if "session" in shown else ["kind"]
    trials = pd.DataFrame(
        {"image": shown["name"].map(number), "session": shown.groupby(by_session).ngroup() + 1}
    )
    if "run" in shown and shown["run"].notna().all():
        trials["run"] = shown["run"].astype(np.int64)
    blocks = [
        Block(s.path.name, len(rows), _reader(s.path, rows, s.columns), (s.path,))
        for i, s in enumerate(sets)
        if len(rows := shown.loc[shown["set"] == i, "row"].to_numpy(np.int64))
    ]
    seen = {TRAINING: "training images", PERCEPTION: "test images"}
    missing = [
        f"trials of {what}" for kind, what in seen.items() if not (shown["kind"] == kind).any()
    ]
    if len(absent):
        missing.append(
            f"{absent.nunique()} images, such as {absent.iloc[0]}; their {len(absent)} trials are"
            " left out, also where a run is z-scored"
        )
    account = [
        f"Responses as published ({release} release), nothing was scaled",
        "Test images: those of the perception test",
        *(
            f"{n} trials {what} were left out"
            for n, what in (
                (sum(s.n_imagery for s in sets), "of imagery"),
                (sum(s.n_nameless for s in sets), "of which the file does not name the image"),
            )
            if n
        ),
    ]
    space = "volume" if {"i", "x"} & {*voxels} else ""
    return Recording(
        f"god-{name}",
        "GOD",
        "3T",
        space,
        images,
        trials,
        voxels,
        blocks,
        account,
        missing,
        normalise="run" if "run" in trials else "session",
    )


def _reader(
    path: Path, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Callable[[], Iterator[Part]]:
    def read() -> Iterator[Part]:
        with open_bdata(path) as data, reading(path):
            step, done = max(1, PART_BYTES // (8 * data.rows.shape[1])), 0
            for start in range(int(rows[0]), int(rows[-1]) + 1, step):
                some = rows[(rows >= start) & (rows < start + step)]
                if len(some):
                    yield Part(data.rows[start : int(some[-1]) + 1][some - start][:, columns], done)
                    done += len(some)

    return read


# --- npz


def _npz_recordings(folder: Folder, subjects: dict[str, list[Path]], areas: str) -> list[Recording]:
    candidates = folder.search(r"images_\d+\.npz")
    if not candidates:
        raise UbrainError(
            f"{folder} has no images_112.npz, which belongs to the files sbj_1.npz, ..."
        )
    images, n_train = _npz_images(max(candidates, key=lambda path: natural(path.name)))
    return [
        _npz_recording(name, path, images, n_train, areas) for name, (path,) in subjects.items()
    ]


def _npz_images(path: Path) -> tuple[ImageArray, int]:
    """Images, those of training before those of the test, and the number of the former."""
    stacks = [
        npz_array(path, name, "uf", (None, None, None, 3))
        for name in ("train_images", "test_images")
    ]
    if stacks[0].shape[1:] != stacks[1].shape[1:]:
        raise UbrainError(
            f"{path}: training and test images differ in size, {stacks[0].shape[1:3]} and"
            f" {stacks[1].shape[1:3]}"
        )
    check_size(sum(stack.size for stack in stacks), MAX_BYTES, f"{path}: pictures of 8 bits")
    ids = [
        f"god-{split}{i:04d}"
        for split, s in zip(("train", "test"), stacks, strict=True)
        for i in range(len(s))
    ]
    splits = ["rest"] * len(stacks[0]) + ["test"] * len(stacks[1])
    with reading(path):
        pixels = np.stack([_eight_bits(path, image) for stack in stacks for image in stack])
    return ImageArray(pixels, ids, splits), len(stacks[0])


def _eight_bits(path: Path, image: NDArray) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return image
    if not (image.min() >= 0 and image.max() <= 1):
        raise UbrainError(
            f"{path}: expected images with values from 0 to 1, got {image.min():g} to"
            f" {image.max():g}"
        )
    return np.rint(image * 255).astype(np.uint8)


def _npz_recording(
    name: str, path: Path, images: ImageArray, n_train: int, areas: str
) -> Recording:
    shown, responses = [], []
    for what, labels, n in (
        ("arr_0", "arr_3", n_train),
        ("arr_1", "arr_4", len(images.ids) - n_train),
    ):
        values = npz_array(path, what, "f", (None, None))
        check_voxels(values.shape[1], f"{path}: {what!r}")
        if len(values) > GOD.max_trials:
            raise UbrainError(
                f"{path}: {what!r} has {len(values)} trials, too many to be what is expected here"
            )
        shown.append(_npz_labels(path, labels, len(values), n))
        responses.append(values)
    if responses[0].shape[1] != responses[1].shape[1]:
        raise UbrainError(
            f"{path}: {responses[0].shape[1]} voxels in training, {responses[1].shape[1]} in the"
            " test"
        )
    _compare_with_averages(path, responses[1], shown[1])
    member = _npz_masks(path, responses[0].shape[1])
    columns = np.flatnonzero(
        np.ones(responses[0].shape[1], dtype=bool) & _wanted(path, areas, member)
    )
    voxels = pd.DataFrame(
        {"areas": _area_names(path, {n: mask[columns] for n, mask in member.items()}, len(columns))}
    )
    trials = pd.DataFrame(
        {
            "image": np.concatenate([shown[0], shown[1] + n_train]),
            "session": np.repeat([1, 2], [len(s) for s in shown]),
        }
    )
    blocks = [
        Block(what, len(values), _npz_reader(path, array, columns), (path,))
        for what, array, values in zip(
            ("training", "test"), ("arr_0", "arr_1"), responses, strict=True
        )
    ]
    spread = float(
        np.nanmedian(np.asarray(responses[0][:, columns[:500]], dtype=np.float64).std(0))
    )
    account = [
        (
            "Responses as released with SelfSuperReconst, z-scored (the standard deviation over"
            f" the training images is {spread:.2f}, median over voxels); nothing was scaled. Its"
            " noise ceiling is not used, as its definition is not published"
        ),
        "Test images: those of the perception test",
        (
            "These images have no names, so photographs that other datasets have, too, are not"
            " recognised"
        ),
    ]
    return Recording(
        f"god-{name}", "GOD", "3T", "", images, trials, voxels, blocks, account, normalise="none"
    )


def _npz_labels(path: Path, name: str, n_trials: int, n_images: int) -> NDArray[np.int64]:
    """Number, from 0, of the image of each trial."""
    labels = npz_array(path, name, "iuf", (n_trials,))
    if not ((labels >= 0) & (labels < n_images) & (labels % 1 == 0)).all():
        raise UbrainError(f"{path}: {name!r}: expected numbers of images from 0 to {n_images - 1}")
    return labels.astype(np.int64)


def _compare_with_averages(path: Path, test: NDArray, labels: NDArray[np.int64]) -> None:
    """Check labels by the averages of the test trials of each image, which the file has, too."""
    shown, n_voxels = np.unique(labels), min(500, test.shape[1])
    published = npz_array(path, "arr_2", "f", (len(shown), test.shape[1]))[:, :n_voxels]
    own = np.stack(
        [np.asarray(test[labels == label, :n_voxels], dtype=np.float64).mean(0) for label in shown]
    )
    r = (
        np.corrcoef(own.ravel(), np.asarray(published, dtype=np.float64).ravel())[0, 1]
        if len(shown) > 1
        else 1
    )
    if r < 0.5:
        raise UbrainError(
            f"{path}: the averages of the test trials of each image are not those in the file (r ="
            f" {r:.2f}); trials or labels are out of order"
        )


def _npz_masks(path: Path, n_voxels: int) -> dict[str, NDArray[np.bool_]]:
    names = [name for name in npz_names(path) if not name.startswith("arr_")]
    check_size(len(names) * n_voxels, MAX_BYTES // 2, f"{path}: {len(names)} masks")
    masks = {n: npz_array(path, n, "biuf", (n_voxels,)) for n in names}
    return {
        area_name(name.removeprefix("ROI_"), path): np.asarray(mask) == 1
        for name, mask in masks.items()
    }


def _npz_reader(path: Path, name: str, columns: NDArray[np.int64]) -> Callable[[], Iterator[Part]]:
    def read() -> Iterator[Part]:
        with reading(path):
            values = load_npz(path, name)
            step = max(1, PART_BYTES // (values.shape[1] * values.dtype.itemsize))
            for start in range(0, len(values), step):
                yield Part(values[start : start + step][:, columns], start)

    return read
