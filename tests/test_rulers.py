"""Other people's scores, against straightforward versions of them, value by value."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import ShuffleSplit

from ubrain import scores
from ubrain.analysis import rulers
from ubrain.data.importers.rdm import patterns_of


def test_the_split_of_515_images() -> None:
    """Positions that were computed once with the packaged splits' own recipe."""
    train, test = rulers.brain_score_split(515)
    assert (len(train), len(test)) == (412, 103)
    assert test[:8].tolist() == [1, 13, 20, 21, 34, 43, 48, 49]
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(515))
    shuffled = np.random.RandomState(42).permutation(515)  # the surface's packaging calls this
    np.testing.assert_array_equal(np.sort(shuffled[:412]), train)
    train, test = rulers.brain_score_split(1000)
    assert (len(train), len(test)) == (800, 200)


def test_single_repetitions_of_three() -> None:
    splits = list(rulers.repetition_splits(3))
    assert [one.tolist() for one, _ in splits] == [[i] for i in (1, 0, 1, 1, 0, 1, 1, 2, 2, 2)]
    assert all(sorted([*one, *other]) == [0, 1, 2] for one, other in splits)
    assert {(len(a), len(b)) for a, b in rulers.repetition_splits(12)} == {(6, 6)}


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features and responses of 60 images that depend on them; positions of train and test."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (60, 200)).astype(np.float32)
    y = x @ rng.normal(size=(200, 7)) + rng.normal(0, 30, (60, 7)) + 5
    return x, y, *rulers.brain_score_split(60)


@pytest.mark.parametrize("alpha", [1.0, 300.0])
def test_ridge_is_scikit_learns(data: tuple, alpha: float) -> None:
    x, y, train, test = data
    kernel = rulers.centred_kernel(x, train)
    model = Ridge(alpha=alpha).fit(x[train].astype(float), y[train])
    found = rulers.ridge(kernel, train, test, y[train], alpha)
    np.testing.assert_allclose(found, model.predict(x[test].astype(float)), rtol=1e-8)


def test_wide_features_are_taken_in_parts(data: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, train, _ = data
    centred = x.astype(float) - x[train].astype(float).mean(0)
    wide = np.repeat(x, 9000, axis=1)[:, : 1 << 20]  # more than one part
    found = rulers.centred_kernel(wide, train)
    counts = np.bincount(np.repeat(np.arange(200), 9000)[: 1 << 20], minlength=200)
    np.testing.assert_allclose(found, (centred * counts) @ centred.T, rtol=1e-8, atol=1e-3)


@pytest.mark.parametrize("noise", [0.1, 30, 1000])
def test_the_penalty_is_scikit_learns_choice(data: tuple, noise: float) -> None:
    """One of all voxels, by generalised cross-validation; also at the ends of the list."""
    x, y, train, _ = data
    y = y + np.random.default_rng(3).normal(0, noise, y.shape)
    alphas = [0.01, 0.5, 1, 10, 100, 300, 1e3, 3e3, 1e4, 1e5]
    model = RidgeCV(alphas=alphas).fit(x[train].astype(float), y[train])
    kernel = rulers.centred_kernel(x, train)
    eigen = np.linalg.eigh(kernel[np.ix_(train, train)])
    assert rulers.choose_alpha(*eigen, y[train], alphas) == model.alpha_


@pytest.mark.parametrize("n", [3, 12])
def test_consistency_is_halves_and_spearman_brown(n: int) -> None:
    rng = np.random.default_rng(1)
    reps = rng.normal(size=(25, 4)) + rng.normal(size=(n, 25, 4))
    expected = []
    for one, other in ShuffleSplit(10, train_size=0.5, random_state=1).split(range(n)):
        pairs = zip(reps[one].mean(0).T, reps[other].mean(0).T, strict=True)
        r = np.array([pearsonr(a, b).statistic for a, b in pairs])
        expected.append(2 * r / (1 + r))
    found = rulers.consistency(reps)
    np.testing.assert_allclose(found, expected)
    assert rulers.ceiling(found) == pytest.approx(np.mean(np.median(expected, axis=1)))


def test_algonauts_2023() -> None:
    r = np.array([-0.5, 0.0, 0.3, 0.6, 0.9, 0.2, -0.2, np.nan, 0.5])
    ceilings = np.array([0.5, 0.5, 0.3, 0.4, 0.5, 0.0, 0.0, 0.5, np.nan])
    found = rulers.algonauts_2023(r, ceilings)
    np.testing.assert_allclose(found[:-1], [0, 0, 30, 90, 100, 100, 0, 0])
    assert np.isnan(found[-1])
    plain = ceilings > 0.01
    expected = 100 * scores.noise_normalised(r[plain], ceilings[plain])
    np.testing.assert_allclose(found[plain], np.nan_to_num(expected))


def test_rdms_and_their_similarity() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 12, 30))
    b += a
    np.testing.assert_allclose(rulers.rdm(a), 1 - np.corrcoef(a), atol=1e-12)
    upper = np.triu_indices(12, 1)
    rho = spearmanr((1 - np.corrcoef(a))[upper], (1 - np.corrcoef(b))[upper]).statistic
    assert rulers.rdm_similarity(rulers.rdm(a), rulers.rdm(b)) == pytest.approx(rho**2)


