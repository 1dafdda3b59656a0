"""Anybody's single-trial betas: BIDS derivatives with a table of trials each, or outputs of
GLMsingle.

BIDS has no settled names for single-trial betas; read are `*_stat-effect*_statmap`, `*_betas` and
`*_betaseries`, as .nii, .nii.gz, .dscalar.nii or one .func.gii per hemisphere, with one volume per
trial, and `*_trials`, `*_conditions` or `*_events` (.tsv, .csv) of the same entities, with one row
per volume. Of GLMsingle: TYPED_FITHRF_GLMDENOISE_RR (or B, C) and DESIGNINFO as HDF5 or MATLAB
files, with a list of the images of the conditions. Nothing is taken for granted that files can
say: what was matched with what is in the account, before anything is written (`dry_run`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.betas import (
    Betas,
    cifti_betas,
    fill,
    gifti_betas,
    glmsingle_betas,
    label_names,
    map_on,
    refuse_pickle,
    volume_betas,
)
from ubrain.data.importers.layouts import check_choice, join_areas
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    SUFFIXES,
    Folder,
    check_voxels,
    entries,
    natural,
    read_lines,
    read_mat,
    read_table,
    whole_labels,
    whole_numbers,
)
from ubrain.data.importers.recording import (
    DEFAULTS,
    Block,
    ImageFiles,
    Options,
    Pictures,
    Recording,
    complete,
    photograph_key,
    select,
    some_trials,
)
from ubrain.errors import MissingError, UbrainError, some

BETAS = r"(?:.*_)?(?:stat-effect(?:_.*)?_statmap|betas?|betaseries)"
BETAS += r"\.(?:nii|nii\.gz|func\.gii|dscalar\.nii)"
TABLES = ("trials", "conditions", "events")  # those before others
RECORDED = ("ses", "task", "acq", "ce", "dir", "rec", "run", "echo")  # others: how it was processed
STEMS = {"B": "TYPEB_FITHRF", "C": "TYPEC_FITHRF_GLMDENOISE", "D": "TYPED_FITHRF_GLMDENOISE_RR"}
FORMATS = (".hdf5", ".h5", ".mat", ".npy")
LISTED = 24  # pieces in the account
NOTHING = ("", "n/a", "na", "nan", "none", "null")


@dataclass(frozen=True)
class _Run:
    """Betas and what was shown: `table` has a row per trial and columns of text, some of which name
    the image; sessions and, if known, runs are one text per row.
    """

    label: str
    betas: Betas
    table: pd.DataFrame
    table_name: str
    sessions: Sequence[str]
    runs: Sequence[str] | None
    space: str = ""
    said: str = ""
    sources: tuple[Path, ...] = ()  # files that say which image was shown


def import_bids(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    images: str | Path | None = None,
    image_column: str = "",
    entities: str = "",
    type: str = "D",
    stimuli: str | Path = "",
    first_condition: int | None = None,
    mask: str | Path = "",
    atlas: str | Path = "",
    test_images: str | Path | None = None,
    test_fraction: float = 0.1,
    dataset: str = "bids",
    scanner: str = "",
) -> str:
    """Write subjects with single-trial betas into a crowd file.

    Paths may have {subject} (sub-01) in them and, of surfaces, {hemi} (L, R).

    Parameters
    ----------
    root : folder with betas in BIDS derivatives and their tables of trials, or with outputs of
        GLMsingle, at any depth.
    out : crowd file to write (.h5).
    options : those that all importers share.
    images : folder of the images, with subfolders; default: root.
    image_column : column of the tables of trials that names the image; default: the only one whose
        values all name files in the folder of images.
    entities : what names of files of betas must have, where there are several versions, such as
        "space-T1w,task-images".
    type : of GLMsingle's models: B, C or D.
    stimuli : file with the image of each condition of GLMsingle, in their order: .txt with a name a
        line, or .csv or .tsv with a header.
    first_condition : number of the first condition in GLMsingle's stimorder, 0 or 1; default: what
        fits the list, if one of them does.
    mask : file whose values above 0 are the voxels; default: all.
    atlas : files of labels, separated by commas, with their names beside them as .tsv, .csv, .ctab,
        .txt or .json.
    test_images : text file, one image name a line; default: a share of them.
    test_fraction : share of test images, drawn by their content, if none are listed.
    dataset : name of the dataset.
    scanner : for example 3T.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If files are missing, damaged or do not fit together, or if it is not clear what is meant.
    """
    check_choice("type", type, STEMS)
    if first_condition not in (None, 0, 1):
        raise UbrainError(f"--first-condition {first_condition}: expected 0 or 1")
    folder = Folder(root, options.follow_links)
    outputs, found = _outputs(folder, STEMS[type]), _derivatives(folder, entities)
    if outputs and not stimuli:
        more = " (or a folder without these outputs)" if found else ""
        raise UbrainError(
            f"{folder}: for GLMsingle's outputs, --stimuli FILE is missing: the image of each"
            f" condition{more}"
        )
    if stimuli and found and not outputs:
        raise UbrainError(f"{folder}: --stimuli is for outputs of GLMsingle, which are not there")
    describe: Callable[[str], list[_Run]]
    if outputs:
        describe = partial(_glmsingle_runs, folder, outputs, str(stimuli), first_condition)
    else:
        tables = folder.search(rf"(?:.*_)?(?:{'|'.join(TABLES)})\.(?:tsv|csv)")
        describe = partial(_bids_runs, folder, found, tables)
    others = [folder.name(p) for p in folder.search(r".*(\.nii(\.gz)?|\.gii|\.npy|\.hdf5|\.mat)")]
    names = select(options.subjects, outputs or found, folder, others)
    runs = complete(names, options.subjects, describe)
    shown = Folder(images, options.follow_links) if images is not None else folder
    column, source, said = _match_images(runs, shown, image_column)
    if test_images:
        names = read_lines(Path(test_images))
        listed = {source.find(name) for name in names}
        source.splits = ["test" if file in listed else "rest" for file in source.files]
        if not (n_test := source.splits.count("test")):
            raise UbrainError(f"{test_images}: no image that was shown is listed")
        said += f". Test images: {n_test} of {len(names)} in {Path(test_images).name} were shown"
    recordings = []
    for name, mine in runs.items():
        of_subject = partial(fill, subject=name)
        voxels, places, where = _voxels(
            mine[0].betas, of_subject(str(mask)), of_subject(str(atlas))
        )
        trials, blocks, counted = _trials(name, mine, column, source, places)
        recordings.append(
            Recording(
                f"{dataset}-{name}",
                dataset,
                scanner,
                mine[0].space,
                source,
                trials,
                voxels,
                blocks,
                [*counted, said, *where],
            )
        )
    settings = {"dataset": dataset, "image_column": column, "type": type, "entities": entities}
    options = replace(options, test_fraction=0 if test_images else test_fraction)
    return import_recordings(recordings, out, options, {**settings, "mask": bool(mask)})


# --- BIDS derivatives


def _entities(folder: Folder, path: Path) -> dict[str, str]:
    """Entities in the name of a file, and subject and session also in those of its folders."""
    pairs = re.findall(r"(?:^|_)([a-z]+)-([a-z0-9+]+)", path.name, re.IGNORECASE)
    above = re.findall(r"(?:^|/)(sub|ses)-([a-z0-9+]+)(?=/)", folder.name(path), re.IGNORECASE)
    return {key.lower(): value for key, value in [*above, *pairs]}


def _plain(value: str) -> str:
    """An entity's value for comparisons: 01 is 1, in any case."""
    return str(int(value)) if value.isdecimal() else value.lower()


