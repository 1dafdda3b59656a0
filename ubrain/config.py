"""Every size and every choice, as dataclasses; profiles are YAML files that fill them.

Choices that make a training what it is are named together as a recipe (`recipes.yaml`): "paper",
the authors' released code and the default of every option, and "ours".
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

import yaml

from ubrain.errors import UbrainError, cut

T = TypeVar("T")
START = 0.08838834764831845  # 1 / (2 √32), of the released code
# What was done before there was an option for it; see `as_settings`.
BEFORE = {
    "resize": "antialias",
    "functional_std": 1.0,
    "position_std": None,
    "batches": "one-subject",
    "voxel_draws": "shared",
    "embedding_steps": "own",
    "validation": "by-subject",
}
# of a backbone: the least and the most (a folder from elsewhere asks for no memory), and choices
SIZES = {"image_size": (1, 2048), "grid": (1, 256), "adapter_rank": (0, 1024)}
MOST_LEVELS = 1000
CHOICES = {"resize": ("gaussian", "antialias"), "registers": ("prefix", "last")}


@dataclass(frozen=True)
class SimulationConfig:
    """A simulated crowd; the scanner decides about repeats and noise."""

    subjects: int = 8  # how many
    # images of its own that a subject sees (train and val); None: as many as with the scanner
    images: int | None = None
    test_images: int | None = None  # shared by all subjects; None: as many as with the scanner
    voxels: int = 1000  # of a subject, on average
    scanner: str = "7T"  # 7T (like NSD), 3T (like GOD) or 4T (like vim-1)
    snr: float = 1.0  # factor on every ncsnr, beside the scanner's
    # factor on how much subjects differ in the shares of areas and functional types
    spread: float = 1.0
    lacking: str = ""  # a functional type that no voxel of these subjects has
    # share of voxels whose functional type is one that all brains have; the types of the others are
    # of their own brain alone
    shared_function: float = 1.0


@dataclass(frozen=True)
class BackboneConfig:
    """A timm model, the levels that are read, and the adapters on it; by default the paper's."""

    name: str = "vit_large_patch14_reg4_dinov2.lvd142m"  # of any timm model
    # hub, embedded (tf_efficientnet_lite0 only), random, or a .safetensors file
    weights: str = "hub"
    levels: tuple[int, ...] = (0, 5, 11, 17, 23)  # blocks that are read, from 0
    image_size: int | None = 224  # side of the images; None: the model's own
    grid: int | None = None  # tokens per side for a CNN; a ViT has its own
    keep_cls: bool = True  # the class token of a ViT
    adapter_rank: int = 7  # 0: no adapters, features can be cached
    adapter_alpha: float = 0.01
    # to that size: gaussian, smoothed, linear, rounded to uint8; or antialias, the model's own way
    resize: str = "gaussian"
    # tokens that are dropped: "prefix", the registers, or as many "last" ones (an early release)
    registers: str = "prefix"
    # blocks are computed again in the backward pass: slower, less memory; for adapters
    checkpointing: bool = False


@dataclass(frozen=True)
class EncoderConfig:
    """Every size of the encoder, by default the paper's; the first two follow from the backbone."""

    widths: tuple[int, ...] = (1024,) * 5  # backbone width D of each level
    n_tokens: int = 257  # P
    embedding_size: int = 256  # E
    channels: int = 128  # C
    mlp_ratio: int = 4
    dropout: float = 0.25
    embedding_scale: float = 0.1  # voxel embeddings start at N(0, (scale / (2 sqrt(E)))²)
    functional_std: float = START  # of the start of functional attention F
    position_std: float | None = START  # of the start of position; None: 1 / sqrt(E)
    # for ablations: spatial, position, functional; see `ubrain.model`
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingConfig:
    """How the encoder is trained. The defaults are those of the authors' released code."""

    epochs: int = 30  # each shows every training image once
    # a small crowd has few steps in an epoch; it gets more epochs until it has had so many
    min_steps: int = 0
    batch_images: int = 32
    batches: str = "mixed"  # of images of all subjects; or one-subject
    voxels_per_step: int = 5000  # drawn anew for each batch
    # per-image: each has its own, drawn with replacement; shared: the same for a subject's images
    voxel_draws: str = "per-image"
    embedding_steps: str = "all"  # in which Adam moves a subject's embeddings: all, or its own
    # batches whose gradients are averaged; with several processes at least as many
    batches_per_step: int = 1
    learning_rate: float = 1e-3
    schedule: str = "plateau"  # plateau, or one-cycle
    patience: int = 4
    factor: float = 0.1
    threshold: float = 0.003
    min_learning_rate: float = 1e-7
    mse_weight: float = 1.0
    cosine_weight: float = 0.1
    # pooled: correlation of columns of drawn voxels, whatever the subject; or by-subject, of voxels
    validation: str = "pooled"
    image_shift: int = 3  # pixels; only when training from images
    precision: str = "fp32"  # fp32, or bf16 (autocast)
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps


