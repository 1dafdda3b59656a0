"""Training on a small simulated crowd: it learns, it repeats itself, it resumes."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ubrain import checkpoint, scores, train
from ubrain.backbone import Backbone, Features
from ubrain.config import BackboneConfig, EncoderConfig, SimulationConfig, TrainingConfig
from ubrain.data.crowd import Crowd
from ubrain.data.simulate import simulate_crowd
from ubrain.errors import UbrainError

ENCODER = EncoderConfig(embedding_size=16, channels=16)
TRAINING = TrainingConfig(
    epochs=4, batch_images=16, voxels_per_step=32, learning_rate=0.003, schedule="one-cycle", device="cpu"
)
CNN = BackboneConfig("tf_efficientnet_lite0", "embedded", (1, 3), 64, 4, False, 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    simulate_crowd(folder / "crowd.h5", SimulationConfig(subjects=2, images=120, test_images=20, voxels=40), seed=3)
    with Crowd(folder / "crowd.h5") as crowd:
        features = Features(crowd, CNN, folder / "features")
        yield train.Source(crowd, features)
        features.close()


def weights(folder):
    return load_file(folder / checkpoint.WEIGHTS)


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_training_learns_more_than_chance(source):
    subject = source.crowd["S1"]
    encoder = train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=30))
    rows = subject.image_rows("test")
    r = scores.correlation(train.predict(encoder, source, "S1", rows), subject.responses_to(rows))
    assert np.nanmedian(r) > 0.15  # chance: 0 ± 0.04 for 40 voxels and 20 images


def test_one_seed_gives_one_result_and_another_seed_another(source, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train.fit(source, ["S1", "S2"], ENCODER, replace(TRAINING, epochs=2), seed, tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))
    assert (tmp_path / "a" / train.LOG).read_text() == (tmp_path / "b" / train.LOG).read_text()


class Killed(Exception):
    pass


@pytest.mark.parametrize("schedule", ["one-cycle", "plateau"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(source, tmp_path, monkeypatch, schedule):
    config = replace(TRAINING, schedule=schedule)
    train.fit(source, ["S1", "S2"], ENCODER, config, 0, tmp_path / "whole")
    validate, calls = train._Training._validate, []

    def dies_in_the_third_epoch(self):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return validate(self)

    monkeypatch.setattr(train._Training, "_validate", dies_in_the_third_epoch)
    with pytest.raises(Killed):
        train.fit(source, ["S1", "S2"], ENCODER, config, 0, tmp_path / "cut")
    monkeypatch.setattr(train._Training, "_validate", validate)
    train.fit(source, ["S1", "S2"], ENCODER, config, 0, tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert (tmp_path / "whole" / train.LOG).read_text() == (tmp_path / "cut" / train.LOG).read_text()


def test_kill_minus_nine_and_the_same_command_again(source, tmp_path):
    command = [sys.executable, "-m", "ubrain.cli", "train", "--crowd", str(source.crowd.path), "--profile", "smoke",
               "--epochs", "25", "--out"]  # fmt: skip
    environment = {**os.environ, "UBRAIN_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    whole = subprocess.run([*command, str(tmp_path / "whole")], env=environment, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    victim = subprocess.Popen([*command, str(tmp_path / "cut")], env=environment, stderr=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL)  # fmt: skip
    while victim.poll() is None and not (tmp_path / "cut" / train.STATE).exists():
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "cut" / checkpoint.CONFIG).exists(), "it was finished before it could be killed"
    subprocess.run([*command, str(tmp_path / "cut")], env=environment, capture_output=True, check=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_the_best_weights_are_kept_and_logged(source, tmp_path):
    train.fit(source, ["S1"], ENCODER, TRAINING, 0, tmp_path)
    with open(tmp_path / train.LOG) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TRAINING.epochs
    encoder = checkpoint.load(tmp_path)
    subject = source.crowd["S1"]
    rows_val = subject.image_rows("val")
    r = scores.correlation(train.predict(encoder, source, "S1", rows_val), subject.responses_to(rows_val))
    assert np.percentile(r, 75) == pytest.approx(max(float(row["val_r75"]) for row in rows), abs=1e-5)


def test_a_finished_training_is_loaded_and_other_settings_are_refused(source, tmp_path, monkeypatch):
    first = train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=1), 0, tmp_path)
    monkeypatch.setattr(train._Training, "run", lambda *_: pytest.fail("trained again"))
    again = train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=1), 0, tmp_path)
    assert same(first.state_dict(), again.state_dict())
    with pytest.raises(UbrainError, match=r"other settings \(training\)"):
        train.fit(source, ["S1"], ENCODER, replace(TRAINING, epochs=9), 0, tmp_path)


def test_bf16_autocast_comes_close_to_fp32(source):
    a, b = (train.fit(source, ["S1"], ENCODER, replace(TRAINING, precision=p, epochs=2), 0) for p in ("fp32", "bf16"))
    rows = source.crowd["S1"].image_rows("test")
    r = np.corrcoef(train.predict(a, source, "S1", rows).ravel(), train.predict(b, source, "S1", rows).ravel())[0, 1]
    assert r > 0.9


def test_training_from_images_reaches_the_adapters(source):
    backbone = Backbone(BackboneConfig("vit_tiny_patch16_224", "random", (1,), 32, None, True, 2))
    before = [p.clone() for p in backbone.adapters.parameters()]
    frozen = {n: p.clone() for n, p in backbone.model.named_parameters()}
    images = train.Source(source.crowd, backbone=backbone)
    train.fit(images, ["S1"], ENCODER, replace(TRAINING, epochs=1, image_shift=2), 0)
    changed = [not torch.equal(a, b) for a, b in zip(before, backbone.adapters.parameters(), strict=True)]
    assert any(changed)
    assert all(torch.equal(frozen[n], p) for n, p in backbone.model.named_parameters())


def test_the_loss_is_the_released_one():
    p, m = torch.randn(6, 40), torch.randn(6, 40)
    config = TrainingConfig()
    cosine = torch.stack([F.cosine_similarity(a, b, 0) for a, b in zip(p, m, strict=True)]).mean()
    expected = ((p - m) ** 2).mean() - 0.1 * cosine
    torch.testing.assert_close(train.loss_of(p, m, config), expected)


@pytest.mark.parametrize(("change", "message"), [
    ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
    ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ({"device": "cuda:77"}, "device 'cuda:77' is not available"),
])  # fmt: skip
def test_unknown_options_are_refused(source, change, message):
    with pytest.raises(UbrainError, match=message):
        train.fit(source, ["S1"], ENCODER, replace(TRAINING, **change))
