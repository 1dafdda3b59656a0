"""The study of clusters, with embeddings and predictions made from the truth in place of a trained encoder."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from ubrain import clusters
from ubrain.config import SimulationConfig
from ubrain.data import truth
from ubrain.data.simulate import simulate_crowd
from ubrain.data.simulate.brains import EARLY, SEMANTIC
from ubrain.lab import Lab
from ubrain.results import write_results
from ubrain.studies import clustering

GROUPS = {type_: i for i, type_ in enumerate((*EARLY, *SEMANTIC, "place"))}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clustering")
    simulate_crowd(folder / "crowd.h5", SimulationConfig(subjects=2, images=40, test_images=80, voxels=90), seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UBRAIN_OUT", str(folder / "crowd-smoke"))
        patch.setattr("ubrain.lab.LEAST_IMAGES", {"val": 3})
        yield Lab("98_test", str(folder / "crowd.h5"), profile="smoke")


@pytest.fixture(autouse=True)
def no_records(lab):
    lab.records.clear()


@pytest.fixture(scope="module")
def encoder(lab):
    """Only its embeddings are asked for: a direction for each true type, with a little noise."""
    rng = np.random.default_rng(0)

    def subject(name):
        types = truth.voxels(lab.crowd, name)["type"].map(GROUPS)
        return torch.tensor(np.eye(16)[types] + 0.05 * rng.normal(size=(len(types), 16)))

    return SimpleNamespace(subject=subject)


@pytest.fixture
def true_predictions(lab, monkeypatch):
    """The noiseless responses as predictions of the test images, the measured ones of the others."""

    def predict(encoder, source, subject, rows):
        if np.array_equal(rows, lab.crowd[subject].image_rows("test")):
            return truth.noiseless_responses(lab.crowd, subject)
        return lab.crowd[subject].responses_to(rows)

    monkeypatch.setattr(clustering.train, "predict", predict)


@pytest.fixture
def by_type(voxels):
    """Clusters that are the true types."""
    types, labels = np.unique(voxels["type"], return_inverse=True)
    return clusters.Clustering("truth", np.eye(len(types)), labels, tuple(types))


@pytest.fixture
def voxels(lab, encoder):
    return clustering.gather(lab, encoder)[1]


def test_voxels_come_in_the_order_of_their_embeddings(lab, encoder):
    embeddings, voxels = clustering.gather(lab, encoder)
    assert len(clustering.pooled(embeddings)) == len(voxels)
    nearest = clustering.pooled(embeddings).argmax(1)
    np.testing.assert_array_equal(nearest, voxels["type"].map(GROUPS))
    assert list(voxels["subject"].unique()) == ["S1", "S2"]
    assert voxels["vertex"].between(0, 10241).all()


def test_agreement_with_the_truth_is_recorded_for_all_and_for_category_types(lab, voxels, by_type):
    merged = np.where(voxels["type"].isin(EARLY), 99, by_type.labels)
    table = clustering.known_table(lab, merged, voxels, "test").set_index("known")
    assert table.loc["category types", "ARI"] == pytest.approx(1)
    assert table.loc["all types", "ARI"] < 1
    assert table.loc["all types", "completeness"] == pytest.approx(1)
    assert table.loc["category types", "n_voxels"] == (~voxels["type"].isin(EARLY)).sum()
    recorded = {r.name: r.value for r in lab.records if r.condition == "test"}
    assert recorded["ari with category types"] == table.loc["category types", "ARI"]


def test_clusters_are_named_by_what_is_on_the_images_they_prefer(lab, encoder, voxels, by_type, true_predictions):
    rows = clustering.test_rows(lab)
    (responses,) = clustering.profiles(lab, encoder, [by_type.labels], rows)
    named, on_images, in_areas = clustering.evidence(lab, by_type, voxels, responses, rows)
    for true, name in zip(by_type.names, named.names, strict=True):
        if true in ("face", "body", "word", "food"):
            assert name in (true, clusters.UNNAMED)
    assert sum(true == name for true, name in zip(by_type.names, named.names, strict=True)) >= 2
    table = clustering.cluster_table(lab, named, on_images, in_areas, voxels)
    assert table["voxels"].sum() == len(voxels)
    face = by_type.names.index("face")
    assert {"OFA", "FFA", "EBA"} & set(table["areas"].iloc[face].split(" + "))


def test_the_profile_of_a_cluster_is_the_mean_over_voxels_of_all_subjects(lab, encoder, voxels, true_predictions):
    rows = clustering.test_rows(lab)
    labels = np.where(voxels["type"] == "face", 0, clusters.OUTLIER)
    (profile,) = clustering.profiles(lab, encoder, [labels], rows)
    everyone = np.concatenate([truth.noiseless_responses(lab.crowd, s) for s in lab.subjects], axis=1)[:, labels == 0]
    expected = ((everyone - everyone.mean(0)) / everyone.std(0)).mean(1)
    np.testing.assert_allclose(profile[0], expected, atol=1e-4)


def test_without_descriptions_areas_name_clusters(lab, voxels, by_type, monkeypatch):
    monkeypatch.setattr(clustering, "image_features", lambda lab, rows: clustering.pd.DataFrame(index=rows))
    rows = clustering.test_rows(lab)
    named, on_images, _ = clustering.evidence(lab, by_type, voxels, np.zeros((by_type.n_clusters, len(rows))), rows)
    assert len(on_images) == 0
    assert named.names[by_type.names.index("V1")] == "V1"
    assert named.names[by_type.names.index("place")] != clusters.UNNAMED


def test_reliable_voxels_are_those_predicted_above_chance_on_val_images(lab, monkeypatch):
    rng = np.random.default_rng(0)

    def predict(encoder, source, subject, rows):
        measured = lab.crowd[subject].responses_to(rows)
        noise = rng.normal(size=measured.shape)
        return np.where(np.arange(measured.shape[1]) % 2, measured + 2 * noise, noise)

    monkeypatch.setattr(clustering.train, "predict", predict)
    keep = clustering.reliable(lab, None)
    start = lab.crowd["S1"].n_voxels
    rng = np.random.default_rng(0)
    rows = lab.crowd["S1"].image_rows("val")
    predicted, measured = predict(None, None, "S1", rows), lab.crowd["S1"].responses("val")
    p = [pearsonr(a, b, alternative="greater").pvalue for a, b in zip(predicted.T, measured.T, strict=True)]
    np.testing.assert_array_equal(keep[:start], np.array(p) < 0.05)


def test_a_cluster_is_split_only_inside(lab, encoder, voxels, by_type, true_predictions):
    embeddings, _ = clustering.gather(lab, encoder)
    chosen = clustering.largest_category_cluster(by_type, voxels)
    assert by_type.names[chosen] not in EARLY
    parts = clustering.split(lab, embeddings, by_type, chosen)
    np.testing.assert_array_equal(parts.labels >= 0, by_type.labels == chosen)
    rows = clustering.test_rows(lab)
    (responses,) = clustering.profiles(lab, encoder, [parts.labels], rows)
    _, beyond, table = clustering.split_evidence(lab, parts, responses, rows, voxels)
    np.testing.assert_allclose(parts.sizes @ beyond, 0, atol=1e-9)
    fields = [truth.voxels(lab.crowd, s)["x"] for s in lab.subjects]
    assert table["true x"].iloc[0] == pytest.approx(np.concatenate(fields)[parts.labels == 0].mean())


def test_all_tables_are_recorded_once_each(lab, encoder, voxels, tmp_path):
    embeddings, _ = clustering.gather(lab, encoder)
    _, count = clustering.choose_count(lab, embeddings)
    assert count in lab.profile.clusters.counts
    methods = clustering.fit_methods(lab, embeddings, count)
    by_method = clustering.method_table(lab, methods, voxels)
    seeds = clustering.seed_table(lab, embeddings, voxels, count, seeds=2)
    held_out = clustering.held_out_table(lab, embeddings, methods["k-means"])
    clustering.filter_table(lab, embeddings, voxels, np.arange(len(voxels)) % 3 > 0, methods["k-means"])
    assert by_method.loc["k-means", "ARI with k-means"] == 1
    assert list(held_out.index) == lab.subjects
    write_results(tmp_path / "numbers.json", "98_test", lab.records, {})  # refuses a number recorded twice
    text = clustering.verdict(lab, methods["k-means"], seeds, held_out, by_method)
    assert f"{count} clusters, 0 named by evidence" in text
    assert "HDBSCAN" in text


def test_areas_of_a_subject_with_few_voxels_are_drawn_from_everybody(voxels, monkeypatch):
    found = clustering.outlines(voxels)
    assert set(found["S1"]["subject"]) == {"S1", "S2"}
    monkeypatch.setattr(clustering, "DENSE", 10)
    assert set(clustering.outlines(voxels)["S1"]["subject"]) == {"S1"}


def test_composition_sums_to_one_and_shows_outliers(voxels, by_type):
    labels = np.where(np.arange(len(voxels)) % 5 == 0, clusters.OUTLIER, by_type.labels)
    shown = clustering.composition(clusters.Clustering("x", by_type.centres, labels, by_type.names), voxels, "area")
    np.testing.assert_allclose(shown.sum(axis=1), 1)
    assert shown.columns[-1] == "outliers"
    assert shown.columns[0] == by_type.titles[0]
