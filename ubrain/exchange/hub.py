"""Encoders to give away: the model card, and the Hugging Face hub."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ubrain.backbone import hub_if_reached
from ubrain.checkpoint import (
    CONFIG,
    MAX_CONFIG,
    READOUT,
    VOXELS,
    WEIGHTS,
    check_shapes,
    damaged,
    describe,
    load,
    n_voxels_of,
    save,
)
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.paths import check_name, check_out, open_regular, write_text

CARD = "README.md"
PAPER = (
    "Beliy, Wasserman, Zalcher, Irani: The Wisdom of a Crowd of Brains: A Universal Brain Encoder."
    " arXiv 2406.12179, 2024"
)


def drop(folder: str | Path, subjects: Sequence[str], out: str | Path) -> list[str]:
    """Copy a checkpoint without some of its subjects; gives the names of those that are left."""
    folder = Path(folder)
    check_out(Path(out), folder=True)
    described = describe(folder)
    for name in subjects:
        n_voxels_of(described, name, folder)
    left = [name for name in described.subjects if name not in subjects]
    encoder = load(folder, subjects=left, without_adapters=True)
    save(encoder, out, like=folder)
    write_card(Path(out))
    return left


def write_card(folder: Path) -> None:
    """Write the model card of a checkpoint folder, `README.md`, from its `config.json`."""
    tables = sorted(path.stem for path in (folder / VOXELS).glob("*.csv"))
    with damaged(folder):
        card = _card(asdict(describe(folder)), tables)
    write_text(folder / CARD, card)


def save_pretrained(
    encoder: UniversalEncoder,
    folder: str | Path,
    adapters: nn.Module | None = None,
    *,
    scores: Mapping[str, Any],
    notes: str = "",
    **rest: Any,
) -> None:
    """As `save`, for giving an encoder away: its model card shows scores, and notes in your words.

    Parameters
    ----------
    scores : for example {"median test r": {"S1": 0.42, "S2": 0.39}, "val_r75": 0.5}.
    notes : limits and licence as you know them; Markdown.
    """
    save(encoder, folder, adapters, scores=dict(scores), notes=notes, **rest)
    write_card(Path(folder))


def from_pretrained(
    name: str | Path,
    subjects: Sequence[str] | None = None,
    revision: str | None = None,
    adapters: nn.Module | None = None,
    without_adapters: bool = False,
) -> UniversalEncoder:
    """As `load`, from a folder or from the Hugging Face hub.

    Parameters
    ----------
    name : folder, or `owner/name` on the hub. For an encoder with adapters, `fetch` it, build its
        backbone, then load.
    revision : branch, tag or commit on the hub.
    """
    return load(fetch(name, subjects, revision), adapters, subjects, without_adapters)


def fetch(
    name: str | Path, subjects: Sequence[str] | None = None, revision: str | None = None
) -> Path:
    """A checkpoint folder on this machine: the one named, or a download of `owner/name` from the
    hub (kept for later).

    Raises
    ------
    UbrainError
        If there is neither such a folder nor such a checkpoint on the hub, or the hub cannot be
        reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise UbrainError(
            f"there is no folder {str(name)!r}, and a checkpoint on the hub is called owner/name"
        )
    from huggingface_hub import snapshot_download

    tables = (
        [f"{VOXELS}/*.csv"]
        if subjects is None
        else [f"{VOXELS}/{check_name(subject)}.csv" for subject in subjects]
    )
    wanted = [CONFIG, WEIGHTS, READOUT, CARD, *tables]
    try:
        with hub_if_reached() as silent:
            return Path(snapshot_download(str(name), revision=revision, allow_patterns=wanted))
    except Exception as error:
        reason = silent or type(error).__name__
        raise UbrainError(
            f"there is no folder {str(name)!r}, and it could not be fetched from the hub"
            f" ({reason}). Check the name and revision; log in with `hf auth login`"
            " if it is private; without a connection, copy the folder here and give its path"
        ) from error


def push_to_hub(
    folder: str | Path, repo_id: str, private: bool = True, token: str | None = None
) -> str:
    """Upload a checkpoint folder, and nothing else that lies in it, to the Hugging Face hub.

    Parameters
    ----------
    repo_id : `owner/name`; made if it does not exist.
    private : only its owner sees it. Weights are derived from recordings: see what their owners
        allow before False.
    token : of the hub; by default that of `hf auth login`.

    Returns
    -------
    Address of the upload.

    Raises
    ------
    UbrainError
        If the folder is not a complete checkpoint, `private` but the repository is public, or the
        hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    with damaged(folder):
        check_shapes(folder, describe(folder))
        files: dict[str, Any] = dict(_public_texts(folder))
    readouts = [folder / READOUT] if (folder / READOUT).is_file() else []
    for path in (folder / WEIGHTS, *readouts, *sorted((folder / VOXELS).glob("*.csv"))):
        files[path.relative_to(folder).as_posix()] = path
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        public = private and not api.repo_info(repo_id).private
        if not public:
            done = api.create_commit(
                repo_id, operations, commit_message="Upload an encoder of ubrain"
            ).commit_url
    except Exception as error:
        raise UbrainError(
            f"{repo_id}: the hub did not take the upload ({type(error).__name__}: {error})"
        ) from error
    if public:
        raise UbrainError(
            f"{repo_id} exists and is public, but a private upload was asked for; nothing was"
            " uploaded"
        )
    return str(done)


def _public_texts(folder: Path) -> dict[str, bytes]:
    """Config and card without the place of the backbone's weights on this machine: their file name
    is enough.
    """
    texts = {}
    for name in (CONFIG, CARD):
        if (folder / name).exists():
            with open_regular(folder / name, MAX_CONFIG) as file:
                texts[name] = file.read().decode()
    place = str(describe(folder).facts["settings"].get("backbone", {}).get("weights", ""))
    if "/" in place or "\\" in place:
        short = re.split(r"[/\\]", place)[-1]
        config = json.loads(texts[CONFIG])
        config["facts"]["settings"]["backbone"]["weights"] = short
        texts = {name: text.replace(place, short) for name, text in texts.items()} | {
            CONFIG: json.dumps(config, indent=1)
        }
    return {name: text.encode() for name, text in texts.items()}


def _card(described: Mapping[str, Any], with_tables: Sequence[str]) -> str:
    """The model card of a checkpoint, Markdown under a YAML header."""
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        library_name="ubrain",
        license="other",
        license_name="terms-of-the-recordings",
        tags=["brain-encoding", "fmri", "neuroscience", "vision"],
    )
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
{header.to_yaml()}
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
    shown = ("split_scheme", "seed", "backbone", "training")
    chosen = {key: settings[key] for key in shown if key in settings}
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
