"""Ridge against sklearn and the factorised readout against its formula, on small crowds whose
truth is known.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from ubrain import scores
from ubrain.analysis import baselines
from ubrain.config import BaselineConfig
from ubrain.errors import UbrainError

ONLY_ALL = BaselineConfig(folds=4, pca=(), random_projection=(), band_draws=0)
QUICK = BaselineConfig(
    factorised_epochs=20, factorised_channels=8, factorised_penalties=(1e-4, 1e-2)
)


class FakeFeatures:
    """What the baselines use of `ubrain.backbone.Features`."""

    def __init__(self, tokens, widths):
        self.tokens, self.widths, self.n_tokens = tokens.astype(np.float16), widths, tokens.shape[1]

    def read(self, rows):
        return self.tokens[rows]

    def levels(self, tokens):
        return list(tokens.split(list(self.widths), dim=2))


class FakeSubject:
    """What the baselines use of `ubrain.crowd.Subject`; responses to test images are not
    given out.
    """

    name = "S1"

    def __init__(self, y, splits):
        self.y, self.splits, self.n_voxels = y.astype(np.float32), splits, y.shape[1]

    def image_rows(self, split="train"):
        return self.splits[split]

    def responses_to(self, rows):
        assert not np.isin(rows, self.splits["test"]).any(), "a baseline asked for test responses"
        return self.y[rows]

    def responses(self, split="train"):
        return self.responses_to(self.splits[split])


def splits_of(n_train, n_val, n_test, seed=0):
    order = np.random.default_rng(seed).permutation(n_train + n_val + n_test)
    train, val, test = map(np.sort, np.split(order, [n_train, n_train + n_val]))
    return {"train": train, "val": val, "test": test}


def linear_crowd(
    widths=(5, 3), n_tokens=4, n=(90, 30, 60), v=6, noise=0.3, only_level=None, seed=0
):
    """Responses that are linear in the features; features of one level that differ in scale."""
    rng = np.random.default_rng(seed)
    splits = splits_of(*n)
    scale = rng.uniform(0.2, 5, sum(widths))
    tokens = (
        (scale * rng.standard_normal((sum(n), n_tokens, sum(widths))) + 2)
        .astype(np.float16)
        .astype(np.float64)
    )
    edges = np.cumsum([0, *widths])
    used = (
        slice(0, edges[-1])
        if only_level is None
        else slice(edges[only_level], edges[only_level + 1])
    )
    x = (tokens / scale)[:, :, used].reshape(sum(n), -1)
    x = x - x.mean(0)
    signal = x @ rng.standard_normal((x.shape[1], v)) / np.sqrt(x.shape[1])
    y = signal + noise * rng.standard_normal(signal.shape) + 0.7
    return FakeSubject(y, splits), FakeFeatures(tokens, widths), signal


def explicit_design(features, rows, test):
    """Tokens and their mean, centred, channels divided by their std over `rows`, each scaled to a
    mean squared length of 1.
    """
    out, start = [], 0
    for width in features.widths:
        tokens = features.tokens[:, :, start : start + width].astype(np.float64)
        for x in (tokens, tokens.mean(1, keepdims=True)):
            std = x[rows].std((0, 1))
            z = (
                np.where(std > 1e-6, (x - x[rows].mean(0)) / np.where(std > 1e-6, std, 1), 0)
            ).reshape(len(x), -1)
            out.append(z / np.sqrt((z[rows] ** 2).sum(1).mean()))
        start += width
    design = np.concatenate(out, 1)
    return design[rows], design[test], out


def train_rows(subject):
    return np.sort(np.concatenate([subject.image_rows("train"), subject.image_rows("val")]))


# --- kernels


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_level_kernels_are_those_of_standardised_features(batch):
    subject, features, _ = linear_crowd()
    features.tokens[:, :, 2] = 0.1  # a channel that never changes
    rows, test = train_rows(subject), subject.image_rows("test")
    kernels, kernels_test = baselines.level_kernels(features, rows, test, batch)
    _, _, levels = explicit_design(features, rows, test)
    assert len(kernels) == len(kernels_test) == 4
    for k, k_test, z in zip(kernels, kernels_test, levels, strict=True):
        assert k_test.shape == (len(test), len(rows))
        np.testing.assert_allclose(k, z[rows] @ z[rows].T, atol=2e-5)
        np.testing.assert_allclose(k_test, z[test] @ z[rows].T, atol=2e-5)
        assert np.trace(k) / len(k) == pytest.approx(1)


def test_a_feature_constant_in_training_does_not_speak_in_the_test():
    subject, features, _ = linear_crowd()
    rows, test = train_rows(subject), subject.image_rows("test")
    features.tokens[:, :, 2] = 0.1
    _, expected = baselines.level_kernels(features, rows, test)
    features.tokens[test, :, 2] = 1e4
    _, found = baselines.level_kernels(features, rows, test)
    np.testing.assert_array_equal(found[0], expected[0])


# --- ridge


@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
def test_ridge_at_one_penalty_equals_sklearn(alpha, monkeypatch):
    monkeypatch.setattr(baselines, "ALPHAS", np.array([alpha]))
    subject, features, _ = linear_crowd()
    rows, test = train_rows(subject), subject.image_rows("test")
    found = baselines.ridge(subject, features, ONLY_ALL)
    x, x_test, _ = explicit_design(features, rows, test)
    y = subject.y[rows].astype(np.float64)
    expected = Ridge(alpha).fit(x, y).predict(x_test)
    np.testing.assert_allclose(found.predicted, expected, atol=2e-4)
    kernel = KernelRidge(alpha=alpha).fit(x, y - y.mean(0)).predict(x_test) + y.mean(0)
    np.testing.assert_allclose(found.predicted, kernel, atol=2e-4)
    assert found.predicted.dtype == np.float32
    assert found.chosen == "all features"


def brute_force_ridge(subject, features, folds, seed):
    """Per-voxel penalty by cross-validation on the explicit features: predictions, best R² of each
    voxel.
    """
    rows, test = train_rows(subject), subject.image_rows("test")
    x, x_test, _ = explicit_design(features, rows, test)
    y = subject.y[rows].astype(np.float64)
    y = y - y.mean(0)
    score = np.zeros((len(baselines.ALPHAS), y.shape[1]))
    for fit, held in KFold(folds, shuffle=True, random_state=seed).split(x):
        for i, alpha in enumerate(baselines.ALPHAS):
            held_out = Ridge(alpha, fit_intercept=False).fit(x[fit], y[fit]).predict(x[held])
            score[i] += r2_score(y[held], held_out, multioutput="raw_values") / folds
    best = baselines.ALPHAS[score.argmax(0)]
    predicted = np.column_stack(
        [Ridge(a, fit_intercept=False).fit(x, y[:, i]).predict(x_test) for i, a in enumerate(best)]
    )
    return predicted + subject.y[rows].mean(0), score.max(0)


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_every_voxel_gets_the_penalty_of_a_brute_force_search(noise):
    subject, features, _ = linear_crowd(noise=noise)
    subject.y[:, 0] += 5 * np.random.default_rng(1).standard_normal(
        len(subject.y)
    )  # needs another penalty than the others
    found = baselines.ridge(subject, features, ONLY_ALL, seed=3)
    expected, _ = brute_force_ridge(subject, features, 4, 3)
    assert (scores.correlation(found.predicted, expected) > 0.999).all()


def test_candidates_are_compared_by_cross_validated_r2():
    subject, features, _ = linear_crowd(noise=1.0)
    subject.y *= np.array([1, 2, 5, 0.1, 1, 1], np.float32)
    found = baselines.ridge(subject, features, ONLY_ALL, seed=3)
    assert found.validation == pytest.approx(
        brute_force_ridge(subject, features, 4, 3)[1].mean(), abs=0.01
    )


def test_ridge_recovers_a_linear_truth():
    subject, features, signal = linear_crowd(n=(160, 40, 60))
    config = BaselineConfig(folds=4, pca=(20,), random_projection=(50,), band_draws=5)
    found = baselines.ridge(subject, features, config)
    assert found.predicted.shape == (60, 6)
    assert scores.correlation(found.predicted, signal[subject.image_rows("test")]).min() > 0.95


@pytest.mark.parametrize("level", [0, 1])
def test_banded_is_chosen_when_one_level_carries_the_signal(level):
    subject, features, signal = linear_crowd(
        widths=(8, 8), n=(70, 20, 60), noise=0.5, only_level=level
    )
    config = replace(ONLY_ALL, band_draws=20)
    test = subject.image_rows("test")
    banded, plain = (
        baselines.ridge(subject, features, config),
        baselines.ridge(subject, features, ONLY_ALL),
    )
    assert banded.chosen == "banded"
    assert banded.validation > plain.validation
    r = [np.median(scores.correlation(f.predicted, signal[test])) for f in (banded, plain)]
    assert r[0] > r[1] + 0.02


def test_principal_components_are_chosen_when_they_carry_the_signal():
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((180, 3))
    tokens = (latent @ rng.standard_normal((3, 400)) + 2 * rng.standard_normal((180, 400))).reshape(
        180, 4, 100
    )
    subject = FakeSubject(latent @ rng.standard_normal((3, 6)), splits_of(60, 20, 100))
    found = baselines.ridge(subject, FakeFeatures(tokens, (60, 40)), replace(ONLY_ALL, pca=(3,)))
    assert found.chosen == "3 principal components"


def candidates(subject, features, config):
    kernels, kernels_test = baselines.level_kernels(
        features, train_rows(subject), subject.image_rows("test")
    )
    found = baselines._candidates(kernels, kernels_test, config, 0)
    return {name: (np.sum(k, axis=0), np.sum(k_test, axis=0)) for name, k, k_test in found}


def test_principal_components_equal_those_of_the_features():
    subject, features, _ = linear_crowd()
    found, found_test = candidates(subject, features, replace(ONLY_ALL, pca=(5,)))[
        "5 principal components"
    ]
    x, x_test, _ = explicit_design(features, train_rows(subject), subject.image_rows("test"))
    top = np.linalg.svd(x, full_matrices=False)[2][:5].T
    np.testing.assert_allclose(found, x @ top @ top.T @ x.T, atol=1e-4)
    np.testing.assert_allclose(found_test, x_test @ top @ top.T @ x.T, atol=1e-4)


def test_more_components_than_the_features_span_change_nothing():
    subject, features, _ = linear_crowd(widths=(2, 1), n_tokens=3)  # 9 features
    found = candidates(subject, features, replace(ONLY_ALL, pca=(60,)))
    for i in range(2):
        np.testing.assert_allclose(
            found["60 principal components"][i], found["all features"][i], atol=1e-3
        )


@pytest.mark.parametrize("rank", ["full", "deficient"])
def test_random_projection_keeps_the_geometry(rank):
    widths = (40, 30) if rank == "full" else (2, 1)
    subject, features, _ = linear_crowd(widths=widths, n=(250, 50, 80))
    found = candidates(subject, features, replace(ONLY_ALL, random_projection=(290,)))
    (k, k_test), (p, p_test) = found["all features"], found["random projection to 290"]
    for exact, projected in (
        (k, p),
        (k_test, p_test),
    ):  # <x, y> is off by about |x| |y| / sqrt(290), here 2 · 0.06
        assert np.sqrt(((projected - exact) ** 2).mean()) < 0.25


def test_candidates_larger_than_the_data_are_left_out():
    subject, features, _ = linear_crowd(n=(20, 10, 10))
    assert list(
        candidates(subject, features, BaselineConfig(pca=(5, 30), random_projection=(29, 2000)))
    ) == [
        "all features",
        "5 principal components",
        "random projection to 29",
        "banded",
    ]


@pytest.mark.parametrize("kind", ["ridge", "factorised"])
def test_test_images_do_not_take_part(kind):
    subject, features, _ = linear_crowd()
    config = replace(QUICK, pca=(5,), random_projection=(20,), band_draws=2, factorised_epochs=2)
    fit = getattr(baselines, kind)
    first, again = fit(subject, features, config), fit(subject, features, config)
    np.testing.assert_array_equal(first.predicted, again.predicted)
    half = subject.image_rows("test")[:30]
    features.tokens[half] = 10 * np.random.default_rng(9).standard_normal(
        features.tokens[half].shape
    )
    changed = fit(subject, features, config)
    assert (changed.chosen, changed.validation) == (first.chosen, first.validation)
    np.testing.assert_allclose(changed.predicted[30:], first.predicted[30:], atol=1e-5)
    assert np.abs(changed.predicted[:30] - first.predicted[:30]).max() > 0.1


# --- factorised readout


def test_readout_is_its_formula():
    torch.manual_seed(0)
    model = baselines.FactorisedReadout((5, 3), n_tokens=4, n_voxels=6, channels=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    levels = [torch.randn(7, 4, 5), torch.randn(7, 4, 3)]
    expected = model.bias.expand(7, 6)
    for i, x in enumerate(levels):
        y = torch.nn.functional.layer_norm(
            x, x.shape[2:], model.norms[i].weight, model.norms[i].bias
        )
        y = torch.einsum("bpd,cd->bpc", y, model.inputs[i].weight) + model.inputs[i].bias
        expected = expected + torch.einsum("vp,vc,bpc->bv", model.space[i], model.feature[i], y)
    torch.testing.assert_close(model(levels), expected)
    penalty = (model.feature.square().sum() + (4 * model.space).square().sum() / 4) / 6
    torch.testing.assert_close(model.penalty(), penalty)


def factorised_crowd(n_tokens=6, widths=(8, 6), v=5, n=(300, 60, 80), seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((sum(n), n_tokens, sum(widths)))
    space, feature = (
        np.eye(n_tokens)[rng.integers(n_tokens, size=v)],
        rng.standard_normal((v, sum(widths))),
    )
    signal = np.einsum("vp,vd,bpd->bv", space, feature, tokens)
    signal /= signal.std(0)
    y = signal + 0.3 * rng.standard_normal(signal.shape)
    return FakeSubject(y, splits_of(*n)), FakeFeatures(tokens, widths), signal


def test_readout_recovers_space_and_feature():
    subject, features, signal = factorised_crowd()
    found = baselines.factorised(subject, features, QUICK)
    assert found.predicted.shape == (80, 5)
    assert found.validation > 0.5
    assert np.median(scores.correlation(found.predicted, signal[subject.image_rows("test")])) > 0.6


def test_readout_is_chosen_on_the_val_images():
    subject, features, _ = factorised_crowd()
    harsh, mild, both = (
        baselines.factorised(
            subject, features, replace(QUICK, factorised_epochs=6, factorised_penalties=penalties)
        )
        for penalties in ((10.0,), (1e-4,), (10.0, 1e-4))
    )
    assert mild.validation > harsh.validation
    assert (both.chosen, both.validation) == (mild.chosen, mild.validation)
    np.testing.assert_array_equal(both.predicted, mild.predicted)


def test_readout_needs_val_images():
    subject, features, _ = factorised_crowd(n=(30, 1, 10))
    with pytest.raises(UbrainError, match="'S1' has 1 val images"):
        baselines.factorised(subject, features, QUICK)


def test_readout_keeps_its_best_epoch(monkeypatch):
    subject, features, _ = factorised_crowd(n=(60, 20, 20))
    features.tokens[subject.image_rows("test")] = features.tokens[subject.image_rows("val")]
    seen = []

    def scripted(predicted, measured):
        seen.append(predicted.copy())
        return np.array([0.1, 0.9, 0.3, 0.2][len(seen) - 1])

    monkeypatch.setattr(baselines.scores, "correlation", scripted)
    found = baselines.factorised(
        subject, features, replace(QUICK, factorised_epochs=4, factorised_penalties=(0.01,))
    )
    assert (found.validation, found.chosen) == (0.9, "penalty 0.01, 2 of 4 epochs")
    np.testing.assert_array_equal(found.predicted, seen[1])
    assert np.abs(found.predicted - seen[3]).max() > 1e-3
