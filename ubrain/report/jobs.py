"""A command as a job of SLURM, by submitit (`pip install submitit`), and what it asks for."""

import ctypes
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ubrain.errors import UbrainError, some

JOB = "UBRAIN_JOB"  # a variable that commands in a job find
PATIENCE = 30.0  # seconds that an interrupted command gets to end
# Python, until it listens to the signal for `checkpoint`, which would kill it.
DEAF = """sh -c 'trap "" USR2; exec "$0" "$@"'"""
PR_SET_PDEATHSIG = 1  # of sys/prctl.h
# What is said to submitit, but is no field of `Resources`
OURS = ("additional_parameters", "dependency", "job_name", "srun_args", "stderr_to_stdout")
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)


@dataclass(frozen=True)
class Resources:
    """What a job asks for, of each of its nodes."""

    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    mem: float = 0  # GB; 0: what the cluster gives
    time: int = 60  # minutes
    nodes: int = 1
    processes: int = 0  # that train together on a node; 0: one for each GPU
    parallel: int = 256  # jobs at the same time
    timeouts: int = 10  # starts anew after a timeout; of less than 10 minutes: or a preemption
    setup: tuple[str, ...] = ()  # lines of shell before the command
    slurm: Mapping[str, Any] = field(default_factory=dict)  # slurm_X: option X of sbatch


def read_resources(on: str, path: Path | None) -> Resources | None:
    """Where commands run: None is this machine.

    Parameters
    ----------
    on : local, or slurm.
    path : YAML file with fields of `Resources`, and `slurm_X: value` for any other option X of
        sbatch.

    Raises
    ------
    UbrainError
        If the file is not such a one, or submitit or SLURM are not installed.
    """
    if on not in ("local", "slurm"):
        raise UbrainError(f"--on {on}: expected local or slurm")
    if os.environ.get(JOB):  # such a command runs where it is
        return None
    if on == "local":
        if path is not None:
            raise UbrainError(f"--resources {path} is for --on slurm")
        return None
    resources = _resources(path) if path is not None else Resources()
    executor(Path("unused"), resources)
    return resources


def _resources(path: Path) -> Resources:
    from ubrain.report.runs import read_yaml_file  # takes a second, which no job needs

    given = read_yaml_file(path)
    known = {f.name: f for f in fields(Resources) if f.name != "slurm"}
    if not isinstance(given, dict):
        raise UbrainError(f"{path}: expected lines such as `gpus: 1`, of {', '.join(known)}")
    extra = {k: v for k, v in given.items() if str(k).startswith("slurm_")}
    values: dict[str, Any] = {k: v for k, v in given.items() if k not in extra}
    if taken := [k for k in extra if k.removeprefix("slurm_") in (*known, *OURS)]:
        raise UbrainError(f"{path}: {some(taken)}: ubrain says that to sbatch itself")
    if unknown := values.keys() - known:
        raise UbrainError(
            f"{path}: unknown {some(unknown)}; there are {', '.join(known)}, and slurm_X for any"
            " other option X of sbatch"
        )
    for name, value in values.items():
        kinds = (int, float) if name == "mem" else (int,)
        least = 0 if name == "timeouts" else known[name].default and 1
        if name == "setup":
            what = "a list of lines"
            fits = isinstance(value, list) and all(isinstance(line, str) for line in value)
        elif name == "partition":
            what, fits = "a name", isinstance(value, str)
        else:
            what = f"{'a number' if name == 'mem' else 'a whole number'}, at least {least:.0f}"
            fits = type(value) in kinds and least <= value < 1e6
        if not fits:
            raise UbrainError(f"{path}: {name} is {value!r}, expected {what}")
    values["setup"] = tuple(values.get("setup", ()))
    return Resources(**values, slurm={k.removeprefix("slurm_"): v for k, v in extra.items()})


