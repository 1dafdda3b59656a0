"""Encoders on disk: a folder with the weights (safetensors) and the config (JSON). Nothing in it is executed."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ubrain.config import EncoderConfig, from_mapping
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.paths import atomic, write_text

WEIGHTS, CONFIG = "encoder.safetensors", "config.json"


def save(encoder: UniversalEncoder, folder: str | Path, **facts: Any) -> None:
    """Write an encoder to a folder, with facts about how it was made (data, training, scores)."""
    folder = Path(folder)
    with atomic(folder / WEIGHTS) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in encoder.state_dict().items()}, partial)
    write_text(folder / CONFIG, json.dumps({**encoder.describe(), "facts": facts}, indent=1))


def load(folder: str | Path) -> UniversalEncoder:
    """Read an encoder from a folder, ready to predict.

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
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except UbrainError:
        raise
    except Exception as error:
        raise UbrainError(f"{folder} does not hold an encoder that can be read: {error}") from error
    return encoder.eval()
