"""Everything about ubrain's speed and equality that needs a GPU card, in one run.

``python benchmarks/gpu.py --out FILE.json [--tiny] [--device cuda]`` should take less than 8
minutes on an H100, and needs no network and no package but torch, timm, h5py, numpy, pandas,
safetensors, pyyaml, tqdm and filelock. The crowd it reads is written by the script; the backbone
has random weights. The file is written anew after every section, and a section that fails says so
there; the others go on.

``--tiny --device cpu`` runs every section at a small size, without compiling; what needs CUDA says
so in the file. docs/scaling.md says which number is to be compared with which aim.
"""

import argparse
import importlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

if "--tiny" in sys.argv:
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # a compiler needs longer than all the rest
sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.profiler import ProfilerActivity, profile

from benchmarks import bench
from ubrain import kernels, parallel, train
from ubrain.backbone import Backbone
from ubrain.batches import Plan, prepared
from ubrain.config import BackboneConfig, EncoderConfig, TrainingConfig
from ubrain.crowd import Crowd
from ubrain.features import Images, Source, choose_source
from ubrain.model import UniversalEncoder
from ubrain.parallel import autocast
from ubrain.predict import Predictor, correlate, stream

NSD_BATCHES, NSD_EPOCHS = 2174, 30
NSD_IMAGES, NSD_VOXELS = 73_000, 316_000
NEEDS_CUDA = "needs CUDA"
SMALL_VIT = BackboneConfig("vit_tiny_patch16_224", "random", (0, 2), 64, adapter_rank=0)
HEAD_SECONDS = 150  # after which the section about the head begins no other form
Found = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What is measured, and where."""

    device: torch.device
    folder: Path
    tiny: bool

    @property
    def sizes(self) -> bench.Sizes:
        """The paper's sizes, or some that take no time."""
        if not self.tiny:
            return bench.PAPER
        vit = replace(SMALL_VIT, adapter_rank=2)
        return bench.Sizes(16, 40, 100, 17, (192,) * 2, 12, 8, vit, 4)

    @property
    def crowd(self) -> Path:
        """A crowd file: two subjects as large as NSD's, with fewer images."""
        path = self.folder / "crowd.h5"
        if not path.exists():
            n_voxels, n_images, pixels = (100, 60, 48) if self.tiny else (39_548, 600, 425)
            bench.write_crowd(path, {"S1": n_voxels, "S2": n_voxels}, n_images, pixels)
        return path

    @property
    def cuda(self) -> bool:
        """Whether there is a card."""
        return self.device.type == "cuda"

    def measure(self, work: Callable[[], Any], repeats: int = 7, warm: int = 3) -> Found:
        """Median seconds of some work, and the peak of the card's memory above what is there."""
        repeats, warm = (1, 1) if self.tiny else (repeats, warm)
        first = bench.timed(work, self.device)
        for _ in range(warm - 1):
            work()
        bench.finish(self.device)
        before = torch.cuda.memory_allocated(self.device) if self.cuda else 0
        highest = bench.peak(self.device, reset=True) if self.cuda else 0
        seconds = statistics.median(bench.timed(work, self.device) for _ in range(repeats))
        highest = bench.peak(self.device) if self.cuda else 0
        return {"seconds": seconds, "first_seconds": first, "peak_bytes": highest - before}


def card(run: Run, found: Found) -> None:
    """Names and versions, and what a large matrix product reaches."""
    for name in ("torch", "timm", "h5py", "numpy", "triton"):
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = None
    found |= {"python": platform.python_version(), "cpus": os.cpu_count(), "card": NEEDS_CUDA}
    if run.cuda:
        properties = torch.cuda.get_device_properties(run.device)
        found["card"], found["memory_bytes"] = properties.name, properties.total_memory
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    kinds = ("bf16", "tf32", "fp32") if run.cuda else ("fp32",)
    found["gflops"] = {kind: bench.matrix_product(run.device, kind) for kind in kinds}


