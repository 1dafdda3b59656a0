"""Sweeps: what a grid may say, what runs, what is left when something fails or stops, and the
table at the end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import wraps
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from ubrain import resume
from ubrain.cli import app
from ubrain.errors import UbrainError
from ubrain.report import runs, sweep

NOTEBOOK = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
subjects = None
n_images = [25]
rate = 0.1

# %%
import json
import os
from functools import wraps
from pathlib import Path

print("before")
assert rate < 1, "broken on purpose"
record = {"name": "r", "value": rate + seed, "condition": "x", "subject": "S1"}
record |= {"low": None, "high": None, "n": 7, "unit": "r"}
document = {"seed": seed, "commit": "c", "results": [record]}
Path(os.environ["UBRAIN_OUT"], "98_ok.json").write_text(json.dumps(document))
"""
RUN = r"""
import json, os, sys, time
from functools import wraps
from pathlib import Path

out, given = Path(sys.argv[1]), json.loads(sys.argv[2])
with open(out.parent / "started.txt", "a") as log:
    log.write(f"{out.name} {os.environ['OMP_NUM_THREADS']}\n")
(out / "begun").write_text(str(time.monotonic()))
time.sleep(float(os.environ.get("UBRAIN_TEST_SLEEP", "0")))
if os.environ.get("UBRAIN_TEST_FAIL", "no seed") in out.name:
    sys.exit("ubrain: broken on purpose\nfor the second time")
if "silent" in os.environ.get("UBRAIN_TEST_FAIL", ""):
    sys.exit()
record = {"condition": "x", "low": None, "high": None, "n": 7, "unit": "r"}
seed = given.get("seed", 0)
values = {"S1": seed, "S2": 1 + seed, "S3": 5 + seed, "all": 3}
results = [{"name": "r", "subject": s, "value": v, **record} for s, v in values.items()]
results += [{"name": "nothing", "subject": "S1", "value": None, **record}]
(out / "98_ok.json").write_text(json.dumps({"commit": "c", "results": results}))
(out / "ended").write_text(str(time.monotonic()))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with one notebook, as the working directory."""
    (tmp_path / "notebooks").mkdir()
    for name in ("98_ok", "99_other"):
        (tmp_path / "notebooks" / f"{name}.py").write_text(NOTEBOOK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def quick(project, monkeypatch):
    """Runs are a small script instead of papermill; returns the names of those that started since
    last asked.
    """
    (project / "run.py").write_text(RUN)

    def command(notebook, parameters, folder):
        return [sys.executable, "-S", str(project / "run.py"), str(folder), json.dumps(parameters)]

    def started(out):
        log = out / "runs" / "started.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return sorted(line.split()[0] for line in lines)

    monkeypatch.setattr(runs, "command", command)
    return started


def grid(
    project,
    text="{notebook: 98_ok, parameters: "
    "{seed: [0, 1, 2], profile: smoke, n_images: [[25], [25, 100]]}}",
):
    (project / "grid.yaml").write_text(text)
    return sweep.read_grid(project / "grid.yaml")


# --- the grid


def test_lists_are_swept_over_and_the_rest_is_fixed(project):
    read = grid(project)
    assert (read.notebook, read.fixed, read.n_runs) == ("98_ok", {"profile": "smoke"}, 6)
    points = list(read.runs().values())
    assert points == [{"seed": s, "n_images": n} for s in (0, 1, 2) for n in ([25], [25, 100])]
    assert list(read.runs())[1] == "1-seed_0-n_images_25_100"


def test_a_grid_without_lists_is_one_run(project):
    read = grid(project, "{notebook: notebooks/98_ok.py, parameters: {seed: 3, rate: 1e-3}}")
    assert read.runs() == {"0": {}}
    assert read.fixed == {"seed": 3, "rate": 1e-3}


def test_names_of_runs_differ_however_long_their_values(project):
    long = [list(range(99)), list(range(100))]
    read = grid(project, f"{{notebook: 98_ok, parameters: {{n_images: {long}, seed: [1, 2]}}}}")
    assert len(read.runs()) == 4
    assert max(map(len, read.runs())) <= 100


def test_crowd_files_are_the_same_from_everywhere(project, small_crowd):
    (project / "small.h5").symlink_to(small_crowd)
    read = grid(project, "{notebook: 98_ok, parameters: {crowd: [null, small.h5]}}")
    assert read.swept == {"crowd": [None, str(small_crowd)]}


BAD = {
    "": "expected `notebook: NAME` and `parameters: ",
    "just text": "expected `notebook: NAME`",
    "[1, 2]": "expected `notebook: NAME`",
    "{notebook: 98_ok}": "expected `notebook: NAME`",
    "{notebook: 98_ok, parameters: {}, jobs: 3}": "expected `notebook: NAME`",
    "{notebook: 3, parameters: {}}": "notebook is 3",
    "{notebook: 98_ok, parameters: [seed]}": r"parameters is \['seed'\]",
    "{notebook: nope, parameters: {}}": "no notebook matches 'nope'; there are: 98_ok, 99_other",
    "{notebook: '*', parameters: {}}": "'*' is 2 notebooks".replace("*", r"\*"),
    "{notebook: 98_ok, parameters: {sed: [0]}}": "98_ok has no parameter 'sed'",
    "{notebook: 98_ok, parameters: {sed: 0}}": "98_ok has no parameter 'sed'",
    "{notebook: 98_ok, parameters: {1: 0}}": "98_ok has no parameter 1",
    "{notebook: 98_ok, parameters: {seed: [0, '1']}}": "parameter 'seed' is '1', expected a int",
    "{notebook: 98_ok, parameters: {seed: [0, true]}}": "parameter 'seed' is True, expected a int",
    "{notebook: 98_ok, parameters: {seed: [0, -1]}}": (
        "seed: expected 0 or a positive number, got -1"
    ),
    "{notebook: 98_ok, parameters: {seed: []}}": (
        r"'seed': expected a list of different values, got \[\]"
    ),
    "{notebook: 98_ok, parameters: {seed: [0, 1, 0]}}": (
        r"'seed': expected a list of different values, got \[0, 1, 0\]"
    ),
    "{notebook: 98_ok, parameters: {n_images: [25, 50]}}": (
        r"is 25, expected a list such as \[25\]; in a grid a list is swept"
    ),
    "{notebook: 98_ok, parameters: {profile: [smoke, huge]}}": "unknown profile 'huge'",
    "{notebook: 98_ok, parameters: {crowd: [nowhere.h5]}}": "nowhere.h5",
    "{notebook: 98_ok, parameters: {subjects: 2020-01-01}}": (
        "expected null, true, false, a number, a text, or a list"
    ),
    "{notebook: 98_ok, parameters: {subjects: [{2020-01-01: 1}]}}": (
        "expected null, true, false, a number"
    ),
    "{notebook: 98_ok, parameters: {rate: .nan}}": "expected null, true, false, a number",
    "{notebook: 98_ok, parameters: {seed: 1, seed: 2}}": "'seed' comes twice",
    "{notebook: 98_ok, parameters: {seed: 1:30}}": "1:30 is a number to base 60",
    "{notebook: 98_ok, parameters: {seed: [1, 1:30.5]}}": "1:30.5 is a number to base 60",
    "{notebook: 98_ok, parameters: {subjects: &a [x], n_images: *a}}": (
        "references .* are not supported"
    ),
    "{notebook: 98_ok, parameters: {subjects: !!python/object/apply:os.getcwd []}}": (
        "not valid YAML"
    ),
    "{notebook: 98_ok, parameters: {": "not valid YAML",
    "{notebook: 98_ok, parameters: " + "[" * 5000: "not valid YAML",
    "{notebook: 98_ok, parameters: {seed: " + "9" * 5000 + "}}": "not valid YAML",
    "{notebook: 98_ok, parameters: {seed: ["
    + ", ".join(map(str, range(1001)))
    + "]}}": "1,001 runs; more than 1,000",
    "{notebook: 98_ok, parameters: {seed: ["
    + ", ".join(map(str, range(60)))
    + "], rate: ["
    + ", ".join(map(str, range(60)))
    + "], subjects: ["
    + ", ".join(map(str, range(60)))
    + "]}}": "216,000 runs",
    "#" * 1_000_001: "expected at most 1000000",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=range(len(BAD)))
def test_wrong_grids_are_refused(project, text, message):
    with pytest.raises(UbrainError, match=message) as caught:
        grid(project, text)
    assert "grid.yaml" in str(caught.value) or "there are" in str(caught.value)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"notebook: \x00", None])
