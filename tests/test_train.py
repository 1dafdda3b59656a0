"""Training on a small simulated crowd: it learns, it repeats itself, it resumes."""

import csv
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ubrain import checkpoint, predict, scores, train
from ubrain.backbone import Backbone
from ubrain.config import (
    BackboneConfig,
    EncoderConfig,
    SimulationConfig,
    TrainingConfig,
    recipes,
)
from ubrain.crowd import Crowd
from ubrain.data.simulate import simulate_crowd
from ubrain.errors import UbrainError
from ubrain.features import Features, Source

OURS = recipes()["ours"]
ENCODER = EncoderConfig(embedding_size=16, channels=16, **OURS["encoder"])
SIZES = {"epochs": 4, "batch_images": 16, "voxels_per_step": 32, "device": "cpu"}
TRAINING = TrainingConfig(**OURS["training"] | SIZES | {"learning_rate": 0.003})
CNN = BackboneConfig(
    "tf_efficientnet_lite0", "embedded", (1, 3), 64, 4, False, 0, **OURS["backbone"]
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    simulate_crowd(
        folder / "crowd.h5",
        SimulationConfig(subjects=2, images=120, test_images=20, voxels=40),
        seed=3,
    )
    with Crowd(folder / "crowd.h5") as crowd:
        features = Features(crowd, CNN, folder / "features")
        yield Source(crowd, features)


def weights(folder):
    return load_file(folder / checkpoint.WEIGHTS)


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_training_learns_more_than_chance(source):
    subject = source.crowd["S1"]
    encoder = train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=30))
    rows = subject.image_rows("test")
    r = scores.correlation(predict.predict(encoder, source, "S1", rows), subject.responses_to(rows))
    assert np.nanmedian(r) > 0.15  # chance: 0 ± 0.04 for 40 voxels and 20 images


def test_one_seed_gives_one_result_and_another_seed_another(source, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train.fit(source, ["S1", "S2"], ENCODER, replace(TRAINING, epochs=2), seed, tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))
    assert (tmp_path / "a" / train.LOG).read_text() == (tmp_path / "b" / train.LOG).read_text()


# Loss and validation score of three epochs, by version 1.
PINNED = [(0.5113, 0.4322), (0.4015, 0.5131), (0.3701, 0.5429)]


