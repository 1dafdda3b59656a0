"""Crowd and Subject: what was shown, what was measured, where each voxel sits.

A crowd file is one HDF5 file (strings are UTF-8; `n` images over all subjects; rows are numbered
from 0)::

    /                            attributes format = "ubrain-crowd", version = 2, or 1 if there are
                                 no schemes
    /images/id                   name of the image, unique
    /images/content              digest of the pixels, unique: an image is in the file once
    /images/key                  optional: names of the photograph in public collections, separated
                                 by blanks, such as "coco:420713 nsd:0", or "pixels:" and the
                                 content that it had before it was shrunk; images with a key in
                                 common are versions of one photograph and have the same split
    /images/split                0 train, 1 val, 2 test: a property of the image, so no image can
                                 be train for one subject and test for another
    /images/schemes/<name>       optional: the same by a rule of another name, 255 for images that
                                 are in none; here, too, versions of a photograph are not in two
    /images/shape                height and width
    /images/row                  row in the pixel dataset of that shape
    /images/pixels/<h>x<w>       (m, h, w, 3) uint8 RGB
    /subjects/<name>             attributes dataset, scanner, space (of `vertex` or `i, j, k`; may
                                 be ""), account (what was done to the numbers, in words), digest
                                 (of the responses, in file order); optional: normalise ("session"
                                 if absent, "run", or "none" for responses that are z-scored
                                 already), settings (of the import, as JSON)
    /subjects/<name>/responses         (n_trials, n_voxels) float16 or float32, as measured: not
                                       z-scored, not averaged (unless nothing else is published)
    /subjects/<name>/session_moments   (2, n_sessions, n_voxels) mean and standard deviation over
                                       trials; of runs, if normalise is "run"
    /subjects/<name>/trials/image      row in /images
    /subjects/<name>/trials/session    from 0
    /subjects/<name>/trials/run        optional: from 0, counted through all sessions
    /subjects/<name>/trials/repeat     from 0, how often the subject has seen the image before
    /subjects/<name>/voxels/<column>   hemisphere ("L", "R", ""), areas (comma-separated), ncsnr
                                       (NaN: unknown), and vertex or i, j, k where known;
                                       source_row: number in the imported files' order
    /truth/...                         only in simulated crowds

Types and shapes stand in the tables `IMAGES`, `TRIALS` and `VOXELS`, which the writer
(`ubrain.data.crowdfile`) and the checks here both read. `ubrain.trials` makes responses of trials.
"""

import copy
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain import scores
from ubrain.errors import UbrainError
from ubrain.paths import check_name, regular
from ubrain.trials import NORMALISE, Rows, Trials

FORMAT, VERSION = "ubrain-crowd", 2
REFUSED = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR)  # no fault of what is in a file
SPLITS = ("train", "val", "test")
NO_SPLIT = 255  # of an image that is in none of a scheme's
COMPRESSION = 1100  # at most, by gzip: a dataset that claims to hold more is not there


class Column(NamedTuple):
    """One dataset with a row per image, trial or voxel: its type, and the shape of a row."""

    dtype: Any
    shape: tuple[int, ...] = ()
    optional: bool = False


TEXT = h5py.string_dtype()
IMAGES = {
    "id": Column(TEXT),
    "content": Column(TEXT),
    "split": Column(np.uint8),
    "row": Column(np.int64),
    "shape": Column(np.uint16, (2,)),
    "key": Column(TEXT, optional=True),
}
TRIALS = {
    "image": Column(np.int32),
    "session": Column(np.int32),
    "repeat": Column(np.int32),
    "run": Column(np.int32, optional=True),
}
VOXELS = {"hemisphere": Column(TEXT), "areas": Column(TEXT), "ncsnr": Column(np.float32)}