def test_a_grid_that_is_no_text_is_refused(project, content):
    path = project / "grid.yaml"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(UbrainError, match=r"grid\.yaml"):
        sweep.read_grid(path)


def test_many_runs_can_be_allowed(project):
    (project / "grid.yaml").write_text(
        f"{{notebook: 98_ok, parameters: {{seed: {list(range(12))}}}}}"
    )
    with pytest.raises(UbrainError, match="12 runs; more than 11 take a larger --max-runs"):
        sweep.read_grid(project / "grid.yaml", most_runs=11)
    assert list(sweep.read_grid(project / "grid.yaml", most_runs=12).runs())[:2] == [
        "00-seed_0",
        "01-seed_1",
    ]


# --- running


def test_what_has_finished_does_not_run_again(project, quick):
    read, out = grid(project), project / "out"
    table, errors = sweep.sweep(read, out)
    assert not errors
    assert quick(out) == list(read.runs())
    again, _ = sweep.sweep(read, out)
    assert quick(out) == []
    pd.testing.assert_frame_equal(again, table)
    (out / "runs" / "3-seed_1-n_images_25_100" / "98_ok.json").unlink()
    sweep.sweep(read, out)
    assert quick(out) == ["3-seed_1-n_images_25_100"]


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(project, quick, monkeypatch):
    read, out = grid(project), project / "out"
    table, errors = sweep.sweep(read, out, environment={"UBRAIN_TEST_FAIL": "seed_1"})
    failed = ["2-seed_1-n_images_25", "3-seed_1-n_images_25_100"]
    assert errors == dict.fromkeys(failed, "ubrain: broken on purpose\nfor the second time")
    assert [(out / "runs" / name / "error.txt").read_text() for name in failed] == [
        f"{e}\n" for e in errors.values()
    ]
    assert len(quick(out)) == 6
    assert set(table["seed"]) == {0, 2}
    table, errors = sweep.sweep(read, out)
    assert quick(out) == failed
    assert not errors
    assert set(table["seed"]) == {0, 1, 2}
    assert not list(out.rglob("error.txt"))


