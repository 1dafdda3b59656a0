"""The command line: what it offers, how it fails, and that its help needs no module of the work."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from safetensors import SafetensorError

import ubrain
from ubrain import cli
from ubrain.errors import UbrainError

SHARED = (
    "--append --bad-voxels --dry-run --dtype --follow-links --image-size --no-append --normalise"
    " --areas --min-ncsnr --out --root --subjects --unusual --val-fraction"
)
PROMISED = {
    "simulate": "--append --images --no-append --out --scanner --seed --subjects --test-images"
    " --voxels",
    "info": "CROWD --ceilings",
    "check": "CROWD --json --seed",
    "fetch": "NAME --list --only --out --yes",
    "train": "--adapters --backbone --batches-per-step --checkpointing --crowd --device --epochs"
    " --grid --image-size --keep-cls --levels --no-checkpointing --no-keep-cls --no-pretrained"
    " --no-tensorboard --out --precision --pretrained --profile --recipe --registers --seed"
    " --subjects --tensorboard --weights",
    "transfer": "--checkpoint --crowd --device --images --method --out --profile --seed --subjects",
    "predict": "--areas --batch --checkpoint --device --dtype --images --memory --out --precision"
    " --reference --subject --weights",
    "explore": "--checkpoint --crowd --device --out --profile --seed --voxels",
    "run": "NOTEBOOK --crowd --jobs --out --pack --parameter --profile --seed -p",
    "pack": "NOTEBOOK --jobs --out --profile --seed",
    "unpack": "PACK",
    "publish": "NOTEBOOK --crowd --profile --seed",
    "sweep": "GRID --jobs --max-runs --out",
    "report": "--check --crowd --figure --profile --seed --write",
    "bench": "--compiled --crowd --device --images --json --no-compiled --rounds --size --voxels",
    "notebooks": "--check --no-check",
    "workshop": "--no-solutions --out --solutions",
    "import arrays": "--append --bad-voxels --dataset --images --no-append --no-transpose"
    " --normalise --out --responses --scanner --space --subject --test-fraction --test-images"
    " --transpose --trials --val-fraction --voxels --areas --dry-run --dtype --image-size"
    " --min-ncsnr",
    "import nsd": f"{SHARED} --areas --betas --mask --sessions --space --test",
    "import algonauts": f"{SHARED} --stim-info --test --test-fraction",
    "import ube": f"{SHARED} --design --images --mask --stim-info",
    "import bold5000": f"{SHARED} --areas --betas --images --responses --sessions --tr",
    "import god": f"{SHARED} --areas --images --release",
    "import vim1": SHARED,
    "import things": f"{SHARED} --images",
    "import nod": f"{SHARED} --images --labels",
    "import laion": f"{SHARED} --areas --ceiling --sessions --split --splits --voxels",
    "import mosaic": f"{SHARED} --areas --artificial --images --labels",
    "import bids": f"{SHARED} --atlas --dataset --entities --first-condition --image-column"
    " --images --mask --scanner --stimuli --test-fraction --test-images --type",
    "import rdm": f"{SHARED} --dataset --images --most-negative --test-fraction",
    "verify nsd-alexnet": "--crowd --encoding --weights",
    "verify things-alexnet": "--crowd --encoding --weights",
    "verify ube": "--checkpoint --crowd --device --weights",
    "verify algonauts": "--checkpoint --crowd --device --subjects --weights",
    "verify rdm": "--alpha --crowd --subjects --weights",
    "checkpoint show": "PATH",
    "checkpoint import": "FILE --backbone --image-size --levels --lora-scale --out --registers"
    " --subjects --voxel-embed",
    "checkpoint drop": "FOLDER --out --subjects",
    "checkpoint push": "FOLDER NAME --public",
}


def commands(group: click.Group, *before: str) -> dict[str, click.Command]:
    found = {}
    for name, command in group.commands.items():
        words = (*before, name)
        if isinstance(command, click.Group):
            found |= commands(command, *words)
        else:
            found[" ".join(words)] = command
    return found


def test_every_command_is_known_here() -> None:
    assert set(commands(cli.app)) == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_every_option_is_offered_and_explained(name: str) -> None:
    """All that is promised, in the help, each with a description; removed ones are not shown."""
    command = commands(cli.app)[name]
    parameters = command.get_params(click.Context(command))
    offered = {
        word
        for p in parameters
        for word in ([p.metavar] if isinstance(p, click.Argument) else p.opts + p.secondary_opts)
    }
    assert set(PROMISED[name].split()) <= offered
    shown = " ".join(CliRunner().invoke(cli.app, [*name.split(), "--help"]).output.split())
    for p in parameters:
        if p.name != "force":
            assert p.help, p.name
            assert " ".join(p.help.split()[:4]) in shown, p.name
    assert "…" not in shown


def test_the_type_of_an_option_is_that_of_its_parameter() -> None:
    command = commands(cli.app)["train"]
    context = click.Context(command)
    made = {p.name: p for p in command.get_params(context)}
    assert made["levels"].type_cast_value(context, "0,5") == (0, 5)
    assert made["subjects"].type_cast_value(context, "S1, S2") == ("S1", "S2")
    assert made["subjects"].type_cast_value(context, "") is None
    assert [made[name].default for name in ("keep_cls", "levels", "seed")] == [None, None, 0]
    with pytest.raises(UbrainError, match="--levels '0,x': expected numbers separated by commas"):
        made["levels"].type_cast_value(context, "0,x")
    with pytest.raises(click.BadParameter, match="x>=1"):
        made["epochs"].type_cast_value(context, "0")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["info", "absent.h5"], 1, "ubrain: no crowd file at absent.h5; "),
        (["info"], 2, "ubrain: Missing argument 'CROWD'. See `ubrain info --help`."),
        (["simulate", "--out", "x", "--subjects", "0"], 2, "ubrain: Invalid value for '--subj"),
        (["check", "--jsn"], 2, "ubrain: No such option '--jsn'"),
    ],
)
def test_an_error_is_one_line(monkeypatch, capsys, words, code, message) -> None:
    monkeypatch.setattr(sys, "argv", ["ubrain", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (code, 1)
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "-1"], "Invalid value for '--seed': -1 is not in the range"),
        (["--seed", "9" * 30], "Invalid value for '--seed': 9"),
        (["--weights", "missing.safetensors"], "missing.safetensors cannot be read: No such file"),
        (["--weights", "x" * 10**5], "weights 'xxx"),
        (["--image-size", "100000"], "backbone: image_size is 100000: expected 1 to 2048"),
        (["--image-size", "-5"], "Invalid value for '--image-size': -5 is not in the range"),
        (["--grid", "0"], "backbone: grid is 0: expected 1 to 256"),
        (["--grid", "-2"], "backbone: grid is -2: expected 1 to 256"),
        (["--grid", "100000"], "backbone: grid is 100000: expected 1 to 256"),
        (["--levels", "9" * 20], "backbone: levels (99999999999999999999,): expected numbers of"),
        (["--subjects", "x" * 10**5], "no subject 'xxx"),
        (["--out", "{crowd}"], "{crowd} is no folder; expected one to write"),
        (["--out", "{crowd}/x/y"], "{crowd}/x/y cannot be written: {crowd} is no folder"),
        (["--out", "x" * 300], "the name of xxx"),
        (["--cache", "{crowd}"], "cannot write {crowd}/features/tf_"),
    ],
)
def test_what_train_cannot_do_is_one_bounded_line_before_the_work(
    monkeypatch, capsys, small_crowd, tmp_path, words, message
) -> None:
    words = [word.format(crowd=small_crowd) for word in words]
    if words[0] == "--cache":
        monkeypatch.setenv("UBRAIN_CACHE", words.pop())
        words.pop()
    elif words[0] != "--seed":
        monkeypatch.setattr("ubrain.train.Trainee.__init__", pytest.fail)
    out = [] if "--out" in words else ["--out", str(tmp_path / "o")]
    command = ["ubrain", "train", "--crowd", str(small_crowd), "--profile", "smoke", *out, *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"ubrain: {message.format(crowd=small_crowd)}")
    assert sum(map(len, said)) < 2200
    assert not list(tmp_path.iterdir())


def test_too_few_val_images_are_said_before_features_are_made(
    monkeypatch, small_crowd, tmp_path
) -> None:
    monkeypatch.setattr("ubrain.train.LEAST_VAL_IMAGES", 1000)
    monkeypatch.setattr("ubrain.features.choose_source", pytest.fail)
    given = ["--crowd", str(small_crowd), "--profile", "smoke", "--out", str(tmp_path / "o")]
    found = CliRunner().invoke(cli.app, ["train", *given])
    assert "val images; training needs at least 1000" in str(found.exception)


def test_what_is_public_is_seen_and_its_version_said(run_cli) -> None:
    assert {*ubrain.__all__} <= {*dir(ubrain)}
    assert run_cli("--version").stdout.strip() == f"ubrain, version {ubrain.__version__}"


def test_train_and_transfer_begin_with_the_same_profile() -> None:
    found = [commands(cli.app)[name] for name in ("train", "transfer")]
    options = [{p.name: p for p in c.get_params(click.Context(c))} for c in found]
    assert [p["profile"].default for p in options] == ["fast", "fast"]


def test_ctrl_c_says_that_the_same_command_continues(monkeypatch, capsys) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ubrain.crowd.Crowd.__init__", stop)
    monkeypatch.setattr(cli.os, "_exit", sys.exit)
    monkeypatch.setattr(sys, "argv", ["ubrain", "info", "x.h5"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    said = capsys.readouterr().err.strip()
    assert said == "ubrain: stopped; nothing half-written is left, the same command continues"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "Permission denied: a/b"),
        (OSError(28, "No space left on device", "a/b"), "No space left on device: a/b; free"),
        (SafetensorError("Error: I/O error: No space left"), "Error: I/O error: No space left"),
    ],
)
def test_what_the_disk_refuses_is_one_line(monkeypatch, capsys, error, said) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ubrain.crowd.Crowd.__init__", fail)
    monkeypatch.setattr(sys, "argv", ["ubrain", "info", "x.h5"])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr().err
    assert told.startswith(f"ubrain: {said}")
    assert told.count("\n") == 1


def test_help_imports_nothing_of_the_work() -> None:
    script = (
        "import sys; from ubrain.cli import app; app.main(['--help'], standalone_mode=False);"
        "app.main(['import', '--help'], standalone_mode=False);"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('numpy', 'torch', 'ubrain')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = done.stdout.splitlines()[-1].split()
    registry = ["ubrain.data", "ubrain.data.importers"]  # names and a line of each, no more
    core = ["ubrain", "ubrain.cli", *registry, "ubrain.errors", "ubrain.options"]
    assert sorted(loaded) == core


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m ubrain.cli import nsd --help | true",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
