"""Several processes train what one does: same losses and weights, any number of processes on
resume, ends when one dies.

Processes are started as torchrun starts them, by forks of a server that has imported torch already;
and, where the launcher itself matters, by torchrun.
"""

import csv
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ubrain import checkpoint, parallel, train
from ubrain.cli import app
from ubrain.config import SimulationConfig, load_profile, recipes
from ubrain.crowd import Crowd
from ubrain.data.simulate import simulate_crowd
from ubrain.errors import UbrainError
from ubrain.features import Features, Source
from ubrain.parallel import Group, choose_device, interleave

PROFILE = load_profile("smoke")
TRAINING = replace(PROFILE.training, epochs=4, min_steps=0, batches_per_step=3, device="cpu")
CLOSE = {
    "rtol": 1e-5,
    "atol": 1e-6,
}  # float32 gradients summed in another order; seen: 2e-7 of the largest weight
PROMPT = 60  # seconds in which a job ends when one process has died; one or two on an idle machine


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A crowd of 4 subjects that differ in images and voxels, its features, and a folder for runs,
    with that of one process.
    """
    folder = tmp_path_factory.mktemp("distributed")
    place = SimpleNamespace(folder=folder, crowd=folder / "crowd.h5", cache=folder / "cache")
    for subjects, images, voxels in ((2, 60, 20), (1, 110, 70), (1, 80, 30)):
        simulate_crowd(
            place.crowd,
            SimulationConfig(subjects, images, 10, voxels),
            1,
            append=place.crowd.exists(),
        )
    fit(place, "whole")
    return place


@contextmanager
def source_of(place):
    with Crowd(place.crowd) as crowd:
        features = Features(crowd, PROFILE.backbone, place.cache / "features", "cpu")
        yield Source(crowd, features)


def fit(place, name, config=TRAINING, subjects=None):
    """Train into a folder of that name; the subjects whose embeddings this process has in the
    end.
    """
    with source_of(place) as source:
        out = None if name is None else place.folder / name
        return list(
            train.fit(
                source, subjects or source.crowd.subjects, PROFILE.encoder, config, 0, out
            ).embeddings
        )


def launch(size, work, *args):
    """Run `work(*args)` in so many processes: what each returned, the message of its error, or how
    it ended; and seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ubrain.cli", "ubrain.train", "ubrain.data.simulate", "pytest"])
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )  # as torchrun has one
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        context.Process(target=_rank, args=(r, size, store.port, pipes[r][1], work, args))
        for r in range(size)
    ]
    for process, (_, sender) in zip(ranks, pipes, strict=True):
        process.start()
        sender.close()
    start = time.monotonic()
    for process in ranks:
        process.join(max(1, 200 - time.monotonic() + start))
    hanging = [process for process in ranks if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"{len(hanging)} of {size} processes hang"
    told = [
        receiver.recv() if process.exitcode == 0 else process.exitcode
        for process, (receiver, _) in zip(ranks, pipes, strict=True)
    ]
    return SimpleNamespace(told=told, seconds=time.monotonic() - start)


def _rank(rank, size, port, pipe, work, args):
    torch.set_num_threads(1)
    parallel.PATIENCE = timedelta(
        minutes=3
    )  # so that none is left over for long if a test breaks off
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    try:
        pipe.send(work(*args))
    except UbrainError as error:
        pipe.send(str(error))


def this_rank():
    return int(os.environ["RANK"])


def log_of(folder):
    with open(folder / train.LOG) as file:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)])


def assert_the_same_training(a, b):
    np.testing.assert_allclose(log_of(a), log_of(b), **CLOSE)
    ours, theirs = (load_file(folder / checkpoint.WEIGHTS) for folder in (a, b))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    card = "README.md"  # by the command, not by `train.fit`
    names = [sorted(p.name for p in f.rglob("*") if p.name != card) for f in (a, b)]
    assert names[0] == names[1]


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_end_where_one_does(place, size):
    found = launch(size, fit, place, f"by {size}")
    assert_the_same_training(place.folder / f"by {size}", place.folder / "whole")
    assert len(found.told[0]) == 4
    assert all(found.told), "a process had nothing to do"


def test_the_plateau_schedule_is_that_of_one_process_too(place):
    config = replace(
        TRAINING, schedule="plateau", patience=0, threshold=0.05, epochs=5
    )  # the rate falls
    fit(place, "plateau whole", config)
    launch(2, fit, place, "plateau by 2", config)
    assert_the_same_training(place.folder / "plateau by 2", place.folder / "plateau whole")
    assert len(set(log_of(place.folder / "plateau whole")[:, 3])) > 1


