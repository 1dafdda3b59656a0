"""The authors' published encoders, and the smaller files that others made of them, as checkpoint
folders of ubrain.

Three forms are known: the whole module as the authors saved it, `{"config", "shared"}` (no voxels,
no backbone) with `{"voxel_embed"}` in a second file, and a plain state dict. None is executed, see
`ubrain.exchange.torchfile`. Names and shapes are those of the authors' code, arXiv 2406.12179; E,
C, L, P, D and r as in `ubrain.model`, V voxels of all subjects together.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ubrain import checkpoint
from ubrain.config import BackboneConfig, EncoderConfig
from ubrain.crowd import check_name
from ubrain.errors import UbrainError, cut, some
from ubrain.exchange import hub, torchfile
from ubrain.exchange.torchfile import Record, StoredTensor
from ubrain.model import UniversalEncoder
from ubrain.paths import check_out, open_regular, regular

CLASSES = re.compile(
    r"models\.(encoder_models|layers_encoder)\.\w+|torch\.nn\.modules(\.\w+){2}|dinov2(\.\w+){2,}"
    r"|torch\.nn\.parallel\.data_parallel\.DataParallel"
)
NSD = {
    f"subj{i:02}": n for i, n in enumerate((*[39548] * 5, 39198, 39548, 39511), start=1)
}  # 315,997 in all
BACKBONES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # DINOv2 by width D
DEPTHS = {384: 12, 768: 12, 1024: 24, 1536: 40}
PATCH = 14  # pixels
EPSILON = 1e-5  # of every LayerNorm here
REGISTERS = ("prefix", "last")
STOCK, UNUSED = "embed_model.", "layer_embed"
NOTES = (
    "These weights were published by others without a licence, and converted by `ubrain checkpoint"
    " import`: ask their authors before you pass them on."
)
# characters of a fact and of all, facts, characters of a list and rows of a table that are shown
MAX_WORDS, MAX_SAID, MAX_FACTS, SHOWN, ROWS = 500, 50_000, 500, 20_000, 1000


@dataclass(frozen=True)
class Released:
    """What a published file holds, before anything is made of it.

    Attributes
    ----------
    form : in words.
    tensors : by the authors' names; still in the file.
    facts : plain attributes: select_layers, lora_scale, include_reg_tokens, param ...
    oddities : how its parts differ from what ubrain computes; empty if they do not, or if the file
        does not say.
    """

    path: Path
    form: str
    tensors: dict[str, StoredTensor]
    facts: dict[str, Any]
    oddities: tuple[str, ...] = ()


def open_released(path: str | Path) -> Released:
    """Read what a published file says, without executing anything and without its numbers.

    Raises
    ------
    UbrainError
        If it is damaged, names something that an encoder does not need, or holds something else.
    """
    path = Path(path)
    found = torchfile.read(path, lambda name: CLASSES.fullmatch(name) is not None)
    if isinstance(found, Record) and found.kind.endswith(".DataParallel"):
        inner = found.state.get("_modules")
        found = inner.get("module") if isinstance(inner, dict) else None
    if isinstance(found, Record):
        form, told = f"whole module {found.kind}", found.state
    elif isinstance(found, dict) and torchfile.tensors(found):
        config = found.get("config")
        form = f"dict of {some(found)}"
        config = config.state if isinstance(config, Record) else config
        told = config if isinstance(config, dict) else found
    else:
        raise UbrainError(
            f"{path} holds {type(found).__name__.lower()}, not an encoder: expected a module or a"
            " dict of tensors"
        )
    tensors = torchfile.tensors(found)
    size = sum(t.nbytes for name, t in tensors.items() if not name.startswith(STOCK))
    if size > regular(path):
        raise UbrainError(f"{path}: its tensors have {_bytes(size)}, more than the file; refused")
    odd = tuple(_oddities(found)) if isinstance(found, Record) else ()
    return Released(path, form, tensors, _facts(path, told), odd)


def import_released(
    file: str | Path,
    out: str | Path,
    *,
    voxel_embed: str | Path | None = None,
    subjects: Mapping[str, int | None] | None = None,
    registers: str | None = None,
    lora_scale: float | None = None,
    backbone: BackboneConfig | None = None,
) -> list[str]:
    """Make a checkpoint folder of a published encoder; it predicts what the original module would.

    Parameters
    ----------
    file : whole module, `{"config", "shared"}`, or state dict, as torch.save wrote it.
    voxel_embed : file with the voxel embeddings, if `file` has none.
    subjects : voxels of each subject, in the order of the rows; None for all rows. By default the
        eight of NSD, if the number of voxels is theirs.
    registers : which tokens the encoder was trained without: "prefix" (the registers), as by
        default, or "last" (an earlier release).
    lora_scale : alpha / r of the adapters, if the file does not say it.
    backbone : if it is not a DINOv2 with registers of the width in the file.

    Returns
    -------
    What was found, assumed and left out, a sentence each.

    Raises
    ------
    UbrainError
        If weights are missing, unexpected or of the wrong shape, or the module computes something
        else than ubrain.
    """
    whence = "as told"
    if registers is None:
        registers, whence = (
            "prefix",
            ("assumed, since no file says it; an encoder of an earlier release needs 'last'"),
        )
    if registers not in REGISTERS:
        raise UbrainError(f"registers {registers!r}: expected one of {', '.join(REGISTERS)}")
    check_out(Path(out), folder=True)
    released = _joined(open_released(file), voxel_embed)
    if released.oddities:
        raise UbrainError(
            f"{file} was built otherwise than ubrain's encoder, which would predict something else:"
            f" {'; '.join(released.oddities)}"
        )
    config, rank, depth = _sizes(released)
    counts, remark = _subjects(released, subjects)
    chosen, scale_remark = _backbone(released, config, (rank, depth), lora_scale, backbone)
    chosen = replace(chosen, registers=registers)
    encoder, adapters = _fill(released, config, counts, rank, depth)
    source = {
        "file": Path(file).name,
        "sha256": _digest(released.path),
        "form": released.form,
        "says": released.facts,
    }
    about = {n: {"dataset": "NSD", "scanner": "7T", "space": ""} for n in counts if counts == NSD}
    checkpoint.save(
        encoder,
        out,
        adapters,
        recordings=about,
        settings={"backbone": asdict(chosen)},
        source=source,
        notes=NOTES,
    )
    hub.write_card(Path(out))
    stock = [t for name, t in released.tensors.items() if name.startswith(STOCK)]
    return [
        f"{released.path.name}: {released.form}",
        _said_sizes(config, rank, depth),
        remark,
        (
            f"backbone: {chosen.name} at {chosen.image_size} px, output of blocks"
            f" {', '.join(str(b + 1) for b in chosen.levels)}"
        ),
        scale_remark,
        f"registers: {registers!r} {whence}",
        *(
            [
                f"left out: {len(stock)} tensors of {STOCK}*"
                f" ({_bytes(sum(t.nbytes for t in stock))}), taken to be the stock DINOv2 that timm"
                " provides"
            ]
            if stock
            else []
        ),
        *(
            [f"left out: {UNUSED}, which the authors' code never uses"]
            if UNUSED in released.tensors
            else []
        ),
        (
            "no voxel table: the file does not know where its voxels are; add one with"
            " checkpoint.save(..., voxels=..., like=...)"
        ),
    ]


def parse_subjects(text: str) -> dict[str, int | None]:
    """`S1=39548,S2=39548`, or one name for all voxels, as `import_released` takes it."""
    found: dict[str, int | None] = {}
    for part in text.split(","):
        name, equals, count = part.strip().partition("=")
        if (equals and not count.strip().isdecimal()) or check_name(name) in found:
            raise UbrainError(
                f"--subjects {text!r}: expected names, each once, with numbers of voxels, such as"
                " subj01=39548"
            )
        found[name] = int(count) if equals else None
    return found


def show(path: str | Path) -> str:
    """What is inside a checkpoint folder or a published file, in words; nothing is executed and no
    weight is read.
    """
    return "\n".join(
        _show_folder(Path(path)) if Path(path).is_dir() else _show_file(open_released(path))
    )


def _show_folder(folder: Path) -> list[str]:
    told = checkpoint.describe(folder)
    subjects = [
        f"  {name}: {n} voxels {json.dumps(told.recordings.get(name, {}))}"
        for name, n in told.subjects.items()
    ]
    return [
        f"{folder}: checkpoint of ubrain",
        f"config: {json.dumps(asdict(told.config))}",
        "subjects:",
        *_first(subjects),
        *_table(checkpoint.weights_in(folder)),
        f"facts: {cut(json.dumps(told.facts, indent=1), SHOWN)}",
    ]


def _first(rows: Sequence[str]) -> list[str]:
    more = [f"  and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
    return [*rows[:ROWS], *more]


def _show_file(released: Released) -> list[str]:
    rows = {
        name: (t.shape, str(t.dtype).removeprefix("torch."), t.nbytes)
        for name, t in released.tensors.items()
    }
    ours = {name: row for name, row in rows.items() if not name.startswith(STOCK)}
    voxels = released.tensors.get("voxel_embed")
    lines = [
        f"{released.path}: {released.form}",
        f"voxels: {voxels.shape[0] if voxels else 'none in this file'}",
    ]
    with suppress(UbrainError):  # a file with voxel embeddings only
        lines.append(_said_sizes(*_sizes(released)))
    lines += _table(ours)
    if stock := [nbytes for name, (_, _, nbytes) in rows.items() if name.startswith(STOCK)]:
        lines.append(
            f"{STOCK}*: {len(stock)} tensors, {_bytes(sum(stock))} (the backbone; not imported)"
        )
    lines += _first([f"differs from ubrain's encoder: {oddity}" for oddity in released.oddities])
    return [*lines, f"facts: {cut(json.dumps(released.facts, indent=1), SHOWN)}"]


def _said_sizes(config: EncoderConfig, rank: int, depth: int) -> str:
    widths = cut(", ".join(str(width) for width in dict.fromkeys(config.widths)))
    return (
        f"sizes: E = {config.embedding_size}, C = {config.channels}, L = {len(config.widths)}, P ="
        f" {config.n_tokens}, D = {widths}, {depth} adapters of rank {rank}, dropout"
        f" {config.dropout:g}"
    )


def _joined(released: Released, voxel_embed: str | Path | None) -> Released:
    if voxel_embed is None:
        return released
    second = open_released(voxel_embed)
    if "voxel_embed" not in second.tensors:
        raise UbrainError(f"{voxel_embed} has no voxel_embed; it has {some(second.tensors)}")
    return replace(
        released, tensors={**released.tensors, "voxel_embed": second.tensors["voxel_embed"]}
    )


def _sizes(released: Released) -> tuple[EncoderConfig, int, int]:
    """Sizes of the encoder, rank of the adapters, and number of blocks that have one."""
    size, functional = _shape(released, "feat_embed")
    n_tokens, _ = _shape(released, "pos_embed")
    n_levels, depth = _count(released, "in_project"), _count(released, "lora_A")
    channels, _ = _shape(released, "in_project.0.weight")
    hidden, _ = _shape(released, "mlp.0.fc1.weight")
    widths = tuple(_shape(released, f"in_project.{level}.weight")[1] for level in range(n_levels))
    if min(size, functional, n_tokens, channels, hidden) < 1 or hidden % channels:
        raise UbrainError(
            f"{released.path}: an MLP of {hidden} units on {channels} channels, or a size of zero"
        )
    told = released.facts.get("param")
    dropout = (
        told.get("drop_out", EncoderConfig.dropout)
        if isinstance(told, dict)
        else EncoderConfig.dropout
    )
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UbrainError(f"{released.path}: dropout of {dropout!r}")
    config = EncoderConfig(widths, n_tokens, size, channels, hidden // channels, float(dropout))
    return config, _shape(released, "lora_A.0.weight")[1] if depth else 0, depth


def _shape(released: Released, name: str) -> tuple[int, int]:
    if name not in released.tensors:
        raise UbrainError(
            f"{released.path} has no {name!r}, so it is not an encoder; it has"
            f" {some(released.tensors)}"
        )
    shape = released.tensors[name].shape
    if len(shape) != 2:
        raise UbrainError(f"{released.path}: {name!r}: expected two axes, got {shape}")
    return shape[0], shape[1]


def _count(released: Released, part: str) -> int:
    return sum(re.fullmatch(rf"{part}\.\d+\.weight", name) is not None for name in released.tensors)


def _names(n_levels: int, depth: int) -> dict[str, str]:
    """The authors' name of each of our shared weights and adapters."""
    parts = {
        "norm_in": "norm_in",
        "project_in": "in_project",
        "query": "map_att.{}.project",
        "key": "map_att.{}.project_x",
        "norm": "norm",
        "fc1": "mlp.{}.fc1",
        "fc2": "mlp.{}.fc2",
    }
    theirs = {part: name if "{}" in name else name + ".{}" for part, name in parts.items()}
    levels = {
        f"levels.{i}.{part}.{kind}": f"{name.format(i)}.{kind}"
        for i in range(n_levels)
        for part, name in theirs.items()
        for kind in ("weight", "bias")
    }
    down = {f"{checkpoint.ADAPTERS}{i}.0.weight": f"lora_B.{i}.weight" for i in range(depth)}
    up = {f"{checkpoint.ADAPTERS}{i}.1.weight": f"lora_A.{i}.weight" for i in range(depth)}
    return {"position": "pos_embed", "functional": "feat_embed", **levels, **down, **up}