def _derivatives(folder: Folder, wanted: str) -> dict[str, list[dict[str, Any]]]:
    """Recorded pieces of each subject in their order: files by hemisphere, and entities."""
    pairs = [text.strip().lower().split("-", 1) for text in wanted.split(",") if text.strip()]
    if not all(len(pair) == 2 for pair in pairs):
        raise UbrainError(f"--entities {wanted}: expected such as space-T1w,task-images")
    found: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {}
    versions: dict[str, set[str]] = {}
    for path in folder.search(BETAS):
        has = _entities(folder, path)
        if "sub" not in has or any(_plain(has.get(k, "")) != _plain(v) for k, v in pairs):
            continue
        subject, hemi = f"sub-{has['sub']}", has.get("hemi", "").upper()
        key = tuple(_plain(has.get(k, "")) for k in RECORDED)
        left = {k: v for k, v in has.items() if k not in ("sub", "hemi", *RECORDED)}
        versions.setdefault(subject, set()).add(",".join(f"{k}-{v}" for k, v in left.items()))
        piece = found.setdefault(subject, {}).setdefault(key, {"files": {}, "entities": has})
        other = piece["files"].setdefault(hemi, path)
        if other != path and len(versions[subject]) == 1:
            raise UbrainError(
                f"{folder}: {folder.name(other)} and {folder.name(path)} are the same betas; keep"
                " one of them in the folder"
            )
    for subject, seen in versions.items():
        if len(seen) > 1:
            raise UbrainError(
                f"{folder}: betas of {subject} are there in several versions: {some(seen)}; choose"
                " with --entities"
            )
    return {s: [mine[key] for key in sorted(mine, key=natural)] for s, mine in found.items()}


