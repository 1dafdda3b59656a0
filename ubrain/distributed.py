"""Several processes that train one encoder, started by torchrun or `accelerate launch`; or one process alone.

Each process owns whole subjects: their embeddings, with optimiser state, live there and nowhere else. Only gradients of the
shared weights, losses and scores travel.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ubrain.errors import UbrainError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # one process may compute features while the others wait


class Group:
    """The processes of this training; a group of one if nobody launched several.

    Attributes
    ----------
    rank, size : number of this process from 0, and how many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = device
        if self.size > 1 and not dist.is_initialized():
            with self._told():
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def own(self, sizes: dict[str, int]) -> list[str]:
        """Subjects of this process: the largest first, each to the process that has least to do; `sizes` in steps."""
        load, owner = [0] * self.size, {}
        for name in sorted(sizes, key=lambda n: -sizes[n]):
            owner[name] = load.index(min(load))
            load[owner[name]] += sizes[name]
        return [name for name in sizes if owner[name] == self.rank]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients over all processes, in one message; a process without gradients counts as zeros."""
        if self.size == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        with self._told():
            dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def gather(self, item: T) -> list[T]:
        """Everybody's item, in the order of the ranks; items are plain values or arrays."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        with self._told():
            dist.all_gather_object(found, item)
        return found

    def wait(self) -> None:
        """Return when all processes are here."""
        self.gather(None)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise UbrainError(
                f"process {self.rank} of {self.size} lost the others ({str(error).splitlines()[0][:200]}). One of them has "
                f"died; its own message says why. The last checkpoint is good: the same command continues from it"
            ) from error


def interleave(items: Iterable[tuple[str, T]], position: dict[str, int]) -> list[tuple[str, T]]:
    """Batches of subjects in an order in which each subject's are spread evenly: neighbours are of different subjects."""
    turn: dict[str, int] = {}
    keyed = []
    for name, item in items:
        turn[name] = turn.get(name, 0) + 1
        keyed.append((turn[name], name, item))
    return [(n, i) for t, n, i in sorted(keyed, key=lambda k: ((k[0] - 0.5) / turn[k[1]], position[k[1]]))]
