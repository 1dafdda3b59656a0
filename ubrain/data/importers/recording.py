"""What an importer says about a subject: trials, voxels, images, and how to read responses."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain.crowd import reading
from ubrain.data.importers.masks import Selection
from ubrain.data.importers.read import (
    PART_BYTES,
    SUFFIXES,
    Folder,
    entries,
    let_go,
    load_npy,
    natural,
    read_rgb,
    rgb_shape,
    spellings,
)
from ubrain.errors import MissingError, UbrainError
from ubrain.progress import log

T = TypeVar("T")
# columns of the table of voxels that say where a voxel is
PLACE = ("hemisphere", "vertex", "i", "j", "k")
BAD_VOXELS = ("drop", "refuse")
AVERAGED = (
    "responses are averages over the repeats of an image in several sessions, z-scored already"
)


@dataclass(frozen=True)
class Options:
    """What all importers have in common.

    Parameters
    ----------
    append : add to an existing crowd file.
    subjects : names or numbers, as in the dataset; None: all that are there. Who is asked for by
        name must be there.
    dry_run : say what would be done, and write nothing.
    dtype : of the stored responses, "float16" or "float32".
    val_fraction : share of the images that are not test images, drawn by content, to hold out for
        validation; only where the dataset has no validation images of its own.
    test_fraction : share of the images, drawn by content, to test on; only where the dataset has no
        test images of its own.
    image_size : shrink images so that the shorter side has this many pixels; None: keep them as
        published.
    follow_links : read files that are links out of the dataset's folder, too.
    areas : names of areas, separated by commas, whose voxels are wanted; default: all.
    min_ncsnr : leave out voxels of which the published ncsnr is less, or unknown.
    normalise : z-score each voxel per "session" or "run", or "none"; "auto": as is the custom with
        the dataset.
    bad_voxels : "drop" voxels that are not finite, or constant where they are z-scored, or "refuse"
        to import them.
    unusual : go on where a published mask has another number of voxels than published.
    image_source : where the images come from, and their terms; said where figures leave them out.
    images_may_be_shown : their terms allow everybody to show them, as in a published notebook.
    """

    append: bool = False
    subjects: Sequence[str] | None = None
    dry_run: bool = False
    dtype: str = "float16"
    val_fraction: float = 0.05
    test_fraction: float = 0.0
    image_size: int | None = None
    follow_links: bool = False
    areas: str = ""
    min_ncsnr: float | None = None
    normalise: str = "auto"
    bad_voxels: str = "drop"
    unusual: bool = False
    image_source: str = ""
    images_may_be_shown: bool = False


DEFAULTS = Options()


class Part(NamedTuple):
    """Some of the responses of a block: (n, m) of any numeric type, from that trial and voxel of
    the block on.
    """

    values: NDArray
    first_trial: int = 0
    first_voxel: int = 0


@dataclass(frozen=True)
class Block:
    """Consecutive trials that are read in one go, usually a session; an interrupted import
    continues after the last one.

    Parameters
    ----------
    name : for messages, such as "session 1"; blocks of a recording have different ones.
    n_trials : number of trials.
    read : gives the parts, in any order, each response once. Its values are final: scaled, not
        z-scored.
    files : what is read; after a change, the block is read again.
    """

    name: str
    n_trials: int
    read: Callable[[], Iterable[Part]]
    files: tuple[Path, ...] = ()


def some_trials(
    read: Callable[[], Iterable[Part]], keep: NDArray[np.int64], n: int
) -> Iterator[Part]:
    """The parts that `read` gives of n trials, with those in `keep` (ascending) alone."""
    for part in read():
        first, last = np.searchsorted(keep, [part.first_trial, part.first_trial + len(part.values)])
        if len(keep) == n:
            yield part
        elif first < last:
            rows = keep[first:last] - part.first_trial
            yield Part(part.values[rows], int(first), part.first_voxel)


class Images(Protocol):
    """Images of a dataset, numbered from 0; as a rule only those that a trial shows are read."""

    ids: Sequence[str]
    schemes: Mapping[str, Sequence[str]]  # scheme -> split of each image, "" for none

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """Image number i: (height, width, 3)."""

    def split(self, i: int) -> str:
        """train, val or test; or rest: of those, some are drawn as val (and as test, if asked)."""

    def key(self, i: int) -> str:
        """Names of the photograph in public collections (`coco:420713 nsd:0`), or nothing."""

    def shape(self, i: int) -> tuple[int, int]:
        """Height and width, without reading the pixels; an error if the image is not there."""


@dataclass
class ImageFiles:
    """Images that are files.

    Parameters
    ----------
    files : one per image.
    ids : names; default: those of the files, without suffix.
    splits : one per image; default: rest.
    keys : one per image; default: nothing.
    schemes : name of a scheme -> for each image train, val, test, or "" where it is in none. A
        scheme without val images gets some: a share of its train images, drawn by content.
    """

    files: Sequence[Path]
    ids: Sequence[str] = ()
    splits: Sequence[str] = ()
    keys: Sequence[str] = ()
    schemes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = self.ids or [file.stem for file in self.files]

    def __len__(self) -> int:
        return len(self.ids)

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """As RGB."""
        return read_rgb(self.files[i])

    def split(self, i: int) -> str:
        """As given."""
        return self.splits[i] if self.splits else "rest"

    def key(self, i: int) -> str:
        """As given."""
        return self.keys[i] if self.keys else ""

    def shape(self, i: int) -> tuple[int, int]:
        """From the header of the file."""
        return rgb_shape(self.files[i])


@dataclass
class ImageArray:
    """Images that are rows of an array (n, height, width[, 3]) uint8, in memory or mapped; `files`
    are those it is in, other fields as in `ImageFiles`.
    """

    array: NDArray
    ids: Sequence[str]
    splits: Sequence[str] = ()
    keys: Sequence[str] = ()
    schemes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Sequence[Path] = field(default=(), kw_only=True)

    __len__ = ImageFiles.__len__
    split = ImageFiles.split
    key = ImageFiles.key

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """Row i, as RGB."""
        pixels = np.array(self.array[i])
        let_go(self.array)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise UbrainError(
                f"image {self.ids[i]!r}: expected (height, width[, 3]) uint8, got {pixels.shape}"
                f" {pixels.dtype}"
            )
        grey = pixels.ndim == 2 or pixels.shape[2] == 1
        return pixels.reshape(*pixels.shape[:2], 1).repeat(3, axis=2) if grey else pixels

    def shape(self, i: int) -> tuple[int, int]:
        """Of every row."""
        return self.array.shape[1], self.array.shape[2]


ImageSource = ImageFiles | ImageArray


def open_images(path: Path) -> ImageSource:
    """Images of a folder, in natural order of their names, or of a .npy file (n, height, width[,
    3]) uint8.

    Raises
    ------
    UbrainError
        If there are none, or the array has another shape or type.
    """
    if path.is_dir():
        files = [f for f in entries(path) if f.suffix.lower() in SUFFIXES]
        files.sort(key=lambda f: natural(f.name))
        if not files:
            raise UbrainError(f"{path}: no images found (looked for {', '.join(sorted(SUFFIXES))})")
        unique = len({f.stem for f in files}) == len(files)
        return ImageFiles(files, [f.stem if unique else f.name for f in files])
    if path.suffix.lower() != ".npy":
        raise UbrainError(f"{path}: expected a folder of images or a .npy file")
    array = load_npy(path)
    if array.ndim and not len(array):
        raise UbrainError(f"{path}: there are no images in it")
    fits = array.ndim in (3, 4) and array.dtype == np.uint8 and array.shape[3:] in ((), (3,))
    if not fits or 0 in array.shape:
        raise UbrainError(
            f"{path}: expected images (n, height, width[, 3]) uint8 in 0..255, got {array.shape}"
            f" {array.dtype}"
        )
    return ImageArray(array, [f"{path.stem}-{i:06d}" for i in range(len(array))], files=[path])


class Pictures:
    """Some pictures of a folder, found by name wherever they lie; upper and lower case are the
    same.

    Parameters
    ----------
    folder : with subfolders. Other pictures may be there, even all of ImageNet.
    names : all that will be looked for, with or without suffixes.
    """

    def __init__(self, folder: Folder, names: Iterable[str]) -> None:
        self.folder = folder
        self._files: dict[str, list[Path]] = {}
        for path in folder.pictures({spelling for name in names for spelling in spellings(name)}):
            for spelling in spellings(path.name):
                self._files.setdefault(spelling, []).append(path)

    def find(self, *names: str, prefer: Sequence[str] = ()) -> Path | None:
        """The picture that has the first of these names, with or without its suffix; None if there
        is none.

        Parameters
        ----------
        prefer : names of folders; if there are several such pictures, one below such a folder is
            meant.

        Raises
        ------
        UbrainError
            If it is not clear which of several is meant.
        """
        folders = {folder.lower() for folder in prefer}
        for name in names:
            found = self._files.get(name.lower()) or self._files.get(Path(name).stem.lower(), [])
            if len(found) > 1:
                below = [p for p in found if folders & {part.lower() for part in p.parent.parts}]
                found = below or found
            if len(found) > 1:
                raise UbrainError(
                    f"{self.folder}: {name!r} is there twice, as {self.folder.name(found[0])} and"
                    f" as {self.folder.name(found[1])}; name the right folder with --images"
                )
            if found:
                return found[0]
        return None


def photograph_key(name: str) -> str:
    """Name of a photograph in a public collection, from the name of its file: "coco:420713",
    "imagenet:n01443537_22563".

    Empty if the name is not one of theirs. COCO's are 000000420713.jpg (2017) and
    COCO_train2014_000000420713.jpg (2014).
    """
    stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
    if coco := re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", stem, re.IGNORECASE):
        return f"coco:{int(coco[1])}"
    if imagenet := re.fullmatch(r"n(\d{8})_(\d+)", stem, re.IGNORECASE):
        return f"imagenet:n{imagenet[1]}_{int(imagenet[2])}"
    return ""


@dataclass
class Recording:
    """One subject of a dataset, described but not yet read.

    Parameters
    ----------
    name : of the subject in the crowd file, such as "nsd-subj01": unique over datasets.
    dataset, scanner, space : as in the crowd file.
    images : shared by all recordings of a dataset.
    trials : one row per trial in the order of the blocks: image (number in `images`), session, and
        optionally run (within the session) and repeat (from 0; default: counted).
    voxels : one row per voxel: any of hemisphere (L, R or nothing), vertex or i, j, k, areas (names
        joined by commas) and ncsnr (NaN where unknown; computed from repeats where it is not
        given).
    blocks : the responses.
    account : what was read and done to the numbers, one sentence an entry.
    missing : what was expected and is not there, one sentence an entry.
    normalise : how the field z-scores these responses, in the crowd file's words: per session, run,
        or none, as a rule because the published numbers are z-scored already; `account` says why.
    ceiling : what the ncsnr of `voxels` is.
    no_sessions : why the column session tells nothing, where that is so.
    all_images : write images that no trial shows, too.
    selected : published masks whose voxels these are, to be compared with what is published.
    source_rows : number of each voxel, (n_voxels,), among all that the files have; None: these.
    """

    name: str
    dataset: str
    scanner: str
    space: str
    images: Images
    trials: pd.DataFrame
    voxels: pd.DataFrame
    blocks: Sequence[Block]
    account: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    normalise: str = "session"
    ceiling: str = "ncsnr as published"
    no_sessions: str = ""
    all_images: bool = False
    selected: Sequence[Selection] = ()
    source_rows: NDArray[np.int64] | None = None

    def normalised(self, how: str) -> "Recording":
        """The same recording, z-scored per "session" or "run", or "none"; "auto": as it is.

        Raises
        ------
        UbrainError
            If it is not known which trials are of one session or run.
        """
        if how in ("auto", self.normalise):
            return self
        unknown = self.no_sessions
        if how == "run" and "run" not in self.trials:
            unknown = unknown or "which trials are of one run is not known"
        if how != "none" and unknown:
            raise UbrainError(
                f"{self.source}: --normalise {how}: {unknown}; possible are auto"
                f"{', session' if not self.no_sessions else ''} and none"
            )
        said = (
            f"Z-scoring is chosen with --normalise {how}; the custom with these responses is"
            f" {self.normalise}"
        )
        ceiling = f"{self.ceiling}, for responses z-scored as is the custom"
        return replace(self, normalise=how, account=[*self.account, said], ceiling=ceiling)

    def units(self) -> NDArray[np.int64]:
        """Number, from 0, of the session or run in which each trial is z-scored: (n_trials,)."""
        if self.normalise == "none":
            return np.zeros(len(self.trials), dtype=np.int64)
        columns = ["session", "run"] if self.normalise == "run" else ["session"]
        return self.trials.groupby(columns).ngroup().to_numpy(np.int64)

    def shown(self) -> list[int]:
        """Numbers of the images to write, in ascending order."""
        if self.all_images:
            return list(range(len(self.images.ids)))
        numbers: list[int] = np.unique(self.trials["image"]).tolist()
        return numbers

    @property
    def source(self) -> str:
        """Its name and its files, for messages."""
        files = list(dict.fromkeys(file.name for block in self.blocks for file in block.files))
        listed = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        return f"{self.name} ({listed})" if files else self.name

    @property
    def origin(self) -> str:
        """Its name, dataset, scanner and space, for accounts."""
        return f"{self.name} ({', '.join(filter(None, (self.dataset, self.scanner, self.space)))})"

    def place(self, row: int) -> str:
        """Where a voxel is, in words."""
        words = [str(self.voxels[c].iloc[row]) for c in PLACE if c in self.voxels]
        number = row if self.source_rows is None else self.source_rows[row]
        return " ".join(words).strip() or str(number)


def within(recordings: Sequence[Recording], options: Options) -> list[Recording]:
    """The same recordings with the wanted voxels only: others are not kept when they are read.

    Raises
    ------
    UbrainError
        If nobody has such an area, or somebody no such voxel, or no published ncsnr.
    """
    wanted = {area.strip().lower() for area in options.areas.split(",")} - {""}
    least, chosen = options.min_ncsnr, [_areas(r) for r in recordings] if wanted else []
    there = {area for mine in chosen for areas in mine for area in areas} - {""}
    if unknown := wanted - there:
        found = ", ".join(sorted(there))[:400] or "none"
        raise UbrainError(f"--areas: no area {min(unknown)[:40]!r}; found {found}")
    said = f" in {options.areas}" if wanted else ""
    said += f" with an ncsnr of at least {least:g}" if least is not None else ""
    fewer = []
    for i, r in enumerate(recordings if said else []):
        keep = np.ones(len(r.voxels), dtype=bool)
        if wanted:
            keep &= [not wanted.isdisjoint(areas) for areas in chosen[i]]
        if least is not None:
            if "ncsnr" not in r.voxels or r.voxels["ncsnr"].isna().all():
                raise UbrainError(f"{r.source}: --min-ncsnr: no ncsnr is published")
            keep &= (r.voxels["ncsnr"] >= least).to_numpy()
        if not keep.any():
            raise UbrainError(f"{r.source}: no voxel{said}")
        voxels, rows = r.voxels[keep].reset_index(drop=True), np.flatnonzero(keep)
        blocks = [replace(b, read=partial(_columns, b.read, keep)) for b in r.blocks]
        account = [*r.account, f"Of {len(keep)} voxels, the {len(rows)}{said} were taken"]
        fewer.append(replace(r, voxels=voxels, source_rows=rows, blocks=blocks, account=account))
    return fewer or list(recordings)


def _areas(recording: Recording) -> list[list[str]]:
    """Areas of each voxel, in lower case."""
    texts = recording.voxels.get("areas", pd.Series("", recording.voxels.index))
    return [[area.strip() for area in str(text).lower().split(",")] for text in texts]


def _columns(read: Callable[[], Iterable[Part]], keep: NDArray[np.bool_]) -> Iterable[Part]:
    """The parts that `read` gives, with some of the voxels."""
    new: NDArray[np.int64] = np.cumsum(keep) - keep
    for values, trial, voxel in read():
        some = keep[voxel : voxel + values.shape[1]]
        if some.any():
            yield Part(values[:, some], trial, int(new[voxel : voxel + len(some)][some][0]))


def array_block(
    name: str, values: NDArray, files: Sequence[Path], rows: ArrayLike | None = None
) -> Block:
    """A block from an array (n_trials, n_voxels), in memory or in a file; optionally some of its
    rows, in their order.
    """
    chosen = None if rows is None else np.asarray(rows)
    n = len(values) if chosen is None else len(chosen)
    step = max(1, PART_BYTES // (values.shape[1] * values.dtype.itemsize))

    def read() -> Iterable[Part]:
        for start in range(0, n, step):
            some = slice(start, start + step)
            with reading(files[0]) if files else nullcontext():
                part = values[some] if chosen is None else values[chosen[some]]
            yield Part(part, start)
            let_go(values)

    return Block(name, n, read, tuple(files))


def select(
    asked: Sequence[str] | None, found: Iterable[str], where: object, others: Iterable[str] = ()
) -> list[str]:
    """Which of the subjects that are there are meant; who is asked for and not there is an error.

    A subject can be asked for by its name in any case ("subj01"), by its number ("1", "sub-01"), or
    by its name in the crowd file ("nsd-subj01"). `others` are what there is, if not `where`.
    """
    names = sorted(found, key=natural)
    if not names:
        there = ", ".join(sorted(set(others))[:12])
        hint = f"there are {there}" if there else "is this the dataset's folder?"
        raise UbrainError(f"{where}: no subject found; {hint}")
    if not asked:
        return names
    chosen = []
    for text in asked:
        match = [n for n in names if means(text, n)]
        if len(match) != 1:
            what = (
                f"{text[:40]!r} means {', '.join(match)}" if match else f"no subject {text[:40]!r}"
            )
            raise UbrainError(f"{where}: {what}; found {', '.join(names)}")
        chosen += match
    return sorted(set(chosen), key=natural)


def means(text: str, name: str) -> bool:
    """Whether a subject of that name is asked for by `text`."""
    text, name = text.strip().lower(), name.lower()
    if asked := re.fullmatch(r"(?:s|sub|subj|subject)?[-_ ]?(\d{1,6})", text):
        number = re.search(r"\d+", name)
        return number is not None and int(number[0]) == int(asked[1])
    return text == name or text.endswith(f"-{name}")


def complete(
    names: Sequence[str], asked: Sequence[str] | None, describe: Callable[[str], T]
) -> dict[str, T]:
    """`describe` each subject; unless it was asked for, one of which files are missing is left out
    with a warning.

    Raises
    ------
    UbrainError
        If files of a subject that was asked for, or of every subject, are missing; or whatever else
        is wrong.
    """
    found: dict[str, T] = {}
    missing: dict[str, MissingError] = {}
    for name in names:
        try:
            found[name] = describe(name)
        except MissingError as error:
            missing[name] = error
    if missing and (asked or not found):
        raise next(iter(missing.values()))
    for name, problem in missing.items():
        log.warning("%s is left out: %s", name, problem)
    return found


def parse_numbers(text: str) -> list[int]:
    """Numbers from "1-10,12"."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part)
        if not ends or int(ends[1]) > int(ends[2] or ends[1]):
            raise UbrainError(f"{text!r}: expected numbers such as 1-10,12")
        numbers += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return sorted(set(numbers))
