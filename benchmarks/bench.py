"""How fast and frugal ubrain is on this machine, against the formulas as they read, in one run.

The reference is `UniversalEncoder` with `fast = False`, ours is the same encoder with
`ubrain.kernels`. `ubrain bench` and `python benchmarks/bench.py` are the same command. What needs
a GPU card is measured by `benchmarks/gpu.py`, which uses the parts of this file.

A rate is a number of image-voxel pairs a second, so a CPU measures fewer voxels than the paper
draws; with five times as many, ours was up to a quarter faster, and the reference no faster. Its
share of the limit counts only the multiply-adds that the function needs, however a form computes
it, against those of a large matrix product.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ubrain import kernels
from ubrain.backbone import Backbone, shifted
from ubrain.batches import Batch, prepared
from ubrain.config import BackboneConfig, EncoderConfig, TrainingConfig, from_mapping
from ubrain.crowd import FORMAT, TEXT, VERSION, Crowd
from ubrain.errors import UbrainError
from ubrain.features import Images, Source
from ubrain.model import UniversalEncoder
from ubrain.optim import LONGEST, EmbeddingAdam, Rate
from ubrain.parallel import autocast, choose_device, keep_freed_memory
from ubrain.paths import write_text
from ubrain.predict import Predictor, stream
from ubrain.progress import log
from ubrain.train import loss_of

VIT = BackboneConfig(weights="random")
CNN = BackboneConfig("tf_efficientnet_lite0", "random", (1, 2, 3), 160, 8, False, 0)
PRECISIONS = ("fp32", "bf16")
WORKS = ("forward", "training")
BUSY = 0.5  # cores that others may use before the numbers are doubtful


@dataclass(frozen=True)
class Sizes:
    """What is measured; the defaults are the paper's sizes."""

    images: int = 32
    voxels: int = 5000
    crowd: int = 316_000  # voxels of all subjects, of which `voxels` are drawn in a step
    tokens: int = 257
    widths: tuple[int, ...] = (1024,) * 5
    embedding_size: int = 256
    channels: int = 128
    backbone: BackboneConfig = VIT
    backbone_images: int = 32  # in a step with the backbone

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder of these sizes."""
        return EncoderConfig(self.widths, self.tokens, self.embedding_size, self.channels)

    def multiply_adds(self, training: bool) -> int:
        """That the head needs for one image and one voxel, without what it computes twice."""
        attend, mlp, read = self.tokens * self.channels, 4 * self.channels**2, 5 * self.channels
        once = 6 * attend + 3 * mlp + 2 * read if training else 2 * attend + mlp + read
        return len(self.widths) * once

    def share(self, pairs_per_second: float, training: bool, gflops: float) -> float:
        """A rate as a share of the speed of a large matrix product."""
        return 2 * self.multiply_adds(training) * pairs_per_second / gflops / 1e9


# Batches as recipe ours draws them: of one subject, whose voxels all images share.
ONE_SUBJECT: dict[str, Any] = {
    "batches": "one-subject",
    "voxel_draws": "shared",
    "embedding_steps": "own",
    "validation": "by-subject",
}
PAPER = Sizes()
ON_CPU = replace(PAPER, voxels=500, backbone_images=2)  # the same rates in less time
FAST = Sizes(16, 256, 3000, 64, (24, 40, 80), 64, 48, CNN, 16)  # the laptop's profile


def choose_sizes(name: str, device: str) -> Sizes:
    """Sizes by name: paper (with fewer voxels on a CPU), or fast, the laptop's profile."""
    if name not in ("paper", "fast"):
        raise UbrainError(f"unknown size {name!r}: expected paper or fast")
    paper = PAPER if choose_device(device).type == "cuda" else ON_CPU
    return FAST if name == "fast" else paper


