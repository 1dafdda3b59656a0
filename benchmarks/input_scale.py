"""How many batches a second come from a crowd file that is larger than memory.

`python benchmarks/input_scale.py FOLDER` writes a crowd shaped like NSD (8 subjects, 39,548 voxels,
9,000 images each seen three times) and images at the size of a backbone into a folder, 28 GB of
random numbers, and reads training batches of 32 images and 5,000 voxels from it as training does.
"""

import argparse
import json
import os
import shutil
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch

from ubrain.batches import READERS, Plan, prepared
from ubrain.config import TrainingConfig, recipes
from ubrain.crowd import FORMAT, TEXT, VERSION, Crowd
from ubrain.features import SHARD, Images, Source

BLOCK = 500  # rows written at a time
SIZE = (224, 224)


def write_crowd(path: Path, subjects: int, voxels: int, images: int, repeats: int) -> None:
    """A crowd file of random responses; its images have 8 × 8 pixels, since nobody reads them."""
    rng, n = np.random.default_rng(0), images * subjects
    block = rng.normal(size=(BLOCK, voxels)).astype(np.float16)
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION)
        names = [f"{i:07d}" for i in range(n)]
        for column in ("id", "content"):
            file.create_dataset(f"images/{column}", data=names, dtype=TEXT)
        split = np.where(np.arange(n) % 10 == 0, 1, 0).astype(np.uint8)
        file.create_dataset("images/split", data=split)
        file.create_dataset("images/row", data=np.arange(n))
        file.create_dataset("images/shape", data=np.full((n, 2), 8, np.uint16))
        file.create_dataset("images/pixels/8x8", data=np.zeros((n, 8, 8, 3), np.uint8))
        for s in range(subjects):
            group, n_trials = file.create_group(f"subjects/S{s + 1}"), images * repeats
            group.attrs.update(dataset="random", scanner="7T", space="", digest=str(s))
            shape, chunks = (
                (n_trials, voxels),
                (1, voxels),
            )  # as `ubrain.data.crowdfile` writes them
            data = group.create_dataset("responses", shape, np.float16, chunks=chunks)
            for start in range(0, n_trials, BLOCK):
                data[start : start + BLOCK] = block[: n_trials - start]
            session = np.arange(n_trials) * 40 // n_trials
            moments = np.stack([np.zeros((40, voxels)), np.ones((40, voxels))])
            group.create_dataset("session_moments", data=moments.astype(np.float32))
            seen = rng.permutation(np.repeat(np.arange(images) + s * images, repeats))
            columns = {"image": seen, "session": session, "repeat": np.zeros(n_trials)}
            for column, values in columns.items():
                group.create_dataset(f"trials/{column}", data=values.astype(np.int32))
            for column in ("hemisphere", "areas"):
                group.create_dataset(f"voxels/{column}", data=[""] * voxels, dtype=TEXT)
            group.create_dataset("voxels/ncsnr", data=np.ones(voxels, np.float32))


def write_images(folder: Path, content: list[str]) -> None:
    """A complete cache of images, as `Images` would make it from large photographs."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (SHARD, 3, *SIZE), np.uint8)
    for number, start in enumerate(range(0, len(content), SHARD)):
        mine = content[start : start + SHARD]
        noise[: len(mine)].tofile(folder / f"{number:04d}.bin")
        about = {"content": mine, "shape": (3, *SIZE)}
        (folder / f"{number:04d}.json").write_text(json.dumps(about), encoding="utf-8")


def measure(folder: Path, sizes: dict[str, int], n_batches: int) -> dict[str, Any]:
    """Write the files if they are not there yet, and read batches."""
    path, root = folder / "crowd.h5", folder / "images"
    if not path.exists():
        write_crowd(path, **sizes)
    with Crowd(path) as crowd:
        stub: Any = SimpleNamespace(image_size=SIZE, interpolation="bicubic")
        if not root.exists():
            write_images(root / f"{SIZE[0]}x{SIZE[1]}-bicubic", list(crowd.content))
        source = Source(crowd, None, stub, Images(crowd, stub, root))
        config = TrainingConfig(**recipes()["ours"]["training"])
        plan = Plan(crowd, tuple(crowd.subjects), config, seed=0)
        warm_up, steps = 20, plan.steps(0)
        batches = (batch for step in steps for batch in step)
        ready = prepared(source, batches, torch.device("cpu"), READERS)
        for _ in islice(ready, warm_up):
            pass
        start, used = time.perf_counter(), time.process_time()
        n = sum(1 for _ in islice(ready, n_batches))
        seconds, cpu = time.perf_counter() - start, time.process_time() - used
        ready.close()
    files = [path, *root.rglob("*.bin")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "batches_per_second": n / seconds,
        "cpu_seconds_per_batch": cpu / n,
        "batches": n,
        "bytes_on_disk": sum(f.stat().st_size for f in files),
        "bytes_of_memory": memory,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files are written, and left")
    for name, default in (("subjects", 8), ("voxels", 39548), ("images", 9000), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", type=int, default=600)
    parser.add_argument("--remove", action="store_true", help="remove the files afterwards")
    given = vars(parser.parse_args())
    folder, n_batches, remove = given.pop("folder"), given.pop("batches"), given.pop("remove")
    folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(measure(folder, given, n_batches), indent=1))
    if remove:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
