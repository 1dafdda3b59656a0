"""Commands as jobs, by submitit on this machine; tests/slurm has a real SLURM."""

import logging
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ubrain import cli
from ubrain.errors import UbrainError
from ubrain.report import jobs, runs, slurm

# --- what a job asks for


def write(folder: Path, text: str) -> Path:
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """A machine that looks like one of SLURM."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_resources_become_options_of_sbatch(tmp_path, srun):
    file = write(
        tmp_path,
        "{partition: gpu, gpus: 2, cpus: 8, mem: 1.5, time: 90, nodes: 2, parallel: 3,"
        " setup: [module load cuda], slurm_account: brains, slurm_licenses: 'a:1'}",
    )
    wanted = jobs.read_resources("slurm", file)
    executor = jobs.executor(tmp_path / "out" / "jobs", wanted, after=["7", "8_1"])
    text = executor._make_submission_file_text("COMMAND", "x").splitlines()
    assert {line for line in text if line.startswith("#SBATCH")} >= {
        "#SBATCH --partition=gpu",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=1536M",
        "#SBATCH --time=90",
        "#SBATCH --nodes=2",
        "#SBATCH --account=brains",
        "#SBATCH --licenses=a:1",
        "#SBATCH --dependency=afterany:7:8_1",
    }
    assert "module load cuda" in text
    assert any(line.startswith("srun ") and "--cpus-per-task=8" in line for line in text)


WRONG = {
    "[1]": "expected lines such as `gpus: 1`",
    "{gpu: 1}": "unknown gpu; there are partition, gpus, .*and slurm_X for any other option",
    "{gpus: -1}": "gpus is -1, expected a whole number, at least 0",
    "{gpus: true}": "gpus is True, expected a whole number",
    "{cpus: 0}": "cpus is 0, expected a whole number, at least 1",
    "{mem: .inf}": "mem is inf, expected a number, at least 0",
    "{time: '1:00:00'}": "time is '1:00:00', expected a whole number",
    "{partition: 3}": "partition is 3, expected a name",
    "{setup: module load cuda}": "setup is 'module load cuda', expected a list of lines",
    "{setup: [": "not valid YAML",
    "{slurm_setup: module load x}": "slurm_setup: ubrain says that to sbatch itself",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=range(len(WRONG)))
def test_wrong_resources_are_refused(tmp_path, text, message):
    with pytest.raises(UbrainError, match=rf"r\.yaml: .*{message}"):
        jobs.read_resources("slurm", write(tmp_path, text))


def test_where_commands_run(tmp_path, monkeypatch):
    assert jobs.read_resources("local", None) is None
    for on, file, message in (
        ("moon", None, "--on moon: expected local or slurm"),
        ("local", tmp_path / "r.yaml", r"--resources .*r\.yaml is for --on slurm"),
        ("slurm", tmp_path / "r.yaml", r"r\.yaml cannot be read"),
    ):
        with pytest.raises(UbrainError, match=message):
            jobs.read_resources(on, file)
    monkeypatch.setenv(jobs.JOB, "1")
    assert jobs.read_resources("slurm", None) is None


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UbrainError, match="needs submitit: pip install submitit"):
            jobs.read_resources("slurm", None)
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UbrainError, match="there is no srun here"):
        jobs.read_resources("slurm", None)


@pytest.mark.parametrize("command", ["train", "run", "sweep"])
def test_commands_know_where_to_run(command):
    shown = CliRunner().invoke(cli.app, [command, "--help"]).output
    assert "--on TEXT" in shown
    assert "--resources PATH" in shown


# --- a task

# Ends at once where an earlier start has left a mark; writes it when it is told to end.
SLOW = """
import signal, sys, time
from pathlib import Path

mark, result = Path(sys.argv[1]), Path(sys.argv[2])
print("start", mark.exists(), flush=True)

def stop(*_):
    mark.touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
Path(sys.argv[3]).touch()
if not mark.exists():
    time.sleep(100)