class Setup:
    """An encoder with random weights, random tokens and random responses."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.sizes, self.device = sizes, device
        self.encoder = UniversalEncoder(sizes.encoder, {"S": sizes.voxels}).to(device)
        self.tokens = [
            torch.randn(sizes.images, sizes.tokens, width, device=device) for width in sizes.widths
        ]
        self.target = torch.randn(sizes.images, sizes.voxels, device=device)
        self.compiled = torch.compile(self.reference)
        self._terms: list[kernels.VoxelTerms] = []

    def reference(self) -> Tensor:
        """Responses by the formulas as they read."""
        self.encoder.fast = False
        return self.encoder(self.tokens, "S")

    def ours(self) -> Tensor:
        """Responses by the kernels; prediction computes once what depends on the voxels only."""
        self.encoder.fast = True
        if self.encoder.training or self.device.type == "cuda":
            return self.encoder(self.tokens, "S")
        self._terms = self._terms or kernels.voxel_terms(self.encoder, self.encoder.subject("S"))
        return kernels.respond(self.encoder, self.encoder.project(self.tokens), self._terms)

    def run(self, form: Callable[[], Tensor], work: str, precision: str) -> None:
        """Forward as in prediction; or training: forward and backward, with dropout."""
        self.encoder.train(work == "training").zero_grad()
        with autocast(self.device, precision), torch.inference_mode(work == "forward"):
            predicted = form()
        if work == "training":
            loss_of(predicted.float(), self.target, TrainingConfig()).backward()


class Step:
    """A training step of a subject with all voxels of the crowd: from images if there is a
    backbone, else from random tokens; both optimisers included.
    """

    def __init__(
        self, sizes: Sizes, device: torch.device, precision: str, backbone: Backbone | None = None
    ) -> None:
        torch.manual_seed(0)
        self.device, self.precision, self.backbone, config = (
            device,
            precision,
            backbone,
            sizes.encoder,
        )
        n_images, self._n_voxels = sizes.images, min(sizes.voxels, sizes.crowd)
        self._adapted = backbone is not None and backbone.adapters is not None
        if backbone is not None:
            n_images, shape = sizes.backbone_images, (3, *backbone.image_size)
            config = replace(config, widths=backbone.widths, n_tokens=backbone.n_tokens)
            self.images = torch.rand(n_images, *shape, device=device)
        else:
            shapes = [(n_images, sizes.tokens, width) for width in sizes.widths]
            self.tokens = [torch.randn(shape, device=device) for shape in shapes]
        self.encoder = UniversalEncoder(config, {"S": sizes.crowd}).to(device).train()
        self.own = EmbeddingAdam(self.encoder.subject("S"), amsgrad=True)
        trained = self.encoder.shared_parameters()
        trained += [p for p in backbone.parameters() if p.requires_grad] if backbone else []
        fused = device.type in ("cpu", "cuda")
        self.shared = torch.optim.Adam(trained, amsgrad=True, fused=fused)
        self.target = torch.randn(n_images, self._n_voxels, device=device)
        self._replayed = kernels.Replayed(partial(self._differentiate, lambda part: None), trained)
        self.own.plan([Rate(1e-3)] * LONGEST)  # as many steps as can be made

    def __call__(self, done: Callable[[str], None] | None = None) -> None:
        """Make the step as training does, replayed on a GPU; or by part, and tell `done` after
        each.
        """
        told: Callable[[str], None] = done or (lambda part: None)
        rows = torch.randperm(len(self.own.embeddings), device=self.device)[: self._n_voxels]
        embedding = self.own.read(rows)
        told("embeddings, read")
        if self.backbone is None:
            ready = self.tokens
        else:
            ready = [shifted(self.backbone.normalise(self.images), 3)]
        work = self._replayed if done is None else partial(self._differentiate, told)
        (gradient,) = work(embedding, self.target, *ready)
        self.shared.step()
        self.shared.zero_grad()
        told("shared weights, update")
        self.own.step(rows, embedding, gradient)
        told("embeddings, update")

    def _differentiate(
        self, done: Callable[[str], None], embedding: Tensor, target: Tensor, *ready: Tensor
    ) -> tuple[Tensor, ...]:
        embedding, tokens = embedding.detach().requires_grad_(), list(ready)
        with autocast(self.device, self.precision):
            if self.backbone is not None:
                with torch.set_grad_enabled(self._adapted):
                    tokens = self.backbone(*ready)
                done("backbone, forward")
            leaves = [t.detach().requires_grad_(self._adapted) for t in tokens]
            predicted = self.encoder(leaves, embedding)
        done("head, forward")
        loss_of(predicted.float(), target, TrainingConfig()).backward()
        done("head, backward")
        if self._adapted:
            torch.autograd.backward(tokens, [t.grad for t in leaves])
            done("backbone, backward")
        assert embedding.grad is not None
        return (embedding.grad,)


def bench(
    sizes: Sizes, rounds: int = 3, device: str = "auto", compiled: bool = False
) -> dict[str, Any]:
    """Measure everything; the rounds alternate between the forms, so that a drift of the machine
    meets all of them.

    Parameters
    ----------
    compiled : also measure the reference compiled by torch.compile.

    Returns
    -------
    head : for each form, work and precision, seconds (median over rounds), pairs_per_second, and
        share_of_limit; with the ratio to the reference (median of the ratios within a round).
    step : seconds of each part of a training step with the backbone.
    input, prediction, memory, crowd, limit, others, conditions.
    """
    keep_freed_memory()
    place = choose_device(device)
    # first: on Linux a process starts with the peak memory of the one that starts it
    memory = {
        name: _memory(sizes, device, name) for name in ("reference fp32", "ours fp32", "ours bf16")
    }
    with watched() as others:
        setup, small = (Setup(s, place) for s in (sizes, replace(sizes, voxels=16)))
        forms: dict[tuple[str, str, str], partial[None]] = {}
        for work in WORKS:
            for precision in PRECISIONS:
                for name in ("reference", "compiled", "ours")[:: 1 if compiled else 2]:
                    form = partial(setup.run, getattr(setup, name), work, precision)
                    forms[name, work, precision] = form
                    if name == "compiled" or place.type == "cuda":  # it is compiled now
                        form()
                    else:  # libraries are loaded, memory is mapped
                        small.run(getattr(small, name), work, precision)
        seconds: dict[tuple[str, str, str], list[float]] = {name: [] for name in forms}
        limits: dict[str, list[float]] = {p: [] for p in PRECISIONS}
        for i in range(rounds):
            log.info("round %d of %d", i + 1, rounds)
            for key, form in forms.items():
                seconds[key].append(timed(form, place))
            for precision, found in limits.items():
                found.append(matrix_product(place, precision))
        del setup, small, forms
        with tempfile.TemporaryDirectory() as folder:
            rest: dict[str, Any] = {
                "crowd": crowd_steps(sizes, place, rounds),
                "step": whole_steps(sizes, place),
                "input": input_rate(sizes, place, Path(folder)),
                "prediction": prediction_rate(sizes, place),
            }
    limit = {p: statistics.median(found) for p, found in limits.items()}
    facts = {"device": str(place), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {
        "head": [_row(sizes, seconds, limit, key) for key in seconds],
        **rest,
        "prediction_share": sizes.share(rest["prediction"], False, limit[usual(place)]),
        "memory": memory,
        "limit": limit,
        "others": others,
        "conditions": {**asdict(sizes), **facts, "rounds": rounds},
    }


def _row(
    sizes: Sizes,
    seconds: dict[tuple[str, str, str], list[float]],
    limit: dict[str, float],
    key: tuple[str, str, str],
) -> dict[str, Any]:
    """The measurements of one form of the head."""
    form, work, precision = key
    mine, reference = seconds[key], seconds["reference", work, precision]
    rate = sizes.images * sizes.voxels / statistics.median(mine)
    ratios = [theirs / s for theirs, s in zip(reference, mine, strict=True)]
    return {
        "form": form,
        "work": work,
        "precision": precision,
        "rounds": mine,
        "seconds": statistics.median(mine),
        "pairs_per_second": rate,
        "times_faster": statistics.median(ratios),
        "share_of_limit": sizes.share(rate, work == "training", limit[precision]),
    }


def table(found: dict[str, Any]) -> str:
    """The measurements as text."""
    c, crowd, others = found["conditions"], found["crowd"], found["others"]
    lines = [
        (
            f"{c['images']} images × {c['voxels']} voxels, {c['tokens']} tokens,"
            f" {len(c['widths'])} levels, E {c['embedding_size']}, C {c['channels']};"
            f" {c['device']}, {c['threads']} threads, torch {c['torch']}; medians of"
            f" {c['rounds']} rounds; rates are per image-voxel pair"
        ),
        (
            f"{'head':<28} {'ms':>9} {'M image-voxels/s':>17} {'times faster':>13}"
            f" {'of the limit':>13}"
        ),
    ]
    for row in found["head"]:
        name = f"{row['work']}, {row['precision']}, {row['form']}"
        lines.append(
            f"{name:<28} {1e3 * row['seconds']:>9.2f} {row['pairs_per_second'] / 1e6:>17.3f}"
            f" {row['times_faster']:>13.2f} {row['share_of_limit']:>13.0%}"
        )
    products = ", ".join(f"{p} {g:.0f} GFLOP/s" for p, g in found["limit"].items())
    memory = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in found["memory"].items())
    lines += [f"limit: matrix products at {products}", f"memory of a head's step: {memory}"]
    lines.append(
        f"step among {c['crowd']:,} voxels: {crowd['whole'] * 1e3:.1f} ms, {crowd['ratio']:.2f} ×"
        f" the step among {c['voxels']:,}"
    )
    for name, parts in found["step"].items():
        lines.append(f"step with the backbone, {c['backbone_images']} images, {name}:")
        lines += [f"  {part:<26} {1e3 * s:>9.1f} ms" for part, s in parts.items()]
    lines += [
        f"input alone, batches from a crowd file: {found['input']:.0f} a second",
        f"prediction, streamed: {found['prediction'] / 1e6:.3f} M image-voxels/s,"
        f" {found['prediction_share']:.0%} of the limit",
        f"others used {others['cores']:.1f} cores meanwhile: {', '.join(others['names']) or '–'}",
    ]
    if others["cores"] > BUSY:
        lines.append("WARNING: so much else ran that these numbers are too low")
    return "\n".join(lines)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the work is done, on a GPU, too."""
    finish(device)
    start = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - start


