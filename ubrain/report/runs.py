"""Notebooks as runs: rebuilt from their .py, executed by papermill with checked parameters,
compared with the published run, and published by maintainers.

What takes long to import is imported where it is used: the help of a command need not wait for it.
"""

import ast
import base64
import fnmatch
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import yaml

from ubrain import paths
from ubrain.config import load_profile
from ubrain.errors import UbrainError
from ubrain.progress import log
from ubrain.report import archive, claims, faithfulness, results
from ubrain.report.claims import pages
from ubrain.resume import locked, remove_partials

KERNEL, WIDGET = "python3", "application/vnd.jupyter.widget-view+json"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": KERNEL}
OVERVIEW_SCENE = (0, 41)  # seed and number of the image on the overview figure: something to see
UNFINISHED = "unfinished"  # in a run's folder, what is running or has failed
README_RUN = "simulated-fast"  # the run of the README's scoreboard and overview figure
# No number depends on these.
NO_CODE: tuple[str, ...] = ("papermill_runs/", "figures/", "docs/", ".github/", "README.md")
NO_CODE += ("CITATION.cff", "codecheck.yml", "codemeta.json", "ro-crate-metadata.json", "myst.yml")
MOST_BYTES = 1_000_000  # of a file of settings
MOST_SHOWN = 20  # numbers that do not agree
PATIENCE = 10  # seconds that killed kernels are waited for
MOST_JOBS = 4  # notebooks at the same time, unless told otherwise
# In this order notebooks start side by side: what trains first, the longest before the others; then
# 04, which reads the encoders of 01, and 00b, which trains nothing.
START = "09 00 01 02 03 07 05 06 08 04 00b"


@dataclass(frozen=True)
class Outcome:
    """An executed notebook: its numbers, and how they compare with the published ones."""

    notebook: str
    file: Path
    comparison: results.Comparison | None = None

    @property
    def agrees(self) -> bool | None:
        """Whether every number agrees; None if this run is not published."""
        return None if self.comparison is None else not self.comparison.differences


def find_notebooks(pattern: str = "*") -> list[Path]:
    """Notebook sources (.py) whose name matches a pattern, in order.

    Raises
    ------
    UbrainError
        If none does.
    """
    pattern = Path(pattern).name.removesuffix(".ipynb").removesuffix(".py")
    everything = sorted(paths.notebooks_dir().glob("[0-9][0-9]*_*.py"))
    found = [p for p in everything if fnmatch.fnmatch(p.stem, pattern)]
    if not found:
        names = (
            ", ".join(p.stem for p in everything) or "none here: run this in a checkout of ubrain"
        )
        raise UbrainError(f"no notebook matches {pattern!r}; there are: {names}")
    return found


def notebook_text(source: Path) -> str:
    """The .ipynb that belongs to a .py: no outputs, and cell ids that depend on nothing but the
    order of the cells.
    """
    import jupytext
    import nbformat

    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem}-{number:02d}"
        if cell.cell_type == "code":
            cell["execution_count"], cell["outputs"] = None, []
    pair = notebook.metadata.get("jupytext", {})  # what JupyterLab keeps of it in the .ipynb
    kept = {k: v for k, v in pair.items() if k.endswith("_filter")}
    notebook.metadata["jupytext"] = {**kept, "formats": "ipynb,py:percent"}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def rebuild_notebooks(check: bool = False) -> list[Path]:
    """Write every .ipynb from its .py, the source, and `docs/faithfulness.md` from the profiles.

    Parameters
    ----------
    check : only find those that differ.

    Returns
    -------
    The files that were, or would be, changed.
    """
    texts = {source.with_suffix(".ipynb"): notebook_text(source) for source in find_notebooks()}
    if (docs := paths.project_root() / "docs").is_dir():
        texts[docs / "faithfulness.md"] = faithfulness.page()
    changed = []
    for target, text in texts.items():
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            changed.append(target)
            if not check:
                paths.write_text(target, text)
    return changed


def after_save(os_path: str, model: Mapping[str, Any], **_: Any) -> None:
    """For JupyterLab, when it has saved a file: `git status` does not name a notebook that differs
    in nothing but outputs, which a filter keeps from git (see `make lab`).

    git calls a file of another size changed, without looking, until it is added; adding what has no
    difference stages nothing.
    """
    place = Path(os_path)
    if model["type"] != "notebook" or place.suffix != ".ipynb":
        return
    git = ["git", "-C", str(place.parent)]
    with suppress(OSError):  # no git here
        if subprocess.run([*git, "diff", "--quiet", "--", place.name]).returncode == 0:
            subprocess.run([*git, "add", "--", place.name], stderr=subprocess.DEVNULL)


