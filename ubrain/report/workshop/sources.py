"""The sources of the workshop, `workshop/*.py`: student and solution notebooks are made of them,
hints and solutions are read from them.

A source is a notebook in percent format. Tags of its cells say what they are: `exercise`, `check`
and `hint`, each with the name of the exercise beside it (`tags=["exercise", "E1"]`), `instructor`,
and `slide` (tasks are slides anyway). In an exercise, what the learner is to write stands between
two comments; lines with ### right after the first are the stub that the learner gets instead::

    ### BEGIN SOLUTION
    ### ...  # your code, 1 line
    x = 1
    ### END SOLUTION

Student notebooks have neither hints nor instructor cells; solution notebooks have them, and none of
these comments.
"""

import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from ubrain import paths
from ubrain.errors import UbrainError
from ubrain.report.workshop.checks import WIDTH

SOLUTION = re.compile(
    r"^ *### BEGIN SOLUTION\n((?: *### (?!END)[^\n]*\n)+)(.*?)^ *### END SOLUTION\n?",
    re.DOTALL | re.MULTILINE,
)
TASK = re.compile(r"^### E\d", re.MULTILINE)  # heading of an exercise
BESIDE = ".sources"  # in a folder of student notebooks; JupyterLab does not list it
_given: Counter[str] = Counter()  # hints so far, by exercise


def build(out: str, solutions: bool = False) -> list[Path]:
    """Make the workshop's notebooks. Learners get the student version.

    Parameters
    ----------
    out : folder for the notebooks; the sources go into a hidden folder there, for hints and
        solutions on demand.
    solutions : make the solution notebooks, with hints and notes for the instructor.

    Raises
    ------
    UbrainError
        If there are no sources here, or a cell of them is not as it has to be.
    """
    import nbformat

    folder = paths.project_root() / "workshop"
    sources = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not sources:
        raise UbrainError("no workshop/*.py here: run this in a checkout of ubrain")
    written = []
    for source in sources:
        suffix = "_solution" if solutions else ""
        target = Path(out) / f"{source.stem}{suffix}.ipynb"
        text = nbformat.writes(notebook(source, solutions)).rstrip("\n") + "\n"
        paths.write_text(target, text)
        paths.write_text(Path(out) / BESIDE / source.name, source.read_text(encoding="utf-8"))
        written.append(target)
    return written


def notebook(source: Path, solutions: bool) -> Any:
    """The student or the solution version of a source, as an nbformat notebook."""
    import jupytext

    made = jupytext.read(source)
    made.cells = [c for c in made.cells if solutions or not _tags(c) & {"hint", "instructor"}]
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{source.stem.replace('_', '-')}-{number:02d}"
        if "exercise" in _tags(cell):
            if not SOLUTION.search(f"{cell.source}\n"):
                raise UbrainError(f"{source.name}: an exercise has no solution: {cell.source[:60]}")
            cell.source = solved(cell.source) if solutions else stubbed(cell.source)
        kind = "slide" if "slide" in _tags(cell) or TASK.search(cell.source) else "skip"
        cell.metadata["slideshow"] = {"slide_type": kind}
        if cell.cell_type == "code":
            cell["execution_count"], cell["outputs"] = None, []
    made.metadata.pop("jupytext", None)
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def stubbed(code: str) -> str:
    """An exercise as learners get it: stubs in place of solutions."""
    return SOLUTION.sub(lambda m: m[1].replace("### ", ""), f"{code}\n").rstrip("\n")


def solved(code: str) -> str:
    """An exercise with its solution, without the comments around it."""
    return SOLUTION.sub(lambda m: m[2], f"{code}\n").rstrip("\n")


def hint(exercise: str) -> None:
    """Print a hint of an exercise: first the first, then the next; after the last, the last."""
    hints = _cells(exercise, "hint")
    if not hints:
        raise UbrainError(f"{exercise} has no hint; its solution: workshop.show({exercise!r})")
    number = min(_given[exercise], len(hints) - 1)
    _given[exercise] += 1
    text = f"{exercise}, hint {number + 1} of {len(hints)}: {hints[number]}"
    print(textwrap.fill(text, WIDTH))
    if number + 1 == len(hints):
        print(f'The solution, if you want it: workshop.show("{exercise}")')


def show(exercise: str) -> None:
    """Print the solution of an exercise."""
    print("\n\n".join(solved(code) for code in _cells(exercise, "exercise")))


def _cells(exercise: str, kind: str) -> list[str]:
    """Text of the cells of a kind of an exercise."""
    import jupytext

    folders = (Path.cwd() / BESIDE, paths.project_root() / "workshop")
    files = next((f for f in map(_sources, folders) if f), [])
    if not files:
        raise UbrainError(
            f"hints and solutions are read from the folder {BESIDE} beside the notebooks, which is"
            " not there; make the notebooks again with `ubrain workshop --out FOLDER`"
        )
    cells = [cell for file in files for cell in jupytext.read(file).cells]
    known = {tag for cell in cells if "exercise" in _tags(cell) for tag in _tags(cell)}
    if exercise not in known - {"exercise"}:
        names = ", ".join(sorted(known - {"exercise"}))
        raise UbrainError(f"no exercise {exercise!r}; there are {names}")
    return [cell.source for cell in cells if {exercise, kind} <= _tags(cell)]


def _sources(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))
