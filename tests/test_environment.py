"""The files that install and start the project agree with pyproject.toml."""

import copy
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import ubrain

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDS = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_conda_environment_installs_the_project_with_pip(conda):
    assert conda["name"] == "ubrain"
    (by_pip,) = [d["pip"] for d in conda["dependencies"] if isinstance(d, dict)]
    assert "-e ." in by_pip
    assert "pip" in conda["dependencies"]


def test_conda_environment_wants_the_python_of_the_project(conda):
    (python,) = [
        d for d in conda["dependencies"] if isinstance(d, str) and re.match(r"python\b", d)
    ]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])


def test_conda_environment_adds_no_dependency(conda):
    listed = []
    for entry in conda["dependencies"]:
        listed += entry["pip"] if isinstance(entry, dict) else [entry]
    names = {re.split(r"[<>=!~ \[]", entry)[0].lower() for entry in listed if entry != "-e ."}
    assert names - {"python", "pip"} <= NEEDS.keys()


def constraints():
    lines = (
        line.split("#")[0].strip()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    )
    return {r.name: str(r.specifier) for r in map(Requirement, filter(None, lines))}


def test_constraints_pin_a_pair_that_the_project_allows():
    pins = constraints()
    assert pins == {"torch": "==2.14.1", "torchvision": "==0.29.1"}
    for name, pin in pins.items():
        assert Version(pin.removeprefix("==")) in NEEDS[name].specifier


def test_version_is_that_of_the_package():
    assert ubrain.__version__ == PROJECT["version"]


def test_make_help_lists_what_there_is_to_do():
    if shutil.which("make") is None:
        pytest.skip("no make")
    help_text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = set(re.findall(r"^make (\w+)\s+\S", help_text, re.MULTILINE))
    assert listed >= {"reproduce", "test", "notebooks", "lab", "smoke", "clean"}


def test_package_data_holds_every_profile_and_the_paper():
    package = Path(ubrain.__file__).parent
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]["ubrain"]
    shipped = {p for pattern in patterns for p in package.glob(pattern)}
    assert {*package.glob("**/*.yaml"), *package.glob("**/*.toml")} <= shipped


def test_notebooks_are_compared_without_what_differs_from_run_to_run(tmp_path):
    """`nbdime_config.json` is read from the top folder, where git starts its diff driver."""
    attributes = (ROOT / ".gitattributes").read_text(encoding="utf-8")
    assert "*.ipynb diff=jupyternotebook merge=jupyternotebook" in attributes
    output = nbformat.v4.new_output("execute_result", {"text/plain": "3"}, execution_count=1)
    cell = nbformat.v4.new_code_cell("1 + 2", outputs=[output], execution_count=1, id="a")
    first = nbformat.v4.new_notebook(cells=[cell])
    second = copy.deepcopy(first)
    second.metadata["papermill"] = second.cells[0].metadata["papermill"] = {"duration": 3}
    second.cells[0].execution_count = second.cells[0].outputs[0].execution_count = 7
    third = copy.deepcopy(second)
    third.cells[0].source = "1 + 3"
    files = [tmp_path / name for name in ("first.ipynb", "second.ipynb", "third.ipynb")]
    for file, notebook in zip(files, (first, second, third), strict=True):
        nbformat.write(notebook, file)
    for other, differs in ((files[1], False), (files[2], True)):
        command = [str(Path(sys.executable).with_name("nbdiff")), str(files[0]), str(other)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        )
        assert ("1 + 3" in done.stdout) == bool(done.stdout) == differs
