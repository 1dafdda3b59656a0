"""Natural Scenes Dataset (Allen et al. 2022): 8 subjects at 7T, from its folders nsddata,
nsddata_betas, nsddata_stimuli.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    Volume,
    area_name,
    check_array,
    check_side,
    check_voxels,
    hdf5_array,
    load_npy,
    open_hdf5,
    open_volume,
    read_lines,
    read_mat,
    read_table,
    read_volume,
    reading,
    whole_numbers,
)
from ubrain.data.importers.recording import (
    DEFAULTS,
    PART_BYTES,
    Block,
    Options,
    Part,
    Recording,
    complete,
    parse_numbers,
    select,
)
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log

SPACES = ("func1pt8mm", "func1mm", "fsaverage", "nativesurface")
TESTS = ("shared1000", "special515")
TRIALS, RUNS = 750, np.repeat(np.arange(12), [63, 62] * 6)  # of a session; the run of each trial
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)  # that subjects 1 to 8 have done
IMAGES, SHARED = 73000, 1000
MAX_DESIGN = 1 << 24  # bytes of the design (0.9 MB)
SCALE = np.float32(300)  # int16 betas are percent signal change times 300
HEMISPHERES = {"lh": "L", "rh": "R"}
LABELS = {
    "prf-visualrois": "V1v V1d V2v V2d V3v V3d hV4",
    "prf-eccrois": "ecc0pt5 ecc1 ecc2 ecc4 ecc4+",
    "floc-faces": "OFA FFA-1 FFA-2 mTL-faces aTL-faces",
    "floc-words": "OWFA VWFA-1 VWFA-2 mfs-words mTL-words",
    "floc-places": "OPA PPA RSC",
    "floc-bodies": "EBA FBA-1 FBA-2 mTL-bodies",
    "streams": "early midventral midlateral midparietal ventral lateral parietal",
    "nsdgeneral": "nsdgeneral",
    "Kastner2015": (
        "V1v V1d V2v V2d V3v V3d hV4 VO1 VO2 PHC1 PHC2 TO2 TO1 LO2 LO1 V3B V3A IPS0 IPS1 IPS2 IPS3"
        " IPS4 IPS5 SPL1 FEF"
    ),
}
# ... in the order of their numbers from 1, for copies without label tables (.ctab)
# atlases repeat their names, so their areas are `atlas:name`
UNPREFIXED = ("prf-", "floc-", "streams", "nsdgeneral")


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
    options : those that all importers share.
    space : func1pt8mm, func1mm, fsaverage or nativesurface.
    betas : version of the betas.
    areas : name of a label file whose labels above 0 are the voxels; "none": the whole brain.
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
    for name, value, allowed in (("space", space, SPACES), ("test", test, TESTS)):
        if value not in allowed:
            raise UbrainError(f"--{name} {value}: expected one of {', '.join(allowed)}")
    if mask is not None and space != "fsaverage":
        raise UbrainError(f"--mask is for --space fsaverage, not for {space}")
    folder = Folder(root, options.follow_links)
    design = _Design(folder)
    subjects = [
        s
        for s in _subjects(folder)
        if folder.glob(f"{_betas_folder(s, space, betas)}/*betas_session*")
    ]
    names = select(options.subjects, subjects, f"{folder}/nsddata_betas/ppdata/*/{space}/{betas}")
    if absent := [f"subj{s:02d}" for s in range(1, 9) if f"subj{s:02d}" not in subjects]:
        log.warning("no %s in %s for %s", betas, space, ", ".join(absent))
    wanted = parse_numbers(sessions) if sessions else None
    masks = Folder(mask, options.follow_links) if mask is not None else None
    with open_hdf5(folder.need("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")) as stimuli:
        images = _Images(stimuli, design, test)
        grid_type = _Volume if space.startswith("func") else _Surface

        def describe(name: str) -> Recording:
            grid = grid_type(folder, name, space, betas, areas, masks)
            return _recording(
                name, grid, _session_files(folder, name, space, betas), design, images, wanted
            )

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
    files: dict[int, tuple[Path, ...]],
    design: "_Design",
    images: "_Images",
    wanted: list[int] | None,
) -> Recording:
    there = sorted(files)
    if wanted and (absent := [s for s in wanted if s not in files]):
        raise UbrainError(
            f"{name}: no betas of session {_spans(absent)}; there are sessions {_spans(there)}"
        )
    chosen = wanted or there
    number = int(name[-2:])
    trials = pd.concat([design.trials(number, s) for s in chosen], ignore_index=True)
    design.compare_with_behaviour(name, trials)
    for session in chosen:
        grid.check(files[session])
    blocks = [Block(f"session {s}", TRIALS, _reader(grid, files[s]), files[s]) for s in chosen]
    absent = (
        [s for s in range(1, SESSIONS[number - 1] + 1) if s not in files]
        if number <= len(SESSIONS)
        else []
    )
    return Recording(
        f"nsd-{name}",
        "NSD",
        "7T",
        grid.space,
        images,
        trials,
        grid.voxels,
        blocks,
        account=[*grid.account, f"Sessions {_spans(chosen)} of {TRIALS} trials", images.account],
        missing=[f"betas of session {_spans(absent)}"] if absent else [],
    )


def _reader(grid: "_Grid", files: tuple[Path, ...]) -> Callable[[], Iterator[Part]]:
    return lambda: grid.read(files)


def _spans(numbers: Sequence[int]) -> str:
    """Numbers in words: 1-3, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)


