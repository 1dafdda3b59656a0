"""Notebooks: their form, their parameters, and what is published when one fails or succeeds."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial, wraps
from pathlib import Path

import h5py
import jupytext
import nbformat
import psutil
import pytest
from click.testing import CliRunner
from jupyter_client.kernelspec import get_kernel_spec

from ubrain.cli import app
from ubrain.errors import UbrainError
from ubrain.report import claims, runs
from ubrain.report.claims import Claim

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)

HEADER = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
crowd = None
split_scheme = None
profile = "fast"
seed = 0
subjects = None
value = 1.0
count = 3
flag = False

# %%
"""
SUCCEEDS = (
    HEADER
    + """import os
from functools import partial, wraps
from pathlib import Path

from ubrain.report.results import Record, write_results

out = Path(os.environ["UBRAIN_OUT"])
(out / "figures").mkdir(exist_ok=True)
(out / "figures" / "98_ok__dot.png").write_bytes(b"%f" % value)
facts = {"simulated": True, "crowd": str(crowd), "profile": profile, "seed": seed}
write_results(out / "98_ok.json", "98_ok", [Record("r", value, "x", "S1")], facts)
print("value is", value)
"""
)
FAILS = HEADER + 'print("before")\n\n# %%\nraise RuntimeError("broken on purpose")\n'
SILENT = HEADER + "value\n"
DIES = HEADER + "import os\n\nos._exit(1)\n"
TRAINS = (
    HEADER
    + """from pathlib import Path

from ubrain import train
from ubrain.report.lab import Lab

begun, unfinished = [], train.unfinished
train.unfinished = lambda *a: begun.append(a) or unfinished(*a)
lab = Lab("NAME", crowd, profile, seed, ["S1"])
lab.encoder(["S1"])
lab.record("trainings", len(begun))
lab.finish()
"""
)
WAITS = (
    HEADER
    + """import os
import time
from pathlib import Path

Path(os.environ["UBRAIN_CACHE"], f"{os.getpid()}.pid").touch()
time.sleep(600)
"""
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with nothing but notebooks, as the working directory."""
    (tmp_path / "notebooks").mkdir()
    for name, text in {
        "96_dies": DIES,
        "97_silent": SILENT,
        "98_ok": SUCCEEDS,
        "99_fail": FAILS,
    }.items():
        (tmp_path / "notebooks" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def published(project):
    return sorted(
        p
        for top in ("papermill_runs", "figures")
        for p in (project / top).rglob("*")
        if p.is_file()
    )


# --- the notebooks that ship


def code_cells(source):
    return [c for c in jupytext.read(source).cells if c.cell_type == "code"]


def test_pairs_are_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert SOURCES
    assert runs.rebuild_notebooks(check=True) == []


@each_notebook
def test_a_save_in_jupyterlab_leaves_the_source_as_it_is(source, tmp_path):
    for file in (source, source.with_suffix(".ipynb")):
        shutil.copy(file, tmp_path)
    manager = jupytext.TextFileContentsManager(root_dir=str(tmp_path))
    model = manager.get(f"{source.stem}.ipynb")
    spec = get_kernel_spec("python3")
    model["content"].metadata["kernelspec"] = {
        "display_name": spec.display_name,
        "language": spec.language,
        "name": "python3",
    }
    for cell in model["content"].cells:
        cell.update({"execution_count": 1, "outputs": []} if cell.cell_type == "code" else {})
    manager.save(model, f"{source.stem}.ipynb")
    assert (tmp_path / source.name).read_text() == source.read_text()


@each_notebook
def test_the_first_five_parameters_are_the_same_everywhere(source):
    (cell,) = [c for c in code_cells(source) if "parameters" in c.metadata.get("tags", [])]
    names = [t.id for s in ast.parse(cell.source).body for t in s.targets]
    assert names[:5] == ["crowd", "split_scheme", "profile", "seed", "subjects"]
    assert runs.parameters(source) == {
        t.id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body for t in s.targets
    }


@each_notebook
def test_notebooks_are_short_and_define_nothing(source):
    cells = code_cells(source)
    assert 8 <= len(cells) <= 22
    shown = [c for c in cells if "parameters" not in c.metadata.get("tags", [])]
    assert max(sum(map(bool, c.source.splitlines())) for c in shown) <= 12
    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [
        n.lineno for c in cells for n in ast.walk(ast.parse(c.source)) if isinstance(n, defines)
    ]
    assert "lab.finish()" in cells[-1].source
    assert f'ubrain.Lab("{source.stem}"' in "".join(c.source for c in cells)


@each_notebook
def test_notebooks_hold_no_outputs(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert len(code) == len(code_cells(source))
    assert not any(c.outputs or c.execution_count for c in code)


def test_rebuilding_twice_changes_nothing_the_second_time(project):
    changed = runs.rebuild_notebooks()
    assert [p.name for p in changed] == [
        "96_dies.ipynb",
        "97_silent.ipynb",
        "98_ok.ipynb",
        "99_fail.ipynb",
    ]
    assert runs.rebuild_notebooks() == runs.rebuild_notebooks(check=True) == []
    (project / "notebooks" / "99_fail.py").write_text(SILENT)
    assert [p.name for p in runs.rebuild_notebooks(check=True)] == ["99_fail.ipynb"]
    assert "broken on purpose" in (project / "notebooks" / "99_fail.ipynb").read_text()


@pytest.mark.parametrize("pattern", ["98*", "98_ok", "98_ok.py", "notebooks/98_ok.ipynb"])
def test_notebooks_are_found_by_name_or_pattern(project, pattern):
    assert [p.stem for p in runs.find_notebooks(pattern)] == ["98_ok"]


def test_unknown_notebook_names_the_known_ones(project):
    with pytest.raises(
        UbrainError,
        match="no notebook matches 'nope'; there are: 96_dies, 97_silent, 98_ok, 99_fail",
    ):
        runs.find_notebooks("nope")


# --- parameters


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sed": 3}, "98_ok has no parameter 'sed'; it has crowd, split_scheme, profile"),
        ({"count": "false"}, "parameter 'count' is 'false', expected a int"),
        ({"count": "3"}, "parameter 'count' is '3', expected a int"),
        ({"count": True}, "parameter 'count' is True, expected a int"),
        ({"count": 3.0}, "parameter 'count' is 3.0, expected a int"),
        ({"flag": "false"}, "parameter 'flag' is 'false', expected a bool"),
        ({"flag": 0}, "parameter 'flag' is 0, expected a bool"),
        ({"value": True}, "parameter 'value' is True, expected a float"),
        ({"profile": 3}, "parameter 'profile' is 3, expected a str"),
        ({"profile": "huge"}, "unknown profile 'huge': expected one of smoke, fast, paper"),
        ({"seed": "3"}, "parameter 'seed' is '3', expected a int"),
        ({"seed": -1}, "seed: expected 0 or a positive number, got -1"),
        ({"seed": None}, "seed: expected 0 or a positive number, got None"),
        ({"crowd": 3}, "parameter 'crowd' is 3, expected a str such as 'mine.h5'"),
        ({"crowd": "nowhere.h5"}, "nowhere.h5"),
        ({"split_scheme": 5}, "parameter 'split_scheme' is 5, expected a str such as 'tau'"),
        ({"split_scheme": "tau"}, "split_scheme: the simulated crowd has one split; give a crowd"),
        (
            {"subjects": {1: 2}},
            "expected null, true, false, a number, a text, or a list or mapping of these",
        ),
        ({"subjects": [float("nan")]}, "expected null, true, false, a number"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(project, monkeypatch, given, message):
    monkeypatch.setattr(runs, "execute", lambda *a: pytest.fail("it ran"))
    with pytest.raises(UbrainError, match=message):
        runs.run_notebooks("98_ok", parameters=given)
    assert not published(project)


def test_a_report_is_of_this_machine_if_it_has_numbers(project):
    theirs, ours = project / "papermill_runs" / "x-fast", project / "cache" / "runs" / "x-fast"
    for folder in (theirs, ours):
        folder.mkdir(parents=True)
    (theirs / "01.json").write_text("{}")
    assert runs.folder_of("x-fast", own=True).resolve() == theirs.resolve()
    (ours / "01.json").write_text("{}")
    assert runs.folder_of("x-fast", own=True).resolve() == ours.resolve()
    assert runs.folder_of("x-fast").resolve() == theirs.resolve()


def test_a_run_by_a_scheme_has_a_folder_of_its_own(project, monkeypatch, small_crowd):
    used, path = [], project / "small.h5"
    monkeypatch.setattr(runs, "execute", lambda source, given, out: used.append((out.name, given)))
    monkeypatch.setattr(runs, "_move", lambda *a: Path("98_ok.json"))
    shutil.copy(small_crowd, path)
    with h5py.File(path, "r+") as file:
        file["images/schemes/tau"] = file["images/split"][:]
    for more in ({"split_scheme": "tau"}, {"parameters": {"split_scheme": "tau"}}, {}):
        runs.run_notebooks("98_ok", crowd=str(path), **more)
    assert [name for name, _ in used] == ["small-fast-split-tau"] * 2 + ["small-fast"]
    assert [given.get("split_scheme") for _, given in used] == ["tau", "tau", None]
    with pytest.raises(UbrainError, match=r"no split scheme 'ood' in small\.h5; it has tau"):
        runs.run_notebooks("98_ok", crowd=str(path), split_scheme="ood")


def test_parameters_are_checked_for_all_notebooks_first(project, monkeypatch):
    (project / "notebooks" / "99_fail.py").write_text(FAILS.replace("value = 1.0\n", ""))
    monkeypatch.setattr(runs, "execute", lambda *a: pytest.fail("it ran"))
    with pytest.raises(UbrainError, match="99_fail has no parameter 'value'"):
        runs.run_notebooks("9*", parameters={"value": 2.0})


def test_right_parameters_are_accepted(project):
    source = project / "notebooks" / "98_ok.py"
    runs.check_parameters(
        source, {"crowd": "a.h5", "subjects": ["S1"], "value": 2, "flag": True, "count": 0}
    )
    runs.check_parameters(source, {"crowd": None, "profile": "smoke"})


def test_a_run_goes_under_the_name_of_its_parameters(project, monkeypatch, small_crowd):
    """`-p seed 3` is `--seed 3`, and must not overwrite the run of seed 0."""
    used = []
    monkeypatch.setattr(runs, "execute", lambda source, given, out: used.append(out.name))
    monkeypatch.setattr(runs, "_move", lambda *a: Path("98_ok.json"))
    many = list(range(100))
    for given in (
        {},
        {"seed": 3},
        {"profile": "smoke"},
        {"crowd": str(small_crowd)},
        {"value": 0.5},
        {"value": -0.5},
        {"subjects": [*many, 1]},
        {"subjects": [*many, 2]},
    ):
        runs.run_notebooks("98_ok", parameters=given)
    assert used[:4] == ["simulated-fast", "simulated-fast-seed3", "simulated-smoke", "small-fast"]
    assert len(set(used)) == len(used)
    assert max(map(len, used)) < 100


@pytest.mark.parametrize(
    ("settings", "name"), [({"seed": 2}, "seed"), ({"profile": "smoke"}, "profile")]
)
def test_a_setting_given_twice_has_to_be_the_same(project, monkeypatch, settings, name):
    monkeypatch.setattr(runs, "execute", lambda *a: pytest.fail("it ran"))
    with pytest.raises(UbrainError, match=f"{name} is given twice"):
        runs.run_notebooks(
            "98_ok", parameters={name: {"seed": 3, "profile": "paper"}[name]}, **settings
        )


@pytest.mark.parametrize("cell", ["a = int(3)", "a = x"])
def test_parameters_cell_holds_literals_only(tmp_path, cell):
    source = tmp_path / "98_x.py"
    source.write_text(f'# %% tags=["parameters"]\n{cell}\n')
    with pytest.raises(UbrainError, match="parameter"):
        runs.check_parameters(source, {})


@pytest.mark.parametrize("count", [0, 2])
def test_one_parameters_cell(tmp_path, count):
    source = tmp_path / "98_x.py"
    source.write_text('# %% tags=["parameters"]\na = 1\n\n' * count + "# %%\nb = 2\n")
    with pytest.raises(
        UbrainError, match=f"expected one cell with the tag 'parameters', found {count}"
    ):
        runs.check_parameters(source, {})


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("flag=false", False),
        ("n=[1,2]", [1, 2]),
        ("n=3", 3),
        ("x=0.5", 0.5),
        ("s=text", "text"),
        ("s='3'", "3"),
        ("s=a=b", "a=b"),
        ("s=null", None),
        ("names=[S1, S2]", ["S1", "S2"]),
        ("x=1e-3", 1e-3),
        ("x=[-2E5]", [-2e5]),
        ("s=1e", "1e"),
        ("s='1e-3'", "1e-3"),
    ],
)
def test_parameters_are_yaml(pair, expected):
    (value,) = runs.parse_parameters([pair]).values()
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "pair",
    [
        "flag",
        "=3",
        "my flag=3",
        "n=[1,2",
        "n={",
        "",
        "n=*a",
        "n=[&a 1, *a]",
        "n={a: 1, a: 2}",
        "n={[1]: 2}",
        "n=!!python/name:os.system",
        "n=1\x00",
        "n=" + "[" * 5000,
    ],
)
def test_malformed_parameters_are_refused(pair):
    with pytest.raises(UbrainError, match=f"parameter {re.escape(repr(pair)[:60])}"):
        runs.parse_parameters(["fine=1", pair])


def test_a_parameter_given_twice_has_to_be_the_same():
    assert runs.parse_parameters(["n=[1]", "n=[1]"]) == {"n": [1]}
    with pytest.raises(UbrainError, match="'n' is given twice: 1 and True"):
        runs.parse_parameters(["n=1", "n=true"])


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "n", "[25, 100]", "-p", "seed", "3"],
        ["--parameter", "n", "[25, 100]", "-p", "seed=3"],
        ["-p", "n=[25, 100]", "--parameter", "seed=3"],
        ["-p", "seed", "3", "--parameter=n=[25, 100]"],
    ],
)
def test_parameters_on_the_command_line(monkeypatch, words):
    seen = {}

    @wraps(runs.run_notebooks)
    def instead(*a):
        seen.update(notebook=a[0], given=a[4], out=a[5], jobs=a[6])
        return []

    monkeypatch.setattr(runs, "run_notebooks", instead)
    for order, jobs in ((["98_ok", *words], "2"), ([*words, "98_ok"], "auto")):
        done = CliRunner().invoke(app, ["run", *order, "--out", "here", "--jobs", jobs])
        assert done.exit_code == 0, done.output
        assert seen == {
            "notebook": "98_ok",
            "given": {"n": [25, 100], "seed": 3},
            "out": Path("here"),
            "jobs": {"2": 2, "auto": 0}[jobs],
        }


@pytest.mark.parametrize(
    "words", [["-p", "seed"], ["-p"], ["-p", "a", "b", "-p", "seed"], ["--jobs", "many"]]
)
def test_an_option_without_a_right_value_is_refused(project, monkeypatch, words):
    refuse = wraps(runs.run_notebooks)(lambda *a: pytest.fail("it ran"))
    monkeypatch.setattr(runs, "run_notebooks", refuse)
    done = CliRunner().invoke(app, ["run", "98_ok", *words])
    assert done.exit_code != 0


def test_force_names_the_command_that_replaces_it(project, monkeypatch):
    refuse = wraps(runs.run_notebooks)(lambda *a: pytest.fail("it ran"))
    monkeypatch.setattr(runs, "run_notebooks", refuse)
    done = CliRunner().invoke(app, ["run", "98_ok", "--force"])
    assert isinstance(done.exception, UbrainError)
    assert "`ubrain publish` replaces the published run" in str(done.exception)


# --- running


def test_a_failing_notebook_publishes_nothing_and_is_kept(project):
    before = dict(os.environ)
    with pytest.raises(
        UbrainError, match=r"99_fail failed; the executed notebook is .*99_fail\.ipynb"
    ) as caught:
        runs.run_notebooks("99_fail", profile="smoke")
    assert "broken on purpose" in str(caught.value)
    kept = Path(re.search(r"executed notebook is (\S+)", str(caught.value))[1])
    outputs = [
        o
        for c in nbformat.read(kept, as_version=4).cells
        if c.cell_type == "code"
        for o in c.outputs
    ]
    assert "before\n" in [o.text for o in outputs if o.output_type == "stream"]
    assert "broken on purpose" in [o.evalue for o in outputs if o.output_type == "error"]
    assert not published(project)
    assert dict(os.environ) == before


def test_a_dying_kernel_is_an_error_of_ubrain(project):
    with pytest.raises(UbrainError, match="96_dies"):
        runs.run_notebooks("96_dies")
    assert not published(project)


def test_a_notebook_without_numbers_is_refused(project):
    with pytest.raises(
        UbrainError, match=r"97_silent ran, but recorded no numbers; .* `lab.finish\(\)`"
    ):
        runs.run_notebooks("97_silent")
    assert not published(project)


@pytest.fixture
def instead(project, monkeypatch):
    """Notebooks 01, 04 and 07, and a list of what ran, with its environment, instead of kernels; 01
    and 07 fail.
    """
    ran = []

    def execute(source, given, out):
        ran.append((source.stem, dict(os.environ)))
        if source.stem in ("01_a", "07_c"):
            raise UbrainError(f"{source.stem} is broken")

    for name in ("01_a", "04_b", "07_c"):
        (project / "notebooks" / f"{name}.py").write_text(SUCCEEDS)
    monkeypatch.setattr(runs, "execute", execute)
    monkeypatch.setattr(runs, "_move", lambda name, *_: Path(f"{name}.json"))
    monkeypatch.setattr(runs, "n_cores", lambda: 6)
    return ran


@pytest.mark.parametrize(
    ("jobs", "order"), [(1, ["01_a", "04_b", "07_c"]), (2, ["01_a", "07_c", "04_b"])]
)
def test_when_notebooks_fail_the_others_finish(instead, caplog, jobs, order):
    caplog.set_level("INFO", "ubrain")
    with pytest.raises(UbrainError, match=r"^01_a is broken\n07_c is broken$"):
        runs.run_notebooks("0*", jobs=jobs)
    assert sorted(name for name, _ in instead) == ["01_a", "04_b", "07_c"]
    lines = [f"{name}: running ({i} of 3, {3 - i} waiting)" for i, name in enumerate(order, 1)]
    assert set(lines) <= set(caplog.messages)
    assert "04_b: 0 s" in caplog.messages


@pytest.mark.parametrize(
    ("jobs", "given", "threads"),
    [(1, None, None), (2, None, "3"), (None, None, "2"), (2, "5", "5"), (99, None, "2")],
)
def test_the_environment_is_that_of_the_run_and_restored(
    instead, monkeypatch, tmp_path, jobs, given, threads
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = dict(os.environ)
    with pytest.raises(UbrainError):
        runs.run_notebooks("0*", out=tmp_path / "out", jobs=jobs)
    assert dict(os.environ) == before
    for _, environment in instead:
        assert environment.get("OMP_NUM_THREADS") == threads
        assert environment["UBRAIN_OUT"] == str(tmp_path / "out/unfinished/simulated-fast")


def test_how_long_the_rest_takes_follows_from_the_published_run(instead, monkeypatch, caplog):
    caplog.set_level("INFO", "ubrain")
    monkeypatch.setattr(runs.results, "published", lambda run, notebook: {"seconds": 1e5})
    monkeypatch.setattr(runs, "compare", lambda run, file: None)
    with pytest.raises(UbrainError):
        runs.run_notebooks("0*", jobs=1)
    counts = [m for m in caplog.messages if " of 3 after " in m]
    assert counts == ["1 of 3 after 0 s", "2 of 3 after 0 s, about 0 s left", "3 of 3 after 0 s"]


def test_on_a_gpu_notebooks_run_one_after_another(instead, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UbrainError):
        runs.run_notebooks("0*")
    assert [name for name, _ in instead] == ["01_a", "04_b", "07_c"]


def test_two_notebooks_side_by_side_train_an_encoder_once(project):
    for name in ("01_a", "02_b"):
        text = TRAINS.replace("NAME", name)
        (project / "notebooks" / f"{name}.py").write_text(text)
    here = Path.cwd()
    outcomes = runs.run_notebooks("0*", profile="smoke", jobs=2)
    assert [o.notebook for o in outcomes] == ["01_a", "02_b"]
    documents = [json.loads(o.file.read_text()) for o in outcomes]
    assert sum(d["results"][0]["value"] for d in documents) == 1
    assert Path.cwd() == here


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_the_kernels(project):
    for name in ("01_a", "02_b", "03_c"):
        (project / "notebooks" / f"{name}.py").write_text(WAITS)
    command = [sys.executable, "-m", "ubrain.cli", "run", "0*", "--jobs", "2"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background is deaf
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as running:
        while running.poll() is None and len(found := [*project.glob("cache/*.pid")]) < 2:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert "03_c" not in said
    assert not any(psutil.pid_exists(int(path.stem)) for path in found)


def commit(project, message="x"):
    for words in (["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm"]):
        words = [*words, message] if "commit" in words else words
        subprocess.run(["git", *words], cwd=project, check=True)


def change(project, old, new):
    source = project / "notebooks" / "98_ok.py"
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, new))


def test_running_compares_and_publishing_publishes(project):
    """A run leaves the published files alone, and says whether it agrees with them; they change
    when a clean run of the committed notebooks is published.
    """
    (project / ".gitignore").write_text("cache/\n")
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    with pytest.raises(UbrainError, match="nothing to publish in"):
        runs.publish(profile="smoke")
    (outcome,) = runs.run_notebooks("98_ok", profile="smoke")
    assert (outcome.notebook, outcome.agrees) == ("98_ok", None)
    assert not published(project)
    with pytest.raises(UbrainError, match="commit your changes before publishing"):
        runs.publish(profile="smoke")
    commit(project)
    with pytest.raises(UbrainError, match="98_ok was run with uncommitted changes"):
        runs.publish(profile="smoke")

    (outcome,) = runs.run_notebooks("98_ok", profile="smoke")
    text = outcome.file.read_text()
    outcome.file.write_text(text.replace('"simulated"', '"publishable": false,\n "simulated"'))
    with pytest.raises(UbrainError, match=r"98_ok shows images, .* again with --without-images"):
        runs.publish(profile="smoke")
    outcome.file.write_text(text)
    (json_file,) = runs.publish(profile="smoke")
    assert json_file == project / "papermill_runs" / "simulated-smoke" / "98_ok.json"
    assert [str(p.relative_to(project)) for p in published(project)] == [
        "figures/simulated-smoke/98_ok__dot.png",
        "papermill_runs/simulated-smoke/98_ok.ipynb",
        "papermill_runs/simulated-smoke/98_ok.json",
    ]
    executed = nbformat.read(json_file.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(executed)
    outputs = [o.text for c in executed.cells if c.cell_type == "code" for o in c.outputs]
    assert "value is 1.0\n" in outputs
    assert str(project) not in json_file.with_suffix(".ipynb").read_text()
    assert "papermill" not in executed.metadata
    commit(project)
    first = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in published(project)}

    change(project, "value = 1.0", "value = 1.0005")
    assert runs.run_notebooks("98_ok", profile="smoke")[0].agrees is True
    change(project, "value = 1.0005", "value = 1.5")
    (outcome,) = runs.run_notebooks("98_ok", profile="smoke")
    assert outcome.agrees is False
    (difference,) = outcome.comparison.differences
    assert (difference.published, difference.here) == (1.0, 1.5)
    assert CliRunner().invoke(app, ["run", "98_ok", "--profile", "smoke"]).exit_code == 1
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in published(project)} == first

    commit(project)
    runs.run_notebooks("98_ok", profile="smoke")
    (project / "README.md").write_text("prose, on which no number depends")
    commit(project)
    runs.publish("98_ok", profile="smoke")
    assert json.loads(json_file.read_text())["results"][0]["value"] == 1.5
    commit(project)
    change(project, "value = 1.5", "value = 1.6")
    commit(project)
    with pytest.raises(UbrainError, match="98_ok has changed since it was run"):
        runs.publish(profile="smoke")
    change(project, "value = 1.6", "value = 1.5")
    (project / "code.py").write_text("")
    commit(project)
    with pytest.raises(UbrainError, match="98_ok was run with commit"):
        runs.publish(profile="smoke")


def test_the_answer_is_that_of_the_numbers_just_recorded(project, monkeypatch):
    claim = Claim("x", "all is well", "98_ok", "r", "x", "value > 0.9", verdict=True)
    monkeypatch.setattr(claims, "read", lambda: [claim])
    change(project, "# %%\nimport os", '# %% tags=["answer"]\nprint("old")\n\n# %%\nimport os')
    (outcome,) = runs.run_notebooks("98_ok", profile="smoke")
    cells = nbformat.read(outcome.file.with_suffix(".ipynb"), as_version=4).cells
    (answer,) = [c for c in cells if "answer" in c.metadata.get("tags", [])]
    assert [o.text for o in answer.outputs] == ["Holds: all is well: 1.000, in 1 of 1 subject.\n"]


@pytest.mark.parametrize(
    "executed", sorted(ROOT.glob("papermill_runs/*/*.ipynb")), ids=lambda p: p.parent.name + p.stem
)
def test_committed_runs_are_those_of_the_committed_notebooks(executed):
    """Their numbers come from a clean commit, and their code is that of `notebooks/`."""
    document = json.loads(executed.with_suffix(".json").read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{7,40}", document["commit"])
    assert runs.same_sources(executed, ROOT / "notebooks" / f"{executed.stem}.py")


def test_out_takes_everything(project):
    """The project's own folders stay empty, nothing but the results is left, and a failed notebook
    is kept.
    """
    out = project / "mine" / "deep"
    (outcome,) = runs.run_notebooks(
        "98_ok", parameters={"seed": 3, "value": 2}, out=Path("mine/deep")
    )
    assert not published(project)
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {"98_ok.ipynb", "98_ok.json", "figures/98_ok__dot.png"}
    assert outcome.file == out / "98_ok.json"
    assert json.loads(outcome.file.read_text())["seed"] == 3
    with pytest.raises(UbrainError, match="99_fail failed"):
        runs.run_notebooks("99_fail", parameters={"seed": 3, "value": 2}, out=out)
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} - files == {
        "unfinished/simulated-fast-seed3-value_2/99_fail.ipynb"
    }


def test_out_has_to_be_a_folder(project, monkeypatch):
    monkeypatch.setattr(runs, "execute", lambda *a: pytest.fail("it ran"))
    (project / "file").write_text("kept")
    with pytest.raises(UbrainError, match="--out file/x: expected a folder"):
        runs.run_notebooks("98_ok", out=Path("file/x"))
    assert (project / "file").read_text() == "kept"


def test_command_line_reports_errors_without_a_traceback(project):
    command = [str(Path(sys.executable).with_name("ubrain")), "run"]
    done = subprocess.run(
        [*command, "nope"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "ubrain: no notebook matches 'nope'; there are: 96_dies" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not published(project)