def test_mixed_batches_are_shared_out_by_subject(place):
    paper = recipes()["paper"]["training"]
    config = replace(TRAINING, **paper, batches_per_step=1, epochs=2)
    fit(place, "mixed whole", config)
    launch(2, fit, place, "mixed by 2", config)
    assert_the_same_training(place.folder / "mixed by 2", place.folder / "mixed whole")


def fit_until(place, name, epoch):
    """As `fit`, killed in the middle of an epoch (counted from 0)."""
    steps = train.Plan.steps

    def dying(self, number):
        if number < epoch:
            return steps(self, number)
        train.loss_of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return steps(self, number)

    train.Plan.steps = dying
    return fit(place, name)


def test_a_training_goes_on_with_any_number_of_processes(place):
    for size, epoch in ((2, 1), (1, 2), (3, 3)):
        assert -signal.SIGKILL in launch(size, fit_until, place, "relay", epoch).told
        assert (
            json.loads((place.folder / "relay" / train.WORK / train.STATE).read_text())["epoch"]
            == epoch
        )
    launch(2, fit, place, "relay")
    assert_the_same_training(place.folder / "relay", place.folder / "whole")


def dies_in_the_last_process(place, name):
    return fit_until(place, name, 2) if this_rank() == 2 else fit(place, name)


def test_when_one_process_is_killed_the_others_end_and_say_so(place):
    found = launch(3, dies_in_the_last_process, place, "killed")
    assert found.seconds < PROMPT
    assert found.told[2] == -signal.SIGKILL
    for rank in (0, 1):
        assert f"process {rank} of 3 lost the others" in found.told[rank]
        assert "the same command continues" in found.told[rank]
    fit(place, "killed")
    assert_the_same_training(place.folder / "killed", place.folder / "whole")


def nan_in_the_last_process(place, name):
    if this_rank() == 1:
        train.loss_of = lambda predicted, *_: predicted.sum() * math.nan
    return fit(place, name)


def test_a_loss_that_is_not_finite_in_one_process_ends_all(place):
    found = launch(2, nan_in_the_last_process, place, "nan")
    assert found.seconds < PROMPT
    for told in found.told:
        assert "the loss became nan in epoch 1" in told


@pytest.mark.parametrize(
    ("size", "change", "subjects", "message"),
    [
        (
            2,
            {"batches_per_step": 1},
            None,
            r"2 processes need .* batches_per_step \(here 1; --batches-per-step\)",
        ),
        (2, {}, ["S3"], r"2 processes need at least as many subjects \(here 1\)"),
    ],
)
def test_more_processes_than_can_be_used_are_refused(place, size, change, subjects, message):
    for told in launch(size, fit, place, "refused", replace(TRAINING, **change), subjects).told:
        assert re.search(message, told)


def test_several_processes_need_a_folder(place):
    assert (
        launch(2, fit, place, None).told
        == ["several processes need a folder for what they share; give one as `out`"] * 2
    )


def with_another_folder(place, name):
    return fit(place, f"{name} {this_rank()}")


def with_other_epochs(place, name):
    return fit(place, name, replace(TRAINING, epochs=4 + this_rank()))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (with_another_folder, "process 1 does not see what process 0 writes"),
        (
            with_other_epochs,
            r"process 1 was started with other settings than process 0 \(training\)",
        ),
    ],
)
def test_processes_that_do_not_mean_the_same_training_are_refused(place, work, message):
    for told in launch(2, work, place, "apart").told:
        assert re.search(message, told)
    assert not list(place.folder.glob("apart*/*"))


def twice(place):
    return fit(place, "first") + fit(place, "second")


def test_two_trainings_in_one_job_are_the_same_bit_by_bit(place):
    assert len(launch(2, twice, place).told[0]) == 8
    for file in (train.LOG, checkpoint.WEIGHTS):
        assert (place.folder / "first" / file).read_bytes() == (
            place.folder / "second" / file
        ).read_bytes()


