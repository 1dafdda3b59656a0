"""Notebooks as runs: rebuilt from their .py, executed by papermill with checked parameters,
published when done.
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
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jupytext
import matplotlib.pyplot as plt
import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillException

from ubrain import paths
from ubrain.config import load_profile
from ubrain.crowd import Crowd
from ubrain.data.simulate import scenes
from ubrain.errors import UbrainError
from ubrain.progress import log
from ubrain.report import figures
from ubrain.report.figures.png import compressed
from ubrain.report.lab import FIGURE_RC, run_name
from ubrain.report.results import read_results, same_numbers

KERNEL = "python3"
OVERVIEW_SCENE = (0, 41)  # seed and number of the image on the overview figure: something to see
UNFINISHED = "unfinished"  # in a folder of --out, what is running or has failed


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
        names = (
            ", ".join(p.stem for p in everything) or "none here: run this in a checkout of ubrain"
        )
        raise UbrainError(f"no notebook matches {pattern!r}; there are: {names}")
    return found


def notebook_text(source: Path) -> str:
    """The .ipynb that belongs to a .py: no outputs, and cell ids that depend on nothing but the
    order of the cells.
    """
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
    pattern: str = "*",
    profile: str = "fast",
    crowd: str | None = None,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    out: Path | None = None,
) -> list[Path]:
    """Execute notebooks and publish them, their numbers and figures under `papermill_runs/` and
    `figures/`.

    If all numbers and all cells of a notebook are those already published, the published files stay
    as they are.

    Parameters
    ----------
    crowd : crowd file; None takes the simulated crowd of the profile.
    parameters : more parameters, of notebooks that have them; `profile`, `crowd` and `seed` may
        stand among them.
    force : publish even if no number has changed.
    out : folder for the executed notebooks and numbers instead, with the figures in its `figures/`.

    Returns
    -------
    The published results, one JSON per notebook.

    Raises
    ------
    UbrainError
        For an unknown, mistyped or impossible setting, before anything runs; or if a cell fails.
    """
    sources = find_notebooks(pattern)
    given = check_settings(sources, profile, crowd, seed, parameters or {})
    extra = [slug(k, v) for k, v in sorted(given.items()) if k not in ("crowd", "profile", "seed")]
    run = "-".join([run_name(given["crowd"], given["profile"], given["seed"]), *extra])
    if out is None:
        staging, target, figure_dir = (
            paths.cache_root() / "runs" / run,
            paths.run_dir(run),
            paths.figure_dir(run),
        )
    else:
        out = make_folder(out)
        staging, target, figure_dir = out / UNFINISHED / run, out, out / "figures"
    published = []
    for source in sources:
        started = time.monotonic()
        log.info("%s: running", source.stem)
        execute(source, given, staging)
        log.info("%s: %.0f s", source.stem, time.monotonic() - started)
        published.append(_publish(source.stem, staging, target, figure_dir, force))
    if out is not None:
        shutil.rmtree(staging)
        if not any(staging.parent.iterdir()):
            staging.parent.rmdir()
    return published


def check_settings(
    sources: Sequence[Path],
    profile: str,
    crowd: str | None,
    seed: int,
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """All parameters of a run, once every notebook is known to take them and profile, crowd and
    seed to exist.

    Raises
    ------
    UbrainError
        Naming the first that is wrong.
    """
    for name, value, default in (
        ("profile", profile, "fast"),
        ("crowd", crowd, None),
        ("seed", seed, 0),
    ):
        if parameters.get(name, value) != value and value != default:
            raise UbrainError(f"{name} is given twice: {value!r} and {parameters[name]!r}")
    given = {"crowd": crowd, "profile": profile, "seed": seed, **parameters}
    for source in sources:
        check_parameters(source, given)
    load_profile(given["profile"])
    if given["seed"] is None or given["seed"] < 0:
        raise UbrainError(f"seed: expected 0 or a positive number, got {given['seed']!r}")
    if given["crowd"] is not None:
        Crowd(given["crowd"]).close()
        given["crowd"] = str(Path(given["crowd"]).resolve())
    return given


def execute(source: Path, parameters: Mapping[str, Any], out: Path) -> Path:
    """Execute one notebook; it writes its numbers and figures to `out`, where the executed notebook
    goes too.

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
            plain,
            executed,
            parameters=dict(parameters),
            kernel_name=KERNEL,
            cwd=str(source.parent),
            progress_bar=False,
            log_output=False,
        )
    except (PapermillException, DeadKernelError, CellTimeoutError) as error:
        raise UbrainError(
            f"{source.stem} failed; the executed notebook is {executed}\n{error}"
        ) from None
    finally:
        os.environ.clear()
        os.environ.update(before)
        plain.unlink(missing_ok=True)
    if not (out / f"{source.stem}.json").exists():
        raise UbrainError(
            f"{source.stem} ran, but recorded no numbers; its last cell must be `lab.finish()`"
        )
    _strip(executed, parameters)
    return executed


