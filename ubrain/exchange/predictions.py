"""Predicted responses of a subject's voxels to a folder of images, as files, in bounded memory."""

import glob
import hashlib
import json
import re
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import timm
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ubrain.backbone import Backbone
from ubrain.checkpoint import CONFIG, VOXELS, WEIGHTS, backbone_config, describe, load, voxel_table
from ubrain.data.importers.recording import ImageSource, open_images
from ubrain.errors import UbrainError
from ubrain.exchange import maps
from ubrain.exchange.hub import fetch
from ubrain.exchange.readouts import READOUT, ReadoutPredictor, load_readout
from ubrain.model import UniversalEncoder
from ubrain.parallel import choose_device
from ubrain.paths import write_text
from ubrain.predict import IMAGES, MEMORY, PRECISIONS, Predictor, autocast
from ubrain.progress import log, track
from ubrain.resume import require_space

READERS = 4  # threads that read images, and images that are read ahead


DTYPES = ("float32", "float16")


UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def predict_images(
    checkpoint: str | Path,
    images: str | Path,
    subject: str,
    out: str | Path,
    *,
    areas: Sequence[str] | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    memory: int = MEMORY,
    batch: int = IMAGES,
    dtype: str = "float32",
    reference: str | Path | None = None,
) -> list[Path]:
    """Predict the responses of a subject's voxels to images, and write them to a file; however
    many, in bounded memory.

    A run that was killed is continued by the same call: what is done is kept in a folder beside
    `out`, which vanishes when `out` is complete. On a CPU the result is, bit for bit, that of a run
    that was not killed.

    Parameters
    ----------
    checkpoint : checkpoint folder, or `owner/name` on the Hugging Face hub.
    images : folder of images, or .npy (n, height, width[, 3]) uint8.
    out : file to write; its suffix tells the format, see `ubrain.exchange.maps`. An older file is
        replaced.
    areas : only voxels in one of these areas; by default all.
    weights : of the backbone, if not those that the checkpoint names: a .safetensors file.
    memory, precision, batch : as for `Predictor`.
    dtype : float32 or float16.
    reference : a NIfTI file on the grid of the voxels; for .nii and .nii.gz.

    Returns
    -------
    The files written: `out`, or for GIFTI one per hemisphere.

    Raises
    ------
    UbrainError
        If anything asked for is not there or does not fit, an image cannot be read, or `out` is
        half done with other settings.
    """
    out, source = Path(out), open_images(Path(images))
    for value, known, what in ((precision, PRECISIONS, "precision"), (dtype, DTYPES, "dtype")):
        if value not in known:
            raise UbrainError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")
    if not len(source):
        raise UbrainError(f"{images}: there are no images in it")
    for path in maps.files_of(out):
        if path.is_dir():
            raise UbrainError(f"{path} is a folder; expected the name of a file to write")
    folder = fetch(checkpoint, [subject])
    voxels = _voxels(folder, subject, areas)
    facts = _facts(folder, subject, precision) | {
        "areas": ",".join(sorted(set(areas))) if areas is not None else "all"
    }
    write = maps.writer(
        out, voxels, facts["space"], np.dtype(dtype), None if reference is None else Path(reference)
    )
    backbone, encoder = _load(folder, subject, weights, choose_device(device))
    chosen = None if areas is None else voxels["voxel"].to_numpy(copy=True)
    predictor = ReadoutPredictor(
        load_readout(folder, subject),
        encoder,
        subject,
        chosen,
        memory=memory,
        precision=precision,
        batch=batch,
    )
    settings = _settings(facts, voxels, backbone, predictor, dtype)
    with _Work(out, settings, source, len(voxels), predictor.images) as work:
        _compute(work, backbone, predictor, precision)
        return write(maps.Responses(source.ids, voxels, work.dtype, facts, work.batches))