class Crowd:
    """A crowd file, opened for reading. Responses and images are read when asked for, never whole.

    Parameters
    ----------
    path : crowd file, from `ubrain simulate` or `ubrain import`.

    Attributes
    ----------
    image_ids, content : (n_images,) names of all images, and digests of their pixels.
    scheme : whose splits these are; "": those of the file itself. See `with_scheme`.
    file : the open HDF5 file, for what no view shows.

    Examples
    --------
    >>> with Crowd("crowd.h5") as crowd:  # doctest: +SKIP
    ...     subject = crowd["S1"]
    ...     print("(n_images, n_voxels) =", subject.responses("test").shape)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file, self.scheme = open_crowd(path), ""
        images = self.file["images"]
        self.image_ids = np.array(images["id"].asstr()[:], dtype=object)
        self.content = np.array(images["content"].asstr()[:], dtype=object)
        self._split, self._shape, self._place = (images[c][:] for c in ("split", "shape", "row"))
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        groups = self.file["subjects"]
        self._subjects = {name: Subject(self, name, group) for name, group in groups.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        n_subjects, n_images = len(self._subjects), len(self.image_ids)
        return f"<Crowd {self.path.name}: {n_subjects} subjects, {n_images} images>"

    def close(self) -> None:
        """Close the file; nothing can be read from it afterwards."""
        self.file.close()

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects, in the order in which they were added."""
        return list(self._subjects)

    @property
    def schemes(self) -> list[str]:
        """Names of the schemes by which the file has other splits beside its own."""
        return list(self.file.get("images/schemes", ()))

    @property
    def simulated(self) -> bool:
        """Whether the recordings were simulated (then the file has a ground truth)."""
        return "truth" in self.file

    @property
    def images_may_be_shown(self) -> bool:
        """Whether figures for everybody may show the images: those of a simulation may, those of
        recordings if their import said so.
        """
        known = self.file.get("truth", {})
        return all(
            name in known or subject.settings.get("images_may_be_shown", False)
            for name, subject in self._subjects.items()
        )

    @property
    def image_source(self) -> str:
        """Where the images come from, as the imports said; else of which dataset they are."""
        subjects = self._subjects.values()
        said = (s.settings.get("image_source") or f"dataset {s.dataset}" for s in subjects)
        return "; ".join(dict.fromkeys(said))

    def __getitem__(self, name: str) -> "Subject":
        if name not in self._subjects:
            raise UbrainError(
                f"no subject {name!r} in {self.path.name}; it has {', '.join(self.subjects)}"
            )
        return self._subjects[name]

    def select(self, *subjects: "Subject") -> "Crowd":
        """The same file with these subjects only, which may be views (`Subject.select`)."""
        view = copy.copy(self)
        view.__dict__.pop("fingerprint", None)
        view._subjects = {subject.name: subject for subject in subjects}
        return view

    def with_scheme(self, name: str | None) -> "Crowd":
        """The same file with the splits of a scheme; an image that is in none has no split.

        Images that a subject is a view of (`Subject.select`) were those of other splits: this
        forgets them.

        Parameters
        ----------
        name : one of `schemes`; None or "" for the splits of the file itself.

        Raises
        ------
        UbrainError
            If the file has no such scheme.
        """
        if (name := name or "") == self.scheme:
            return self
        if name and name not in self.schemes:
            known = f"it has {', '.join(self.schemes)}" if self.schemes else "it has none"
            raise UbrainError(f"no split scheme {name!r} in {self.path.name}; {known}")
        view = self.select()
        view.scheme = name
        with reading(self.path):
            view._split = self.file[f"images/schemes/{name}" if name else "images/split"][:]
        for subject in self._subjects.values():
            theirs = view._subjects[subject.name] = copy.copy(subject)
            theirs.crowd, theirs._images = view, {}
        return view

    def rows(self, image_ids: ArrayLike) -> Rows:
        """Rows of images in the file."""
        wanted = np.atleast_1d(np.asarray(image_ids, dtype=object))
        try:
            return np.array([self._row[image_id] for image_id in wanted], dtype=np.int64)
        except KeyError as error:
            raise UbrainError(f"no image {error.args[0]!r} in {self.path.name}") from None

    def pixels(self, rows: ArrayLike) -> list[NDArray[np.uint8]]:
        """Images by their rows in the file, each (height, width, 3) RGB."""
        found = []
        with reading(self.path):
            for row in np.atleast_1d(rows):
                height, width = self._shape[row]
                found.append(self.file[f"images/pixels/{height}x{width}"][self._place[row]])
        return found

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """Pixels of an image by its name, (height, width, 3) RGB."""
        return self.pixels(self.rows(image_id))[0]

    def split_rows(self, split: str) -> Rows:
        """Rows of all images of a split."""
        if split not in SPLITS:
            raise UbrainError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(self._split == SPLITS.index(split))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of images, splits, trials and responses: the same data give the same string."""
        digest = hashlib.blake2b(
            "".join(self.content).encode() + self._split.tobytes(), digest_size=16
        )
        for subject in self._subjects.values():
            for part in subject.identity():
                digest.update(part)
        return digest.hexdigest()


class Subject:
    """One subject of a crowd, or a view of one; made by `Crowd` and by `select`.

    Attributes
    ----------
    crowd, name, n_trials, n_voxels : of which crowd file, and how large.
    dataset, scanner, space, account, settings : see the schema.
    """

    def __init__(self, crowd: Crowd, name: str, group: h5py.Group) -> None:
        self.crowd, self.name, self.group = crowd, name, group
        self.dataset: str = group.attrs["dataset"]
        self.scanner: str = group.attrs["scanner"]
        self.space: str = group.attrs["space"]
        self.account: str = group.attrs.get("account", "")
        self.settings: dict[str, Any] = json.loads(group.attrs.get("settings", "{}"))
        self.n_trials, self.n_voxels = (int(n) for n in group["responses"].shape)
        self._chosen: Rows | None = None  # voxels of a view
        self._images: dict[str, Rows] = {}  # split -> rows of a view

    def __repr__(self) -> str:
        size = f"{self.n_voxels} voxels, {self.n_trials} trials"
        return f"<Subject {self.name}: {size}, {self.dataset} at {self.scanner}>"

    def select(
        self, images: Mapping[str, ArrayLike] | None = None, voxels: ArrayLike | None = None
    ) -> "Subject":
        """A view of the subject: as if it had seen only some images, and had only some voxels.

        Its trials stay those of the whole subject.

        Parameters
        ----------
        images : split -> rows of the crowd file's images; splits that are not named stay.
        voxels : boolean mask or indices, (n,).
        """
        view = copy.copy(self)
        view.__dict__.pop("voxels", None)
        for split in images or {}:
            self.crowd.split_rows(split)  # refuses those that there are not
        chosen = {s: np.unique(np.asarray(rows, np.int64)) for s, rows in (images or {}).items()}
        view._images = {**self._images, **chosen}
        if voxels is not None:
            all_voxels = np.arange(self.n_voxels) if self._chosen is None else self._chosen
            view._chosen = all_voxels[np.asarray(voxels)]
            view.n_voxels = len(view._chosen)
        return view

    @cached_property
    def trials(self) -> Trials:
        """The trials behind the responses, of all voxels."""
        with reading(self.crowd.path):
            return Trials(self.group)

    @cached_property
    def voxels(self) -> pd.DataFrame:
        """One row per voxel: hemisphere, areas, ncsnr, and vertex or i, j, k where known."""
        with reading(self.crowd.path):
            columns = self.group["voxels"].items()
            table = {c: d.asstr()[:] if d.dtype.kind == "O" else d[:] for c, d in columns}
        everything = pd.DataFrame(table)
        chosen = everything if self._chosen is None else everything.iloc[self._chosen]
        return chosen.reset_index(drop=True).rename_axis("voxel")

    def image_rows(self, split: str = "train") -> Rows:
        """Rows, in the crowd file, of the images of a split that this subject has seen; sorted."""
        if split in self._images:
            return self._images[split]
        return np.intersect1d(self.crowd.split_rows(split), self.trials.image)

    def images(self, split: str = "train") -> NDArray[np.object_]:
        """Ids of the images of a split that this subject has seen, in the order of `responses`."""
        return self.crowd.image_ids[self.image_rows(split)]

    def responses(
        self, split: str = "train", voxels: slice | ArrayLike = slice(None)
    ) -> NDArray[np.float32]:
        """Responses z-scored per session and averaged over repeats.

        Parameters
        ----------
        split : "train", "val" or "test".
        voxels : slice, boolean mask or indices.

        Returns
        -------
        (n_images, n_voxels) float32, rows as in `images(split)`.
        """
        return self.responses_to(self.image_rows(split), voxels)

    def responses_to(
        self, rows: Rows, voxels: slice | ArrayLike = slice(None)
    ) -> NDArray[np.float32]:
        """As `responses`, for given rows of the crowd file's images: (n_images, n_voxels)."""
        missing = rows[self.trials.repeats(rows) == 0]
        if len(missing):
            image = self.crowd.image_ids[missing[0]]
            raise UbrainError(f"subject {self.name!r} has not seen image {image!r}")
        chosen: slice | Rows
        if isinstance(voxels, slice):
            chosen = voxels if self._chosen is None else self._chosen[voxels]
        else:
            mine = np.arange(self.n_voxels) if self._chosen is None else self._chosen
            chosen = mine[np.asarray(voxels)]
        with reading(self.crowd.path):
            return self.trials.averaged(rows, chosen)

    def noise_ceiling(self, split: str = "test") -> NDArray[np.float64]:
        """Highest r² that a model can reach for each voxel, (n_voxels,), NaN where unknown.

        It follows from the voxel's ncsnr and the repeats; see `ubrain.scores.noise_ceiling`.
        """
        repeats = self.trials.repeats(self.image_rows(split))
        if not len(repeats):
            raise UbrainError(
                f"subject {self.name!r} has no {split} images, so there is no {split} noise ceiling"
            )
        return scores.noise_ceiling(self.voxels["ncsnr"].to_numpy(), repeats)

    def identity(self) -> Iterator[bytes]:
        """Everything that tells this subject's data from others, for `Crowd.fingerprint`."""
        group = self.group
        yield self.name.encode()
        yield str(group.attrs["digest"]).encode()
        for part in ("image", "session"):
            yield group[f"trials/{part}"][:].tobytes()
        if group.attrs.get("normalise", "session") != "session":
            yield group.attrs["normalise"].encode()
            yield group["trials/run"][:].tobytes() if "run" in group["trials"] else b""
        if self._chosen is not None:
            yield b"voxels" + self._chosen.tobytes()
        for split, rows in sorted(self._images.items()):
            yield split.encode() + rows.tobytes()


