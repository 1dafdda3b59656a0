"""Encoders on disk and on the Hugging Face hub. Nothing in a checkpoint folder is executed.

A checkpoint is a folder::

    encoder.safetensors     shared weights, embeddings.<subject> (n_voxels, E), and
    rests.<subject>.* and adapters.* if any voxels/<subject>.csv    voxel table of a subject, where
    it is known: hemisphere, vertex or i, j, k, areas, ncsnr README.md               model card:
    data, training, scores, limits, licence config.json             sizes, subjects and how the
    encoder was made; written last, it marks the folder as complete

To add or drop subjects (`drop` is a short cut), load, change and save::

    encoder = checkpoint.load("crowd", subjects=["S1", "S2"], without_adapters=True)  # the others
    are not even read encoder.drop_subject("S2")
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
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ubrain.config import BackboneConfig, EncoderConfig, from_mapping
from ubrain.crowd import Crowd, check_name
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.paths import atomic

WEIGHTS, CONFIG, CARD, VOXELS = "encoder.safetensors", "config.json", "README.md", "voxels"
ADAPTERS, EMBEDDINGS, RESTS = (
    "adapters.",
    "embeddings.",
    "rests.",
)  # how the names of such weights begin
MAX_CONFIG = 16 << 20  # bytes
MOST = {"image_size": 2048, "grid": 256, "adapter_rank": 1024}  # of a backbone
PAPER = (
    "Beliy, Wasserman, Zalcher, Irani: The Wisdom of a Crowd of Brains: A Universal Brain Encoder."
    " arXiv 2406.12179, 2024"
)


@dataclass(frozen=True)
class Description:
    """What `config.json` says of an encoder.

    Attributes
    ----------
    subjects : number of voxels of each subject.
    rests : number of components of the linear rest of each subject that has one.
    recordings : dataset, scanner and space of each subject, where known.
    facts : how the encoder was made: settings, scores, source.
    """

    config: EncoderConfig
    subjects: dict[str, int]
    rests: dict[str, int]
    recordings: dict[str, dict[str, str]]
    facts: dict[str, Any]


def save(
    encoder: UniversalEncoder,
    folder: str | Path,
    adapters: nn.Module | None = None,
    *,
    voxels: Mapping[str, pd.DataFrame] | None = None,
    recordings: Mapping[str, Mapping[str, str]] | None = None,
    like: str | Path | None = None,
    **facts: Any,
) -> None:
    """Write an encoder, and the adapters that were trained with it, with facts about how they were
    made.

    All files are written beside their places and take them at the end, `config.json` last.

    Parameters
    ----------
    voxels : voxel table of each subject, where known, one row per voxel.
    recordings : dataset, scanner and space of each subject, where known; see `recorded`.
    like : a checkpoint folder from which facts, recordings, voxel tables and adapters that are not
        given are taken.
    facts : anything that JSON can hold; `settings` (with the backbone), `val_r75`, `scores` and
        `notes` go into the card.

    Raises
    ------
    UbrainError
        If a table or recording is of no subject of the encoder, or a table does not have a row for
        each voxel.
    """
    folder, sizes = Path(folder), encoder.describe()["subjects"]
    assert isinstance(sizes, dict)
    tables, about = (
        dict(voxels or {}),
        {name: dict(facts_) for name, facts_ in (recordings or {}).items()},
    )
    state = state_of(encoder, adapters)
    if like is not None:
        known = describe(like)
        facts = {**known.facts, **facts}
        about = {n: r for n, r in known.recordings.items() if n in sizes} | about
        tables = {
            n: t for n in sizes if n in known.subjects and (t := _table(Path(like), n)) is not None
        } | tables
        if adapters is None:
            state |= _read(Path(like), lambda name: name.startswith(ADAPTERS))
    _check_tables(sizes, tables, about)
    described = {**encoder.describe(), "recordings": about, "facts": facts}
    with ExitStack() as files:
        config = files.enter_context(
            atomic(folder / CONFIG)
        )  # the first to be opened is the last to take its place
        card = files.enter_context(atomic(folder / CARD))
        for name, table in tables.items():
            table.to_csv(files.enter_context(atomic(folder / VOXELS / f"{name}.csv")), index=False)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(contiguous, weights := files.enter_context(atomic(folder / WEIGHTS)))
        config.write_text(json.dumps(described, indent=1), encoding="utf-8")
        weights.chmod(config.stat().st_mode)  # safetensors lets nobody else read what it writes
        card.write_text(_card(described, sorted(tables)), encoding="utf-8")
        (folder / CONFIG).unlink(
            missing_ok=True
        )  # from here on an older checkpoint in this folder is incomplete
        for stale in (folder / VOXELS).glob("*.csv"):
            if stale.stem not in tables:
                stale.unlink()


def recorded(crowd: Crowd, subjects: Iterable[str]) -> dict[str, Any]:
    """What a crowd knows of subjects, as `save` takes it: `save(encoder, folder, **recorded(crowd,
    subjects))`.
    """
    found = [crowd[name] for name in subjects]
    about = {s.name: {"dataset": s.dataset, "scanner": s.scanner, "space": s.space} for s in found}
    return {"voxels": {s.name: s.voxels for s in found}, "recordings": about}


def _check_tables(
    sizes: Mapping[str, int], tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]
) -> None:
    for name in sizes:
        check_name(name)
    for name in (*tables, *about):
        if name not in sizes:
            raise UbrainError(
                f"voxel table or recording of {name!r}: the encoder has"
                f" {', '.join(sizes) or 'no subjects'}"
            )
    for name, table in tables.items():
        if len(table) != sizes[name]:
            raise UbrainError(
                f"voxel table of {name!r}: expected {sizes[name]} rows, one per voxel, got"
                f" {len(table)}"
            )


def state_of(encoder: nn.Module, adapters: nn.Module | None) -> dict[str, Tensor]:
    """All weights that training changes, by name."""
    extra = (
        {ADAPTERS + name: t for name, t in adapters.state_dict().items()}
        if adapters is not None
        else {}
    )
    return {**encoder.state_dict(), **extra}


def load_state(encoder: nn.Module, adapters: nn.Module | None, state: dict[str, Tensor]) -> None:
    """The opposite of `state_of`."""
    encoder.load_state_dict({k: v for k, v in state.items() if not k.startswith(ADAPTERS)})
    theirs = {k.removeprefix(ADAPTERS): v for k, v in state.items() if k.startswith(ADAPTERS)}
    if bool(theirs) != (adapters is not None):
        need = (
            "was trained with adapters; load it with those of its backbone"
            if theirs
            else "was trained without adapters"
        )
        raise UbrainError(f"this encoder {need}")
    if adapters is not None:
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
    """Read an encoder from a folder, ready to predict; and its adapters into those of a backbone,
    if given.

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
    folder = Path(folder)
    described = describe(folder)
    chosen = {
        name: _of(described.subjects, name, folder)
        for name in (described.subjects if subjects is None else subjects)
    }
    rests = {name: n for name, n in described.rests.items() if name in chosen}
    with _damaged(folder):
        _check_shapes(folder, described)
        state = _read(
            folder,
            lambda name: (
                _belongs(name, chosen) and not (without_adapters and name.startswith(ADAPTERS))
            ),
        )
        with torch.random.fork_rng(
            devices=[]
        ):  # the random start is overwritten; it should cost nobody's seed
            encoder = UniversalEncoder(described.config, chosen, rests)
        load_state(encoder, adapters, state)
    return encoder.eval()


