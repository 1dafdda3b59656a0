"""Tokens of any timm model, adapters, and the feature cache."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from ubrain import features as features_module
from ubrain.backbone import Backbone, shifted
from ubrain.cli import app
from ubrain.config import BackboneConfig
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.features import Features, Images, Source, choose_source

CNN = BackboneConfig("tf_efficientnet_lite0", "embedded", (1, 3), 64, 4, False, 0)
VIT = BackboneConfig("vit_tiny_patch16_224", "random", (0, 5, 11), 64, None, True, 0)
REGISTERS = BackboneConfig(
    "vit_small_patch14_reg4_dinov2.lvd142m", "random", (0, 4, 7), 56, None, True, 0
)
DINOV3 = replace(VIT, name="vit_small_patch16_dinov3")  # of another class in timm


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


def loud(backbone, seed=1):
    """Random weights that make every part count: layer scale starts at 1e-5, and the adapters' B
    at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in backbone.model.named_parameters():
            if "ls" in name or "token" in name:
                p.copy_(torch.rand(p.shape, generator=generator) + 0.5)
        for p in backbone.adapters.parameters() if backbone.adapters else ():
            p.copy_(torch.randn(p.shape, generator=generator) / 20)
    return backbone


def timm_levels(backbone, x, fmt):
    with torch.no_grad():
        return backbone.model.forward_intermediates(
            x, indices=list(backbone.config.levels), output_fmt=fmt, intermediates_only=True
        )


def block_outputs(backbone):
    """What plain hooks on timm's blocks see at the levels; the last hook on a block sees what
    comes after its adapter.
    """
    seen = []
    handles = [
        backbone.model.blocks[i].register_forward_hook(lambda _m, _i, out: seen.append(out))
        for i in backbone.config.levels
    ]
    with torch.no_grad():
        tokens = backbone(images(size=backbone.image_size[0]))
    for handle in handles:
        handle.remove()
    return list(zip(tokens, seen, strict=True))


@pytest.mark.parametrize("config", [VIT, REGISTERS, DINOV3])
@pytest.mark.parametrize("keep_cls", [True, False])
@pytest.mark.parametrize("adapter_rank", [0, 2])
def test_a_vit_gives_class_token_and_patches_but_no_registers(config, keep_cls, adapter_rank):
    backbone = loud(Backbone(replace(config, keep_cls=keep_cls, adapter_rank=adapter_rank)))
    for level, everything in block_outputs(backbone):
        patches = everything[:, backbone.model.num_prefix_tokens :]
        torch.testing.assert_close(
            level, torch.cat([everything[:, :1], patches], 1) if keep_cls else patches
        )


def test_registers_last_keeps_the_registers_and_drops_as_many_patches():
    backbone = loud(Backbone(replace(REGISTERS, registers="last")))
    assert backbone.n_tokens == Backbone(REGISTERS).n_tokens == 1 + 16
    for level, everything in block_outputs(backbone):
        torch.testing.assert_close(level, everything[:, : 1 + 4 + 12])


def test_without_registers_the_two_conventions_are_the_same():
    for level, everything in block_outputs(Backbone(replace(VIT, registers="last"))):
        torch.testing.assert_close(level, everything)


def test_a_register_is_not_taken_for_a_class_token_that_is_not_there():
    backbone = loud(Backbone(replace(VIT, name="vit_wee_patch16_reg1_gap_256", levels=(0, 1))))
    for level, everything in block_outputs(backbone):
        torch.testing.assert_close(level, everything[:, 1:])


def test_the_embedded_weights_recognise_edges_better_than_chance():
    """Trained first filters are smooth: neighbouring weights agree; random ones do not."""

    def smoothness(weights):
        w = Backbone(replace(CNN, weights=weights)).model.conv_stem.weight
        return torch.corrcoef(torch.stack([w[..., :-1].flatten(), w[..., 1:].flatten()]))[
            0, 1
        ].item()

    assert smoothness("embedded") > 0.2 > abs(smoothness("random"))