def _fill(
    released: Released, config: EncoderConfig, subjects: Mapping[str, int], rank: int, depth: int
) -> tuple[UniversalEncoder, nn.Module | None]:
    """Our encoder and adapters with the published numbers; every tensor is read once."""
    with torch.device("meta"):
        encoder = UniversalEncoder(config, dict(subjects))
        width = config.widths[0]
        adapters = nn.ModuleList(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))
            for _ in range(depth)
        )
    names = _names(len(config.widths), depth)
    expected = checkpoint.state_of(encoder, adapters)
    _check_names(released, {theirs: tuple(expected[ours].shape) for ours, theirs in names.items()})
    state = {ours: _numbers(released, theirs) for ours, theirs in names.items()}
    state |= _embeddings(released, subjects)
    encoder.load_state_dict(
        {n: t for n, t in state.items() if not n.startswith(checkpoint.ADAPTERS)}, assign=True
    )
    theirs = {
        n.removeprefix(checkpoint.ADAPTERS): t
        for n, t in state.items()
        if n.startswith(checkpoint.ADAPTERS)
    }
    adapters.load_state_dict(theirs, assign=True)
    return encoder, adapters if depth else None


def _numbers(released: Released, name: str) -> Tensor:
    where = f"{released.path}: {name!r}"
    return checkpoint.check_numbers(released.tensors[name].read(), where).float()