def run_notebooks(
    pattern: str = "*",
    profile: str = "fast",
    crowd: str | None = None,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    out: Path | None = None,
    jobs: int | None = None,
    without_images: bool = False,
    split_scheme: str | None = None,
) -> list[Outcome]:
    """Execute notebooks, and compare their numbers with the published ones, if there are any.

    Nothing that git tracks is written: a run goes to `runs/` in the cache.

    Parameters
    ----------
    pattern : name or pattern of notebooks, for example `01*`.
    profile : smoke, fast or paper.
    crowd : crowd file; default: the profile's simulated crowd.
    seed : seed of everything random.
    parameters : more parameters, of notebooks that have them; `profile`, `crowd` and `seed` may
        stand among them.
    out : folder for executed notebooks, numbers and (in `figures/`) figures; default: in the cache.
    jobs : notebooks at the same time; 0 or None: as many as processor cores, at most 4, but one
        where there is a CUDA device.
    without_images : draw grey tiles in place of images of recordings, unless the crowd file says
        that they may be shown; a run to be published needs it.
    split_scheme : name of a scheme of splits in the crowd file; default: the file's own splits.

    Returns
    -------
    One outcome per notebook, in the order of their names.

    Raises
    ------
    UbrainError
        For an unknown, mistyped or impossible setting, or a notebook that another process runs in
        the same folder, before anything runs; or, when all others have finished, if a cell of a
        notebook fails.
    """
    sources = find_notebooks(pattern)
    given = check_settings(sources, profile, crowd, seed, parameters or {}, split_scheme)

    from ubrain.report.lab import WITHOUT_IMAGES

    run, folder = place_of(given, out)
    staging = folder / UNFINISHED / run
    jobs = _n_jobs(jobs, len(sources))
    documents = {s.stem: results.published(run, s.stem) or {} for s in sources}
    was: dict[str, float] = {name: d.get("seconds", 0) for name, d in documents.items()}
    began, seconds = time.monotonic(), dict[str, float]()
    outcomes, errors = dict[Path, Outcome](), dict[Path, str]()
    environment = {"UBRAIN_OUT": str(staging.resolve()), "UBRAIN_PROGRESS": "lines"}
    if without_images:
        environment[WITHOUT_IMAGES] = "1"
    with ExitStack() as stack:
        for s in sources:
            stack.enter_context(locked(staging / f".{s.stem}", f"{s.stem} of {folder}"))
            for place, end in product((staging, folder), ("ipynb", "json")):
                remove_partials(place, f"{s.stem}.{end}")
        finished = stack.enter_context(
            closing(_execute_all(sources, given, staging, jobs, environment))
        )
        for source, took, error in finished:
            if error:
                log.warning("%s: failed after %.0f s", source.stem, took)
                errors[source] = str(error) or type(error).__name__
            else:
                log.info("%s: %.0f s", source.stem, took)
                seconds[source.stem] = took
                file = _move(source.stem, staging, folder, folder / "figures")
                outcomes[source] = Outcome(source.stem, file, compare(run, file))
            done, elapsed = len(outcomes) + len(errors), time.monotonic() - began
            text = f"{done} of {len(sources)} after {elapsed:.0f} s"
            if done < len(sources) and seconds and all(was.values()):  # scaled by what has finished
                scale = sum(seconds.values()) / sum(was[name] for name in seconds)
                left = max(0, scale * sum(was.values()) / jobs - elapsed)
                text += f", about {left:.0f} s left"
            log.info(text)
    for empty in (staging / "figures", staging, staging.parent):
        with suppress(OSError):  # another process runs another notebook, or one has failed
            empty.rmdir()
    if errors:
        raise UbrainError("\n".join(errors[source] for source in sources if source in errors))
    return [outcomes[source] for source in sources]


def place_of(given: Mapping[str, Any], out: Path | None) -> tuple[str, Path]:
    """Name of the run with these parameters, and its folder; by default one in the cache."""
    from ubrain.report.lab import run_name

    named: dict[str, Any] = {k: given.get(k) for k in ("crowd", "profile", "seed", "split_scheme")}
    extra = [slug(k, v) for k, v in sorted(given.items()) if k not in named]
    run = "-".join([run_name(**named), *extra])
    return run, make_folder(out or _finished(run))


