"""How fast and frugal the encoder's head is, against its formulas as they read, in one run.

The reference is `UniversalEncoder` with `fast = False`, ours is the same encoder with
`ubrain.kernels`. `ubrain bench` and `python benchmarks/bench.py` are the same command.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ubrain import kernels
from ubrain.backbone import Backbone, shifted
from ubrain.config import BackboneConfig, EncoderConfig, TrainingConfig
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.optim import EmbeddingAdam, Rate
from ubrain.parallel import autocast, choose_device
from ubrain.paths import write_text
from ubrain.progress import log
from ubrain.train import loss_of

KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "baddbmm_", "linear", "mkldnn_linear"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "gelu": ("gelu", "gelu_backward"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "dropout masks": ("random_", "ge"),
    "copies and conversions": ("copy_", "_to_copy", "clone"),
    "sums": ("sum",),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured; the defaults are the paper's sizes."""

    images: int = 32
    voxels: int = 5000
    crowd: int = 316_000  # voxels of all subjects, of which `voxels` are drawn in a step
    tokens: int = 257
    width: int = 1024
    levels: int = 5
    embedding_size: int = 256
    channels: int = 128

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder of these sizes."""
        return EncoderConfig(
            (self.width,) * self.levels, self.tokens, self.embedding_size, self.channels
        )

    def multiply_adds(self, train: bool, itemsize: int = 4) -> float:
        """Of the product's form, for one image and one voxel, with what training computes twice."""
        attend, mlp = self.tokens * self.channels, 4 * self.channels**2
        if not train:
            return self.levels * (2 * attend + mlp)
        layers = self.images * self.voxels * 6 * self.channels * itemsize
        again = attend + (attend + mlp) * max(0, 1 - kernels.KEEP / layers)
        return self.levels * (6 * attend + 3 * mlp + again)


