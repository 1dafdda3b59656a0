"""Retrieval: does a measured response find its image among many, by the responses that the encoder
predicts for them?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain import predict, scores
from ubrain.analysis import stats
from ubrain.crowd import Subject
from ubrain.model import UniversalEncoder
from ubrain.report.lab import CROWD, Lab
from ubrain.report.studies.scoring import Predictions

KS = (1, 5)
AT_RANDOM, BY_VAL = "chosen at random", "best on the val images"
ALL_VOXELS = "all voxels of the area"
OWN, SAME_AREA, OTHER_SUBJECT, ANY_VOXEL, MEAN = CONTROLS = (
    "right voxels",
    "wrong voxels, same area",
    "another subject, same area",
    "wrong voxels, any area",
    "mean response",
)
Array = NDArray[np.float64]
# subject -> (n_images, len(KS)): how often each image was found among the k best
Found = Mapping[str, Array]


@dataclass(frozen=True)
class Example:
    """One query: the rank of its image (0 is best), and the images found, best first, with their
    similarity.
    """

    query: int
    rank: int
    found: NDArray[np.int64]
    similarity: Array


class Search:
    """All measured responses searching all predicted ones: the similarity of
    `ubrain.scores.retrieval_ranks`.

    Everything that depends on the voxels is computed once, so that searching a part of the gallery
    costs (n_images, n_images) numbers, however many voxels there are.

    Parameters
    ----------
    predicted, measured : (n_images, n_voxels)
        A voxel with a NaN anywhere is left out.
    """

    def __init__(self, predicted: ArrayLike, measured: ArrayLike) -> None:
        p, m = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
        keep = ~(np.isnan(p).any(0) | np.isnan(m).any(0))
        p, m = p[:, keep] - p[:, keep].mean(0), m[:, keep] - m[:, keep].mean(1, keepdims=True)
        p -= p.mean(1, keepdims=True)
        norm = np.linalg.norm(m, axis=1, keepdims=True)
        # (n_queries, n_gallery)
        self._products = np.divide(m, norm, out=np.zeros_like(m), where=norm > 1e-12) @ p.T
        self._gram = p @ p.T

    def similarity(self, images: NDArray[np.int64] | None = None) -> Array:
        """Correlation across voxels of the responses with the predictions of a gallery, (n_queries,
        n_gallery).

        Predictions are centred over the gallery; `images` are the rows that make it up, and the
        queries (default: all).
        """
        images = np.arange(len(self._gram)) if images is None else images
        products, gram = self._products[np.ix_(images, images)], self._gram[np.ix_(images, images)]
        square = np.diag(gram) - 2 * gram.mean(1) + gram.mean()
        above = square > 1e-12 * max(float(np.diag(self._gram).max()), 1e-12)
        norm = np.sqrt(np.where(above, square, 1.0))
        return np.where(above, (products - products.mean(1, keepdims=True)) / norm, 0.0)

    def ranks(self, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Rank of each query's own image in the gallery, 0 is best; ties count against it:
        (n_queries,).
        """
        similarity = self.similarity(images)
        return (similarity >= np.diag(similarity)[:, None] - 1e-12).sum(1) - 1


def table(lab: Lab, predictions: Predictions) -> pd.DataFrame:
    """Top-1 and top-5 among all test images for each condition and subject, and their mean over
    subjects; recorded.

    Returns
    -------
    One row per condition and subject ("all" last): condition, subject, gallery, top1, top1_low,
    top1_high, top5, ...
    """
    rows = []
    for condition, by_subject in predictions.items():
        found = {s: hits(p, lab.measured(s)) for s, p in by_subject.items()}
        rows += summarise(lab, found, condition)
    return pd.DataFrame(rows)


def gains(lab: Lab, predictions: Predictions, of: str, over: str) -> pd.DataFrame:
    """Paired gain in top-1 and top-5 of one condition over another, for each subject and their
    mean; recorded.
    """
    found = {}
    for s in predictions[of]:
        measured = lab.measured(s)
        found[s] = hits(predictions[of][s], measured) - hits(predictions[over][s], measured)
    return pd.DataFrame(summarise(lab, found, f"{of} − {over}", "gain_top{k}"))


