"""Sweeps on a real SLURM: what is killed, preempted, timed out or broken costs no result, and
nothing is done twice.
"""

import dataclasses
import json
import logging
import os
import signal
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ubrain.errors import UbrainError
from ubrain.report import jobs, runs, slurm, sweep

# SLURM looks every 30 s whether a job ends within the delay and 30 s: it gets 10 to 40 s here.
BRIEF = jobs.Resources(partition="low", time=1, slurm={"signal_delay_s": 20})
ENOUGH = jobs.Resources(partition="low", time=10)
LONG = 55  # seconds: until something happens to the job


def in_background(project, n: int, resources: jobs.Resources) -> Future:
    """A sweep of n seeds in a thread."""
    arguments = (project.grid(n), project.out, 1, None, resources)
    return ThreadPoolExecutor(1).submit(sweep.sweep, *arguments)


def job_of(project, seed: int) -> str:
    """Number of the job that was queued last for a seed."""
    return json.loads((project.out / "jobs" / slurm.JOBS).read_text())[f"{seed}-seed_{seed}"]


def test_of_eight_two_are_killed_one_preempted_one_timed_out_and_one_fails(queue, project, caplog):
    caplog.set_level(logging.INFO)
    project.sleeps({2: [LONG], 3: [LONG], 4: [LONG], 5: [-1], 6: [LONG, LONG]})
    running = in_background(project, 8, BRIEF)
    queue.wait_for(lambda: len(project.started()) == 8)
    queue.run("scancel", "--signal=KILL", job_of(project, 2))
    os.kill(int((project.out / "runs" / "3-seed_3" / "job.pid").read_text()), signal.SIGKILL)
    queue.wait_for(lambda: len(project.finished()) == 3)
    queue.run("srun", "--partition=high", "--exclusive", "sleep", "1")  # needs the whole node
    table, errors = running.result(150)
    assert set(errors) == {f"{seed}-seed_{seed}" for seed in (2, 3, 5)}
    assert errors["5-seed_5"] == "ubrain: broken on purpose"
    for seed, state in ((2, "CANCELLED"), (3, "FAILED")):
        assert f"left no result; SLURM says {state}" in errors[f"{seed}-seed_{seed}"]
    assert sorted(table["seed"]) == [0, 1, 4, 6, 7]
    starts = project.started()
    assert {seed: starts[seed] for seed in range(6)} == {0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 1}
    assert starts[6] == 3

    table, errors = sweep.sweep(project.grid(8), project.out, resources=ENOUGH)
    assert not errors
    assert sorted(table["seed"]) == list(range(8))
    assert project.finished() == Counter(range(8))
    assert project.started() == starts + Counter([2, 3, 5])


def test_a_controller_that_dies_and_comes_back_costs_nothing(queue, project, caplog):
    project.sleeps({1: [15], 2: [15]})
    running = in_background(project, 3, ENOUGH)
    queue.wait_for(lambda: len(project.started()) == 3)
    queue.kill_controller()
    queue.wait_for(lambda: "SLURM does not answer" in caplog.text)
    queue.start_controller()
    table, errors = running.result(100)
    assert not errors
    assert sorted(table["seed"]) == [0, 1, 2]
    assert project.started() == project.finished() == Counter(range(3))


def test_a_job_that_is_held_is_named(queue, project, caplog):
    project.sleeps({0: [2]})
    running = in_background(project, 2, dataclasses.replace(ENOUGH, slurm={"hold": True}))
    queue.wait_for(lambda: "is held" in caplog.text)
    number = job_of(project, 0)
    assert f"`scontrol release {number}`" in caplog.text
    queue.run("scontrol", "release", number.partition("_")[0])
    assert not running.result(60)[1]


def test_ctrl_c_leaves_the_jobs_and_the_same_command_waits_for_them(
    queue, project, caplog, monkeypatch
):
    project.sleeps({0: [3], 1: [3]})
    caplog.set_level(logging.INFO)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slurm, "_ended", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep.sweep(project.grid(2), project.out, resources=ENOUGH)
    number = job_of(project, 0).partition("_")[0]
    assert f"2 jobs stay queued: the same command waits for them, `scancel {number}`" in caplog.text
    caplog.clear()
    _, errors = sweep.sweep(project.grid(2), project.out, resources=ENOUGH)
    assert "0 new jobs, 2 queued before, 0 done" in caplog.text
    assert not errors
    assert project.started() == project.finished() == Counter(range(2))


def test_two_jobs_of_one_run_do_it_once(queue, project):
    """As when the command died before it could note the first."""
    project.sleeps({0: [4]})
    running = in_background(project, 1, ENOUGH)
    queue.wait_for(lambda: project.started())
    task = jobs.Task(
        runs.command("98_ok", {"seed": 0}, project.out / "runs" / "0-seed_0"),
        project.out / "again.txt",
        project.out / "runs" / "0-seed_0" / "98_ok.json",
        lock=project.out / "jobs" / "0-seed_0.lock",
    )
    (number,) = slurm._submit([task], jobs.executor(project.out / "jobs", ENOUGH))
    assert not running.result(60)[1]
    queue.wait_for(lambda: queue.jobs()[number] == "COMPLETED")
    assert project.started() == project.finished() == Counter([0])


def test_a_wrong_partition_is_one_sentence(queue, project):
    wrong = jobs.Resources(partition="nowhere")
    with pytest.raises(UbrainError, match=r"does not take the jobs: .*invalid partition"):
        sweep.sweep(project.grid(2), project.out, resources=wrong)
    assert not project.started()


NOTED = """
import sys, time
from pathlib import Path

out, name = Path(sys.argv[1]), sys.argv[2]

def note(what):
    with open(out / "log.txt", "a") as log:
        log.write(f"{name} {what}\\n")

note("begins")
time.sleep(1)
if name == "05_d" and (out / "log.txt").read_text().count("05_d") == 1:
    sys.exit("ubrain: 05_d failed")
(out / f"{name}.json").write_text("{}")
note("ends")
"""


def test_notebooks_start_after_those_whose_trainings_they_read(queue, project, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    folder = project.out.parent / "notebooks"
    for name in ("00_a", "01_b", "02_c", "05_d"):
        (folder / f"{name}.py").write_text((folder / "98_ok.py").read_text())
    script = [sys.executable, "-S", "-c", NOTED, str(project.out)]
    monkeypatch.setattr(runs, "command", lambda notebook, given, out: [*script, notebook])
    arguments = ("0[0-5]_*", "smoke", None, 0, {}, project.out, False, ENOUGH)
    with pytest.raises(UbrainError, match=r"^05_d failed$"):
        slurm.run_notebooks(*arguments)
    log = (project.out / "log.txt").read_text().splitlines()
    assert log[:2] == ["00_a begins", "00_a ends"]
    assert log.index("01_b ends") < log.index("02_c begins")
    assert len(log) == 7
    assert "00_a: finished; 1 of 4 are done" in caplog.text
    assert "05_d: failed, see" in caplog.text
    outcomes = slurm.run_notebooks(*arguments)
    assert [outcome.notebook for outcome in outcomes] == ["00_a", "01_b", "02_c", "05_d"]
    log = (project.out / "log.txt").read_text().splitlines()
    assert log[7:] == ["05_d begins", "05_d ends"]
    left = list((project.out / runs.UNFINISHED).glob("*"))
    assert not left, "the next one runs all of them again"
