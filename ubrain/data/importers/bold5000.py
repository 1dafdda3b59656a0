"""BOLD5000 (Chang et al. 2019): 4 subjects at 3T; the volumes of release 2, or the responses of
areas of either release.
"""

import gzip
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import nibabel as nib
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
    warn_absent,
)
from ubrain.data.importers.masks import Selection
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import (
    Folder,
    Volume,
    open_volume,
    read_labels,
    read_lines,
    read_mat,
)
from ubrain.data.importers.recording import (
    DEFAULTS,
    Block,
    ImageFiles,
    Options,
    Part,
    Pictures,
    Recording,
    array_block,
    complete,
    parse_numbers,
    photograph_key,
    select,
)
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log

BOLD5000 = layout("bold5000")
AREAS, SESSIONS = BOLD5000.areas, BOLD5000.sessions
SIDES = {"LH": "L", "RH": "R"}
Key = tuple[str, str]  # LH or RH, and an area


def import_bold5000(
    root: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    responses: str = "volumes",
    betas: str = "TYPED-FITHRF-GLMDENOISE-RR",
    areas: str = "all",
    tr: str = "34",
    sessions: str | None = None,
    images: str | Path | None = None,
) -> str:
    """Write BOLD5000 subjects into a crowd file.

    Parameters
    ----------
    root : folder that holds the responses (at any depth), BOLD5000_Stimuli and, for areas, the
        masks `sub-CSI1_mask-LHEarlyVis.nii.gz` of OpenNeuro's ds001499.
    out : crowd file to write (.h5).
    options : those that all importers share.
    responses : "volumes": betas of release 2, a file per session
        (`CSI1_GLMbetas-..._ses-01.nii.gz`); "areas": betas of release 2 in areas
        (`CSI1_GLMbetas-..._allses_LHPPA.npy`); "release1": the areas of release 1
        (`CSI1_ROIs_TR34.h5` or .mat).
    betas : version of the betas of release 2.
    areas : "all": voxels of any area; or names, such as "EarlyVis,PPA"; or, for volumes, "none":
        the whole brain.
    tr : of release 1, which volume after the image: 1 to 5, or 34, the mean of the third and the
        fourth.
    sessions : such as "1-9"; default: all that are there.
    images : folder of the presented images; default:
        BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli in `root`.

    Returns
    -------
    What was done, or with `options.dry_run` would be done.

    Raises
    ------
    UbrainError
        If a file is missing, damaged, or does not fit the others.
    """
    check_choice("responses", responses, BOLD5000.responses)
    check_choice("tr", tr, BOLD5000.times)
    wanted_areas = _wanted_areas(areas, responses)
    folder = Folder(root, options.follow_links)
    pattern, example = BOLD5000.responses[responses]
    version = re.escape(betas).replace("TYPEB", "TY[PB]EB")  # published as TYBEB
    files = {
        name: found
        for name in SESSIONS
        if (found := folder.search(pattern.format(subject=name, version=version, tr=tr)))
    }
    example = example.format(betas=betas, tr=tr)
    where = f"{folder} ({responses}: files such as {example})"
    names = select(options.subjects, files, where, _versions(folder, responses))
    warn_absent(responses, SESSIONS, files)
    wanted = parse_numbers(sessions) if sessions else None
    shown = complete(names, options.subjects, lambda name: _shown(folder, name, responses))
    stimuli = _Stimuli(
        folder,
        shown | _shown_to_others(folder, names, responses),
        list(shown),
        images,
        options.follow_links,
    )

    def describe(name: str) -> Recording:
        subject = _Subject(folder, name, shown[name], wanted)
        return (_volumes if responses == "volumes" else _areas)(
            subject, files[name], wanted_areas, stimuli
        )

    recordings = list(complete(list(shown), options.subjects, describe).values())
    settings = {
        "dataset": "bold5000",
        "responses": responses,
        "betas": betas,
        "areas": areas,
        "tr": tr,
        "sessions": sessions,
    }
    return import_recordings(recordings, out, options, settings)