def n_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def publish(
    pattern: str = "*",
    profile: str = "fast",
    crowd: str | None = None,
    seed: int = 0,
    split_scheme: str | None = None,
) -> list[Path]:
    """Put a finished run into `papermill_runs/` and `figures/`, its numbers into the README, and
    its files into what archives read (`ubrain.report.archive`).

    For maintainers: whoever reproduces never needs it. Notebooks that have not run are left out.

    Parameters
    ----------
    pattern : name or pattern of notebooks, for example `01*`.
    profile : smoke, fast or paper.
    crowd : the crowd file that was run; default: the profile's simulated crowd.
    seed : seed of the run.
    split_scheme : of the run, if it was not the crowd file's own splits.

    Returns
    -------
    The published results, one JSON per notebook.

    Raises
    ------
    UbrainError
        If files have changed since the last commit; the run is not one of this commit: made with
        uncommitted changes, from other notebooks, or by other code; or it shows images of
        recordings that do not allow it.
    """
    from ubrain.report.lab import run_name

    run = run_name(crowd, profile, seed, split_scheme)
    folder = _finished(run)
    sources = [s for s in find_notebooks(pattern) if (folder / f"{s.stem}.json").exists()]
    if not sources:
        raise UbrainError(f"nothing to publish in {folder}; make it with `ubrain run`")
    if (changed := results.git("status", "--porcelain")) != "":
        raise UbrainError(f"commit your changes before publishing: {changed or 'no git checkout'}")
    for source in sources:
        _check_publishable(source, folder)
    target, figure_dir = paths.run_dir(run), paths.figure_dir(run)
    files = [_move(s.stem, folder, target, figure_dir, keep=True) for s in sources]
    if run == README_RUN:
        draw_overview(run)
        archive.write(run)
    root = paths.project_root()
    if (root / "README.md").exists() and paths.run_dir(README_RUN).exists():
        pages.write(root, paths.run_dir(README_RUN))
    return files


def folder_of(run: str, own: bool = False) -> Path:
    """Where the numbers of a run are: the published ones if there are any, or those that this
    machine has made; with `own` these come first.
    """
    folders = [paths.run_dir(run), _finished(run)]
    first, second = reversed(folders) if own else folders
    return first if any(first.glob("*.json")) else second


def same_sources(executed: Path, source: Path) -> bool:
    """Whether an executed notebook has the code cells of a source (.py), and no others but the
    parameters that papermill injected.
    """
    import jupytext
    import nbformat

    ran, now = (
        [
            c.source
            for c in notebook.cells
            if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
        ]
        for notebook in (nbformat.read(executed, as_version=4), jupytext.read(source))
    )
    return ran == now


def check_settings(
    sources: Sequence[Path],
    profile: str,
    crowd: str | None,
    seed: int,
    parameters: Mapping[str, Any],
    split_scheme: str | None = None,
) -> dict[str, Any]:
    """All parameters of a run, once every notebook is known to take them and profile, crowd, seed
    and scheme of splits to exist.

    Raises
    ------
    UbrainError
        Naming the first that is wrong.
    """
    for name, value, default in (
        ("profile", profile, "fast"),
        ("crowd", crowd, None),
        ("seed", seed, 0),
        ("split_scheme", split_scheme, None),
    ):
        if parameters.get(name, value) != value and value != default:
            raise UbrainError(f"{name} is given twice: {value!r} and {parameters[name]!r}")
    given = {"crowd": crowd, "profile": profile, "seed": seed, **parameters}
    if split_scheme is not None:
        given["split_scheme"] = split_scheme
    for source in sources:
        check_parameters(source, given)
    load_profile(given["profile"])
    if given["seed"] is None or given["seed"] < 0:
        raise UbrainError(f"seed: expected 0 or a positive number, got {given['seed']!r}")
    if given["crowd"] is not None:
        from ubrain.crowd import Crowd

        with Crowd(given["crowd"]) as opened:
            opened.with_scheme(given.get("split_scheme"))
        given["crowd"] = str(Path(given["crowd"]).resolve())
    elif given.get("split_scheme"):
        raise UbrainError("split_scheme: the simulated crowd has one split; give a crowd file")
    return given


