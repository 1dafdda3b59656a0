"""Commands that are killed at random moments, asked to end, or started twice at once.

What is there in the end is, byte for byte, what an undisturbed run leaves, and nothing else. Here
are a few moments each; with `UBRAIN_KILLS=50` in the environment that many, of all commands. Of
executed notebooks and logs, which hold times, only the names are compared.
"""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ubrain import cli, paths
from ubrain.config import SimulationConfig
from ubrain.data.simulate import simulate_crowd
from ubrain.report import sweep
from ubrain.resume import Sink

KILLS = int(os.environ.get("UBRAIN_KILLS", "0"))
QUICK = ("simulate", "arrays", "train", "predict")
WORDS = {
    "simulate": "simulate --out o.h5 --subjects 3 --images 20 --test-images 8 --voxels 30",
    "arrays": "import arrays --images {i}/images.npy --responses {i}/responses.npy --subject A"
    " --out o.h5",
    "train": "train --crowd {i}/crowd.h5 --out o --profile smoke --epochs 3",
    "predict": "predict --checkpoint {i}/encoder --images {i}/images.npy --subject S1 --out o.h5"
    " --batch 8",
    "transfer": "transfer --checkpoint {i}/encoder --crowd {i}/new.h5 --out o --profile smoke",
    "cache": "train --crowd {i}/many.h5 --out o --profile smoke --epochs 1",
    "sweep": "sweep {i}/grid.yaml --out o --jobs 2",
    "pack": "pack 98_short --profile smoke --out o.tar.xz",
}
NOTEBOOK = """# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0

# %%
import json
import os
import random
from pathlib import Path

from ubrain import paths, resume

large = paths.cache_root() / "kept/numbers.safetensors"
resume.make_once(large, lambda path: path.write_bytes(random.Random(0).randbytes(8 << 20)))
paths.note_use(large)
record = {"name": "r", "value": seed, "condition": "x", "subject": "S1", "low": None, "high": None}
document = {"commit": "c", "suite": None, "results": [{**record, "n": 7, "unit": "r"}]}
paths.write_text(Path(os.environ["UBRAIN_OUT"], "98_short.json"), json.dumps(document))
"""
# What the notebook does, without a kernel: a run of a sweep
RUN = """import json, sys, time
from pathlib import Path

time.sleep(0.3)
seed, out = int(sys.argv[1]), Path(sys.argv[2])
record = {"name": "r", "value": seed, "condition": "x", "subject": "S1", "low": None, "high": None}
document = {"commit": "c", "suite": None, "results": [{**record, "n": 7, "unit": "r"}]}
(out / "part").write_text(json.dumps(document))
(out / "part").rename(out / "98_short.json")
"""
TIMED = (".ipynb", ".txt")
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
    pytest.mark.timeout(0 if KILLS else 300),
]


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, save_encoder: Callable[[Path, Path], None]
) -> Path:
    """What the commands read."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    sizes = SimulationConfig(subjects=2, images=40, test_images=10, voxels=30, scanner="7T")
    simulate_crowd(folder / "crowd.h5", sizes, seed=0)
    simulate_crowd(folder / "new.h5", sizes, seed=1)
    save_encoder(folder / "crowd.h5", folder / "encoder")
    simulate_crowd(folder / "many.h5", replace(sizes, subjects=1, images=400), seed=2)
    (folder / "notebooks").mkdir()
    (folder / "notebooks/98_short.py").write_text(NOTEBOOK)
    (folder / "grid.yaml").write_text("{notebook: 98_short, parameters: {seed: [0, 1]}}")
    np.save(folder / "images.npy", rng.integers(0, 256, (200, 64, 64, 3), np.uint8))
    np.save(folder / "responses.npy", rng.normal(size=(200, 2000)).astype(np.float32))
    return folder


SERVER = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
SERVER.set_forkserver_preload(
    ["ubrain.train", "ubrain.exchange.transfers", "ubrain.report.lab", "jupytext", "papermill"]
)


def work(folder: Path, words: list[str]) -> None:
    """A command, in a process that has imported most of it, in a folder with a cache of its own."""
    os.chdir(folder)
    os.dup2(os.open(folder.with_suffix(f".{os.getpid()}.said"), os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    root = str(Path(paths.__file__).parents[1])
    os.environ |= {"UBRAIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"], sys.argv = root, ["ubrain", *words]
    torch.set_num_threads(1)
    if words[0] == "sweep":  # what a notebook leaves is not its concern
        script = [sys.executable, "-S", "-c", RUN]
        sweep._command = lambda _, out, name, point: [
            *(*script, str(point["seed"]), str(out / "runs" / name))
        ]
    cli.main()


class Started:
    """A command that has been started."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.process = SERVER.Process(target=work, args=(folder, words))
        self.process.start()
        self.said = folder.with_suffix(f".{self.process.pid}.said")

    def ended(self) -> bool:
        return self.process.exitcode is not None

    def stop(self, number: signal.Signals) -> None:
        if self.process.pid is not None and not self.ended():
            os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """Wait for it; its exit code, negative for a signal, and what it has said."""
        self.process.join()
        said = self.said.read_text() if self.said.exists() else ""
        self.said.unlink(missing_ok=True)
        return self.process.exitcode or 0, said