def test_a_run_that_ends_well_but_without_numbers_has_failed(project, quick):
    _, errors = sweep.sweep(
        grid(project), project / "out", environment={"UBRAIN_TEST_FAIL": "silent"}
    )
    assert set(errors.values()) == {"ended with exit code 0 and said nothing"}
    assert len(errors) == 6


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_run_at_a_time_and_share_the_threads(project, quick, monkeypatch, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    read, out = grid(project), project / "out"
    sweep.sweep(read, out, jobs, environment={"UBRAIN_TEST_SLEEP": "0.3"})
    threads = {line.split()[1] for line in (out / "runs" / "started.txt").read_text().splitlines()}
    assert threads == {str(6 // jobs)}
    times = [
        [float((out / "runs" / n / end).read_text()) for end in ("begun", "ended")]
        for n in read.runs()
    ]
    assert max(sum(a < t < b for a, b in times) for t, _ in times) + 1 == jobs


def test_threads_are_never_more_than_allowed(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for allowed, jobs, expected in (
        ("", 2, "4"),
        ("4", 2, "2"),
        ("1", 2, "1"),
        ("16", 2, "4"),
        ("x", 3, "2"),
        ("", 20, "1"),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", allowed)
        assert sweep._threads(jobs) == {"OMP_NUM_THREADS": expected}


def test_a_folder_belongs_to_one_grid(project, quick):
    out = project / "out"
    sweep.sweep(grid(project), out)
    quick(out)
    for other in (
        (
            "{notebook: 99_other, parameters: {seed: [0, 1, 2], profile: smoke, n_images: [[25],"
            " [25, 100]]}}"
        ),
        (
            "{notebook: 98_ok, parameters: {seed: [0, 1], profile: smoke, n_images: [[25], [25,"
            " 100]]}}"
        ),
        (
            "{notebook: 98_ok, parameters: {n_images: [[25], [25, 100]], seed: [0, 1, 2], profile:"
            " smoke}}"
        ),
        "{notebook: 98_ok, parameters: {seed: [0, 1, 2], n_images: [[25], [25, 100]]}}",
    ):
        with pytest.raises(UbrainError, match="was begun with other settings"):
            sweep.sweep(grid(project, other), out)
    (project / "mine").mkdir()
    (project / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UbrainError, match="is not empty, and not the folder of a sweep"):
        sweep.sweep(grid(project), project / "mine")
    assert quick(out) == quick(project / "mine") == []


def test_two_sweeps_do_not_share_a_folder(project, quick):
    out = project / "out"
    out.mkdir()
    with (
        resume.locked(out, "something else"),
        pytest.raises(UbrainError, match="another process is busy with the sweep in "),
    ):
        sweep.sweep(grid(project), out)
    assert quick(out) == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.skipif(sys.platform != "linux", reason="runs end with their sweep on Linux")
def test_a_sweep_whose_runs_outlive_it_for_a_moment_continues(project):
    """kill -9 of a sweep whose run is a notebook with a kernel."""
    text = "{notebook: 98_ok, parameters: {seed: [0], profile: smoke}}"
    slow = NOTEBOOK.replace('print("before")', "import time; time.sleep(5 * (seed == 0))")
    (project / "notebooks" / "98_ok.py").write_text(slow)
    (project / "grid.yaml").write_text(text)
    words = [sys.executable, "-m", "ubrain.cli", "sweep", "grid.yaml", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(sweep.__file__).parents[2])}
    running = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 100
    while not list(project.glob("out/runs/*/unfinished/*/98_ok.ipynb")):
        assert time.monotonic() < limit
        time.sleep(0.05)
    running.kill()
    running.wait()
    again = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert not list((project / "out").rglob("*.partial"))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_leaves_what_has_finished_and_no_process(project, quick, stop):
    program = """
import signal, sys
from pathlib import Path
from ubrain import cli
from ubrain.report import sweep
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, cli._terminate)
run = [sys.executable, "-S", "run.py"]
sweep.runs.command = lambda n, p, folder: [*run, str(folder), sweep.json.dumps(p)]
grid = sweep.read_grid(Path("grid.yaml"))
sweep.sweep(grid, Path("out"), 2, {"UBRAIN_TEST_SLEEP": "0"})
"""
    slow = RUN.replace('os.environ.get("UBRAIN_TEST_SLEEP", "0")', '60 * (given["seed"] > 0)')
    (project / "run.py").write_text(slow)
    read, out = grid(project), project / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path(sweep.__file__).parents[2])}
    running = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL
    )
    waits = [out / "runs" / name / "begun" for name in list(read.runs())[2:4]]
    limit = time.monotonic() + 100
    while not all(w.exists() for w in waits) and time.monotonic() < limit:
        time.sleep(0.05)
    running.send_signal(stop)
    assert running.wait(60) != 0
    assert [n for n in read.runs() if (out / "runs" / n / "98_ok.json").exists()] == list(
        read.runs()
    )[:2]
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(out / "runs") not in left
    (project / "run.py").write_text(RUN)
    quick(out)
    sweep.sweep(read, out)
    assert quick(out) == list(read.runs())[2:]


# --- the table


def test_the_table_holds_every_number_with_its_parameters(project, quick):
    read, out = grid(project), project / "out"
    table, _ = sweep.sweep(read, out)
    assert list(table) == [
        "run",
        "seed",
        "n_images",
        "name",
        "value",
        "condition",
        "subject",
        "low",
        "high",
        "n",
        "unit",
        "commit",
    ]
    assert len(table) == 6 * 5
    mine = table[(table["run"] == "3-seed_1-n_images_25_100") & (table["subject"] == "S3")]
    assert mine[["seed", "n_images", "value"]].values.tolist() == [[1, "[25, 100]", 6]]
    written = pd.read_csv(out / "table.csv")
    assert written["value"].sum() == table["value"].dropna().astype(float).sum()
    assert (
        written["n_images"].map(json.loads).tolist() == table["n_images"].map(json.loads).tolist()
    )


def test_a_parameter_with_the_name_of_a_column_keeps_its_own(project, quick):
    source = project / "notebooks" / "98_ok.py"
    source.write_text(source.read_text().replace("rate = 0.1", "value = 0.1"))
    table, _ = sweep.sweep(
        grid(project, "{notebook: 98_ok, parameters: {value: [0.5, 0.25]}}"), project / "out"
    )
    assert set(table["value (parameter)"]) == {0.5, 0.25}
    assert set(table["value"].dropna()) == {0, 1, 5, 3}


def test_the_summary_is_a_median_over_subjects_then_a_mean_over_seeds(project, quick):
    read = grid(project)
    table, _ = sweep.sweep(read, project / "out")
    short = sweep.summary(table, read)
    assert list(short) == [
        "n_images",
        "name",
        "condition",
        "unit",
        "mean",
        "low",
        "high",
        "seeds",
        "subjects",
    ]
    high = pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)  # medians 1, 2, 3 of three seeds; Student
    assert short[short["n_images"] == "[25]"].values.tolist() == [
        ["[25]", "r", "x", "r", 2, pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3), high, 3, "3"],
        ["[25]", "r", "x", "r", 3, 3, 3, 3, "all"],
    ]
    assert len(short) == 4
    pd.testing.assert_frame_equal(
        pd.read_csv(project / "out" / "summary.csv"), short, check_dtype=False
    )


