"""The encoder against a literal form of its formulas."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ubrain import checkpoint
from ubrain.config import EncoderConfig
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder

CONFIG = EncoderConfig(widths=(12, 20), n_tokens=17, embedding_size=16, channels=8, embedding_scale=4.0)


def literal(encoder, tokens, subject, voxels, masks=None):
    """Every step of the paper, for every (image, voxel) pair, with nothing re-associated."""
    c = encoder.config
    e = encoder.embeddings[subject][voxels]  # (V, E)
    pooled = []
    for i, (level, t) in enumerate(zip(encoder.levels, tokens, strict=True)):
        x = F.linear(F.layer_norm(t, t.shape[-1:], level.norm_in.weight, level.norm_in.bias),
                     level.project_in.weight, level.project_in.bias)  # (B, P, C)  # fmt: skip
        query = F.linear(e, level.query.weight, level.query.bias)  # (V, E)
        key = F.linear(x, level.key.weight, level.key.bias) + encoder.position  # (B, P, E)
        scores = torch.einsum("ve,bpe->bvp", query, key)
        values = torch.einsum("bvp,bpc->bvc", scores.softmax(2), x)
        z = F.layer_norm(values, values.shape[-1:], level.norm.weight, level.norm.bias)
        if masks is not None:
            z = z * masks[i] / (1 - c.dropout)
        hidden = F.gelu(F.linear(z, level.fc1.weight, level.fc1.bias))
        pooled.append(z + F.linear(hidden, level.fc2.weight, level.fc2.bias))
    weights = e @ encoder.functional  # (V, L·C)
    return (torch.cat(pooled, 2) * weights).sum(2)  # (B, V)


def make(dtype, config=CONFIG):
    torch.manual_seed(1)
    encoder = UniversalEncoder(config, {"A": 30, "B": 9}).to(dtype)
    tokens = [torch.randn(5, config.n_tokens, w, dtype=dtype) for w in config.widths]
    return encoder, tokens


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n_tokens", [16, 17, 64, 257])
def test_values_and_gradients_agree_with_the_formulas(dtype, tolerance, n_tokens):
    encoder, tokens = make(dtype, replace(CONFIG, n_tokens=n_tokens))
    encoder.eval()
    voxels = torch.tensor([3, 0, 29, 3, 11])
    ours, theirs = encoder(tokens, "A", voxels), literal(encoder, tokens, "A", voxels)
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    target = torch.randn_like(ours)
    parameters = [p for n, p in encoder.named_parameters() if n != "embeddings.B"]
    for a, b in zip(torch.autograd.grad((ours * target).sum(), parameters),
                    torch.autograd.grad((theirs * target).sum(), parameters), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max().clamp(min=1)))


def test_the_same_dropout_masks_give_the_same_responses_in_training():
    encoder, tokens = make(torch.float64)
    voxels = torch.arange(30)
    masks = []
    for level in encoder.levels:  # record what dropout keeps, by sending ones through it
        keep = (torch.rand(5, 30, CONFIG.channels, dtype=torch.float64) > CONFIG.dropout).double()
        masks.append(keep)
        level.dropout = _Fixed(keep / (1 - CONFIG.dropout))
    torch.testing.assert_close(encoder(tokens, "A", voxels), literal(encoder, tokens, "A", voxels, masks))


class _Fixed(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


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
    assert encoder.embeddings["A"].std().item() == pytest.approx(0.1 / (2 * math.sqrt(256)), rel=0.01)


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


def test_a_saved_encoder_predicts_the_same(tmp_path):
    encoder, tokens = make(torch.float32)
    checkpoint.save(encoder, tmp_path / "run", note="test")
    torch.testing.assert_close(checkpoint.load(tmp_path / "run")(tokens, "B"), encoder.eval()(tokens, "B"), rtol=0, atol=0)


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.CONFIG])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_damaged_encoder_is_refused(tmp_path, file, damage):
    checkpoint.save(make(torch.float32)[0], tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(UbrainError, match="does not hold an encoder"):
        checkpoint.load(tmp_path)
