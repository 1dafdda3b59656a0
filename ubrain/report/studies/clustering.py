"""Clusters of the voxel embeddings of all subjects: what `05_clusters` fits, tabulates and
records.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from ubrain import predict, scores
from ubrain.analysis import clusters
from ubrain.analysis.clusters import Clustering
from ubrain.data.simulate import truth
from ubrain.data.simulate.brains import EARLY
from ubrain.model import UniversalEncoder
from ubrain.report.lab import Lab
from ubrain.report.studies.receptive_fields import early_areas

Embeddings = Mapping[str, NDArray[np.float32]]  # subject -> (n_voxels, E)
PLACES = ("indoor", "outdoor")
# their first 10,242 vertices are those of fsaverage5
ON_SURFACE = ("fsaverage5", "fsaverage6", "fsaverage")
N_VERTICES = 10_242
DENSE = 3000  # voxels with a place: enough to draw the areas of a subject alone
LEAST_SHARE_OF_IMAGES, LEAST_SHARE_OF_VOXELS = (
    0.5,
    0.2,
)  # for a feature, or an area, to name a cluster
MOSTLY = 0.5  # of its voxels in early areas: an early cluster
PLACE = "place"  # indoor or outdoor
STABLE = 0.8  # ARI from here: good agreement (Steinley 2004)


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
        table = lab.crowd[s].voxels
        here = lab.crowd[s].space in ON_SURFACE and "vertex" in table
        vertex = table["vertex"].to_numpy() if here else np.full(len(table), -1)
        type_ = (
            truth.voxels(lab.crowd, s)["type"].to_numpy() if s in truth.subjects(lab.crowd) else ""
        )
        parts.append(
            pd.DataFrame(
                {
                    "subject": s,
                    "hemisphere": table.get("hemisphere", ""),
                    "areas": table["areas"],
                    "area": table["areas"].str.split(",").str[0].replace("", "none"),
                    "vertex": np.where(vertex < N_VERTICES, vertex, -1),
                    "type": type_,
                }
            )
        )
    return {s: encoder.subject(s).detach().cpu().numpy() for s in lab.subjects}, pd.concat(
        parts, ignore_index=True
    )


def pooled(embeddings: Embeddings) -> NDArray[np.float32]:
    """Embeddings of all subjects, one after the other: (n_voxels, E)."""
    return np.concatenate(list(embeddings.values()))


def choose_count(lab: Lab, embeddings: Embeddings) -> tuple[pd.DataFrame, int]:
    """Table of numbers of clusters and the chosen one, see `clusters.best_count`; recorded."""
    size = lab.profile.clusters
    table = clusters.count_table(
        pooled(embeddings), size.counts, size.runs, restarts=size.restarts, seed=lab.seed
    )
    for row in table.itertuples():
        lab.record(
            "stability", row.stability, f"{row.n_clusters} clusters", n=size.runs, unit="ARI"
        )
        lab.record(
            "silhouette",
            row.silhouette,
            f"{row.n_clusters} clusters",
            n=size.runs,
            unit="silhouette",
        )
    count = clusters.best_count(table)
    lab.record("n_clusters", count, "k-means", n=len(pooled(embeddings)), unit="clusters")
    return table, count


def fit_methods(lab: Lab, embeddings: Embeddings, count: int) -> dict[str, Clustering]:
    """The same voxels clustered by k-means, Gaussian mixture and HDBSCAN, which finds its own
    number.
    """
    e, size = pooled(embeddings), lab.profile.clusters
    found = [
        clusters.kmeans(e, count, size.restarts, lab.seed),
        clusters.mixture(e, count, size.components, size.restarts, lab.seed),
        clusters.hdbscan(e, size.least, size.components, lab.seed),
    ]
    return {c.method: c for c in found}


def method_table(lab: Lab, methods: Mapping[str, Clustering], voxels: pd.DataFrame) -> pd.DataFrame:
    """Size and outliers of each method's clusters, agreement with k-means and with what is known of
    the voxels; recorded.

    Returns
    -------
    One row per method: clusters, outliers (share), ARI with k-means, and the columns of
    `known_table`.
    """
    rows = []
    for method, found in methods.items():
        same = clusters.agreement(found.labels, methods["k-means"].labels)["ARI"]
        outliers = float(np.mean(found.labels < 0))
        lab.record("outliers", outliers, method, n=len(voxels), unit="share")
        lab.record("ari_with_kmeans", same, method, n=len(voxels), unit="ARI")
        known = known_table(lab, found.labels, voxels, method)
        rows.append(
            {
                "method": method,
                "clusters": found.n_clusters,
                "outliers": outliers,
                "ARI with k-means": same,
                **dict(zip("ARI with " + known["known"], known["ARI"], strict=True)),
            }
        )
    return pd.DataFrame(rows).set_index("method")


def known_table(
    lab: Lab, labels: NDArray, voxels: pd.DataFrame, condition: str = ""
) -> pd.DataFrame:
    """Agreement of clusters with the true types (simulated crowds) and with areas; recorded if a
    condition is given.

    Returns
    -------
    One row per thing known: known, n_voxels, groups, ARI, homogeneity, completeness. "category
    types" leaves out the voxels of the early areas; "areas" those without an area.
    """
    named = voxels["area"] != "none"
    parts = {
        "all types": ("type", voxels["type"] != ""),
        "category types": ("type", ~voxels["type"].isin(["", *EARLY])),
        "areas": ("area", named),
    }
    rows = []
    for known, (column, which) in parts.items():
        groups = voxels[column][which]
        if groups.nunique() < 2:
            continue
        found = clusters.agreement(labels[which], groups)
        for measure, value in found.items() if condition else ():
            lab.record(
                f"{measure} with {known}".lower(),
                value,
                condition,
                n=int(which.sum()),
                unit=measure,
            )
        rows.append(
            {"known": known, "n_voxels": int(which.sum()), "groups": groups.nunique(), **found}
        )
    return pd.DataFrame(
        rows, columns=["known", "n_voxels", "groups", "ARI", "homogeneity", "completeness"]
    )


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
        rows.append({"known": name, "groups": groups[which].nunique(), "silhouette": silhouette})
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
    """K-means of all voxels with several seeds: agreement with what is known, and of each run with
    the others; recorded.

    Returns
    -------
    One row per seed: seed, "ARI with <other seeds, all types, category types, areas>".
    """
    size = lab.profile.clusters
    fits = [
        clusters.kmeans(pooled(embeddings), count, size.restarts, lab.seed + i)
        for i in range(seeds)
    ]
    rows = []
    for i, fit in enumerate(fits):
        known = known_table(lab, fit.labels, voxels, f"k-means, seed {lab.seed + i}")
        others = [
            clusters.agreement(fit.labels, other.labels)["ARI"]
            for j, other in enumerate(fits)
            if j != i
        ]
        rows.append(
            {
                "seed": lab.seed + i,
                "ARI with other seeds": float(np.mean(others)),
                **dict(zip("ARI with " + known["known"], known["ARI"], strict=True)),
            }
        )
    pairs = clusters.pair_agreement([fit.labels for fit in fits])
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


def profiles(
    lab: Lab, encoder: UniversalEncoder, labelings: Sequence[NDArray], rows: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """Mean predicted response of each cluster to images, for several labelings of all voxels.

    Parameters
    ----------
    labelings : each (n_voxels,), -1 for a voxel that does not count.
    rows : of the images in the crowd file.

    Returns
    -------
    For each labeling (n_clusters, n_images), z-scored over images within each voxel.
    """
    sums = [np.zeros((labels.max() + 1, len(rows))) for labels in labelings]
    start = 0
    for s in lab.subjects:
        predicted = predict.predict(encoder, lab.source, s, rows)
        for total, labels in zip(sums, labelings, strict=True):
            total += clusters.profile(
                predicted, labels[start : start + predicted.shape[1]], len(total)
            )
        start += predicted.shape[1]
    sizes = [
        np.bincount(labels[labels >= 0], minlength=len(s))
        for labels, s in zip(labelings, sums, strict=True)
    ]
    return [s / np.maximum(n, 1)[:, None] for s, n in zip(sums, sizes, strict=True)]


def image_features(lab: Lab, rows: NDArray[np.int64]) -> pd.DataFrame:
    """What is on the images, from the descriptions of the simulated scenes: (n_images, n_features)
    booleans.

    One column per category, indoor, outdoor, and "place" for either of the two; none for
    recordings, whose images nobody has described.
    """
    if not lab.crowd.simulated:
        return pd.DataFrame(index=rows)
    known = truth.scenes(lab.crowd)
    scenes = [
        known.get(image_id, {"place": "", "objects": []}) for image_id in lab.crowd.image_ids[rows]
    ]
    things = [
        {scene["place"], *(o["category"] for o in scene["objects"])} - {"none", ""}
        for scene in scenes
    ]
    table = pd.DataFrame(
        {f: [f in on_it for on_it in things] for f in sorted(set().union(*things))}, index=rows
    )
    return table.assign(**{PLACE: table[[p for p in PLACES if p in table]].any(axis=1)})


def area_features(voxels: pd.DataFrame) -> pd.DataFrame:
    """Which voxels are in which area: (n_voxels, n_areas) booleans; a voxel may be in several."""
    return voxels["areas"].str.get_dummies(",").astype(bool)


def top_images(profile: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The images of the highest predicted response of each cluster, best first: (n_clusters, n)."""
    return np.argsort(-profile, axis=1, kind="stable")[:, :n]