def check_parameters(source: Path, given: Mapping[str, Any]) -> None:
    """Compare given parameters with the notebook's parameters cell.

    Raises
    ------
    UbrainError
        If one is unknown, or of another type than its default (None stands for any type that JSON
        knows).
    """
    known = _defaults(source)
    for name, value in given.items():
        if name not in known:
            raise UbrainError(f"{source.stem} has no parameter {name!r}; it has {', '.join(known)}")
        default = known[name]
        if not _plain(value):
            raise UbrainError(
                f"{source.stem}: parameter {name!r} is {value!r}, expected null, true, false, a"
                " number, a text, or a list or mapping of these"
            )
        if name == "crowd" and not isinstance(value, str | None):
            default = "mine.h5"
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
    documents = read_results(paths.run_dir(run))
    image, _ = scenes.render(*OVERVIEW_SCENE)
    with plt.rc_context(FIGURE_RC):
        figure = figures.overview(documents, image)
        figures.mark_simulated(figure, any(d["simulated"] for d in documents.values()))
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
        raise UbrainError(f"the value is not valid YAML: {error or type(error).__name__}") from None


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


def _defaults(source: Path) -> dict[str, Any]:
    """Name and default of every parameter; the parameters cell holds literals only."""
    return _literals(source, source.read_text(encoding="utf-8"))


@lru_cache
def _literals(source: Path, text: str) -> dict[str, Any]:
    cells = [
        c
        for c in jupytext.reads(text, fmt="py").cells
        if "parameters" in c.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise UbrainError(
            f"{source}: expected one cell with the tag 'parameters', found {len(cells)}"
        )
    found = {}
    for statement in ast.parse(cells[0].source).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise UbrainError(
                f"{source}: the parameters cell may hold only `name = literal`, line"
                f" {statement.lineno} does not"
            )
        try:
            found[statement.targets[0].id] = ast.literal_eval(statement.value)
        except ValueError:
            raise UbrainError(
                f"{source}: parameter {statement.targets[0].id!r} is not a literal"
            ) from None
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
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = base64.b64encode(
                    compressed(base64.b64decode(png))
                ).decode()
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    for place, short in (
        (sys.prefix, ".venv"),
        (str(paths.project_root()), "."),
    ):  # warnings name files
        text = text.replace(place, short)
    paths.write_text(executed, text)


def _sources(executed: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(executed, as_version=4).cells]


def _publish(name: str, staging: Path, target: Path, figure_dir: Path, force: bool) -> Path:
    new = json.loads((staging / f"{name}.json").read_text(encoding="utf-8"))
    old_file = target / f"{name}.json"
    pictures = sorted((staging / "figures").glob(f"{name}__*"))
    complete = (target / f"{name}.ipynb").exists() and all(
        (figure_dir / p.name).exists() for p in pictures
    )
    if old_file.exists() and complete and not force:
        old = json.loads(old_file.read_text(encoding="utf-8"))
        same, total = same_numbers(old, new)
        log.info("%s: %d of %d published numbers came out the same", name, same, total)
        shown_alike = old.get("shown_by") == new.get("shown_by")
        if (
            same == total
            and shown_alike
            and _sources(target / f"{name}.ipynb") == _sources(staging / f"{name}.ipynb")
        ):
            return old_file
    for old_picture in figure_dir.glob(f"{name}__*"):
        if not any(p.name == old_picture.name for p in pictures):
            old_picture.unlink()
    for file in (*pictures, staging / f"{name}.ipynb", staging / f"{name}.json"):
        folder = figure_dir if file in pictures else target
        with paths.atomic(folder / file.name) as partial:
            shutil.copyfile(file, partial)
    return old_file
