"""Voxel embeddings -> clusters, their stability and their map.

Everything here works on embeddings of length 1: the length of an embedding follows how strongly and
how reliably its voxel responds, the direction says to what. The squared distance between two of
them is 2 − 2 cos of their angle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom
from sklearn.cluster import HDBSCAN, KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import (
    adjusted_rand_score,
    completeness_score,
    homogeneity_score,
    silhouette_score,
)
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from ubrain.analysis.stats import fdr
from ubrain.errors import UbrainError
from ubrain.progress import log, track

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
OUTLIER = -1
UNNAMED = "unnamed"
LARGE = 50_000  # voxels: above, k-means takes mini-batches
# voxels that the slower methods see, and on which silhouettes are computed (a tenth of these)
SAMPLE = 20_000
CHUNK = 65_536  # voxels at a time


@dataclass(frozen=True)
class Clustering:
    """Clusters of voxels, the largest first.

    Attributes
    ----------
    method : how they were found.
    centres : (n_clusters, E), means of embeddings of length 1.
    labels : (n_voxels,), the cluster of each voxel; -1 for a voxel that belongs to none.
    names : (n_clusters,), "unnamed" without evidence.
    """

    method: str
    centres: Array
    labels: Labels
    names: tuple[str, ...]

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.centres)

    @property
    def sizes(self) -> Labels:
        """Voxels in each cluster, (n_clusters,)."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.n_clusters)

    @property
    def members(self) -> NDArray[np.bool_]:
        """Which voxels belong to which cluster, (n_clusters, n_voxels)."""
        return self.labels[None] == np.arange(self.n_clusters)[:, None]

    @property
    def titles(self) -> list[str]:
        """Number and name, if it has one, of each cluster, numbered from 1."""
        return [f"{i + 1} {name}".rstrip() for i, name in enumerate(self.names)]

    def named(self, names: Sequence[str]) -> "Clustering":
        """The same clusters with names."""
        if len(names) != self.n_clusters:
            raise UbrainError(
                f"names of clusters: expected {self.n_clusters}, one for each cluster, got"
                f" {len(names)}"
            )
        return replace(self, names=tuple(names))


def unit(embeddings: ArrayLike) -> Array:
    """Embeddings scaled to length 1.

    Parameters
    ----------
    embeddings : (n_voxels, E)

    Raises
    ------
    UbrainError
        If they are not a table of finite numbers, or one has length 0.
    """
    e = np.asarray(embeddings, dtype=np.float32)
    if e.ndim != 2 or not len(e):
        raise UbrainError(f"embeddings: expected an array (n_voxels, E), got shape {e.shape}")
    length = np.linalg.norm(e, axis=1, keepdims=True)
    bad = ~(np.isfinite(length) & (length > 0))[:, 0]
    if bad.any():
        raise UbrainError(
            f"embeddings: row {np.argmax(bad)} has length {length[np.argmax(bad), 0]}, which has no"
            " direction; expected finite numbers that are not all 0; leave that voxel out"
        )
    return e / length


def kmeans(embeddings: ArrayLike, n_clusters: int, restarts: int = 10, seed: int = 0) -> Clustering:
    """K-means, as in the paper; by mini-batches for more than 50,000 voxels.

    Parameters
    ----------
    embeddings : (n_voxels, E)
    restarts : the best of so many starts is kept.
    """
    e = _enough(unit(embeddings), n_clusters)
    if len(e) > LARGE:
        log.info("k-means of %d voxels by mini-batches", len(e))
        batch = MiniBatchKMeans(n_clusters, n_init=restarts, batch_size=10_000, random_state=seed)
        return _clustering("k-means", e, batch.fit(e).labels_, batch.cluster_centers_)
    full = KMeans(n_clusters, n_init=restarts, random_state=seed).fit(e)
    return _clustering("k-means", e, full.labels_, full.cluster_centers_)


def mixture(
    embeddings: ArrayLike, n_clusters: int, components: int = 10, restarts: int = 10, seed: int = 0
) -> Clustering:
    """Gaussian mixture with full covariances on the first principal components, fitted on at most
    20,000 voxels.

    Shapes as in `kmeans`. Clusters may be long, flat and of different size, which k-means does not
    allow.
    """
    e = _enough(unit(embeddings), n_clusters)
    rows, low = _sample(len(e), "Gaussian mixture", seed), _principal(e, components, seed)
    model = GaussianMixture(n_clusters, n_init=restarts, reg_covar=1e-4, random_state=seed).fit(
        low[rows]
    )
    return _clustering("Gaussian mixture", e, model.predict(low))


