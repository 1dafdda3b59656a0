"""The writer of crowd files; the schema stands with their reader, `ubrain.crowd`."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain import scores
from ubrain.crowd import (
    FORMAT,
    IMAGES,
    NO_SPLIT,
    SPLITS,
    TEXT,
    TRIALS,
    VERSION,
    VOXELS,
    open_crowd,
)
from ubrain.errors import UbrainError
from ubrain.paths import atomic, check_name, check_out
from ubrain.resume import Sink, require_space
from ubrain.trials import NORMALISE, Trials, session_moments

PIXELS = "pixels:"  # key of an image by what its pixels were before it was shrunk
MAX_SIDE = 8192  # pixels; a larger image is a mistake or an attack
REQUIRED = {name: column for name, column in IMAGES.items() if not column.optional}
Split = str | Callable[[str], str]


def content_digest(pixels: NDArray[np.uint8]) -> str:
    """Digest of an image's pixels and shape: equal for equal images, whatever their files."""
    data = repr(pixels.shape).encode() + pixels.tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def readable(text: str) -> str:
    """The text without what is not UTF-8, as some names of files are not, which HDF5 refuses."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def split_by_content(val: float, test: float) -> Callable[[str], str]:
    """A rule that draws an image's split from its content, so that it is the same in every file."""
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UbrainError(
            f"val and test fractions must be at least 0 and sum to less than 1, got {val} and"
            f" {test}"
        )

    def split(digest: str) -> str:
        x = int(digest[:12], 16) / 16**12
        return "test" if x < test else "val" if x < test + val else "train"

    return split


class Splits:
    """The split of each image, by one rule: that of the file itself, or a named scheme.

    What an earlier import said of an image, or of another version of the photograph, stays.

    Parameters
    ----------
    numbers : split of each image in the file, by its row; `NO_SPLIT` if nothing is said of it.
    contents, keys : digest, and names of the photograph, of each of these images.
    scheme : name of the scheme.

    Attributes
    ----------
    numbers : the same, of the images that came since, too.
    kept : number of images that were there before, themselves or as another version, under a split
        that they keep.
    versions : number of photographs of which two versions turn out to have been imported under two
        splits.
    """

    def __init__(
        self, numbers: list[int], contents: Iterable[str], keys: list[str], scheme: str = ""
    ) -> None:
        self.numbers, self.scheme, self._n_before = numbers, scheme, len(numbers)
        self.kept = self.versions = 0
        # split of each photograph in the file, by each of its names
        known = {f"{PIXELS}{c}": number for c, number in zip(contents, numbers, strict=True)}
        for key, number in zip(keys, numbers, strict=True):
            if number != NO_SPLIT:
                known |= dict.fromkeys(key.split(), number)
        self._photographs = {name: number for name, number in known.items() if number != NO_SPLIT}
        # name and split of each image given now, by content and names of the photograph
        self._given: dict[str, tuple[str, str]] = {}

    def put(self, row: int, image_id: str, split: Split, digest: str, names: list[str]) -> None:
        """Say the split of an image, "" if nothing is said; see `CrowdWriter.add_image`."""
        self.numbers += [NO_SPLIT] * (row + 1 - len(self.numbers))
        if callable(split):
            split = self._drawn(split, digest, names)
        if split:
            self._refuse_two(image_id, split, digest, names)
            number, kept = SPLITS.index(split), self.numbers[row]
            if kept == NO_SPLIT:
                known = (self._photographs.get(name) for name in (*names, PIXELS + digest))
                kept = self.numbers[row] = next((k for k in known if k is not None), number)
                self.kept += kept != number
            else:
                self.kept += row < self._n_before and kept != number
        if (number := self.numbers[row]) != NO_SPLIT:
            for name in names:
                self._photographs.setdefault(name, number)
        splits = {number, *(self._photographs.get(name, number) for name in names)}
        self.versions += len(splits - {NO_SPLIT}) > 1

    def _refuse_two(self, image_id: str, split: str, digest: str, names: list[str]) -> None:
        for name in (digest, *names):
            other_id, other = self._given.setdefault(name, (image_id, split))
            if other != split:
                what = "identical" if name == digest else "the same photograph"
                where = f" in scheme {self.scheme!r}" if self.scheme else ""
                raise UbrainError(
                    f"images {other_id!r} and {image_id!r} are {what}, but one is {other} and the"
                    f" other is {split}{where}. The same image must not be in two splits; give both"
                    " the same (for example, list both as test images)"
                )

    def _drawn(self, draw: Callable[[str], str], digest: str, names: list[str]) -> str:
        """The split that is drawn by the photograph; of identical images and versions, the first
        decides.
        """
        name = min(names, default=f"{PIXELS}{digest}")
        content = name.removeprefix(PIXELS)
        by_name = content == name
        drawn = draw(hashlib.blake2b(name.encode()).hexdigest() if by_name else content)
        before = [self._given[name][1] for name in (digest, *names) if name in self._given]
        return before[0] if before and "test" not in before else drawn


