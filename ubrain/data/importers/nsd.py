"""Natural Scenes Dataset (Allen et al. 2022): 8 subjects at 7T, from its folders nsddata,
nsddata_betas, nsddata_stimuli.
"""

import glob
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.layouts import (
    check_choice,
    chosen_sessions,
    join_areas,
    layout,
    npy_array,
    open_betas,
    spans,
    warn_absent,
)
from ubrain.data.importers.masks import Selection, named
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    Volume,
    area_name,
    check_side,
    check_voxels,
    hdf5_array,
    open_hdf5,
    read_labels,
    read_lines,
    read_mat,
    read_table,
    read_volume,
    reading,
    whole_labels,
    whole_numbers,
)
from ubrain.data.importers.recording import (
    DEFAULTS,
    PART_BYTES,
    Block,
    ImageArray,
    Options,
    Part,
    Recording,
    complete,
    parse_numbers,
    select,
)
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log

NSD, ALGONAUTS = layout("nsd"), layout("algonauts")
TRIALS, IMAGES = NSD.trials, NSD.images
RUNS = np.repeat(np.arange(12), NSD.runs * 6)  # the run of each trial of a session
SUBJECTS = [f"subj{number:02d}" for number in range(1, 9)]
SCALE = np.float32(300)  # int16 betas are percent signal change times 300
BRAIN_SCORE = "brain-score"
HEMISPHERES = {"lh": "L", "rh": "R"}
LABELS = re.compile(r"(?:(?P<side>lh|rh)\.)?(?P<name>.+?)\.(?:nii(?:\.gz)?|mgz)", re.IGNORECASE)
_Labels = dict[str, dict[str, Path]]  # label files by name, and by hemisphere, or nothing