def execute(source: Path, parameters: Mapping[str, Any], out: Path) -> Path:
    """Execute one notebook; it writes its numbers and figures to `out`, which is `$UBRAIN_OUT`; the
    executed notebook goes there too, with the verdict of these numbers in its cell tagged `answer`.

    Raises
    ------
    UbrainError
        If a cell fails; the executed notebook is kept.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillException

    out.mkdir(parents=True, exist_ok=True)
    for old in (out / "figures").glob(f"{source.stem}__*"):
        old.unlink()
    (out / f"{source.stem}.json").unlink(missing_ok=True)
    plain, executed = out / f".{source.stem}.input.ipynb", out / f"{source.stem}.ipynb"
    paths.write_text(plain, notebook_text(source))
    try:
        papermill.execute_notebook(
            plain,
            executed,
            parameters=dict(parameters),
            kernel_name=KERNEL,
            resources={"metadata": {"path": str(source.parent)}},  # cwd= is that of all threads
            progress_bar=False,
            log_output=False,
        )
    except (PapermillException, DeadKernelError, CellTimeoutError) as error:
        raise UbrainError(
            f"{source.stem} failed; the executed notebook is {executed}\n{error}"
        ) from None
    finally:
        plain.unlink(missing_ok=True)
    if not (out / f"{source.stem}.json").exists():
        raise UbrainError(
            f"{source.stem} ran, but recorded no numbers; its last cell must be `lab.finish()`"
        )
    _tidy(executed, parameters)
    return executed


def check_parameters(source: Path, given: Mapping[str, Any]) -> None:
    """Compare given parameters with the notebook's parameters cell.

    Raises
    ------
    UbrainError
        If one is unknown, or of another type than its default (None stands for any type that JSON
        knows).
    """
    known = parameters(source)
    for name, value in given.items():
        if name not in known:
            raise UbrainError(f"{source.stem} has no parameter {name!r}; it has {', '.join(known)}")
        default = known[name]
        if not _plain(value):
            raise UbrainError(
                f"{source.stem}: parameter {name!r} is {value!r}, expected null, true, false, a"
                " number, a text, or a list or mapping of these"
            )
        if name in ("crowd", "split_scheme") and not isinstance(value, str | None):
            default = {"crowd": "mine.h5"}.get(name, "tau")
        if default is None or value is None or type(value) is type(default):
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        if isinstance(default, tuple) and isinstance(value, list):
            continue
        raise UbrainError(
            f"{source.stem}: parameter {name!r} is {value!r}, expected a {type(default).__name__} "
            f"such as {default!r}"
        )


def parameters(source: Path) -> dict[str, Any]:
    """Name and default of every parameter of a notebook.

    Raises
    ------
    UbrainError
        If the parameters cell holds anything but literals, or is not one.
    """
    return _defaults(source, source.read_text(encoding="utf-8"))


def draw_overview(run: str) -> Path:
    """Draw the overview figure of a published run from its numbers; the same numbers give the same
    file.

    Returns
    -------
    The figure, among the others of the run.

    Raises
    ------
    UbrainError
        If the run has no results.
    """
    import matplotlib.pyplot as plt

    from ubrain.data.simulate import scenes
    from ubrain.report import figures
    from ubrain.report.lab import FIGURE_RC

    documents = results.read_results(paths.run_dir(run))
    image, _ = scenes.render(*OVERVIEW_SCENE)
    with plt.rc_context(FIGURE_RC):
        figure = figures.overview(documents, image)
        simulated = any(d["simulated"] for d in documents.values())
        figures.mark(figure, "simulated crowd" if simulated else "")
        path = paths.figure_dir(run) / "overview.png"
        with paths.atomic(path) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})
    plt.close(figure)
    return path


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs from a command line; values are YAML, so `false` is not a string.

    Raises
    ------
    UbrainError
        If one is malformed, or its name comes twice with different values.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UbrainError(f"parameter {pair!r}: expected a name and a value")
        try:
            value = read_yaml(text)
        except UbrainError as error:
            raise UbrainError(f"parameter {pair!r}: {error}") from None
        if repr(found.get(name, value)) != repr(value):  # as text, since 1 == True
            raise UbrainError(f"parameter {name!r} is given twice: {found[name]!r} and {value!r}")
        found[name] = value
    return found


class _Yaml(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number, a name comes once, and nothing is repeated by
    reference.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"references (*{self.peek_event().anchor}) are not supported")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        if node.tag.endswith((":int", ":float")) and ":" in node.value:
            raise yaml.YAMLError(f"{node.value} is a number to base 60; write '{node.value}'")
        return super().construct_scalar(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [k for i, k in enumerate(keys) if k in keys[:i]]
        if twice:
            raise yaml.YAMLError(f"{twice[0]!r} comes twice")
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str) -> Any:
    """A value that somebody typed.

    Raises
    ------
    UbrainError
        If it is not valid YAML.
    """
    try:
        return yaml.load(text, _Yaml)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UbrainError(f"not valid YAML: {said}") from None


def read_yaml_file(path: Path) -> Any:
    """What a file of settings says.

    Raises
    ------
    UbrainError
        If it is not a text file of less than `MOST_BYTES`, or not valid YAML.
    """
    try:
        with paths.open_regular(path, MOST_BYTES) as file:
            text = file.read(MOST_BYTES + 1).decode()
        return read_yaml(text)
    except UnicodeDecodeError as error:
        raise UbrainError(f"{path}: cannot be read as a text file: {error}") from None
    except UbrainError as error:
        said = str(error)
        raise UbrainError(said if str(path) in said else f"{path}: {said}") from None


def command(notebook: str, parameters: Mapping[str, Any], out: Path) -> list[str]:
    """`ubrain run` of one notebook, for a process of its own."""
    words = [
        w
        for p, value in parameters.items()
        for w in ("-p", p, json.dumps(value, ensure_ascii=False))
    ]
    return [sys.executable, "-m", "ubrain.cli", "run", notebook, *words, "--out", str(out)]


def last_words(log_file: Path) -> str:
    """What a command that has failed says at the end of its log."""
    if not log_file.exists():
        return ""
    text = "\n" + log_file.read_text(encoding="utf-8", errors="replace").strip()
    return (text[text.rfind("\nubrain: ") :] if "\nubrain: " in text else text[-2000:]).strip()


def _plain(value: Any) -> bool:
    """Whether JSON knows such a value."""
    if isinstance(value, list):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def slug(name: str, value: Any) -> str:
    """A parameter as part of a folder's name, so that its run does not go under the name of
    another.
    """
    exact = f"{name}={json.dumps(value)}"
    text = f"{name}_{re.sub(r'[^A-Za-z0-9.-]+', '_', json.dumps(value)).strip('_')}"
    return (
        text
        if len(text) <= 60
        else f"{text[:50]}_{hashlib.blake2b(exact.encode(), digest_size=4).hexdigest()}"
    )


def make_folder(out: Path) -> Path:
    """The folder, made if it is not there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UbrainError(
            f"--out {out}: expected a folder that can be written: {error.strerror}"
        ) from None
    return out.resolve()