# -------------------------------------------------------------------------------------------------
# what is there


def _subjects(folder: Folder) -> list[str]:
    parent = folder.need("nsddata_betas/ppdata")
    return sorted(
        entry.name for entry in parent.iterdir() if re.fullmatch(r"subj0[1-8]", entry.name)
    )


def _betas_folder(subject: str, space: str, betas: str) -> str:
    return f"nsddata_betas/ppdata/{subject}/{space}/{betas}"


def _session_files(
    folder: Folder, subject: str, space: str, betas: str
) -> dict[int, tuple[Path, ...]]:
    """Files of each session that is there in all its hemispheres; of several formats, the one that
    is read fastest.
    """
    place = _betas_folder(subject, space, betas)
    kinds = {"fsaverage": ("mgh", "mgz"), "nativesurface": ("hdf5",)}.get(
        space, ("hdf5", "nii.gz", "nii", "mat")
    )
    sides = ("",) if space.startswith("func") else tuple(f"{side}." for side in HEMISPHERES)
    found: dict[int, dict[str, Path]] = {}
    for side in sides:
        for kind in reversed(kinds):
            for session, path in _numbered(folder, f"{place}/{side}betas_session", kind).items():
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


def _numbered(folder: Folder, start: str, kind: str) -> dict[int, Path]:
    """Files by the number between the start of their name and its end."""
    found: dict[int, Path] = {}
    for path in folder.glob(f"{start}*.{kind}"):
        number = re.fullmatch(rf"{re.escape(start.rpartition('/')[2])}(\d+)\.{kind}", path.name)
        if number and found.setdefault(int(number[1]), path) != path:
            raise UbrainError(
                f"{path.parent}: {found[int(number[1])].name} and {path.name} are the same session;"
                " keep one of them there"
            )
    return found


# ----------------------------------------------------------------------------------------------
# trials and images