class Place:
    """A folder in which a command runs, with a cache of its own."""

    def __init__(self, folder: Path, inputs: Path) -> None:
        self.folder, self.inputs = folder, inputs
        folder.mkdir(parents=True)
        (folder / "notebooks").symlink_to(inputs / "notebooks")
        (folder / "pyproject.toml").touch()
        self.empty = set(os.listdir(folder))

    def start(self, command: str, *more: str) -> Started:
        return Started(self.folder, [*WORDS[command].format(i=self.inputs).split(), *more])

    def begun(self, process: Started) -> float:
        """Wait until something is written; the time."""
        while not process.ended() and set(os.listdir(self.folder)) == self.empty:
            time.sleep(0.002)
        return time.monotonic()

    def finish(self, command: str, *more: str) -> float:
        """Run a command to its end; how long it worked."""
        process = self.start(command, *more)
        began = self.begun(process)
        code, said = process.end()
        assert code == 0, said
        return time.monotonic() - began

    def files(self) -> list[tuple[str, str]]:
        """Name and digest of every file; those of a cache have names by chance."""
        found = []
        for path in (p for name in sorted(os.listdir(self.folder)) for p in self.below(name)):
            name = path.relative_to(self.folder).as_posix()
            name = f"*{path.suffix}" if name.startswith("cache/") else name
            content = b"" if path.suffix in TIMED else path.read_bytes()
            found.append((name, hashlib.sha256(content).hexdigest()))
        return sorted(found)

    def below(self, name: str) -> Iterator[Path]:
        top = self.folder / name
        if name not in self.empty:
            yield from (p for p in [top, *top.rglob("*")] if p.is_file())

    def half_written(self) -> list[str]:
        return [name for name, _ in self.files() if name.endswith(".partial")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Any:
    """`undisturbed("train", "--seed", "1")`: how long it works, and the files that it leaves."""

    @cache
    def run(*words: str) -> tuple[float, list[tuple[str, str]]]:
        place = Place(tmp_path_factory.mktemp("undisturbed") / "place", inputs)
        seconds = place.finish(*words)
        assert not place.half_written()
        return seconds, place.files()

    return run


@pytest.fixture
def new_place(tmp_path: Path, inputs: Path) -> Iterator[Callable[[], Place]]:
    numbers = count()
    yield lambda: Place(tmp_path / str(next(numbers)), inputs)
    shutil.rmtree(tmp_path, ignore_errors=True)


def commands() -> list[Any]:
    """All commands; those that take long only where many kills are asked for."""
    mark = pytest.mark.skipif(not KILLS, reason="slow: set UBRAIN_KILLS")
    return [name if name in QUICK else pytest.param(name, marks=mark) for name in WORDS]


@pytest.mark.parametrize("command", commands())
def test_killed_at_any_moment_it_ends_in_the_same_files(new_place, undisturbed, command) -> None:
    (seconds, expected), rng = undisturbed(command), random.Random(command)
    for number in range(2 * KILLS or 1):
        stop = (signal.SIGTERM, signal.SIGKILL)[(number + len(command)) % 2]
        place = new_place()
        process = place.start(command)
        place.begun(process)
        time.sleep(rng.random() * seconds)
        process.stop(stop)
        code, said = process.end()
        if stop == signal.SIGTERM:
            assert code in (143, 0), said
            assert code == 0 or said.splitlines()[-1].startswith("ubrain: stopped; ")
            assert not place.half_written()
        there = (place.folder / "o.h5").exists()  # finished, which some refuse to replace
        code, said = place.start(command).end()
        assert there or code == 0, said
        assert place.files() == expected, (number, said)
        shutil.rmtree(place.folder)


@pytest.mark.parametrize("command", commands())
def test_two_at_once_end_in_one_result(new_place, undisturbed, command) -> None:
    for _ in range(max(1, KILLS // 5)):
        place = new_place()
        both = [place.start(command) for _ in range(2)]
        ended = [process.end() for process in both]
        assert 0 in [code for code, _ in ended], ended
        for code, said in ended:
            if code:
                refusal = [line for line in said.splitlines() if line.startswith("ubrain: ")]
                assert len(refusal) == 1, said
                assert "another process" in refusal[0] or "exists" in refusal[0], said
        assert place.files() == undisturbed(command)[1]
        shutil.rmtree(place.folder)


def test_trainings_with_different_seeds_do_not_kill_each_other(new_place, undisturbed) -> None:
    for _ in range(max(1, KILLS // 5)):
        place = new_place()
        both = {seed: place.start("train", "--seed", seed) for seed in ("0", "1")}
        ended = {seed: process.end() for seed, process in both.items()}
        (won,) = [seed for seed, (code, _) in ended.items() if code == 0]
        (lost,) = {*both} - {won}
        said = ended[lost][1]
        assert "another process" in said or "other settings (seed was" in said
        assert place.files() == undisturbed("train", *["--seed", won] * (won != "0"))[1]
        shutil.rmtree(place.folder)


def test_a_signal_is_heard_when_hdf5_has_written(tmp_path, monkeypatch) -> None:
    """HDF5 crashes if what it calls to write raises an error: it is kept until HDF5 is done."""

    def write(sink: Sink, data: bytes) -> int:
        if sink.failure is None:  # a second one ends the process at once
            signal.raise_signal(signal.SIGTERM)
        return len(data)

    before = signal.signal(signal.SIGTERM, cli._terminate)
    monkeypatch.setattr(Sink, "write", write)
    try:
        with Sink(tmp_path / "a.h5", "w+") as sink:
            with h5py.File(sink, "w") as file:
                file["x"] = np.zeros(100_000)
            with pytest.raises(cli.Terminated):
                sink.check()
    finally:
        signal.signal(signal.SIGTERM, before)