def gallery_curve(lab: Lab, predictions: Predictions, sizes: Sequence[int]) -> pd.DataFrame:
    """Top-1 and top-5 in galleries of growing size; recorded.

    A gallery is drawn from the test images: in each of `draws` rounds, the images are shuffled and
    cut into galleries, so that each image takes part about equally often. The last size is all test
    images (of the subject that has fewest).

    Returns
    -------
    One row per condition, size and subject ("all" is their mean): line (the condition), gallery,
    subject, top1, ...
    """
    rows = []
    least = min(len(lab.crowd[s].image_rows("test")) for s in lab.subjects)
    for condition, by_subject in predictions.items():
        searches = {s: Search(p, lab.measured(s)) for s, p in by_subject.items()}
        for size in [n for n in sizes if n < least] + [least]:
            found = {s: drawn_galleries(lab, search, size) for s, search in searches.items()}
            name = f"top{{k}} of {size} images"
            rows += summarise(lab, found, condition, name, gallery=size, line=condition)
    return pd.DataFrame(rows)


def voxel_curve(
    lab: Lab, encoder: UniversalEncoder, predicted: Mapping[str, NDArray], counts: Sequence[int]
) -> pd.DataFrame:
    """Top-1 and top-5 with few voxels, drawn at random or best predicted on the val images;
    recorded.

    The last count is all voxels of the subject that has fewest.

    Returns
    -------
    One row per choice, count and subject ("all" is their mean): line (the choice), n_voxels,
    subject, gallery, top1, ...
    """
    rows = []
    least = min(lab.crowd[s].n_voxels for s in lab.subjects)
    best = {s: best_on_val(lab, encoder, s) for s in lab.subjects}
    measured = {s: lab.measured(s) for s in lab.subjects}
    for count in [n for n in counts if n < least] + [least]:
        by_val, random = {}, {}
        for s, p in predicted.items():
            random[s] = drawn_voxels(lab, p, measured[s], np.arange(p.shape[1]), count)
            by_val[s] = hits(p[:, best[s][:count]], measured[s][:, best[s][:count]])
        for line, found in ((AT_RANDOM, random), (BY_VAL, by_val)):
            name = f"top{{k}} with {count} voxels {line}"
            rows += summarise(lab, found, CROWD, name, line=line, n_voxels=count)
    return pd.DataFrame(rows)


def area_table(lab: Lab, predicted: Mapping[str, NDArray], equal: int) -> pd.DataFrame:
    """Top-1 and top-5 with the voxels of one area only: all of them, and `equal` of them drawn at
    random; recorded.

    A subject with fewer than `equal` voxels in an area is left out of it. A voxel of several areas
    counts in each.

    Returns
    -------
    One row per area and choice: area, voxels (the choice), n_voxels (mean of the subjects),
    subjects (number), gallery, top1, ... of the mean over subjects. Empty if no area is known.
    """
    measured = {s: lab.measured(s) for s in predicted}
    inside: dict[str, dict[str, NDArray[np.int64]]] = {}  # area -> subject -> voxels
    for s in predicted:
        labels = lab.crowd[s].voxels["areas"].str.split(",").explode()
        for area, of_area in labels.groupby(labels, sort=False):
            inside.setdefault(str(area), {})[s] = of_area.index.to_numpy()
    rows = []
    for area, by_subject in inside.items():
        of_area = {s: v for s, v in by_subject.items() if len(v) >= equal}
        if not area or not of_area:
            continue
        whole, drawn = {}, {}
        for s, v in of_area.items():
            p, m = predicted[s], measured[s]
            whole[s], drawn[s] = hits(p[:, v], m[:, v]), drawn_voxels(lab, p, m, v, equal)
        mean = float(np.mean([len(v) for v in of_area.values()]))
        for choice, found, n in (
            (ALL_VOXELS, whole, mean),
            (f"{equal} voxels of it", drawn, equal),
        ):
            columns: dict[str, Any] = {
                "area": area,
                "voxels": choice,
                "n_voxels": n,
                "subjects": len(found),
            }
            name = f"top{{k}} of {area}, {choice}"
            rows += summarise(lab, found, CROWD, name, only_mean=True, **columns)
    return pd.DataFrame(rows)