def _bids_runs(
    folder: Folder, found: dict[str, list[dict[str, Any]]], tables: list[Path], subject: str
) -> list[_Run]:
    runs = []
    for piece in found[subject]:
        files, has = piece["files"], piece["entities"]
        label = " ".join(f"{k}-{has[k]}" for k in RECORDED if k in has) or subject
        path = _table_of(folder, next(iter(files.values())), has, tables)
        table = read_table(path, None, "\t" if path.suffix.lower() == ".tsv" else ",")
        n = len(table)
        sessions = [has["ses"]] * n if "ses" in has else list(table.get("session", [""] * n))
        numbers = [has["run"]] * n if "run" in has else table.get("run")
        opened, space = _open_betas(folder, files), has.get("space", "")
        run = _Run(label, opened, table, folder.name(path), sessions, numbers, space)
        runs.append(replace(run, sources=(path,)))
    return runs


def _table_of(folder: Folder, betas: Path, has: dict[str, str], tables: list[Path]) -> Path:
    """The table of trials that belongs to a file: it has its subject, session and run, and no
    entity that the file has not.
    """
    known, fits = {k: _plain(v) for k, v in has.items()}, []
    needed = {k for k in ("sub", "ses", "run") if k in known}
    for path in tables:
        its = {k: _plain(v) for k, v in _entities(folder, path).items()}
        if needed <= its.keys() and all(known.get(k) == v for k, v in its.items()):
            kind = next(i for i, t in enumerate(TABLES) if path.stem.lower().endswith(t))
            fits.append(((kind, path.parent != betas.parent, -len(its)), path))
    fits.sort(key=lambda pair: (pair[0], natural(pair[1])))
    if not fits:
        stem = "_".join(f"{k}-{has[k]}" for k in ("sub", *RECORDED) if k in has)
        raise MissingError(
            f"{folder}: no table of trials for {folder.name(betas)}; expected one row per volume in"
            f" {', '.join(f'{stem}_{kind}.tsv' for kind in TABLES)}, or .csv"
        )
    if len(fits) > 1 and fits[0][0] == fits[1][0]:
        raise UbrainError(
            f"{folder}: both {folder.name(fits[0][1])} and {folder.name(fits[1][1])} could be the"
            f" table of trials for {folder.name(betas)}; keep one of them in the folder"
        )
    return fits[0][1]


def _open_betas(folder: Folder, files: dict[str, Path]) -> Betas:
    name = next(iter(files.values())).name
    if name.lower().endswith(".gii"):
        for side in {"L", "R"} - files.keys():
            other = re.sub("(?<=hemi-)[lr]", side, name, flags=re.IGNORECASE)
            raise MissingError(f"{folder}: no {other} beside {name}")
        return gifti_betas([files["L"], files["R"]])
    if len(files) > 1:
        raise UbrainError(f"{folder}: {name}: a file per hemisphere is expected as .func.gii only")
    (path,) = files.values()
    return cifti_betas(path) if name.lower().endswith(".dscalar.nii") else volume_betas(path)


# --- GLMsingle


