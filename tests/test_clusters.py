"""Clusters of embeddings: found where they are, stable, named only with evidence."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact
from sklearn.metrics import adjusted_rand_score

from ubrain.analysis import clusters
from ubrain.errors import UbrainError


@pytest.fixture(scope="module")
def blobs():
    """Four directions in 12 dimensions, 90, 60, 40 and 30 voxels of any length around them."""
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2, 3], [90, 60, 40, 30])
    directions = np.linalg.qr(rng.normal(size=(12, 4)))[0].T
    e = (directions[groups] + 0.08 * rng.normal(size=(len(groups), 12))) * rng.uniform(
        0.1, 10, (len(groups), 1)
    )
    shuffled = rng.permutation(len(groups))
    return e[shuffled], groups[shuffled]


@pytest.mark.parametrize("method", [clusters.kmeans, clusters.mixture])
def test_groups_are_found_whatever_the_lengths_and_the_largest_comes_first(blobs, method):
    e, groups = blobs
    found = method(e, 4, seed=1)
    np.testing.assert_array_equal(found.labels, groups)
    np.testing.assert_array_equal(found.sizes, [90, 60, 40, 30])
    assert found.names == ("unnamed",) * 4


def test_hdbscan_finds_the_number_and_leaves_outliers(blobs):
    e, groups = blobs
    stray = np.random.default_rng(1).normal(size=(15, 12))
    found = clusters.hdbscan(np.concatenate([e, stray]), least=15)
    assert found.n_clusters == 4
    inside = found.labels[: len(e)] >= 0
    assert inside.mean() > 0.9
    assert adjusted_rand_score(groups[inside], found.labels[: len(e)][inside]) == 1
    assert (found.labels[len(e) :] == clusters.OUTLIER).mean() > 0.5


def test_hdbscan_without_dense_groups_finds_none():
    found = clusters.hdbscan(np.random.default_rng(0).normal(size=(60, 6)), least=25)
    assert (found.n_clusters, set(found.labels), found.members.shape) == (
        0,
        {clusters.OUTLIER},
        (0, 60),
    )


def test_assignment_gives_the_labels_of_k_means_back_and_takes_new_voxels(blobs):
    e, groups = blobs
    found = clusters.kmeans(e[:150], 4)
    np.testing.assert_array_equal(clusters.assign(found, e[:150]), found.labels)
    assert adjusted_rand_score(clusters.assign(found, 7 * e[150:]), groups[150:]) == 1


def test_large_data_go_through_mini_batches_and_samples(blobs, monkeypatch, caplog):
    e, groups = blobs
    monkeypatch.setattr(clusters, "LARGE", 100)
    with caplog.at_level("INFO", logger="ubrain"):
        assert adjusted_rand_score(clusters.kmeans(e, 4).labels, groups) > 0.95
    assert "k-means of 220 voxels by mini-batches" in caplog.text
    monkeypatch.setattr(clusters, "_sample", lambda n, method, seed, most=0: np.arange(0, n, 2))
    found = clusters.hdbscan(e, least=8)
    known = found.labels >= 0
    assert (
        known[1::2].mean() > 0.7
    )  # voxels that HDBSCAN has not seen; its own members are the inner ones
    assert adjusted_rand_score(found.labels[known], groups[known]) == 1
    assert adjusted_rand_score(clusters.mixture(e, 4).labels, groups) == 1
    places = clusters.map_2d(e, seed=0)
    assert places.shape == (220, 2)
    assert np.isfinite(places).all()


def test_the_same_seed_gives_the_same_clusters_and_map(blobs):
    e, _ = blobs
    np.testing.assert_array_equal(
        clusters.kmeans(e, 7, 1, 3).labels, clusters.kmeans(e, 7, 1, 3).labels
    )
    np.testing.assert_array_equal(clusters.map_2d(e, seed=2), clusters.map_2d(e, seed=2))


def test_the_map_keeps_groups_together(blobs):
    e, groups = blobs
    places = clusters.map_2d(e)
    centres = np.stack([places[groups == g].mean(0) for g in range(4)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(1)
    assert (nearest == groups).mean() > 0.98


def test_the_true_number_is_chosen(blobs):
    table = clusters.count_table(blobs[0], (2, 3, 4, 5, 6, 500), runs=3)
    assert list(table["n_clusters"]) == [2, 3, 4, 5, 6]
    assert clusters.best_count(table) == 4
    assert table.set_index("n_clusters").loc[4, "stability"] == 1
    assert (table["low"] <= table["stability"]).all()
    assert (table["stability"] <= table["high"]).all()


def test_an_unstable_number_is_not_chosen():
    table = pd.DataFrame(
        {"n_clusters": [2, 4, 6], "stability": [0.5, 0.9, 0.82], "silhouette": [0.9, 0.2, 0.3]}
    )
    assert clusters.best_count(table) == 6
    assert clusters.best_count(table, tolerance=0.95) == 4


def test_a_held_out_subject_shows_whether_it_shares_the_clusters(blobs):
    e, _ = blobs
    strange = np.random.default_rng(5).normal(size=(80, 12))
    by_subject = {"A": e[:110], "B": e[110:], "C": strange}
    full = clusters.kmeans(np.concatenate(list(by_subject.values())), 4)
    found = clusters.without_each_subject(by_subject, full)
    assert found["A"] > 0.95
    assert found["B"] > 0.95
    assert found["C"] < 0.9
    assert clusters.without_each_subject({"A": e}, clusters.kmeans(e, 4)) == {}


def test_agreement_is_that_of_the_known_groups():
    found = clusters.agreement(
        [0, 0, 1, 2], ["a", "a", "b", "b"]
    )  # "b" is split: pure, not complete
    assert found["homogeneity"] == pytest.approx(1)
    assert found["completeness"] < 1
    assert found["ARI"] == pytest.approx(adjusted_rand_score([0, 0, 1, 1], [0, 0, 1, 2]))


def test_profiles_count_every_voxel_alike():
    rng = np.random.default_rng(0)
    p = rng.normal(size=(6, 3)) * [1, 100, 1] + 5
    z = (p - p.mean(0)) / p.std(0)
    np.testing.assert_allclose(clusters.profile(p, [0, 0, 1], 2), [z[:, 0] + z[:, 1], z[:, 2]])
    np.testing.assert_array_equal(clusters.profile(np.full((6, 1), 3.0), [0], 1), np.zeros((1, 6)))


def test_enrichment_is_fishers_exact_test():
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.random((40, 3)) < [0.2, 0.5, 0.5], columns=["face", "word", "food"])
    members = np.zeros((2, 40), dtype=bool)
    members[0, np.flatnonzero(features["face"])[:5]] = True
    members[1, :10] = True
    table = clusters.enrichment(members, features).set_index(["cluster", "feature"])
    for (c, feature), row in table.iterrows():
        has, inside = features[feature].to_numpy(), members[c]
        counts = [
            [(has & inside).sum(), (~has & inside).sum()],
            [(has & ~inside).sum(), (~has & ~inside).sum()],
        ]
        assert row["p"] == pytest.approx(fisher_exact(counts, alternative="greater").pvalue)
        assert row["share"] == has[inside].mean()
        assert row["fold"] == pytest.approx(has[inside].mean() / has.mean())
        assert row["q"] >= row["p"]
    assert table["p"].idxmin() == (0, "face")


def test_names_need_evidence():
    rows = [
        (0, "face", 0.9, 3.0, 1e-6),
        (0, "body", 0.6, 1.5, 1e-3),
        (0, "word", 0.5, 1.4, 1e-2),
        (1, "face", 0.3, 1.5, 1e-4),
        (2, "word", 0.9, 1.0, 0.4),
    ]
    table = pd.DataFrame(rows, columns=["cluster", "feature", "share", "fold", "p"]).assign(
        q=lambda t: t["p"]
    )
    assert clusters.names(table, 4, least_share=0.5) == [
        "face + body",
        "unnamed",
        "unnamed",
        "unnamed",
    ]
    assert (
        clusters.names(
            clusters.enrichment(np.ones((2, 5), bool), pd.DataFrame(index=range(5))), 2, 0.5
        )
        == ["unnamed"] * 2
    )


def test_a_second_word_must_hold_among_images_with_the_first():
    """Food is frequent on top images only because places are."""
    place = np.arange(400) < 200
    food = (np.arange(400) % 5 == 0) ^ place
    sign = np.arange(400) % 3 == 0
    shown = pd.DataFrame({"place": place, "food": food, "sign": sign})
    top = np.stack([place & (np.arange(400) % 4 == 1), place & sign])
    given = {f: clusters.enrichment(top[:, shown[f]], shown[shown[f]]) for f in shown}
    table = clusters.enrichment(top, shown)
    assert clusters.names(table, 2, 0.5)[0] == "place + food"
    assert clusters.names(table, 2, 0.5, given=given) == ["place", "sign + place"]


def test_names_follow_the_number_of_clusters(blobs):
    found = clusters.kmeans(blobs[0], 2).named(["a", "b"])
    assert found.titles == ["1 a", "2 b"]
    with pytest.raises(UbrainError, match="expected 2, one for each cluster, got 3"):
        found.named(["a", "b", "c"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: clusters.kmeans(e[0], 2), r"expected an array \(n_voxels, E\), got shape"),
        (
            lambda e: clusters.kmeans(np.where(np.arange(len(e))[:, None] == 3, 0, e), 2),
            "row 3 has length 0",
        ),
        (
            lambda e: clusters.kmeans(np.where(np.arange(len(e))[:, None] == 4, np.nan, e), 2),
            "row 4 has length nan",
        ),
        (lambda e: clusters.kmeans(e, 1000), "between 1 and 220 clusters"),
        (
            lambda e: clusters.assign(clusters.kmeans(e, 2), e[:, :5]),
            "embeddings of the encoder that was clustered",
        ),
        (
            lambda e: clusters.count_table(e, (1, 500)),
            "none lies between 2 and the number of voxels",
        ),
    ],
)
def test_what_cannot_be_clustered_is_refused(blobs, call, message):
    with pytest.raises(UbrainError, match=message):
        call(blobs[0])
