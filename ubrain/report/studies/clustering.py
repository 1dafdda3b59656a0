"""Clusters of the voxel embeddings of all subjects: what `05_clusters` tabulates and records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from ubrain import predict, scores
from ubrain.analysis import clusters, stats
from ubrain.analysis.clusters import Clustering
from ubrain.backbone import Backbone
from ubrain.data.simulate import truth
from ubrain.data.simulate.brains import EARLY
from ubrain.data.simulate.maps import energy_maps
from ubrain.data.simulate.scenes import CATEGORIES, Scene
from ubrain.model import UniversalEncoder
from ubrain.report.kept import kept
from ubrain.report.lab import Lab
from ubrain.report.studies.receptive_fields import early_areas

Embeddings = Mapping[str, NDArray[np.float32]]  # subject -> (n_voxels, E)
PLACES, PLACE = ("indoor", "outdoor"), "place"
# their first 10,242 vertices are those of fsaverage5
ON_SURFACE, N_VERTICES = ("fsaverage5", "fsaverage6", "fsaverage"), 10_242
DENSE = 3000  # voxels with a place: enough to draw the areas of a subject alone
# least share of the top images with a feature, or of the voxels in an area, to name a cluster
OF_IMAGES, OF_VOXELS = 0.5, 0.2
MOSTLY = 0.5  # of its voxels in early areas: an early cluster
# scenes of each category, or place, that are rendered without it; and what a cluster must lose by
# that, in standard deviations, to be named after it, in at least so many scenes
SCENES, LEAST_FALL, LEAST_SCENES = 30, 0.5, 5


def gather(lab: Lab, encoder: UniversalEncoder) -> tuple[Embeddings, pd.DataFrame]:
    """Embeddings of all subjects, and what is known of their voxels.

    Returns
    -------
    subject -> (n_voxels, E); and one row per voxel, in that order: subject, hemisphere, area (the
    first of several, or "none"), areas, vertex (of fsaverage5, -1 if it is not there), type (the
    true one, "" where unknown).
    """
    parts = []
    for s in lab.subjects:
        known, table = s in truth.subjects(lab.crowd), lab.crowd[s].voxels
        here = lab.crowd[s].space in ON_SURFACE and "vertex" in table
        vertex = table["vertex"].to_numpy() if here else np.full(len(table), -1)
        voxels = {
            "subject": s,
            "hemisphere": table["hemisphere"],
            "areas": table["areas"],
            "area": table["areas"].str.split(",").str[0].replace("", "none"),
            "vertex": np.where(vertex < N_VERTICES, vertex, -1),
            "type": truth.voxels(lab.crowd, s)["type"].to_numpy() if known else "",
        }
        parts.append(pd.DataFrame(voxels))
    embeddings = {s: encoder.subject(s).detach().cpu().numpy() for s in lab.subjects}
    return embeddings, pd.concat(parts, ignore_index=True)


def pooled(embeddings: Embeddings) -> NDArray[np.float32]:
    """Embeddings of all subjects, one after the other: (n_voxels, E)."""
    return np.concatenate(list(embeddings.values()))


def choose_count(lab: Lab, embeddings: Embeddings) -> tuple[pd.DataFrame, int]:
    """Table of numbers of clusters and the chosen one, see `clusters.best_count`; recorded."""
    e, size = pooled(embeddings), lab.profile.clusters
    table = clusters.count_table(e, size.counts, size.runs, restarts=size.restarts, seed=lab.seed)
    for row in table.itertuples():
        condition = f"{row.n_clusters} clusters"
        lab.record("stability", row.stability, condition, n=size.runs, unit="ARI")
        lab.record("silhouette", row.silhouette, condition, n=size.runs, unit="silhouette")
    count = clusters.best_count(table)
    lab.record("n_clusters", count, "k-means", n=len(e), unit="clusters")
    return table, count


def method_table(lab: Lab, methods: Sequence[Clustering], voxels: pd.DataFrame) -> pd.DataFrame:
    """Size and outliers of each method's clusters, agreement with the first method and with what is
    known of the voxels; recorded.

    Returns
    -------
    One row per method: clusters, outliers (share), ARI with k-means, and with what `known_table`
    knows.
    """
    rows = []
    for found in methods:
        same = clusters.agreement(found.labels, methods[0].labels)["ARI"]
        outliers = float(np.mean(found.labels < 0))
        lab.record("outliers", outliers, found.method, n=len(voxels), unit="share")
        lab.record("ari_with_kmeans", same, found.method, n=len(voxels), unit="ARI")
        row = {"method": found.method, "clusters": found.n_clusters, "outliers": outliers}
        known = known_aris(known_table(lab, found.labels, voxels, found.method))
        rows.append({**row, "ARI with k-means": same, **known})
    return pd.DataFrame(rows).set_index("method")


def known_table(
    lab: Lab, labels: NDArray, voxels: pd.DataFrame, condition: str = ""
) -> pd.DataFrame:
    """Agreement of clusters with the true types and with areas; recorded if a condition is given.

    Returns
    -------
    One row per thing known: known, n_voxels, groups, ARI, homogeneity, completeness. "category
    types" leaves out the voxels of the early areas; "areas" those without an area.
    """
    parts = {
        "all types": ("type", voxels["type"] != ""),
        "category types": ("type", ~voxels["type"].isin(["", *EARLY])),
        "areas": ("area", voxels["area"] != "none"),
    }
    rows = []
    for known, (column, which) in parts.items():
        groups, n = voxels[column][which], int(which.sum())
        if groups.nunique() < 2:
            continue
        found = clusters.agreement(labels[which], groups)
        for measure, value in found.items() if condition else ():
            lab.record(f"{measure} with {known}".lower(), value, condition, n=n, unit=measure)
        rows.append({"known": known, "n_voxels": n, "groups": groups.nunique(), **found})
    measures = ["ARI", "homogeneity", "completeness"]
    return pd.DataFrame(rows, columns=["known", "n_voxels", "groups", *measures])


def known_aris(table: pd.DataFrame) -> dict[str, float]:
    """The ARIs of `known_table` as columns of another table."""
    return dict(zip("ARI with " + table["known"], table["ARI"], strict=True))


def yardstick(lab: Lab, embeddings: Embeddings, voxels: pd.DataFrame) -> pd.DataFrame:
    """What groups that are known would score as clusters, early areas taken as one type; recorded.

    Returns
    -------
    One row per grouping (true types, areas), as far as known: groups, silhouette (of embeddings
    scaled to length 1), and ARI of the true types with the areas.
    """
    types = voxels["type"].where(~voxels["type"].isin(EARLY), "early")
    rows = []
    for name, groups in (("true types", types), ("areas", voxels["area"].replace("none", ""))):
        which = (groups != "").to_numpy()
        if groups[which].nunique() < 2:
            continue
        silhouette = clusters.silhouette(pooled(embeddings)[which], groups[which], lab.seed)
        lab.record("silhouette", silhouette, name, n=int(which.sum()), unit="silhouette")
        rows.append([name, groups[which].nunique(), silhouette])
    table = pd.DataFrame(rows, columns=["known", "groups", "silhouette"]).set_index("known")
    both = (voxels["type"] != "") & (voxels["area"] != "none")
    if "true types" in table.index and both.any():
        same = clusters.agreement(voxels["type"][both], voxels["area"][both])["ARI"]
        table.loc["true types", "ARI with areas"] = same
        lab.record("ari with areas", same, "true types", n=int(both.sum()), unit="ARI")
    return table


def seed_table(
    lab: Lab, embeddings: Embeddings, voxels: pd.DataFrame, count: int, seeds: int = 5
) -> pd.DataFrame:
    """K-means with several seeds: agreement with what is known, and of each run with the others;
    recorded.

    Returns
    -------
    One row per seed: seed, "ARI with <other seeds, all types, category types, areas>".
    """
    e, restarts = pooled(embeddings), lab.profile.clusters.restarts
    numbers = [lab.seed + i for i in range(seeds)]
    labels = [clusters.kmeans(e, count, restarts, seed).labels for seed in numbers]
    same = [[clusters.agreement(a, b)["ARI"] for b in labels] for a in labels]
    with_others = (np.sum(same, 1) - 1) / (seeds - 1)  # each agrees with itself
    rows = []
    for seed, mine, others in zip(numbers, labels, with_others, strict=True):
        known = known_aris(known_table(lab, mine, voxels, f"k-means, seed {seed}"))
        rows.append({"seed": seed, "ARI with other seeds": others, **known})
    pairs = clusters.pair_agreement(labels)
    lab.record("ari_between_seeds", float(pairs.mean()), "k-means", n=len(pairs), unit="ARI")
    return pd.DataFrame(rows).set_index("seed")


def held_out_table(lab: Lab, embeddings: Embeddings, full: Clustering) -> pd.DataFrame:
    """Each subject's voxels by centres fitted without it, against the clusters of everybody;
    recorded.

    Returns
    -------
    One row per subject: ARI; empty for a single subject.
    """
    found = clusters.without_each_subject(embeddings, full, lab.profile.clusters.restarts, lab.seed)
    for s, value in found.items():
        lab.record("ari_held_out_subject", value, full.method, s, n=len(embeddings[s]), unit="ARI")
    return pd.DataFrame({"ARI": found}).rename_axis("subject")


def test_rows(lab: Lab) -> NDArray[np.int64]:
    """Rows, in the crowd file, of the test images of any subject."""
    return np.unique(np.concatenate([lab.crowd[s].image_rows("test") for s in lab.subjects]))


def mean_responses(
    lab: Lab, encoder: UniversalEncoder, labels: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean predicted response of each cluster to images, each voxel z-scored over the images.

    Parameters
    ----------
    labels : (n_voxels,) of all subjects; -1 for a voxel that does not count.
    rows : of the images in the crowd file.

    Returns
    -------
    (n_clusters, n_images)
    """
    n_clusters = labels.max() + 1
    total, start = np.zeros((n_clusters, len(rows))), 0
    for s in lab.subjects:
        predicted = predict.predict(encoder, lab.source, s, rows)
        end = start + predicted.shape[1]
        total += clusters.profile(predicted, labels[start:end], n_clusters)
        start = end
    return total / np.maximum(np.bincount(labels[labels >= 0], minlength=n_clusters), 1)[:, None]