def _check_names(released: Released, expected: Mapping[str, tuple[int, ...]]) -> None:
    got = {
        n: t.shape
        for n, t in released.tensors.items()
        if not n.startswith(STOCK) and n not in (UNUSED, "voxel_embed")
    }
    wrong = [
        f"{n} is {got[n]}, expected {shape}"
        for n, shape in expected.items()
        if n in got and got[n] != shape
    ]
    problems = {
        "missing": expected.keys() - got,
        "unexpected": got.keys() - expected,
        "of the wrong shape": wrong,
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names
        )
        raise UbrainError(f"{released.path} does not fit the sizes that it seems to have: {found}")


def _embeddings(released: Released, subjects: Mapping[str, int]) -> dict[str, Tensor]:
    if not subjects:
        return {}
    rows = _numbers(released, "voxel_embed").split(list(subjects.values()))
    return {checkpoint.EMBEDDINGS + name: part for name, part in zip(subjects, rows, strict=True)}


def _subjects(
    released: Released, given: Mapping[str, int | None] | None
) -> tuple[dict[str, int], str]:
    """Voxels of each subject, and what to say about it."""
    if "voxel_embed" not in released.tensors:
        if given:
            raise UbrainError(
                f"{released.path} has no voxel embeddings to share among subjects; give the file"
                " with them"
            )
        return (
            {},
            (
                "subjects: none, since the file has no voxel embeddings; add your own with"
                " encoder.add_subject"
            ),
        )
    total, size = _shape(released, "voxel_embed")
    if size != _shape(released, "feat_embed")[0]:
        raise UbrainError(
            f"voxel_embed: expected (V, {_shape(released, 'feat_embed')[0]}), got ({total}, {size})"
        )
    if given is None and total == sum(NSD.values()):
        return (
            dict(NSD),
            (
                f"subjects: {_counts(NSD)} assumed, since {total} voxels are those of NSD in the"
                " authors' preparation"
            ),
        )
    if given is None:
        raise UbrainError(
            f"{released.path} has {total} voxels and does not say whose: name the subject, or all"
            " of them with their numbers of voxels in order, such as --subjects"
            " subj01=39548,subj02=39548"
        )
    counts = {
        check_name(name): total if count is None and len(given) == 1 else count
        for name, count in given.items()
    }
    if (
        any(n is None or n < 1 for n in counts.values())
        or sum(n or 0 for n in counts.values()) != total
    ):
        raise UbrainError(
            f"{released.path} has {total} voxels; the subjects need a number each that add up to"
            f" it, got {_counts(counts)}"
        )
    return {name: n or 0 for name, n in counts.items()}, f"subjects: {_counts(counts)}, as told"