class _Design:
    """Which image was shown in which trial, from nsd_expdesign.mat. All numbers there count from
    1, all here from 0.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        path = folder.need("nsddata/experiments/nsd/nsd_expdesign.mat")
        names = ("masterordering", "subjectim", "sharedix")
        content = read_mat(path, names, MAX_DESIGN)
        for name in names:
            if name not in content:
                raise UbrainError(f"{path}: {name!r} is missing")
        order, images, shared = (
            whole_numbers(content[name], f"{path}: {name!r}") for name in names
        )
        if (
            images.ndim != 2
            or len(images) != len(SESSIONS)
            or images.min() < 1
            or images.max() > IMAGES
        ):
            raise UbrainError(
                f"{path}: subjectim: expected (8, images) of numbers from 1 to {IMAGES}, got"
                f" {images.shape}"
            )
        self.order, self.images = order.reshape(-1) - 1, images - 1
        shared = shared.reshape(-1) - 1
        if (
            self.order.min() != 0
            or self.order.max() >= self.images.shape[-1]
            or len(self.order) % TRIALS
        ):
            raise UbrainError(
                f"{path}: masterordering: expected numbers from 1 to {images.shape[-1]}, in"
                f" sessions of {TRIALS}"
            )
        self.shared = self.images[0, : len(shared)]
        if (self.images[:, : len(shared)] != self.shared).any() or set(shared) != set(self.shared):
            raise UbrainError(
                f"{path}: the first {len(shared)} images of all subjects should be those of"
                " sharedix"
            )
        self.repeat = pd.Series(self.order).groupby(self.order).cumcount().to_numpy()
        self.coco = self._read_coco()

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
                "repeat": self.repeat[rows],
            }
        )

    def special(self) -> NDArray[np.int64]:
        """Shared images that every subject has seen three times: within the sessions that all
        subjects have done.
        """
        counts = np.bincount(self.order[: min(SESSIONS) * TRIALS], minlength=self.images.shape[1])
        return self.shared[counts[: len(self.shared)] == 3]

    def compare_with_behaviour(self, subject: str, trials: pd.DataFrame) -> None:
        """Check the trials against the subject's answers, if they are there: they name the image,
        too.
        """
        path = self._folder.find(f"nsddata/ppdata/{subject}/behav/responses.tsv")
        if path is None:
            return
        shown = read_table(path, ["SESSION", "73KID"], "\t", whole=["SESSION", "73KID"])
        for session, mine in trials.groupby("session"):
            theirs = shown.loc[shown["SESSION"] == session, "73KID"].to_numpy() - 1
            if len(theirs) and not np.array_equal(theirs, mine["image"]):
                raise UbrainError(
                    f"{subject}, session {session}: nsd_expdesign.mat and {path} name different"
                    " images; one of them is damaged"
                )

    def _read_coco(self) -> dict[int, int]:
        path = self._folder.find("nsddata/experiments/nsd/nsd_stim_info_merged.csv")
        if path is None:
            log.warning(
                "no nsd_stim_info_merged.csv: photographs that other datasets share with NSD will"
                " not be recognised"
            )
            return {}
        table = read_table(path, ["nsdId", "cocoId", "shared1000"], whole=["nsdId", "cocoId"])
        if set(table.loc[table["shared1000"].astype(str).str.lower() == "true", "nsdId"]) != set(
            self.shared
        ):
            raise UbrainError(
                f"{path}: its shared images are not those of nsd_expdesign.mat (does nsdId count"
                " from 0?)"
            )
        return dict(zip(table["nsdId"], table["cocoId"], strict=True))


def pictures_of(stimuli: h5py.File) -> h5py.Dataset:
    """The array (73000, height, width, 3) of nsd_stimuli.hdf5."""
    pixels = hdf5_array(stimuli, "imgBrick", "uint8", (IMAGES, None, None, 3))
    check_side(stimuli.filename, pixels.shape[1:3])
    return pixels


class _Images:
    """Images of nsd_stimuli.hdf5, numbered from 0 as there."""

    def __init__(self, stimuli: h5py.File, design: _Design, test: str) -> None:
        self._pixels = pictures_of(stimuli)
        self._path, self._coco = Path(stimuli.filename), design.coco
        self.ids: Sequence[str] = [f"nsd-{i:05d}" for i in range(IMAGES)]
        shared = dict.fromkeys(design.shared.tolist(), "test" if test == "shared1000" else "val")
        self._rest = "rest" if test == "shared1000" else "train"
        self._split = shared | (
            dict.fromkeys(design.special().tolist(), "test") if test == "special515" else {}
        )
        self.account = (
            f"Test images: the {len(shared)} shared images, as far as seen"
            if test == "shared1000"
            else (
                f"Test images: the {len(design.special())} shared images that all subjects have"
                " seen three times; the other shared images are the val images"
            )
        )

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """(height, width, 3)"""
        with reading(self._path):
            return self._pixels[i]

    def shape(self, i: int) -> tuple[int, int]:
        """The same for all."""
        return self._pixels.shape[1], self._pixels.shape[2]

    def split(self, i: int) -> str:
        """By the design."""
        return self._split.get(i, self._rest)

    def key(self, i: int) -> str:
        """NSD's and COCO's number."""
        return f"coco:{self._coco[i]} nsd:{i}" if i in self._coco else f"nsd:{i}"


# ----------------------------------------------------------------------------------------------
# voxels and areas


@dataclass
class _Grid(ABC):
    """Where responses are measured in one subject. Subclasses say what a file holds and read it."""

    folder: Folder
    subject: str
    space: str
    betas: str
    areas: str
    masks: Folder | None

    def __post_init__(self) -> None:
        self.label_files: list[str] = []
        self.voxels = self._voxels()
        chosen = (
            f"the labels above 0 of {self.areas}"
            if self.areas.lower() != "none"
            else self.everything
        )
        self.account = [
            f"Betas: {self.betas} in {self.space}, {self.unit}",
            f"Voxels: {'the masks of Algonauts 2023' if self.masks else chosen}",
            f"Areas: {', '.join(self.label_files) or 'no label files found'}",
        ]

    unit = "int16 divided by 300: percent signal change"
    everything = "the whole brain"

    @property
    def path(self) -> str:
        """Folder of the betas, within the dataset."""
        return _betas_folder(self.subject, self.space, self.betas)

    @abstractmethod
    def _voxels(self) -> pd.DataFrame:
        """The voxel table."""

    @abstractmethod
    def check(self, files: tuple[Path, ...]) -> None:
        """Look at the headers of a session's files."""

    @abstractmethod
    def read(self, files: tuple[Path, ...]) -> Iterator[Part]:
        """The responses of a session, in percent signal change."""

    def _names(self, label_file: str, numbers: list[int]) -> dict[int, str]:
        """Names of the labels that a file uses, from its table if there is one."""
        table = self.folder.find(
            *(
                f"nsddata/freesurfer/{s}/label/{label_file}.mgz.ctab"
                for s in (self.subject, "fsaverage")
            )
        )
        names = dict(enumerate(LABELS.get(label_file, "").split(), start=1))
        if table is not None:
            rows = [line.split()[:2] for line in read_lines(table)]
            names |= {
                int(r[0]): area_name(r[1], table) for r in rows if len(r) == 2 and r[0].isdecimal()
            }
        names |= {i: label_file if numbers == [1] else str(i) for i in numbers if i not in names}
        plain = label_file.startswith(UNPREFIXED)
        return {
            i: name if plain or name == label_file else f"{label_file}:{name}"
            for i, name in names.items()
        }

    def _label(self, labels: list[list[str]], label_file: str, values: NDArray) -> None:
        """Add the names of a label file to the areas of each voxel; 0 and -1 mean: none of its
        areas.
        """
        values = np.rint(np.nan_to_num(values)).astype(np.int64)
        self.label_files.append(label_file)
        names = self._names(label_file, np.unique(values[values > 0]).tolist())
        for row in np.flatnonzero(values > 0):
            labels[row].append(names[int(values[row])])


