"""Receptive fields and levels read off an encoder: places in degrees, averages over images, shares
of the variance.
"""

import numpy as np
import pytest
import torch

from ubrain import kernels
from ubrain.analysis import fields
from ubrain.config import EncoderConfig
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder

SIDE, VIEW = 8, 8.4


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = EncoderConfig(widths=(5, 7, 6), n_tokens=9, embedding_size=4, channels=6)
    found = UniversalEncoder(config, {"S1": 11})
    found.subject("S1").data.normal_()  # as far apart as after a training
    return found.eval()


@pytest.fixture
def tokens():
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(12, 9, width, generator=rng) for width in (5, 7, 6)]


def batches(tokens, size):
    return [[t[i : i + size] for t in tokens] for i in range(0, len(tokens[0]), size)]


def gaussian(x, y, sigma, side=SIDE):
    """A Gaussian on a grid of tokens, in reading order, with y upwards: written anew, point by
    point.
    """
    cell = VIEW / side
    return np.array(
        [
            np.exp(
                -((-VIEW / 2 + (c + 0.5) * cell - x) ** 2 + (VIEW / 2 - (r + 0.5) * cell - y) ** 2)
                / (2 * sigma**2)
            )
            for r in range(side)
            for c in range(side)
        ]
    )


@pytest.mark.parametrize("class_token", [False, True])
def test_the_first_token_of_the_grid_is_on_the_upper_left(class_token):
    weights = np.zeros(SIDE**2 + class_token)
    weights[int(class_token)] = 1
    place = fields.locate(weights, VIEW)
    edge = VIEW / 2 - VIEW / SIDE / 2
    np.testing.assert_allclose([place.x, place.y], [-edge, edge])
    assert place.sigma == pytest.approx(VIEW / SIDE / np.sqrt(4 * np.pi))


def test_centre_and_size_of_a_gaussian_are_found():
    true = [(0.3, -0.8, 0.8), (-1.0, 0.6, 0.9), (0.0, 0.0, 1.0)]
    found = fields.locate(np.stack([gaussian(*t, side=16) for t in true]), VIEW)
    np.testing.assert_allclose(np.transpose([found.x, found.y, found.sigma]), true, atol=0.03)


def test_attention_on_the_class_token_has_no_place():
    weights = np.concatenate([[5.0], gaussian(1.0, 0.5, 0.7)])
    with_class, without = fields.locate(weights, VIEW), fields.locate(weights[1:], VIEW)
    np.testing.assert_allclose(
        [with_class.x, with_class.y, with_class.sigma], [without.x, without.y, without.sigma]
    )


def test_tokens_that_are_no_square_grid_are_refused():
    with pytest.raises(UbrainError, match="7 tokens are not a square grid"):
        fields.on_grid(np.ones(7))


@pytest.mark.parametrize("triples", [1 << 24, 9 * 5 * 2])
def test_fields_are_the_mean_attention_however_images_and_voxels_are_cut(
    encoder, tokens, monkeypatch, triples
):
    monkeypatch.setattr(fields, "NUMBERS", triples)
    reading = fields.read(encoder, "S1", batches(tokens, 5))
    with torch.no_grad():
        expected = encoder.attention(tokens, "S1").mean(1)
    np.testing.assert_allclose(reading.attention, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(reading.attention.sum(2), 1, rtol=1e-5)


def test_shares_are_those_of_the_variance(encoder, tokens):
    reading = fields.read(encoder, "S1", batches(tokens, 5))
    with torch.no_grad():
        terms = kernels.voxel_terms(encoder, encoder.subject("S1"))
        parts = kernels.respond_by_level(encoder, encoder.project(tokens), terms).double().numpy()
        response = encoder(tokens, "S1").double().numpy()
    for share, part in zip(reading.share, parts, strict=True):
        expected = [
            np.cov(part[:, v], response[:, v])[0, 1] / np.var(response[:, v], ddof=1)
            for v in range(11)
        ]
        np.testing.assert_allclose(share, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(reading.share.sum(0), 1, rtol=1e-4)


def test_a_level_that_is_not_read_has_no_share(encoder, tokens):
    encoder.functional.data[:, 6:12] = 0
    reading = fields.read(encoder, "S1", batches(tokens, 12))
    np.testing.assert_allclose(reading.share[1], 0, atol=1e-9)
    np.testing.assert_allclose(reading.norm[1], 0, atol=1e-9)
    assert (reading.norm[[0, 2]] > 0).all()


def test_dropout_is_off_while_reading_and_restored(encoder, tokens):
    expected = fields.read(encoder, "S1", batches(tokens, 12)).share
    encoder.train()
    np.testing.assert_array_equal(fields.read(encoder, "S1", batches(tokens, 12)).share, expected)
    assert encoder.training


def test_one_image_is_too_few(encoder, tokens):
    with pytest.raises(UbrainError, match="two images or more to average over, got 1"):
        fields.read(encoder, "S1", [[t[:1] for t in tokens]])


def test_negative_and_unknown_shares_do_not_weigh():
    share = np.array([[0.25, 1.5, np.nan, -1.0], [0.75, -0.5, np.nan, -1.0]])
    np.testing.assert_allclose(
        fields.level_weights(share), [[0.25, 1, 0.5, 0.5], [0.75, 0, 0.5, 0.5]]
    )
    np.testing.assert_allclose(fields.depth(share), [1.75, 1, 1.5, 1.5])


def test_the_weighted_field_follows_the_levels_in_use(encoder, tokens):
    reading = fields.read(encoder, "S1", batches(tokens, 12))
    only_second = fields.Reading(
        reading.attention, np.array([[0.0], [1.0], [0.0]]) * np.ones(11), reading.norm
    )
    np.testing.assert_allclose(fields.weighted(only_second), reading.attention[1])