def bytes_of(text: str) -> int:
    """Number of bytes in words such as 500MB, 1.5 GB, 2GiB or 1000000."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise UbrainError(f"memory {text!r}: expected a number with a unit, such as 500MB or 2GB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _voxels(folder: Path, subject: str, areas: Sequence[str] | None) -> pd.DataFrame:
    """The voxels asked for: their number in the subject, and the rest of their voxel table if
    there is one.
    """
    known = describe(folder).subjects
    if subject not in known:
        raise UbrainError(
            f"{folder} has no subject {subject!r}; it has {', '.join(known) or 'none'}"
        )
    if areas is None and not (folder / VOXELS / f"{subject}.csv").is_file():
        return pd.DataFrame({"voxel": np.arange(known[subject])})
    table = voxel_table(folder, subject)
    table = table.drop(columns="voxel", errors="ignore").reset_index(drop=True)
    table.insert(0, "voxel", np.arange(len(table)))
    return table if areas is None else table[_in_areas(table, subject, areas)]


def _in_areas(table: pd.DataFrame, subject: str, areas: Sequence[str]) -> NDArray[np.bool_]:
    of_voxel = [
        {area.strip() for area in text.split(",")} - {""}
        for text in table.get("areas", pd.Series([""] * len(table)))
    ]
    known = sorted(set().union(*of_voxel))
    unknown = [area for area in areas if area not in known]
    if unknown or not areas:
        raise UbrainError(
            f"subject {subject!r} has no area {', '.join(map(repr, unknown)) or 'without a name'}; "
            f"it has {', '.join(known) or 'none'}"
        )
    wanted = set(areas)
    return np.array([not wanted.isdisjoint(theirs) for theirs in of_voxel])


def _facts(folder: Path, subject: str, precision: str) -> dict[str, str]:
    about = describe(folder).recordings.get(subject, {})
    known = {key: str(about.get(key, "")) for key in ("dataset", "scanner", "space")}
    files = [folder / n for n in (WEIGHTS, CONFIG, READOUT) if (folder / n).is_file()]
    return {
        "format": "ubrain-responses",
        "units": "z-scored response",
        "subject": subject,
        **known,
        "precision": precision,
        "checkpoint": _digest(*files),
        "ubrain": metadata.version("ubrain"),
    }


def _digest(*files: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _load(
    folder: Path, subject: str, weights: str | Path | None, device: torch.device
) -> tuple[Backbone, UniversalEncoder]:
    config = backbone_config(folder)
    if weights is not None:
        config = replace(config, weights=str(weights))
    try:
        backbone = Backbone(config).eval()
    except UbrainError as error:
        raise UbrainError(
            f"the backbone of {folder}: {error} (--weights names a file of its weights)"
        ) from error
    encoder = load(folder, backbone.adapters, [subject])
    return backbone.to(device), encoder.to(device)


def _settings(
    facts: dict[str, str],
    voxels: pd.DataFrame,
    backbone: Backbone,
    predictor: Predictor,
    dtype: str,
) -> dict[str, Any]:
    """Everything that the numbers depend on but the images."""
    weights = Path(backbone.config.weights)
    made_by = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": predictor.device.type,
    }
    return {
        **facts,
        **made_by,
        "voxels": hashlib.blake2b(voxels["voxel"].to_numpy().tobytes(), digest_size=16).hexdigest(),
        "dtype": dtype,
        "weights": _digest(weights) if weights.is_file() else str(weights),
        "images at a time": predictor.images,
        "voxels at a time": predictor.block,
    }


class _Work:
    """Responses that are already predicted, in a folder beside the target; for one process at a
    time.

    `responses.raw` has those to the first images, (n, n_voxels). It grows by whole batches, so its
    size tells what a killed process left of one. `settings.json` says what they were made of.
    """

    def __init__(
        self, out: Path, settings: dict[str, Any], source: ImageSource, n_voxels: int, step: int
    ) -> None:
        self.out, self.folder, self.source = out, out.with_name(f".{out.name}.work"), source
        self.dtype, self._n_voxels, self.step = np.dtype(settings["dtype"]), n_voxels, step
        self._row_bytes = n_voxels * self.dtype.itemsize
        self._raw, self._told = self.folder / "responses.raw", self.folder / "settings.json"
        files = [(path.name, path.stat()) for path in source.files]
        self._now = json.loads(
            json.dumps(
                {"settings": settings, "images": [[n, s.st_size, s.st_mtime_ns] for n, s in files]}
            )
        )
        self._lock = FileLock(self.folder / "lock")
        self.done = 0  # images

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UbrainError(
                f"another process is writing {self.out}; wait for it, or stop it"
            ) from None
        except OSError as error:
            raise UbrainError(f"cannot write beside {self.out}: {error}") from error
        try:
            self._continue()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is None or not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            log.info(
                "%s: %d of %d images are done; the same command continues",
                self.out,
                self.done,
                len(self.source),
            )
        self._lock.release()

    def _continue(self) -> None:
        """Find out how many images are done, and keep only these; refuse if they were done
        otherwise.
        """
        for name in (glob.escape(path.name) for path in maps.files_of(self.out)):
            for left_behind in self.out.parent.glob(
                f".{name}.*.partial"
            ):  # by a process that was killed: we hold the lock
                left_behind.unlink()
        n = len(self.source)
        if self._told.exists() and self._raw.exists() and self._raw.stat().st_size:
            before = self._told_before()
            self._refuse_if(_differences(before["settings"], self._now["settings"]))
            rows = self._raw.stat().st_size // self._row_bytes
            self.done = n if rows == n else min(rows, n) // self.step * self.step
            pairs = zip(before["images"][: self.done], self._now["images"], strict=False)
            self._refuse_if(
                [f"image {old[0]} is no longer what it was" for old, new in pairs if old != new][:1]
            )
            log.info("%s: continuing after %d of %d images", self.out, self.done, n)
        require_space(
            self.out, (2 * n - self.done) * self._row_bytes
        )  # at the end, they are there twice
        with self._raw.open("ab") as file:
            file.truncate(self.done * self._row_bytes)
        write_text(self._told, json.dumps(self._now))

    def _told_before(self) -> dict[str, Any]:
        try:
            before = json.loads(self._told.read_text(encoding="utf-8"))
            return {"settings": dict(before["settings"]), "images": list(before["images"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UbrainError(
                f"{self._told} cannot be read: {error}; delete the folder to start anew"
            ) from error

    def _refuse_if(self, differences: list[str]) -> None:
        if differences:
            raise UbrainError(
                f"{self.out} is half done, but from something else: {'; '.join(differences)}. "
                f"Finish it with the same, or delete the folder {self.folder} to start anew"
            )

    def add(self, responses: NDArray) -> None:
        """Keep the responses to the next images, (n, n_voxels)."""
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(responses, self.dtype)
        if not np.isfinite(stored).all():
            worst = self.source.ids[self.done + int(np.argmin(np.isfinite(stored).all(1)))]
            raise UbrainError(
                f"the responses to image {worst!r} are not finite in {self.dtype}; is the"
                " checkpoint sound?"
            )
        with self._raw.open("ab") as file:
            file.write(stored.data)
        self.done += len(stored)

    def batches(self) -> Iterator[NDArray]:
        """All responses, batch by batch."""
        with self._raw.open("rb") as file:
            for _ in range(0, self.done, self.step):
                yield np.fromfile(file, self.dtype, self.step * self._n_voxels).reshape(
                    -1, self._n_voxels
                )


def _differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
        for key in {**was, **now}
        if was.get(key) != now.get(key)
    ]


def _compute(work: _Work, backbone: Backbone, predictor: Predictor, precision: str) -> None:
    """Predict what is missing, batch by batch; batches are the same wherever a run was cut."""
    n = len(work.source)
    starts = range(work.done, n, work.step)
    label = f"predicting {n} images × {predictor.n_voxels} voxels"
    with closing(_read_ahead(work.source, range(work.done, n))) as pixels:
        for start in track(starts, len(starts), label):
            with (
                torch.inference_mode(),
                autocast(predictor.device, precision),
                _memory_enough(work.step),
            ):
                images = torch.cat(
                    [backbone.preprocess([next(pixels)]) for _ in range(min(work.step, n - start))]
                )
                responses = predictor(backbone(images))
            work.add(responses)


def _read_ahead(source: ImageSource, rows: Iterable[int]) -> Generator[NDArray[np.uint8]]:
    """Pixels of images in order; while one is worked on, the next few are read."""

    def read(row: int) -> NDArray[np.uint8]:
        return np.array(source.pixels(row))  # a copy that may be written to, as torch wants it

    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[Future[NDArray[np.uint8]]] = deque()
        for row in rows:
            waiting.append(pool.submit(read, row))
            if len(waiting) > READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _memory_enough(images: int) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UbrainError(
            f"the device has too little memory for {images} images at a time; give fewer (--batch),"
            " or less --memory for voxels"
        ) from error