def _n_jobs(jobs: int | None, n: int) -> int:
    """How many of n notebooks run at the same time."""
    if not jobs and n > 1:
        import torch  # notebooks side by side would share the memory of a GPU

        jobs = 1 if torch.cuda.is_available() else min(n_cores(), MOST_JOBS)
    return min(jobs or 1, n)


def _execute_all(
    sources: Sequence[Path],
    given: Mapping[str, Any],
    out: Path,
    jobs: int,
    environment: Mapping[str, str],
) -> Generator[tuple[Path, float, Exception | None]]:
    """Execute notebooks, so many at a time, with variables of the environment; yields each when it
    has ended, with its seconds and its error. Whatever stops this early, Ctrl-C too, ends the
    kernels.
    """
    from jupyter_core.utils import ensure_event_loop

    order = (
        sources if jobs == 1 else sorted(sources, key=lambda s: START.find(s.stem.split("_")[0]))
    )

    def timed(number: int, source: Path) -> tuple[Path, float, Exception | None]:
        n, started, failure = len(order), time.monotonic(), None
        log.info("%s: running (%d of %d, %d waiting)", source.stem, number, n, n - number)
        try:
            with closing(ensure_event_loop()):  # that of this thread
                execute(source, given, out)
        except Exception as error:  # a kernel that does not start, too
            failure = error
        return source, time.monotonic() - started, failure

    before, others = dict(os.environ), psutil.Process().children(recursive=True)
    os.environ.update(environment)
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // jobs)))
    pool = ThreadPoolExecutor(jobs)
    running = [pool.submit(timed, i, source) for i, source in enumerate(order, 1)]
    try:
        for future in as_completed(running):
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        last = time.monotonic() + PATIENCE
        while not all(future.done() for future in running) and time.monotonic() < last:
            for kernel in {*psutil.Process().children(recursive=True)} - {*others}:
                with suppress(psutil.NoSuchProcess):
                    kernel.kill()
            time.sleep(0.2)  # one may just be starting
        raise
    finally:
        os.environ.clear()
        os.environ.update(before)


