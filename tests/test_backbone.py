"""Tokens of any timm model, adapters, and the feature cache."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import timm
import torch

from ubrain.backbone import Backbone, Features
from ubrain.config import BackboneConfig
from ubrain.data.crowd import Crowd
from ubrain.errors import UbrainError

CNN = BackboneConfig("tf_efficientnet_lite0", "embedded", (1, 3), 64, 4, False, 0)
VIT = BackboneConfig("vit_tiny_patch16_224", "random", (0, 5, 11), 64, None, True, 0)
REGISTERS = BackboneConfig("vit_small_patch14_reg4_dinov2.lvd142m", "random", (0, 11), 56, None, True, 0)


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_cnn_gives_its_maps_pooled_to_a_grid():
    backbone = Backbone(CNN)
    maps = timm_levels(backbone, images(), "NCHW")
    with torch.no_grad():
        tokens = backbone(images())
    assert backbone.widths == (24, 112)
    assert backbone.n_tokens == 16
    by_hand = maps[0].reshape(2, 24, 4, 4, 4, 4).mean((3, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[0], by_hand)


def timm_levels(backbone, x, fmt):
    with torch.no_grad():
        return backbone.model.forward_intermediates(
            x, indices=list(backbone.config.levels), output_fmt=fmt, intermediates_only=True)  # fmt: skip


@pytest.mark.parametrize("config", [VIT, REGISTERS])
@pytest.mark.parametrize("keep_cls", [True, False])
def test_a_vit_gives_class_token_and_patches_but_no_registers(config, keep_cls):
    backbone = Backbone(replace(config, keep_cls=keep_cls))
    seen = []
    for i in config.levels:
        backbone.model.blocks[i].register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        tokens = backbone(images(size=config.image_size))
    for level, all_tokens in zip(tokens, seen, strict=True):
        prefix = backbone.model.num_prefix_tokens
        patches = all_tokens[:, prefix:]
        torch.testing.assert_close(level, torch.cat([all_tokens[:, :1], patches], 1) if keep_cls else patches)


def test_the_embedded_weights_recognise_edges_better_than_chance():
    """Trained first filters are smooth: neighbouring weights agree; random ones do not."""
    def smoothness(weights):
        w = Backbone(replace(CNN, weights=weights)).model.conv_stem.weight
        return torch.corrcoef(torch.stack([w[..., :-1].flatten(), w[..., 1:].flatten()]))[0, 1].item()

    assert smoothness("embedded") > 0.2 > abs(smoothness("random"))


def test_adapters_start_as_nothing_and_only_they_can_learn():
    plain, adapted = Backbone(VIT), Backbone(replace(VIT, adapter_rank=3))
    for a, b in zip(plain(images()), adapted(images()), strict=True):
        torch.testing.assert_close(a, b)
    learning = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * 12
    assert all(n.startswith("adapters.") for n in learning)
    with torch.no_grad():
        for p in adapted.adapters.parameters():
            p.fill_(0.1)
    block = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    block.load_state_dict(adapted.model.state_dict())
    x = block.norm_pre(block._pos_embed(block.patch_embed(images())))
    x = block.blocks[0](x)
    expected = x + (x @ torch.full((192, 3), 0.1)) @ torch.full((3, 192), 0.1) * (0.01 / 3)
    torch.testing.assert_close(adapted(images())[0], expected)


def test_preprocessing_uses_the_models_own_mean_and_std():
    backbone = Backbone(CNN)
    white = np.full((50, 80, 3), 255, np.uint8)
    batch = backbone.preprocess([white])
    assert batch.shape == (1, 3, 64, 64)
    torch.testing.assert_close(batch, torch.ones(1, 3, 64, 64))  # mean = std = 0.5


@pytest.mark.parametrize(("config", "message"), [
    (replace(CNN, name="no_such_model"), "unknown backbone 'no_such_model'"),
    (replace(VIT, weights="embedded"), "no embedded weights"),
    (replace(VIT, weights="somewhere.bin"), "existing .safetensors"),
    (replace(VIT, levels=(0, 99)), "levels"),
    (replace(CNN, adapter_rank=2), "need a vision transformer"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused(config, message):
    with pytest.raises(UbrainError, match=message):
        Backbone(config)


def test_no_connection_to_the_hub_is_said(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UbrainError, match="could not be fetched from the hub"):
        Backbone(replace(VIT, weights="hub"))


def test_features_are_those_of_the_backbone(small_crowd, tmp_path):
    with Crowd(small_crowd) as crowd:
        features = Features(crowd, CNN, tmp_path)
        rows = np.array([7, 2, 7])
        backbone = Backbone(CNN)
        with torch.no_grad():
            pixels = [crowd.image(crowd.image_ids[r]) for r in rows]
            expected = torch.cat(backbone(backbone.preprocess(pixels)), 2)
        np.testing.assert_allclose(features.read(rows), expected.numpy(), rtol=2e-3, atol=2e-3)
        assert [t.shape[2] for t in features.levels(expected)] == list(features.widths)
        features.close()


def test_a_second_call_computes_nothing(small_crowd, tmp_path, monkeypatch):
    with Crowd(small_crowd) as crowd:
        Features(crowd, CNN, tmp_path).close()
        monkeypatch.setattr(Features, "_compute", lambda *_: pytest.fail("computed again"))
        Features(crowd, CNN, tmp_path).close()
        with pytest.raises(pytest.fail.Exception):
            Features(crowd, replace(CNN, grid=2), tmp_path)


def fill(crowd_path, root):
    torch.set_num_threads(1)
    with Crowd(crowd_path) as crowd:
        Features(crowd, CNN, root).close()


def contents(root):
    found = []
    for path in root.rglob("*.h5"):
        with h5py.File(path) as file:
            found += list(file["content"].asstr()[:])
    return found


def test_two_processes_fill_the_cache_once(small_crowd, tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(small_crowd, tmp_path)) for _ in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0]
    with Crowd(small_crowd) as crowd:
        assert sorted(contents(tmp_path)) == sorted(crowd.content)


def test_a_killed_process_leaves_a_cache_that_can_be_used(small_crowd, tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=fill, args=(small_crowd, tmp_path))
    worker.start()
    while worker.is_alive() and not list(tmp_path.rglob("*.partial")):
        time.sleep(0.002)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    fill(small_crowd, tmp_path)
    with Crowd(small_crowd) as crowd:
        assert sorted(contents(tmp_path)) == sorted(crowd.content)