def hdbscan(
    embeddings: ArrayLike, least: int = 25, components: int = 10, seed: int = 0
) -> Clustering:
    """HDBSCAN on the first principal components: as many clusters as are dense enough, the other
    voxels are outliers.

    It sees at most 20,000 voxels. Any other joins the nearest centre, unless it is farther from it
    than 95 % of the members.

    Parameters
    ----------
    embeddings : (n_voxels, E)
    least : voxels in the smallest cluster.

    Returns
    -------
    Clustering, perhaps of no cluster at all.
    """
    e = unit(embeddings)
    rows, low = _sample(len(e), "HDBSCAN", seed), _principal(e, components, seed)
    labels = np.full(len(e), OUTLIER)
    if len(rows) >= 2 * least:
        labels[rows] = HDBSCAN(min_cluster_size=least, copy=True).fit(low[rows]).labels_
    if len(rows) < len(e) and labels.max() >= 0:
        others = np.setdiff1d(np.arange(len(e)), rows)
        centres = _means(low, labels)
        near, distance = _nearest(low, centres)
        reach = [np.quantile(distance[labels == c], 0.95) for c in range(len(centres))]
        labels[others] = np.where(
            distance[others] <= np.array(reach)[near[others]], near[others], OUTLIER
        )
    return _clustering("HDBSCAN", e, labels)


def assign(clustering: Clustering, embeddings: ArrayLike) -> Labels:
    """The cluster whose centre is nearest, for voxels that the clustering need not have seen.

    For k-means these are the labels of its own voxels; for the other methods an approximation of
    them, without outliers.

    Parameters
    ----------
    embeddings : (n_voxels, E), of the same encoder.

    Returns
    -------
    (n_voxels,)
    """
    e = unit(embeddings)
    if not clustering.n_clusters or e.shape[1] != clustering.centres.shape[1]:
        raise UbrainError(
            f"clusters: the centres are {clustering.centres.shape} (n_clusters, E), the embeddings"
            f" {e.shape}; expected at least one cluster, and embeddings of the encoder that was"
            " clustered"
        )
    return _nearest(e, clustering.centres)[0]