def test_leave_one_image_out_is_refitting(data: tuple) -> None:
    x, y, *_ = data
    found = rulers.leave_one_image_out(x, y, 50.0)
    for i in (0, 7, 59):
        rest = np.arange(60) != i
        model = Ridge(alpha=50.0).fit(x[rest].astype(float), y[rest])
        expected = model.predict(x[[i]].astype(float))[0] - y[rest].mean(0)
        np.testing.assert_allclose(found[i], expected, rtol=1e-7, atol=1e-9)


def test_features_that_tell_nothing_have_no_score() -> None:
    """While an RDM of predictions that hold the mean of the others repeats the measured one."""
    rng = np.random.default_rng(5)
    found, trap = [], []
    upper = np.triu_indices(40, 1)
    for _ in range(8):
        y, _ = patterns_of(1 - np.corrcoef(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 90))))
        predicted = rulers.leave_one_image_out(rng.normal(size=(40, 50)), y, 1e4)
        found.append(rulers.similarity_to_others(predicted, y))
        others = (y.sum(0) - y) / 39
        both = rulers.rdm(predicted + others - y.mean(0)), rulers.rdm(y)
        trap.append(spearmanr(*(d[upper] for d in both)).statistic)
    assert abs(np.mean(found)) < 0.05
    assert np.mean(trap) > 0.5
    assert rulers.similarity_to_others(y, y) == pytest.approx(1)


def test_the_image_left_out_decides_nothing(data: tuple) -> None:
    """Another response to it gives the same prediction; and a decomposition of the RDM of the
    other images alone gives a prediction at the same place among them.
    """
    x, y, *_ = data
    x, patterns = x[:25], y[:25] @ np.random.default_rng(4).normal(size=(7, 80))
    rdm = 1 - np.corrcoef(patterns)
    whole, _ = patterns_of(rdm)
    predicted = rulers.leave_one_image_out(x, whole, 50.0)
    changed = whole.copy()
    changed[3] = 99
    np.testing.assert_allclose(rulers.leave_one_image_out(x, changed, 50.0)[3], predicted[3])

    rest = np.delete(np.arange(25), 3)
    alone, _ = patterns_of(rdm[np.ix_(rest, rest)])
    kernel = rulers.centred_kernel(x[[*rest, 3]], np.arange(24))
    mine = rulers.ridge(kernel, np.arange(24), np.array([24]), alone, 50.0)[0]
    mine -= alone.mean(0)
    here = predicted[3] @ whole[rest].T / whole.shape[1]  # patterns are √k long
    there = mine @ alone.T / alone.shape[1]
    np.testing.assert_allclose(here, there, atol=1e-8)