def _versions(folder: Folder, responses: str) -> list[str]:
    """Versions of betas that are there, and times of release 1."""
    pattern = BOLD5000.responses[responses][0].format(subject=r"CSI\d", version="(.+)", tr=r"(\d+)")
    names = (path.name for path in folder.search(pattern))
    return [match[1] for name in names if (match := re.fullmatch(pattern, name, re.IGNORECASE))]


def _wanted_areas(areas: str, responses: str) -> list[str] | None:
    """Names of areas; of none for the whole brain (None)."""
    if areas.lower() == "none":
        if responses != "volumes":
            raise UbrainError(
                f"--areas none is for --responses volumes; --responses {responses} has nothing but"
                " areas"
            )
        return None
    names = AREAS if areas.lower() == "all" else [name.strip() for name in areas.split(",")]
    known = {name.lower(): name for name in AREAS}
    if unknown := [name for name in names if name.lower() not in known]:
        raise UbrainError(
            f"--areas {unknown[0]}: expected all, none, or names from {', '.join(AREAS)}"
        )
    return [known[name.lower()] for name in names]


# --- what was shown


def _shown(folder: Folder, subject: str, responses: str) -> list[str]:
    """Names of the images of all trials of a subject, in order, of all sessions."""
    if responses == "release1":
        name, pattern = f"CSI0{subject[-1]}_stim_lists.txt", rf"CSI0?{subject[-1]}_stim_lists\.txt"
    else:
        name, pattern = f"{subject}_imgnames.txt", rf"(sub-)?{subject}_imgnames\.txt"
    files = folder.search(pattern)
    if not files:
        raise MissingError(f"{folder} has no {name}, which says what {subject} was shown")
    lists = [_names_in(file) for file in files]
    for file, names in zip(files, lists, strict=True):
        if [_same(n) for n in names] != [_same(n) for n in lists[0]]:
            raise UbrainError(
                f"{folder.name(files[0])} and {folder.name(file)} in {folder} name different"
                " images; keep the right one"
            )
    if not lists[0]:
        raise UbrainError(f"{files[0]} is empty")
    return lists[0]


def _shown_to_others(folder: Folder, names: Sequence[str], responses: str) -> dict[str, list[str]]:
    """What the other subjects were shown, as far as known: it tells which images were repeated."""
    found = {}
    for name in SESSIONS:
        if name not in names:
            try:
                found[name] = _shown(folder, name, responses)
            except MissingError:
                continue
            except UbrainError as error:
                log.warning("what %s was shown is not known: %s", name, error)
    return found


def _names_in(path: Path) -> list[str]:
    """Names of image files, without the prefix that release 1 gives to repeats."""
    names = (line.strip("'\"").replace("\\", "/").rpartition("/")[2] for line in read_lines(path))
    return [re.sub(r"^rep_", "", name, flags=re.IGNORECASE) for name in names]


def _same(name: str) -> str:
    """What is equal for two names of one image."""
    return photograph_key(name) or Path(name).stem.lower()


# --- images


class _Stimuli(ImageFiles):
    """The presented images of some subjects, each once, in the order of first presentation."""

    def __init__(
        self,
        folder: Folder,
        shown: dict[str, list[str]],
        subjects: Sequence[str],
        images: str | Path | None,
        follow: bool,
    ) -> None:
        place = images or folder.find(*BOLD5000.presented)
        if place is None:
            raise UbrainError(
                f"{folder} has no {BOLD5000.presented[0]}; name the folder of the images with"
                " --images"
            )
        names = {_same(name): name for subject in subjects for name in reversed(shown[subject])}
        pictures = Pictures(Folder(place, follow), names.values())
        found = {key: pictures.find(name) for key, name in names.items()}
        missing = [names[key] for key, path in found.items() if path is None]
        if missing:
            raise UbrainError(
                f"{place}: {len(missing)} of {len(names)} presented images are not there, such as "
                f"{', '.join(missing[:3])}; is the download complete?"
            )
        files = {key: path for key, path in found.items() if path is not None}
        test, self.account = _test_images(folder, shown)
        self.number = {key: i for i, key in enumerate(files)}
        super().__init__(
            list(files.values()),
            splits=["test" if key in test else "rest" for key in files],
            keys=[photograph_key(path.name) for path in files.values()],
        )


