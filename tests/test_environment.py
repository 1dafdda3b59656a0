"""The files that install and start the project agree with pyproject.toml."""

import copy
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import ubrain
from ubrain.report import results

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDS = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}


LOCK = ROOT / "requirements.lock"
INSTALLED_BY_MAKE = Path(sys.prefix, ".installed").exists()


def locked():
    """The pins of the lock: name -> requirement."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.removesuffix(" \\")) for line in lines if re.match(r"\w", line)]
    assert len({pin.name for pin in pins}) == len(pins)
    return {pin.name: pin for pin in pins}


def test_the_lock_pins_every_dependency_to_one_version_with_hashes():
    pins = locked()
    test_extra = map(Requirement, PROJECT["optional-dependencies"]["test"])
    for need in [*NEEDS.values(), *test_extra]:
        version = str(pins[canonicalize_name(need.name)].specifier).removeprefix("==")
        assert need.specifier.contains(version), f"{need}: the lock has {version}; run `make lock`"
    text = LOCK.read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--extra|--find-links", text)
    for entry in re.split(r"\n(?=\w)", text)[1:]:
        assert re.match(r"[\w.-]+==\S+( ; .+)? \\\n    --hash=sha256:", entry)


def test_the_lock_keeps_to_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {r.name: r.specifier for r in map(Requirement, filter(re.compile(r"\w").match, lines))}
    assert pins == {"torch": "==2.14.1", "torchvision": "==0.29.1"}
    assert pins == {name: locked()[name].specifier for name in pins}


@pytest.mark.skipif(not INSTALLED_BY_MAKE, reason="this environment was not installed by make")
def test_what_is_installed_is_what_the_lock_says():
    """Packages beside these are allowed: they change no version of what ubrain imports, and the
    readers of a notebook may add their own.
    """
    here = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}
    wanted = {
        name: str(pin.specifier).removeprefix("==")
        for name, pin in locked().items()
        if pin.marker is None or pin.marker.evaluate()
    }
    assert {name: here.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("build", ["cpu", "gpu"])
def test_a_conda_environment_installs_the_project_with_versions_of_the_lock(build):
    file = ROOT / ("environment.yml" if build == "cpu" else "environment-gpu.yml")
    conda = yaml.safe_load(file.read_text(encoding="utf-8"))
    (by_pip,) = [d["pip"] for d in conda["dependencies"] if isinstance(d, dict)]
    by_conda = [d for d in conda["dependencies"] if isinstance(d, str)]
    assert "-e ." in by_pip
    assert "pip" in by_conda
    entries = [e for e in by_conda + by_pip if e not in ("pip", "-e .")]
    pins = dict(re.split("=+", entry) for entry in entries)
    assert SpecifierSet(PROJECT["requires-python"]).contains(pins.pop("python"))
    pins["torch"] = pins.pop(f"pytorch-{build}")
    assert pins == {name: str(locked()[name].specifier).removeprefix("==") for name in pins}
    assert pins.keys() <= NEEDS.keys()
    assert pins.keys() >= {*results.VERSIONS} - {"ubrain"}


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