def _backbone(
    released: Released,
    config: EncoderConfig,
    adapters: tuple[int, int],
    lora_scale: float | None,
    given: BackboneConfig | None,
) -> tuple[BackboneConfig, str]:
    """The backbone that goes with the encoder, and what to say about the scale of its adapters."""
    rank, depth = adapters
    if released.facts.get("include_reg_tokens"):
        raise UbrainError(
            f"{released.path} was trained with the register tokens kept, which no backbone here"
            " does"
        )
    chosen = given or _dinov2(released, config, depth)
    if not rank:
        return replace(chosen, adapter_rank=0), "adapters: none"
    scale, whence = lora_scale, "as told"
    if scale is None:
        scale, whence = _scale(released.facts), "as the file says"
    if scale is None:
        scale, whence = (
            BackboneConfig.adapter_alpha / rank,
            "that of the paper, assumed since the file does not say it",
        )
    if not math.isfinite(scale):
        raise UbrainError(f"{released.path}: the scale of the adapters is {scale}, {whence}")
    chosen = replace(chosen, adapter_rank=rank, adapter_alpha=scale * rank)
    return (
        chosen,
        f"adapters: {depth} of rank {rank}, LoRA scale alpha / r = {scale:.8g} ({whence})",
    )


def _dinov2(released: Released, config: EncoderConfig, depth: int) -> BackboneConfig:
    """The DINOv2 with registers that has the sizes in the file."""
    width, side, registers = (
        config.widths[0],
        math.isqrt(config.n_tokens - 1),
        released.facts.get("num_reg_tokens", 4),
    )
    known = set(config.widths) == {width} and width in BACKBONES and depth in (0, DEPTHS[width])
    if not known or side < 1 or side**2 + 1 != config.n_tokens or registers != 4:
        raise UbrainError(
            f"{released.path}: levels of width {cut(str(config.widths))}, {config.n_tokens} tokens,"
            f" {torchfile.word(registers).strip(chr(39))} registers and {depth} adapters are of no"
            " DINOv2 with registers; name the backbone"
        )
    chosen = released.facts.get("select_layers", [level + 1 for level in BackboneConfig.levels])
    blocks = chosen if isinstance(chosen, list) else []
    if len(blocks) != len(config.widths) or not all(
        type(b) is int and 1 <= b <= DEPTHS[width] for b in blocks
    ):
        raise UbrainError(
            f"{released.path}: {len(config.widths)} levels, but outputs of blocks"
            f" {cut(str(chosen))}; name the backbone"
        )
    name = f"vit_{BACKBONES[width]}_patch14_reg4_dinov2.lvd142m"
    return BackboneConfig(
        name, levels=tuple(block - 1 for block in blocks), image_size=PATCH * side
    )


