"""JupyterLab as people use it: `make lab` in a clone, run a notebook, save it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import nbformat
import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from ubrain.report import runs

ROOT = Path(__file__).parents[2]
FILES = (
    ".gitattributes",
    ".gitignore",
    "Makefile",
    "nbdime_config.json",
    "notebooks/jupytext.toml",
)
TOKEN = "for-this-test"
START = "00_start_here"
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"


def git(clone, *words):
    name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(
        ["git", *name, *words], cwd=clone, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def clone(tmp_path):
    """A clone with the first notebook, in the smallest profile, everything committed."""
    folder = tmp_path / "clone"
    (folder / "notebooks").mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    source = folder / "notebooks" / f"{START}.py"
    text = (ROOT / "notebooks" / source.name).read_text(encoding="utf-8")
    source.write_text(text.replace('profile = "fast"', 'profile = "smoke"'), encoding="utf-8")
    source.with_suffix(".ipynb").write_text(runs.notebook_text(source), encoding="utf-8")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")
    return folder


@pytest.fixture
def lab(browser, clone, tmp_path):
    """The address of a JupyterLab that `make lab` has started in the clone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --expose-app-in-browser --allow-root --port={port}"
    options += f" --IdentityProvider.token={TOKEN}"
    command = ["make", "-o", f"{sys.prefix}/.installed", "lab", f"VENV={sys.prefix}"]
    environment = {
        **os.environ,
        "UBRAIN_CACHE": str(tmp_path / "cache"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "PYTHONPATH": str(ROOT),
    }
    address = f"http://127.0.0.1:{port}"
    with (
        (tmp_path / "lab.log").open("w") as log,
        subprocess.Popen(
            [*command, f"LAB={options}"], cwd=clone, env=environment, stdout=log, stderr=log
        ) as running,
    ):
        try:
            wait(browser, lambda: running.poll() is not None or asked(address, "status"), 60)
            assert running.poll() is None, (tmp_path / "lab.log").read_text()
            yield address
        finally:
            with urlopen(f"{address}/api/shutdown?token={TOKEN}", data=b""):
                pass
            running.wait(30)


def asked(address, what):
    """What the server's API says; None while it does not answer."""
    try:
        with urlopen(f"{address}/api/{what}?token={TOKEN}") as answer:
            return json.load(answer)
    except OSError:
        return None


def wait(browser, condition, seconds=30):
    return WebDriverWait(browser, seconds, 0.2, (WebDriverException,)).until(lambda _: condition())


def visible(browser, selector):
    return [e for e in browser.find_elements("css selector", selector) if e.is_displayed()]


def open_file(browser, lab, name, factory=""):
    """Open a file as a link does, in a workspace of its own, and wait for its cells."""
    more = f"&factory={quote(factory)}" if factory else ""
    place = f"{lab}/lab/workspaces/w{time.monotonic_ns()}/tree/{name}"
    browser.get(f"{place}?token={TOKEN}{more}")
    wait(browser, lambda: visible(browser, f"{PANEL} .jp-Cell"), 60)


def states(lab):
    return [s["kernel"]["execution_state"] for s in asked(lab, "sessions") or []]


def save(browser, file):
    before = file.stat().st_mtime_ns
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    wait(browser, lambda: file.stat().st_mtime_ns != before)
    wait(browser, lambda: not visible(browser, ".jp-mod-current.jp-mod-dirty"))


def menu(browser, *names):
    """Choose from the menu bar."""
    for name in names:
        labels = ".lm-MenuBar-itemLabel, .lm-Menu-itemLabel"

        def found(name=name, labels=labels):
            return [e for e in visible(browser, labels) if e.text.strip() == name]

        wait(browser, found)
        found()[-1].click()


@pytest.mark.timeout(600)
def test_run_all_of_the_first_notebook_and_save(browser, lab, clone):
    file = clone / "notebooks" / f"{START}.ipynb"
    open_file(browser, lab, file.name)
    wait(browser, lambda: states(lab) == ["idle"], 60)
    menu(browser, "Run", "Run All Cells")
    figures, last = 0, time.monotonic() + 280
    wait(browser, lambda: states(lab) == ["busy"])
    idle = 0
    while idle < 3 and time.monotonic() < last:
        figures = max(figures, len(visible(browser, ".jp-OutputArea img")))
        idle = idle + 1 if states(lab) == ["idle"] else 0
        time.sleep(0.3)
    save(browser, file)
    cells = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
    outputs = [o for c in cells for o in c.outputs]
    assert not [o.evalue for o in outputs if o.output_type == "error"]
    assert "numbers ->" in str(cells[-1].outputs), cells[-1]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4
    assert figures
    wait(browser, lambda: git(clone, "status", "--porcelain") == "", 30)


def test_a_progress_bar_moves_and_goes(browser, lab, clone):
    cell = """from time import sleep
from ubrain.progress import track
for _ in track(range(40), 40, "Steps"):
    sleep(0.1)"""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel)
    nbformat.write(notebook, clone / "notebooks" / "bar.ipynb")
    open_file(browser, lab, "bar.ipynb")
    wait(browser, lambda: states(lab) == ["idle"], 60)
    menu(browser, "Run", "Run All Cells")
    seen = set()

    def shown():
        text = "".join(e.text for e in visible(browser, f"{PANEL} .jp-OutputArea-output"))
        seen.update(re.findall(r"Steps: +(\d+)%", text))
        return text

    wait(browser, lambda: shown() and len(seen) > 2)
    wait(browser, lambda: "Steps" not in shown())


def test_a_source_opens_as_a_notebook_and_a_changed_cell_is_shown(browser, lab, clone):
    source = clone / "notebooks" / f"{START}.py"
    open_file(browser, lab, f"{START}.ipynb")
    # what the menu does: Open With, Jupytext Notebook
    command = "window.jupyterapp.commands.execute('docmanager:open', arguments[0])"
    browser.execute_script(command, {"path": source.name, "factory": "Jupytext Notebook"})
    tab = f"{PANEL} .jp-CodeCell .cm-content"
    current = ".lm-mod-current .lm-TabBar-tabLabel"
    wait(browser, lambda: source.name in [e.text for e in visible(browser, current)])
    wait(browser, lambda: visible(browser, tab))[0].click()
    ActionChains(browser).send_keys("changed = 1" + Keys.ENTER).perform()
    save(browser, source)
    assert "changed = 1" in git(clone, "diff", "--", f"notebooks/{source.name}")
    open_file(browser, lab, f"{START}.ipynb")
    wait(browser, lambda: visible(browser, f"{PANEL} [data-command='nbdime:diff-git']"))[0].click()
    shown = "changed = 1"
    wait(browser, lambda: shown in "".join(e.text for e in visible(browser, ".nbdime-Widget")), 60)