def _outputs(folder: Folder, stem: str) -> dict[str, list[Path]]:
    """Files of the model in each folder that has it, by subject, in the order of their folders."""
    best: dict[Path, Path] = {}
    for path in folder.search(rf"{stem}(?:{'|'.join(map(re.escape, FORMATS))})"):
        other = best.setdefault(path.parent, path)
        if FORMATS.index(path.suffix.lower()) < FORMATS.index(other.suffix.lower()):
            best[path.parent] = path
    found: dict[str, list[Path]] = {}
    sessions: dict[tuple[str, str], Path] = {}
    for path in best.values():
        has = _entities(folder, path)
        subject = f"sub-{has.get('sub', '1')}"
        other = sessions.setdefault((subject, _plain(has.get("ses", ""))), path)
        if other != path:
            raise UbrainError(
                f"{folder}: whose, and of which session, are {folder.name(other.parent)} and"
                f" {folder.name(path.parent)}? Folders are to be called sub-01/ses-02 or the like"
            )
        found.setdefault(subject, []).append(path)
    return found


def _glmsingle_runs(
    folder: Folder,
    outputs: dict[str, list[Path]],
    stimuli: str,
    first_condition: int | None,
    subject: str,
) -> list[_Run]:
    path = Path(fill(stimuli, subject))
    listed, runs = _conditions(path), []
    for number, betas in enumerate(outputs[subject]):
        name, opened = folder.name(betas), glmsingle_betas(betas)
        design = _design_file(folder, betas)
        order, counts = _design(design)
        if len(order) != opened.n_trials:
            raise UbrainError(
                f"{folder}: {name} has {opened.n_trials} trials, stimorder of its DESIGNINFO"
                f" {len(order)}"
            )
        first = _first_condition(order, len(listed), f"{name} with {path.name}", first_condition)
        table = listed.iloc[order - first].reset_index(drop=True)
        which = (
            np.repeat(np.arange(len(counts)), counts).astype(str).tolist() if len(counts) else None
        )
        said = f"stimorder from {order.min()} to {order.max()}, where the first of {len(listed)}"
        said += f" conditions in {path.name} is {first}; {len(counts) or 'unknown'} run(s)"
        label = folder.name(betas.parent)
        sessions = [str(number)] * len(order)
        run = _Run(label, opened, table, path.name, sessions, which, said=said)
        runs.append(replace(run, sources=(path, design)))
    return runs


def _conditions(path: Path) -> pd.DataFrame:
    """The image of each condition, in a column of a table."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_table(path, None, "\t" if path.suffix.lower() == ".tsv" else ",")
    lines = read_lines(path)
    if len(lines) != len(path.read_text("utf-8-sig").rstrip().splitlines()):
        raise UbrainError(f"{path}: an empty line between others would shift conditions")
    return pd.DataFrame({"condition": lines})


def _design_file(folder: Folder, betas: Path) -> Path:
    """The file beside betas that has the order of conditions."""
    files = {p.suffix.lower(): p for p in entries(betas.parent) if p.stem.upper() == "DESIGNINFO"}
    suffixes = [s for s in (betas.suffix.lower(), *FORMATS[:-1]) if s in files]
    if not suffixes:
        refuse_pickle(files.get(".npy"))
        raise MissingError(f"{folder}: no DESIGNINFO{betas.suffix} beside {folder.name(betas)}")
    return files[suffixes[0]]


def _design(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Condition of each trial, and number of trials of each run (none: not known)."""
    found = read_mat(path, ["stimorder", "numtrialrun"])
    if "stimorder" not in found:
        raise UbrainError(f"{path}: 'stimorder' is missing")
    order = whole_numbers(found["stimorder"].reshape(-1), f"{path}: stimorder")
    if not found.get("numtrialrun", np.empty(0)).size:
        return order, np.empty(0, np.int64)
    counts = whole_numbers(found["numtrialrun"].reshape(-1), f"{path}: numtrialrun")
    if counts.min() < 0 or counts.sum() != len(order):
        raise UbrainError(f"{path}: numtrialrun has {counts.sum()} trials, stimorder {len(order)}")
    return order, counts


def _first_condition(order: NDArray[np.int64], n: int, where: str, given: int | None) -> int:
    low, high = int(order.min()), int(order.max())
    fits = [first for first in (0, 1) if first <= low and high < n + first]
    if given is not None:
        fits = [first for first in fits if first == given]
    if not fits:
        raise UbrainError(
            f"{where}: stimorder goes from {low} to {high}, which does not fit {n} images"
            + (f" counted from {given}" if given is not None else "")
        )
    if len(fits) > 1:
        raise UbrainError(
            f"{where}: stimorder goes from {low} to {high}, the list has {n} images: the first"
            " condition can be 0 (as in Python) or 1 (as in MATLAB); say it with --first-condition"
        )
    return fits[0]