def _test_images(folder: Folder, shown: dict[str, list[str]]) -> tuple[set[str], str]:
    """Images that were shown again and again: the same for all subjects, whoever is imported."""
    everything = {_same(name) for names in shown.values() for name in names}
    for file in folder.search(r"repeated_stimuli_113_list\.(txt|csv)"):
        listed = {_same(name) for name in _names_in(file)} & everything
        if not listed:
            raise UbrainError(f"{file}: none of its images was shown to anybody")
        return listed, f"Test images: the {len(listed)} repeated images that {file.name} lists"
    counts = [Counter(_same(name) for name in names) for names in shown.values()]
    repeated = {key for count in counts for key, n in count.items() if n > 1}
    if not repeated:
        raise UbrainError(f"{folder}: no image was shown twice, so there are no test images")
    return (
        repeated,
        (
            f"Test images: the {len(repeated)} images that were shown several times to one of"
            f" {', '.join(shown)}"
        ),
    )


# ------------------------------------------------------------------------------------------------
# sessions, trials


@dataclass
class _Subject:
    """One subject: its images, trial by trial, and how these belong to sessions and runs."""

    folder: Folder
    name: str
    shown: list[str]
    wanted: list[int] | None

    def __post_init__(self) -> None:
        self.presented = self._presented()

    def _presented(self) -> dict[int, int]:
        """Trials of each session by the lists of runs (`CSI_sess01_run01.txt`), if they agree."""
        pattern = re.compile(r"\w+_sess0*(\d+)_run0*(\d+)\.txt", re.IGNORECASE)
        runs: dict[tuple[int, int], list[str]] = {}
        for path in self.folder.search(pattern.pattern):
            mine = any(
                part.upper().split("_")[0] == self.name
                for part in Path(self.folder.name(path)).parts
            )
            if mine and (numbers := pattern.fullmatch(path.name)):
                runs[int(numbers[1]), int(numbers[2])] = [_same(n) for n in _names_in(path)]
        lists = [runs[number] for number in sorted(runs)]
        if runs and [key for keys in lists for key in keys] != [_same(name) for name in self.shown]:
            log.warning(
                "%s: Stimuli_Presentation_Lists do not agree with the list of images, and are not"
                " used",
                self.name,
            )
            return {}
        lengths: Counter[int] = Counter()
        for (session, _), keys in runs.items():
            lengths[session] += len(keys)
        return dict(lengths)

    def starts(self, lengths: dict[int, int]) -> dict[int, int]:
        """The first trial, among all, of each session whose number of trials is known from its
        file.

        Sessions differ in length. One whose file is not there is as long as the presentation lists
        say; or else the sessions after it are counted from the end.
        """
        for s in lengths:
            if lengths[s] != self.presented.get(s, lengths[s]):
                raise UbrainError(
                    f"{self.folder}: {self.name}, session {s}: betas of {lengths[s]} trials, but"
                    f" Stimuli_Presentation_Lists has {self.presented[s]}; are they of another"
                    " session?"
                )
        known, total = {**self.presented, **lengths}, len(self.shown)
        order = range(1, max(SESSIONS[self.name], *known) + 1)
        front, back = (
            list(takewhile(known.__contains__, sessions)) for sessions in (order, reversed(order))
        )
        begins = np.cumsum([0, *(known[s] for s in front)]).tolist()
        ends = (total - np.cumsum([0, *(known[s] for s in back)])).tolist()
        complete = len(front) == len(order)
        if (complete and begins[-1] != total) or (not complete and begins[-1] >= ends[-1]):
            sessions = ", ".join(map(str, sorted(known)))
            raise UbrainError(
                f"{self.folder}: {self.name}: sessions {sessions} have {sum(known.values())}"
                f" trials, but the list of images has {total} lines; is one of them of another"
                " subject?"
            )
        starts = dict(zip(back, ends[1:], strict=True)) | dict(zip(front, begins, strict=False))
        return {s: starts[s] for s in lengths if s in starts}

    def trials(self, sessions: dict[int, tuple[int, int]], stimuli: _Stimuli) -> pd.DataFrame:
        """Image, session and run of trials, from each session's first trial and their number."""
        tables = [
            pd.DataFrame(
                {
                    "image": [
                        stimuli.number[_same(name)] for name in self.shown[start : start + n]
                    ],
                    "session": session,
                    "run": np.arange(n) // BOLD5000.trials_of_run,
                }
            )
            for session, (start, n) in sessions.items()
        ]
        return pd.concat(tables, ignore_index=True)