def test_adapters_start_as_nothing_and_only_they_can_learn():
    plain, adapted = Backbone(VIT), Backbone(replace(VIT, adapter_rank=3))
    for a, b in zip(plain(images()), adapted(images()), strict=True):
        torch.testing.assert_close(a, b)
    learning = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * 12
    assert all(n.startswith("adapters.") for n in learning)
    assert all((b.weight == 0).all() and (a.weight != 0).all() for b, a in adapted.adapters)
    assert [tuple(p.shape) for p in adapted.adapters[0].parameters()] == [(3, 192), (192, 3)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_act_after_every_block_by_the_formula(checkpointing):
    alpha, rank = 5.0, 7
    config = replace(REGISTERS, adapter_rank=rank, adapter_alpha=alpha, checkpointing=checkpointing)
    backbone = loud(Backbone(config)).double()
    plain = (
        timm.create_model(config.name, img_size=56, num_classes=0)
        .double()
        .eval()
        .requires_grad_(False)
    )
    plain.load_state_dict(backbone.model.state_dict())
    copies = [
        [p.detach().clone().requires_grad_() for p in pair.parameters()]
        for pair in backbone.adapters
    ]
    x, expected = plain.norm_pre(plain._pos_embed(plain.patch_embed(images(size=56).double()))), []
    for i, (block, (b, a)) in enumerate(zip(plain.blocks, copies, strict=True)):
        x = block(x)
        x = x + x @ b.T @ a.T * alpha / rank
        if i in config.levels:
            expected.append(torch.cat([x[:, :1], x[:, 5:]], 1))
    tokens = backbone(images(size=56).double())
    torch.testing.assert_close(tokens, expected, rtol=1e-9, atol=1e-9)
    weighted_sum(expected).backward()
    weighted_sum(tokens).backward()
    read = max(config.levels) + 1
    for (b, a), adapter in zip(copies[:read], backbone.adapters[:read], strict=True):
        torch.testing.assert_close(
            [adapter[0].weight.grad, adapter[1].weight.grad], [b.grad, a.grad]
        )
        assert b.grad.any()
        assert a.grad.any()
    assert all(p.grad is None for p in backbone.adapters[read:].parameters())
    assert all(p.grad is None for p in backbone.model.parameters())


def weighted_sum(levels):
    return sum((t * torch.linspace(-1, 1, t.numel()).view(t.shape)).mean() for t in levels)


@pytest.mark.parametrize(("checkpointing", "calls"), [(False, 1), (True, 2)])
def test_checkpointing_computes_blocks_again_in_the_backward_pass(checkpointing, calls):
    backbone = Backbone(replace(VIT, levels=(3,), adapter_rank=2, checkpointing=checkpointing))
    seen = []
    backbone.model.blocks[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    weighted_sum(backbone(images())).backward()
    assert len(seen) == calls


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_learn_under_bf16_autocast(checkpointing):
    backbone = loud(Backbone(replace(REGISTERS, adapter_rank=2, checkpointing=checkpointing)))
    exact = backbone(images(size=56))
    weighted_sum(exact).backward()
    gradient = backbone.adapters[0][0].weight.grad.clone()
    backbone.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = backbone(images(size=56))
    weighted_sum([t.float() for t in tokens]).backward()
    for a, b in ((exact[-1], tokens[-1]), (gradient, backbone.adapters[0][0].weight.grad)):
        assert F.cosine_similarity(a.flatten(), b.float().flatten(), 0) > 0.99
        assert not torch.equal(a, b)


def test_the_seed_decides_how_adapters_start_and_nothing_else_does():
    config = replace(VIT, adapter_rank=2)
    torch.manual_seed(5)
    first = Backbone(config, seed=3).adapters.state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    again, other = (Backbone(config, seed=s).adapters.state_dict() for s in (3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["0.1.weight"], other["0.1.weight"])


@pytest.mark.parametrize("config", [CNN, replace(VIT, adapter_rank=2)])
def test_the_frozen_model_stays_in_eval_mode_whatever_is_asked_for(config):
    backbone = nn.ModuleDict({"backbone": Backbone(config)}).train()["backbone"]
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    backbone(images())
    assert backbone.training
    assert not any(m.training for m in backbone.model.modules())
    assert all(torch.equal(before[k], v) for k, v in backbone.model.state_dict().items())


@pytest.fixture(scope="module")
def original():
    """Random weights under the names and in the shapes that DINOv2 with registers is published in,
    for 518 px.
    """
    model = loud(Backbone(replace(REGISTERS, levels=(0,), image_size=518))).model
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    weights["pos_embed"] = torch.randn(1, 1 + 37 * 37, 384, generator=generator)
    weights["register_tokens"] = weights.pop("reg_token")
    weights["mask_token"] = torch.zeros(1, 384)
    return weights


def as_timm_has_it(weights):
    weights = {k: v for k, v in weights.items() if k != "mask_token"}
    weights["reg_token"] = weights.pop("register_tokens")
    weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
    weights["pos_embed"] = weights["pos_embed"][:, 1:].contiguous()
    return weights


@pytest.mark.parametrize("to_file", [dict, as_timm_has_it])
def test_weights_made_for_518_px_serve_224_px_as_in_dinov2(original, to_file, tmp_path):
    """DINOv2 with registers: 37 × 37 to 16 × 16 by antialiased bicubic interpolation, without an
    offset; the class token
    has its own position, the registers none."""
    save_file(to_file(original), tmp_path / "weights.safetensors")
    config = replace(
        REGISTERS, levels=(0, 1), image_size=224, weights=str(tmp_path / "weights.safetensors")
    )
    backbone = Backbone(config)
    grid = original["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    positions = (
        F.interpolate(grid, size=(16, 16), mode="bicubic", antialias=True)
        .flatten(2)
        .transpose(1, 2)
    )
    x = images(size=224)
    patches = F.conv2d(
        x, original["patch_embed.proj.weight"], original["patch_embed.proj.bias"], stride=14
    )
    patches = patches.flatten(2).transpose(1, 2) + positions
    cls = (original["cls_token"] + original["pos_embed"][:, :1]).expand(2, -1, -1)
    tokens = torch.cat([cls, original["register_tokens"].expand(2, -1, -1), patches], 1)
    with torch.no_grad():
        for i, level in enumerate(backbone(x)):
            tokens = backbone.model.blocks[i](tokens)
            torch.testing.assert_close(level, torch.cat([tokens[:, :1], tokens[:, 5:]], 1))
    for name in ("blocks.0.attn.qkv.weight", "blocks.11.ls2.gamma", "blocks.5.mlp.fc1.bias"):
        assert torch.equal(backbone.model.state_dict()[name], original[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("blocks.3.norm1.bias"),
            r"1 weights of the backbone are missing, first 'blocks\.3\.norm1\.bias'",
        ),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 1 + 37 * 37, 192)),
            "does not hold weights of this backbone",
        ),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 1000, 384)),
            "does not hold weights of this backbone",
        ),
    ],
)
def test_a_file_of_other_weights_is_refused(original, change, message, tmp_path):
    weights = dict(original)
    change(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(UbrainError, match=message):
        Backbone(replace(REGISTERS, weights=str(tmp_path / "weights.safetensors")))


def coordinates(n, height=7, width=9):
    """Images whose pixels are their own places: red is y, green is x, blue is the number of the
    image.
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.stack([y, x, torch.full_like(y, i)]) for i in range(n)]).float()


def test_whole_images_are_shifted_by_every_offset_and_edges_repeat():
    torch.manual_seed(0)
    found = set()
    for i, (y, x, number) in enumerate(shifted(coordinates(400), 2)):
        dy, dx = int(y[3, 0]) - 3, int(x[0, 4]) - 4
        expected_y = (torch.arange(7) + dy).clamp(0, 6)[:, None].expand(7, 9)
        expected_x = (torch.arange(9) + dx).clamp(0, 8).expand(7, 9)
        assert torch.equal(y, expected_y.float())
        assert torch.equal(x, expected_x.float())
        assert (number == i).all()
        found.add((dy, dx))
    assert found == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}


def test_no_shift_changes_nothing():
    assert torch.equal(shifted(coordinates(3), 0), coordinates(3))


@pytest.mark.parametrize(
    "device",
    [
        "meta",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
        ),
    ],
)
def test_shifts_are_the_same_on_every_device(device):
    torch.manual_seed(0)
    here, state = shifted(coordinates(5), 3), torch.get_rng_state()
    torch.manual_seed(0)
    there = shifted(coordinates(5).to(device), 3)
    assert there.device.type == device
    assert torch.equal(torch.get_rng_state(), state)
    assert there.shape == here.shape
    assert device == "meta" or torch.equal(here, there.cpu())


def test_preprocessing_uses_the_models_own_mean_and_std():
    backbone = Backbone(CNN)
    white = np.full((50, 80, 3), 255, np.uint8)
    batch = backbone.preprocess([white])
    assert batch.shape == (1, 3, 64, 64)
    torch.testing.assert_close(batch, torch.ones(1, 3, 64, 64))  # mean = std = 0.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CNN, name="no_such_model"), "unknown backbone 'no_such_model'"),
        (replace(VIT, weights="embedded"), "no embedded weights"),
        (replace(VIT, weights="somewhere.bin"), "existing .safetensors"),
        (replace(VIT, levels=(0, 99)), "levels"),
        (replace(VIT, name="vit_tiny_patch16_224.no_such_tag"), "timm cannot make the backbone"),
        (replace(CNN, adapter_rank=2), "need a vision transformer"),
        (replace(VIT, adapter_rank=-1), "adapter_rank is -1"),
        (
            replace(VIT, name="tnt_s_patch16_224", image_size=None, adapter_rank=2),
            "blocks that give one tensor",
        ),
        (
            replace(VIT, registers="first"),
            "unknown registers 'first'; expected one of prefix, last",
        ),
        (replace(VIT, registers="last", keep_cls=False), "set keep_cls to true"),
        (replace(CNN, grid=None), r"its levels have \[16, 256\] tokens; set grid"),
    ],
)
def test_what_cannot_be_had_is_refused(config, message):
    with pytest.raises(UbrainError, match=message):
        Backbone(config)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (True, r"LocalEntryNotFoundError: cannot find the files\."),
        (False, "it does not answer, and"),
    ],
)
def test_no_connection_to_the_hub_is_said(monkeypatch, answers, reason):
    def fetched(*_, pretrained, **__):
        if pretrained:
            assert answers != constants.HF_HUB_OFFLINE
            raise LocalEntryNotFoundError("cannot find the files.\nPlease check your connection.")
        return real(*_, pretrained=False, **__)

    def head(place, timeout):
        looks.append(timeout)
        if not answers:
            raise OSError

    real, looks = timm.create_model, []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(timm, "create_model", fetched)
    message = rf"could not be fetched from the hub \({reason}.*\)\. Fetch them once"
    with pytest.raises(UbrainError, match=message):
        Backbone(replace(VIT, weights="hub"))
    assert (len(looks), constants.HF_HUB_OFFLINE) == (1, False)


def test_the_hubs_offline_mode_is_said_at_once(tmp_path):
    code = (
        "import time; from ubrain.backbone import Backbone, BackboneConfig; from ubrain.errors"
        " import UbrainError\nstart = time.monotonic()\ntry:"
        " Backbone(BackboneConfig('vit_tiny_patch16_224', 'hub', (0,), 64))\nexcept UbrainError as"
        " error: print(time.monotonic() - start, error)\n"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    seconds, message = done.stdout.split(maxsplit=1)
    assert "HF_HUB_OFFLINE is set" in message
    assert float(seconds) < 5


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


def test_a_second_call_computes_nothing(small_crowd, tmp_path, monkeypatch):
    with Crowd(small_crowd) as crowd:
        Features(crowd, CNN, tmp_path)
        monkeypatch.setattr(Features, "_fill", lambda *_: pytest.fail("computed again"))
        Features(crowd, CNN, tmp_path)
        with pytest.raises(pytest.fail.Exception):
            Features(crowd, replace(CNN, grid=2), tmp_path)


@pytest.mark.parametrize("damage", ["short", "long", "no json", "half a json", "other json"])
def test_a_damaged_file_of_a_cache_is_made_anew_with_one_line(
    small_crowd, tmp_path, caplog, damage
):
    with Crowd(small_crowd) as crowd:
        whole = Features(crowd, CNN, tmp_path).read([0, 7])
        path = next(tmp_path.rglob("*.bin"))
        about = path.with_suffix(".json")
        if damage in ("short", "long"):
            os.truncate(path, path.stat().st_size + (-1 if damage == "short" else 1))
        elif damage == "no json":
            about.unlink()
        else:
            about.write_text(about.read_text()[:100] if damage == "half a json" else "[1]")
        np.testing.assert_array_equal(Features(crowd, CNN, tmp_path).read([0, 7]), whole)
        assert caplog.text.count("is damaged (") == 1
        assert not path.exists()
        assert len(list(tmp_path.rglob("*.json"))) == len(list(tmp_path.rglob("*.bin"))) == 1


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ubrain.backbone"])  # which takes seconds to import


def fill(crowd_path, root):
    torch.set_num_threads(1)
    with Crowd(crowd_path) as crowd:
        Features(crowd, CNN, root)


def contents(root):
    found = []
    for path in root.rglob("*.bin"):
        found += json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["content"]
    return found


def test_two_processes_fill_the_cache_once(small_crowd, tmp_path):
    workers = [PROCESSES.Process(target=fill, args=(small_crowd, tmp_path)) for _ in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0]
    with Crowd(small_crowd) as crowd:
        assert sorted(contents(tmp_path)) == sorted(crowd.content)


def test_a_killed_process_leaves_a_cache_that_can_be_used(small_crowd, tmp_path, monkeypatch):
    worker = PROCESSES.Process(target=fill, args=(small_crowd, tmp_path))
    worker.start()
    while worker.is_alive() and not list(tmp_path.rglob("*.partial")):
        time.sleep(0.002)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    fill(small_crowd, tmp_path)
    with Crowd(small_crowd) as crowd:
        assert sorted(contents(tmp_path)) == sorted(crowd.content)


def test_some_levels_are_those_of_a_backbone_that_reads_only_these(small_crowd, tmp_path):
    three = replace(CNN, levels=(0, 1, 3))
    with Crowd(small_crowd) as crowd:
        features = Features(crowd, three, tmp_path)
        some, alone = (
            features.select((0, 2)),
            Features(crowd, replace(CNN, levels=(0, 3)), tmp_path),
        )
        rows = np.array([3, 0, 11])
        np.testing.assert_array_equal(some.read(rows), alone.read(rows))
        np.testing.assert_array_equal(
            some.select((1,)).read(rows), features.select((2,)).read(rows)
        )
        assert (some.widths, some.n_tokens) == (alone.widths, alone.n_tokens)
        assert some.config == alone.config
        assert some.folder != features.select((0, 1)).folder  # part of the key of trained encoders
        with pytest.raises(UbrainError, match=r"levels \(1, 3\): expected some of 0 to 2"):
            features.select((1, 3))


def test_the_number_of_files_of_the_cache_does_not_matter(small_crowd, tmp_path, monkeypatch):
    with Crowd(small_crowd) as crowd:
        features = Features(crowd, CNN, tmp_path / "whole")
        rows = np.random.default_rng(0).permutation(len(crowd.content))
        expected = features.read(rows)
        monkeypatch.setattr(features_module, "SHARD", 8)
        monkeypatch.setattr(features_module, "BATCH", 4)
        n_open = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        features = Features(crowd, CNN, tmp_path / "pieces")
        assert len(list(features.folder.glob("*.bin"))) > 5
        np.testing.assert_allclose(features.read(rows), expected, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(features.read(rows[:9]), features.read(rows)[:9])
        assert features.read(rows[:0]).shape == (0, *expected.shape[1:])
        if n_open:
            assert len(os.listdir("/proc/self/fd")) <= n_open


def test_images_are_kept_at_the_size_of_the_backbone(small_crowd, tmp_path):
    backbone = Backbone(CNN)
    with Crowd(small_crowd) as crowd:
        images = Images(crowd, backbone, tmp_path)
        rows = np.array([7, 2, 7])
        stored = images.read(rows)
        assert (stored.shape, stored.dtype) == ((3, 3, 64, 64), np.uint8)
        exact = backbone.resize(crowd.pixels(rows))
        np.testing.assert_allclose(stored / 255, exact.numpy(), atol=0.5 / 255 + 1e-6)
        cached = Source(crowd, None, backbone, images).tokens(rows, torch.device("cpu"))
        anew = Source(crowd, None, backbone).tokens(rows, torch.device("cpu"))
        for a, b in zip(cached, anew, strict=True):
            assert not a.requires_grad
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))


def test_a_gpu_makes_features_anew(small_crowd, tmp_path, monkeypatch):
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(Backbone, "to", lambda self, _: self)
    with Crowd(small_crowd) as crowd:
        source = choose_source(crowd, CNN, torch.device("cuda"))
        assert source.features is None
        assert source.images is not None
        assert choose_source(crowd, CNN, torch.device("cpu")).features is not None


def test_a_cache_that_the_disk_cannot_hold_is_refused_before_it_is_begun(
    small_crowd, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: SimpleNamespace(total=100, used=0, free=100)
    )
    monkeypatch.setattr(Backbone, "preprocess", lambda *_: pytest.fail("computed features"))
    with (
        Crowd(small_crowd) as crowd,
        pytest.raises(UbrainError, match=r"needs about .* kB, but only 100 bytes .*UBRAIN_CACHE"),
    ):
        Features(crowd, CNN, tmp_path)
    assert not list(tmp_path.rglob("*.bin"))


FULL_DISK = """
import errno, sys
from contextlib import contextmanager
from pathlib import Path
from ubrain import features
from ubrain.config import BackboneConfig
from ubrain.crowd import Crowd

real, files = features.atomic, []  # two fit

@contextmanager
def atomic(path):
    with real(path) as partial:
        yield partial
        files.append(path)
        if len(files) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")

features.SHARD = features.BATCH = 16
features.atomic = atomic
with Crowd(sys.argv[1]) as crowd:
    config = BackboneConfig("tf_efficientnet_lite0", "embedded", (1, 3), 64, 4, False, 0)
    features.Features(crowd, config, Path(sys.argv[2]))
"""


def test_after_a_disk_was_full_the_finished_files_are_kept_and_the_rest_follows(
    small_crowd, tmp_path
):
    """The disk is full in a process of its own, as it would be; another one follows."""
    command = [sys.executable, "-c", FULL_DISK, str(small_crowd), str(tmp_path)]
    full = subprocess.run(command, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert "No space left on device" in full.stderr.splitlines()[-1]
    assert len(contents(tmp_path)) == 32
    assert not list(tmp_path.rglob("*.partial"))
    with Crowd(small_crowd) as crowd:
        Features(crowd, CNN, tmp_path)
        assert sorted(contents(tmp_path)) == sorted(crowd.content)


def test_the_cache_tells_register_conventions_apart_but_not_checkpointing():
    def key(**change):
        return features_module._cache_key(replace(REGISTERS, **change))

    assert key(registers="last") != key()
    assert key(checkpointing=True) == key()


def train_command(crowd, out, *options):
    done = CliRunner().invoke(
        app, ["train", "--crowd", str(crowd), "--out", str(out), "--profile", "smoke", *options]
    )
    return str(done.exception)


def test_the_command_line_computes_features_on_the_wanted_device(
    small_crowd, tmp_path, monkeypatch
):
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "cache"))
    assert "device 'cuda:77' is not available" in train_command(
        small_crowd, tmp_path / "out", "--device", "cuda:77"
    )
    assert not list(tmp_path.rglob("*.bin"))


def test_the_command_line_sets_every_option_of_the_backbone(small_crowd, tmp_path, monkeypatch):
    seen = []

    def instead(config, seed):
        seen.append((config, seed))
        raise UbrainError("that is enough")

    monkeypatch.setattr(features_module, "Backbone", instead)
    options = [
        "--backbone",
        REGISTERS.name,
        "--weights",
        "random",
        "--levels",
        "0,4,7",
        "--image-size",
        "56",
        "--adapters",
        "3",
        "--checkpointing",
        "--registers",
        "last",
        "--keep-cls",
        "--recipe",
        "paper",
        "--seed",
        "9",
    ]
    assert train_command(small_crowd, tmp_path / "out", *options) == "that is enough"
    expected = replace(
        REGISTERS, adapter_rank=3, checkpointing=True, registers="last", grid=seen[0][0].grid
    )
    assert seen == [(expected, 9)]


def test_pretrained_is_short_for_the_weights_of_the_hub(small_crowd, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from ubrain.cli import app

    asked = []
    monkeypatch.setattr(
        features_module, "Features", lambda _, config, *__: asked.append(config.weights) or 1 / 0
    )
    for flags in (["--pretrained"], ["--no-pretrained"], []):
        CliRunner().invoke(
            app, ["train", "--crowd", str(small_crowd), "--out", str(tmp_path / "out"), *flags]
        )
    assert asked == ["hub", "random", "embedded"]
    both = [
        "train",
        "--crowd",
        str(small_crowd),
        "--out",
        str(tmp_path / "out"),
        "--pretrained",
        "--weights",
        "hub",
    ]
    with pytest.raises(UbrainError, match="give one of them"):
        CliRunner().invoke(app, both, catch_exceptions=False)