class _Volume(_Grid):
    """A volume: betas are (X, Y, Z, trials) in NIfTI, and therefore (trials, Z, Y, X) in HDF5."""

    def _voxels(self) -> pd.DataFrame:
        mask = read_volume(self._mask_file())
        if mask.ndim != 3:
            raise UbrainError(f"{self._mask_file()}: expected three dimensions, got {mask.shape}")
        self.shape = mask.shape
        check_voxels(int((mask > 0).sum()), self._mask_file())
        self.k, self.j, self.i = np.nonzero((mask > 0).T)  # x runs fastest, as in the files
        if not len(self.i):
            raise UbrainError(f"{self._mask_file()}: no voxel has a label above 0")
        table = pd.DataFrame(
            {"hemisphere": "", "i": self.i, "j": self.j, "k": self.k, "areas": "", "ncsnr": np.nan}
        )
        self._read_labels(table)
        ncsnr = self.folder.find(f"{self.path}/ncsnr.nii.gz", f"{self.path}/ncsnr.nii")
        if ncsnr is not None:
            table["ncsnr"] = self._at_voxels(ncsnr)
        return table

    def _mask_file(self) -> Path:
        place = f"nsddata/ppdata/{self.subject}/{self.space}"
        if self.areas.lower() == "none":
            return self.folder.need(f"{place}/brainmask.nii.gz", f"{place}/brainmask.nii")
        return self.folder.need(f"{place}/roi/{self.areas}.nii.gz", f"{place}/roi/{self.areas}.nii")

    def _at_voxels(self, path: Path) -> NDArray:
        return read_volume(path, self.shape)[self.i, self.j, self.k]

    def _read_labels(self, table: pd.DataFrame) -> None:
        files = {
            f.name.split(".nii")[0]: f
            for f in self.folder.glob(f"nsddata/ppdata/{self.subject}/{self.space}/roi/*.nii*")
        }
        names = sorted(
            {n.removeprefix("lh.").removeprefix("rh.") for n in files}, key=_by_importance
        )
        labels: list[list[str]] = [[] for _ in range(len(table))]
        cortex = {side: np.zeros(len(table), dtype=bool) for side in HEMISPHERES}
        for name in names:
            sides = {
                side: self._at_voxels(files[f"{side}.{name}"])
                for side in HEMISPHERES
                if f"{side}.{name}" in files
            }
            both = [self._at_voxels(files[name])] if name in files else list(sides.values())
            self._label(labels, name, np.max(both, axis=0))
            if (
                len(sides) == 2
            ):  # -1 is outside the cortex of this side, 0 inside, but without a label
                for side, values in sides.items():
                    cortex[side] |= values >= 0
        table["areas"] = [",".join(dict.fromkeys(names)) for names in labels]
        table["hemisphere"] = np.select(
            [cortex["lh"] & ~cortex["rh"], cortex["rh"] & ~cortex["lh"]], ["L", "R"], ""
        )

    def check(self, files: tuple[Path, ...]) -> None:
        (path,) = files
        if path.suffix in (".hdf5", ".mat"):
            with open_hdf5(path) as file:
                hdf5_array(file, "betas", "int16", (TRIALS, *self.shape[::-1]))
        else:
            self._open_nifti(path)

    def _open_nifti(self, path: Path) -> Volume:
        image = open_volume(path)
        if image.dtype != np.int16 or image.shape != (*self.shape, TRIALS):
            raise UbrainError(
                f"{path}: expected {(*self.shape, TRIALS)} int16, got {image.shape} {image.dtype}"
            )
        if image.scale != (1, 0):
            raise UbrainError(
                f"{path}: its header scales the numbers by {image.scale[0]:g}; the published betas"
                " are not scaled, so somebody has changed this file"
            )
        return image

    def read(self, files: tuple[Path, ...]) -> Iterator[Part]:
        (path,) = files
        if path.suffix in (".hdf5", ".mat"):
            yield from _read_hdf5(path, self.shape[::-1], (self.k, self.j, self.i), 0)
            return
        index = np.ravel_multi_index((self.i, self.j, self.k), self.shape, order="F")
        for start, values in self._open_nifti(path).trials(index):
            yield Part(values / SCALE, start)