def test_a_sweep_without_results_has_an_empty_table(project, quick):
    read = grid(project)
    table, errors = sweep.sweep(read, project / "out", environment={"UBRAIN_TEST_FAIL": ""})
    assert len(errors) == 6
    assert table.empty
    assert sweep.show(sweep.summary(table, read)) == "no results"


def test_a_long_summary_is_cut(project, quick):
    read = grid(project, f"{{notebook: 98_ok, parameters: {{rate: {[i / 4 for i in range(4)]}}}}}")
    table, _ = sweep.sweep(read, project / "out", 4)
    text = sweep.show(sweep.summary(table, read), most=3)
    assert text.endswith("... and 5 more rows in summary.csv")
    assert len(text.splitlines()) == 5


# --- all of it, with papermill


def test_a_sweep_of_a_notebook(project, monkeypatch):
    """Of two runs one fails and keeps its notebook; the exit code says so; started again, only
    that one runs.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(sweep.__file__).parents[1]))
    (project / "grid.yaml").write_text(
        "{notebook: 98_ok, parameters: {seed: 3, n_images: [[25, 100]], rate: [1e-3, 2]}}"
    )
    done = CliRunner().invoke(app, ["sweep", "grid.yaml", "--jobs", "2", "--out", "out"])
    assert done.exit_code == 1, done.output
    assert "1 of 2 runs finished" in done.output
    assert (
        "failed: out/runs/1-n_images_25_100-rate_2: AssertionError: broken on purpose"
        in done.output
    )
    finished, failed = (
        project / "out" / "runs" / f"{i}-n_images_25_100-rate_{rate}"
        for i, rate in enumerate((0.001, 2))
    )
    assert sorted(p.name for p in finished.iterdir()) == ["98_ok.ipynb", "98_ok.json", "log.txt"]
    assert pd.read_csv(project / "out" / "table.csv")["value"].tolist() == [3.001]
    (kept,) = failed.rglob("98_ok.ipynb")
    assert "broken on purpose" in kept.read_text()
    before = (finished / "98_ok.json").stat().st_mtime_ns
    source = project / "notebooks" / "98_ok.py"
    source.write_text(source.read_text().replace("rate < 1", "rate < 3"))
    done = CliRunner().invoke(app, ["sweep", "grid.yaml", "--out", "out"])
    assert done.exit_code == 0, done.output
    assert sorted(pd.read_csv(project / "out" / "table.csv")["value"]) == [3.001, 5]
    assert sorted(p.name for p in failed.iterdir()) == ["98_ok.ipynb", "98_ok.json", "log.txt"]
    assert (finished / "98_ok.json").stat().st_mtime_ns == before


def test_a_wrong_grid_runs_nothing(project, monkeypatch):
    (project / "grid.yaml").write_text("{notebook: 98_ok, parameters: {sed: [0]}}")
    monkeypatch.setattr(sweep, "sweep", wraps(sweep.sweep)(lambda *a: pytest.fail("it ran")))
    done = CliRunner().invoke(app, ["sweep", "grid.yaml", "--out", "out"])
    assert isinstance(done.exception, UbrainError)
    assert not (project / "out").exists()