# --- volumes


def _volumes(
    subject: _Subject, files: Sequence[Path], areas: list[str] | None, stimuli: _Stimuli
) -> Recording:
    by_session = _by_session(subject, files)
    first = next(iter(by_session.values()))
    shape = open_volume(first).shape[:3]
    if math.prod(shape) > BOLD5000.max_grid:
        raise UbrainError(
            f"{first}: {shape} is too large to be what is expected here, up to"
            f" {BOLD5000.max_grid} voxels"
        )
    lengths = {s: _open_session(file, shape).shape[3] for s, file in by_session.items()}
    starts = subject.starts(lengths)
    there = lengths if subject.wanted or not starts else starts
    chosen = chosen_sessions(subject.name, subject.wanted, there)
    if lost := [s for s in chosen if s not in starts]:
        raise UbrainError(
            f"{subject.name}: which trials are those of session {lost[0]} is not known without the"
            " sessions before or after it, or Stimuli_Presentation_Lists"
        )
    grid = _Grid(subject, first, areas)
    blocks = [
        Block(f"session {s}", lengths[s], grid.reader(by_session[s]), (by_session[s],))
        for s in chosen
    ]
    missing = [
        f"betas of session {s}" for s in range(1, SESSIONS[subject.name] + 1) if s not in lengths
    ]
    missing += [
        f"the place of session {s} among the trials, so it is left out"
        for s in lengths
        if s not in starts
    ]
    version = by_session[chosen[0]].name.split("_ses")[0]
    counts = " or ".join(str(n) for n in sorted({lengths[s] for s in chosen}))
    account = [
        (
            f"Betas of release 2, {version}: percent signal change, not scaled; {len(chosen)}"
            f" session(s) of {counts} trials"
        ),
        *grid.account,
        stimuli.account,
    ]
    trials = subject.trials({s: (starts[s], lengths[s]) for s in chosen}, stimuli)
    return Recording(
        f"bold5000-{subject.name}",
        "BOLD5000",
        "3T",
        "func2mm",
        stimuli,
        trials,
        grid.voxels,
        blocks,
        account,
        missing + grid.missing,
    )


def _by_session(subject: _Subject, files: Sequence[Path]) -> dict[int, Path]:
    """The file of each session; one that is not compressed is read faster."""
    found: dict[int, list[Path]] = {}
    for file in files:
        found.setdefault(int(re.findall(r"\d+", file.name.split(".")[0])[-1]), []).append(file)
    for session, copies in found.items():
        if len({str(file).lower().removesuffix(".gz") for file in copies}) > 1:
            raise UbrainError(
                f"{subject.name}, session {session}: there are {' and '.join(map(str, copies))};"
                " keep one there"
            )
    return {
        session: max(found[session], key=lambda file: file.suffix.lower() == ".nii")
        for session in sorted(found)
    }


def _open_session(path: Path, shape: Sequence[int]) -> Volume:
    image = open_betas(path, "f", (*shape, None))
    if image.shape[3] % BOLD5000.trials_of_run:
        raise UbrainError(
            f"{path}: {image.shape[3]} trials; expected runs of {BOLD5000.trials_of_run}"
        )
    return image


