"""Predicted responses of a subject's voxels to a folder of images, as files, in bounded memory."""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import metadata
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubrain.backbone import Backbone
from ubrain.batches import n_readers, read_ahead
from ubrain.checkpoint import (
    CONFIG,
    READOUT,
    VOXELS,
    WEIGHTS,
    backbone_config,
    describe,
    load,
    n_voxels_of,
    voxel_table,
)
from ubrain.data.crowdfile import readable
from ubrain.data.importers.recording import ImageSource, open_images
from ubrain.errors import UbrainError, some
from ubrain.exchange import maps
from ubrain.exchange.hub import fetch
from ubrain.exchange.readouts import ReadoutPredictor, load_readout
from ubrain.model import UniversalEncoder
from ubrain.parallel import autocast, choose_device
from ubrain.paths import check_out, open_regular, write_text
from ubrain.predict import IMAGES, MEMORY, PRECISIONS, Predictor
from ubrain.progress import log, track
from ubrain.resume import remove_partials, require_space, work

DTYPES = ("float32", "float16")
UNITS = {"": 1} | {f"{p}B": 10 ** (3 * i) for i, p in enumerate("KMGT", 1)}
UNITS |= {f"{p}IB": 2 ** (10 * i) for i, p in enumerate("KMGT", 1)}


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
    for path in maps.files_of(out):
        check_out(path)
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
    place, what = out.with_name(f".{out.name}.work"), f"the prediction of {out}"
    with work(place, settings, what) as kept:
        for path in maps.files_of(out):
            remove_partials(out.parent, path.name)
        done = Predicted(kept, out, source, len(voxels), dtype, predictor.images)
        _compute(done, backbone, predictor, precision)
        ids = [readable(name) for name in source.ids]
        return write(maps.Responses(ids, voxels, done.dtype, facts, done.batches))


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
    n_voxels = n_voxels_of(describe(folder), subject, folder)
    if areas is None and not (folder / VOXELS / f"{subject}.csv").exists():
        return pd.DataFrame({"voxel": np.arange(n_voxels)})
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
            f"it has {some(known) or 'none'}"
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
        with open_regular(path) as file:
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


class Predicted:
    """Responses that are already predicted, in a work folder beside the target.

    `responses.raw` has those to the first images, (n, n_voxels). It grows by whole batches, so its
    size tells what a killed process left of one. `images.json` says what these images were: later
    ones may be added while a prediction is interrupted.
    """

    def __init__(
        self, folder: Path, out: Path, source: ImageSource, n_voxels: int, dtype: str, step: int
    ) -> None:
        self.out, self.source, self.step = out, source, step
        self.dtype, self._n_voxels, self.done = np.dtype(dtype), n_voxels, 0  # images
        self._raw, self._seen = folder / "responses.raw", folder / "images.json"
        n, row = len(source), n_voxels * self.dtype.itemsize
        stats = [(path.name, path.stat()) for path in source.files]
        now = {str(i): [name, s.st_size, s.st_mtime_ns] for i, (name, s) in enumerate(stats)}
        self._images = now
        if self._raw.exists() and self._seen.exists():
            rows = self._raw.stat().st_size // row
            self.done = n if rows == n else min(rows, n) // step * step
            before = json.loads(self._seen.read_text(encoding="utf-8"))
            seen = {i: told for i, told in before.items() if int(i) < self.done}
            changed = [told[0] for i, told in seen.items() if now.get(i) != told]
            if changed:
                raise UbrainError(
                    f"image {changed[0]} is no longer what it was when {out} was begun; put it"
                    f" back, or delete {folder} to start anew"
                )
        if self.done:
            log.info("%s: continuing after %d of %d images", out, self.done, n)
        require_space(out, (2 * n - self.done) * row)  # at the end, they are there twice
        if self._raw.exists():
            with self._raw.open("ab") as file:
                file.truncate(self.done * row)

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
        if self._images:
            write_text(self._seen, json.dumps(self._images))
            self._images = {}
        with self._raw.open("ab") as file:
            file.write(stored.data)
        self.done += len(stored)

    def batches(self) -> Iterator[NDArray]:
        """All responses, batch by batch."""
        size = self.step * self._n_voxels
        with self._raw.open("rb") as file:
            for _ in range(0, self.done, self.step):
                yield np.fromfile(file, self.dtype, size).reshape(-1, self._n_voxels)


def _compute(done: Predicted, backbone: Backbone, predictor: Predictor, precision: str) -> None:
    """Predict what is missing, batch by batch; batches are the same wherever a run was cut."""
    n, seconds = len(done.source), dict.fromkeys(("reading", "computing", "writing"), 0.0)
    starts = range(done.done, n, done.step)
    label = f"predicting {n} images × {predictor.n_voxels} voxels"

    @torch.inference_mode()
    def read(row: int) -> Tensor:
        """An image, made small before another is read: large ones would fill the memory."""
        pixels = np.array(done.source.pixels(row))  # which may be written to, as torch wants it
        with autocast(predictor.device, precision):
            return backbone.preprocess([pixels])

    with closing(read_ahead(read, range(done.done, n), n_readers(predictor.device))) as images:
        for start in track(starts, len(starts), label):
            marks = [time.monotonic()]
            with (
                torch.inference_mode(),
                autocast(predictor.device, precision),
                _memory_enough(done.step),
            ):
                some = list(islice(images, min(done.step, n - start)))
                marks.append(time.monotonic())
                responses = predictor(backbone(torch.cat(some)))
            marks.append(time.monotonic())
            done.add(responses)
            for part, (before, after) in zip(
                seconds, pairwise([*marks, time.monotonic()]), strict=True
            ):
                seconds[part] += after - before
    if starts and (whole := sum(seconds.values())) > 0:
        rate = (n - starts[0]) * predictor.n_voxels / whole / 1e6
        parts = ", ".join(f"{part} {s / whole:.0%}" for part, s in seconds.items())
        log.info("%.2f M image-voxels a second; %s of %.0f s", rate, parts, whole)


@contextmanager
def _memory_enough(images: int) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UbrainError(
            f"the device has too little memory for {images} images at a time; give fewer (--batch),"
            " or less --memory for voxels"
        ) from error
