"""A project of one notebook whose runs are a small script, and a SLURM to run them."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster import Cluster, missing

from ubrain.report import runs, slurm, sweep

NOTEBOOK = """# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% tags=["parameters"]
crowd = None
profile = "fast"
seed = 0
"""
# Sleeps as long as `sleep.json` says for this seed and start of it, then fails, or writes numbers.
RUN = r"""
import json, os, sys, time
from pathlib import Path

out, seed = Path(sys.argv[1]), json.loads(sys.argv[2])["seed"]

def note(what):
    with open(out.parent / f"{what}.txt", "a") as log:
        log.write(f"{seed}\n")

sleep = json.loads((out.parents[2] / "sleep.json").read_text()).get(str(seed), [])
(out / "job.pid").write_text(str(os.getppid()))
note("started")
start = (out.parent / "started.txt").read_text().split().count(str(seed))
left = sleep[start - 1] if start <= len(sleep) else 0
if left < 0:
    sys.exit("ubrain: broken on purpose")
time.sleep(left)
record = {"name": "r", "condition": "x", "subject": "S1", "low": None, "high": None}
results = [{**record, "value": seed, "n": 7, "unit": "r"}]
(out / "98_ok.json").write_text(json.dumps({"commit": "c", "results": results}))
note("finished")
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM of one node with 8 CPUs."""
    if reason := missing():
        pytest.skip(reason)
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


@pytest.fixture
def queue(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """`cluster`, found by ubrain, which looks at it often."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "EVERY", 0.3)
    monkeypatch.setattr(slurm, "SETTLE", 2.0)
    return cluster


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`grid(n)`, `sleeps({seed: [seconds of each start]})`, `started()`, `finished()`, `out`."""
    pytest.importorskip("submitit")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "98_ok.py").write_text(NOTEBOOK)
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "sleep.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    places = [str(Path(runs.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, places)))
    script = [sys.executable, "-S", str(tmp_path / "run.py")]
    monkeypatch.setattr(
        runs, "command", lambda notebook, given, out: [*script, str(out), json.dumps(given)]
    )
    out = tmp_path / "out"

    def grid(n: int) -> sweep.Grid:
        (tmp_path / "grid.yaml").write_text(
            f"{{notebook: 98_ok, parameters: {{seed: {list(range(n))}}}}}"
        )
        return sweep.read_grid(tmp_path / "grid.yaml")

    def noted(what: str) -> Callable[[], Counter[int]]:
        file = out / "runs" / f"{what}.txt"
        return lambda: Counter(map(int, file.read_text().split())) if file.exists() else Counter()

    return SimpleNamespace(
        grid=grid,
        out=out,
        sleeps=lambda seconds: (tmp_path / "sleep.json").write_text(json.dumps(seconds)),
        started=noted("started"),
        finished=noted("finished"),
    )
