"""One notebook with many settings: the product of a grid, run in processes of their own or as jobs
of SLURM, resumable, as one table.
"""

import itertools
import json
import math
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ubrain import paths, resume
from ubrain.analysis.stats import t_interval
from ubrain.errors import UbrainError
from ubrain.progress import log
from ubrain.report import runs, slurm
from ubrain.report.jobs import Resources, Task, end_with_parent
from ubrain.report.results import Record

MOST_RUNS = 1000
TABLE, SUMMARY, LOG, FAILED = "table.csv", "summary.csv", "log.txt", "error.txt"
RECORD = tuple(Record.__dataclass_fields__)
PATIENCE = 20  # seconds that an interrupted run gets to end its kernel


@dataclass(frozen=True)
class Grid:
    """A notebook, and the values that each of its parameters takes.

    Attributes
    ----------
    swept : parameter -> values; a run for each combination, the last parameter changing fastest.
    fixed : parameter -> the one value it has in every run.
    """

    notebook: str
    swept: dict[str, list[Any]]
    fixed: dict[str, Any]

    @property
    def n_runs(self) -> int:
        """Number of combinations."""
        return math.prod(map(len, self.swept.values()))

    def settings(self) -> dict[str, Any]:
        """What decides the runs and their names; the order of the parameters does, too."""
        return {
            "notebook": self.notebook,
            "swept": [[name, values] for name, values in self.swept.items()],
            "fixed": self.fixed,
        }

    def runs(self) -> dict[str, dict[str, Any]]:
        """Name of each run -> the values of its swept parameters."""
        digits = len(str(self.n_runs - 1))
        found = {}
        for number, values in enumerate(itertools.product(*self.swept.values())):
            point = dict(zip(self.swept, values, strict=True))
            slugs = [runs.slug(name, value) for name, value in point.items()]
            found["-".join([f"{number:0{digits}d}", *slugs])[:100]] = point
        return found


def read_grid(path: Path, most_runs: int = MOST_RUNS) -> Grid:
    """Read a grid file, and make sure that every one of its runs can be started.

    The file is YAML: `notebook: 03_transfer` and `parameters: {seed: [0, 1, 2], profile: fast,
    n_images: [[25], [100]]}`. A list is swept over, anything else is fixed; a parameter that is
    itself a list is therefore written as a list of lists.

    Parameters
    ----------
    path : grid file (.yaml): notebook, and parameters of which lists are swept over.
    most_runs : refuse a grid with more runs.

    Raises
    ------
    UbrainError
        If the file is not such a grid, names an unknown notebook or parameter, has a value of a
        wrong type, or too many runs.
    """
    document = _document(path)
    parameters = {n: _absolute(v) if n == "crowd" else v for n, v in document["parameters"].items()}
    sources = runs.find_notebooks(document["notebook"])
    if len(sources) > 1:
        raise UbrainError(
            f"{path}: {document['notebook']!r} is {len(sources)} notebooks, a sweep runs one"
        )
    swept = {name: values for name, values in parameters.items() if isinstance(values, list)}
    for name, values in swept.items():
        if not values or len(set(map(repr, values))) < len(values):
            raise UbrainError(
                f"{path}: {name!r}: expected a list of different values, got {_short(values)}"
            )
    grid = Grid(sources[0].stem, swept, {n: v for n, v in parameters.items() if n not in swept})
    if grid.n_runs > most_runs:
        raise UbrainError(
            f"{path}: this grid has {grid.n_runs:,} runs; more than {most_runs:,} take a larger"
            " --max-runs"
        )
    _check(sources[0], grid, path)
    return grid


