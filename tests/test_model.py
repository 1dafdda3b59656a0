"""The encoder: its fast form against the form of its formulas, and what it promises."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ubrain import kernels
from ubrain.backbone import Backbone
from ubrain.config import BackboneConfig, EncoderConfig
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.predict import Predictor
from ubrain.transfer import Head

CONFIG = EncoderConfig(
    widths=(12, 20), n_tokens=17, embedding_size=16, channels=8, embedding_scale=4.0
)


def make(dtype, config=CONFIG):
    torch.manual_seed(1)
    encoder = UniversalEncoder(config, {"A": 30, "B": 9}).to(dtype)
    tokens = [torch.randn(5, config.n_tokens, w, dtype=dtype) for w in config.widths]
    return encoder, tokens


def plain(encoder, *inputs):
    """Responses as the formulas read."""
    encoder.fast = False
    try:
        return encoder(*inputs)
    finally:
        encoder.fast = True


def embeddings(encoder, dtype, per_image):
    torch.manual_seed(2)
    shape = (5, 6, CONFIG.embedding_size) if per_image else (6, CONFIG.embedding_size)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n_tokens", [16, 17, 64, 257])
@pytest.mark.parametrize("per_image", [False, True], ids=["shared-voxels", "voxels-per-image"])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("tile", [(2, 4), (8, 256)], ids=["many-tiles", "one-tile"])
@pytest.mark.parametrize("keep", [0, 1 << 20], ids=["computed-again", "kept"])
def test_values_and_gradients_agree_with_the_formulas(
    monkeypatch, dtype, tolerance, n_tokens, per_image, dropout, tile, keep
):
    monkeypatch.setattr(kernels, "KEEP", keep)
    numbers = tile[0] * tile[1] * max(n_tokens, 4 * CONFIG.channels)
    monkeypatch.setattr(kernels, "NUMBERS_PER_TILE", numbers)
    monkeypatch.setattr(kernels, "VOXELS_PER_TILE", tile[1])
    encoder, tokens = make(dtype, replace(CONFIG, n_tokens=n_tokens))
    encoder.train(dropout)
    e = embeddings(encoder, dtype, per_image)
    masks = (
        [torch.rand(5, 6, CONFIG.channels) > CONFIG.dropout for _ in CONFIG.widths]
        if dropout
        else None
    )
    ours, theirs = encoder(tokens, e, masks), plain(encoder, tokens, e, masks)
    assert ours.std() > 1e-2
    torch.testing.assert_close(
        ours, theirs, rtol=tolerance, atol=tolerance * theirs.detach().abs().max().item()
    )
    target = torch.randn_like(ours)
    wanted = [*seen_by_softmax(encoder), e]
    for a, b in zip(
        torch.autograd.grad((ours * target).sum(), wanted),
        torch.autograd.grad((theirs * target).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("without", [(), ("functional",)])
def test_a_frozen_encoder_gives_voxels_the_same_gradients(without):
    encoder, tokens = make(torch.float64, replace(CONFIG, without=without))
    e = embeddings(encoder, torch.float64, per_image=False)
    target = torch.randn(5, 6, dtype=torch.float64)
    masks = [torch.rand(5, 6, CONFIG.channels) > CONFIG.dropout for _ in CONFIG.widths]
    trained, frozen = (
        torch.autograd.grad((form(tokens, e, masks) * target).sum(), e)[0]
        for form in (encoder, encoder.frozen())
    )
    assert trained.abs().max() > 0
    torch.testing.assert_close(frozen, trained)


def seen_by_softmax(encoder):
    """All shared weights but the bias of the keys, which adds the same to the scores of all
    tokens.
    """
    named = encoder.named_parameters()
    return [p for n, p in named if not n.startswith("embeddings.") and not n.endswith("key.bias")]


def test_the_bias_of_the_keys_changes_nothing():
    encoder, tokens = make(torch.float64)
    encoder.eval()
    before, theirs = encoder(tokens, "A"), plain(encoder, tokens, "A")
    (gradient,) = torch.autograd.grad(theirs.square().sum(), [encoder.levels[0].key.bias])
    assert gradient.abs().max() < 1e-9
    with torch.no_grad():
        encoder.levels[0].key.bias.add_(3)
    torch.testing.assert_close(encoder(tokens, "A"), before)
    torch.testing.assert_close(plain(encoder, tokens, "A"), before)


def test_the_voxels_of_a_subject_are_those_of_its_embeddings():
    encoder, tokens = make(torch.float64)
    encoder.eval()
    shared, each = torch.tensor([3, 0, 29, 3, 11]), torch.randint(30, (5, 7))
    whole = plain(encoder, tokens, "A")
    torch.testing.assert_close(encoder(tokens, "A"), whole)
    torch.testing.assert_close(encoder(tokens, encoder.subject("A")[shared]), whole[:, shared])
    torch.testing.assert_close(encoder(tokens, encoder.subject("A")[each]), whole.gather(1, each))


def test_dropout_drops_its_share_and_scales_the_rest():
    keep = kernels.dropout_mask((100, 100, 7), 0.25, torch.device("cpu"))
    assert keep.shape == (100, 100, 7)
    assert keep.float().mean().item() == pytest.approx(0.75, abs=0.01)
    by_channel = keep.float().mean((0, 1))
    assert by_channel.std() < 0.02
    encoder, tokens = make(torch.float32)
    encoder.train()
    torch.manual_seed(5)
    drawn = encoder(tokens, "A")
    torch.manual_seed(5)
    masks = [
        kernels.dropout_mask((5, 30, CONFIG.channels), CONFIG.dropout, torch.device("cpu"))
        for _ in CONFIG.widths
    ]
    torch.testing.assert_close(drawn, plain(encoder, tokens, "A", masks))


def test_adapters_get_the_same_gradients_from_both_forms():
    """Gradients of the tokens, which the adapters of a backbone learn from, under one dropout."""
    config = BackboneConfig("vit_tiny_patch16_224", "random", (1, 3), 32, None, True, 2)
    backbone = Backbone(config)
    for p in backbone.adapters.parameters():
        nn.init.normal_(p, std=0.3)
    encoder, _ = make(torch.float32, replace(CONFIG, widths=backbone.widths, n_tokens=5))
    encoder.train()
    masks = [torch.rand(3, 30, CONFIG.channels) > CONFIG.dropout for _ in CONFIG.widths]
    images, target = torch.rand(3, 3, 32, 32), torch.randn(3, 30)
    found = []
    for form in (encoder, partial(plain, encoder)):
        out = form(backbone(images), "A", masks)
        found.append(
            torch.autograd.grad((out * target).sum(), [*backbone.adapters.parameters()][:8])
        )
    for a, b in zip(*found, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_bf16_comes_close_in_values_and_gradients():
    encoder, tokens = make(torch.float32, replace(CONFIG, n_tokens=64))
    encoder.eval()
    exact = encoder(tokens, "A")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(tokens, "A")
    assert rounded.dtype == torch.float32
    wanted = seen_by_softmax(encoder)
    target = torch.randn_like(exact)
    for a, b in [
        (exact, rounded),
        *zip(
            torch.autograd.grad((exact * target).sum(), wanted),
            torch.autograd.grad((rounded * target).sum(), wanted),
            strict=True,
        ),
    ]:
        if b.abs().max() > 1e-3:
            assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("keep", [0, 60_000, 1 << 20])
def test_little_of_images_with_voxels_is_kept_for_the_backward_pass(monkeypatch, keep):
    encoder, tokens = make(torch.float32, replace(CONFIG, n_tokens=64, channels=8))
    encoder.train()
    monkeypatch.setattr(kernels, "KEEP", keep)
    monkeypatch.setattr(kernels, "VOXELS_PER_TILE", 10)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        encoder(tokens, "A")
    assert kept
    of_pairs = [t.nbytes for t in kept if t.shape[:2] == (10, 5) and t.dtype != torch.bool]
    assert bool(of_pairs) == bool(keep)
    assert sum(of_pairs) <= keep * len(CONFIG.widths)


@pytest.mark.parametrize("per_image", [False, True], ids=["shared-voxels", "voxels-per-image"])
@pytest.mark.parametrize("size", [4, 16], ids=["short-embedding", "long-embedding"])
@pytest.mark.parametrize("without", [(), ("spatial",), ("position",), ("functional",)])
def test_the_form_for_a_gpu_agrees_with_the_formulas(monkeypatch, per_image, size, without):
    """Computed on the CPU, where torch has the same operators; without compiling."""
    monkeypatch.setattr(kernels, "read_out", kernels._read_out)
    config = replace(CONFIG, embedding_size=size, without=without)
    encoder, tokens = make(torch.float64, config)
    e = torch.randn(*[5] * per_image, 6, size, dtype=torch.float64, requires_grad=True)
    masks = [torch.rand(5, 6, CONFIG.channels) > CONFIG.dropout for _ in CONFIG.widths]
    ours = kernels.respond_on_gpu(encoder, encoder.project(tokens), e, masks)
    theirs = plain(encoder, tokens, e, masks)
    torch.testing.assert_close(ours, theirs)
    target, used = torch.randn_like(ours), {"allow_unused": True, "materialize_grads": True}
    wanted = [*seen_by_softmax(encoder), e]
    for a, b in zip(
        torch.autograd.grad((ours * target).sum(), wanted, **used),
        torch.autograd.grad((theirs * target).sum(), wanted, **used),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_form_for_a_gpu_fills_up_what_is_short_in_half_precision(monkeypatch):
    monkeypatch.setattr(kernels, "read_out", kernels._read_out)
    sizes, attend = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *t, scale: sizes.append([x.shape[-1] for x in t]) or attend(*t, scale=scale),
    )
    encoder, tokens = make(torch.float32, replace(CONFIG, embedding_size=12))
    e = encoder.eval().subject("A")
    exact = plain(encoder, tokens, e)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = kernels.respond_on_gpu(encoder, encoder.project(tokens), e)
    assert sizes == [[16, 16, 16]] * len(CONFIG.widths)
    assert F.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_what_cannot_be_compiled_is_computed_as_it_is(monkeypatch, caplog, fails):
    def refuse(*_):
        raise RuntimeError("there is no compiler\nand more")

    def compiled(x):
        if fails == "forward":
            refuse()
        y = 2 * x
        y.register_hook(refuse)
        return y

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    caplog.set_level("INFO", "ubrain")
    double = kernels.Compiled(lambda x: 2 * x)
    with torch.inference_mode():
        assert [double(torch.tensor(x)).item() for x in (3.0, 4.0)] == [6, 8]
    assert [r.message for r in caplog.records] == [
        "computing without compiling, which torch cannot here: there is no compiler"
    ]


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch):
    encoder, tokens = make(torch.float32)
    seen = []
    monkeypatch.setattr(
        kernels._Readout, "apply", lambda *inputs: seen.append(inputs[-1]) or torch.zeros(5, 30)
    )
    with torch.inference_mode():
        encoder(tokens, "A")
    with torch.no_grad():
        encoder(tokens, "A")
    assert seen == [0] * 4
    encoder(tokens, "A")
    assert seen[-1] == kernels.KEEP


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_autocast_may_hold_forward_backward_both_or_none(forward, backward):
    encoder, tokens = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        out = encoder(tokens, "A")
    with torch.autocast("cpu", torch.bfloat16, enabled=backward):
        out.square().sum().backward()
    assert encoder.position.grad.isfinite().all()


def test_no_voxels_or_no_images_give_an_empty_answer():
    encoder, tokens = make(torch.float32)
    assert encoder(tokens, encoder.subject("A")[:0]).shape == (5, 0)
    assert encoder([t[:0] for t in tokens], "A").shape == (0, 30)


def test_a_batch_of_one_subject_gives_no_gradient_to_another():
    encoder, tokens = make(torch.float32)
    encoder(tokens, "A").sum().backward()
    assert encoder.embeddings["A"].grad.abs().sum() > 0
    assert encoder.embeddings["B"].grad is None


def test_attention_is_a_distribution_over_tokens():
    encoder, tokens = make(torch.float32)
    attention = encoder.attention(tokens, "B")
    assert attention.shape == (2, 5, 9, 17)
    torch.testing.assert_close(attention.sum(3), torch.ones(2, 5, 9))


def test_embeddings_start_as_small_as_the_paper_says():
    encoder = UniversalEncoder(EncoderConfig(widths=(4,), n_tokens=2), {"A": 4000})
    assert encoder.embeddings["A"].std().item() == pytest.approx(
        0.1 / (2 * math.sqrt(256)), rel=0.01
    )


@pytest.mark.parametrize("wrong", [0, 1])
def test_tokens_of_another_backbone_are_refused(wrong):
    encoder, tokens = make(torch.float32)
    tokens[wrong] = torch.zeros(5, 16, CONFIG.widths[wrong])
    with pytest.raises(UbrainError, match="another backbone"):
        encoder(tokens, "A")


def test_unknown_and_repeated_subjects_are_refused():
    encoder, tokens = make(torch.float32)
    with pytest.raises(UbrainError, match="no subject 'C'; it has A, B"):
        encoder(tokens, "C")
    with pytest.raises(UbrainError, match="already has"):
        encoder.add_subject("A", 3)


def test_without_spatial_attention_all_tokens_count_alike():
    encoder, tokens = make(torch.float64, replace(CONFIG, without=("spatial",)))
    torch.testing.assert_close(
        encoder.attention(tokens, "A"), torch.full((2, 5, 30, 17), 1 / 17, dtype=torch.float64)
    )


def test_without_position_the_place_of_a_token_does_not_matter():
    shuffled = torch.randperm(17)
    for without, same in (((), False), (("position",), True)):
        encoder, tokens = make(torch.float64, replace(CONFIG, without=without))
        encoder.eval()
        assert (
            torch.allclose(encoder(tokens, "A"), encoder([t[:, shuffled] for t in tokens], "A"))
            is same
        )


def test_without_functional_attention_voxels_differ_only_in_where_they_look():
    encoder, tokens = make(torch.float64, replace(CONFIG, without=("functional",)))
    encoder.eval()
    same_everywhere = [t[:, :1].expand(-1, 17, -1) for t in tokens]
    predicted = encoder(same_everywhere, "A")
    torch.testing.assert_close(predicted, predicted[:, :1].expand(-1, 30))
    assert encoder(tokens, "A").std(1).min() > 1e-3


@pytest.mark.parametrize("without", [("spacial",), ("spatial", "functional")])
def test_unknown_or_empty_ablations_are_refused(without):
    with pytest.raises(
        UbrainError, match="without: expected some of spatial, position, functional"
    ):
        UniversalEncoder(replace(CONFIG, without=without), {})


def test_the_plain_form_is_the_one_that_predicts_wherever_it_is_chosen(monkeypatch):
    """An edited plain form must not be trained and then judged by the kernels."""
    encoder, tokens = make(torch.float32)
    encoder.eval()
    expected = encoder(tokens, "A").detach()
    encoder.fast = False
    monkeypatch.setattr(kernels, "respond", lambda *_: pytest.fail("the kernels were used"))
    source = SimpleNamespace(
        tokens=lambda *_: tokens, widths=CONFIG.widths, n_tokens=CONFIG.n_tokens
    )
    head = Head(encoder, source, np.arange(5))
    found = [Predictor(encoder, "A")(tokens), head.respond(encoder.subject("A").detach())]
    for responses in found:
        np.testing.assert_allclose(responses, expected, rtol=1e-4, atol=1e-5)


def test_recorded_steps_add_gradients_and_give_what_was_computed():
    """Without a GPU nothing is recorded; with one, replays are held equal to plain steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weight = torch.nn.Parameter(torch.arange(3.0, device=device))

    def work(x):
        x = x.detach().requires_grad_()
        loss = (weight * x).square().sum()
        loss.backward()
        return loss.detach(), x.grad

    step = kernels.Replayed(work, [weight])
    for n in range(2, 8):
        x = torch.full((3,), float(n), device=device)
        for times in (1, 2):  # two batches of a step: their gradients add up
            loss, gradient = step(x)
            torch.testing.assert_close(loss, (weight.detach() * n).square().sum())
            torch.testing.assert_close(gradient, 2 * weight.detach() ** 2 * n)
            torch.testing.assert_close(weight.grad, times * 2 * weight.detach() * n**2)
        weight.grad = None
    assert (step._replay is not None) == (device.type == "cuda")