@dataclass(frozen=True)
class BaselineConfig:
    """The search that each baseline gets."""

    folds: int = 5
    pca: tuple[int, ...] = (100, 200)
    random_projection: tuple[int, ...] = (2000,)
    band_draws: int = 20  # random weightings of the levels in banded ridge
    factorised_epochs: int = 60
    factorised_channels: int = 32
    factorised_penalties: tuple[float, ...] = (1e-4, 1e-2)


@dataclass(frozen=True)
class TransferConfig:
    """How new voxels get embeddings, and how much of it the notebook about transfer tries."""

    folds: int = 5  # at most; held-out images that everything is chosen on
    temperatures: tuple[float, ...] = (0.06, 0.25, 0.5, 1.0, 2.0, 4.0)  # of matching
    # of ours, toward the matched embedding
    pulls: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    steps: int = 2  # of ours, Gauss–Newton
    learning_rate: float = 1e-3  # of gradient alone, and the following
    epochs: int = 50
    min_steps: int = 0  # few images have few steps in an epoch
    batch_images: int = 32
    # how gradient keeps the best: val, by the val images, 75th percentile of r after each
    # epoch; or fold, a fifth of the images, mean r every 10 steps
    held_out: str = "val"
    image_shift: int = 3  # pixels; only from images
    voxels_per_step: int = 5000
    newcomers: int = 2  # in the notebook, of each direction, and the following
    voxels: int = 5000  # of a newcomer, at most, drawn at random
    n_images: tuple[int, ...] = (25, 50, 100, 200, 400, 1000, 3000)  # and all there are
    draws: int = 3  # of the images
    # and all there are: encoders trained on the newcomer only
    scratch_images: tuple[int, ...] = (100, 1000)
    scratch_steps: int = 2000


@dataclass(frozen=True)
class RetrievalConfig:
    """How often galleries, voxels and wrong assignments are drawn in retrieval."""

    draws: int = 10


@dataclass(frozen=True)
class ClusterConfig:
    """How much work the clusters of voxel embeddings get."""

    counts: tuple[int, ...] = (4, 6, 8, 10, 12, 16, 20, 25)  # numbers of clusters that are tried
    runs: int = 10  # clusterings for each number
    restarts: int = 10  # the best of so many starts is kept
    components: int = 10  # principal components that the Gaussian mixture and HDBSCAN see
    least: int = 100  # voxels in the smallest cluster of HDBSCAN
    top: int = 20  # images that stand for a cluster
    map_sample: int = 20_000  # voxels that t-SNE sees


@dataclass(frozen=True)
class FieldsConfig:
    """How receptive fields are read off the attention."""

    images: int = 200  # test images that the attention is averaged over
    shuffles: int = 200  # of voxels, behind the range that layout alone explains


@dataclass(frozen=True)
class AblationConfig:
    """Which variants of the encoder are trained, and how long."""

    n_subjects: int = 8  # the first so many
    steps: int = 0  # of each training; 0: as the profile trains
    seeds: int = 2
    embedding_sizes: tuple[int, ...] = (16, 64, 128, 512)
    # which of the profile's levels are kept, from 0
    levels: tuple[tuple[int, ...], ...] = ((0,), (4,), (0, 2, 4))
    voxels_per_step: tuple[int, ...] = (500, 20000)
    # above 0: also train from images, without adapters and with adapters of this rank
    adapter_rank: int = 0


