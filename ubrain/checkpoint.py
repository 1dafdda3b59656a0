"""Encoders on disk. Nothing in a checkpoint folder is executed.

A checkpoint is a folder::

    encoder.safetensors     shared weights, embeddings.<subject> (n_voxels, E), adapters.* if any
    voxels/<subject>.csv    voxel table of a subject, where it is known: hemisphere, vertex or
                            i, j, k, areas, ncsnr
    config.json             sizes, subjects and how the encoder was made; written last, it marks the
                            folder as complete

Beside these may lie a model card (README.md, `ubrain.exchange.hub`) and linear readouts of new
subjects (readout.safetensors, `ubrain.exchange.readouts`).

To add or drop subjects, load, change and save::

    encoder = checkpoint.load("crowd", subjects=["S1", "S2"], without_adapters=True)
    encoder.drop_subject("S2")
    encoder.add_subject("new", n_voxels=5000)
    checkpoint.save(encoder, "mine", like="crowd")  # adapters, facts and tables of S1 come along
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ubrain.config import BackboneConfig, EncoderConfig, check_backbone, from_settings
from ubrain.errors import UbrainError, cut, some
from ubrain.model import UniversalEncoder
from ubrain.paths import atomic, check_name, open_regular

if TYPE_CHECKING:
    from ubrain.crowd import Crowd

WEIGHTS, CONFIG, VOXELS = "encoder.safetensors", "config.json", "voxels"
READOUT = "readout.safetensors"  # linear readouts of new subjects, `<subject>.<buffer>`
ADAPTERS, EMBEDDINGS = "adapters.", "embeddings."  # how the names of such weights begin
READOUTS = "rests."  # linear readouts, in folders of before; see `ubrain.exchange.readouts`
MAX_CONFIG, MAX_HEADER, MAX_TABLE = 1 << 20, 4 << 20, 64 << 20  # bytes
MAX_DEPTH, MAX_LEVELS, MAX_LINE = 8, 64, 1000  # of facts; of a backbone; characters


@dataclass(frozen=True)
class Description:
    """What `config.json` says of an encoder.

    Attributes
    ----------
    subjects : number of voxels of each subject.
    recordings : dataset, scanner and space of each subject, where known.
    facts : how the encoder was made: settings, scores, source.
    """

    config: EncoderConfig
    subjects: dict[str, int]
    recordings: dict[str, dict[str, str]]
    facts: dict[str, Any]


def save(
    encoder: UniversalEncoder,
    folder: str | Path,
    adapters: nn.Module | None = None,
    *,
    voxels: Mapping[str, pd.DataFrame] | None = None,
    recordings: Mapping[str, Mapping[str, str]] | None = None,
    readouts: Mapping[str, nn.Module | None] | None = None,
    like: str | Path | None = None,
    **facts: Any,
) -> None:
    """Write an encoder, and the adapters that were trained with it, with facts about both.

    All files are written beside their places and take them at the end, `config.json` last.

    Parameters
    ----------
    voxels : voxel table of each subject, where known, one row per voxel.
    recordings : dataset, scanner and space of each subject, where known; see `recorded`.
    readouts : linear readouts of subjects, as `ubrain.transfer` finds them.
    like : a checkpoint folder from which facts, recordings, voxel tables, adapters and linear
        readouts that are not given are taken.
    facts : anything that JSON can hold, None for none; `settings` (with the backbone), `val_r75`,
        `scores` and `notes` go into the model card.

    Raises
    ------
    UbrainError
        If a table or recording is of no subject of the encoder, or a table does not have a row for
        each voxel.
    """
    folder, sizes = Path(folder), {name: len(e) for name, e in encoder.embeddings.items()}
    tables, about = dict(voxels or {}), {n: dict(r) for n, r in (recordings or {}).items()}
    state, kept = state_of(encoder, adapters), dict[str, Tensor]()
    for name, readout in (readouts or {}).items():
        parts = {} if readout is None else readout.state_dict()
        kept |= {f"{name}.{buffer}": tensor for buffer, tensor in parts.items()}
    if like is not None:
        known, like = describe(like), Path(like)
        facts = {**known.facts, **facts}
        about = {n: r for n, r in known.recordings.items() if n in sizes} | about
        with damaged(like):
            if readouts is None:
                kept = read_readouts(like, sizes)
            theirs = {n: read_table(like, n) for n in sizes if n in known.subjects}
            if adapters is None:
                state |= _read(like, lambda name: name.startswith(ADAPTERS))
        tables = {n: table for n, table in theirs.items() if table is not None} | tables
    facts = {key: value for key, value in facts.items() if value is not None}
    for name in sizes:
        check_name(name)
    for name in (*tables, *about):
        if name not in sizes:
            raise UbrainError(
                f"voxel table or recording of {name!r}: the encoder has"
                f" {some(sizes) or 'no subjects'}"
            )
    for name, table in tables.items():
        if len(table) != sizes[name]:
            raise UbrainError(
                f"voxel table of {name!r}: expected {sizes[name]} rows, one per voxel, got"
                f" {len(table)}"
            )
    with ExitStack() as files:  # the first to be opened is the last to take its place
        config = files.enter_context(atomic(folder / CONFIG))
        for name, table in tables.items():
            table.to_csv(files.enter_context(atomic(folder / VOXELS / f"{name}.csv")), index=False)
        if kept:
            save_file(_plain(kept), beside := files.enter_context(atomic(folder / READOUT)))
        save_file(_plain(state), weights := files.enter_context(atomic(folder / WEIGHTS)))
        described = {**encoder.describe(), "recordings": about, "facts": facts}
        config.write_text(json.dumps(described, indent=1), encoding="utf-8")
        for path in (weights, beside) if kept else (weights,):
            path.chmod(config.stat().st_mode)  # safetensors lets nobody else read what it writes
        (folder / CONFIG).unlink(missing_ok=True)  # from here on an older encoder is incomplete
        if not kept:
            (folder / READOUT).unlink(missing_ok=True)
        for stale in (folder / VOXELS).glob("*.csv"):
            if stale.stem not in tables:
                stale.unlink()


def recorded(crowd: "Crowd", subjects: Iterable[str]) -> dict[str, Any]:
    """What a crowd knows of subjects, for `save(encoder, folder, **recorded(crowd, subjects))`."""
    found = [crowd[name] for name in subjects]
    about = {s.name: {"dataset": s.dataset, "scanner": s.scanner, "space": s.space} for s in found}
    return {"voxels": {s.name: s.voxels for s in found}, "recordings": about}


def state_of(encoder: nn.Module, adapters: nn.Module | None) -> dict[str, Tensor]:
    """All weights that training changes, by name."""
    extra = {} if adapters is None else adapters.state_dict()
    return {**encoder.state_dict(), **{ADAPTERS + name: t for name, t in extra.items()}}


def load_state(encoder: nn.Module, adapters: nn.Module | None, state: dict[str, Tensor]) -> None:
    """The opposite of `state_of`."""
    encoder.load_state_dict({k: v for k, v in state.items() if not k.startswith(ADAPTERS)})
    theirs = {k.removeprefix(ADAPTERS): v for k, v in state.items() if k.startswith(ADAPTERS)}
    if theirs and adapters is None:
        raise UbrainError(
            "this encoder was trained with adapters; load it with those of its backbone"
        )
    if adapters is not None:
        if not theirs:
            raise UbrainError("this encoder was trained without adapters")
        try:
            adapters.load_state_dict(theirs)
        except RuntimeError as error:
            raise UbrainError(f"the adapters are of another backbone or rank: {error}") from error


def load(
    folder: str | Path,
    adapters: nn.Module | None = None,
    subjects: Sequence[str] | None = None,
    without_adapters: bool = False,
) -> UniversalEncoder:
    """Read an encoder from a folder, ready to predict; and its adapters into those of a backbone.

    Parameters
    ----------
    adapters : those of `Backbone(backbone_config(folder))`; they take the weights from the folder.
    subjects : whose embeddings are read; all by default, [] for the shared weights only. Others
        cost nothing.
    without_adapters : leave adapters in the folder; for looking at embeddings, since predictions
        need them.

    Raises
    ------
    UbrainError
        If a file is missing or damaged, there is no such subject, or the parts do not fit together.
    """
    folder, described = Path(folder), describe(folder)
    wanted = described.subjects if subjects is None else subjects
    chosen = {name: n_voxels_of(described, name, folder) for name in wanted}

    def belongs(weight: str) -> bool:
        if weight.startswith(EMBEDDINGS):
            return weight.removeprefix(EMBEDDINGS) in chosen
        return not weight.startswith((READOUTS, ADAPTERS) if without_adapters else READOUTS)

    with damaged(folder):
        check_shapes(folder, described)
        with torch.random.fork_rng(devices=[]):  # the start is overwritten; it costs no draws
            encoder = UniversalEncoder(described.config, chosen)
        load_state(encoder, adapters, _read(folder, belongs))
    return encoder.eval()


def describe(folder: str | Path) -> Description:
    """What a checkpoint folder holds, without its weights."""
    folder = Path(folder)
    with damaged(folder):
        if not (folder / CONFIG).is_file():
            raise UbrainError(
                f"{folder} does not hold an encoder: {CONFIG}, which is written last, is missing"
            )
        with open_regular(folder / CONFIG, MAX_CONFIG) as file:
            told = json.loads(file.read())
        _check_depth(told)
        config = from_settings(EncoderConfig, told["config"], where=str(folder / CONFIG))
        sizes = (config.n_tokens, config.embedding_size, config.channels, config.mlp_ratio)
        numbers = (*config.widths, *sizes, *told["subjects"].values())
        if not 1 <= len(config.widths) <= MAX_LEVELS or not all(
            type(n) is int and n > 0 for n in numbers
        ):
            raise UbrainError(
                f"{folder / CONFIG}: expected 1 to {MAX_LEVELS} levels, and whole numbers above 0"
                " as sizes and numbers of voxels"
            )
        if not 0 <= config.dropout < 1:
            raise UbrainError(f"{folder / CONFIG}: dropout of {config.dropout}")
        subjects = {check_name(str(name)): int(n) for name, n in told["subjects"].items()}
        recordings = {
            str(name): {str(key): cut(str(value)) for key, value in dict(r).items()}
            for name, r in told.get("recordings", {}).items()
        }
        facts = dict(told.get("facts", {}))
        facts["settings"] = dict(facts.get("settings", {}))
        return Description(config, subjects, recordings, facts)


def _check_depth(value: Any, most: int = MAX_DEPTH) -> None:
    if isinstance(value, dict | list):
        if not most:
            raise UbrainError(f"{CONFIG}: more than {MAX_DEPTH} lists and groups in each other")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, most - 1)


def backbone_config(folder: str | Path) -> BackboneConfig:
    """The backbone whose tokens the encoder of a folder was trained on."""
    told = describe(folder).facts["settings"].get("backbone")
    if told is None:
        raise UbrainError(
            f"{Path(folder) / CONFIG} does not say which backbone the encoder was trained on; save"
            " it again with settings={'backbone': asdict(BackboneConfig(...))}"
        )
    where = f"{Path(folder) / CONFIG}: backbone"
    config = from_settings(BackboneConfig, told, where=where)
    check_backbone(config, where)
    return config


def voxel_table(folder: str | Path, subject: str) -> pd.DataFrame:
    """Voxel table of a subject, one row per voxel.

    Its columns are hemisphere, areas, ncsnr, and vertex or i, j, k where known.

    Raises
    ------
    UbrainError
        If there is no such subject or no table of it, or the table does not fit the embeddings.
    """
    folder = Path(folder)
    n_voxels = n_voxels_of(describe(folder), subject, folder)
    with damaged(folder):
        table = read_table(folder, subject)
    if table is None:
        raise UbrainError(
            f"{folder} has no voxel table of {subject!r}; give one to checkpoint.save(...,"
            " voxels=..., like=...)"
        )
    if len(table) != n_voxels:
        raise UbrainError(
            f"{folder}: voxel table of {subject!r}: expected {n_voxels} rows, got {len(table)}"
        )
    return table


def read_table(folder: Path, subject: str) -> pd.DataFrame | None:
    """The voxel table of a subject as it is in the folder; None if it has none."""
    path = folder / VOXELS / f"{check_name(subject)}.csv"
    if not path.exists():
        return None
    types = {"hemisphere": str, "areas": str, "ncsnr": "float32"}
    missing = {"ncsnr": ["", "nan"]}
    with open_regular(path, MAX_TABLE) as file, damaged(path, "a voxel table"):
        if len(file.readline(MAX_LINE)) == MAX_LINE:
            raise UbrainError(f"{path}: its first line is longer than {MAX_LINE} characters")
        file.seek(0)
        table = pd.read_csv(file, dtype=types, keep_default_na=False, na_values=missing)
    if not isinstance(table.index, pd.RangeIndex):
        raise UbrainError(f"{path}: its rows have more columns than its first line")
    for name, column in table.items():
        texts = column.unique() if column.dtype.kind not in "fiub" else ()
        for text in (str(name), *map(str, texts)):  # a spreadsheet would compute it
            if len(text) > MAX_LINE or not text.isprintable() or text.startswith(tuple("=+-@")):
                raise UbrainError(f"{path}: {cut(text)!r} is no name of a hemisphere or an area")
    return table.rename_axis("voxel")


def weights_in(folder: str | Path) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """Shape, type and bytes of every weight in a folder, by name, from the head of the file."""
    found = {}
    with damaged(Path(folder)), _opened(Path(folder) / WEIGHTS) as file:
        for name in file.keys():  # noqa: SIM118, it is no dictionary
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
            bits = int(re.sub(r"\D.*", "", dtype.lstrip("BFIU")) or 8)  # BF16: 16
            found[name] = (shape, dtype, math.prod(shape) * bits // 8)
    return found


def _read(folder: Path, wanted: Callable[[str], bool], name: str = WEIGHTS) -> dict[str, Tensor]:
    with _opened(folder / name) as file:
        return {
            weight: check_numbers(file.get_tensor(weight), f"{folder / name}: {cut(weight)!r}")
            for weight in file.keys()  # noqa: SIM118
            if wanted(weight)
        }


def _opened(path: Path) -> Any:
    """A file of safetensors, whose header is short enough to be read."""
    with open_regular(path) as file:
        if int.from_bytes(file.read(8), "little") > MAX_HEADER:
            raise UbrainError(f"{path}: a header of more than {MAX_HEADER} bytes, or none")
    return safe_open(path, framework="pt")


def check_numbers(tensor: Tensor, where: str) -> Tensor:
    """A weight, if its numbers are finite floats."""
    if not tensor.is_floating_point():
        raise UbrainError(f"{where}: expected floats, got {tensor.dtype}")
    if not tensor.isfinite().all():
        raise UbrainError(f"{where}: its numbers are not finite")
    return tensor


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_readouts(folder: Path, subjects: Iterable[str]) -> dict[str, Tensor]:
    """Linear readouts of some subjects, from their file or, in folders of before, the weights."""
    mine, found = {f"{name}." for name in subjects}, dict[str, Tensor]()
    for file, start in ((WEIGHTS, READOUTS), (READOUT, "")):
        if (folder / file).exists():
            every = _read(folder, lambda n, s=start: n.startswith(s), file)  # type: ignore[misc]
            short = {name.removeprefix(start): tensor for name, tensor in every.items()}
            found |= {n: t for n, t in short.items() if n[: n.find(".") + 1] in mine}
    return found


def check_shapes(folder: Path, described: Description) -> None:
    """The weights are those of the config; found out before anything of their size is made."""
    elsewhere = (ADAPTERS, READOUTS)
    got = {n: shape for n, (shape, *_) in weights_in(folder).items() if not n.startswith(elsewhere)}
    n_levels, n_subjects = len(described.config.widths), len(described.subjects)
    if n_levels + n_subjects > len(got):
        raise UbrainError(
            f"{folder}: {WEIGHTS} has {len(got)} weights, too few for {n_levels} levels and"
            f" {n_subjects} subjects in {CONFIG}"
        )
    with torch.device("meta"):
        expected = UniversalEncoder(described.config, described.subjects).state_dict()
    for name in sorted({*expected, *got}):
        want = tuple(expected[name].shape) if name in expected else "nothing"
        if (has := got.get(name, "nothing")) != want:
            raise UbrainError(
                f"{folder}: weight {cut(name)!r}: {CONFIG} expects {want}, {WEIGHTS} has {has}"
            )


def n_voxels_of(described: Description, subject: str, folder: Path) -> int:
    if subject not in described.subjects:
        known = some(described.subjects) or "none"
        raise UbrainError(f"{folder} has no subject {subject!r}; it has {known}")
    return described.subjects[subject]


@contextmanager
def damaged(place: Path, what: str = "an encoder") -> Iterator[None]:
    try:
        yield
    except UbrainError:
        raise
    except Exception as error:
        raise UbrainError(f"{place} does not hold {what} that can be read: {error}") from error