class Setup:
    """An encoder with random weights, random tokens and random responses."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.sizes, self.device = sizes, device
        self.encoder = UniversalEncoder(sizes.encoder, {"S": sizes.voxels}).to(device)
        shape = (sizes.images, sizes.tokens, sizes.width)
        self.tokens = [torch.randn(shape, device=device) for _ in range(sizes.levels)]
        self.target = torch.randn(sizes.images, sizes.voxels, device=device)

    def train(self, precision: str = "fp32", fast: bool = True) -> None:
        """Forward and backward of the kernels, or of the formulas as they read."""
        self.encoder.fast = fast
        self.encoder.train().zero_grad()
        with autocast(self.device, precision):
            predicted = self.encoder(self.tokens, "S")
        loss_of(predicted.float(), self.target, TrainingConfig()).backward()

    @torch.inference_mode()
    def predict_reference(self) -> None:
        """Responses by the formulas as they read."""
        self.encoder.fast = False
        self.encoder.eval()(self.tokens, "S")

    @torch.inference_mode()
    def prepare(self) -> None:
        """What prediction computes once per subject."""
        self.terms = kernels.voxel_terms(self.encoder.eval(), self.encoder.subject("S"))

    @torch.inference_mode()
    def predict(self) -> None:
        """Responses by the kernels."""
        kernels.respond(self.encoder.eval(), self.encoder.project(self.tokens), self.terms)


def bench(sizes: Sizes, rounds: int = 3, device: str = "auto") -> dict[str, Any]:
    """Measure everything; the rounds alternate between the forms, so that a drift of the machine
    meets all of them.

    Returns
    -------
    seconds (median over rounds), ratios (median over rounds of the ratio within a round),
    pairs_per_second, extra_bytes (peak memory of a training step above what was there before),
    matrix_product (GFLOP/s), share_of_limit, where (share of the time of a training step by kind of
    operation), conditions.
    """
    # first: on Linux a process starts with the peak memory of the one that starts it
    memory = _memory(sizes, device)
    place = choose_device(device)
    setup = Setup(sizes, place)
    small = Setup(replace(sizes, voxels=min(200, sizes.voxels)), place)
    forms: dict[str, Callable[[], None]] = {
        "train reference": lambda: setup.train(fast=False),
        "train fp32": setup.train,
        "train bf16": lambda: setup.train("bf16"),
        "predict reference": setup.predict_reference,
        "predict fp32": setup.predict,
    }
    for form in (
        lambda: small.train(fast=False),
        small.train,
        lambda: small.train("bf16"),
        small.prepare,
        small.predict,
    ):
        form()  # warm up: libraries are loaded, memory is mapped
    setup.prepare()
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    limit: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for i in range(rounds):
        log.info("round %d of %d", i + 1, rounds)
        for name, form in forms.items():
            seconds[name].append(_time(form, place))
        for precision, found in limit.items():
            found.append(_matrix_product(place, precision))
    where = {p: _where(setup, p) for p in ("fp32", "bf16")}
    return _summary(sizes, seconds, limit, _crowd(sizes, place, rounds), memory, where, place)


def _summary(
    sizes: Sizes,
    seconds: dict[str, list[float]],
    limit: dict[str, list[float]],
    crowd: dict[str, list[float]],
    memory: dict[str, int],
    where: dict[str, dict[str, float]],
    device: torch.device,
) -> dict[str, Any]:
    def ratio(above: list[float], below: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    seconds = seconds | crowd
    median = {name: statistics.median(values) for name, values in seconds.items()}
    gflops = {p: statistics.median(values) for p, values in limit.items()}
    pairs = sizes.images * sizes.voxels
    work = {"train fp32": (True, 4), "train bf16": (True, 2), "predict fp32": (False, 4)}
    rates = {n: 2 * pairs * sizes.multiply_adds(*w) / median[n] / 1e9 for n, w in work.items()}
    return {
        "ratios": {
            "train_fp32": ratio(seconds["train reference"], seconds["train fp32"]),
            "train_bf16": ratio(seconds["train reference"], seconds["train bf16"]),
            "predict_fp32": ratio(seconds["predict reference"], seconds["predict fp32"]),
            "memory": memory["train fp32"] / memory["train reference"],
            "crowd": ratio(seconds["step in the whole crowd"], seconds["step in a small crowd"]),
        },
        "seconds": median,
        "rounds": seconds,
        "pairs_per_second": {name: pairs / s for name, s in median.items()},
        "extra_bytes": memory,
        "matrix_product": gflops,
        "share_of_limit": {name: rate / gflops[name.split()[1]] for name, rate in rates.items()},
        "where": where,
        "conditions": {
            **asdict(sizes),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": len(seconds["train fp32"]),
        },
    }


def table(found: dict[str, Any]) -> str:
    """The measurements as text."""
    c, r = found["conditions"], found["ratios"]
    pairs = {"train fp32": "train_fp32", "train bf16": "train_bf16", "predict fp32": "predict_fp32"}
    lines = [
        (
            f"{c['images']} images × {c['voxels']} voxels, {c['tokens']} tokens, {c['levels']}"
            f" levels, E {c['embedding_size']}, C {c['channels']}; {c['device']}, {c['threads']}"
            f" threads, torch {c['torch']}; medians of {c['rounds']} rounds"
        ),
        (
            f"{'':<24} {'seconds':>8} {'image·voxels/s':>15} {'extra memory':>13}"
            f" {'times faster':>13} {'of the limit':>13}"
        ),
    ]
    for name, s in found["seconds"].items():
        extra = f"{found['extra_bytes'][name] / 1e6:.0f} MB" if name in found["extra_bytes"] else ""
        ratio = f"{r[pairs[name]]:.2f}" if name in pairs else ""
        share = f"{found['share_of_limit'][name]:.0%}" if name in found["share_of_limit"] else ""
        lines.append(
            f"{name:<24} {s:>8.2f} {found['pairs_per_second'][name]:>15,.0f} {extra:>13}"
            f" {ratio:>13} {share:>13}"
        )
    products = ", ".join(f"{p} {g:.0f} GFLOP/s" for p, g in found["matrix_product"].items())
    lines += [
        f"limit: matrix products at {products}",
        f"extra memory of a training step, fp32: {r['memory']:.3f} of the reference's",
        f"step among {c['crowd']:,} voxels: {r['crowd']:.2f} × the step among {c['voxels']:,}",
    ]
    for precision, shares in found["where"].items():
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        lines.append(f"where a training step's time goes, {precision}: {kinds}")
    return "\n".join(lines)


def _time(work: Callable[[], Any], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matrix_product(device: torch.device, precision: str) -> float:
    """GFLOP/s of a square matrix product, the largest of 256 to 2048 rows that should take less
    than a fifth of a second.

    A processor without bf16 instructions needs half a minute for the largest.
    """
    n, seconds = 128, 0.0
    while n < 2048 and 8 * seconds < 0.2:
        n *= 2
        a = torch.randn(
            n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32
        )
        a @ a
        seconds = min(_time(partial(torch.mm, a, a), device) for _ in range(5))
    return 2 * n**3 / seconds / 1e9


def _where(setup: Setup, precision: str) -> dict[str, float]:
    """Share of the time of a training step by kind of operation, largest first."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (setup.device.type == "cuda")
    with profile(activities=activities) as run:
        setup.train(precision)
    kinds = {f"aten::{op}": kind for kind, ops in KINDS.items() for op in ops}
    shares: dict[str, float] = {}
    for event in run.key_averages():
        spent = (
            event.self_device_time_total
            if setup.device.type == "cuda"
            else event.self_cpu_time_total
        )
        kind = kinds.get(event.key, "the rest")
        shares[kind] = shares.get(kind, 0) + spent
    total = sum(shares.values())
    return {k: v / total for k, v in sorted(shares.items(), key=lambda item: -item[1])}