def _finished(run: str) -> Path:
    """Folder of a run that is not published, or not yet."""
    return paths.cache_root() / "runs" / run


@lru_cache
def _defaults(source: Path, text: str) -> dict[str, Any]:
    """Name and default of every parameter; the parameters cell holds literals only."""
    import jupytext
    import nbformat
    import papermill

    notebook = jupytext.reads(text, fmt="py")
    notebook.metadata["kernelspec"] = KERNELSPEC
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise UbrainError(
            f"{source}: expected one cell with the tag 'parameters', found {len(tagged)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{source.stem}.ipynb")
        nbformat.write(notebook, file)
        known = papermill.inspect_notebook(file)
    found = {}
    for name, parameter in known.items():
        try:
            found[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            raise UbrainError(f"{source}: parameter {name!r} is not a literal") from None
    return found


def _tidy(executed: Path, parameters: Mapping[str, Any]) -> None:
    """Fill the cell tagged `answer`, and remove what differs from run to run or by machine."""
    import nbformat

    from ubrain.report.figures.png import compressed

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill", None)
    document = json.loads(executed.with_suffix(".json").read_text(encoding="utf-8"))
    files = [v for v in parameters.values() if isinstance(v, str) and Path(v).is_absolute()]
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "outputs" in cell:  # a slider moves only where a kernel runs
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for noise in ("papermill", "execution"):
            cell.metadata.pop(noise, None)
        if "injected-parameters" in tags:
            for file in files:
                cell.source = cell.source.replace(json.dumps(file), json.dumps(Path(file).name))
        if "answer" in tags:
            text = claims.verdict(document, executed.stem) + "\n"
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                small = compressed(base64.b64decode(png))
                output["data"]["image/png"] = base64.b64encode(small).decode()
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    # warnings name files
    for place, short in ((sys.prefix, ".venv"), (str(paths.project_root()), ".")):
        text = text.replace(place, short)
    paths.write_text(executed, text)


def compare(run: str, file: Path) -> results.Comparison | None:
    """Compare results with the published ones, and log what differs."""
    document = results.published(run, file.stem)
    if document is None:
        log.info("%s: no published run %s to compare with", file.stem, run)
        return None
    found = results.compare(document, json.loads(file.read_text(encoding="utf-8")))
    log.info("%s: %s", file.stem, found)
    for d in found.differences[:MOST_SHOWN]:
        log.warning(
            "  %s | %s | %s: published %s, here %s, tolerance %.2g",
            *(d.name, d.condition, d.subject, d.published, d.here, d.tolerance),
        )
    if len(found.differences) > MOST_SHOWN:
        log.warning("  ... and %d more", len(found.differences) - MOST_SHOWN)
    return found


def _check_publishable(source: Path, folder: Path) -> None:
    """Refuse results that the committed code and notebook have not made."""
    name = source.stem
    document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    commit = document["commit"]
    again = "commit everything, and run it again"
    if not document.get("publishable", document["simulated"]):
        raise UbrainError(
            f"{name} shows images, and {document['crowd']} does not say that everybody may: run it"
            " again with --without-images"
        )
    if not commit or commit.endswith("+"):
        raise UbrainError(f"{name} was run with uncommitted changes (commit {commit!r}): {again}")
    if not same_sources(folder / f"{name}.ipynb", source):
        raise UbrainError(f"{name} has changed since it was run: run it again")
    changed = results.git("diff", "--name-only", commit, "HEAD")
    code = [f for f in (changed or "").splitlines() if not f.startswith(NO_CODE)]
    if changed is None or code:
        raise UbrainError(f"{name} was run with commit {commit}, not with this one: run it again")


def _move(name: str, staging: Path, target: Path, figure_dir: Path, keep: bool = False) -> Path:
    """Bring the files of one notebook to their place, the numbers last; returns these.

    Figures that it no longer draws vanish there.
    """
    pictures = sorted((staging / "figures").glob(f"{name}__*"))
    for old in figure_dir.glob(f"{name}__*"):
        if not (staging / "figures" / old.name).exists():
            old.unlink()
    places = {picture: figure_dir / picture.name for picture in pictures}
    places |= {staging / f"{name}.{end}": target / f"{name}.{end}" for end in ("ipynb", "json")}
    for file, place in places.items():
        with paths.atomic(place) as partial:
            shutil.copyfile(file, partial)
    if not keep:
        for file in places:
            file.unlink()
    return target / f"{name}.json"