def test_the_same_settings_give_the_encoder_of_this_version(source, tmp_path):
    """If this fails though nothing is wrong, what is trained has changed: raise `train.VERSION`.

    Trained encoders are cached by settings and that number, so other results need another one.
    """
    train.fit(source, ["S1", "S2"], ENCODER, replace(TRAINING, epochs=3), 0, tmp_path)
    with open(tmp_path / train.LOG) as file:
        rows = [(float(row["loss"]), float(row["val_r75"])) for row in csv.DictReader(file)]
    assert train.VERSION == 1
    np.testing.assert_allclose(rows, PINNED, rtol=2e-3, atol=2e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("recipe", ["ours", "paper"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    source, tmp_path, monkeypatch, recipe
):
    config = replace(TRAINING, **recipes()[recipe]["training"])
    train.fit(source, ["S1", "S2"], ENCODER, config, 0, tmp_path / "whole")
    validate, calls = train.Trainee.validate, []

    def dies_in_the_third_epoch(self):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return validate(self)

    monkeypatch.setattr(train.Trainee, "validate", dies_in_the_third_epoch)
    with pytest.raises(Killed):
        train.fit(source, ["S1", "S2"], ENCODER, config, 0, tmp_path / "cut")
    monkeypatch.setattr(train.Trainee, "validate", validate)
    train.fit(source, ["S1", "S2"], ENCODER, config, 0, tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert (tmp_path / "whole" / train.LOG).read_text() == (
        tmp_path / "cut" / train.LOG
    ).read_text()


def test_kill_minus_nine_and_the_same_command_again(source, tmp_path):
    command = [
        sys.executable,
        "-m",
        "ubrain.cli",
        "train",
        "--crowd",
        str(source.crowd.path),
        "--profile",
        "smoke",
        "--epochs",
        "25",
        "--out",
    ]
    environment = {**os.environ, "UBRAIN_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [*command, str(tmp_path / "whole")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert whole.returncode == 0, whole.stderr
    victim = subprocess.Popen(
        [*command, str(tmp_path / "cut")],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while victim.poll() is None and not (tmp_path / "cut" / train.WORK / train.STATE).exists():
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "cut" / checkpoint.CONFIG).exists(), (
        "it was finished before it could be killed"
    )
    subprocess.run(
        [*command, str(tmp_path / "cut")], env=environment, capture_output=True, check=True
    )
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def dies_before_a_change(number, crowd_file, features_root, out):
    """Train, and be killed just before the so-many-th file takes its place (it is then
    half-written) or vanishes.
    """
    changes = itertools.count(1)

    def hook(event, arguments):
        if event not in ("os.rename", "os.remove", "os.rmdir"):
            return
        path, folder_fd = os.fspath(arguments[0]), arguments[-1]
        inside = folder_fd >= 0 or (path.startswith(str(out)) and os.path.exists(path))
        if inside and next(changes) == number:
            if event == "os.rename":
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    with Crowd(crowd_file) as crowd:
        features = Features(crowd, CNN, features_root)
        sys.addaudithook(hook)
        train.fit(Source(crowd, features), ["S1", "S2"], ENCODER, SHORT, 0, out)


SHORT = replace(TRAINING, epochs=2, batch_images=200)


@pytest.fixture
def one_thread():
    """Bit by bit the same is promised for the same number of threads; libraries may use fewer on a
    busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_at_any_moment_it_ends_with_the_same_files(source, tmp_path, one_thread):
    def files(folder):
        return {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }

    train.fit(source, ["S1", "S2"], ENCODER, SHORT, 0, tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ubrain.cli", "ubrain.train", "ubrain.data.simulate", "pytest"])
    for number in itertools.count(1):
        out = tmp_path / f"killed {number}"
        arguments = (number, source.crowd.path, source.features.folder.parent, out)
        victim = context.Process(target=dies_before_a_change, args=arguments)
        victim.start()
        victim.join()
        if victim.exitcode == 0:
            break
        assert victim.exitcode == -signal.SIGKILL
        train.fit(source, ["S1", "S2"], ENCODER, SHORT, 0, out)
        assert files(out) == files(tmp_path / "whole"), f"killed before change {number}"
    assert number > 20  # 2 epochs × 5 state files, 6 of the finished encoder, and what is removed


def test_the_tensorboard_log_has_every_epoch_once(source, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    show, rows = train.show, []

    def dies_before_the_second_row(board, row):
        rows.append(row)
        if len(rows) == 2:
            raise Killed
        show(board, row)

    monkeypatch.setattr(train, "show", dies_before_the_second_row)
    with pytest.raises(Killed):
        train.fit(source, ["S1"], ENCODER, TRAINING, 0, tmp_path, tensorboard=True)
    monkeypatch.setattr(train, "show", show)
    train.fit(source, ["S1"], ENCODER, TRAINING, 0, tmp_path, tensorboard=True)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4]


def test_a_finished_training_is_loaded_from_where_nothing_can_be_written(
    source, tmp_path, monkeypatch
):
    train.fit(source, ["S1"], ENCODER, SHORT, 0, tmp_path)
    monkeypatch.setattr(
        "pathlib.Path.unlink", lambda *_, **__: pytest.fail("something was removed")
    )
    train.fit(source, ["S1"], ENCODER, SHORT, 0, tmp_path)


def test_the_best_weights_are_kept_and_logged(source, tmp_path):
    train.fit(source, ["S1"], ENCODER, TRAINING, 0, tmp_path)
    with open(tmp_path / train.LOG) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TRAINING.epochs
    encoder = checkpoint.load(tmp_path)
    subject = source.crowd["S1"]
    rows_val = subject.image_rows("val")
    r = scores.correlation(
        predict.predict(encoder, source, "S1", rows_val), subject.responses_to(rows_val)
    )
    assert np.percentile(r, 75) == pytest.approx(
        max(float(row["val_r75"]) for row in rows), abs=1e-5
    )


def test_a_finished_training_is_loaded_and_other_settings_are_refused(
    source, tmp_path, monkeypatch
):
    first = train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=1), 0, tmp_path)
    monkeypatch.setattr(train.Trainee, "step", lambda *_: pytest.fail("trained again"))
    again = train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=1), 0, tmp_path)
    assert same(first.state_dict(), again.state_dict())
    with pytest.raises(UbrainError, match=r"other settings \(training.epochs was 1, is 9\)"):
        train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=9), 0, tmp_path)


def test_the_scheme_of_splits_is_a_setting(source, tmp_path):
    path = tmp_path / "crowd.h5"
    shutil.copy(source.crowd.path, path)
    config = replace(TRAINING, epochs=1)
    with h5py.File(path, "r+") as file:
        split = file["images/split"][:]
        for name in ("same", "other"):
            file[f"images/schemes/{name}"] = split
            split = np.where(split == 0, split, 3 - split).astype(np.uint8)  # val is test
    with Crowd(path) as crowd:
        sources = {n: replace(source, crowd=crowd.with_scheme(n)) for n in ("", *crowd.schemes)}
        train.fit(sources["same"], ["S1"], ENCODER, config, 0, tmp_path / "a")
        settings = checkpoint.describe(tmp_path / "a").facts["settings"]
        assert settings["split_scheme"] == "same"
        with pytest.raises(UbrainError, match="split_scheme was 'same', is 'other'"):
            train.fit(sources["other"], ["S1"], ENCODER, config, 0, tmp_path / "a")
        train.fit(sources["other"], ["S1"], ENCODER, config, 0, tmp_path / "b")
        with pytest.raises(UbrainError, match=r"other settings \(crowd was"):
            train.fit(sources[""], ["S1"], ENCODER, config, 0, tmp_path / "b")
        assert "split_scheme" not in train.settings_of(sources[""], ["S1"], ENCODER, config, 0)


def test_bf16_autocast_comes_close_to_fp32(source):
    a, b = (
        train.fit(source, ["S1"], ENCODER, replace(TRAINING, precision=p, epochs=2), 0)
        for p in ("fp32", "bf16")
    )
    rows = source.crowd["S1"].image_rows("test")
    r = np.corrcoef(
        predict.predict(a, source, "S1", rows).ravel(),
        predict.predict(b, source, "S1", rows).ravel(),
    )[0, 1]
    assert r > 0.9


def test_training_from_images_reaches_the_adapters(source):
    backbone = Backbone(BackboneConfig("vit_tiny_patch16_224", "random", (1,), 32, None, True, 2))
    before = [p.clone() for p in backbone.adapters.parameters()]
    frozen = {n: p.clone() for n, p in backbone.model.named_parameters()}
    images = Source(source.crowd, backbone=backbone)
    train.fit(images, ["S1"], ENCODER, replace(TRAINING, epochs=1, image_shift=2), 0)
    changed = [
        not torch.equal(a, b) for a, b in zip(before, backbone.adapters.parameters(), strict=True)
    ]
    assert any(changed)
    assert all(torch.equal(frozen[n], p) for n, p in backbone.model.named_parameters())


def test_the_loss_is_the_released_one():
    p, m = torch.randn(6, 40), torch.randn(6, 40)
    config = TrainingConfig()
    cosine = torch.stack([F.cosine_similarity(a, b, 0) for a, b in zip(p, m, strict=True)]).mean()
    expected = ((p - m) ** 2).mean() - 0.1 * cosine
    torch.testing.assert_close(train.loss_of(p, m, config), expected)


def test_responses_that_are_not_finite_are_said(source, tmp_path):
    path = tmp_path / "crowd.h5"
    shutil.copyfile(source.crowd.path, path)
    with h5py.File(path, "r+") as file:
        file["subjects/S2/responses"][:, 3] = np.nan
    with Crowd(path) as damaged:
        features = Source(damaged, Features(damaged, CNN, tmp_path))
        with pytest.raises(UbrainError, match=r"responses of 'S2' are not finite: .*crowd\.h5"):
            train.fit(features, ["S1", "S2"], ENCODER, replace(TRAINING, epochs=1))


def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(
            UbrainError, match=r"00001.pt cannot be written .* if the disk is full, free some space"
        ):
            train.write_tensors(tmp_path / "00001.pt", {"weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"device": "cuda:77"}, "device 'cuda:77' is not available"),
        ({"batches_per_step": 0}, "batches_per_step is 0: expected 1 or more"),
    ],
)
def test_unknown_options_are_refused(source, change, message):
    with pytest.raises(UbrainError, match=message):
        train.fit(source, ["S1"], ENCODER, replace(TRAINING, **change))


@pytest.mark.parametrize("seed", range(20))
def test_the_plateau_schedule_is_that_of_torch(seed):
    rng = np.random.default_rng(seed)
    scores_of_epochs = np.cumsum(rng.normal(0.001, 0.003, 60))
    config = TrainingConfig(schedule="plateau")
    weights = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weights], lr=config.learning_rate)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        adam,
        mode="max",
        patience=config.patience,
        factor=config.factor,
        threshold=config.threshold,
        threshold_mode="abs",
        eps=0,
    )
    ours = train.State(rate=config.learning_rate)
    for score in scores_of_epochs:
        theirs.step(score)
        ours = ours.after(0.0, score, ours.rate, config)
        assert ours.rate == pytest.approx(adam.param_groups[0]["lr"], rel=1e-12)
    assert ours.best_epoch == int(np.argmax(scores_of_epochs)) + 1