def _crowd(sizes: Sizes, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of whole training steps, optimisers included, when few and when many voxels exist to
    draw from.
    """
    steps = {
        name: _step(sizes, voxels, rounds + 1, device)
        for name, voxels in (
            ("step in a small crowd", sizes.voxels),
            ("step in the whole crowd", sizes.crowd),
        )
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            seconds[name].append(_time(step, device))
    return {name: found[1:] for name, found in seconds.items()}


def _step(sizes: Sizes, voxels: int, times: int, device: torch.device) -> Callable[[], None]:
    """A training step that can be made so many times, of a subject with so many voxels."""
    torch.manual_seed(0)
    encoder = UniversalEncoder(sizes.encoder, {"S": voxels}).to(device).train()
    tokens = [
        torch.randn(sizes.images, sizes.tokens, sizes.width, device=device)
        for _ in range(sizes.levels)
    ]
    target = torch.randn(sizes.images, min(sizes.voxels, voxels), device=device)
    shared = torch.optim.Adam(
        encoder.shared_parameters(), amsgrad=True, fused=device.type in ("cpu", "cuda")
    )
    own = EmbeddingAdam(encoder.subject("S"), amsgrad=True)
    own.plan([Rate(1e-3)] * times)

    def step() -> None:
        rows = torch.randperm(voxels, device=device)[: target.shape[1]]
        embedding = own.read(rows).requires_grad_()
        with autocast(device, "bf16"):
            predicted = encoder(tokens, embedding)
        loss_of(predicted.float(), target, TrainingConfig()).backward()
        shared.step()
        shared.zero_grad()
        assert embedding.grad is not None
        own.step(rows, embedding.detach(), embedding.grad)

    return step


def _memory(sizes: Sizes, device: str) -> dict[str, int]:
    """Peak memory of a training step above what was there before it, each in a process of its
    own.
    """
    found = {}
    for name in ("train reference", "train fp32", "train bf16"):
        job = json.dumps({"name": name, "sizes": asdict(sizes), "device": device})
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench", job],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise UbrainError(
                f"the memory of {name} could not be measured: {run.stderr.strip()[-300:]}"
            )
        found[name] = int(run.stdout.split()[-1])
    return found


def _extra_bytes(job: dict[str, Any]) -> int:
    device, sizes = choose_device(job["device"]), Sizes(**job["sizes"])
    steps = {
        "train reference": lambda s: s.train(fast=False),
        "train fp32": lambda s: s.train(),
        "train bf16": lambda s: s.train("bf16"),
    }
    step = steps[job["name"]]
    step(Setup(replace(sizes, images=1, voxels=16), device))  # libraries are loaded
    setup = Setup(sizes, device)
    before = _peak(device, reset=True)
    step(setup)
    return max(_peak(device) - before, 1)


def _peak(device: torch.device, reset: bool = False) -> int:
    """Highest memory so far, in bytes; on CUDA since the last reset."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)


def whole_step(
    sizes: Sizes, precision: str = "fp32", checkpointing: bool = True, device: str = "auto"
) -> dict[str, float]:
    """One training step of the paper's configuration: backbone with random weights and adapters,
    head, both optimisers.

    Returns
    -------
    Seconds of each part, and `peak_bytes`, the peak memory of the process (on CUDA: of the device)
    in all.
    """
    place = choose_device(device)
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(weights="random", checkpointing=checkpointing)).to(place)
    config = replace(sizes.encoder, widths=backbone.widths, n_tokens=backbone.n_tokens)
    encoder = UniversalEncoder(config, {"S": sizes.crowd}).to(place).train()
    own = EmbeddingAdam(encoder.subject("S"), amsgrad=True)
    trained = [*encoder.shared_parameters(), *(p for p in backbone.parameters() if p.requires_grad)]
    shared = torch.optim.Adam(trained, amsgrad=True, fused=place.type in ("cpu", "cuda"))
    images = torch.randn(sizes.images, 3, *backbone.image_size, device=place)
    target = torch.randn(sizes.images, sizes.voxels, device=place)
    rows = torch.randperm(sizes.crowd, device=place)[: sizes.voxels]
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def done(part: str) -> None:
        nonlocal last
        _finish(place)
        seconds[part], last = time.perf_counter() - last, time.perf_counter()

    own.plan([Rate(1e-3)])
    done("embeddings, once per 256 steps")
    embedding = own.read(rows).requires_grad_()
    done("embeddings, read")
    with autocast(place, precision):
        tokens = backbone(shifted(images, 3))
        done("backbone, forward")
        leaves = [t.detach().requires_grad_() for t in tokens]
        predicted = encoder(leaves, embedding)
    done("head, forward")
    loss_of(predicted.float(), target, TrainingConfig()).backward()
    done("head, backward")
    torch.autograd.backward(tokens, [t.grad for t in leaves])
    done("backbone, backward")
    shared.step()
    done("shared weights, update")
    assert embedding.grad is not None
    own.step(rows, embedding.detach(), embedding.grad)
    done("embeddings, update")
    return seconds | {"peak_bytes": float(_peak(place))}


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