def count_table(
    embeddings: ArrayLike,
    counts: Sequence[int],
    runs: int = 5,
    share: float = 0.8,
    restarts: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """How well k-means does with different numbers of clusters.

    Each run has a seed of its own and sees a random `share` of the voxels; the others join the
    nearest centre.

    Returns
    -------
    One row per number: n_clusters; stability, the mean ARI (adjusted Rand index) between two runs;
    low and high, the smallest and the largest of these; silhouette, the mean over runs, on a sample
    of voxels.
    """
    e, rng = unit(embeddings), np.random.default_rng(seed)
    sample = rng.permutation(len(e))[: SAMPLE // 10]
    usable = [k for k in counts if 2 <= k < min(len(sample), int(share * len(e)))]
    if not usable:
        raise UbrainError(
            f"numbers of clusters {tuple(counts)}: none lies between 2 and the number of voxels"
            f" ({len(e)})"
        )
    rows = []
    for k in track(usable, len(usable), "number of clusters"):
        parts = [rng.permutation(len(e))[: int(share * len(e))] for _ in range(runs)]
        labels = [assign(kmeans(e[part], k, restarts, seed + i), e) for i, part in enumerate(parts)]
        same = pair_agreement(labels)
        silhouettes = [
            silhouette_score(e[sample], some[sample])
            for some in labels
            if len(np.unique(some[sample])) > 1
        ]
        rows.append(
            {
                "n_clusters": k,
                "stability": same.mean(),
                "low": same.min(),
                "high": same.max(),
                "silhouette": np.mean(silhouettes),
            }
        )
    return pd.DataFrame(rows)


def silhouette(embeddings: ArrayLike, groups: ArrayLike, seed: int = 0) -> float:
    """Silhouette of groups of voxels, on a sample of them; embeddings (n_voxels, E) are scaled to
    length 1.
    """
    e, labels = unit(embeddings), np.asarray(groups)
    sample = np.random.default_rng(seed).permutation(len(e))[: SAMPLE // 10]
    return (
        float(silhouette_score(e[sample], labels[sample]))
        if len(np.unique(labels[sample])) > 1
        else np.nan
    )


def best_count(table: pd.DataFrame, tolerance: float = 0.9) -> int:
    """The number of clusters with the highest silhouette among those nearly as stable as the most
    stable one.

    Parameters
    ----------
    table : from `count_table`.
    tolerance : "nearly": at least this times the highest stability.
    """
    stable = table[table["stability"] >= tolerance * table["stability"].max()]
    return int(stable.loc[stable["silhouette"].idxmax(), "n_clusters"])


def pair_agreement(labels: Sequence[Labels]) -> NDArray[np.float64]:
    """ARI of every pair of clusterings of the same voxels, (n_pairs,)."""
    return np.array([adjusted_rand_score(a, b) for a, b in combinations(labels, 2)])


def without_each_subject(
    embeddings: Mapping[str, ArrayLike], full: Clustering, restarts: int = 10, seed: int = 0
) -> dict[str, float]:
    """Do the clusters of the others hold for a subject: centres are fitted without it, its voxels
    join the nearest.

    Parameters
    ----------
    embeddings : subject -> (n_voxels, E), in the order in which `full` has seen them.

    Returns
    -------
    subject -> ARI between these labels and those of `full`; empty for a single subject.
    """
    ends = np.cumsum([len(np.asarray(e)) for e in embeddings.values()])
    own = dict(zip(embeddings, np.split(full.labels, ends[:-1]), strict=True))
    found = {}
    for s in embeddings if len(embeddings) > 1 else ():
        others = np.concatenate([np.asarray(e) for name, e in embeddings.items() if name != s])
        fitted = kmeans(others, full.n_clusters, restarts, seed)
        found[s] = float(adjusted_rand_score(own[s], assign(fitted, embeddings[s])))
    return found


def agreement(labels: ArrayLike, known: ArrayLike) -> dict[str, float]:
    """How well clusters agree with known groups: ARI, homogeneity, completeness.

    Homogeneity is 1 if a cluster has voxels of one group only, completeness if a group is in one
    cluster only (Rosenberg & Hirschberg 2007).

    Parameters
    ----------
    labels, known : (n_voxels,); an outlier (-1) counts as a group of its own kind.
    """
    a, b = np.asarray(labels), np.asarray(known)
    measures = {
        "ARI": adjusted_rand_score,
        "homogeneity": homogeneity_score,
        "completeness": completeness_score,
    }
    return {name: float(measure(b, a)) for name, measure in measures.items()}


def profile(predicted: ArrayLike, labels: ArrayLike, n_clusters: int) -> NDArray[np.float64]:
    """Sum over the voxels of each cluster of their predicted responses, each voxel z-scored over
    the images.

    Parameters
    ----------
    predicted : (n_images, n_voxels)
    labels : (n_voxels,)

    Returns
    -------
    (n_clusters, n_images); add up those of several subjects, divide by the number of voxels.
    """
    p, labels = np.asarray(predicted, dtype=np.float64), np.asarray(labels)
    spread = p.std(0)
    z = np.divide(p - p.mean(0), spread, out=np.zeros_like(p), where=spread > 1e-12)
    return (
        np.stack([z[:, labels == c].sum(1) for c in range(n_clusters)])
        if n_clusters
        else np.empty((0, len(p)))
    )


def enrichment(members: NDArray[np.bool_], features: pd.DataFrame) -> pd.DataFrame:
    """Is a feature more frequent among the items of a set than among all items: hypergeometric
    test, one-sided.

    Parameters
    ----------
    members : (n_sets, n_items), top images of clusters, say, or their voxels.
    features : (n_items, n_features) booleans, a column per feature.

    Returns
    -------
    One row per set and feature: cluster, feature, n (items of the set with it), share, expected
    (share among all), fold (share / expected), p, and q, p adjusted for the false discovery rate
    over all rows.

    Notes
    -----
    The test takes items as independent draws. Neighbouring voxels are not: read p values of areas
    as an order.
    """
    has = features.to_numpy(dtype=bool)
    hits, size, total = (
        members.astype(int) @ has.astype(int),
        members.sum(1)[:, None],
        has.sum(0)[None],
    )
    p = hypergeom.sf(hits - 1, len(has), total, size)
    share, expected = (
        hits / np.maximum(size, 1),
        np.broadcast_to(total / max(len(has), 1), hits.shape),
    )
    fold = np.divide(share, expected, out=np.full(share.shape, np.nan), where=expected > 0)
    index = pd.MultiIndex.from_product(
        [range(len(members)), features.columns], names=["cluster", "feature"]
    )
    columns = {"n": hits, "share": share, "expected": expected, "fold": fold, "p": p}
    table = pd.DataFrame(
        {name: values.ravel() for name, values in columns.items()}, index=index
    ).reset_index()
    return table.assign(q=fdr(table["p"]) if len(table) else [])


def names(
    table: pd.DataFrame,
    n_clusters: int,
    least_share: float,
    most: int = 2,
    level: float = 0.05,
    kinds: Mapping[str, str] | None = None,
    given: Mapping[str, pd.DataFrame] | None = None,
) -> list[str]:
    """Names from evidence: features with q < `level` that at least `least_share` of the items have,
    most certain first.

    Parameters
    ----------
    table : from `enrichment`.
    most : features in a name.
    kinds : feature -> its kind; of features of one kind, which may contain one another, a name
        takes the most certain.
    given : feature -> the same table for the items with that feature only. If the first word of a
        name is among them, any other must hold there, too.
    """

    def certain(table: pd.DataFrame) -> pd.DataFrame:
        good = table[(table["q"] < level) & (table["share"] >= least_share)]
        return good.sort_values(["p", "fold"], ascending=[True, False])

    good, given = certain(table), given or {}
    good = good[
        ~good.assign(kind=good["feature"].replace(dict(kinds or {}))).duplicated(
            ["cluster", "kind"]
        )
    ]
    found = []
    for c in range(n_clusters):
        words = good[good["cluster"] == c]["feature"].tolist()
        if words and words[0] in given:
            also = certain(given[words[0]])
            also = also[also["cluster"] == c]["feature"].tolist()
            words = [w for w in words if w == words[0] or w in also]
        found.append(" + ".join(words[:most]) or UNNAMED)
    return found


def map_2d(
    embeddings: ArrayLike, sample: int = SAMPLE, perplexity: float = 30, seed: int = 0
) -> NDArray[np.float64]:
    """A map of the embeddings: t-SNE, started at the first two principal components.

    Parameters
    ----------
    embeddings : (n_voxels, E)
    sample : t-SNE sees so many voxels; any other is put in the middle of its five nearest among
        them.

    Returns
    -------
    (n_voxels, 2). Only what is near is meaningful, neither distances between groups nor the axes.
    """
    e = unit(embeddings)
    rows = _sample(len(e), "t-SNE", seed, sample)
    low = _principal(e, 50, seed)
    model = TSNE(perplexity=min(perplexity, (len(rows) - 1) / 3), init="pca", random_state=seed)
    placed = model.fit_transform(low[rows]).astype(np.float64)
    if len(rows) == len(e):
        return placed[np.argsort(rows)]
    near = NearestNeighbors(n_neighbors=min(5, len(rows))).fit(low[rows])
    out = np.concatenate(
        [placed[near.kneighbors(part, return_distance=False)].mean(1) for part in _chunks(low)]
    )
    out[rows] = placed
    return out


def _clustering(
    method: str, e: Array, labels: NDArray, centres: NDArray | None = None
) -> Clustering:
    """Clusters renumbered by size; those without voxels are left out."""
    sizes = np.bincount(labels[labels >= 0], minlength=labels.max(initial=-1) + 1)
    order = [c for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    number = np.full(len(sizes) + 1, OUTLIER)  # its last entry is that of the label -1
    number[order] = np.arange(len(order))
    labels = number[labels].astype(np.int64)
    found = _means(e, labels) if centres is None else centres[order]
    return Clustering(method, found.astype(np.float32), labels, (UNNAMED,) * len(order))


def _means(x: Array, labels: NDArray) -> Array:
    return np.array([x[labels == c].mean(0) for c in range(labels.max(initial=-1) + 1)]).reshape(
        -1, x.shape[1]
    )


def _nearest(x: Array, centres: Array) -> tuple[Labels, NDArray[np.float64]]:
    """Nearest centre of each row and the distance to it."""
    labels, distances = [], []
    for part in _chunks(x):
        squared = (part**2).sum(1, keepdims=True) - 2 * part @ centres.T + (centres**2).sum(1)
        labels.append(squared.argmin(1))
        distances.append(np.sqrt(np.maximum(squared.min(1), 0)))
    return np.concatenate(labels).astype(np.int64), np.concatenate(distances)


def _chunks(x: Array) -> list[Array]:
    return [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]


def _principal(e: Array, components: int, seed: int) -> Array:
    components = min(components, *e.shape)
    return PCA(components, random_state=seed).fit_transform(e)


def _sample(n: int, method: str, seed: int, most: int = SAMPLE) -> Labels:
    """Rows that a slow method sees: all, or `most` at random, with a note."""
    if n <= most:
        return np.arange(n)
    log.info("%s: on a random sample of %d of %d voxels", method, most, n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def _enough(e: Array, n_clusters: int) -> Array:
    if not 1 <= n_clusters <= len(e):
        raise UbrainError(
            f"expected between 1 and {len(e)} clusters, as many as there are voxels, got"
            f" {n_clusters}"
        )
    return e