result.write_text("{}")
"""


@pytest.fixture
def slow(tmp_path):
    """A task that has to be interrupted once."""
    pytest.importorskip("submitit")
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    names = [str(tmp_path / name) for name in ("mark", "result", "begun")]
    words = [sys.executable, "-S", str(script), *names]
    return jobs.Task(words, tmp_path / "log.txt", tmp_path / "result", lock=tmp_path / "lock")


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """submitit's executor of processes on this machine."""
    submitit = pytest.importorskip("submitit")
    places = [str(Path(jobs.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    submit, submitted = executor._submit_command, []
    monkeypatch.setattr(
        executor, "_submit_command", lambda text: submitted.append(submit(text)) or submitted[-1]
    )
    yield executor
    for job in submitted:
        job._process.wait(20)


@pytest.mark.parametrize("warned", [False, True])
def test_a_preempted_task_ends_in_order_and_is_started_again(slow, local, tmp_path, warned):
    """Some clusters send SIGTERM first, to all processes of a job: the task has to stay."""
    job = local.submit(slow)
    wait_for((tmp_path / "begun").exists)
    (runner,) = runs.psutil.Process(int(job.job_id)).children()
    if warned:
        (command,) = runner.children()
        for process in (command, runner):
            process.send_signal(signal.SIGTERM)
        wait_for(lambda: not runner.children())
        time.sleep(0.5)
    runner.send_signal(signal.SIGUSR2)
    assert job.result() == 0
    assert slow.done()
    assert (tmp_path / "log.txt").read_text() == "start True\n"
    assert (tmp_path / "mark").exists()


def test_a_task_that_is_killed_takes_its_command_with_it(slow, local, tmp_path):
    job = local.submit(slow)
    wait_for((tmp_path / "begun").exists)
    (runner,) = runs.psutil.Process(int(job.job_id)).children()
    (command,) = runner.children()
    runner.kill()
    command.wait(20)
    assert not slow.done()


def test_a_finished_task_does_nothing(slow, tmp_path):
    (tmp_path / "result").write_text("{}")
    assert slow() == 0
    assert not (tmp_path / "begun").exists()
    assert slow.checkpoint() is None
    slow.begun = time.time() + 100  # the result is that of an earlier command
    assert not slow.done()


def test_the_queue_is_waited_for_whatever_becomes_of_a_job(tmp_path, local, monkeypatch, caplog):
    """One task is done, one fails, one is killed; and SLURM is silent for a while."""
    script = "import os, sys; from pathlib import Path; exec(sys.argv[1])"
    texts = {
        "good": "Path(sys.argv[2]).touch()",
        "bad": "sys.exit('ubrain: no')",
        "killed": "os.kill(os.getppid(), 9)",
    }
    tasks = {
        name: jobs.Task(
            [sys.executable, "-S", "-c", script, text, str(tmp_path / name)],
            tmp_path / f"{name}.txt",
            tmp_path / name,
        )
        for name, text in texts.items()
    }
    caplog.set_level(logging.INFO)
    answers = [{}, None, None]  # at the start, then silence

    def states(name):
        live = [p for p in runs.psutil.Process().children() if p.status() != "zombie"]
        return answers.pop(0) if answers else {str(p.pid): "RUNNING" for p in live}

    monkeypatch.setattr(slurm, "_states", states)
    monkeypatch.setattr(slurm, "EVERY", 0.1)
    monkeypatch.setattr(slurm, "SETTLE", 0.3)
    monkeypatch.setattr(jobs, "executor", lambda *_: local)
    ended = dict(slurm.run_all(tasks, tmp_path / "jobs", jobs.Resources()))
    gone = ended.pop("killed")
    assert ended == {"good": "", "bad": "ubrain: no"}
    assert re.fullmatch(r"job \d+ left no result; SLURM says GONE", gone)
    assert "SLURM does not answer" in caplog.text
    assert "SLURM is back" in caplog.text
    assert not list(slurm.run_all({"good": tasks["good"]}, tmp_path / "jobs", jobs.Resources()))


def test_a_training_is_a_job_whatever_is_in_its_folder(tmp_path, monkeypatch):
    """It finishes when the job has written the card anew, and only its own command continues it."""
    out, asked = tmp_path / "o", list[list[str]]()
    out.mkdir()
    (out / "README.md").write_text("of an earlier command")

    def run_all(tasks, folder, resources):
        (task,) = tasks.values()
        assert not task.done()
        (folder / "kept.txt").touch()
        asked.append(list(task.words))
        return iter([("train", "ubrain: no")])

    monkeypatch.setattr(slurm, "run_all", run_all)
    for more, message in (
        ([], r"no; see .*log\.txt"),
        (["--resources", "r.yaml"], r"no; see .*log\.txt"),
        (["--seed", "5"], r"begun with other settings \(command was"),
    ):
        monkeypatch.setattr(sys, "argv", ["ubrain", "train", *more])
        with pytest.raises(UbrainError, match=message):
            slurm.train(out, out / "README.md", jobs.Resources())
    assert [words[2:] for words in asked] == [
        ["ubrain.cli", "train"],
        ["ubrain.cli", "train", "--resources", "r.yaml"],
    ]


def test_several_nodes_are_for_training(tmp_path):
    task = jobs.Task(["true"], tmp_path / "log.txt", tmp_path / "result")
    with pytest.raises(UbrainError, match="nodes is 2: only `ubrain train` uses more than one"):
        next(slurm.run_all({"a": task}, tmp_path / "jobs", jobs.Resources(nodes=2)))