# --- images


class _Shown(ImageFiles):
    """The images that tables name, found in a folder by name or stem."""

    def __init__(self, folder: Folder, names: Iterable[str]) -> None:
        self.pictures = Pictures(folder, {PurePosixPath(n.replace("\\", "/")).name for n in names})
        super().__init__([], [""])

    def find(self, text: str) -> Path | None:
        """The file that a cell names, with or without folders and suffix."""
        named = PurePosixPath(text.strip().replace("\\", "/"))
        path = self.pictures.find(named.name, prefer=named.parent.parts)
        exact = named.suffix.lower() in SUFFIXES or (
            path and path.stem.lower() == named.name.lower()
        )
        return path if exact else None

    def take(self, folder: Folder, files: Iterable[Path]) -> None:
        """Make these the images."""
        self.files = sorted(set(files), key=natural)
        unique = len({file.stem for file in self.files}) == len(self.files)
        self.ids = [file.stem if unique else folder.name(file) for file in self.files]
        self.keys = [photograph_key(file.name) for file in self.files]
        self.rows = {file: i for i, file in enumerate(self.files)}

    def row(self, text: str) -> int:
        """Number of the image that a cell names, which is one of them."""
        file = self.find(text)
        assert file is not None
        return self.rows[file]


def _match_images(
    runs: dict[str, list[_Run]], folder: Folder, column: str
) -> tuple[str, _Shown, str]:
    """The column that names images, the images, and what is said of both."""
    tables = [run.table for mine in runs.values() for run in mine]
    for run in (run for mine in runs.values() for run in mine):
        if column and column not in run.table:
            there = some(run.table.columns)
            raise UbrainError(f"{run.table_name}: no column {column!r}; found {there}")
    columns = [column] if column else [c for c in tables[0] if all(c in t for t in tables)]
    cells = {
        c: {v for t in tables for v in t[c].str.strip() if v.lower() not in NOTHING}
        for c in columns
    }
    shown = _Shown(folder, set().union(*cells.values()))
    found: dict[str, dict[str, Path | None]] = {}
    doubt: UbrainError | None = None
    for name, values in cells.items():
        try:
            found[name] = {value: shown.find(value) for value in sorted(values)}
        except UbrainError as error:  # two files of one name: is it the column?
            doubt = error
    whole = [c for c, files in found.items() if files and all(files.values())]
    if not column and len(whole) > 1:
        raise UbrainError(
            f"{folder}: columns {some(whole)} all name images; say which with --image-column"
        )
    if not whole and doubt:
        raise doubt
    if not whole:
        if not found:
            every = some({run.table_name for mine in runs.values() for run in mine})
            raise UbrainError(f"{folder}: no column is in all tables of trials: {every}")
        best, files = max(found.items(), key=lambda item: sum(map(bool, item[1].values())))
        absent = [value for value, file in files.items() if file is None]
        if not column and len(absent) == len(files):
            raise UbrainError(f"{folder}: no column names images there; columns: {some(columns)}")
        raise UbrainError(
            f"{folder}: column {best!r} names {len(files)} images, of which {len(absent)} are not"
            f" there, such as {some(absent[:3])}"
        )
    files = found[whole[0]]
    shown.take(folder, (file for file in files.values() if file))
    how = "as asked" if column else "the only one whose values all name files"
    said = (
        f"Images: column {whole[0]!r} ({how}): {len(files)} names, all found in {folder.path.name}"
    )
    return whole[0], shown, said


# --- trials and voxels