def evidence(
    lab: Lab,
    found: Clustering,
    voxels: pd.DataFrame,
    profile: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> tuple[Clustering, pd.DataFrame, pd.DataFrame]:
    """Name clusters by what is frequent on their top images; early ones, and where images are not
    described, by areas.

    An early cluster, at least half of whose voxels are in early areas, prefers images with much
    contrast where its voxels look, whatever they show.

    Parameters
    ----------
    profile : (n_clusters, n_images), from `profiles`.
    rows : of the images.

    Returns
    -------
    The clusters, named; the enrichment of features on their top images, and of areas among their
    voxels (see `clusters.enrichment`).
    """
    features = image_features(lab, rows)
    best = np.zeros(profile.shape, dtype=bool)
    np.put_along_axis(best, top_images(profile, _n_top(lab, rows)), True, axis=1)
    on_images = clusters.enrichment(best, features)
    in_areas = clusters.enrichment(found.members, area_features(voxels))
    if len(features.columns):
        names = clusters.names(
            on_images, found.n_clusters, LEAST_SHARE_OF_IMAGES, kinds=dict.fromkeys(PLACES, PLACE)
        )
    else:
        names = clusters.names(in_areas, found.n_clusters, LEAST_SHARE_OF_VOXELS)
    in_early = in_areas[early_areas(in_areas["feature"])]
    where = clusters.names(in_early, found.n_clusters, LEAST_SHARE_OF_VOXELS, most=4)
    for c in np.flatnonzero(early_share(found, voxels) >= MOSTLY):
        names[c] = (
            "early"
            if where[c] == clusters.UNNAMED
            else f"early: {', '.join(sorted(where[c].split(' + ')))}"
        )
    return found.named(names), on_images, in_areas


def early_share(found: Clustering, voxels: pd.DataFrame) -> NDArray[np.float64]:
    """Share of each cluster's voxels that are in early visual areas, V1 to V4: (n_clusters,)."""
    return (found.members @ early_areas(voxels["areas"]).astype(float)) / np.maximum(found.sizes, 1)


def cluster_table(
    lab: Lab,
    named: Clustering,
    on_images: pd.DataFrame,
    in_areas: pd.DataFrame,
    voxels: pd.DataFrame,
) -> pd.DataFrame:
    """What is known of each cluster; recorded.

    Parameters
    ----------
    on_images, in_areas : from `evidence`.

    Returns
    -------
    One row per cluster: name, voxels, subjects (how many have voxels in it), largest subject (its
    share of the voxels), areas that at least a fifth of the voxels are in, more than by chance, the
    evidence of a name (given by images, or the share of voxels in early areas), and the means of
    the true receptive fields of a simulated crowd (x, y, eccentricity and sigma, in degrees).
    """
    early, in_early = early_share(named, voxels), early_areas(voxels["areas"]).mean()
    areas = clusters.names(in_areas, named.n_clusters, LEAST_SHARE_OF_VOXELS, most=4)
    rows = []
    for c, name in enumerate(named.names):
        mine = voxels["subject"][named.labels == c].value_counts(normalize=True)
        shown = on_images[
            (on_images["cluster"] == c) & on_images["feature"].isin(name.split(" + "))
        ]
        text = ", ".join(
            f"{r.feature} {r.share:.0%} of images, all {r.expected:.0%}, q {r.q:.1g}"
            for r in shown.itertuples()
        )
        text = (
            f"{early[c]:.0%} of voxels in early areas, all {in_early:.0%}"
            if early[c] >= MOSTLY
            else text
        )
        size, where = named.sizes[c], areas[c].replace(clusters.UNNAMED, "none")
        lab.record(
            "cluster_size", size, f"{named.method}: {named.titles[c]}", n=len(voxels), unit="voxels"
        )
        rows.append(
            {
                "cluster": c + 1,
                "name": name,
                "voxels": size,
                "subjects": len(mine),
                "largest subject": mine.max(),
                "areas": where,
                "evidence": text,
            }
        )
    n_named = sum(name != clusters.UNNAMED for name in named.names)
    lab.record(
        "named_clusters",
        n_named / max(named.n_clusters, 1),
        named.method,
        n=named.n_clusters,
        unit="share",
    )
    table = pd.DataFrame(rows).set_index("cluster")
    if all(s in truth.subjects(lab.crowd) for s in lab.subjects):
        fields = pd.concat(
            [truth.voxels(lab.crowd, s)[["x", "y", "sigma"]] for s in lab.subjects],
            ignore_index=True,
        )
        fields.insert(2, "eccentricity", np.hypot(fields["x"], fields["y"]))
        means = fields.groupby(named.labels).mean().drop(index=clusters.OUTLIER, errors="ignore")
        table[[f"true {q} (degrees)" for q in means]] = means.to_numpy()
    return table


def composition(named: Clustering, voxels: pd.DataFrame, column: str) -> pd.DataFrame:
    """Of the voxels of each area, type or subject, the share in each cluster: (n_groups,
    n_clusters).
    """
    titles = np.array([*named.titles, "outliers"])[named.labels]
    order = [t for t in [*named.titles, "outliers"] if t in set(titles)]
    groups = voxels[column]
    return pd.crosstab(groups, titles, normalize="index").reindex(
        index=list(dict.fromkeys(groups)), columns=order
    )


def reliable(lab: Lab, encoder: UniversalEncoder, level: float = 0.05) -> NDArray[np.bool_]:
    """Voxels whose val responses the encoder predicts above chance: (n_voxels,) of all subjects.

    One-sided test of the correlation over the val images, p < `level` without correction: a filter,
    not a finding.
    """
    parts = []
    for s in lab.subjects:
        rows = lab.crowd[s].image_rows("val")
        r = scores.correlation(
            predict.predict(encoder, lab.source, s, rows), lab.crowd[s].responses("val")
        )
        free = len(rows) - 2
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
    One row per pair of choices: fitted on, scored on, n_voxels, and the columns of `known_table`.
    """
    e, everyone = pooled(embeddings), np.ones(len(keep), dtype=bool)
    if keep.sum() <= full.n_clusters:
        return pd.DataFrame()
    strict = clusters.kmeans(e[keep], full.n_clusters, lab.profile.clusters.restarts, lab.seed)
    lab.record(
        "reliable_voxels",
        float(keep.mean()),
        "val correlation, p < 0.05",
        n=len(keep),
        unit="share",
    )
    rows = []
    for fitted, labels in (
        ("all voxels", full.labels),
        ("reliable voxels", clusters.assign(strict, e)),
    ):
        for scored, which in (("all voxels", everyone), ("reliable voxels", keep)):
            known = known_table(
                lab, labels[which], voxels[which], f"fitted on {fitted}, scored on {scored}"
            )
            rows.append(
                {
                    "fitted on": fitted,
                    "scored on": scored,
                    "voxels": int(which.sum()),
                    **dict(zip("ARI with " + known["known"], known["ARI"], strict=True)),
                }
            )
    return pd.DataFrame(rows).set_index(["fitted on", "scored on"])


def largest_category_cluster(named: Clustering, voxels: pd.DataFrame) -> int:
    """The largest cluster that lies mostly outside of the early visual areas, as far as areas are
    known.
    """
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
    lab.record(
        "sub_clusters",
        found.n_clusters,
        named.titles[cluster],
        n=int(inside.sum()),
        unit="clusters",
    )
    lab.record("sub_cluster_stability", stability, named.titles[cluster], n=size.runs, unit="ARI")
    return (
        Clustering(f"k-means within {named.titles[cluster]}", found.centres, labels, found.names),
        stability,
    )


def split_evidence(
    lab: Lab,
    parts: Clustering,
    profile: NDArray[np.float64],
    rows: NDArray[np.int64],
    voxels: pd.DataFrame,
) -> tuple[Clustering, NDArray[np.float64], pd.DataFrame]:
    """Name sub-clusters by the images that they prefer more than their whole cluster does.

    Parameters
    ----------
    profile : (n_sub_clusters, n_images), from `profiles`.

    Returns
    -------
    The sub-clusters, named; what each predicts beyond the mean of the whole cluster,
    (n_sub_clusters, n_images); and the table of `cluster_table`.
    """
    beyond = profile - parts.sizes @ profile / parts.sizes.sum()
    named, on_images, in_areas = evidence(lab, parts, voxels, beyond, rows)
    return named, beyond, cluster_table(lab, named, on_images, in_areas, voxels)


def outlines(voxels: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Voxels from which the outlines of areas on each subject are drawn: its own if dense, those
    of everybody if not.
    """
    known = voxels[(voxels["vertex"] >= 0) & (voxels["area"] != "none")]
    own = {s: known[known["subject"] == s] for s in dict.fromkeys(voxels["subject"])}
    return {s: mine if len(mine) >= DENSE else known for s, mine in own.items()}


def verdict(
    named: Clustering,
    counts: pd.DataFrame,
    seeds: pd.DataFrame,
    held_out: pd.DataFrame,
    methods: pd.DataFrame,
    parts: Clustering,
    stability: float,
    voxels: pd.DataFrame,
    known: pd.DataFrame,
) -> str:
    """What the recorded numbers say about the claims, in words.

    Parameters
    ----------
    counts, seeds, held_out, methods : from `choose_count`, `seed_table`, `held_out_table` and
        `method_table`.
    parts, stability : from `split`.
    voxels, known : from `gather` and `yardstick`.
    """
    n_named = sum(name != clusters.UNNAMED for name in named.names)
    lines = [f"{named.n_clusters} clusters, {n_named} named by evidence: {', '.join(named.titles)}"]
    silhouette = counts.set_index("n_clusters")["silhouette"]
    true = (
        f", {known.loc['true types', 'silhouette']:.2f} for the true types"
        if "true types" in known.index
        else ""
    )
    lines.append(
        f"silhouette {silhouette.get(named.n_clusters, np.nan):.2f} at this number,"
        f" {silhouette.min():.2f} to {silhouette.max():.2f} at all numbers tried{true}"
    )
    if (voxels["type"] != "").any():
        lines.append(
            f"names against the truth, by the most frequent type: {_true_words(named, voxels)}"
        )
    low, high = seeds.min(), seeds.max()
    lines += [
        f"k-means, {column}: {low[column]:.3f} to {high[column]:.3f} over {len(seeds)} starts on"
        " the same embeddings"
        for column in seeds
    ]
    if "ARI with areas" in known.columns:
        lines.append(
            "the true types themselves reach an ARI with areas of"
            f" {known['ARI with areas'].iloc[0]:.2f}"
        )
    if len(held_out):
        worst = held_out["ARI"].idxmin()
        lines.append(
            f"held-out subjects: ARI {held_out['ARI'].min():.2f} ({worst}) to"
            f" {held_out['ARI'].max():.2f}"
        )
    for method, row in methods.iterrows():
        lines.append(
            f"{method}: {row['clusters']:.0f} clusters, {row['outliers']:.0%} outliers, "
            f"ARI with k-means {row['ARI with k-means']:.2f}"
        )
    says = "stable" if stability >= STABLE else "not stable, so no finding"
    lines.append(
        f"{parts.method}: {parts.n_clusters} sub-clusters, stability {stability:.2f} (ARI between"
        f" runs; good from {STABLE}): {says}"
    )
    return "\n".join(lines)


def _true_words(named: Clustering, voxels: pd.DataFrame) -> str:
    """Each cluster that is named, and not early, with the true type of most of its voxels."""
    words = []
    for c, (name, title) in enumerate(zip(named.names, named.titles, strict=True)):
        if name != clusters.UNNAMED and not name.startswith("early"):
            types = voxels["type"][named.labels == c].value_counts(normalize=True)
            words.append(f"{title}: {types.index[0]} {types.iloc[0]:.0%}")
    return ", ".join(words) or "none is named"


def _n_top(lab: Lab, rows: NDArray[np.int64]) -> int:
    return min(lab.profile.clusters.top, len(rows) // 2)