class _Grid:
    """Voxels of a subject: at the same indices in masks and betas, whatever the affines say."""

    def __init__(self, subject: _Subject, betas: Path, areas: list[str] | None) -> None:
        self.subject, self.betas, self.shape = subject, betas, open_volume(betas).shape[:3]
        self.turned: list[str] = []
        self.account: list[str] = []
        self.missing: list[str] = []
        brain, masks = self._brain(needed=areas is None), self._masks()
        if areas is None:
            chosen = np.ones(self.shape, dtype=bool)
        else:
            chosen = self._union(masks, areas)
            self.missing += [
                f"the mask of {side} {a}" for side in SIDES for a in areas if (side, a) not in masks
            ]
        if brain is not None:
            self._compare(chosen, brain, areas)
            chosen &= brain
        self.k, self.j, self.i = np.nonzero(chosen.T)  # x runs fastest, as in the files
        self.voxels = self._table(masks)
        self.account += [
            f"Voxels: {'the whole brain' if areas is None else 'masks of ' + ', '.join(areas)}",
            self._alignment(),
        ]

    def _alignment(self) -> str:
        """What is taken for granted about masks and betas."""
        said = (
            "Masks and betas: taken to have the same voxels in the same order; affines are not used"
        )
        if self.turned:
            said += (
                f", though by them the axes of the betas run to {_axes(self.betas)}, and those of"
                f" {len(self.turned)} mask(s) elsewhere ({self.turned[0]})"
            )
            log.warning("%s: %s", self.subject.name, said)
        return said

    def _brain(self, needed: bool) -> NDArray[np.bool_] | None:
        name = f"{self.subject.name}_brainmask.nii.gz"
        files = self.subject.folder.search(rf"{self.subject.name}_brainmask\.nii(\.gz)?")
        if not files and needed:
            raise MissingError(f"{self.subject.folder} has no {name}")
        if not files:
            self.missing.append(f"{name}, so voxels were not restricted to the brain")
            return None
        first, *others = (self._read(file) for file in files)
        if any(not np.array_equal(first, other) for other in others):
            raise UbrainError(
                f"{self.subject.folder}: {' and '.join(map(self.subject.folder.name, files))}"
                " differ; keep the right one"
            )
        return first

    def _read(self, path: Path) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = read_labels(path, self.shape) > 0
        if not mask.any():
            raise UbrainError(f"{path}: no voxel is above 0")
        axes = _axes(path), _axes(self.betas)
        if all(axes) and axes[0] != axes[1]:
            self.turned.append(f"{axes[0]} in {path.name}")
        return mask

    def _masks(self) -> dict[Key, NDArray[np.bool_]]:
        pattern = re.compile(
            rf"(?:.*_)?sub-{self.subject.name}_mask-(LH|RH)([a-z]+)\.nii(?:\.gz)?", re.IGNORECASE
        )
        masks: dict[Key, NDArray[np.bool_]] = {}
        for path in self.subject.folder.search(pattern.pattern):
            match = pattern.fullmatch(path.name)
            area = _area(match[2]) if match else None
            if match and area:
                mask, key = self._read(path), (match[1].upper(), area)
                if key in masks and not np.array_equal(masks[key], mask):
                    raise UbrainError(
                        f"{path}: another file is a mask of {match[1]} {area}, too; keep the"
                        " right one"
                    )
                masks[key] = mask
        return masks

    def _union(self, masks: dict[Key, NDArray[np.bool_]], areas: list[str]) -> NDArray[np.bool_]:
        wanted = [mask for (_, area), mask in masks.items() if area in areas]
        if not wanted:
            name = f"sub-{self.subject.name}_mask-LH{areas[0]}.nii.gz"
            raise MissingError(
                f"{self.subject.folder} has no masks such as {name} (from derivatives/spm of"
                " OpenNeuro's ds001499); import the whole brain with --areas none"
            )
        union: NDArray[np.bool_] = np.any(wanted, axis=0)
        return union

    def _compare(
        self, chosen: NDArray[np.bool_], brain: NDArray[np.bool_], areas: list[str] | None
    ) -> None:
        inside, all_of_them = int((chosen & brain).sum()), int(chosen.sum())
        if areas is not None and inside < 0.5 * all_of_them:
            raise UbrainError(
                f"{self.subject.name}: of {all_of_them} voxels in areas, {inside} are in the brain"
                " mask; are the masks of another subject?"
            )
        if areas is not None and inside < all_of_them:
            self.account.append(
                f"{all_of_them - inside} voxels of areas are outside the brain mask and were"
                " left out"
            )

    def _table(self, masks: dict[Key, NDArray[np.bool_]]) -> pd.DataFrame:
        members = [
            (row, key)
            for key in sorted(masks, key=lambda key: (AREAS.index(key[1]), key[0]))
            for row in np.flatnonzero(masks[key][self.i, self.j, self.k]).tolist()
        ]
        sides: list[set[str]] = [set() for _ in range(len(self.i))]
        for row, (side, _) in members:
            sides[row].add(side)
        return pd.DataFrame(
            {
                "hemisphere": [_hemisphere(found) for found in sides],
                "i": self.i,
                "j": self.j,
                "k": self.k,
                "areas": join_areas(len(self.i), ((row, area) for row, (_, area) in members)),
            }
        )

    def reader(self, path: Path) -> Callable[[], Iterator[Part]]:
        """A function that reads the voxels of a session."""
        index = np.ravel_multi_index((self.i, self.j, self.k), self.shape, order="F")

        return lambda: (
            Part(values, start) for start, values in _open_session(path, self.shape).trials(index)
        )


