"""Encoders on disk: a folder with the weights (safetensors) and the config (JSON). Nothing in it is executed."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ubrain.config import EncoderConfig, from_mapping
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.paths import atomic, write_text

WEIGHTS, CONFIG = "encoder.safetensors", "config.json"
ADAPTERS = "adapters."  # prefix of the adapters' weights, if the backbone had any


def save(encoder: UniversalEncoder, folder: str | Path, adapters: nn.Module | None = None, **facts: Any) -> None:
    """Write an encoder, and the adapters that were trained with it, with facts about how they were made."""
    folder = Path(folder)
    with atomic(folder / WEIGHTS) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in state_of(encoder, adapters).items()}, partial)
    write_text(folder / CONFIG, json.dumps({**encoder.describe(), "facts": facts}, indent=1))


def state_of(encoder: nn.Module, adapters: nn.Module | None) -> dict[str, Tensor]:
    """All weights that training changes, by name."""
    extra = {ADAPTERS + name: t for name, t in adapters.state_dict().items()} if adapters is not None else {}
    return {**encoder.state_dict(), **extra}


def load_state(encoder: nn.Module, adapters: nn.Module | None, state: dict[str, Tensor]) -> None:
    """The opposite of `state_of`."""
    encoder.load_state_dict({k: v for k, v in state.items() if not k.startswith(ADAPTERS)})
    theirs = any(k.startswith(ADAPTERS) for k in state)
    if theirs != (adapters is not None):
        need = "was trained with adapters; load it with those of its backbone" if theirs else "was trained without adapters"
        raise UbrainError(f"this encoder {need}")
    if adapters is not None:
        adapters.load_state_dict({k.removeprefix(ADAPTERS): v for k, v in state.items() if k.startswith(ADAPTERS)})


def load(folder: str | Path, adapters: nn.Module | None = None) -> UniversalEncoder:
    """Read an encoder from a folder, ready to predict; and its adapters into those of a backbone, if given.

    Raises
    ------
    UbrainError
        If a file is missing or damaged, or the two do not fit together.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = from_mapping(EncoderConfig, described["config"], where=str(folder / CONFIG))
        encoder = UniversalEncoder(config, {str(n): int(v) for n, v in described["subjects"].items()})
        load_state(encoder, adapters, load_file(folder / WEIGHTS))
    except UbrainError:
        raise
    except Exception as error:
        raise UbrainError(f"{folder} does not hold an encoder that can be read: {error}") from error
    return encoder.eval()