def _scale(facts: Mapping[str, Any]) -> float | None:
    scale, alpha, rank = (facts.get(key) for key in ("lora_scale", "alpha", "r"))
    if scale is None and isinstance(alpha, int | float) and isinstance(rank, int) and rank:
        scale = alpha / rank
    return float(scale) if isinstance(scale, int | float) else None


def _oddities(module: Record) -> Iterator[str]:
    """Whatever in a whole module makes it compute something else than our encoder."""
    if not module.kind.endswith(".Encoder"):
        yield f"it is a {module.kind}"
    expected: dict[
        tuple[str, int], tuple[str, str, Any]
    ] = {  # by part and depth of names: class, attribute and its value
        ("norm_in", 2): ("LayerNorm", "eps", EPSILON),
        ("norm", 2): ("LayerNorm", "eps", EPSILON),
        ("map_att", 2): ("MapAttention_dynamic_pos", "softmax", True),
        ("mlp", 3): ("", "approximate", "none"),
    }
    for where, part in torchfile.modules(module):
        kind, attribute, value = expected.get(
            (where[0] if where else "", len(where)), ("", "", None)
        )
        if where[-1:] == ("act",):
            kind = "GELU"
        got = part.state.get(attribute, value)
        if not part.kind.endswith(f".{kind}" if kind else "") or got != value:
            yield (
                f"{cut('.'.join(where))} is a {part.kind} with {attribute} ="
                f" {torchfile.word(got).strip(chr(39))}, not a {kind} with {value}"
            )