class _Surface(_Grid):
    """Vertices of both hemispheres, left before right; on fsaverage the betas are not scaled, on
    the subject's own they are.
    """

    everything = "all vertices"

    def _voxels(self) -> pd.DataFrame:
        if self.space == "fsaverage":
            self.unit = "float32, percent signal change, not scaled"
        self.vertices, tables = {}, []
        self.n_vertices: dict[str, int] = {}
        for side, letter in HEMISPHERES.items():
            mask = self._mask(side)
            check_voxels(len(mask), f"{self.folder}: {self.subject}, {side}")
            self.vertices[side], self.n_vertices[side] = np.flatnonzero(mask), len(mask)
            table = pd.DataFrame({"hemisphere": letter, "vertex": self.vertices[side]}).assign(
                areas="", ncsnr=np.nan
            )
            labels: list[list[str]] = [[] for _ in range(len(table))]
            for path in self._label_files(side):
                values = read_volume(path, mask.shape)
                if np.array_equal(values, np.rint(values)):
                    self._label(labels, path.name.split(".")[1], values[self.vertices[side]])
            table["areas"] = [",".join(dict.fromkeys(names)) for names in labels]
            ncsnr = self.folder.find(
                f"{self.path}/{side}.ncsnr.mgh", f"{self.path}/{side}.ncsnr.mgz"
            )
            if ncsnr is not None:
                table["ncsnr"] = read_volume(ncsnr, mask.shape)[self.vertices[side]]
            tables.append(table)
        self.label_files = list(dict.fromkeys(self.label_files))
        if not any(map(len, tables)):
            raise UbrainError(f"{self.subject}: no vertex has a label above 0 in {self.areas}")
        return pd.concat(tables, ignore_index=True)

    @property
    def _label_folder(self) -> str:
        return (
            f"nsddata/freesurfer/{'fsaverage' if self.space == 'fsaverage' else self.subject}/label"
        )

    def _mask(self, side: str) -> NDArray[np.bool_]:
        if self.masks is not None:
            path = algonauts_mask(self.masks, self.subject, side)
            mask = check_array(load_npy(path), str(path), "biuf", [None])
            check_voxels(len(mask), path)
            return np.asarray(mask) != 0  # the sum of two masks: 2 means in both
        if self.areas.lower() != "none":
            return (
                read_volume(self.folder.need(f"{self._label_folder}/{side}.{self.areas}.mgz")) > 0
            )
        ncsnr = self.folder.need(
            f"{self.path}/{side}.ncsnr.mgh", f"{self._label_folder}/{side}.nsdgeneral.mgz"
        )
        return np.ones(read_volume(ncsnr).shape, dtype=bool)

    def _label_files(self, side: str) -> list[Path]:
        """Files of areas: those with a table of labels, or a known name; the folder holds
        continuous maps, too.
        """
        found = []
        for path in self.folder.glob(f"{self._label_folder}/{side}.*.mgz"):
            name = path.name.split(".")[1]
            table = self.folder.find(f"{self._label_folder}/{name}.mgz.ctab")
            if name in LABELS or table is not None:
                found.append(path)
        return sorted(found, key=lambda p: _by_importance(p.name.split(".")[1]))

    def check(self, files: tuple[Path, ...]) -> None:
        for path, n in zip(files, self.n_vertices.values(), strict=True):
            if path.suffix == ".hdf5":
                with open_hdf5(path) as file:
                    hdf5_array(file, "betas", "int16", (TRIALS, n))
            else:
                self._open_mgh(path, n)

    def _open_mgh(self, path: Path, n_vertices: int) -> Volume:
        image = open_volume(path)
        if image.dtype.newbyteorder("=") != np.float32 or image.shape != (n_vertices, 1, 1, TRIALS):
            raise UbrainError(
                f"{path}: expected {(n_vertices, 1, 1, TRIALS)} float32, got {image.shape}"
                f" {image.dtype}"
            )
        return image

    def read(self, files: tuple[Path, ...]) -> Iterator[Part]:
        first = 0
        for path, (side, n) in zip(files, self.n_vertices.items(), strict=True):
            vertices = self.vertices[side]
            if not len(vertices):
                continue
            if path.suffix == ".hdf5":
                yield from _read_hdf5(path, (n,), (vertices,), first)
            else:
                yield from (
                    Part(values, start, first)
                    for start, values in self._open_mgh(path, n).trials(vertices)
                )
            first += len(vertices)


def _by_importance(label_file: str) -> tuple[int, str]:
    """Areas that NSD has measured come before those of atlases."""
    ranks = [i for i, name in enumerate(LABELS) if name == label_file]
    return (ranks or [len(LABELS)])[0], label_file


def algonauts_mask(folder: Folder, subject: str, side: str) -> Path:
    """The mask of all vertices of Algonauts 2023, in any of the layouts in which it is passed
    on.
    """
    name, number = f"{side}.all-vertices_fsaverage_space.npy", int(subject[-2:])
    places = (
        f"{subject}/roi_masks",
        f"roi_masks/{subject}",
        f"roi_masks/{subject}/roi_masks",
        f"sub{number}",
        subject,
        f"roi_masks/sub{number}",
    )
    return folder.need(*(f"{place}/{name}" for place in places))


def _read_hdf5(
    path: Path, shape: Sequence[int], place: tuple[NDArray[np.int64], ...], first: int
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