def _belongs(weight: str, subjects: Iterable[str]) -> bool:
    """Whether a weight is shared, or of one of these subjects."""
    return not weight.startswith((EMBEDDINGS, RESTS)) or weight.split(".")[1] in subjects


def describe(folder: str | Path) -> Description:
    """What a checkpoint folder holds, without its weights."""
    folder = Path(folder)
    with _damaged(folder):
        if not (folder / CONFIG).is_file():
            raise UbrainError(
                f"{folder} does not hold an encoder: {CONFIG}, which is written last, is missing"
            )
        if (folder / CONFIG).stat().st_size > MAX_CONFIG:
            raise UbrainError(f"{folder / CONFIG} has more than {MAX_CONFIG} bytes; refused")
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = from_mapping(EncoderConfig, told["config"], where=str(folder / CONFIG))
        subjects = {
            check_name(str(name)): int(n_voxels) for name, n_voxels in told["subjects"].items()
        }
        rests = {name: int(n) for name, n in told.get("rests", {}).items() if name in subjects}
        recordings = {str(name): dict(facts) for name, facts in told.get("recordings", {}).items()}
        facts = dict(told.get("facts", {}))
        facts["settings"] = dict(facts.get("settings", {}))
        return Description(config, subjects, rests, recordings, facts)


def backbone_config(folder: str | Path) -> BackboneConfig:
    """The backbone whose tokens the encoder of a folder was trained on."""
    told = describe(folder).facts.get("settings", {}).get("backbone")
    if told is None:
        raise UbrainError(
            f"{Path(folder) / CONFIG} does not say which backbone the encoder was trained on; save"
            " it again with settings={'backbone': asdict(BackboneConfig(...))}"
        )
    where = f"{Path(folder) / CONFIG}: backbone"
    config = from_mapping(BackboneConfig, told, where=where)
    for (
        option,
        most,
    ) in MOST.items():  # a folder from elsewhere should not ask for any amount of memory
        if not 0 <= (getattr(config, option) or 0) <= most:
            raise UbrainError(
                f"{where}: {option}: expected at most {most}, got {getattr(config, option)}"
            )
    return config


def voxel_table(folder: str | Path, subject: str) -> pd.DataFrame:
    """Voxel table of a subject, one row per voxel: hemisphere, areas, ncsnr, and vertex or i, j, k
    where known.

    Raises
    ------
    UbrainError
        If there is no such subject or no table of it, or the table does not fit the embeddings.
    """
    folder = Path(folder)
    n_voxels = _of(describe(folder).subjects, subject, folder)
    with _damaged(folder):
        table = _table(folder, subject)
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


