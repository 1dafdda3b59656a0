"""Devices, and several processes that train one encoder, started by torchrun or accelerate.

Each process owns whole subjects: their embeddings, with optimiser state, live there and nowhere
else. Only gradients of the shared weights, losses and scores travel.
"""

import ctypes
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ubrain.errors import UbrainError

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
PATIENCE = timedelta(minutes=30)  # one process may write the checkpoint while the others wait
TRAININGS = count()  # of this process, one after another
# Gradients travel where they are, scores by the CPU.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


def launched() -> tuple[int, int]:
    """Number of this process from 0, and how many were launched together, as the launcher says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA if there is one, else the CPU; several processes take a GPU each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK")
    if name == "cuda" and rank and torch.cuda.device_count() > 1:  # some launchers show one only
        name = f"cuda:{rank}"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UbrainError(f"device {name!r} is not available: {error}") from error


def keep_freed_memory() -> None:
    """Let freed memory stay with the process (glibc; elsewhere nothing happens).

    By default it goes back to the system after every step, and asking for the same pages again was
    a tenth of the time of a small training step.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 28)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where asked for; a recorded step casts its weights anew, since they change."""
    recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    enabled = precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=not recording)


class Group:
    """The processes of this training; a group of one if nobody launched several.

    Attributes
    ----------
    rank, size : number of this process from 0, and how many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = launched()
        self.device = device
        self._mine = self.size > 1 and not dist.is_initialized()
        if self._mine:
            self._join()

    def _join(self) -> None:
        if self.device.type not in BACKENDS:
            raise UbrainError(
                f"several processes train on cpu or cuda, not on {self.device.type}; choose another"
                " --device"
            )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
            mine = dist.PrefixStore(
                f"training {next(TRAININGS)}", store
            )  # torchrun keeps what an earlier training has left
            dist.init_process_group(
                BACKENDS[self.device.type],
                store=mine,
                rank=self.rank,
                world_size=self.size,
                timeout=PATIENCE,
            )
        except (RuntimeError, ValueError) as error:
            raise UbrainError(
                f"process {self.rank} of {self.size} cannot join the others ({_reason(error)});"
                " start all with torchrun or accelerate launch"
            ) from error
        self.wait()  # whoever is refused later must not leave while others are still joining

    def close(self) -> None:
        """Leave the others, when there is nothing more to say."""
        if self._mine:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def own(self, sizes: dict[str, int]) -> list[str]:
        """Subjects of this process: the largest first, each to who has least to do, in steps."""
        load, owner = [0] * self.size, {}
        for name in sorted(sizes, key=lambda n: -sizes[n]):
            owner[name] = load.index(min(load))
            load[owner[name]] += sizes[name]
        return [name for name in sizes if owner[name] == self.rank]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients over all processes, in one message; none counts as zeros."""
        if self.size == 1:
            return
        mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in mine])
        with self._lost():
            dist.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def gather(self, item: T) -> list[T]:
        """Everybody's item, in the order of the ranks; items are plain values or arrays."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        with self._lost():
            dist.all_gather_object(found, item)
        return found

    def wait(self) -> None:
        """Return when all processes are here."""
        self.gather(None)

    def check_shared(self, folder: Path) -> None:
        """Refuse a folder that is not one and the same for all processes."""
        if self.size == 1:
            return
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / self.gather(f".{uuid.uuid4().hex}.partial")[0]
        if self.first:
            mark.touch()
        self.wait()
        seen = self.gather(mark.exists())
        if self.first:
            mark.unlink()
        if not all(seen):
            raise UbrainError(
                f"process {seen.index(False)} does not see what process 0 writes into {folder};"
                " choose a folder that all machines share"
            )

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise UbrainError(
                f"process {self.rank} of {self.size} lost the others ({_reason(error)}). One of"
                " them has died; its own message says why. The last checkpoint is good: the same"
                " command continues from it"
            ) from error


def _reason(error: Exception) -> str:
    """Without the place in the library's source that it begins with, and without its advice."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", line).partition(". ")[0][:200]


def interleave(items: Iterable[tuple[str, T]], position: dict[str, int]) -> list[tuple[str, T]]:
    """Batches of subjects in an order that spreads each subject's evenly.

    So neighbours are of different subjects.
    """
    turn: dict[str, int] = {}
    keyed = []
    for name, item in items:
        turn[name] = turn.get(name, 0) + 1
        keyed.append((turn[name], name, item))
    keyed.sort(key=lambda k: ((k[0] - 0.5) / turn[k[1]], position[k[1]]))
    return [(name, item) for _, name, item in keyed]
