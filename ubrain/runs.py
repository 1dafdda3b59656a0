"""Notebooks as runs: rebuilt from their .py, executed by papermill with checked parameters, published when done."""

import ast
import fnmatch
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillException

from ubrain import paths
from ubrain.errors import UbrainError
from ubrain.lab import run_name
from ubrain.progress import log
from ubrain.results import same_numbers

KERNEL = "python3"


def find_notebooks(pattern: str = "*") -> list[Path]:
    """Notebook sources (.py) whose name matches a pattern, in order.

    Raises
    ------
    UbrainError
        If none does.
    """
    pattern = Path(pattern).name.removesuffix(".ipynb").removesuffix(".py")
    everything = sorted(paths.notebooks_dir().glob("[0-9][0-9]_*.py"))
    found = [p for p in everything if fnmatch.fnmatch(p.stem, pattern)]
    if not found:
        names = ", ".join(p.stem for p in everything) or "none here: run this in a checkout of ubrain"
        raise UbrainError(f"no notebook matches {pattern!r}; there are: {names}")
    return found


def notebook_text(source: Path) -> str:
    """The .ipynb that belongs to a .py: no outputs, and cell ids that depend on nothing but the order of the cells."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem}-{number:02d}"
        if cell.cell_type == "code":
            cell["execution_count"], cell["outputs"] = None, []
    notebook.metadata.pop("jupytext", None)
    notebook.metadata["jupytext"] = {"formats": "ipynb,py:percent"}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def rebuild_notebooks(check: bool = False) -> list[Path]:
    """Write every .ipynb from its .py, the source; with `check`, only find those that differ.

    Returns
    -------
    The .ipynb that were, or would be, changed.
    """
    changed = []
    for source in find_notebooks():
        target, text = source.with_suffix(".ipynb"), notebook_text(source)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            changed.append(target)
            if not check:
                paths.write_text(target, text)
    return changed


def run_notebooks(
    pattern: str = "*", profile: str = "fast", crowd: str | None = None, seed: int = 0,
    parameters: Mapping[str, Any] | None = None, force: bool = False,
) -> list[Path]:  # fmt: skip
    """Execute notebooks and publish them, their numbers and figures under `papermill_runs/` and `figures/`.

    If all numbers and all cells of a notebook are those already published, the published files stay as they are.

    Parameters
    ----------
    crowd : crowd file; None takes the simulated crowd of the profile.
    parameters : more parameters, of notebooks that have them.
    force : publish even if no number has changed.

    Returns
    -------
    The published results, one JSON per notebook.

    Raises
    ------
    UbrainError
        For an unknown or mistyped parameter, before anything runs; or if a cell fails.
    """
    clash = sorted({"crowd", "profile", "seed"} & set(parameters or {}))
    if clash:
        raise UbrainError(f"parameter {clash[0]!r} names the run; give it as --{clash[0]}, not with -p")
    given = {"crowd": str(Path(crowd).resolve()) if crowd else None, "profile": profile, "seed": seed, **(parameters or {})}
    run = "-".join([run_name(crowd, profile, seed), *(_slug(k, v) for k, v in sorted((parameters or {}).items()))])
    sources = find_notebooks(pattern)
    for source in sources:
        check_parameters(source, given)
    staging = paths.cache_root() / "runs" / run
    published = []
    for source in sources:
        started = time.monotonic()
        log.info("%s: running", source.stem)
        execute(source, given, staging)
        log.info("%s: %.0f s", source.stem, time.monotonic() - started)
        published.append(_publish(source.stem, staging, run, force))
    return published


def execute(source: Path, parameters: Mapping[str, Any], out: Path) -> Path:
    """Execute one notebook; it writes its numbers and figures to `out`, where the executed notebook goes too.

    Raises
    ------
    UbrainError
        If a cell fails; the executed notebook is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in (out / "figures").glob(f"{source.stem}__*"):
        old.unlink()
    (out / f"{source.stem}.json").unlink(missing_ok=True)
    plain, executed = out / f".{source.stem}.input.ipynb", out / f"{source.stem}.ipynb"
    paths.write_text(plain, notebook_text(source))
    before = dict(os.environ)
    os.environ.update(UBRAIN_OUT=str(out.resolve()), UBRAIN_PROGRESS="lines")
    try:
        papermill.execute_notebook(
            plain, executed, parameters=dict(parameters), kernel_name=KERNEL, cwd=str(source.parent), progress_bar=False,
            log_output=False,
        )  # fmt: skip
    except (PapermillException, DeadKernelError, CellTimeoutError) as error:
        raise UbrainError(f"{source.stem} failed; the executed notebook is {executed}\n{error}") from None
    finally:
        os.environ.clear()
        os.environ.update(before)
        plain.unlink(missing_ok=True)
    if not (out / f"{source.stem}.json").exists():
        raise UbrainError(f"{source.stem} ran, but recorded no numbers; its last cell must be `lab.finish()`")
    _strip(executed, parameters)
    return executed


