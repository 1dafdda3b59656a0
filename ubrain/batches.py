"""What is trained when, and read ahead of time, so that no computation waits for a disk."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ubrain.config import TrainingConfig
from ubrain.optim import Rate
from ubrain.parallel import interleave

if TYPE_CHECKING:
    from ubrain.crowd import Crowd
    from ubrain.features import Source

Images = tuple[str, NDArray[np.int64]]  # of one subject, as rows of the crowd file
T = TypeVar("T")
U = TypeVar("U")
READERS = 4  # threads that read for a GPU, and items that are read ahead; a CPU computes itself


@dataclass(frozen=True)
class Batch:
    """Images of one subject, the voxels drawn for them, and the seed of all that is random.

    Attributes
    ----------
    drawn : voxels that the images share, (V,); or how many each image draws, and out of how many.
    share : of the images of its step, where a step has images of several subjects.
    """

    subject: str
    rows: NDArray[np.int64]
    drawn: NDArray[np.int64] | tuple[int, int]
    seed: int
    share: float = 1.0

    @property
    def voxels(self) -> NDArray[np.int64]:
        """(V,), or (B, V) for each image its own; these are drawn when they are asked for."""
        if not isinstance(self.drawn, tuple):
            return self.drawn
        n, n_voxels = self.drawn
        return np.random.default_rng(self.seed).integers(n_voxels, size=(len(self.rows), n))


@dataclass(frozen=True)
class Plan:
    """What is trained when: a function of the seed and the epoch only."""

    crowd: "Crowd"
    subjects: tuple[str, ...]
    config: TrainingConfig
    seed: int

    def batches_of(self, subject: str) -> int:
        """Batches of a subject in each epoch; of mixed ones, as many as would be full of it."""
        return max(
            1, round(len(self.crowd[subject].image_rows("train")) / self.config.batch_images)
        )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of all subjects in each epoch."""
        if self.config.batches == "mixed":
            n_images = sum(len(self.crowd[name].image_rows("train")) for name in self.subjects)
            return -(-n_images // self.config.batch_images)
        return -(-sum(map(self.batches_of, self.subjects)) // self.config.batches_per_step)

    @cached_property
    def epochs(self) -> int:
        """Number of epochs."""
        return max(self.config.epochs, -(-self.config.min_steps // self.steps_per_epoch))

    def rates(self, epoch: int, plateau: float) -> list[Rate]:
        """Learning rate and β1 of each step of an epoch."""
        if self.config.schedule == "plateau":
            return [Rate(plateau)] * self.steps_per_epoch
        return self._one_cycle[epoch * self.steps_per_epoch :][: self.steps_per_epoch]

    @cached_property
    def _one_cycle(self) -> list[Rate]:
        n, highest = self.epochs * self.steps_per_epoch, self.config.learning_rate
        if n < 10:  # too short for a cycle of rising and falling
            return [Rate(highest)] * n
        adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
        cycle = torch.optim.lr_scheduler.OneCycleLR(adam, highest, total_steps=n, pct_start=0.2)
        rates = []
        for i in range(n):
            group = adam.param_groups[0]
            rates.append(Rate(float(group["lr"]), float(group["betas"][0])))
            adam.step()  # without gradients: torch wants it before the schedule's step
            if i + 1 < n:
                cycle.step()
        return rates

    def steps(self, epoch: int) -> list[list[Batch]]:
        """The batches of each step of an epoch: every training image of every subject once."""
        rng, config, number = np.random.default_rng([self.seed, epoch]), self.config, count()
        mixed, steps = config.batches == "mixed", list[list[Batch]]()
        for step in self._mixed(rng) if mixed else self._of_one_subject(rng):
            n_images, batches = sum(len(rows) for _, rows in step), list[Batch]()
            for name, rows in step:
                n_voxels = self.crowd[name].n_voxels
                drawn: NDArray[np.int64] | tuple[int, int] = (config.voxels_per_step, n_voxels)
                if config.voxel_draws == "shared":
                    some = min(config.voxels_per_step, n_voxels)
                    drawn = np.sort(rng.choice(n_voxels, some, replace=False))
                entropy = np.random.SeedSequence([self.seed, epoch, next(number)])
                seed = int(entropy.generate_state(1)[0])
                share = len(rows) / n_images if mixed else 1.0
                batches.append(Batch(name, rows, drawn, seed, share))
            steps.append(batches)
        return steps

    def val_voxels(self, subject: str) -> NDArray[np.int64]:
        """Voxels drawn for each val image, (n_images, V), the same for every epoch."""
        seed, s = [self.seed, self.subjects.index(subject)], self.crowd[subject]
        size = (len(s.image_rows("val")), self.config.voxels_per_step)
        return np.random.default_rng(seed).integers(s.n_voxels, size=size)

    def _mixed(self, rng: np.random.Generator) -> Iterator[list[Images]]:
        """Images of all subjects, in any order; those of a step are grouped by subject."""
        rows = [self.crowd[name].image_rows("train") for name in self.subjects]
        subject = np.repeat(np.arange(len(rows)), [len(some) for some in rows])
        everything, order = np.concatenate(rows), rng.permutation(len(subject))
        for start in range(0, len(order), self.config.batch_images):
            mine = np.sort(order[start : start + self.config.batch_images])
            groups = [(i, mine[subject[mine] == i]) for i in np.unique(subject[mine])]
            yield [(self.subjects[i], everything[some]) for i, some in groups]

    def _of_one_subject(self, rng: np.random.Generator) -> Iterator[list[Images]]:
        """Batches with images of one subject each, `batches_per_step` at a time."""
        drawn = []
        for name in self.subjects:
            rows = rng.permutation(self.crowd[name].image_rows("train"))
            drawn += [(name, np.sort(part)) for part in np.array_split(rows, self.batches_of(name))]
        drawn = [drawn[i] for i in rng.permutation(len(drawn))]
        per_step = self.config.batches_per_step
        if per_step > 1:  # neighbouring batches of different subjects: work for all processes
            large_first = sorted(self.subjects, key=lambda n: -self.batches_of(n))  # as `Group.own`
            drawn = interleave(drawn, {name: i for i, name in enumerate(large_first)})
        return (drawn[i : i + per_step] for i in range(0, len(drawn), per_step))


class Ready(NamedTuple):
    """A batch where it is computed."""

    batch: Batch
    voxels: Tensor  # (V,), all different
    read: Tensor  # features or images, for `Source.levels`
    target: Tensor  # (B, V), measured responses
    which: Tensor | None = None  # (B, V), where images have voxels of their own: places in `voxels`


def prepared(
    source: "Source", batches: Iterable[Batch], device: torch.device, readers: int | None = None
) -> Generator[Ready]:
    """Batches with their data on the device, in order; the next ones are read meanwhile.

    To a GPU they go through pinned memory, so nobody waits here while one is copied. What is in a
    batch does not depend on how many threads read; by default see `n_readers`.
    """

    def read(batch: Batch) -> tuple[Batch, list[Tensor]]:
        voxels, which = batch.voxels, list[Tensor]()
        if voxels.ndim == 2:
            voxels, places = np.unique(voxels, return_inverse=True)
            which = [torch.from_numpy(places.reshape(len(batch.rows), -1))]
        measured = source.crowd[batch.subject].responses_to(batch.rows, voxels)
        parts = [torch.from_numpy(voxels), source.read(batch.rows), torch.from_numpy(measured)]
        if which:
            parts = [*parts[:2], parts[2].gather(1, *which), *which]
        pin = device.type == "cuda"
        return batch, [t.pin_memory() if pin and t.device.type == "cpu" else t for t in parts]

    for batch, parts in read_ahead(read, batches, readers or n_readers(device)):
        yield Ready(batch, *(t.to(device, non_blocking=True) for t in parts))


def n_readers(device: torch.device) -> int:
    """How many threads read: few where they share the processor with the computation."""
    return 1 if device.type == "cpu" else READERS


def read_ahead(read: Callable[[T], U], items: Iterable[T], readers: int = READERS) -> Generator[U]:
    """`read` of each item, in order; while one is worked on, threads read the next few."""
    pool, waiting = ThreadPoolExecutor(readers), deque[Future[U]]()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > readers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