@contextmanager
def reading(path: Path, expected: str = "") -> Iterator[None]:
    """Turn whatever a library says about a damaged file into one clear error about `path`, which is
    not opened if it is no regular file; and what the system says about one that may not be read.
    """
    if not path.is_dir():
        regular(path)
    try:
        yield
    except UbrainError:
        raise
    except Exception as error:  # a damaged file can make the libraries raise anything
        if isinstance(error, OSError) and error.errno in REFUSED:
            reason = os.strerror(error.errno).lower()
            raise UbrainError(f"{path} cannot be read: {reason}") from error
        what = f"; expected {expected}" if expected else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UbrainError(
            f"{path} cannot be read: {reason}{what}. It may be truncated or damaged; get it again"
        ) from error


def open_crowd(path: str | Path) -> h5py.File:
    """Open a crowd file for reading, after checking that it is one.

    Raises
    ------
    UbrainError
        Naming the file, the place in it, and what was expected.
    """
    path = Path(path)
    if not path.exists():
        raise UbrainError(
            f"no crowd file at {path}; make one with `ubrain simulate` or `ubrain import`"
        )
    regular(path)
    with reading(path):
        if not h5py.is_hdf5(path):
            raise UbrainError(
                f"{path} is not an HDF5 file; a crowd file comes from `ubrain simulate` or `ubrain"
                " import`"
            )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UbrainError(
            f"{path} cannot be opened: {error}. It may be truncated or still being written"
        ) from error
    try:
        _validate(file)
    except UbrainError as error:
        file.close()
        raise UbrainError(f"{path}: {error}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        file.close()
        raise UbrainError(f"{path} is damaged: {error}") from error
    return file


def _validate(file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise UbrainError(
            f"this HDF5 file is not a crowd file (its attribute 'format' is not {FORMAT!r})"
        )
    if (found := file.attrs.get("version")) not in range(1, VERSION + 1):
        raise UbrainError(
            f"crowd file of version {found}; this ubrain reads versions 1 to {VERSION}. Import the"
            " data again"
        )
    _no_links_out(file)
    n = _dataset(file, "images/id", TEXT, 1).shape[0]
    _columns(file, "images", IMAGES, n)
    for name, problem in (
        ("id", "two images have the same name"),
        ("content", "the same image is stored twice"),
    ):
        if len(set(file[f"images/{name}"].asstr()[:])) != n:
            raise UbrainError(
                f"images/{name}: {problem}, so train and test may overlap; import the data again"
            )
    _validate_splits(file, n)
    _validate_pixels(file)
    if not isinstance(file.get("subjects"), h5py.Group) or not len(file["subjects"]):
        raise UbrainError("no subjects in the file")
    for name, group in file["subjects"].items():
        _validate_subject(file, check_name(name), group, n)


def _validate_splits(file: h5py.File, n: int) -> None:
    schemes = file.get("images/schemes", {})
    if not isinstance(schemes, h5py.Group | dict):
        raise UbrainError("images/schemes: expected a group")
    for name in schemes:
        _dataset(file, f"images/schemes/{check_name(name, 'split scheme')}", np.uint8, 1, n)
    known, said = [*range(len(SPLITS))], f"expected 0, 1 or 2 for {', '.join(SPLITS)}"
    if not np.isin(file["images/split"][:], known).all():
        raise UbrainError(f"images/split: {said}")
    for name, split in schemes.items():
        if not np.isin(split[:], [*known, NO_SPLIT]).all():
            raise UbrainError(f"images/schemes/{name}: {said}, or {NO_SPLIT} for none of them")


def _validate_pixels(file: h5py.File) -> None:
    shapes, rows = file["images/shape"][:], file["images/row"][:]
    for height, width in np.unique(shapes, axis=0):
        name = f"images/pixels/{height}x{width}"
        pixels = _dataset(file, name, np.uint8, 4)
        mine = rows[(shapes == (height, width)).all(1)]
        if mine.min() < 0 or len(np.unique(mine)) < len(mine):
            raise UbrainError(f"images/row: rows of {name} are negative, or two images share one")
        if (
            pixels.shape[1:] != (height, width, 3)
            or pixels.dtype != np.uint8
            or mine.max() >= len(pixels)
        ):
            raise UbrainError(
                f"{name}: expected at least {mine.max() + 1} images of ({height}, {width}, 3)"
                f" uint8, got {pixels.shape} {pixels.dtype}"
            )


def _validate_subject(file: h5py.File, name: str, group: Any, n_images: int) -> None:
    where = f"subjects/{name}"
    if not isinstance(group, h5py.Group):
        raise UbrainError(f"{where}: expected a group")
    for attribute in ("dataset", "scanner", "space", "digest"):
        if not isinstance(group.attrs.get(attribute), str):
            raise UbrainError(f"{where}: attribute {attribute!r} is missing")
    n_trials, n_voxels = _dataset(file, f"{where}/responses", np.float32, 2).shape
    normalise = group.attrs.get("normalise", "session")
    if normalise not in NORMALISE:
        raise UbrainError(
            f"{where}: attribute 'normalise': expected one of {', '.join(NORMALISE)}, got"
            f" {normalise!r}"
        )
    needed = {"run": TRIALS["run"]._replace(optional=normalise != "run")}
    _columns(file, f"{where}/trials", TRIALS | needed, n_trials)
    for column in (c for c in TRIALS if c in group["trials"]):
        # as their readers have them: int64, in which numbers that are too large are negative
        values = group[f"trials/{column}"][:].astype(np.int64)
        highest = values.max(initial=-1)
        if values.min(initial=0) < 0 or (column == "image" and highest >= n_images):
            raise UbrainError(
                f"{where}/trials/{column}: a row number is outside the {n_images} images of the"
                " file"
                if column == "image"
                else f"{where}/trials/{column}: a number is negative"
            )
    unit = "run" if normalise == "run" else "session"
    n_units = int(group[f"trials/{unit}"][:].astype(np.int64).max(initial=-1)) + 1
    moments = _dataset(file, f"{where}/session_moments", np.float32, 3)
    if moments.shape != (2, n_units, n_voxels):
        raise UbrainError(
            f"{where}/session_moments: expected (2, {n_units}, {n_voxels}), got {moments.shape}"
        )
    _columns(file, f"{where}/voxels", VOXELS, n_voxels)
    for column in group["voxels"]:
        _dataset(file, f"{where}/voxels/{column}", None, 1, n_voxels)
    if not isinstance(json.loads(group.attrs.get("settings") or "{}"), dict):
        raise UbrainError(f"{where}: attribute 'settings' is not what an import has written")


def _columns(file: h5py.File, group: str, columns: Mapping[str, Column], length: int) -> None:
    for name, column in columns.items():
        if not column.optional or f"{group}/{name}" in file:
            _dataset(file, f"{group}/{name}", column.dtype, 1 + len(column.shape), length)


def _dataset(
    file: h5py.File, name: str, dtype: Any, ndim: int, length: int | None = None
) -> h5py.Dataset:
    """A dataset of that kind of number or text, or of any (None), whose data are really there."""
    kinds = {"O": "O", "f": "f", "i": "iu", "u": "iu"}[np.dtype(dtype).kind] if dtype else "Ofiu"
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise UbrainError(f"{name} is missing")
    if (
        found.dtype.kind not in kinds
        or found.ndim != ndim
        or (length is not None and len(found) != length)
    ):
        rows = f" and {length} rows" if length is not None else ""
        raise UbrainError(
            f"{name}: expected {ndim} dimension(s){rows} of kind {kinds!r}, got"
            f" {found.shape} {found.dtype}"
        )
    stored = found.id.get_storage_size() * (COMPRESSION if found.compression else 1)
    if found.nbytes > stored:
        raise UbrainError(
            f"{name}: {found.shape} {found.dtype} are {found.nbytes} bytes, but there are {stored}"
        )
    return found


def _no_links_out(group: h5py.Group) -> None:
    """Refuse everything through which a file could make us read another file."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UbrainError(
                f"{group.name}: {name!r} is a link out of the group; crowd files hold their data"
                " themselves"
            )
        item = group[name]
        if isinstance(item, h5py.Group):
            _no_links_out(item)
        elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            raise UbrainError(
                f"{item.name}: data in another file; crowd files hold their data themselves"
            )