def check_parameters(source: Path, given: Mapping[str, Any]) -> None:
    """Compare given parameters with the notebook's parameters cell.

    Raises
    ------
    UbrainError
        If one is unknown, or of another type than its default (None stands for any type).
    """
    known = _defaults(source)
    for name, value in given.items():
        if name not in known:
            raise UbrainError(f"{source.stem} has no parameter {name!r}; it has {', '.join(known)}")
        default = known[name]
        if default is None or value is None or type(value) is type(default):
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        raise UbrainError(f"{source.stem}: parameter {name!r} is {value!r}, expected a {type(default).__name__} "
                          f"such as {default!r}")  # fmt: skip


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs from a command line; values are YAML, so `false` is not a string."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UbrainError(f"parameter {pair!r}: expected name=value")
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UbrainError(f"parameter {pair!r}: the value is not valid YAML: {error}") from None
    return found


def _slug(name: str, value: Any) -> str:
    """A parameter as part of a folder's name, so that its run does not go under the name of another."""
    text = re.sub(r"[^A-Za-z0-9.]+", "_", json.dumps(value)).strip("_")
    return f"{name}_{text}"[:60]


def _defaults(source: Path) -> dict[str, Any]:
    """Name and default of every parameter; the parameters cell holds literals only."""
    cells = [c for c in jupytext.read(source).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UbrainError(f"{source}: expected one cell with the tag 'parameters', found {len(cells)}")
    found = {}
    for statement in ast.parse(cells[0].source).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise UbrainError(f"{source}: the parameters cell may hold only `name = literal`, line {statement.lineno} does not")
        try:
            found[statement.targets[0].id] = ast.literal_eval(statement.value)
        except ValueError:
            raise UbrainError(f"{source}: parameter {statement.targets[0].id!r} is not a literal") from None
    return found


def _strip(executed: Path, parameters: Mapping[str, Any]) -> None:
    """Remove from an executed notebook what differs from run to run and from machine to machine."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill", None)
    crowd = parameters.get("crowd")
    for cell in notebook.cells:
        for noise in ("papermill", "execution"):
            cell.metadata.pop(noise, None)
        if crowd and "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace(json.dumps(crowd), json.dumps(Path(crowd).name))
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    for place, short in ((sys.prefix, ".venv"), (str(paths.project_root()), ".")):  # warnings name files
        text = text.replace(place, short)
    paths.write_text(executed, text)


def _sources(executed: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(executed, as_version=4).cells]


def _publish(name: str, staging: Path, run: str, force: bool) -> Path:
    target, figure_dir = paths.run_dir(run), paths.figure_dir(run)
    new = json.loads((staging / f"{name}.json").read_text(encoding="utf-8"))
    old_file = target / f"{name}.json"
    pictures = sorted((staging / "figures").glob(f"{name}__*"))
    complete = (target / f"{name}.ipynb").exists() and all((figure_dir / p.name).exists() for p in pictures)
    if old_file.exists() and complete and not force:
        same, total = same_numbers(json.loads(old_file.read_text(encoding="utf-8")), new)
        log.info("%s: %d of %d published numbers came out the same", name, same, total)
        if same == total and _sources(target / f"{name}.ipynb") == _sources(staging / f"{name}.ipynb"):
            return old_file
    for old_picture in figure_dir.glob(f"{name}__*"):
        if not any(p.name == old_picture.name for p in pictures):
            old_picture.unlink()
    for file in (*pictures, staging / f"{name}.ipynb", staging / f"{name}.json"):
        folder = figure_dir if file in pictures else target
        with paths.atomic(folder / file.name) as partial:
            shutil.copyfile(file, partial)
    return old_file