def _axes(path: Path) -> str:
    """Where the axes of a volume run by its affine, such as RAS; empty if that is not known."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
            header = nib.Nifti1Header.from_fileobj(stream)
        known = header["qform_code"] > 0 or header["sform_code"] > 0
        return (
            "".join(letter or "?" for letter in nib.aff2axcodes(header.get_best_affine()))
            if known
            else ""
        )
    except (
        Exception
    ):  # a damaged header can make nibabel raise anything, and nothing else depends on the affine
        return ""


def _hemisphere(sides: set[str]) -> str:
    """L or R, if it is one of them."""
    return SIDES[next(iter(sides))] if len(sides) == 1 else ""


def _area(name: str) -> str | None:
    """An area by its name in a file, in any case and with the known slips."""
    known = {area: area for area in AREAS} | BOLD5000.misspelt
    return {spelt.lower(): area for spelt, area in known.items()}.get(name.lower())


# --- areas


def _areas(
    subject: _Subject, files: Sequence[Path], areas: list[str] | None, stimuli: _Stimuli
) -> Recording:
    """A recording from arrays (n_trials, n_voxels), one for each area and side."""
    release1 = files[0].suffix.lower() != ".npy"
    arrays = _release1_arrays(subject, files) if release1 else _release2_arrays(subject, files)
    wanted = [(side, area) for side in SIDES for area in areas or AREAS]
    found = {key: arrays[key] for key in wanted if key in arrays}
    if not found:
        raise UbrainError(f"{files[0]}: none of the areas {', '.join(areas or AREAS)}")
    values, voxels, n_twice = _once(found)
    spans, missing = _spans(subject)
    trials = subject.trials(spans, stimuli)
    rows = np.concatenate([np.arange(start, start + n) for start, n in spans.values()])
    missing += [f"area {side} {area}" for side, area in wanted if (side, area) not in arrays]
    account = [
        (
            f"Responses of areas of release 1, {files[0].name}: as published, not scaled"
            if release1
            else (
                f"Betas of release 2 in areas, {files[0].name.split('_allses')[0]}: percent signal"
                " change, not scaled"
            )
        ),
        stimuli.account,
    ]
    selected = []
    if release1 and len(found) == len(SIDES) * len(AREAS):
        size, number = (len(subject.shown),), int(subject.name[-1])
        total = sum(array.shape[1] for array in found.values())
        selected.append(Selection("bold5000 release 1", "all areas", number, size, total))
    if n_twice:
        account.append(f"{n_twice} voxels are in the files of several areas; each was taken once")
    return Recording(
        f"bold5000-{subject.name}",
        "BOLD5000",
        "3T",
        "",
        stimuli,
        trials if subject.presented else trials.drop(columns="run"),
        voxels,
        [array_block("areas", values, files, rows)],
        account,
        missing,
        selected=selected,
    )


def _spans(subject: _Subject) -> tuple[dict[int, tuple[int, int]], list[str]]:
    """First trial and number of trials of each session that is meant; and what is missing."""
    if not subject.presented:
        if subject.wanted:
            raise UbrainError(
                f"{subject.name}: sessions are only known with Stimuli_Presentation_Lists; leave"
                " out --sessions"
            )
        return {0: (0, len(subject.shown))}, [
            "Stimuli_Presentation_Lists, so all trials are taken as one session"
        ]
    sessions = sorted(subject.presented)
    ends = np.cumsum([subject.presented[s] for s in sessions]).tolist()
    spans = {
        s: (end - subject.presented[s], subject.presented[s])
        for s, end in zip(sessions, ends, strict=True)
    }
    return {s: spans[s] for s in chosen_sessions(subject.name, subject.wanted, sessions)}, []


def _release1_arrays(subject: _Subject, files: Sequence[Path]) -> dict[Key, NDArray[np.float32]]:
    path = min(files, key=lambda file: file.suffix.lower() != ".h5")
    if copies := [
        file for file in files if file != path and file.suffix.lower() == path.suffix.lower()
    ]:
        raise UbrainError(f"{subject.name}: there are {path} and {copies[0]}; keep one there")
    arrays: dict[Key, NDArray[np.float32]] = {}
    for side in SIDES:
        for name in (*AREAS, *BOLD5000.misspelt):
            for values in read_mat(
                path, [f"{side}{name}"], 8 * len(subject.shown) * BOLD5000.max_area_voxels
            ).values():
                stored = values.T if path.suffix.lower() == ".h5" else values
                arrays[side, BOLD5000.misspelt.get(name, name)] = _checked(
                    stored, arrays, len(subject.shown), f"{path}: {side}{name}"
                )
    if not arrays:
        raise UbrainError(f"{path}: no arrays LHEarlyVis, RHEarlyVis, ...")
    return arrays


def _release2_arrays(subject: _Subject, files: Sequence[Path]) -> dict[Key, NDArray[np.float32]]:
    arrays: dict[Key, NDArray[np.float32]] = {}
    paths: dict[Key, Path] = {}
    for path in files:
        name = path.stem.rpartition("_")[2]
        area = _area(name[2:])
        if area:
            key = name[:2].upper(), area
            if (other := paths.setdefault(key, path)) != path:
                raise UbrainError(f"{subject.name}: there are {other} and {path}; keep one there")
            values = npy_array(path, "f", (None, None))
            arrays[key] = _checked(values, arrays, len(subject.shown), str(path))
    return arrays


def _checked(
    values: NDArray, others: dict[Key, NDArray], n_trials: int, where: str
) -> NDArray[np.float32]:
    """(n_trials, n_voxels) float32, whichever way round it was stored."""
    room = BOLD5000.max_area_voxels - sum(array.shape[1] for array in others.values())
    if values.ndim == 2 and values.shape[0] != n_trials == values.shape[1]:
        values = values.T
    if (
        values.ndim != 2
        or values.dtype.kind != "f"
        or len(values) != n_trials
        or not 0 < values.shape[1] <= room
    ):
        raise UbrainError(
            f"{where}: expected ({n_trials}, up to {room}) floating point numbers, a row for each"
            f" of the {n_trials} images shown, got {values.shape} {values.dtype}"
        )
    return np.array(values, dtype=np.float32)


def _once(arrays: dict[Key, NDArray[np.float32]]) -> tuple[NDArray[np.float32], pd.DataFrame, int]:
    """Responses and table of all voxels; those with equal responses in several areas, once."""
    values = np.concatenate(list(arrays.values()), axis=1)
    owners = [key for key, array in arrays.items() for _ in range(array.shape[1])]
    first: dict[bytes, int] = {}
    members: dict[int, list[Key]] = {}
    varies = np.ptp(values, axis=0) > 0
    for column, owner in enumerate(owners):
        same = first.setdefault(values[:, column].tobytes(), column) if varies[column] else column
        members.setdefault(same, []).append(owner)
    table = pd.DataFrame(
        {
            "hemisphere": [_hemisphere({side for side, _ in keys}) for keys in members.values()],
            "areas": [
                ",".join(dict.fromkeys(area for _, area in keys)) for keys in members.values()
            ],
        }
    )
    return values[:, list(members)], table, len(owners) - len(members)
