"""Commands of ubrain as jobs of SLURM, by submitit: queued once, started again after a preemption
or a timeout, and waited for.

What a command has finished is known by the file that it writes last. All else can be interrupted at
any moment: a command that is started again goes on from its checkpoints and from the cache.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ubrain import paths, resume
from ubrain.errors import UbrainError
from ubrain.progress import log
from ubrain.report import jobs, runs
from ubrain.report.jobs import Resources, Task

JOBS = "jobs.json"  # name -> number of the job that was queued last
EVERY = 10.0  # seconds between two looks at the queue
SETTLE = 60.0  # seconds that files of a job that is gone may need to be seen here
# Final states: a job in any other one is queued, runs, or will do so again.
OVER = (
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED GONE NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT"
)
# Notebooks whose trainings others read; those that are not listed read the crowd of 00.
AFTER = {"00": (), "00b": (), "02": ("00", "01"), "04": ("00", "01")}


def run_notebooks(
    pattern: str,
    profile: str,
    crowd: str | None,
    seed: int,
    parameters: Mapping[str, Any],
    out: Path | None,
    without_images: bool,
    resources: Resources,
    split_scheme: str | None = None,
) -> list[runs.Outcome]:
    """`ubrain.report.runs.run_notebooks` with a job for each notebook; those whose trainings others
    read end before these start.
    """
    sources = runs.find_notebooks(pattern)
    given = runs.check_settings(sources, profile, crowd, seed, parameters, split_scheme)
    run, folder = runs.place_of(given, out)
    names = {source.stem.split("_")[0]: source.stem for source in sources}
    place, more = folder / runs.UNFINISHED / f"jobs-{run}", ["--without-images"] * without_images
    with resume.work(place, {"run": run, "more": more}, f"the jobs of {run}") as work:
        begun = (work / resume.SETTINGS).stat().st_mtime
        tasks, after = dict[str, Task](), dict[str, list[str]]()
        for short, name in names.items():
            words = [*runs.command(name, given, folder), *more]
            tasks[name] = Task(words, work / f"{name}.txt", folder / f"{name}.json", begun)
            after[name] = [names[n] for n in AFTER.get(short, ("00",)) if n in names]
        errors = []
        for name, error in run_all(tasks, work, resources, after):
            n_done = sum(task.done() for task in tasks.values())
            how = f"failed, see {tasks[name].log}" if error else "finished"
            log.info("%s: %s; %d of %d are done", name, how, n_done, len(tasks))
            errors += [error.removeprefix("ubrain: ")] if error else []
        if errors:
            raise UbrainError("\n".join(errors))
    return [runs.Outcome(n, t.result, runs.compare(run, t.result)) for n, t in tasks.items()]


def train(out: Path, result: Path, resources: Resources) -> None:
    """This very command as a job, with torchrun on each of its nodes if several processes train.

    Parameters
    ----------
    out : folder of the encoder.
    result : the file that is written last, also by a command that finds the training finished.
    """
    processes = resources.processes or resources.gpus or 1
    together = processes if processes * resources.nodes > 1 else 0
    words = [*([] if together else [sys.executable]), "-m", "ubrain.cli", *sys.argv[1:]]
    # Other resources may continue a training, other options may not
    pairs = zip(sys.argv[1:], sys.argv, strict=False)
    said = [w for w, before in pairs if "--resources" not in (w.partition("=")[0], before)]
    place, settings = out.with_name(f"{out.name}-jobs"), {"command": said}
    with resume.work(place, settings, f"the job of {out}") as work:
        begun = (work / resume.SETTINGS).stat().st_mtime
        task = Task(words, work / "log.txt", result.resolve(), begun, together)
        for _, error in run_all({"train": task}, work, resources):
            if error:  # torchrun adds where in its own code it heard of it
                first = error.removeprefix("ubrain: ").splitlines()[0]
                raise UbrainError(f"{first}; see {task.log}")


def run_all(
    tasks: Mapping[str, Task],
    folder: Path,
    resources: Resources,
    after: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[str, str]]:
    """Queue what is neither done nor queued, and wait for everything.

    Parameters
    ----------
    tasks : by name; those with a result are left out.
    folder : for submitit, and for the numbers of the jobs; all machines see it. For one process.
    after : names of tasks that end before this one starts, one way or the other.

    Yields
    ------
    Name of a task that has ended, and what it died of; "" if it is done.

    Raises
    ------
    UbrainError
        If SLURM does not take a job.
    """
    if resources.nodes > 1 and not all(task.processes for task in tasks.values()):
        raise UbrainError(f"nodes is {resources.nodes}: only `ubrain train` uses more than one")
    folder.mkdir(parents=True, exist_ok=True)
    folder, after = folder.resolve(), after or {}
    file, name_of_all = folder / JOBS, jobs.name_of(folder)
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    if (states := _states(name_of_all)) is None:
        raise UbrainError(
            "squeue does not answer: is SLURM there, and is this machine a part of it?"
        )
    open_ = {name: task for name, task in tasks.items() if not task.done()}
    waiting = {n: known[n] for n in open_ if n in known and not _over(states, known[n])}
    new = [name for name in open_ if name not in waiting]
    log.info(
        "%d new jobs, %d queued before, %d done", len(new), len(waiting), len(tasks) - len(open_)
    )
    try:
        waves: dict[tuple[str, ...], list[str]] = {}
        for name in new:
            waves.setdefault(tuple(after.get(name, ())), []).append(name)
        for before in sorted(waves, key=len):
            names = waves[before]
            numbers = [waiting[name] for name in before if name in waiting]
            those = [replace(tasks[n], lock=folder / f"{n}.lock") for n in names]
            found = _submit(those, jobs.executor(folder, resources, numbers))
            known |= (queued := dict(zip(names, found, strict=True)))
            waiting |= queued
            paths.write_text(file, json.dumps(known, indent=1))
            log.info("queued as %s, logs in %s", found[0].partition("_")[0], folder)
        yield from _ended(tasks, waiting, folder, name_of_all)
    finally:
        if waiting:
            numbers = sorted({job.partition("_")[0] for job in waiting.values()})
            log.warning(
                "%d jobs stay queued: the same command waits for them, `scancel %s` cancels them",
                *(len(waiting), " ".join(numbers)),
            )


def _ended(
    tasks: Mapping[str, Task], waiting: dict[str, str], folder: Path, name_of_all: str
) -> Iterator[tuple[str, str]]:
    """The tasks, as they end; they are no longer waiting then."""
    since, held, silent = dict[str, float](), list[str](), False
    while waiting:
        time.sleep(EVERY)
        states = _states(name_of_all)
        if silent != (states is None):
            silent = not silent
            log.warning("SLURM does not answer; its jobs may go on" if silent else "SLURM is back")
        for name, job in list(waiting.items()):
            done, over = tasks[name].done(), states is not None and _over(states, job)
            if not (done or over):
                since.pop(name, None)
                state = (states or {}).get(job, "")
                if "held" in state.lower() and job not in held:
                    held.append(job)
                    log.warning("job %s is held (%s): `scontrol release %s`", job, state, job)
                continue
            said = "" if done else _reason(folder / f"{job}_0_result.pkl")
            settled = time.monotonic() >= since.setdefault(name, time.monotonic()) + SETTLE
            if not settled and (not over or said is None):
                continue
            error = ""
            if not done:
                state = (states or {}).get(job, "GONE")
                reason = f"job {job} left no result; SLURM says {state}" if said is None else said
                error = f"{runs.last_words(tasks[name].log)}\n{reason}".strip() or "said nothing"
            del waiting[name]
            yield name, error


def _reason(pickle: Path) -> str | None:
    """Why a job has not done its task, as it says itself; None if it says nothing."""
    from submitit.core.utils import pickle_load

    if not pickle.exists():
        return None
    kind, value = pickle_load(pickle)
    if kind == "success":
        return "" if value else None
    return value.strip().splitlines()[-1].rpartition("Error: ")[2]


def _over(states: Mapping[str, str], job: str) -> bool:
    return states.get(job, "GONE").split()[0] in OVER.split()


def _states(name: str) -> dict[str, str] | None:
    """Job -> its state and the reason for it, as far as SLURM remembers; None if it is silent."""
    command = ["squeue", "--me", f"--name={name}", "--states=all", "--array", "--noheader"]
    try:
        done = subprocess.run(
            [*command, "--format=%i %T %r"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def _submit(tasks: Sequence[Task], executor: Any) -> list[str]:
    """Queue tasks as one array; returns the numbers of their jobs."""
    try:
        with executor.batch():
            queued = [executor.submit(task) for task in tasks]
        return [str(job.job_id) for job in queued]
    except (RuntimeError, OSError) as error:
        text = " ".join(str(error).split())
        raise UbrainError(f"SLURM does not take the jobs: {text}") from None