def import_nsd(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    space: str = "func1pt8mm",
    betas: str = "betas_fithrf_GLMdenoise_RR",
    areas: str = "nsdgeneral",
    test: str = "shared1000",
    sessions: str | None = None,
    mask: str | Path | None = None,
) -> str:
    """Write NSD subjects into a crowd file.

    Parameters
    ----------
    root : folder that holds nsddata, nsddata_betas and nsddata_stimuli, complete or in part.
    out : crowd file to write (.h5).
    options : those that all importers share.
    space : func1pt8mm, func1mm, fsaverage or nativesurface.
    betas : version of the betas.
    areas : names, separated by commas, of label files, whose labels above 0 are the voxels, or of
        areas in them, such as "V1v,hV4"; "brain-score": V1, V2, hV4 and the ventral stream;
        "none": the whole brain.
    test : "shared1000", images shown to all subjects; or "special515", those of them that all
        subjects have seen three times. In the latter case the other shared images are the val
        images.
    sessions : such as "1-37"; default: all that are there.
    mask : folder of the Algonauts 2023 masks (`{lh,rh}.all-vertices_fsaverage_space.npy`), for
        fsaverage, instead of `areas`.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or not what the data manual says.
    """
    check_choice("space", space, NSD.formats)
    check_choice("test", test, NSD.tests)
    if mask is not None and space != "fsaverage":
        raise UbrainError(f"--mask is for --space fsaverage, not for {space}")
    areas = named(f"nsd {space}", areas)
    folder = Folder(root, options.follow_links)
    design = Design(folder.need("nsddata/experiments/nsd/nsd_expdesign.mat"))
    info = folder.find("nsddata/experiments/nsd/nsd_stim_info_merged.csv")
    coco = coco_numbers(info, design.shared.tolist()) if info else {}
    if not info:
        log.warning(
            "no nsd_stim_info_merged.csv: photographs that other datasets share with NSD will not"
            " be recognised"
        )
    folder.need("nsddata_betas/ppdata")
    found = [
        name
        for name in SUBJECTS
        if folder.glob(f"{glob.escape(_betas_folder(name, space, betas))}/*betas_session*")
    ]
    others = [f"{p.parent.name}/{p.name}" for p in folder.glob(_betas_folder("*", "*", "betas_*"))]
    where = f"{folder}/{_betas_folder('*', space, betas)}"
    names = select(options.subjects, found, where, others)
    warn_absent(f"{betas} in {space}", SUBJECTS, found)
    wanted = parse_numbers(sessions) if sessions else None
    masks = Folder(mask, options.follow_links) if mask is not None else None
    path = folder.need("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
    with open_stimuli(path) as pixels:
        splits, said = design.splits(test)
        images = Stimuli(path, pixels, splits, coco)

        def describe(name: str) -> Recording:
            grid = _Grid(folder, name, space, betas, areas, masks)
            return _recording(name, grid, design, images, wanted, said)

        recordings = list(complete(names, options.subjects, describe).values())
        settings = {
            "dataset": "nsd",
            "space": space,
            "betas": betas,
            "areas": areas,
            "test": test,
            "sessions": sessions,
            "mask": mask is not None,
        }
        return import_recordings(recordings, out, options, settings)


def _recording(
    name: str,
    grid: "_Grid",
    design: "Design",
    images: "Stimuli",
    wanted: list[int] | None,
    said: str,
) -> Recording:
    files = _session_files(grid.folder, name, grid.space, grid.betas)
    chosen, number = chosen_sessions(name, wanted, files), int(name[-2:])
    trials = pd.concat([design.trials(number, s) for s in chosen], ignore_index=True)
    _compare_with_behaviour(grid.folder, name, trials)
    for session in chosen:
        grid.check(files[session])
    blocks = [Block(f"session {s}", TRIALS, grid.reader(files[s]), files[s]) for s in chosen]
    absent = [s for s in range(1, NSD.sessions[number - 1] + 1) if s not in files]
    return Recording(
        f"nsd-{name}",
        "NSD",
        "7T",
        grid.space,
        images,
        trials,
        grid.voxels,
        blocks,
        account=[*grid.account, f"Sessions {spans(chosen)} of {TRIALS} trials", said],
        missing=[f"betas of session {spans(absent)}"] if absent else [],
        selected=grid.selected(),
    )


def _betas_folder(subject: str, space: str, betas: str) -> str:
    return f"nsddata_betas/ppdata/{subject}/{space}/{betas}"


def _session_files(
    folder: Folder, subject: str, space: str, betas: str
) -> dict[int, tuple[Path, ...]]:
    """Files of each session that is there in all its hemispheres, in the format read fastest."""
    place, kinds = _betas_folder(subject, space, betas), NSD.formats[space]
    sides = ("",) if space.startswith("func") else tuple(f"{side}." for side in HEMISPHERES)
    found: dict[int, dict[str, Path]] = {}
    for side, kind in product(sides, reversed(kinds)):
        copies: dict[int, Path] = {}
        for path in folder.glob(f"{glob.escape(place)}/{side}betas_session*.{kind}"):
            if match := re.fullmatch(
                rf"{side}betas_session(\d+)\.{kind}", path.name, re.IGNORECASE
            ):
                session = int(match[1])
                if copies.setdefault(session, path) != path:
                    raise UbrainError(
                        f"{path.parent}: {copies[session].name} and {path.name} are the same"
                        " session; keep one of them there"
                    )
                found.setdefault(session, {})[side] = path
    for session in sorted(s for s, files in found.items() if len(files) < len(sides)):
        (path,) = found.pop(session).values()
        log.warning(
            "%s, session %d: only %s is there; the session is left out", subject, session, path.name
        )
    if not found:
        raise MissingError(
            f"{folder}/{place} has no session that is complete, of {' or '.join(kinds)} files"
        )
    return {session: tuple(files.values()) for session, files in found.items()}


# --- trials and images


class Design:
    """Which image was shown in which trial, from nsd_expdesign.mat. All numbers there count from
    1, all here from 0.

    Attributes
    ----------
    order : which of a subject's images was shown in each trial, the same for all: (n_trials,).
    images : NSD's number of each subject's images, (n_subjects, n_images); those that all subjects
        share come first.
    shared : NSD's numbers of the shared images.
    """

    def __init__(self, path: Path) -> None:
        names = ("masterordering", "subjectim", "sharedix")
        content = read_mat(path, names, NSD.max_design)
        for name in names:
            if name not in content:
                raise UbrainError(f"{path}: {name!r} is missing")
        order, images, shared = (
            whole_numbers(content[name], f"{path}: {name!r}") - 1 for name in names
        )
        self.order, self.images, shared = order.reshape(-1), images, shared.reshape(-1)
        n = images.shape[-1]
        if images.shape != (len(NSD.sessions), n) or images.min() < 0 or images.max() >= IMAGES:
            raise UbrainError(
                f"{path}: subjectim: expected (8, images) of numbers from 1 to {IMAGES}, got"
                f" {images.shape}"
            )
        if self.order.min() != 0 or self.order.max() >= n or len(self.order) % TRIALS:
            raise UbrainError(
                f"{path}: masterordering: expected numbers from 1 to {n}, in sessions of {TRIALS}"
            )
        self.shared = images[0, : len(shared)]
        if (images[:, : len(shared)] != self.shared).any() or {*shared} != {*self.shared}:
            raise UbrainError(
                f"{path}: the first {len(shared)} images of all subjects should be those of"
                " sharedix"
            )
        self._repeat = pd.Series(self.order).groupby(self.order).cumcount().to_numpy()

    def trials(self, subject: int, session: int) -> pd.DataFrame:
        """The trials of a session (both from 1): image, session, run, repeat."""
        if session * TRIALS > len(self.order):
            raise UbrainError(
                f"subj{subject:02d}: the design has {len(self.order) // TRIALS} sessions, betas are"
                f" of {session}"
            )
        rows = slice((session - 1) * TRIALS, session * TRIALS)
        return pd.DataFrame(
            {
                "image": self.images[subject - 1, self.order[rows]],
                "session": session,
                "run": RUNS,
                "repeat": self._repeat[rows],
            }
        )

    def splits(self, test: str) -> tuple[list[str], str]:
        """Split of each of NSD's images, (73000,), and what is said about it."""
        splits = np.full(IMAGES, "rest" if test == "shared1000" else "train", dtype=object)
        splits[self.shared] = "test" if test == "shared1000" else "val"
        if test == "shared1000":
            said = f"Test images: the {len(self.shared)} shared images, as far as seen"
            return splits.tolist(), said
        done = self.order[: min(NSD.sessions) * TRIALS]  # by all subjects
        counts = np.bincount(done, minlength=self.images.shape[1])
        special = self.shared[counts[: len(self.shared)] == 3]
        splits[special] = "test"
        return splits.tolist(), (
            f"Test images: the {len(special)} shared images that all subjects have seen three"
            " times; the other shared images are the val images"
        )


def _compare_with_behaviour(folder: Folder, subject: str, trials: pd.DataFrame) -> None:
    """Check the trials against the subject's answers, which name the image, too, if there are."""
    path = folder.find(f"nsddata/ppdata/{subject}/behav/responses.tsv")
    if path is None:
        return
    shown = read_table(path, ["SESSION", "73KID"], "\t", whole=["SESSION", "73KID"])
    for session, mine in trials.groupby("session"):
        theirs = shown.loc[shown["SESSION"] == session, "73KID"].to_numpy() - 1
        if len(theirs) and not np.array_equal(theirs, mine["image"]):
            raise UbrainError(
                f"{subject}, session {session}: nsd_expdesign.mat and {path} name different images;"
                " one of them is damaged"
            )


def coco_numbers(path: Path, shared: Collection[int] | None = None) -> dict[int, int]:
    """COCO's number of NSD's images; the table's shared images must be `shared`, if given."""
    columns = ["nsdId", "cocoId", *(["shared1000"] if shared is not None else [])]
    table = read_table(path, columns, whole=columns[:2])
    if shared is not None:
        listed = table.loc[table["shared1000"].astype(str).str.lower() == "true", "nsdId"]
        if {*listed} != {*shared}:
            raise UbrainError(
                f"{path}: its shared images are not those of nsd_expdesign.mat (does nsdId count"
                " from 0?)"
            )
    return dict(zip(table["nsdId"], table["cocoId"], strict=True))


def image_key(image: int, coco: dict[int, int]) -> str:
    """COCO's number, if it is known, and NSD's number of an image."""
    return f"coco:{coco[image]} nsd:{image}" if image in coco else f"nsd:{image}"


@contextmanager
def open_stimuli(path: Path) -> Iterator[Any]:
    """Pixels (73000, height, width, 3) of NSD's images: of nsd_stimuli.hdf5, or of a .npy file."""
    shape = (IMAGES, None, None, 3)
    with nullcontext() if path.suffix.lower() == ".npy" else open_hdf5(path) as file:
        if file is None:
            pixels = npy_array(path, "uint8", shape)
        else:
            pixels = hdf5_array(file, "imgBrick", "uint8", shape)
        check_side(path, pixels.shape[1:3])
        yield pixels


class Stimuli(ImageArray):
    """NSD's images, numbered from 0 as there; their pixels are read from the file `path`."""

    def __init__(self, path: Path, pixels: Any, splits: list[str], coco: dict[int, int]) -> None:
        ids = [f"nsd-{i:05d}" for i in range(IMAGES)]
        super().__init__(pixels, ids, splits, [image_key(i, coco) for i in range(IMAGES)])
        self.path = path

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """(height, width, 3)"""
        with reading(self.path):
            return super().pixels(i)


# --- voxels and areas


@dataclass
class _Grid:
    """Where responses are measured in one subject: in a volume, or at the vertices of both
    hemispheres, left before right.

    Attributes
    ----------
    voxels : their table.
    pieces : shape of the grid, and places on it, of each file of a session: ((X, Y, Z), (i, j, k)),
        or for each hemisphere ((n_vertices,), (vertex,)).
    """

    folder: Folder
    subject: str
    space: str
    betas: str
    areas: str
    masks: Folder | None

    def __post_init__(self) -> None:
        self.label_files: list[str] = []
        self.pieces: list[tuple[tuple[int, ...], tuple[NDArray[np.int64], ...]]] = []
        self.counts = Counter[str]()  # voxels of each of the wanted masks
        volume = self.space.startswith("func")
        self.voxels = self._volume() if volume else self._surface()
        if not len(self.voxels):
            raise UbrainError(f"{self.subject}: no voxel has a label above 0 in {self.areas}")
        everything = "the whole brain" if volume else "all vertices"
        whole = self.areas.lower() == "none"
        chosen = everything if whole else f"those with a label of {self.areas}"
        unit = (
            "float32, percent signal change, not scaled"
            if self.space == "fsaverage"
            else "int16 divided by 300: percent signal change"
        )
        areas = ", ".join(dict.fromkeys(self.label_files)) or "no label files found"
        self.account = [
            f"Betas: {self.betas} in {self.space}, {unit}",
            f"Voxels: {'the masks of Algonauts 2023' if self.masks else chosen}",
            f"Areas: {areas}",
        ]

    @property
    def path(self) -> str:
        """Folder of the betas, within the dataset."""
        return _betas_folder(self.subject, self.space, self.betas)

    def selected(self) -> list[Selection]:
        """The wanted masks, as far as something is published of them, and all together."""
        shapes = [shape for shape, _ in self.pieces]
        size = tuple(n for shape in shapes for n in shape)
        where, number = f"nsd {self.space}", int(self.subject[-2:])
        counts = dict(self.counts)
        if named(where, BRAIN_SCORE) == self.areas:
            counts[BRAIN_SCORE] = sum(counts.values())  # of areas that may overlap
        if self.masks is not None:
            sides = zip(("left", "right"), self.pieces, strict=True)
            counts = {f"all-vertices ({s})": len(place[0]) for s, (_, place) in sides}
        return [Selection(where, mask, number, size, n) for mask, n in counts.items()]

    def _volume(self) -> pd.DataFrame:
        place = f"nsddata/ppdata/{self.subject}/{self.space}"
        files = self._label_files(f"{place}/roi/*.nii*")
        where = f"{self.folder}/{place}"
        if self.areas.lower() == "none":
            names = (f"{place}/brainmask.nii.gz", f"{place}/brainmask.nii")
            mask = read_labels(self.folder.need(*names)) > 0
        else:
            mask = self._chosen(files, f"{place}/roi", "{}.nii.gz")
        if mask.ndim != 3:
            raise UbrainError(f"{where}: expected masks of three dimensions, got {mask.shape}")
        check_voxels(int(mask.sum()), where)
        k, j, i = np.nonzero(mask.T)  # x runs fastest, as in the files
        self.pieces = [(mask.shape, (i, j, k))]

        def at_voxels(path: Path) -> NDArray[np.int64]:
            return read_labels(path, mask.shape)[i, j, k]

        cortex = {side: np.zeros(len(i), dtype=bool) for side in HEMISPHERES}
        labels: list[tuple[str, NDArray[np.int64]]] = []
        for name in sorted(files, key=_by_importance):
            sides = {side: at_voxels(path) for side, path in files[name].items() if side}
            both = [at_voxels(files[name][""])] if "" in files[name] else list(sides.values())
            labels.append((name, np.max(both, axis=0)))
            if len(sides) == 2:
                for side, values in sides.items():  # -1: not this side's cortex; 0: no label there
                    cortex[side] |= values >= 0
        left, right = cortex["lh"] & ~cortex["rh"], cortex["rh"] & ~cortex["lh"]
        ncsnr = self.folder.find(f"{self.path}/ncsnr.nii.gz", f"{self.path}/ncsnr.nii")
        return pd.DataFrame(
            {
                "hemisphere": np.select([left, right], ["L", "R"], ""),
                "i": i,
                "j": j,
                "k": k,
                "areas": join_areas(len(i), self._labelled(labels)),
                "ncsnr": np.nan if ncsnr is None else read_volume(ncsnr, mask.shape)[i, j, k],
            }
        )

    def _surface(self) -> pd.DataFrame:
        owner = "fsaverage" if self.space == "fsaverage" else self.subject
        place, tables = f"nsddata/freesurfer/{owner}/label", []
        for side, letter in HEMISPHERES.items():
            files = self._label_files(f"{place}/{side}.*.mgz")
            mask = self._surface_mask(side, place, files)
            check_voxels(len(mask), f"{self.folder}: {self.subject}, {side}")
            vertices = np.flatnonzero(mask)
            self.pieces.append((mask.shape, (vertices,)))
            labels: list[tuple[str, NDArray]] = []
            for name in sorted(files, key=_by_importance):
                if self._has_names(name, place):
                    values = read_volume(files[name][side], mask.shape)
                    if name in NSD.labels or np.array_equal(values, np.rint(values)):
                        labels.append((name, whole_labels(values, files[name][side])[vertices]))
            ncsnr = self.folder.find(
                *(f"{self.path}/{side}.ncsnr.{kind}" for kind in ("mgh", "mgz"))
            )
            table = {
                "hemisphere": letter,
                "vertex": vertices,
                "areas": join_areas(len(vertices), self._labelled(labels)),
                "ncsnr": np.nan if ncsnr is None else read_volume(ncsnr, mask.shape)[vertices],
            }
            tables.append(pd.DataFrame(table))
        return pd.concat(tables, ignore_index=True)

    def _surface_mask(self, side: str, place: str, files: _Labels) -> NDArray[np.bool_]:
        if self.masks is not None:
            names = [
                f"{place.format(subject=self.subject, number=int(self.subject[-2:]))}/"
                f"{side}.all-vertices_fsaverage_space.npy"
                for place in ALGONAUTS.masks
            ]
            return read_mask(self.masks.need(*names))
        if self.areas.lower() != "none":
            return self._chosen(files, place, f"{side}.{{}}.mgz")
        some = self.folder.need(f"{self.path}/{side}.ncsnr.mgh", f"{place}/{side}.nsdgeneral.mgz")
        return np.ones(read_volume(some).shape, dtype=bool)

    def _label_files(self, pattern: str) -> _Labels:
        known, found = {name.lower(): name for name in NSD.labels}, _Labels()
        for path in self.folder.glob(pattern):
            if match := LABELS.fullmatch(path.name):
                name = str(match["name"])
                found.setdefault(known.get(name.lower(), name), {})[
                    (match["side"] or "").lower()
                ] = path
        return found

    def _has_names(self, label_file: str, place: str) -> bool:
        """Whether it has labels: the folder of a surface holds continuous maps, too."""
        known = self.space.startswith("func") or label_file in NSD.labels
        return known or self.folder.find(f"{place}/{label_file}.mgz.ctab") is not None

    def _chosen(self, files: _Labels, place: str, example: str) -> NDArray[np.bool_]:
        """Where there is a label of a wanted file, or one that has a wanted name."""
        named = [name for name in files if self._has_names(name, place)]
        masks = list[NDArray[np.bool_]]()
        for wanted in map(str.strip, self.areas.split(",")):
            whole, n_before = [n for n in files if n.lower() == wanted.lower()], len(masks)
            for name in whole or named:
                paths = files[name]
                for path in [paths[""]] if "" in paths else paths.values():
                    stored = read_volume(path, masks[0].shape if masks else None)
                    known = whole or name in NSD.labels
                    if not known and not np.array_equal(stored, np.rint(stored)):
                        continue  # a continuous map
                    values = whole_labels(stored, path)
                    if whole:
                        masks.append(values > 0)
                        continue
                    names = self._names(name, np.unique(values[values > 0]).tolist())
                    numbers = [i for i, area in names.items() if area.lower() == wanted.lower()]
                    masks += [np.isin(values, numbers)] if numbers else []
            self.counts[wanted] += int(np.sum(np.any(masks[n_before:], axis=0)))
            if len(masks) == n_before:
                raise MissingError(
                    f"{self.folder} has no {place}/{example.format(wanted[:40])}, and"
                    f" no label {wanted[:40]!r} in {', '.join(named)[:400] or 'other files'}"
                )
        return np.asarray(np.any(masks, axis=0))

    def _labelled(self, files: Iterable[tuple[str, NDArray]]) -> Iterator[tuple[int, str]]:
        """Voxel and area for all labels of some files; 0 and -1 mean: none of its areas."""
        for name, values in files:
            self.label_files.append(name)
            names = self._names(name, np.unique(values[values > 0]).tolist())
            for row in np.flatnonzero(values > 0).tolist():
                yield row, names[int(values[row])]

    def _names(self, label_file: str, numbers: list[int]) -> dict[int, str]:
        """Names of the labels that a file uses, from its table if there is one."""
        places = (
            f"nsddata/freesurfer/{owner}/label/{label_file}.mgz.ctab"
            for owner in (self.subject, "fsaverage")
        )
        names = dict(enumerate(NSD.labels.get(label_file, "").split(), start=1))
        if (table := self.folder.find(*places)) is not None:
            rows = [line.split()[:2] for line in read_lines(table)]
            names |= {
                int(r[0]): area_name(r[1], table) for r in rows if len(r) == 2 and r[0].isdecimal()
            }
        names |= {i: label_file if numbers == [1] else str(i) for i in numbers if i not in names}
        plain = label_file.startswith(tuple(NSD.measured))
        return {
            i: name if plain or name == label_file else f"{label_file}:{name}"
            for i, name in names.items()
        }

    def check(self, files: tuple[Path, ...]) -> None:
        """Look at the headers of a session's files."""
        for path, (shape, _) in zip(files, self.pieces, strict=True):
            if path.suffix.lower() in (".hdf5", ".mat"):
                with open_hdf5(path) as file:
                    hdf5_array(file, "betas", "int16", (TRIALS, *shape[::-1]))
            else:
                self._open(path, shape)

    def _open(self, path: Path, shape: tuple[int, ...]) -> Volume:
        if len(shape) == 1:
            return open_betas(path, "f", (*shape, 1, 1, TRIALS))
        return open_betas(path, "int16", (*shape, TRIALS))

    def reader(self, files: tuple[Path, ...]) -> Callable[[], Iterator[Part]]:
        """A function that reads the responses of a session, in percent signal change."""
        return lambda: self._read(files)

    def _read(self, files: tuple[Path, ...]) -> Iterator[Part]:
        first = 0
        for path, (shape, place) in zip(files, self.pieces, strict=True):
            if not len(place[0]):
                continue
            if path.suffix.lower() in (".hdf5", ".mat"):  # axes are the other way round there
                yield from _read_hdf5(path, shape[::-1], place[::-1], first)
            else:
                index = np.ravel_multi_index(place, shape, order="F")
                for start, values in self._open(path, shape).trials(index):
                    yield Part(values if len(shape) == 1 else values / SCALE, start, first)
            first += len(place[0])


def _by_importance(label_file: str) -> tuple[int, str]:
    """Areas that NSD has measured come before those of atlases."""
    known = list(NSD.labels)
    return known.index(label_file) if label_file in known else len(known), label_file


def read_mask(path: Path, n_vertices: int | None = None) -> NDArray[np.bool_]:
    """Which vertices of fsaverage Algonauts 2023 has kept."""
    mask = npy_array(path, "biuf", (n_vertices,))
    check_voxels(len(mask), path)
    return whole_labels(np.asarray(mask), path) != 0  # 2: in both of the masks that were added


def _read_hdf5(
    path: Path, shape: tuple[int, ...], place: tuple[NDArray[np.int64], ...], first: int
) -> Iterator[Part]:
    """Betas of some voxels from (trials, ...) int16, in parts of bounded size.

    As published, a chunk of the file is one voxel, so voxels are read one by one; other layouts are
    read trial by trial.
    """
    with open_hdf5(path) as file, reading(path):
        betas = hdf5_array(file, "betas", "int16", (TRIALS, *shape))
        if betas.chunks and betas.chunks[0] == TRIALS and np.prod(betas.chunks[1:]) == 1:
            step = PART_BYTES // (4 * TRIALS)
            for start in range(0, len(place[0]), step):
                voxels = list(
                    zip(*(axis[start : start + step].tolist() for axis in place), strict=True)
                )
                values = np.empty((len(voxels), TRIALS), dtype=np.int16)
                for row, voxel in enumerate(voxels):
                    values[row] = betas[(slice(None), *voxel)]
                yield Part(np.ascontiguousarray(values.T) / SCALE, 0, first + start)
        else:
            step = max(1, PART_BYTES // (2 * int(np.prod(shape))))
            for start in range(0, TRIALS, step):
                yield Part(betas[start : start + step][(slice(None), *place)] / SCALE, start, first)