@dataclass(frozen=True)
class Profile:
    """What a run of the notebooks uses: smaller profiles shrink work, they never skip cells."""

    name: str = "paper"
    recipe: str = "paper"  # or ours; see `recipes`
    # one after the other, into one crowd file
    simulation: tuple[SimulationConfig, ...] = (SimulationConfig(),)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    baselines: BaselineConfig = field(default_factory=BaselineConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    clusters: ClusterConfig = field(default_factory=ClusterConfig)
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    ablations: AblationConfig = field(default_factory=AblationConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    bootstrap: int = 1000  # resamples behind intervals over voxels and over newcomers
    permutations: int = 1000  # shuffles behind every p value


def check_backbone(config: BackboneConfig, where: str = "backbone") -> None:
    """Refuse what no backbone has, and sizes that would only fill the memory."""
    for option, (least, most) in SIZES.items():
        value = getattr(config, option)
        if value is not None and not least <= value <= most:
            raise UbrainError(f"{where}: {option} is {value}: expected {least} to {most}")
    if not config.levels or not all(0 <= level < MOST_LEVELS for level in config.levels):
        raise UbrainError(f"{where}: levels {config.levels}: expected numbers of blocks, from 0")
    for option, known in CHOICES.items():
        if (value := getattr(config, option)) not in known:
            raise UbrainError(f"unknown {option} {value!r}; expected one of {', '.join(known)}")
    if config.registers == "last" and not config.keep_cls:
        raise UbrainError(
            "registers: last keeps the class token, as the release did that used it; set keep_cls"
            " to true"
        )


def profile_names() -> list[str]:
    """Names of the profiles that ship with ubrain."""
    names = [
        f.name.removesuffix(".yaml")
        for f in resources.files("ubrain").joinpath("profiles").iterdir()
    ]
    return sorted(names, key=lambda n: ({"smoke": 0, "fast": 1, "paper": 2}.get(n, 3), n))


def recipes() -> dict[str, dict[str, Any]]:
    """The named sets of options, as a profile would have them: recipe -> section -> options."""
    table = yaml.safe_load(_read("recipes.yaml"))
    names = ("ours", "paper")
    return {
        name: {s: {k: row[name] for k, row in rows.items()} for s, rows in table.items()}
        for name in names
    }


def load_profile(name: str, recipe: str | None = None) -> Profile:
    """Read a profile by name.

    Parameters
    ----------
    recipe : another recipe than the profile's own: all of its options take the place of those of
        the profile.

    Raises
    ------
    UbrainError
        If there is no such profile or recipe, or it has an unknown or mistyped option.
    """
    if name not in profile_names():
        raise UbrainError(f"unknown profile {name!r}: expected one of {', '.join(profile_names())}")
    told = yaml.safe_load(_read(f"profiles/{name}.yaml"))
    chosen, known = recipe or told.get("recipe", Profile.recipe), recipes()
    if chosen not in known:
        raise UbrainError(f"unknown recipe {chosen!r}: expected one of {', '.join(known)}")
    for section, options in known[chosen].items():
        own = told.get(section, {})
        told[section] = {**options, **own} if recipe is None else {**own, **options}
    told |= {"name": name, "recipe": chosen}
    return from_mapping(Profile, told, where=f"profile {name!r}")


def _read(name: str) -> str:
    return resources.files("ubrain").joinpath(name).read_text(encoding="utf-8")


def as_settings(config: Any) -> dict[str, Any]:
    """Options of a config as plain values, to be kept beside what is made with them.

    An option that has the value of `BEFORE` is left out, so what was made before there was such an
    option has the same settings as what is made alike today.
    """
    options = dataclasses.asdict(config).items()
    return {name: value for name, value in options if BEFORE.get(name, ...) != value}


def from_settings(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The opposite of `as_settings`; see `from_mapping`."""
    hints = typing.get_type_hints(cls)
    before = {name: value for name, value in BEFORE.items() if name in hints}
    return from_mapping(cls, {**before, **values}, where)


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a config from a mapping; unknown names and wrong types are refused.

    Raises
    ------
    UbrainError
        Naming the option, the place and what was expected.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise UbrainError(f"{where}: expected a mapping of options, got {cut(repr(values))}")
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UbrainError(
            f"{where}: unknown option {cut(str(unknown[0]))!r}; known are {', '.join(hints)}"
        )
    return cls(
        **{name: _coerce(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    )


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of a field: int counts as float, a list as a tuple, nothing else."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, where)
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(
            _coerce(typing.get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value)
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        typing.get_origin(hint) is tuple
        or not isinstance(value, hint)
        or (isinstance(value, bool) and hint is not bool)
        or (hint is float and not math.isfinite(value))
    ):
        got = cut(repr(value))
        raise UbrainError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {got}")
    return value