class CrowdWriter:
    """Writes a crowd file piece by piece; see `write_crowd`, which makes it appear when complete.

    Attributes
    ----------
    splits : of the file itself.
    schemes : name -> the splits of a scheme.
    """

    def __init__(self, file: h5py.File, path: Path, check: Callable[[], None]) -> None:
        self._file, self.path = file, path
        self._check = check  # raises an error if a write has failed
        if "format" not in file.attrs:
            self._create_layout()
        images = file["images"]
        growing = [*(images[name] for name in REQUIRED), *images["pixels"].values()]
        if fixed := [d.name for d in growing if d.maxshape[0] is not None]:
            raise UbrainError(
                f"{path}: {fixed[0]} cannot grow, so nothing can be appended; ubrain has not"
                " written it so"
            )
        self._ids = set(images["id"].asstr()[:])
        self._rows = {digest: row for row, digest in enumerate(images["content"].asstr()[:])}
        n = len(self._rows)
        self._keys = list(images["key"].asstr()[:]) if "key" in images else [""] * n
        found = {"": images["split"], **images.get("schemes", {})}
        every = {
            name: Splits(numbers[:].tolist(), self._rows, self._keys, name)
            for name, numbers in found.items()
        }
        self.splits, self.schemes = every.pop(""), every
        self._new: dict[str, list[Any]] = {name: [] for name in REQUIRED}

    @property
    def n_subjects(self) -> int:
        """Number of subjects in the file so far."""
        return len(self._file["subjects"])

    @property
    def n_images(self) -> int:
        """Number of images in the file so far."""
        return len(self._rows)

    def split_of(self, rows: ArrayLike, scheme: str = "") -> NDArray[np.str_]:
        """Splits of images, by their rows in the file; "" of those that are in none."""
        numbers = (self.schemes[scheme] if scheme else self.splits).numbers
        full = np.array(numbers + [NO_SPLIT] * (self.n_images - len(numbers)), dtype=int)
        return np.array([*SPLITS, ""])[np.minimum(full[np.asarray(rows)], len(SPLITS))]

    def _create_layout(self) -> None:
        self._file.attrs.update(format=FORMAT, version=1)  # as long as there are no schemes
        self._file.create_group("subjects", track_order=True)
        images = self._file.create_group("images")
        images.create_group("pixels")
        for name, (dtype, shape, _) in REQUIRED.items():
            full = {"maxshape": (None, *shape), "chunks": (4096, *shape)}
            images.create_dataset(name, (0, *shape), dtype, **full)

    def add_image(
        self,
        image_id: str,
        pixels: NDArray[np.uint8],
        split: Split,
        key: str = "",
        schemes: Mapping[str, Split] | None = None,
    ) -> int:
        """Add an image unless its content is already there.

        Parameters
        ----------
        image_id : name; made unique with part of the digest if another image has it.
        pixels : (height, width, 3) uint8
        split : "train", "val" or "test", or a function from the digest to one of them.
        key : names of the photograph in public collections, separated by blanks; see the schema.
        schemes : name of a scheme -> split by it, as `split`, or "" for none of them.

        Returns
        -------
        Row of the image in the file. An image from an earlier import keeps its split, and so does a
        photograph of which an earlier import brought another version; in each scheme alike.

        Raises
        ------
        UbrainError
            If the same image, or the same photograph, is given twice with different splits.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UbrainError(
                f"image {image_id!r}: expected (height, width, 3) uint8, got {pixels.shape}"
                f" {pixels.dtype}"
            )
        if max(pixels.shape) > MAX_SIDE:
            raise UbrainError(
                f"image {image_id!r}: {pixels.shape[:2]} pixels; sides above {MAX_SIDE} are refused"
            )
        image_id = readable(image_id)
        digest, names = content_digest(pixels), key.split()
        row = self._rows.get(digest, self.n_images)
        self.splits.put(row, image_id, split, digest, names)
        for scheme, said in (schemes or {}).items():
            if scheme not in self.schemes:
                blank = [NO_SPLIT] * self.n_images
                name = check_name(scheme, "split scheme")
                self.schemes[scheme] = Splits(blank, self._rows, self._keys, name)
            self.schemes[scheme].put(row, image_id, said, digest, names)
        if row == self.n_images:
            self._add_row(image_id, pixels, digest, self.splits.numbers[row])
        self._keys[row] = " ".join(dict.fromkeys([*self._keys[row].split(), *names]))
        return row

    def _add_row(self, image_id: str, pixels: NDArray[np.uint8], digest: str, split: int) -> None:
        if image_id in self._ids:
            image_id = f"{image_id}~{digest[:8]}"
        height, width, _ = pixels.shape
        name = f"images/pixels/{height}x{width}"
        if name not in self._file:
            full = {"maxshape": (None, *pixels.shape), "chunks": (1, *pixels.shape)}
            self._file.create_dataset(name, (0, *pixels.shape), np.uint8, **full)
        stored = self._file[name]
        stored.resize(len(stored) + 1, axis=0)
        stored[-1] = pixels
        self._check()
        values = (image_id, digest, split, len(stored) - 1, (height, width))
        for column, value in zip(REQUIRED, values, strict=True):
            self._new[column].append(value)
        self._ids.add(image_id)
        self._keys.append("")
        self._rows[digest] = len(self._rows)

    def _write_image_table(self) -> None:
        for name, values in self._new.items():
            if values:
                column = self._file[f"images/{name}"]
                column.resize(len(column) + len(values), axis=0)
                column[-len(values) :] = values
                values.clear()

    def add_subject(
        self,
        name: str,
        trials: pd.DataFrame,
        voxels: pd.DataFrame,
        blocks: Iterable[NDArray],
        dataset: str,
        scanner: str,
        space: str = "",
        account: str = "",
        dtype: str = "float32",
        normalise: str = "session",
        settings: str = "",
    ) -> None:
        """Add a subject; its responses are streamed, moments and ncsnr computed on the way.

        Parameters
        ----------
        trials : one row per trial: image (row in the file), session, and optionally run (within the
            session) and repeat.
        voxels : one row per voxel: any of hemisphere, vertex, i, j, k, areas, ncsnr, and more. A
            missing ncsnr is computed from the repeats, if there are any.
        blocks : arrays (n, n_voxels), in the order of the trials.
        normalise : over which trials a voxel is z-scored when it is read: those of a "session" or
            "run"; or "none".
        settings : of the import, as JSON.

        Raises
        ------
        UbrainError
            If the name is taken, the numbers of rows disagree, or a value is not finite.
        """
        if normalise not in NORMALISE or (normalise == "run" and "run" not in trials):
            raise UbrainError(
                f"subject {name!r}: normalise is one of {', '.join(NORMALISE)}, and run needs the"
                f" runs of the trials; got {normalise!r} and trials with {', '.join(trials)}"
            )
        if check_name(name) in self._file["subjects"]:
            raise UbrainError(f"subject {name!r} is already in the file; choose another name")
        self._write_image_table()
        group = self._file["subjects"].create_group(name)
        facts = {"dataset": dataset, "scanner": scanner, "space": space, "account": account}
        group.attrs.update({name: readable(text) for name, text in facts.items()})
        if normalise != "session":
            group.attrs["normalise"] = normalise
        if settings:
            group.attrs["settings"] = settings
        session = np.unique(trials["session"].to_numpy(), return_inverse=True)[1]
        repeat = trials["repeat"] if "repeat" in trials else trials.groupby("image").cumcount()
        columns = {"image": trials["image"].to_numpy(), "session": session, "repeat": repeat}
        if "run" in trials:
            columns["run"] = trials.groupby(["session", "run"]).ngroup().to_numpy()
        for column, values in columns.items():
            group.create_dataset(f"trials/{column}", data=np.asarray(values, TRIALS[column].dtype))
        unit = columns["run"] if normalise == "run" else session
        self._write_responses(group, blocks, (len(trials), len(voxels)), unit, dtype)
        self._write_voxels(group, voxels)

    def _write_responses(
        self,
        group: h5py.Group,
        blocks: Iterable[NDArray],
        shape: tuple[int, int],
        session: NDArray,
        dtype: str,
    ) -> None:
        # One trial a chunk, plainly: a training step reads trials in random order, and noise does
        # not compress (lzf saves nothing; gzip saves a sixth and makes a step twenty times slower).
        rows = max(1, min(shape[0], (64 << 10) // (shape[1] * np.dtype(dtype).itemsize)))
        responses = group.create_dataset("responses", shape, dtype, chunks=(rows, shape[1]))
        size = (2, int(session.max(initial=-1)) + 1, shape[1])
        moments = group.create_dataset("session_moments", size, np.float32)

        def save(number: int, both: NDArray[np.float64]) -> None:
            moments[:, number] = both

        start, digest = 0, hashlib.blake2b(digest_size=16)
        for block in session_moments(_checked_blocks(blocks, shape, group.name), session, save):
            digest.update(np.asarray(block, dtype=np.float32).tobytes())
            responses[start : start + len(block)] = block
            self._check()
            start += len(block)
        if start != shape[0]:
            raise UbrainError(f"{group.name}: expected responses to {shape[0]} trials, got {start}")
        group.attrs["digest"] = digest.hexdigest()
        self._file.flush()
        self._check()

    def _write_voxels(self, group: h5py.Group, voxels: pd.DataFrame) -> None:
        table = voxels.copy()
        if "ncsnr" in table:
            try:
                table["ncsnr"] = table["ncsnr"].astype(np.float32)
            except (TypeError, ValueError) as error:
                raise UbrainError(f"voxel column 'ncsnr': expected numbers: {error}") from None
        for name, column in VOXELS.items():
            if name not in table:
                table[name] = "" if column.dtype is TEXT else np.nan
        if table["ncsnr"].isna().all():
            table["ncsnr"] = _ncsnr(group)
        sides = {"lh": "L", "rh": "R", "left": "L", "right": "R"}
        table["hemisphere"] = table["hemisphere"].replace(sides)
        table["areas"] = [",".join(a.strip() for a in str(v).split(",")) for v in table["areas"]]
        for name in table.columns:
            values = table[name].to_numpy()
            path = f"voxels/{check_name(str(name), 'voxel column')}"
            if np.issubdtype(values.dtype, np.number):
                number = np.float32 if values.dtype.kind == "f" else int
                group.create_dataset(path, data=values.astype(number))
                continue
            texts = [readable(str(value)) for value in values]
            if any("\0" in text for text in texts):
                raise UbrainError(
                    f"voxel column {name!r}: a text has a zero byte in it; the file it is from is"
                    " damaged"
                )
            group.create_dataset(path, data=texts, dtype=TEXT)

    def write_truth(self, path: str, values: ArrayLike) -> None:
        """Store ground truth of a simulation under /truth, which nothing that learns reads."""
        data = np.asarray(values)
        if data.dtype.kind in "UO":
            self._file.create_dataset(f"truth/{path}", data=data.astype(object), dtype=TEXT)
        else:
            self._file.create_dataset(f"truth/{path}", data=data)

    def close(self) -> None:
        """Write what is still in memory; the file is a valid crowd file from here on."""
        self._write_image_table()
        if any(self._keys):
            self._file["images"].pop("key", None)
            self._file["images"].create_dataset("key", data=self._keys, dtype=TEXT)
        if self.schemes:
            self._file.attrs["version"] = VERSION
            self._file["images"].pop("schemes", None)
        for name, splits in self.schemes.items():
            numbers = splits.numbers + [NO_SPLIT] * (self.n_images - len(splits.numbers))
            self._file.create_dataset(f"images/schemes/{name}", data=np.array(numbers, np.uint8))
        if not len(self._file["subjects"]):
            raise UbrainError("a crowd file needs at least one subject")


def _ncsnr(group: h5py.Group) -> NDArray[np.float64] | float:
    """Of each voxel of a subject, from the repeats; NaN if there are none."""
    trials = Trials(group)
    deviation, freedom = trials.repeat_deviation()
    if not freedom:
        return np.nan
    if trials.normalise == "none":  # else the variance over all trials is 1
        mean, spread = trials.moments().astype(np.float64)
        weight = np.bincount(trials.session, minlength=len(mean))[:, None] / len(trials.session)
        total = (weight * (spread**2 + (mean - (weight * mean).sum(0)) ** 2)).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = deviation / total
    return scores.ncsnr(deviation, freedom)


def _checked_blocks(
    blocks: Iterable[NDArray], shape: tuple[int, int], where: str
) -> Iterator[NDArray]:
    start = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != shape[1] or start + len(block) > shape[0]:
            raise UbrainError(
                f"{where}: expected {shape} responses in all, got a block {block.shape} at row"
                f" {start}"
            )
        bad = ~np.isfinite(block)
        if bad.any():
            row, voxel = np.argwhere(bad)[0]
            raise UbrainError(
                f"{where}: response of voxel {voxel} in trial {start + row} is {block[row, voxel]}"
            )
        start += len(block)
        yield block


@contextmanager
def write_crowd(path: str | Path, append: bool = False, needs: int = 0) -> Iterator[CrowdWriter]:
    """Open a crowd file for writing; it appears only if the block ends without an error.

    Parameters
    ----------
    append : add to an existing file; it is copied first, so an error leaves it as it was.
    needs : bytes about to be written, as far as known; checked against the free space before
        anything is written.

    Raises
    ------
    UbrainError
        If the file exists (or, with `append`, does not), the disk is full, or writing fails.
    """
    path = Path(path)
    check_out(path)
    if append:
        open_crowd(path).close()
        needs += path.stat().st_size
    elif path.exists():
        raise UbrainError(
            f"{path} exists; choose another name, delete it, or append to it with --append"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path, needs)
        with atomic(path) as partial:
            if append:
                shutil.copyfile(path, partial)
            with Sink(partial, "r+" if append else "w+") as sink:
                with h5py.File(sink, "r+" if append else "w") as file:
                    writer = CrowdWriter(file, path, sink.check)
                    yield writer
                    writer.close()
                sink.check()
            open_crowd(partial).close()
    except UbrainError:
        raise
    except (OSError, RuntimeError) as error:
        raise UbrainError(
            f"could not write {path}: {error}. Is the disk full? With space on it, the same command"
            " goes on"
        ) from error