def image_features(lab: Lab, rows: NDArray[np.int64]) -> pd.DataFrame:
    """What is on the images, from the descriptions of the simulated scenes.

    Returns
    -------
    (n_images, n_features) booleans: one column per category, indoor, outdoor, and "place" for
    either of the two; no columns for recordings, whose images are not described.
    """
    if not lab.crowd.simulated:
        return pd.DataFrame(index=rows)
    table = truth.contents(lab.crowd).loc[rows, [*CATEGORIES, *PLACES]]
    return table.assign(**{PLACE: table[list(PLACES)].any(axis=1)})


@dataclass(frozen=True)
class Counterfactuals:
    """Test images rendered again without something that is on them.

    Attributes
    ----------
    table : one row per new image: row (of the original in the crowd file), feature (what is left
        out), instead (the category in its place, "" for none).
    pixels : (n, SIZE, SIZE, 3)
    scenes : what is on each new image.
    """

    table: pd.DataFrame
    pixels: NDArray[np.uint8]
    scenes: list[Scene]


def counterfactuals(lab: Lab, rows: NDArray[np.int64]) -> Counterfactuals | None:
    """The first scenes of each category without all its objects, and with objects of another
    category in their place; and those of each place without it. None for recordings.

    Parameters
    ----------
    rows : of the images in the crowd file.
    """
    if not lab.crowd.simulated:
        return None
    rng, known = np.random.default_rng(lab.seed), truth.scenes(lab.crowd)
    shown, found, drawn = image_features(lab, rows), [], []
    for feature in (*CATEGORIES, *PLACES):
        for row in rows[shown[feature]][:SCENES]:
            image = lab.crowd.image_ids[row]
            objects = enumerate(known[image]["objects"])
            numbers = [i for i, thing in objects if thing["category"] == feature]
            others = [c for c in CATEGORIES if c != feature]
            for instead in ("", str(rng.choice(others)))[: 2 if numbers else 1]:
                changes = dict.fromkeys(numbers, instead)
                drawn.append(truth.render_again(lab.crowd, image, changes, not numbers))
                found.append((row, feature, instead))
    table = pd.DataFrame(found, columns=["row", "feature", "instead"])
    pixels = np.stack([image for image, _ in drawn])
    return Counterfactuals(table, pixels, [scene for _, scene in drawn])