def sweep(
    grid: Grid,
    out: Path,
    jobs: int = 1,
    environment: Mapping[str, str] | None = None,
    resources: Resources | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Run what has not run yet, each run in a process and a folder of its own, and write the table
    of all results.

    An interrupted sweep continues when it is started again: finished runs are those with results,
    failed ones are tried again.

    Parameters
    ----------
    out : folder of the sweep: `settings.json`, `table.csv`, `summary.csv`, and `runs/<name>/` as of
        `ubrain run --out`.
    jobs : runs at the same time; each gets its share of the threads.
    environment : variables for the runs, in addition to ours.
    resources : of the jobs of SLURM that the runs are, instead of processes of this machine.

    Returns
    -------
    The table of all results, and the name of every failed run with its error.

    Raises
    ------
    UbrainError
        If the folder holds another grid, or is in use.
    """
    what = f"the sweep in {out}"
    with resume.locked(out, what):
        others = [p.name for p in out.iterdir() if p.name != resume.LOCK]
        if others and resume.SETTINGS not in others:
            raise UbrainError(
                f"{out} is not empty, and not the folder of a sweep; give another --out"
            )
        resume.same_settings(out, grid.settings(), what)
        todo = {n: point for n, point in grid.runs().items() if not _results(grid, out, n).exists()}
        if resources is None:
            log.info("%d of %d runs to do, %d at a time", len(todo), grid.n_runs, jobs)
            variables = {**os.environ, **(environment or {}), **_threads(jobs)}
            errors = _run_all(grid, out, todo, jobs, variables)
        else:
            errors = _queue_all(grid, out, todo, resources)
        table = collect(grid, out)
        paths.write_text(out / TABLE, table.to_csv(index=False))
        paths.write_text(out / SUMMARY, summary(table, grid).to_csv(index=False))
    return table, errors


def collect(grid: Grid, out: Path) -> pd.DataFrame:
    """Every number of every finished run.

    Returns
    -------
    One row per record: run, the swept parameters (lists as JSON), name, condition, subject, value,
    low, high, n, unit, commit.
    """
    rows = []
    for name, point in grid.runs().items():
        if (results := _results(grid, out, name)).exists():
            document = json.loads(results.read_text(encoding="utf-8"))
            columns = {column: _cell(point[p]) for p, column in _columns(grid).items()}
            rows += [
                {"run": name, **columns, **r, "commit": document["commit"]}
                for r in document["results"]
            ]
    table = pd.DataFrame(rows, columns=["run", *_columns(grid).values(), *RECORD, "commit"])
    if table["commit"].nunique() > 1:
        log.warning(
            "these runs were made by different versions of the code: %s",
            ", ".join(table["commit"].unique()),
        )
    return table


def summary(table: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """The numbers of a sweep in short: median over subjects in each run, then mean over seeds with
    Student's 95 % interval (NaN for one seed).

    Returns
    -------
    One row per swept parameters (without seed), name, condition and unit: mean, low, high, seeds,
    subjects.
    """
    keys = [c for p, c in _columns(grid).items() if p != "seed"] + ["name", "condition", "unit"]
    one = table.assign(value=pd.to_numeric(table["value"]), everybody=table["subject"] == "all")
    one = one[one["value"].notna()]
    one = (
        one.groupby([*keys, "everybody", "run"], sort=False, dropna=False)["value"]
        .agg(["median", "size"])
        .reset_index()
    )
    seeds = one.groupby([*keys, "everybody"], sort=False, dropna=False)
    found = seeds.agg(
        mean=("median", "mean"),
        low=("median", lambda x: t_interval(x).low),
        high=("median", lambda x: t_interval(x).high),
        seeds=("run", "nunique"),
        subjects=("size", "max"),
    ).reset_index()
    found["subjects"] = np.where(found.pop("everybody"), "all", found["subjects"].astype(str))
    return found


def show(short: pd.DataFrame, most: int = 60) -> str:
    """A summary as text; of a long one the first rows."""
    columns = short.assign(**{c: short[c].map("{:.4g}".format) for c in ("mean", "low", "high")})
    text = columns.head(most).to_string(index=False) if len(short) else "no results"
    return text + (
        f"\n... and {len(short) - most} more rows in {SUMMARY}" if len(short) > most else ""
    )


def _document(path: Path) -> dict[str, Any]:
    """The grid file as a mapping of `notebook` and `parameters`."""
    document = runs.read_yaml_file(path)
    shape = "expected `notebook: NAME` and `parameters: {name: value or list of values}`"
    if not isinstance(document, dict) or set(document) != {"notebook", "parameters"}:
        raise UbrainError(f"{path}: {shape}, got {_short(document)}")
    for key, kind in (("notebook", str), ("parameters", dict)):
        if not isinstance(document[key], kind):
            raise UbrainError(f"{path}: {key} is {_short(document[key])}; {shape}")
    return document


def _absolute(crowd: Any) -> Any:
    """The path of a crowd file, or of several, from wherever the sweep is continued."""
    if isinstance(crowd, list):
        return [_absolute(c) for c in crowd]
    return str(Path(crowd).resolve()) if isinstance(crowd, str) else crowd


def _check(source: Path, grid: Grid, path: Path) -> None:
    """Every value of every parameter, without going through the product."""
    first = {name: values[0] for name, values in grid.swept.items()}
    for point in [
        {**first, name: value} for name, values in grid.swept.items() for value in values
    ] or [{}]:
        try:
            runs.check_settings([source], "fast", None, 0, {**grid.fixed, **point})
        except UbrainError as error:
            hint = (
                "; in a grid a list is swept over, so write a list as [[...]]"
                if "expected a list" in str(error)
                else ""
            )
            raise UbrainError(f"{path}: {error}{hint}") from None


def _run_all(
    grid: Grid,
    out: Path,
    todo: Mapping[str, Mapping[str, Any]],
    jobs: int,
    environment: Mapping[str, str],
) -> dict[str, str]:
    """Run the named runs with their swept parameters, so many at a time; returns the failed ones
    with their error.
    """
    waiting, running, errors = deque(todo), dict[str, subprocess.Popen](), dict[str, str]()
    until = time.monotonic() + 2 * PATIENCE
    with _ending(running):
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.popleft()
                command = _command(grid, out, name, todo[name])
                running[name] = _start(command, out / "runs" / name, environment)
            time.sleep(0.1)
            for name in [n for n, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                if code or not _results(grid, out, name).exists():
                    said = runs.last_words(out / "runs" / name / LOG)
                    if resume.BUSY in said and time.monotonic() < until:
                        waiting.append(name)  # a run of a sweep that was killed has not ended yet
                        continue
                    errors[name] = said or f"ended with exit code {code} and said nothing"
                _say(len(todo) - len(waiting) - len(running), len(todo), name, errors, out)
    return errors


def _queue_all(
    grid: Grid, out: Path, todo: Mapping[str, Mapping[str, Any]], resources: Resources
) -> dict[str, str]:
    """`_run_all` with a job of SLURM for each run."""
    tasks, errors = {}, dict[str, str]()
    for name, point in todo.items():
        log_file = (out / "runs" / name / LOG).resolve()
        result = _results(grid, out, name).resolve()
        tasks[name] = Task(_command(grid, out, name, point), log_file, result)
        (out / "runs" / name / FAILED).unlink(missing_ok=True)
    ended = slurm.run_all(tasks, out / "jobs", resources)
    for number, (name, error) in enumerate(ended, 1):
        if error:
            errors[name] = error
        _say(number, len(todo), name, errors, out)
    return errors


def _say(number: int, n: int, name: str, errors: Mapping[str, str], out: Path) -> None:
    """Log how a run has ended; what it died of goes into its folder."""
    log.info("%d of %d: %s %s", number, n, name, "failed" if name in errors else "finished")
    if name in errors:
        paths.write_text(out / "runs" / name / FAILED, errors[name] + "\n")


@contextmanager
def _ending(running: dict[str, subprocess.Popen]) -> Iterator[None]:
    """Whatever ends the block, such as Ctrl-C: no run stays behind."""
    try:
        yield
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for process in running.values():
            try:
                process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Start a run in its folder, in a session of its own: Ctrl-C reaches it through the sweep, not
    twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    with open(folder / LOG, "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=end_with_parent if os.name == "posix" else None,
        )


def _command(grid: Grid, out: Path, name: str, point: Mapping[str, Any]) -> list[str]:
    return runs.command(grid.notebook, {**grid.fixed, **point}, (out / "runs" / name).resolve())


def _results(grid: Grid, out: Path, name: str) -> Path:
    """The file that a finished run has: it is written last, and at once."""
    return out / "runs" / name / f"{grid.notebook}.json"


def _threads(jobs: int) -> dict[str, str]:
    """The share of each job in the threads of this machine, or of those that `$OMP_NUM_THREADS`
    allows.
    """
    cores, allowed = runs.n_cores(), os.environ.get("OMP_NUM_THREADS", "")
    cores = min(cores, int(allowed)) if allowed.isdigit() and int(allowed) else cores
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs))}


def _columns(grid: Grid) -> dict[str, str]:
    """Swept parameter -> its column; one with the name of another column says what it is."""
    taken = {"run", "commit", *RECORD}
    return {p: f"{p} (parameter)" if p in taken else p for p in grid.swept}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:97] + "..."