def _trials(
    subject: str, runs: list[_Run], column: str, shown: _Shown, places: NDArray[np.int64]
) -> tuple[pd.DataFrame, list[Block], list[str]]:
    """The table of trials, the blocks, and what was matched with what."""
    tables, blocks, wrong = [], [], []
    lines = list[str]()
    first = runs[0].betas
    for run in runs:
        betas, n = run.betas, run.betas.n_trials
        if not betas.same_places(first):
            raise UbrainError(
                f"{betas.files[0]} ({betas.shape}) and {first.files[0].name} ({first.shape}) have"
                " their voxels at different places; choose with --entities"
            )
        known = ~run.table[column].str.strip().str.lower().isin(NOTHING).to_numpy()
        if n not in (len(known), known.sum()):
            said = f" ({known.sum()} of them with an image)" if known.sum() < len(known) else ""
            wrong.append(f"{run.label}: {n} volumes, {len(known)} rows{said} of {run.table_name}")
            continue
        if "onset" in run.table:
            onsets = pd.to_numeric(run.table["onset"], errors="coerce")[known].dropna()
            if not onsets.is_monotonic_increasing:
                raise UbrainError(
                    f"{run.table_name}: its rows are not in the order of onset; put them in the"
                    " order of the volumes"
                )
        if not known.any():
            lines.append(f"{run.label}: left out, no row of {run.table_name} has an image")
            continue
        rows = np.flatnonzero(known)
        keep = rows if n == len(known) else np.arange(n)
        table: dict[str, Any] = {
            "image": [shown.row(cell) for cell in run.table[column].iloc[rows]],
            "session": np.asarray(run.sessions)[rows],
        }
        if all(r.runs is not None for r in runs):
            table["run"] = np.asarray(run.runs)[rows]
        tables.append(pd.DataFrame(table))
        read = partial(some_trials, partial(betas.read, places), keep, n)
        blocks.append(Block(run.label, len(keep), read, (*betas.files, *run.sources)))
        names = ", ".join(file.name for file in betas.files)
        said = run.said or f"{len(known)} rows of {run.table_name}"
        said += f", {len(known) - len(rows)} of them without an image" * (len(rows) < len(known))
        lines.append(f"{run.label}: {n} trials of {names}; {said}")
    if wrong:
        raise UbrainError(
            f"{subject}: volumes and rows of tables differ, so it is not known which was which:"
            f" {'; '.join(wrong)}"
        )
    if not tables:
        raise UbrainError(f"{subject}: no trial has an image")
    trials = pd.concat(tables, ignore_index=True)
    for name in {"session", "run"} & set(trials):
        trials[name] = pd.factorize(trials[name])[0]
    more = [f"... {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    how = "Read in this order, with the factors of headers; units are those of the files"
    return trials, blocks, [how, *lines[:LISTED], *more]


def _voxels(
    betas: Betas, mask: str, atlas: str
) -> tuple[pd.DataFrame, NDArray[np.int64], list[str]]:
    """Table of the voxels, their places, and what is said of them."""
    table, said = betas.places(), list[str]()
    places = np.arange(len(table))
    if mask:
        with np.errstate(invalid="ignore"):
            places = np.flatnonzero(map_on(betas, mask) > 0)
    check_voxels(len(places), mask or betas.files[0])
    if not len(places):
        raise UbrainError(f"{mask}: no value is above 0")
    which = f"above 0 in {Path(mask).name}" if mask else "all, without --mask"
    said.append(f"Voxels: {len(places)} of {len(table)} ({which})")
    if mask and betas.affine is None and "i" in table:
        said.append("Betas have no affine: only shapes of the mask and the betas were compared")
    voxels, found = table.iloc[places].dropna(axis=1, how="all"), list[tuple[int, str]]()
    whole = [c for c in ("vertex", *"ijk") if c in voxels and voxels[c].notna().all()]
    voxels = voxels.astype(dict.fromkeys(whole, np.int64)).reset_index(drop=True)
    for text in filter(None, map(str.strip, atlas.split(","))):
        labels = whole_labels(map_on(betas, text)[places], text)
        at, n_left = np.flatnonzero(labels > 0), betas.shape[0] if len(betas.shape) == 2 else None
        sides = ("L", "R") if n_left is not None else ("L",)
        named = [label_names(Path(fill(text, "", side))) for side in sides]
        for i in at:
            names = named[int(n_left is not None and places[i] >= n_left)][0]
            found.append((int(i), names.get(int(labels[i]), str(labels[i]))))
        where = ", ".join(dict.fromkeys(source for _, source in named))
        said.append(
            f"Areas: {Path(text).name}, {len({*labels[at].tolist()})} labels, names {where}"
        )
    if atlas:
        found = [*enumerate(voxels.get("areas", [])), *found]
        voxels = voxels.assign(areas=join_areas(len(voxels), found))
    return voxels, places, said
