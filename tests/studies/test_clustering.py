"""The study of clusters, with embeddings and predictions made from the truth in place of a trained
encoder.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import adjusted_rand_score, silhouette_score

from ubrain.analysis import clusters
from ubrain.backbone import Backbone
from ubrain.config import SimulationConfig
from ubrain.data.simulate import simulate_crowd, truth
from ubrain.data.simulate.brains import EARLY, SEMANTIC
from ubrain.model import UniversalEncoder
from ubrain.report.lab import Lab
from ubrain.report.results import write_results
from ubrain.report.studies import clustering

GROUPS = {type_: i for i, type_ in enumerate((*EARLY, *SEMANTIC, "place"))}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clustering")
    simulate_crowd(
        folder / "crowd.h5",
        SimulationConfig(subjects=2, images=40, test_images=80, voxels=90),
        seed=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UBRAIN_OUT", str(folder / "crowd-smoke"))
        patch.setattr("ubrain.report.lab.LEAST_IMAGES", {"val": 3})
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
    """The noiseless responses as predictions of the test images, the measured ones of the
    others.
    """

    def predict(encoder, source, subject, rows):
        if np.array_equal(rows, lab.crowd[subject].image_rows("test")):
            return truth.noiseless_responses(lab.crowd, subject)
        return lab.crowd[subject].responses_to(rows)

    monkeypatch.setattr(clustering.predict, "predict", predict)


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


def test_clusters_are_named_by_what_is_on_the_images_they_prefer(
    lab, encoder, voxels, by_type, true_predictions
):
    rows = clustering.test_rows(lab)
    responses = clustering.mean_responses(lab, encoder, by_type.labels, rows)
    named, in_areas = clustering.evidence(lab, by_type, voxels, responses, rows)
    for true, name in zip(by_type.names, named.names, strict=True):
        if true in ("face", "body", "word", "food"):
            assert name in (true, clusters.UNNAMED)
    assert sum(true == name for true, name in zip(by_type.names, named.names, strict=True)) >= 2
    table = clustering.cluster_table(lab, named, in_areas, voxels)
    assert table["voxels"].sum() == len(voxels)
    face = by_type.names.index("face")
    assert {"OFA", "FFA", "EBA"} & set(table["areas"].iloc[face].split(" + "))


def test_the_profile_of_a_cluster_is_the_mean_over_voxels_of_all_subjects(
    lab, encoder, voxels, true_predictions
):
    rows = clustering.test_rows(lab)
    labels = np.where(voxels["type"] == "face", 0, clusters.OUTLIER)
    (profile,) = clustering.mean_responses(lab, encoder, labels, rows)
    everyone = np.concatenate(
        [truth.noiseless_responses(lab.crowd, s) for s in lab.subjects], axis=1
    )[:, labels == 0]
    expected = ((everyone - everyone.mean(0)) / everyone.std(0)).mean(1)
    np.testing.assert_allclose(profile, expected, atol=1e-4)


def test_without_descriptions_areas_name_clusters(lab, voxels, by_type, monkeypatch):
    monkeypatch.setattr(
        clustering, "image_features", lambda lab, rows: clustering.pd.DataFrame(index=rows)
    )
    rows = clustering.test_rows(lab)
    named, _ = clustering.evidence(
        lab, by_type, voxels, np.zeros((by_type.n_clusters, len(rows))), rows
    )
    assert named.names[by_type.names.index("V1")] == "early: V1"
    assert named.names[by_type.names.index("place")] != clusters.UNNAMED


def test_places_are_one_kind_and_early_clusters_are_named_by_their_areas(lab, voxels, monkeypatch):
    """20 top images: "place" on all of them; "early" if half of the voxels are in V1–V4, whatever
    the images show.
    """
    rows = clustering.test_rows(lab)
    on = np.arange(len(rows)) % 4
    shown = clustering.image_features(lab, rows)
    np.testing.assert_array_equal(shown["place"], shown["indoor"] | shown["outdoor"])
    features = clustering.pd.DataFrame(
        {"indoor": on == 0, "outdoor": on == 1, "place": on < 2, "word": on == 2}, index=rows
    )
    monkeypatch.setattr(clustering, "image_features", lambda lab, rows: features)
    monkeypatch.setattr(clustering, "n_top", lambda lab, rows: 20)
    labels = np.where(
        voxels["area"].isin(["V1", "V2"]), 0, np.where(voxels["type"] == "place", 1, 2)
    )
    found = clusters.Clustering("x", np.eye(3), labels, ("",) * 3)
    profile = np.stack([on == 2, on < 2, on == 1]) + 1e-3 * np.arange(len(rows))
    named, in_areas = clustering.evidence(lab, found, voxels, profile, rows)
    assert named.names == ("early: V1, V2", "place", "outdoor")
    table = clustering.cluster_table(lab, named, in_areas, voxels)
    assert table["early"].iloc[0] == 1
    nowhere = voxels.assign(areas="", area="none")
    assert clustering.evidence(lab, found, nowhere, profile, rows)[0].names == (
        "word",
        "place",
        "outdoor",
    )


@pytest.fixture(scope="module")
def without(lab):
    return clustering.counterfactuals(lab, clustering.test_rows(lab))


def test_counterfactual_scenes_lack_what_they_should(lab, without):
    known = truth.scenes(lab.crowd)
    assert set(without.table["feature"]) == {*clustering.CATEGORIES, "indoor", "outdoor"}
    for (row, feature, instead), scene in zip(
        without.table.itertuples(index=False), without.scenes, strict=True
    ):
        before = known[lab.crowd.image_ids[row]]
        had = [o["category"] for o in before["objects"]]
        has = [thing.category for thing in scene.things]
        if feature == before["place"]:
            assert (scene.place, has) == ("none", had)
        else:
            assert scene.place == before["place"]
            assert has == [instead if c == feature else c for c in had if instead or c != feature]
    assert without.table.groupby("feature").size().max() <= 2 * clustering.SCENES
    assert without.pixels.shape == (len(without.table), 112, 112, 3)


def test_clusters_of_true_types_lose_what_they_are_named_after(lab, voxels, by_type, without):
    falls = clustering.true_falls(lab, by_type, without)
    names = clustering.counterfactual_names(lab, falls, without)
    for true, name in zip(by_type.names, names, strict=True):
        if true not in EARLY:
            assert name == true
    named = clustering.name_clusters(
        by_type,
        voxels,
        names,
        clusters.enrichment(by_type.members, clustering.area_features(voxels)),
    )
    table = clustering.fall_contrasts(lab, named, {"true": falls}, without).set_index("object")
    assert (table["low"] > 0.5).all()
    assert (table["others"] < 0.25 * table["named"]).all()
    shuffled = clustering.fall_contrasts(lab, named, {"true": falls[::-1]}, without)
    assert (shuffled["low"] < 0.5).all()
    means = clustering.mean_falls(falls, without).set_axis(by_type.names)
    assert means.loc["face"].idxmax() == "face"


def test_a_second_word_needs_scenes_with_the_first(lab, without):
    """A cluster that loses response without food, but not where there is a face."""
    table = without.table
    shown = clustering.image_features(lab, table["row"].to_numpy())
    face, food = ((table["feature"] == f).to_numpy() for f in ("face", "food"))
    alone = food & ~shown["face"].to_numpy()
    falls = np.stack([2.0 * face + 1.5 * alone, 2.0 * face + 1.5 * food, 0.4 * face])
    names = clustering.counterfactual_names(lab, falls, without)
    assert names[0] == "face"
    assert names[2] == "unnamed"
    both = sum(food & shown["face"].to_numpy() & (table["instead"] == "").to_numpy())
    assert names[1] == ("face + food" if both >= clustering.LEAST_SCENES else "face")
    assert both > 0


def test_predicted_falls_are_those_of_the_encoder(lab, by_type, without):
    """Against predictions made image by image; an untrained encoder does."""
    config = replace(
        lab.profile.encoder, widths=lab.features.widths, n_tokens=lab.features.n_tokens
    )
    subjects = {s: lab.crowd[s].n_voxels for s in lab.subjects}
    encoder = UniversalEncoder(config, subjects).eval()
    rows = clustering.test_rows(lab)
    few = clustering.Counterfactuals(without.table[:3], without.pixels[:3], without.scenes[:3])
    found = clustering.predicted_falls(lab, encoder, by_type, rows, few)
    backbone = Backbone(lab.profile.backbone)
    parts = []
    with torch.inference_mode():
        tokens = backbone(backbone.preprocess(list(few.pixels)))
        for s in lab.subjects:
            usual = clustering.predict.predict(encoder, lab.source, s, rows)
            before = usual[[list(rows).index(r) for r in few.table["row"]]]
            after = encoder(tokens, s).numpy()
            parts.append((before - after) / usual.std(0))
    expected = np.concatenate(parts, axis=1)
    for c in range(by_type.n_clusters):
        np.testing.assert_allclose(
            found[c], expected[:, by_type.labels == c].mean(1), rtol=1e-3, atol=1e-3
        )


def test_recordings_cannot_be_asked_counterfactually(lab, by_type, monkeypatch):
    monkeypatch.setattr(type(lab.crowd), "simulated", False)
    assert clustering.counterfactuals(lab, clustering.test_rows(lab)) is None
    assert clustering.fall_contrasts(lab, by_type, {}, None).empty


def test_reliable_voxels_are_those_predicted_above_chance_on_val_images(lab, monkeypatch):
    rng = np.random.default_rng(0)

    def predict(encoder, source, subject, rows):
        measured = lab.crowd[subject].responses_to(rows)
        noise = rng.normal(size=measured.shape)
        return np.where(np.arange(measured.shape[1]) % 2, measured + 2 * noise, noise)

    monkeypatch.setattr(clustering.predict, "predict", predict)
    keep = clustering.reliable(lab, None)
    start = lab.crowd["S1"].n_voxels
    rng = np.random.default_rng(0)
    rows = lab.crowd["S1"].image_rows("val")
    predicted, measured = predict(None, None, "S1", rows), lab.crowd["S1"].responses("val")
    p = [
        pearsonr(a, b, alternative="greater").pvalue
        for a, b in zip(predicted.T, measured.T, strict=True)
    ]
    np.testing.assert_array_equal(keep[:start], np.array(p) < 0.05)


def test_a_cluster_is_split_only_inside(lab, encoder, voxels, by_type, true_predictions):
    embeddings, _ = clustering.gather(lab, encoder)
    chosen = clustering.largest_category_cluster(by_type, voxels)
    assert by_type.names[chosen] not in EARLY
    parts, stability = clustering.split(lab, embeddings, by_type, chosen)
    assert stability == next(r.value for r in lab.records if r.name == "sub_cluster_stability")
    np.testing.assert_array_equal(parts.labels >= 0, by_type.labels == chosen)
    rows = clustering.test_rows(lab)
    responses = clustering.mean_responses(lab, encoder, parts.labels, rows)
    named, in_areas = clustering.evidence(lab, parts, voxels, responses, rows)
    table = clustering.cluster_table(lab, named, in_areas, voxels)
    fields = [truth.voxels(lab.crowd, s)["x"] for s in lab.subjects]
    assert table["true x (degrees)"].iloc[0] == pytest.approx(
        np.concatenate(fields)[parts.labels == 0].mean()
    )


def test_all_tables_are_recorded_once_each(lab, encoder, voxels, tmp_path):
    embeddings, _ = clustering.gather(lab, encoder)
    _, count = clustering.choose_count(lab, embeddings)
    assert count in lab.profile.clusters.counts
    e = clustering.pooled(embeddings)
    methods = [clusters.kmeans(e, count, 1), clusters.hdbscan(e, 8, 5)]
    by_method = clustering.method_table(lab, methods, voxels)
    clustering.seed_table(lab, embeddings, voxels, count, seeds=2)
    held_out = clustering.held_out_table(lab, embeddings, methods[0])
    keep = np.arange(len(voxels)) % 3 > 0
    clustering.filter_table(lab, embeddings, voxels, keep, methods[0])
    clustering.yardstick(lab, embeddings, voxels)
    assert by_method.loc["k-means", "ARI with k-means"] == 1
    assert list(held_out.index) == lab.subjects
    write_results(tmp_path / "numbers.json", "98_test", lab.records, {})  # refuses a number twice


def test_the_yardstick_scores_the_truth_itself(lab, encoder, voxels):
    embeddings, _ = clustering.gather(lab, encoder)
    table = clustering.yardstick(lab, embeddings, voxels)
    e = clusters.unit(clustering.pooled(embeddings))
    types = voxels["type"].where(~voxels["type"].isin(EARLY), "early")
    assert table.loc["true types", "silhouette"] == pytest.approx(
        silhouette_score(e, types), abs=1e-6
    )
    assert (
        table.loc["true types", "silhouette"] > table.loc["areas", "silhouette"]
    )  # embeddings were made from the types
    named = voxels["area"] != "none"
    expected = adjusted_rand_score(voxels["type"][named], voxels["area"][named])
    assert table.loc["true types", "ARI with areas"] == pytest.approx(expected)
    assert clustering.yardstick(lab, embeddings, voxels.assign(type="", area="none")).empty


def test_areas_of_a_subject_with_few_voxels_are_drawn_from_everybody(voxels, monkeypatch):
    found = clustering.outlines(voxels)
    assert set(found["S1"]["subject"]) == {"S1", "S2"}
    monkeypatch.setattr(clustering, "DENSE", 10)
    assert set(clustering.outlines(voxels)["S1"]["subject"]) == {"S1"}


def test_composition_sums_to_one_and_shows_outliers(voxels, by_type):
    labels = np.where(np.arange(len(voxels)) % 5 == 0, clusters.OUTLIER, by_type.labels)
    shown = clustering.composition(
        clusters.Clustering("x", by_type.centres, labels, by_type.names), voxels, "area"
    )
    np.testing.assert_allclose(shown.sum(axis=1), 1)
    assert shown.columns[-1] == "outliers"
    assert shown.columns[0] == by_type.titles[0]