def head(run: Run, found: Found) -> None:
    """Forward and training of the head in all forms; the most important first, in bf16."""
    setup, start = bench.Setup(run.sizes, run.device), time.monotonic()
    encoder, subject = setup.encoder, setup.encoder.subject("S")
    flex = flex_attention if run.tiny else torch.compile(flex_attention, dynamic=False)

    def project() -> list[Tensor]:
        return encoder.project(setup.tokens)

    def unpadded(level: Any, x: Tensor, query: Tensor) -> Tensor:
        """Pooled tokens (B, V, C): keys of size E, values of size C."""
        key = level.key(x) + encoder.positions()
        q, k = (t.to(x.dtype)[:, None] for t in (query.expand(len(x), -1, -1), key))
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if run.cuda else nullcontext():
            return F.scaled_dot_product_attention(q, k, x[:, None], scale=1.0)[:, 0]

    def folded(level: Any, x: Tensor, query: Tensor) -> Tensor:
        """Pooled tokens (B, V, C): keys of size C, and a bias for each voxel and token."""
        bias = (query @ encoder.positions().T).float()
        q = (query @ level.key.weight).to(x.dtype).expand(len(x), 1, -1, -1)

        def biased(score: Tensor, _image: Tensor, _head: Tensor, v: Tensor, p: Tensor) -> Tensor:
            return score + bias[v, p]

        return flex(q, x[:, None], x[:, None], score_mod=biased, scale=1.0)[:, 0]

    def respond(pool: Callable[[Any, Tensor, Tensor], Tensor]) -> Tensor:
        """As `kernels.respond_on_gpu`, with another attention."""
        projected, parts, dropout = project(), [], encoder.config.dropout
        shape = len(setup.target), len(subject), run.device
        keep = kernels.dropout_masks(encoder, *shape) if encoder.training else None
        levels: list[Any] = list(encoder.levels)
        for i, (level, x, w) in enumerate(
            zip(levels, projected, encoder.what(subject), strict=True)
        ):
            pooled = pool(level, x, encoder.queries(level, subject))
            terms = w, w @ level.fc2.weight, w @ level.fc2.bias
            shared = kernels.SharedTerms.of(level)
            parts.append(kernels.read_out(pooled, *terms, shared, keep and keep[i], dropout))
        return torch.stack(parts).sum(0)

    forms: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: kernels.respond_on_gpu(encoder, project(), subject),
        "plain": setup.reference,
        "ours, values not padded": partial(respond, unpadded),
        "flex attention, folded": partial(respond, folded),
        "tiles": lambda: kernels.respond(encoder, project(), kernels.voxel_terms(encoder, subject)),
        "plain, compiled": setup.compiled,
    }
    pairs = run.sizes.images * run.sizes.voxels
    for precision in ("bf16", "fp32"):
        limit = bench.matrix_product(run.device, "bf16") if precision == "bf16" and run.cuda else 0
        for name, form in forms.items():
            for work in bench.WORKS:
                key = f"{name}, {work}, {precision}"
                if time.monotonic() - start > HEAD_SECONDS:
                    found[key] = {"skipped": "no time left for this section"}
                elif name.startswith("flex") and work == "training" and not run.cuda:
                    found[key] = {"skipped": NEEDS_CUDA}
                else:
                    found[key] = attempt(run.measure, partial(setup.run, form, work, precision))
                if "seconds" in found[key]:
                    rate = pairs / found[key]["seconds"]
                    found[key]["m_pairs_per_second"] = rate / 1e6
                    if limit:
                        share = run.sizes.share(rate, work == "training", limit)
                        found[key]["share_of_limit"] = share
                encoder.zero_grad()
    encoder.eval()
    with autocast(run.device, "fp32"), torch.inference_mode():
        expected = setup.reference()
        found["largest difference from plain, in fp32, in standard deviations"] = {
            name: float((form() - expected).abs().max() / expected.std())
            for name, form in forms.items()
            if "seconds" in found[f"{name}, forward, fp32"]
        }
    found["computed without compiling"] = kernels.read_out._call is kernels.read_out._plain


