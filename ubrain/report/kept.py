"""What takes long to fit, computed once and then read from the cache, where a pack may have put it.

A result is known by its name, by `VERSION` and by a digest of all that it was made from: data,
weights, settings, seed. The text of the code is no part of it, so an edit of a comment fits nothing
anew; who changes what a fit gives raises `VERSION`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ubrain import paths, readout, transfer
from ubrain.analysis import baselines
from ubrain.crowd import Crowd, Subject, reading
from ubrain.features import Features, Source
from ubrain.model import UniversalEncoder
from ubrain.resume import make_once

T = TypeVar("T")
VERSION = 1
# The classes of results, by the names under which files know them, with what they are made of.
CLASSES: dict[str, tuple[type, Sequence[str]]] = {
    "baseline": (baselines.Fitted, [f.name for f in fields(baselines.Fitted)]),
    "transfer": (transfer.Fitted, [f.name for f in fields(transfer.Fitted)]),
    "readout": (readout.LinearReadout, readout.BUFFERS),
}


def kept(name: str, made_from: Sequence[Any], make: Callable[[], T]) -> T:
    """What `make` gives, from the cache if it was made before from the same.

    Parameters
    ----------
    name : of the result, part of its file's name.
    made_from : everything that decides the result: numbers, texts, arrays, dataclasses, crowds,
        subjects and their views, features, sources, encoders, and sequences and mappings of these.
    make : gives an array, a tensor, one of `CLASSES`, or a mapping of these and of plain values.

    Raises
    ------
    UbrainError
        If a file of the cache is damaged.
    """
    text = json.dumps([name, VERSION, _identity(made_from)], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = paths.cache_root() / "kept" / f"{name}-{digest}.safetensors"

    def save(partial: Path) -> None:
        arrays: dict[str, Tensor] = {}
        facts = {"result": json.dumps(_plain(make(), arrays))}
        save_file(arrays, partial, facts)

    make_once(path, save)
    paths.note_use(path)
    return _read(path)


def _identity(value: Any) -> Any:
    """A plain value that tells this argument from others."""
    if isinstance(value, Crowd):
        return value.fingerprint
    if isinstance(value, Subject):
        return [value.name, value.crowd.select(value).fingerprint]
    if isinstance(value, Features):
        return value.folder.name
    if isinstance(value, Source):
        return [value.crowd.fingerprint, value.identity]
    if isinstance(value, UniversalEncoder):
        return [_identity(value.config), _identity(value.state_dict())]
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        content = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).hexdigest()
        return [str(value.dtype), value.shape, content]
    if is_dataclass(value):
        return {f.name: _identity(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _identity(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a result cannot be known by a {type(value).__name__}")


def _plain(value: Any, arrays: dict[str, Tensor]) -> Any:
    """A result as JSON; its arrays go to `arrays`."""
    for name, (cls, parts) in CLASSES.items():
        if isinstance(value, cls):
            return {name: {part: _plain(getattr(value, part), arrays) for part in parts}}
    if isinstance(value, np.ndarray | Tensor):
        kind, key = "tensor" if isinstance(value, Tensor) else "array", str(len(arrays))
        arrays[key] = torch.as_tensor(value).detach().cpu().contiguous().clone()
        return {kind: key}
    if isinstance(value, Mapping):
        return {"mapping": {key: _plain(inner, arrays) for key, inner in value.items()}}
    return value


def _read(path: Path) -> Any:
    with reading(path, "a kept result"), safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["result"])
        return _result(told, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


def _result(told: Any, arrays: Mapping[str, Tensor]) -> Any:
    """The opposite of `_plain`."""
    if not isinstance(told, dict):
        return told
    ((kind, inner),) = told.items()
    if kind in ("tensor", "array"):
        return arrays[inner] if kind == "tensor" else arrays[inner].numpy()
    parts = {name: _result(part, arrays) for name, part in inner.items()}
    return parts if kind == "mapping" else CLASSES[kind][0](**parts)
