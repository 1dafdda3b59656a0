"""LAION-fMRI: 5 subjects at 7T, from its folders derivatives and stimuli, in either of the two
layouts in which they have been handed out, or in a mixture.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.crowd import reading
from ubrain.data.importers.betas import same_place
from ubrain.data.importers.laion_splits import Splits
from ubrain.data.importers.layouts import (
    check_choice,
    chosen_sessions,
    join_areas,
    layout,
    ncsnr_of_ceiling,
    spans,
    warn_absent,
)
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    Volume,
    area_name,
    check_array,
    check_size,
    check_voxels,
    hdf5_array,
    open_hdf5,
    open_volume,
    read_rgb,
    read_table,
    read_volume,
    rgb_shape,
)
from ubrain.data.importers.recording import (
    DEFAULTS,
    Block,
    ImageFiles,
    Options,
    Part,
    Recording,
    complete,
    parse_numbers,
    select,
    some_trials,
)
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log

LAION = layout("laion")
GLM = "derivatives/glmsingle-tedana"
AREAS = {name.replace("-", "").lower(): name for name in LAION.areas.split()}
GREY = 127.5  # what was seen through transparent images: 0.5 of 1


def import_laion(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    voxels: str = "R2mean>15",
    ceiling: str | None = None,
    sessions: str | None = None,
    splits: str | Path | None = None,
    split: str | None = None,
) -> str:
    """Write LAION-fMRI subjects into a crowd file.

    Parameters
    ----------
    root : folder that holds derivatives and stimuli, complete or in part.
    out : crowd file to write (.h5).
    options : those that all importers share.
    voxels : "R2mean>15", or another number: where the mean R² of GLMsingle is above; a mask file,
        in whose name "{subject}" stands for sub-01 and so on; or names of areas, separated by
        commas, such as "laion-ventral,V1v".
    ceiling : published noise ceiling that ncsnr is computed from, 12rep, 4rep or Allrep; default:
        the first of these that is there.
    sessions : such as "1-3"; default: all that are there.
    splits : folder of the published splits, such as sub-01/tau.json; default: those below root.
    split : which of them decides the splits in the crowd file, such as tau, or tau-sub-01 for the
        file of one subject; or "shared": images shown to all subjects are test images. Default:
        tau, if its files are there, else shared.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the others.
    """
    if ceiling is not None:
        check_choice("ceiling", ceiling, LAION.ceilings)
    if options.images_may_be_shown:
        raise UbrainError("--images-may-be-shown: the terms of LAION-fMRI's images forbid that")
    options = replace(options, image_source=options.image_source or LAION.source)
    folder = Folder(root, options.follow_links)
    wanted = parse_numbers(sessions) if sessions else None
    found = {p.parents[2].name.lower() for p in folder.glob(f"{GLM}/sub-*/ses-*/func/*betas*")}
    names = select(options.subjects, found, f"{folder}/{GLM}")
    warn_absent("betas", LAION.subjects, found)
    subjects = complete(names, options.subjects, lambda name: _Subject(folder, name, wanted))
    published = Splits(folder if splits is None else Folder(splits, options.follow_links))
    if splits is not None and not published.files:
        raise UbrainError(f"{splits} has no splits, such as sub-01/tau.json")
    labels = set[str]().union(*(subject.trials["label"] for subject in subjects.values()))
    with open_stimuli(folder, labels) as images:
        said = published.give(images, subjects, split)

        def describe(name: str) -> Recording:
            return _recording(subjects[name], images, voxels, ceiling, said)

        recordings = list(complete([*subjects], options.subjects, describe).values())
        settings = {
            "dataset": "laion",
            "voxels": voxels,
            "ceiling": ceiling,
            "sessions": sessions,
            "split": split,
            "splits": published.digests,
        }
        return import_recordings(recordings, out, options, settings)


def _recording(
    subject: "_Subject", images: "Stimuli", voxels: str, ceiling: str | None, said: list[str]
) -> Recording:
    table, chosen = subject.voxels(voxels)
    ncsnr, of = subject.ncsnr(ceiling, table)
    number = {label: i for i, label in enumerate(images.ids)}
    trials = subject.trials.assign(image=subject.trials["label"].map(number))
    there, blocks = trials["image"].notna(), list[Block]()
    for session, betas in subject.betas.items():
        keep = there[trials["session"] == session].to_numpy()
        if keep.any():
            rows, files = np.flatnonzero(keep), subject.files[session]
            read = partial(some_trials, partial(_read, betas, table), rows, len(keep))
            blocks.append(Block(f"session {session}", len(rows), read, files))
    absent, missing = trials.loc[~there, "label"], []
    if not blocks:
        raise MissingError(
            f"{subject.name}: none of its images is there, such as {absent.iloc[0]!r}"
        )
    if later := [s for s in range(1, LAION.sessions + 1) if s not in subject.files]:
        missing.append(f"betas of session {spans(later)}")
    if len(absent):
        missing.append(
            f"{absent.nunique()} images, such as {absent.iloc[0]!r}; their {len(absent)} trials"
            " are left out"
        )
    kinds = ", ".join(dict.fromkeys(str(betas.dtype) for betas in subject.betas.values()))
    account = [
        (
            "Betas: single trials of GLMsingle type D (fitted HRF, GLMdenoise, ridge) in space T1w,"
            f" {kinds}: nominally percent signal change, which we do not scale"
        ),
        *chosen,
        f"Sessions {spans(subject.betas)}; an image is that which has the label as its name",
        *said,
    ]
    return Recording(
        f"laion-{subject.name}",
        "LAION-fMRI",
        "7T",
        "T1w",
        images,
        trials.loc[there, ["image", "session", "run"]].astype(np.int64).reset_index(drop=True),
        table if ncsnr is None else table.assign(ncsnr=ncsnr),
        blocks,
        account,
        missing,
        ceiling=of,
    )


def _read(betas: Volume, voxels: pd.DataFrame) -> Iterator[Part]:
    """The responses of a session, a few volumes at a time."""
    places = tuple(voxels[["i", "j", "k"]].to_numpy().T)
    index = np.ravel_multi_index(places, betas.shape[:3], order="F")
    for start, values in betas.trials(index):
        yield Part(values, start)


class _Subject:
    """A subject's files.

    Attributes
    ----------
    files : betas and table of trials of each session that is there.
    betas : of each chosen session.
    trials : label, session and run, in the order of the betas.
    """

    def __init__(self, folder: Folder, name: str, wanted: list[int] | None) -> None:
        self.folder, self.name = folder, name
        self.files, self.betas = self._session_files(), dict[int, Volume]()
        tables = []
        for session in chosen_sessions(name, wanted, self.files):
            path, table = self.files[session]
            self.betas[session] = check_array(open_volume(path), str(path), "fiu", (None,) * 4)
            self._check_grid(path)
            tables.append(_trials(table, session, self.betas[session].shape[3]))
        self.trials = pd.concat(tables, ignore_index=True)

    def _session_files(self) -> dict[int, tuple[Path, Path]]:
        found, stem = dict[int, tuple[Path, Path]](), rf"{self.name}_ses-0*(\d{{1,6}})_task-images"
        betas = rf"({stem})_space-T1w_stat-effect_desc-SingletrialBetas_statmap\.nii(?:\.gz)?"
        for path in self.folder.glob(f"{GLM}/{self.name}/ses-*/func/*betas_statmap.nii*"):
            if not (match := re.fullmatch(betas, path.name, re.IGNORECASE)):
                continue
            table = f"{self.folder.name(path.parent)}/{match[1]}_desc-SingletrialBetas_trials.tsv"
            if (trials := self.folder.find(table)) is None:
                log.warning("%s is left out: there is no table of its trials", path)
            elif found.setdefault(int(match[2]), (path, trials)) != (path, trials):
                raise UbrainError(
                    f"{path}: there are other betas of that session; keep one of them"
                )
        if not found:
            raise MissingError(
                f"{self.folder}/{GLM}/{self.name} has no session with"
                " ..._desc-SingletrialBetas_statmap.nii.gz and ..._trials.tsv"
            )
        return found

    def _check_grid(self, path: Path) -> tuple[int, ...]:
        """Shape of the betas; a file whose voxels are others is refused."""
        mine, grid = open_volume(path), next(iter(self.betas.values()))
        shapes = mine.shape[:3], grid.shape[:3]
        if shapes[0] != shapes[1] or not same_place(mine.affine, grid.affine):
            raise UbrainError(
                f"{path}: its {'affine' if shapes[0] == shapes[1] else 'shape'} is not that of"
                f" {grid.path.name}, so its voxels are others (only resolution {LAION.resolution}"
                " fits)"
            )
        return shapes[1]

    def _map(self, path: Path) -> NDArray:
        """A mask or a map of the same voxels as the betas."""
        return read_volume(path, self._check_grid(path))

    def _names(self, *ends: str) -> list[str]:
        """Where maps of the subject, of all sessions, may be."""
        start = f"{GLM}/{self.name}/{self.name}_task-images_space-T1w"
        return [f"{start}_{end}.{kind}" for end in ends for kind in ("nii.gz", "nii")]

    def voxels(self, wanted: str) -> tuple[pd.DataFrame, list[str]]:
        """i, j, k and areas of each voxel, x slowest as in the dataset's own package; and what is
        said about them.
        """
        files = self._area_files()
        paths, least = self._masks(wanted, files)
        mask = np.any([self._map(path) > least for path in paths], axis=0)
        if not mask.any():
            raise UbrainError(f"{self.name}: --voxels {wanted[:60]}: no voxel in {paths[0]}")
        check_voxels(int(mask.sum()), paths[0])
        i, j, k = np.nonzero(mask)
        inside = ((name, self._map(path)[i, j, k] > 0) for name, path in files.items())
        found = ((row, name) for name, mine in inside for row in np.flatnonzero(mine).tolist())
        table = pd.DataFrame({"i": i, "j": j, "k": k, "areas": join_areas(len(i), found)})
        return table, [
            f"Voxels: above {least:g} in {', '.join(path.name for path in paths)}, in the order of"
            " the dataset's own package",
            f"Areas: {', '.join(files) or 'no masks found'}",
        ]

    def _masks(self, wanted: str, files: dict[str, Path]) -> tuple[list[Path], float]:
        """Files of the wanted voxels, and above which value these are."""
        if above := re.fullmatch(
            r"\s*R2mean\s*>\s*(\d{1,3}(?:\.\d{1,6})?)\s*", wanted, re.IGNORECASE
        ):
            least, ends = float(above[1]), ["stat-rsquare_desc-R2mean_statmap"]
            ends += ["desc-meanR2gt15mask_mask"] if least == 15 else []
            path = self.folder.need(*self._names(*ends))
            return [path], 0 if "gt15mask" in path.name.lower() else least
        if "/" in wanted or wanted.lower().endswith((".nii", ".nii.gz")):
            return [Path(wanted.replace("{subject}", self.name))], 0
        known, areas = {_plain(name): path for name, path in files.items()}, wanted.split(",")
        if unknown := [area for area in areas if _plain(area) not in known]:
            raise MissingError(
                f"{self.folder}: --voxels: {self.name} has no area {unknown[0][:40]!r}; found"
                f" {', '.join(files)[:400] or 'none'}"
            )
        return [known[_plain(area)] for area in areas], 0

    def _area_files(self) -> dict[str, Path]:
        """Mask of each area; of one that both layouts have, the newer."""
        newer = rf"{self.name}_space-T1w(?:_res-{LAION.resolution})?_label-(.+)_mask"
        found = dict[str, Path]()
        for pattern, name in (
            (f"derivatives/atlases/{self.name}/rois/*.nii*", "(.+)"),
            (f"derivatives/rois/{self.name}/*/*_mask.nii*", newer),
        ):
            mine = dict[str, Path]()
            for path in self.folder.glob(pattern):
                if match := re.fullmatch(rf"{name}\.nii(?:\.gz)?", path.name, re.IGNORECASE):
                    text = str(match[1])
                    area = area_name(AREAS.get(_plain(text), text), path)
                    if mine.setdefault(area, path) != path:
                        raise UbrainError(f"{mine[area]} and {path} are masks of the same area")
            found |= mine
        order = [*AREAS.values(), *found]
        return dict(sorted(found.items(), key=lambda item: order.index(item[0])))

    def ncsnr(
        self, ceiling: str | None, voxels: pd.DataFrame
    ) -> tuple[NDArray[np.float64] | None, str]:
        """ncsnr of each voxel from the published noise ceiling, and which that is."""
        look = self.folder.need if ceiling else self.folder.find
        for name in [ceiling] if ceiling else LAION.ceilings:
            if path := look(*self._names(f"desc-Noiseceiling{name}_statmap")):
                images = {int(repeats): n for repeats, n in LAION.ceilings[name].items()}
                share = sum(n / repeats for repeats, n in images.items()) / sum(images.values())
                percent = self._map(path)[voxels["i"], voxels["j"], voxels["k"]]
                said = f"ncsnr from Noiseceiling{name}, mean of 1 / repeats {share:.4f}"
                return ncsnr_of_ceiling(percent, share, path), said
        return None, "unknown"


def _plain(area: str) -> str:
    return area.strip().replace("-", "").lower()


def _trials(path: Path, session: int, n: int) -> pd.DataFrame:
    """Label, session and run of each of a session's n trials, in the order of the betas."""
    table = read_table(path, ["session", "run", "beta_index", "label"], "\t", whole=["beta_index"])
    table = table.sort_values("beta_index", ignore_index=True)
    if not np.array_equal(table["beta_index"], np.arange(n)):
        raise UbrainError(
            f"{path}: column 'beta_index': expected each number from 0 to {n - 1} once, as there"
            f" are {n} betas, got {len(table)} numbers"
        )
    if not all(isinstance(label, str) for label in table["label"]):
        raise UbrainError(f"{path}: column 'label': expected the name of an image in each row")
    for column in ("session", "run"):  # 1 or ses-01: which of them is unconfirmed
        digits = table[column].astype(str).str.extract(r"^(?:[a-z]+-)?(\d{1,6})(?:\.0)?$")[0]
        if digits.isna().any():
            raise UbrainError(f"{path}: column {column!r}: expected the number of a {column}")
        table[column] = digits.astype(np.int64)
    if (table["session"] != session).any():
        raise UbrainError(f"{path}: column 'session': expected {session} in all rows")
    return table