def whole_step(run: Run, found: Found) -> None:
    """The paper's step in bf16: by part, as a whole without waiting in between, busy share."""
    rank = run.sizes.backbone.adapter_rank
    for adapters in (rank, 0):
        config = replace(run.sizes.backbone, adapter_rank=adapters)
        backbone = Backbone(config).to(run.device)
        step = bench.Step(run.sizes, run.device, "bf16", backbone)
        mine = found[f"adapters of rank {adapters}" if adapters else "no adapters"] = {}
        mine["as a whole"] = run.measure(partial(several, step, 5), repeats=3, warm=1)
        mine["as a whole"]["step_seconds"] = mine["as a whole"]["seconds"] / 5
        mine["allocated_bytes"] = torch.cuda.max_memory_allocated() if run.cuda else NEEDS_CUDA
        mine["parts_seconds"] = bench.parts_of(step, 1 if run.tiny else 7)
        mine["busy_share"] = busy_share(run, step, mine["as a whole"]["step_seconds"])
        del backbone, step


def several(step: Callable[[], None], n: int) -> None:
    """So many steps, without waiting for the card in between."""
    for _ in range(n):
        step()


def busy_share(run: Run, step: Callable[[], None], seconds: float, n: int = 5) -> float | str:
    """Share of a step's `seconds` in which the card computes or copies: the profiler would stretch
    them.
    """
    if not run.cuda:
        return NEEDS_CUDA
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        several(step, n)
        bench.finish(run.device)
    spans = sorted((e.time_range.start, e.time_range.end) for e in on_card(profiled.events()))
    busy, last = 0.0, -np.inf
    for start, end in spans:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    return busy / 1e6 / n / seconds


def on_card(events: Sequence[Any]) -> list[Any]:
    """What a card did, without the names that torch gives to stretches of time."""
    cuda = torch.autograd.DeviceType.CUDA
    return [e for e in events if e.device_type == cuda and not e.is_user_annotation]


def training(run: Run, found: Found) -> None:
    """`train.fit` from images of a crowd file, and its input alone; on to 30 epochs of NSD."""
    with Crowd(run.crowd) as crowd:
        subjects, start = crowd.subjects, time.monotonic()
        source = choose_source(crowd, run.sizes.backbone, run.device)
        found["images cache, seconds"] = time.monotonic() - start
        config = TrainingConfig(
            epochs=2 if run.tiny else 6,
            batch_images=run.sizes.images,
            voxels_per_step=run.sizes.voxels,
            precision="bf16",
            device=str(run.device),
            **bench.ONE_SUBJECT,
        )
        encoder = replace(run.sizes.encoder)
        plan = Plan(crowd, tuple(subjects), config, 0)
        batches = [b for epoch in range(config.epochs) for step in plan.steps(epoch) for b in step]
        for _ in prepared(source, batches[:4], run.device):
            pass
        seconds = bench.timed(
            lambda: [None for _ in prepared(source, batches, run.device)], run.device
        )
        found["input alone, batches per second"] = len(batches) / seconds
        once = replace(config, epochs=1)
        for name, settings in (("warm up", once), ("fit", config)):
            out = run.folder / name
            fit = partial(train.fit, source, subjects, encoder, settings, out=out)
            seconds = bench.timed(fit, run.device)
            found[f"{name}, seconds"] = seconds
        found["history"] = read_log(run.folder / "fit")
        found["steps"] = len(batches)
        found["steps per second, with validation and saving"] = rate = len(batches) / seconds
        found["30 epochs of NSD, minutes"] = NSD_EPOCHS * NSD_BATCHES / rate / 60
        # the same steps without adapters, from whatever is faster
        frozen = replace(run.sizes.backbone, adapter_rank=0)
        if run.cuda and not run.tiny:
            plain = choose_source(crowd, frozen, run.device)
            seconds = bench.timed(lambda: train.fit(plain, subjects, encoder, config), run.device)
            found["no adapters"] = {
                "from": "features" if plain.features else "images",
                "steps per second": len(batches) / seconds,
                "30 epochs of NSD, minutes": NSD_EPOCHS * NSD_BATCHES * seconds / len(batches) / 60,
            }
        else:
            found["no adapters"] = {"skipped": NEEDS_CUDA}


