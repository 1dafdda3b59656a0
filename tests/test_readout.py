"""The linear readout of new voxels: its features, its ridge, and how its strength is found."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ubrain.config import EncoderConfig
from ubrain.model import UniversalEncoder
from ubrain.readout import (
    STRENGTHS,
    Components,
    LinearReadout,
    candidates,
    features,
    is_clear,
    no_readout,
)

SIZES = EncoderConfig(widths=(6, 8), n_tokens=17, embedding_size=8, channels=5)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n_tokens", "n_squares"), [(16, 21), (17, 22), (9, 5), (1, 1), (19, 1)])
def test_features_are_means_over_squares(n_tokens, n_squares):
    x = random(3, n_tokens, 2)
    found = torch.cat(features([x]), 1)
    assert found.shape == (3, n_squares, 2)
    if n_tokens == 17:
        grid = x[:, 1:].view(3, 4, 4, 2)
        torch.testing.assert_close(found[:, 0], x[:, 0])  # class token
        torch.testing.assert_close(found[:, 1], x[:, 1:].mean(1))
        torch.testing.assert_close(found[:, 3], grid[:, :2, 2:].mean((1, 2)))  # upper right quarter
        torch.testing.assert_close(found[:, 6:].view(3, 4, 4, 2), grid)


def test_the_ridge_is_ridge_regression_on_scaled_features():
    parts, y = features([random(40, 17, 5), random(40, 17, 5, seed=1)]), random(40, 3, seed=2)
    images = torch.arange(0, 40, 2)
    components = Components(parts)
    assert components.values.square().sum(1).mean().item() == pytest.approx(1)
    weights, offset = components.ridge(y[images], images)
    for a, w, o in zip(STRENGTHS, weights, offset, strict=True):
        known = Ridge(a).fit(components.values[images].double(), y[images].double())
        np.testing.assert_allclose(
            components.values @ w + o, known.predict(components.values.double()), atol=2e-3
        )


def test_a_readout_reads_new_images_as_it_read_the_old():
    levels = [random(40, 17, 5), random(40, 17, 5, seed=1)]
    components = Components(features(levels))
    y, f, n = random(40, 3), random(40, 3, seed=3), len(STRENGTHS)
    shares = torch.zeros(2 * n + 1, 3)
    shares[4, 0] = shares[n + 5, 1] = shares[-1, 2] = (
        1  # embedding and ridge, ridge, embedding alone
    )
    blocks = [
        components.fit(y[:, some], 0.5 * f[:, some], shares[:, some])
        for some in (slice(0, 2), slice(2, 3))
    ]
    whole = components.readout(blocks, 0.5)(f, levels)
    for v, i, base in ((0, 4, 0.5 * f[:, 0]), (1, 5, torch.zeros(40))):
        weights, offset = components.ridge((y[:, v] - base)[:, None], torch.arange(40))
        torch.testing.assert_close(
            whole[:, v],
            base + (components.values @ weights[i] + offset[i])[:, 0],
            rtol=1e-3,
            atol=1e-3,
        )
    torch.testing.assert_close(whole[:, 2], 0.5 * f[:, 2])


def misses_of(known, linear, wrong=0.0, n=200, n_voxels=40):
    """What candidates leave over, if y is so much of f and of a linear signal, and f has a part
    that y has not.
    """
    components = Components(features([random(n, 16, 5)]))
    signal = components.values @ random(components.values.shape[1], n_voxels, seed=1)
    f = random(n, n_voxels, seed=2)
    y = known * f + linear * signal / signal.std(0) + 0.5 * random(n, n_voxels, seed=3)
    return components.misses(
        y, f + wrong * random(n, n_voxels, seed=4), torch.arange(120), torch.arange(120, n)
    )


def shares_of(**kinds):
    """Mean shares of embedding and ridge, ridge, embedding."""
    misses = misses_of(**kinds)
    shares = candidates(misses.square().sum(1), misses.shape[1]).mean(1)
    return [part.sum().item() for part in shares.split([len(STRENGTHS), len(STRENGTHS), 1])]


def test_each_kind_of_readout_is_found_where_it_is_right():
    assert np.argmax(shares_of(known=1, linear=1)) == 0
    assert np.argmax(shares_of(known=0, linear=1, wrong=1)) == 1
    assert shares_of(known=1, linear=0)[2] > 0.8


def test_a_readout_is_taken_only_where_it_is_clear():
    assert is_clear(misses_of(known=1, linear=1))
    assert is_clear(misses_of(known=1, linear=0.5))
    assert not is_clear(misses_of(known=1, linear=0))
    assert not is_clear(misses_of(known=1, linear=0.05))
    one_voxel = misses_of(known=1, linear=1)[:, :, :1]
    assert is_clear(one_voxel)
    assert not is_clear(one_voxel[:, :4])  # the same gain on four images may be chance
    shares = no_readout(3, torch.device("cpu"))
    assert shares.shape == (len(one_voxel), 3)
    assert shares.sum() == shares[-1].sum() == 3


def test_a_candidate_that_many_voxels_want_is_likelier_for_all():
    clear = torch.tensor([[1.0], [2.0]]).expand(2, 9)
    unclear = torch.tensor([[1.0], [1.0]])
    assert candidates(torch.cat([clear, unclear], 1), 50)[0, -1] > 0.8
    assert candidates(torch.cat([clear.flip(0), unclear], 1), 50)[0, -1] < 0.2


def test_a_readout_is_added_to_what_the_embeddings_say():
    torch.manual_seed(0)
    encoder = UniversalEncoder(SIZES, {"S": 6}).eval()
    tokens = [random(7, 17, width) for width in SIZES.widths]
    n_features = 2 * 22 * 5
    readout = LinearReadout(
        random(n_features, 3), random(3), random(3, 6), random(6), random(6, seed=1)
    )
    with torch.no_grad():
        alone, projected = encoder(tokens, "S"), encoder.project(tokens)
        phi = torch.cat([part.flatten(1) for part in features(projected)], 1)
        more = (phi @ readout.basis - readout.shift) @ readout.weights + readout.offset
        whole = readout(alone, projected)
        torch.testing.assert_close(whole, readout.scale * alone + more)
        some = torch.tensor([4, 1])
        torch.testing.assert_close(readout(alone[:, some], projected, some), whole[:, some])