def executor(folder: Path, resources: Resources, after: Sequence[str] = ()) -> Any:
    """submitit with these resources; UbrainError if it, or one of them, is not to be had."""
    try:
        import submitit
    except ImportError:
        raise UbrainError("--on slurm needs submitit: pip install submitit") from None
    r = resources
    options: dict[str, Any] = {
        "job_name": name_of(folder),
        "partition": r.partition,
        "nodes": r.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": r.cpus,
        "srun_args": [f"--cpus-per-task={r.cpus}"],  # since 22.05 it is not that of the job
        "gpus_per_node": r.gpus or None,
        "mem": f"{round(r.mem * 1024)}M" if r.mem else None,
        "time": r.time,
        "setup": list(r.setup),
        "array_parallelism": r.parallel,
        "stderr_to_stdout": True,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
    }
    try:
        made = submitit.SlurmExecutor(
            folder, r.timeouts, python=f"{DEAF} {shlex.quote(sys.executable)}"
        )
        own = {k: v for k, v in r.slurm.items() if k in made._valid_parameters()}
        others = {k: v for k, v in r.slurm.items() if k not in own}
        made.update_parameters(**{"additional_parameters": others, **options, **own})
    except RuntimeError:
        raise UbrainError(
            "--on slurm: there is no srun here; is this a machine of SLURM?"
        ) from None
    return made


def name_of(folder: Path) -> str:
    """Of the jobs of a folder, and of no others."""
    digest = hashlib.blake2b(str(folder).encode(), digest_size=4).hexdigest()
    return f"ubrain-{re.sub(r'[^A-Za-z0-9.-]+', '_', folder.parent.name)[:40]}-{digest}"


@dataclass
class Task:
    """A command as a job: submitit calls it on a node, and `checkpoint` when the job has to go.

    Attributes
    ----------
    words : the command, or under torchrun its arguments.
    log : gets what the last start of it prints.
    result : the file that it writes last.
    begun : seconds since 1970; a result that is older is that of an earlier command.
    processes : if not 0, it runs under torchrun, so many times on each node of the job.
    lock : of two jobs with the same task, the second finds it done.
    """

    words: Sequence[str]
    log: Path
    result: Path
    begun: float = 0
    processes: int = 0
    lock: Path | None = None
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False, repr=False)

    def done(self) -> bool:
        """Whether the result is there."""
        return self.result.exists() and self.result.stat().st_mtime >= self.begun

    def __call__(self) -> int:
        """Run the command, unless it is done; returns its exit code."""
        together = bool(self.processes)
        with nullcontext() if self.lock is None or together else FileLock(self.lock):
            if self.done():
                return 0
            words, node = self.words, int(os.environ.get("SLURM_NODEID", 0))
            if together:
                words = [*_torchrun(self.processes), *words]
            place = self.log.with_stem(f"{self.log.stem}-{node}") if node else self.log
            place.parent.mkdir(parents=True, exist_ok=True)
            cores = int(os.environ.get("SLURM_CPUS_PER_TASK", 1)) // (self.processes or 1)
            with open(place, "wb") as output:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={"OMP_NUM_THREADS": str(cores or 1), **os.environ, JOB: "1"},
                    preexec_fn=_of_a_job,
                )
            told = list[int]()  # submitit would pass over it
            signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
            while self._process.poll() is None:
                time.sleep(0.1)
            code, until = self._process.returncode, time.monotonic() + 20 * PATIENCE
            # Who is told to end, by SIGTERM alone, is cancelled or preempted. If this job ended by
            # itself in the time of grace, it would count as failed and not be queued again.
            while code and (told or code in STOPPED) and time.monotonic() < until:
                time.sleep(0.1)
            return code

    def checkpoint(self) -> Any:
        """End the command in order; what to queue in its place, None if it has just finished."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            until = time.monotonic() + PATIENCE
            while self._process.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
            self._process.kill()
        return None if self.done() else DelayedSubmission(replace(self))


def _of_a_job() -> None:
    """The signal for `checkpoint` goes to all processes of a job, and would kill a command."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Called by a process that was just started: if its parent dies, it gets SIGTERM (Linux)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _torchrun(processes: int) -> list[str]:
    """torchrun on this node of a job, that finds the others by what SLURM says of the job."""
    job, number = os.environ, os.environ["SLURM_JOB_ID"]
    options = {
        "nnodes": job["SLURM_JOB_NUM_NODES"],
        "nproc-per-node": str(processes),
        "rdzv-id": number,
        "rdzv-backend": "c10d",
        # The first node starts all. Two jobs on one machine must not meet: a port for each.
        "rdzv-endpoint": f"{job['SLURM_LAUNCH_NODE_IPADDR']}:{20000 + int(number) % 10000}",
        "rdzv-conf": f"is_host={int(job['SLURM_NODEID'] == '0')}",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "torch.distributed.run", *words]