def usual(device: torch.device) -> str:
    """The precision that a step is measured in."""
    return "bf16" if device.type == "cuda" else "fp32"


def finish(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(device: torch.device, precision: str) -> float:
    """GFLOP/s of a square matrix product, the largest of 256 to 2048 rows (8192 on a GPU) that
    should take less than a fifth of a second.

    A processor without bf16 instructions needs half a minute for the largest.
    """
    n, seconds, most = 128, 0.0, 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    while n < most and 8 * seconds < 0.2:
        n *= 2
        a = torch.randn(n, n, device=device, dtype=dtype)
        a @ a
        seconds = min(timed(partial(torch.mm, a, a), device) for _ in range(5))
    return 2 * n**3 / seconds / 1e9


def crowd_steps(sizes: Sizes, device: torch.device, rounds: int) -> dict[str, float]:
    """Seconds of a head's training step, optimisers included, when all voxels of the crowd exist to
    draw from, and its ratio to the step when there are only those that are drawn.
    """
    steps = [Step(replace(sizes, crowd=n), device, "bf16") for n in (sizes.voxels, sizes.crowd)]
    seconds = [[timed(step, device) for step in steps] for _ in range(rounds + 1)][1:]
    ratio = statistics.median(whole / few for few, whole in seconds)
    return {"whole": statistics.median(whole for _, whole in seconds), "ratio": ratio}


def whole_steps(sizes: Sizes, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of each part of a training step from images, with adapters (where the backbone takes
    them) and without.
    """
    found = {}
    for rank in dict.fromkeys((sizes.backbone.adapter_rank, 0)):
        backbone = Backbone(replace(sizes.backbone, adapter_rank=rank)).to(device)
        step = Step(sizes, device, usual(device), backbone)
        found[f"adapters of rank {rank}" if rank else "no adapters"] = parts_of(step, 2)
    return found


def parts_of(step: Step, repeats: int) -> dict[str, float]:
    """Median seconds of each part of a step, and of the step as a whole, a first one left out."""
    seconds: dict[str, list[float]] = {}
    last = 0.0

    def done(part: str) -> None:
        nonlocal last
        finish(step.device)
        seconds.setdefault(part, []).append(time.perf_counter() - last)
        last = time.perf_counter()

    for _ in range(repeats + 1):
        last = start = time.perf_counter()
        step(done)
        seconds.setdefault("in all", []).append(time.perf_counter() - start)
    return {part: statistics.median(found[1:]) for part, found in seconds.items()}


def input_rate(sizes: Sizes, device: torch.device, folder: Path, n_batches: int = 100) -> float:
    """Batches a second that are read from a crowd file and its cache of images; nothing else."""
    path = folder / "crowd.h5"
    n_voxels = min(sizes.crowd, 20_000)
    write_crowd(path, {"S1": n_voxels}, max(128, sizes.images), pixels=64)
    with Crowd(path) as crowd:
        images: Any = SimpleNamespace(image_size=(sizes.backbone.image_size,) * 2, interpolation="")
        images.resize = lambda pixels: torch.zeros(len(pixels), 3, *images.image_size)
        source: Any = Source(crowd, None, images, Images(crowd, images, folder / "images"))
        rng, rows = np.random.default_rng(0), crowd["S1"].image_rows("train")
        batches = [
            Batch(
                "S1",
                np.sort(rng.choice(rows, min(sizes.images, len(rows)), replace=False)),
                np.sort(rng.choice(n_voxels, min(sizes.voxels, n_voxels), replace=False)),
                0,
            )
            for _ in range(n_batches)
        ]
        for _ in prepared(source, batches[:5], device):  # moments are read, files are mapped
            pass
        seconds = timed(lambda: [None for _ in prepared(source, batches, device)], device)
    return n_batches / seconds


def prediction_rate(sizes: Sizes, device: torch.device, n_batches: int = 4) -> float:
    """Image-voxel pairs a second through `ubrain.predict.stream`, from features in memory."""
    n, n_voxels = n_batches * sizes.images, 4 * sizes.voxels
    features: Any = SimpleNamespace(levels=lambda read: list(read.split(sizes.widths, 2)))
    numbers = (
        np.random.default_rng(0)
        .standard_normal((sizes.images, sizes.tokens, sum(sizes.widths)), np.float32)
        .astype(np.float16)
    )
    features.read = lambda rows: numbers[rows % len(numbers)]
    source: Any = Source(SimpleNamespace(), features)  # type: ignore[arg-type]
    encoder = UniversalEncoder(sizes.encoder, {"S": n_voxels}).to(device)
    predictor = Predictor(encoder, "S", precision=usual(device), batch=sizes.images)
    rows = np.arange(n)
    for _ in stream(predictor, source, rows[: sizes.images]):
        pass
    return n * n_voxels / timed(lambda: [None for _ in stream(predictor, source, rows)], device)


def write_crowd(
    path: Path, subjects: dict[str, int], n_images: int, pixels: int = 425, seed: int = 0
) -> None:
    """A crowd file by the schema in `ubrain.crowd`: images of 5 × 5 coloured squares, and responses
    that are noisy linear functions of these colours; every tenth image is in val.
    """
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (n_images, 5, 5, 3), np.uint8)
    place = np.arange(pixels) * 5 // pixels
    names = [f"{seed}-{pixels}-{i}" for i in range(n_images)]
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION)
        for column in ("id", "content"):
            file.create_dataset(f"images/{column}", data=names, dtype=TEXT)
        file["images/split"] = (np.arange(n_images) % 10 == 9).astype(np.uint8)
        file["images/shape"] = np.full((n_images, 2), pixels, np.uint16)
        file["images/row"] = np.arange(n_images)
        file[f"images/pixels/{pixels}x{pixels}"] = colours[:, place][:, :, place]
        x = (colours.reshape(n_images, -1) / 255 - 0.5).astype(np.float32)
        for name, n_voxels in subjects.items():
            group = file.create_group(f"subjects/{name}")
            facts = {
                "dataset": "bench",
                "scanner": "none",
                "space": "",
                "account": "",
                "digest": name,
            }
            group.attrs.update(facts, normalise="none")
            y = x @ rng.standard_normal((x.shape[1], n_voxels), np.float32)
            y += y.std() * rng.standard_normal(y.shape, np.float32)
            data = (y / y.std()).astype(np.float16)
            group.create_dataset("responses", data=data, chunks=(1, n_voxels))  # as crowd files do
            group["session_moments"] = np.zeros((2, 1, n_voxels), np.float32)
            group["trials/image"] = np.arange(n_images, dtype=np.int32)
            for column in ("session", "repeat"):
                group[f"trials/{column}"] = np.zeros(n_images, np.int32)
            for column in ("hemisphere", "areas"):
                group.create_dataset(f"voxels/{column}", data=[""] * n_voxels, dtype=TEXT)
            group["voxels/ncsnr"] = np.full(n_voxels, np.nan, np.float32)


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Filled at the end: how many cores others used meanwhile, and the names of those processes
    that are still there.

    Linux says how busy all cores were; elsewhere it is the load less our own threads, nameless.
    """
    found: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    before, busy, start = _processes(), _busy_seconds(), time.perf_counter()
    yield found
    took, after = time.perf_counter() - start, _processes()
    found["load_after"] = os.getloadavg()[0]
    used = [(name, s - before.get(i, (name, 0))[1]) for i, (name, s) in after.items()]
    found["names"] = sorted({name for name, s in used if s > 0.05 * took})
    cores = found["load_after"] - torch.get_num_threads()
    if busy is not None:
        cores = ((_busy_seconds() or 0) - busy) / took
    found["cores"] = max(0.0, cores)


def _busy_seconds() -> float | None:
    """Processor time so far, of all cores and everybody but this process and its ended children."""
    with suppress(OSError):
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        ticks = sum(map(int, (user, nice, system, *rest)))  # without idle cores, with stolen time
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
    return None


def _processes() -> dict[int, tuple[str, float]]:
    """Name and processor time so far of each process but this one and those that it started."""
    found, mine = {}, os.getpid()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):  # it has ended
            name, _, rest = path.read_text().partition("(")[2].rpartition(") ")
            number, fields = int(path.parent.name), rest.split()
            if mine not in (number, int(fields[1])):
                found[number] = name, sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return found


def _memory(sizes: Sizes, device: str, name: str) -> int:
    """Peak memory of a head's training step above what was there before it, in a process of its
    own.
    """
    job = json.dumps({"name": name, "sizes": asdict(sizes), "device": device})
    command = [sys.executable, "-m", "benchmarks.bench", job]
    where = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if run.returncode:
        raise UbrainError(f"the memory of {name} could not be measured: {run.stderr[-300:]}")
    return int(run.stdout.split()[-1])


def _extra_bytes(job: dict[str, Any]) -> int:
    """What a process measures that `_memory` has started."""
    device, sizes = choose_device(job["device"]), from_mapping(Sizes, job["sizes"], "job")
    form, precision = job["name"].split()
    small, setup = (Setup(s, device) for s in (replace(sizes, images=1, voxels=16), sizes))
    small.run(getattr(small, form), "training", precision)  # libraries are loaded
    before = peak(device, reset=True)
    setup.run(getattr(setup, form), "training", precision)
    return max(peak(device) - before, 1)


def peak(device: torch.device, reset: bool = False) -> int:
    """Highest memory so far, in bytes; on CUDA since the last reset."""
    if device.type != "cuda":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)


def write_json(found: dict[str, Any], path: Path) -> None:
    """The measurements as a file."""
    write_text(path, json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):  # a process that `_memory` has started
        print(_extra_bytes(json.loads(sys.argv[1])))
    else:
        from ubrain.cli import main

        sys.argv.insert(1, "bench")
        main()