def _plain(values: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    """What JSON can hold of an object's attributes: numbers, words, short lists, one object
    deep.
    """
    found: dict[str, Any] = {}
    for key, value in islice(values.items(), MAX_FACTS):
        if isinstance(value, Record | dict) and depth == 0 and not str(key).startswith("_"):
            below = _plain(value.state if isinstance(value, Record) else value, 1)
            found |= {str(key): below} if below else {}
        elif (
            isinstance(value, list | tuple)
            and len(value) <= 64
            and all(type(v) in (int, float, bool) or _is_text(v) for v in value)
        ):
            found[str(key)] = list(value)
        elif type(value) in (int, float, bool) or _is_text(value):
            found[str(key)] = value
    return found


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_WORDS


def _facts(path: Path, told: Mapping[Any, Any]) -> dict[str, Any]:
    found, size = _plain(told), 0
    for part in json.JSONEncoder().iterencode(found):
        if (size := size + len(part)) > MAX_SAID:
            raise UbrainError(f"{path}: facts of more than {MAX_SAID} characters; refused")
    return found


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table(weights: Mapping[str, tuple[tuple[int, ...], str, int]]) -> list[str]:
    names = {name: json.dumps(cut(name))[1:-1] for name in weights}
    width = max(map(len, names.values()), default=0)
    rows = [
        f"  {names[name]:<{width}}  {shape!s:<16} {dtype:<9} {_bytes(nbytes):>9}"
        for name, (shape, dtype, nbytes) in weights.items()
    ]
    size = _bytes(sum(nbytes for *_, nbytes in weights.values()))
    return [f"weights: {len(rows)}, {size}", *_first(rows)]


def _bytes(size: int) -> str:
    return (
        f"{size / 1e9:.2f} GB"
        if size >= 1e9
        else f"{size / 1e6:.1f} MB"
        if size >= 1e6
        else f"{size / 1e3:.1f} kB"
    )


def _counts(counts: Mapping[str, int | None]) -> str:
    return cut(", ".join(f"{name}={count}" for name, count in counts.items()), 500)