def prediction(run: Run, found: Found) -> None:
    """Responses of a subject, streamed to a float16 HDF5 file; and where that waits."""
    with Crowd(run.crowd) as crowd:
        backbone = Backbone(run.sizes.backbone).to(run.device)
        source = Source(crowd, None, backbone, Images(crowd, backbone, run.folder / "images"))
        config = replace(run.sizes.encoder, widths=backbone.widths, n_tokens=backbone.n_tokens)
        n_voxels, rows = crowd["S1"].n_voxels, np.arange(len(crowd.image_ids))
        encoder = UniversalEncoder(config, {"S1": n_voxels}).to(run.device)
        for memory in (2, 16):
            predictor = Predictor(encoder, "S1", memory=memory << 30, precision="bf16")
            for _ in stream(predictor, source, rows[: 2 * predictor.images]):
                pass
            with h5py.File(run.folder / f"predicted-{memory}.h5", "w") as file:
                out = file.create_dataset("responses", (len(rows), n_voxels), np.float16)

                def write(predictor: Predictor = predictor, out: Any = out) -> None:
                    for some, responses in stream(predictor, source, rows):
                        out[some[0] : some[-1] + 1] = responses

                rate = len(rows) * n_voxels / bench.timed(write, run.device)
                mine: Found = {"m_pairs_per_second": rate / 1e6}
                mine["NSD, minutes"] = NSD_IMAGES * NSD_VOXELS / rate / 60
                mine["images, voxels at a time"] = predictor.images, predictor.block
                mine["waits_seconds"] = waits(run, predictor, source, rows[:320], out)
            found[f"{memory} GiB"] = mine


@torch.inference_mode()
def waits(run: Run, predictor: Predictor, source: Source, rows: Any, out: Any) -> dict[str, float]:
    """Seconds of each part of a prediction, one after the other, nothing at the same time."""
    seconds = dict.fromkeys(("read", "copy in", "backbone", "head", "copy out", "write"), 0.0)
    for i in range(0, len(rows), predictor.images):
        some, marks = rows[i : i + predictor.images], [time.perf_counter()]

        def done(marks: list[float] = marks) -> None:
            bench.finish(run.device)
            marks.append(time.perf_counter())

        read = source.read(some)
        done()
        read = read.to(run.device)
        done()
        with autocast(run.device, "bf16"):
            tokens = source.levels(source.ready(read))
            done()
            projected = predictor.encoder.project(tokens)
            e = predictor.encoder.subject("S1")
            blocks = [e[v : v + predictor.block] for v in range(0, len(e), predictor.block)]
            parts = [predictor.encoder.respond(projected, block) for block in blocks]
        done()
        responses = torch.cat(parts, 1).float().cpu().numpy()
        done()
        out[some[0] : some[-1] + 1] = responses
        done()
        for name, (before, after) in zip(seconds, pairwise(marks), strict=True):
            seconds[name] += after - before
    return seconds


