"""ubrain: a universal brain encoder, reproducible from the first image to the last number."""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ubrain.config import load_profile as load_profile
    from ubrain.crowd import Crowd as Crowd
    from ubrain.crowd import Subject as Subject
    from ubrain.errors import UbrainError as UbrainError
    from ubrain.model import UniversalEncoder as UniversalEncoder
    from ubrain.report.lab import Lab as Lab
    from ubrain.report.lab import shipped_encoder as shipped_encoder

__version__ = "0.1.0"
warnings.filterwarnings(
    "ignore", "IProgress not found"
)  # a library asks for a widget that nothing here needs
_HOME = {
    "Crowd": "ubrain.crowd",
    "Lab": "ubrain.report.lab",
    "Subject": "ubrain.crowd",
    "UbrainError": "ubrain.errors",
    "UniversalEncoder": "ubrain.model",
    "load_profile": "ubrain.config",
    "shipped_encoder": "ubrain.report.lab",
}
__all__ = [
    "Crowd",
    "Lab",
    "Subject",
    "UbrainError",
    "UniversalEncoder",
    "load_profile",
    "shipped_encoder",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: `ubrain --help` need not wait for torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ubrain' has no attribute {name!r}")