def summed(gradients):
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in gradients[0]]
    for parameter, gradient in zip(parameters, gradients[this_rank()], strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    group = Group(torch.device("cpu"))
    group.sum_gradients(parameters)
    return [p.grad.tolist() for p in parameters]


def test_gradients_are_added_up_and_none_counts_as_zero():
    told = launch(2, summed, [[[1.0, 2.0], [3.0, 4.0], None], [[10.0, 20.0], None, None]]).told
    assert told[0] == told[1] == [[11.0, 22.0], [3.0, 4.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("gpus", "name", "rank", "expected"),
    [
        (4, "auto", "2", "cuda:2"),
        (4, "cuda", "2", "cuda:2"),
        (4, "cuda:1", "2", "cuda:1"),
        (1, "auto", "2", "cuda"),  # the launcher shows each process its own GPU only
        (4, "cpu", "2", "cpu"),
    ],
)
def test_each_process_on_a_machine_takes_a_gpu_of_its_own(monkeypatch, gpus, name, rank, expected):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(
        torch, "zeros", lambda _, device: SimpleNamespace(device=torch.device(device))
    )
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize("batches_per_step", [1, 3])
def test_every_training_image_of_every_subject_is_shown_once_in_an_epoch(place, batches_per_step):
    with source_of(place) as source:
        crowd = source.crowd
        config = replace(TRAINING, batches_per_step=batches_per_step, voxels_per_step=25)
        for epoch in (0, 1):
            plan = train.Plan(crowd, tuple(crowd.subjects), config, 0)
            steps = plan.steps(epoch)
            assert len(steps) == plan.steps_per_epoch
            assert all(len(step) == batches_per_step for step in steps[:-1])
            for name in crowd.subjects:
                batches = [batch for step in steps for batch in step if batch.subject == name]
                assert len(batches) == plan.batches_of(name)
                shown = np.concatenate([batch.rows for batch in batches])
                np.testing.assert_array_equal(np.sort(shown), crowd[name].image_rows("train"))
                assert all(
                    len(set(batch.voxels)) == min(25, crowd[name].n_voxels) for batch in batches
                )
        assert len({batch.seed for step in steps for batch in step}) == sum(map(len, steps))


def test_every_subject_has_one_owner_and_the_work_is_shared_evenly():
    sizes = {f"S{i}": n for i, n in enumerate([300, 280, 40, 40, 35, 30, 20, 10, 5, 1])}
    for size in (1, 2, 3, 10):
        group, owned = Group(torch.device("cpu")), []
        group.size = size
        for group.rank in range(size):
            owned.append(group.own(sizes))
        assert sorted(name for own in owned for name in own) == sorted(sizes)
        assert all(owned)
        assert max(sum(sizes[n] for n in own) for own in owned) <= max(
            300, math.ceil(sum(sizes.values()) / size) + 40
        )


def test_neighbours_in_an_epoch_are_of_different_subjects():
    items = [(name, i) for name, n in (("a", 6), ("b", 3), ("c", 3)) for i in range(n)]
    order = [name for name, _ in interleave(items, {"a": 0, "b": 1, "c": 2})]
    assert order == list("abcaabcaabca"), order
    assert [i for name, i in interleave(items, {"a": 0, "b": 1, "c": 2}) if name == "a"] == list(
        range(6)
    )


def options(place, name, epochs=TRAINING.epochs):
    """Of `ubrain train`, for what `fit` trains."""
    given = {
        "crowd": place.crowd,
        "profile": "smoke",
        "epochs": epochs,
        "batches-per-step": 3,
        "device": "cpu",
        "out": place.folder / name,
    }
    return ["train", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]


def command(place, name):
    os.environ["UBRAIN_CACHE"] = str(place.cache)
    with redirect_stdout(StringIO()) as out, redirect_stderr(out):
        app(options(place, name), standalone_mode=False)
    return out.getvalue()


def test_the_command_gives_what_one_process_gives_and_only_the_first_speaks(place):
    found = launch(2, command, place, "command")
    assert found.told == [f"encoder of 4 subject(s): {place.folder / 'command'}\n", ""]
    assert_the_same_training(place.folder / "command", place.folder / "whole")


def workers_of(pid):
    """Processes that this one has started."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    return [
        int(child) for child, parent in map(str.split, table.splitlines()) if int(parent) == pid
    ]


def test_torchrun_ends_when_a_process_is_killed_and_its_checkpoint_is_good(place):
    config = replace(TRAINING, epochs=40)
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "ubrain.cli",
    ]
    environment = {**os.environ, "UBRAIN_CACHE": str(place.cache), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [*start, *options(place, "torchrun", config.epochs)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while (
        job.poll() is None and not (place.folder / "torchrun" / train.WORK / train.STATE).exists()
    ):
        time.sleep(0.01)
    os.kill(workers_of(job.pid)[-1], signal.SIGKILL)
    killed = time.monotonic()
    _, told = job.communicate(timeout=200)
    assert time.monotonic() - killed < PROMPT
    assert job.returncode != 0
    assert "SIGKILL" in told
    assert not (place.folder / "torchrun" / checkpoint.CONFIG).exists(), (
        "it was finished before it could be killed"
    )
    fit(place, "torchrun", config)
    assert len(log_of(place.folder / "torchrun")) == config.epochs