def predicted_falls(
    lab: Lab,
    encoder: UniversalEncoder,
    found: Clustering,
    rows: NDArray[np.int64],
    without: Counterfactuals,
) -> NDArray[np.float64]:
    """What the predicted response of each cluster loses: original minus new image, in standard
    deviations of each voxel over the images `rows`: (n_clusters, n_new_images).
    """
    before = np.searchsorted(rows, without.table["row"])

    def fall() -> NDArray[np.float64]:
        device = encoder.position.device
        backbone = lab.source.backbone or Backbone(lab.profile.backbone).to(device)
        parts = np.array_split(without.pixels, -(-len(without.pixels) // predict.IMAGES))
        with torch.inference_mode():
            tokens = [[t.cpu() for t in backbone(backbone.preprocess(list(p)))] for p in parts]
        total = np.zeros((found.n_clusters, len(before)))
        for s, members in _members(lab, found).items():
            usual = predict.predict(encoder, lab.source, s, rows)
            predictor = predict.Predictor(encoder, s)
            after = np.concatenate([predictor([t.to(device) for t in levels]) for levels in tokens])
            total += members @ ((usual[before] - after) / np.maximum(usual.std(0), 1e-12)).T
        return total / found.sizes[:, None]

    made_from = [encoder, lab.source, lab.subjects, found.members, rows, before, without.pixels]
    return kept("predicted_falls", made_from, fall)


def true_falls(lab: Lab, found: Clustering, without: Counterfactuals) -> NDArray[np.float64]:
    """The same of the true noiseless responses, whose standard deviation is 1."""
    originals, before = np.unique(without.table["row"], return_inverse=True)

    def fall() -> NDArray[np.float64]:
        known = truth.scenes(lab.crowd)
        scenes = [Scene.described(known[image]) for image in lab.crowd.image_ids[originals]]
        pixels = np.concatenate([lab.crowd.pixels(originals), without.pixels])
        maps, total = energy_maps(pixels), np.zeros((found.n_clusters, len(before)))
        for s, members in _members(lab, found).items():
            both = truth.responses(lab.crowd, s, pixels, [*scenes, *without.scenes], maps)
            total += members @ (both[before] - both[len(originals) :]).T
        return total / found.sizes[:, None]

    made_from = [lab.crowd, lab.subjects, found.members, originals, before, without.pixels]
    return kept("true_falls", made_from, fall)


def _members(lab: Lab, found: Clustering) -> dict[str, NDArray[np.float64]]:
    """Subject -> which of its voxels belong to which cluster, (n_clusters, n_voxels)."""
    ends = np.cumsum([lab.crowd[s].n_voxels for s in lab.subjects])[:-1]
    parts = np.split(found.members.astype(float), ends, axis=1)
    return dict(zip(lab.subjects, parts, strict=True))


def mean_falls(falls: NDArray[np.float64], without: Counterfactuals) -> pd.DataFrame:
    """Mean fall of each cluster where something is left out: (n_clusters, n_features)."""
    removed = (without.table["instead"] == "").to_numpy()
    means = pd.DataFrame(falls[:, removed].T).groupby(without.table["feature"][removed].to_numpy())
    return means.mean().T[[f for f in (*CATEGORIES, *PLACES) if f in means.groups]]


def counterfactual_names(
    lab: Lab, falls: NDArray[np.float64], without: Counterfactuals
) -> list[str]:
    """Names by what a cluster loses: at least half a standard deviation, with a 95 % interval over
    scenes above 0; "place" if that holds both indoors and outdoors.

    A second word must hold among the scenes that show the first, too.

    Parameters
    ----------
    falls : (n_clusters, n_new_images), from `predicted_falls`.
    """
    table = without.table
    feature, removed = table["feature"].to_numpy(), (table["instead"] == "").to_numpy()
    shown = image_features(lab, table["row"].to_numpy())

    def holds(fall: NDArray, word: str, given: str) -> float:
        """Mean fall without `word` in scenes with `given`; 0 if it is small or uncertain."""
        which = removed & (shown[given] & (shown[word] if word == PLACE else feature == word))
        which &= np.isin(feature, PLACES) if word == PLACE else True
        values = fall[which.to_numpy()]
        if len(values) < LEAST_SCENES:
            return 0.0
        interval = stats.t_interval(values)
        return interval.value if interval.low > 0 and interval.value >= LEAST_FALL else 0.0

    names = []
    for fall in falls:
        found = {word: holds(fall, word, word) for word in (*CATEGORIES, *PLACES, PLACE)}
        both = all(found[p] for p in PLACES)
        for word in PLACES if both else (PLACE,):
            found[word] = 0.0
        words = sorted((w for w in found if found[w]), key=lambda w: -found[w])
        also = [w for w in words[1:] if holds(fall, w, words[0])]
        names.append(" + ".join([*words[:1], *also[:1]]) or clusters.UNNAMED)
    return names


def fall_contrasts(
    lab: Lab,
    named: Clustering,
    falls: Mapping[str, NDArray[np.float64]],
    without: Counterfactuals | None,
) -> pd.DataFrame:
    """How much more the clusters named after something lose without it than other clusters change
    (mean of absolute values); recorded. Not among these others are early clusters, which see
    pixels, and those named after what is in its place.

    Parameters
    ----------
    falls : "predicted" and "true" -> (n_clusters, n_new_images).

    Returns
    -------
    One row per kind of response and of change (none for recordings): named (mean fall of the
    clusters named after what is missing), others, difference, low, high (95 %, over scenes),
    scenes.
    """
    if without is None:
        return pd.DataFrame()
    words = [set(name.split(" + ")) for name in named.names]
    words = [w | set(PLACES) if PLACE in w else w for w in words]
    category = np.array([not name.startswith("early") for name in named.names], dtype=bool)
    own, gains = (
        np.array([[f in w for f in without.table[column]] for w in words])
        for column in ("feature", "instead")
    )
    other = category[:, None] & ~own & ~gains
    rows = []
    for kind, fall in falls.items():
        mine = np.where(own, fall, 0).sum(0) / np.maximum(own.sum(0), 1)
        theirs = np.where(other, abs(fall), 0).sum(0) / np.maximum(other.sum(0), 1)
        for change in ("left out", "replaced"):
            which = (without.table["instead"] == "") == (change == "left out")
            which &= own.any(0) & other.any(0)
            if not which.any():
                continue
            scene = without.table["row"][which].to_numpy()
            means = pd.DataFrame({"named": mine[which], "others": theirs[which]}).groupby(scene)
            means = means.mean()
            interval = stats.t_interval(means["named"] - means["others"])
            condition = f"{kind}, {change}"
            lab.record(
                "counterfactual_fall", interval.value, condition, interval=interval, unit="SD"
            )
            rows.append(
                {
                    "response": kind,
                    "object": change,
                    **means.mean(),
                    "difference": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "scenes": interval.n,
                }
            )
    return pd.DataFrame(rows)


def area_features(voxels: pd.DataFrame) -> pd.DataFrame:
    """Which voxels are in which area: (n_voxels, n_areas) booleans; a voxel may be in several."""
    return voxels["areas"].str.get_dummies(",").astype(bool)


def top_images(responses: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The images of the highest mean response of each cluster, best first: (n_clusters, n)."""
    return np.argsort(-responses, axis=1, kind="stable")[:, :n]


def are_top(responses: NDArray[np.float64], n: int) -> NDArray[np.bool_]:
    """Whether each image is among the `n` top images of each cluster: (n_clusters, n_images)."""
    found = np.zeros(responses.shape, bool)
    np.put_along_axis(found, top_images(responses, n), True, axis=1)
    return found


def n_top(lab: Lab, rows: NDArray[np.int64]) -> int:
    """How many top images of a cluster are looked at: as the profile says, at most half of all."""
    return min(lab.profile.clusters.top, len(rows) // 2)


def name_clusters(
    found: Clustering, voxels: pd.DataFrame, names: Sequence[str], in_areas: pd.DataFrame
) -> Clustering:
    """Give clusters these names; early ones, and all if there are no names, those of areas.

    An early cluster, at least half of whose voxels are in early areas, prefers images with much
    contrast where its voxels look, whatever they show.

    Parameters
    ----------
    names : of each cluster, from `counterfactual_names` or `image_names`; empty where nothing is
        known of the images.
    in_areas : enrichment of areas among the voxels of clusters; see `clusters.enrichment`.
    """
    n = found.n_clusters
    names = list(names) or clusters.names(in_areas, n, OF_VOXELS)
    early = clusters.names(in_areas[early_areas(in_areas["feature"])], n, OF_VOXELS, most=4)
    for c in np.flatnonzero(early_share(found, voxels) >= MOSTLY):
        areas = sorted(early[c].split(" + ")) if early[c] != clusters.UNNAMED else []
        names[c] = f"early: {', '.join(areas)}" if areas else "early"
    return found.named(names)


def image_names(top: NDArray[np.bool_], shown: pd.DataFrame) -> list[str]:
    """Names by what is frequent on the top images of clusters; a second word must be so among the
    images that show the first, too. Empty if the images are not described.

    Parameters
    ----------
    top : (n_clusters, n_images), from `are_top`.
    shown : (n_images, n_features), from `image_features`.
    """
    if not len(shown.columns):
        return []
    given = {f: clusters.enrichment(top[:, shown[f]], shown[shown[f]]) for f in shown}
    table, kinds = clusters.enrichment(top, shown), dict.fromkeys(PLACES, PLACE)
    return clusters.names(table, len(top), OF_IMAGES, kinds=kinds, given=given)


def evidence(
    lab: Lab,
    found: Clustering,
    voxels: pd.DataFrame,
    responses: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> tuple[Clustering, pd.DataFrame]:
    """The clusters named by their top images, and the enrichment of areas among their voxels.

    Parameters
    ----------
    responses : (n_clusters, n_images), from `mean_responses`.
    rows : of the images.
    """
    names = image_names(are_top(responses, n_top(lab, rows)), image_features(lab, rows))
    in_areas = clusters.enrichment(found.members, area_features(voxels))
    return name_clusters(found, voxels, names, in_areas), in_areas


def early_share(found: Clustering, voxels: pd.DataFrame) -> NDArray[np.float64]:
    """Share of each cluster's voxels that are in early visual areas, V1 to V4: (n_clusters,)."""
    return (found.members @ early_areas(voxels["areas"]).astype(float)) / np.maximum(found.sizes, 1)


def cluster_table(
    lab: Lab, named: Clustering, in_areas: pd.DataFrame, voxels: pd.DataFrame
) -> pd.DataFrame:
    """What is known of each cluster; recorded.

    Parameters
    ----------
    in_areas : from `evidence`.

    Returns
    -------
    One row per cluster: name, voxels, subjects (how many have voxels in it), largest subject (its
    share of the voxels), early (share of the voxels in early areas), areas that at least a fifth of
    the voxels are in, more than by chance, and the means of the true receptive fields of a
    simulated crowd (x, y, eccentricity and sigma, in degrees).
    """
    method, n = named.method, named.n_clusters
    for title, size in zip(named.titles, named.sizes, strict=True):
        condition = f"{method}: {title}"
        lab.record("cluster_size", size, condition, n=len(voxels), unit="voxels")
    share = float(np.mean([name != clusters.UNNAMED for name in named.names]))
    lab.record("named_clusters", share, method, n=n, unit="share")
    areas = clusters.names(in_areas, n, OF_VOXELS, most=4)
    owners = pd.crosstab(named.labels, voxels["subject"]).drop(
        index=clusters.OUTLIER, errors="ignore"
    )
    columns = {
        "name": named.names,
        "voxels": named.sizes,
        "subjects": (owners > 0).sum(axis=1).to_numpy(),
        "largest subject": owners.max(axis=1).to_numpy() / named.sizes,
        "early": early_share(named, voxels),
        "areas": [a.replace(clusters.UNNAMED, "none") for a in areas],
    }
    table = pd.DataFrame(columns, index=pd.RangeIndex(1, n + 1, name="cluster"))
    if set(lab.subjects) <= set(truth.subjects(lab.crowd)):
        true = pd.concat([truth.voxels(lab.crowd, s) for s in lab.subjects], ignore_index=True)
        true["eccentricity"] = np.hypot(true["x"], true["y"])
        for q in ("x", "y", "eccentricity", "sigma"):
            means = true[q].groupby(named.labels).mean()
            table[f"true {q} (degrees)"] = means.reindex(range(n)).to_numpy()
    return table


def composition(named: Clustering, voxels: pd.DataFrame, column: str) -> pd.DataFrame:
    """Share of the voxels of each area, type or subject in each cluster: (n_groups, n_clusters)."""
    every = [*named.titles, "outliers"]
    titles, groups = np.array(every)[named.labels], voxels[column]
    order = [t for t in every if t in set(titles)]
    table = pd.crosstab(groups, titles, normalize="index")
    return table.reindex(index=list(dict.fromkeys(groups)), columns=order)


def reliable(lab: Lab, encoder: UniversalEncoder, level: float = 0.05) -> NDArray[np.bool_]:
    """Voxels whose val responses the encoder predicts above chance: (n_voxels,) of all subjects.

    One-sided test of the correlation over the val images, p < `level` without correction: a filter,
    not a finding.
    """
    parts = []
    for s in lab.subjects:
        rows = lab.crowd[s].image_rows("val")
        predicted = predict.predict(encoder, lab.source, s, rows)
        r, free = scores.correlation(predicted, lab.crowd[s].responses("val")), len(rows) - 2
        p = student.sf(r * np.sqrt(free / np.maximum(1 - r**2, 1e-12)), free)
        parts.append(np.nan_to_num(p, nan=1.0) < level)
    return np.concatenate(parts)


def filter_table(
    lab: Lab,
    embeddings: Embeddings,
    voxels: pd.DataFrame,
    keep: NDArray[np.bool_],
    full: Clustering,
) -> pd.DataFrame:
    """Agreement with what is known when weak voxels are left out: of the fit, of the score, of
    both, of none; recorded.

    Parameters
    ----------
    keep : from `reliable`.

    Returns
    -------
    One row per pair of choices: fitted on, scored on, voxels, and the ARIs of `known_table`.
    """
    e, everyone = pooled(embeddings), np.ones(len(keep), dtype=bool)
    if keep.sum() <= full.n_clusters:
        return pd.DataFrame()
    strict = clusters.kmeans(e[keep], full.n_clusters, lab.profile.clusters.restarts, lab.seed)
    condition = "val correlation, p < 0.05"
    lab.record("reliable_voxels", float(keep.mean()), condition, n=len(keep), unit="share")
    rows = []
    for fitted, labels in (
        ("all voxels", full.labels),
        ("reliable voxels", clusters.assign(strict, e)),
    ):
        for scored, which in (("all voxels", everyone), ("reliable voxels", keep)):
            condition = f"fitted on {fitted}, scored on {scored}"
            known = known_aris(known_table(lab, labels[which], voxels[which], condition))
            row = {"fitted on": fitted, "scored on": scored, "voxels": int(which.sum())}
            rows.append({**row, **known})
    return pd.DataFrame(rows).set_index(["fitted on", "scored on"])


def largest_category_cluster(named: Clustering, voxels: pd.DataFrame) -> int:
    """The largest cluster that lies mostly outside of the early areas, as far as known."""
    outside = np.flatnonzero(early_share(named, voxels) < MOSTLY)
    return int(outside[0]) if len(outside) else 0


def split(
    lab: Lab, embeddings: Embeddings, named: Clustering, cluster: int
) -> tuple[Clustering, float]:
    """One cluster clustered again, by k-means with a number chosen by the same rule; recorded.

    Returns
    -------
    The sub-clusters, with labels -1 outside of the cluster; and their stability, the mean ARI
    between runs.
    """
    e, inside, size = pooled(embeddings), named.labels == cluster, lab.profile.clusters
    counts = range(2, 7) if inside.sum() >= 60 else (2,)
    table = clusters.count_table(
        e[inside], counts, size.runs, restarts=size.restarts, seed=lab.seed
    )
    found = clusters.kmeans(e[inside], clusters.best_count(table), size.restarts, lab.seed)
    labels = np.full(len(e), clusters.OUTLIER)
    labels[inside] = found.labels
    stability = float(table.set_index("n_clusters")["stability"][found.n_clusters])
    title, n = named.titles[cluster], int(inside.sum())
    lab.record("sub_clusters", found.n_clusters, title, n=n, unit="clusters")
    lab.record("sub_cluster_stability", stability, title, n=size.runs, unit="ARI")
    return Clustering(f"k-means within {title}", found.centres, labels, found.names), stability


def outlines(voxels: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Voxels from which the outlines of areas on each subject are drawn: its own if dense, those of
    all subjects if not.
    """
    known = voxels[(voxels["vertex"] >= 0) & (voxels["area"] != "none")]
    own = {s: known[known["subject"] == s] for s in dict.fromkeys(voxels["subject"])}
    return {s: mine if len(mine) >= DENSE else known for s, mine in own.items()}