# --- images


class Stimuli(ImageFiles):
    """Images called by their labels: files, or `rows` of `encoded` files (n,) in HDF5."""

    rows: Sequence[int] = ()
    encoded: Any = None

    def _data(self, i: int) -> tuple[Path, bytes | None]:
        """Where an image is, and its bytes if it is no file."""
        if self.encoded is None:
            return self.files[i], None
        place = self.files[i] / self.ids[i]
        with reading(self.files[i]):
            data = np.asarray(self.encoded[self.rows[i]], np.uint8).tobytes()
        check_size(len(data), LAION.max_picture, place)
        return place, data

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """As RGB, on the grey of the scanner's screen."""
        return read_rgb(*self._data(i), background=GREY)

    def shape(self, i: int) -> tuple[int, int]:
        """From its header."""
        return rgb_shape(*self._data(i))


@contextmanager
def open_stimuli(folder: Folder, labels: set[str]) -> Iterator[Stimuli]:
    """The images that have exactly these names; upper and lower case of files are the same."""
    path = folder.find("stimuli/task-images_stimuli.h5")
    if path is None:
        yield _image_files(folder, labels)
        return
    table = folder.need("stimuli/task-images_metadata.csv")
    names = read_table(table, ["image_name"])["image_name"].tolist()
    if len({*names}) < len(names):
        raise UbrainError(f"{table}: column 'image_name': a name is there twice")
    with open_hdf5(path) as file:
        encoded = hdf5_array(file, "images", "O", (len(names),))
        if h5py.check_vlen_dtype(encoded.dtype) != np.uint8:
            raise UbrainError(f"{path}: 'images': expected bytes of files, got {encoded.dtype}")
        rows = [row for row, name in enumerate(names) if name in labels]
        images = Stimuli([path] * len(rows), [names[row] for row in rows])
        images.rows, images.encoded = rows, encoded
        yield images


def _image_files(folder: Folder, labels: set[str]) -> Stimuli:
    place = folder.need("stimuli/images", "stimuli/task-images_stimuli.h5")
    found = dict[str, Path]()
    for path in folder.pictures(labels):
        if path.is_relative_to(place) and found.setdefault(path.name, path) != path:
            raise UbrainError(f"{place}: {path.name!r} is there twice; keep one of them")
    any_case = {name.lower(): path for name, path in found.items()}
    files = {label: found.get(label) or any_case.get(label.lower()) for label in sorted(labels)}
    there = {label: path for label, path in files.items() if path}
    return Stimuli([*there.values()], [*there])