def _table(folder: Path, subject: str) -> pd.DataFrame | None:
    path = folder / VOXELS / f"{check_name(subject)}.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(
        path,
        dtype={"hemisphere": str, "areas": str, "ncsnr": "float32"},
        keep_default_na=False,
        na_values={"ncsnr": ["", "nan"]},
    )
    return table.rename_axis("voxel")


def weights_in(folder: str | Path) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """Shape, type and bytes of every weight in a folder, by name, from the head of the file."""
    with _damaged(Path(folder)), safe_open(Path(folder) / WEIGHTS, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        heads = {
            name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()
        }
    bits = {
        dtype: int(re.sub(r"\D.*", "", dtype.lstrip("BFIU")) or 8) for _, dtype in heads.values()
    }  # BF16: 16
    return {
        name: (shape, dtype, math.prod(shape) * bits[dtype] // 8)
        for name, (shape, dtype) in heads.items()
    }


def _read(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118


def _check_shapes(folder: Path, described: Description) -> None:
    """The weights are those that the config tells of; found out before anything of their size is
    made.
    """
    got = {
        name: shape
        for name, (shape, *_) in weights_in(folder).items()
        if not name.startswith(ADAPTERS)
    }
    if len(described.config.widths) + len(described.subjects) > len(got):
        raise UbrainError(
            f"{folder}: {WEIGHTS} has {len(got)} weights, too few for"
            f" {len(described.config.widths)} levels and {len(described.subjects)} subjects in"
            f" {CONFIG}"
        )
    with torch.device("meta"):
        expected = UniversalEncoder(
            described.config, described.subjects, described.rests
        ).state_dict()
    for name in sorted({*expected, *got}):
        want = tuple(expected[name].shape) if name in expected else "nothing"
        if got.get(name, "nothing") != want:
            raise UbrainError(
                f"{folder}: weight {name!r}: {CONFIG} expects {want}, {WEIGHTS} has"
                f" {got.get(name, 'nothing')}"
            )


def _of(subjects: Mapping[str, int], name: str, folder: Path) -> int:
    if name not in subjects:
        raise UbrainError(
            f"{folder} has no subject {name!r}; it has {', '.join(subjects) or 'none'}"
        )
    return subjects[name]


@contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    try:
        yield
    except UbrainError:
        raise
    except Exception as error:
        raise UbrainError(f"{folder} does not hold an encoder that can be read: {error}") from error


def _card(described: Mapping[str, Any], with_tables: Sequence[str]) -> str:
    """The model card of a checkpoint, Markdown under a YAML header."""
    header = {
        "library_name": "ubrain",
        "license": "other",
        "license_name": "terms-of-the-recordings",
        "tags": ["brain-encoding", "fmri", "neuroscience", "vision"],
    }
    facts, about = described["facts"], described["recordings"]
    datasets = sorted({r["dataset"] for r in about.values() if r.get("dataset")})
    columns = ("dataset", "scanner", "space")
    rows = [
        f"| {name} | {n} |"
        f" {' | '.join(about.get(name, {}).get(key) or '?' for key in columns)}"
        f" | {'yes' if name in with_tables else 'no'} |"
        for name, n in described["subjects"].items()
    ]
    notes = f"\n{facts['notes']}\n" if facts.get("notes") else ""
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---
# Universal brain encoder of {len(rows)} subject(s)

Predicts the response of any voxel of these subjects to any image. Made with ubrain, after {PAPER}.

## Data

| subject | voxels | dataset | scanner | space | voxel table |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Digest of the crowd file: {facts.get("settings", {}).get("crowd", "unknown")}

## Training

{_listed(_training_facts(described))}

## Scores

{_listed(_score_facts(facts))}

## Limits

Predictions are z-scored responses, averaged over repeats, of these voxels only; a new
person needs embeddings of their own. Scores hold for images like those of the data. Nothing here
is fit for diagnosis or for decisions about people.
{notes}
## Licence

The weights are derived from recordings ({", ".join(datasets) or "of unknown source"}).
They may be used and passed on only as the owners of the recordings, and of the weights if they were
published by others, allow: NSD, for example, asks for its data access agreement and forbids passing
on data. The MIT licence of ubrain covers the code, not these weights.

## Citation

{PAPER}. https://arxiv.org/abs/2406.12179
"""


def _training_facts(described: Mapping[str, Any]) -> dict[str, Any]:
    facts, settings = described["facts"], described["facts"].get("settings", {})
    chosen = {key: settings[key] for key in ("seed", "backbone", "training") if key in settings}
    return (
        {"encoder": described["config"]}
        | chosen
        | {key: facts[key] for key in ("source",) if key in facts}
    )


def _score_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    val = {"75th percentile of the val correlation": facts["val_r75"]} if "val_r75" in facts else {}
    return val | dict(facts.get("scores", {}))


def _listed(facts: Mapping[str, Any]) -> str:
    """A Markdown list, one fact a line."""

    def shown(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {shown(v)}" for key, v in value.items())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "\n".join(f"- {name}: {shown(value)}" for name, value in facts.items()) or "Not stated."