def control_table(
    lab: Lab, encoder: UniversalEncoder, predicted: Mapping[str, NDArray]
) -> pd.DataFrame:
    """Top-1 and top-5 when predictions lose, step by step, what a retrieval needs; recorded.

    right voxels : the predictions as they are.
    wrong voxels, same area : each measured voxel is given the prediction of a random voxel of its
        area, same subject.
    another subject, same area : ... the prediction, for the same images, of a random voxel of its
        area in another subject.
    wrong voxels, any area : ... the prediction of a random voxel of the same subject.
    mean response : ... the mean of its train responses, for every image. A tie counts against the
        true image, so nothing is ever found.

    What is drawn is drawn `draws` times. Controls by area need areas, and those by subject several
    subjects; where there are none, they are left out.

    Returns
    -------
    One row per control and subject ("all" is their mean): control, subject, gallery, top1, ...
    """
    rows = []
    for control in CONTROLS:
        found = {}
        for s in predicted:
            if wrong := wrong_predictions(lab, encoder, predicted, s, control):
                measured = lab.measured(s)
                found[s] = np.mean([hits(w, measured) for w in wrong], axis=0)
        if found:
            rows += summarise(lab, found, CROWD, f"top{{k}}, {control}", control=control)
    return pd.DataFrame(rows)


def examples(lab: Lab, predicted: ArrayLike, subject: str, n: int, hit: bool) -> list[Example]:
    """Queries drawn at random, with the seed, among those that find their image first (`hit`) or do
    not.

    Returns
    -------
    At most n examples; rows count within the subject's test images.
    """
    search = Search(predicted, lab.measured(subject))
    similarity, ranks = search.similarity(), search.ranks()
    candidates = np.flatnonzero((ranks == 0) == hit)
    drawn = np.random.default_rng(lab.seed).permutation(candidates)[:n]
    best = {q: np.argsort(-similarity[q], kind="stable")[: max(KS)] for q in drawn}
    return [Example(int(q), int(ranks[q]), best[q], similarity[q, best[q]]) for q in drawn]