def equality(run: Run, found: Found) -> None:
    """Whether the card trains as the CPU does, bf16 as fp32, a killed training as one that was not,
    and two processes as one.
    """
    path = run.folder / "small.h5"
    bench.write_crowd(path, {"S1": 300, "S2": 300}, 60 if run.tiny else 400, pixels=64, seed=1)
    os.environ["UBRAIN_CACHE"] = str(run.folder / "small")
    job: Found = {"crowd": str(path), "device": str(run.device), "subjects": ["S1"], "seed": 0}
    found |= {"device": NEEDS_CUDA + ": here the CPU with itself"} if not run.cuda else {}
    steps = {"epochs": 3 if run.tiny else 50, "batch_images": 1000, "voxels_per_step": 256}

    def history(**settings: Any) -> list[dict[str, float]]:
        return fitted({**job, **settings})[1]

    def cpu_and_card() -> Found:
        losses = [
            [row["loss"] for row in history(device=device, training=steps, dropout=0.0)]
            for device in ("cpu", str(run.device))
        ]
        return {"steps": len(losses[0]), "losses": losses, "most": difference(*losses)}

    epochs = {"epochs": 2 if run.tiny else 12, "batch_images": 16, "voxels_per_step": 256}

    def bf16_and_fp32() -> Found:
        r = {}
        for precision in bench.PRECISIONS:
            encoder, _ = fitted({**job, "training": {**epochs, "precision": precision}})
            with Crowd(path) as crowd:
                source = choose_source(crowd, SMALL_VIT, torch.device("cpu"))
                predictor, rows = Predictor(encoder, "S1"), crowd["S1"].image_rows("val")
                r[precision] = float(np.nanmedian(correlate(predictor, source, "S1", rows)))
        return {"median_r on val": r, "difference": r["bf16"] - r["fp32"]}

    def killed_and_not() -> Found:
        killed = {**job, "training": epochs, "out": str(run.folder / "killed")}
        codes = [child({**killed, "die": True}).wait(), 0]
        losses = [
            [row["loss"] for row in fitted(j)[1]] for j in (killed, {**job, "training": epochs})
        ]
        return {"exit code of the killed": codes[0], "losses": losses, "most": difference(*losses)}

    def two_and_one() -> Found:
        both = {**job, "subjects": ["S1", "S2"], "training": {**epochs, "batches_per_step": 2}}
        alone = [row["loss"] for row in fitted(both)[1]]
        out = run.folder / "two"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        children = [
            child({**both, "out": str(out)}, {**shared, "RANK": str(rank), "LOCAL_RANK": "0"})
            for rank in range(2)
        ]
        try:
            codes = [c.wait(timeout=120) for c in children]
        finally:
            for c in children:
                c.kill()
        if any(codes):
            return {"exit codes": codes, "nccl, one process": attempt(nccl_alone, run)}
        together = [row["loss"] for row in read_log(out)]
        return {"backend": "gloo", "losses": [alone, together], "most": difference(alone, together)}

    compiled = kernels.read_out._call
    for comparison in (cpu_and_card, bf16_and_fp32, killed_and_not, two_and_one):
        if comparison is killed_and_not:  # from here on nothing is compiled, as in the children
            kernels.read_out._call = kernels.read_out._plain
        found[comparison.__name__] = attempt(comparison)
    kernels.read_out._call = compiled
    failed = [name for name, f in found.items() if isinstance(f, dict) and "error" in f]
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}: {found[failed[0]]['error']}")


def difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest relative one of two rows of losses."""
    return max(abs(x - y) / max(abs(x), abs(y)) for x, y in zip(a, b, strict=True))


def nccl_alone(run: Run) -> Found:
    """A sum over a group of one, by NCCL."""
    if not run.cuda:
        return {"skipped": NEEDS_CUDA}
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        numbers = torch.ones(3, device=run.device)
        torch.distributed.all_reduce(numbers)
        return {"sum": numbers.tolist()}
    finally:
        torch.distributed.destroy_process_group()


def fitted(job: Found) -> tuple[UniversalEncoder, list[dict[str, float]]]:
    """An encoder, trained from cached features, and the history of its training."""
    with Crowd(job["crowd"]) as crowd, tempfile.TemporaryDirectory() as folder:
        source = choose_source(crowd, SMALL_VIT, torch.device("cpu"))
        encoder = EncoderConfig(embedding_size=32, channels=32, dropout=job.get("dropout", 0.25))
        settings = {**bench.ONE_SUBJECT, **job["training"], "device": job["device"]}
        config = TrainingConfig(**settings)
        out = Path(job.get("out", folder))
        made = train.fit(source, job["subjects"], encoder, config, job["seed"], out)
        return made, read_log(out) if (out / train.LOG).exists() else []


def read_log(folder: Path) -> list[dict[str, float]]:
    """The history that a training has written."""
    names, *rows = (line.split(",") for line in (folder / train.LOG).read_text().splitlines())
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


def child(job: Found, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """A process of its own that trains."""
    command = [sys.executable, __file__, "--tiny", "--job", json.dumps(job)]
    return subprocess.Popen(command, env={**os.environ, **(environment or {})})


def do(job: Found) -> None:
    """What such a process does; it may have to kill itself after the first epoch, and it shares its
    card with others, which NCCL refuses.
    """
    parallel.BACKENDS["cuda"] = "cpu:gloo,cuda:gloo"
    save = train.Trainee.save

    def save_and_die(self: train.Trainee, state: train.State) -> None:
        save(self, state)
        os.kill(os.getpid(), signal.SIGKILL)

    if job.get("die"):
        train.Trainee.save = save_and_die  # type: ignore[method-assign]
    fitted(job)


def kernels_of_a_step(run: Run, found: Found) -> None:
    """What takes most of the time of a step with adapters."""
    step = bench.Step(run.sizes, run.device, "bf16", Backbone(run.sizes.backbone).to(run.device))
    several(step, 3)
    bench.finish(run.device)
    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * run.cuda
    ) as profiled:
        step()
        bench.finish(run.device)
    name = "self_device_time_total" if run.cuda else "self_cpu_time_total"
    everything = profiled.key_averages()
    events = sorted(
        on_card(everything) if run.cuda else everything, key=lambda e: -getattr(e, name)
    )
    total = sum(getattr(e, name) for e in events)
    found["top"] = [
        {
            "name": e.key[:120],
            "calls": e.count,
            "ms": getattr(e, name) / 1e3,
            "share": getattr(e, name) / total,
        }
        for e in events[:15]
    ]
    found["of"] = "the card" if run.cuda else f"the CPU; {NEEDS_CUDA}"


SECTIONS = (card, head, whole_step, training, prediction, equality, kernels_of_a_step)


def attempt(work: Callable[..., Found], *arguments: Any, **options: Any) -> Found:
    """What the work finds; or why it failed."""
    try:
        return work(*arguments, **options)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return {"error": reason[:500], "where": traceback.format_exc()[-1500:]}


def main() -> None:
    """Run all sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file for the measurements")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, nothing compiled")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        do(json.loads(given.job))
        return
    if given.out is None:
        parser.error("--out is missing")
    parallel.keep_freed_memory()
    torch._dynamo.config.recompile_limit = 64  # one function, for all forms and precisions
    everything: Found = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "tiny": given.tiny}
    sections: dict[str, Found] = {}
    everything["sections"] = sections
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UBRAIN_CACHE"] = folder
        run = Run(parallel.choose_device(given.device), Path(folder), given.tiny)
        for section in SECTIONS:
            found = sections[section.__name__] = {}
            start = time.monotonic()
            with bench.watched() as others:
                failed = attempt(lambda s=section, f=found: s(run, f) or {})
            found |= failed | {"seconds": time.monotonic() - start, "others": others}
            if run.cuda:
                torch.cuda.empty_cache()
            bench.write_json(everything, given.out)
            state = f"FAILED: {failed['error']}" if failed else "done"
            print(f"{section.__name__}: {state} in {found['seconds']:.1f} s", flush=True)
    if any("error" in found for found in sections.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