def graded_images(predicted: ArrayLike, measured: ArrayLike) -> pd.DataFrame:
    """The images whose response is predicted best, as the median, and worst: correlation across
    voxels.

    Predictions are centred over the images, as for retrieval.

    Returns
    -------
    Three rows: grade ("best", "median", "worst"), row (within the test images), r.
    """
    r = np.diag(Search(predicted, measured).similarity())
    order = np.argsort(-r, kind="stable")
    rows = order[[0, len(order) // 2, -1]]
    return pd.DataFrame({"grade": ["best", "median", "worst"], "row": rows, "r": r[rows]})


def hits(predicted: NDArray, measured: NDArray) -> Array:
    """Whether each response finds its image among the k best: (n_images, len(KS)), 0 or 1."""
    return among_best(scores.retrieval_ranks(predicted, measured))


def among_best(ranks: NDArray[np.int64]) -> Array:
    """(n_images, len(KS)), 1 where the rank is among the k best."""
    return (np.asarray(ranks)[:, None] < np.array(KS)).astype(np.float64)


def summarise(
    lab: Lab,
    found: Found,
    condition: str,
    name: str = "top{k}",
    only_mean: bool = False,
    **columns: Any,
) -> list[dict[str, Any]]:
    """A row for each subject (unless `only_mean`) and one for their mean, with intervals over
    images; recorded as `name`, which begins with "gain" if differences of hits are found.
    """
    interval_of = stats.gain_in_share if name.startswith("gain") else stats.share
    images = {s: lab.crowd[s].image_rows("test") for s in found}
    each = {} if only_mean else {s: {s: of_subject} for s, of_subject in found.items()}
    rows = []
    for subject, group in [*each.items(), ("all", found)]:
        gallery = min(map(len, group.values()))
        row = {"condition": condition, "subject": subject, "gallery": gallery, **columns}
        for at, k in enumerate(KS):
            by_image = {s: of_subject[:, at] for s, of_subject in group.items()}
            share = interval_of(by_image, images)
            lab.record(name.format(k=k), share.value, condition, subject, share, unit="share")
            row |= {f"top{k}": share.value, f"top{k}_low": share.low, f"top{k}_high": share.high}
        rows.append(row)
    return rows


def drawn_galleries(lab: Lab, search: Search, size: int) -> Array:
    """How often each image was found in galleries drawn at random, (n_images, len(KS)); NaN where
    it was in none.
    """
    n = len(search.ranks())
    if size >= n:
        return among_best(search.ranks())
    rng = np.random.default_rng([lab.seed, size])
    total, count = np.zeros((n, len(KS))), np.zeros((n, 1))
    for _ in range(lab.profile.retrieval.draws):
        for images in rng.permutation(n)[: n // size * size].reshape(-1, size):
            total[images] += among_best(search.ranks(images))
            count[images] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def drawn_voxels(
    lab: Lab, predicted: NDArray, measured: NDArray, among: NDArray[np.int64], count: int
) -> Array:
    """How often each image was found by `count` voxels drawn at random, (n_images, len(KS))."""
    rng = np.random.default_rng([lab.seed, count])
    draws = lab.profile.retrieval.draws if count < len(among) else 1
    chosen = [rng.choice(among, count, replace=False) for _ in range(draws)]
    return np.mean([hits(predicted[:, v], measured[:, v]) for v in chosen], axis=0)


def best_on_val(lab: Lab, encoder: UniversalEncoder, subject: str) -> NDArray[np.int64]:
    """Voxels of a subject, the one with the highest correlation on the val images first."""
    rows = lab.crowd[subject].image_rows("val")
    r = predict.correlate(predict.Predictor(encoder, subject), lab.source, subject, rows)
    return np.argsort(-np.nan_to_num(r, nan=-2.0), kind="stable")


def wrong_predictions(
    lab: Lab,
    encoder: UniversalEncoder,
    predicted: Mapping[str, NDArray],
    subject: str,
    control: str,
) -> list[NDArray]:
    """Predictions of a control for the test images of a subject, (n_images, n_voxels) each; none
    if it cannot be had.
    """
    mine, draws = predicted[subject], lab.profile.retrieval.draws
    rng = np.random.default_rng([lab.seed, CONTROLS.index(control)])
    labels = {s: lab.crowd[s].voxels["areas"].to_numpy() for s in predicted}
    wanted = labels[subject]
    if control == OWN:
        return [mine]
    if control == ANY_VOXEL:
        return [mine[:, rng.permutation(mine.shape[1])] for _ in range(draws)]
    if control == MEAN:
        return [np.broadcast_to(train_mean(lab.crowd[subject]), mine.shape)]
    if not (wanted != "").any():
        return []
    if control == SAME_AREA:
        return [exchanged(mine, wanted, wanted, rng) for _ in range(draws)]
    others = [s for s in predicted if s != subject]
    rows = lab.crowd[subject].image_rows("test")
    theirs = {s: predict.predict(encoder, lab.source, s, rows) for s in others}
    turns = islice(cycle(others), max(draws, len(others)))
    return [exchanged(theirs[s], labels[s], wanted, rng) for s in turns]


def exchanged(
    predicted: NDArray, given: NDArray, wanted: NDArray, rng: np.random.Generator
) -> NDArray:
    """For each wanted label, the prediction of a random voxel with that label; NaN where no voxel
    has it.

    Within one subject (`given` is `wanted`) labels are permuted, so that every prediction is used
    once.
    """
    out = np.full((len(predicted), len(wanted)), np.nan, np.float32)
    for label in dict.fromkeys(wanted):
        sources, targets = np.flatnonzero(given == label), np.flatnonzero(wanted == label)
        if given is wanted:
            out[:, targets] = predicted[:, rng.permutation(sources)]
        elif len(sources):
            out[:, targets] = predicted[:, rng.choice(sources, len(targets))]
    return out


def train_mean(subject: Subject, batch: int = 256) -> NDArray[np.float64]:
    """Mean response of each voxel to the train images, (n_voxels,), read in batches."""
    rows = subject.image_rows("train")
    batches = (subject.responses_to(rows[i : i + batch]) for i in range(0, len(rows), batch))
    return np.sum([b.sum(0, dtype=np.float64) for b in batches], axis=0) / len(rows)
