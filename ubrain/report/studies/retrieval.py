"""Retrieval: does a measured response find its image among many, by the responses that the encoder
predicts for them?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain import predict, scores
from ubrain.analysis import stats
from ubrain.crowd import Subject
from ubrain.model import UniversalEncoder
from ubrain.report.lab import CROWD, Lab, Predictions

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
Found = Mapping[
    str, Array
]  # subject -> (n_images, len(KS)): how often each image was found among the k best


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
        found = {
            s: _hits(scores.retrieval_ranks(p, lab.measured(s))) for s, p in by_subject.items()
        }
        rows += _rows(lab, found, condition)
    return pd.DataFrame(rows)


def gains(lab: Lab, predictions: Predictions, of: str, over: str) -> pd.DataFrame:
    """Paired gain in top-1 and top-5 of one condition over another, for each subject and their
    mean; recorded.
    """
    hits = [
        {s: _hits(scores.retrieval_ranks(p, lab.measured(s))) for s, p in predictions[c].items()}
        for c in (of, over)
    ]
    return pd.DataFrame(
        _rows(lab, {s: hits[0][s] - hits[1][s] for s in hits[0]}, f"{of} − {over}", "gain_top{k}")
    )


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
            found = {s: _drawn_galleries(lab, search, size) for s, search in searches.items()}
            rows += _rows(
                lab, found, condition, f"top{{k}} of {size} images", gallery=size, line=condition
            )
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
    order = {s: _best_on_val(lab, encoder, s) for s in lab.subjects}
    measured = {s: lab.measured(s) for s in lab.subjects}
    for count in [n for n in counts if n < least] + [least]:
        random = {
            s: _drawn_voxels(lab, p, measured[s], np.arange(p.shape[1]), count)
            for s, p in predicted.items()
        }
        best = {
            s: _hits(
                scores.retrieval_ranks(p[:, order[s][:count]], measured[s][:, order[s][:count]])
            )
            for s, p in predicted.items()
        }
        for line, found in ((AT_RANDOM, random), (BY_VAL, best)):
            name = f"top{{k}} with {count} voxels {line}"
            rows += _rows(lab, found, CROWD, name, line=line, n_voxels=count)
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
    rows = []
    members = {s: _areas(lab.crowd[s]) for s in predicted}
    measured = {s: lab.measured(s) for s in predicted}
    for area in dict.fromkeys(a for by_area in members.values() for a in by_area):
        inside = {
            s: by_area[area]
            for s, by_area in members.items()
            if len(by_area.get(area, ())) >= equal
        }
        if not inside:
            continue
        found = {
            s: _hits(scores.retrieval_ranks(predicted[s][:, v], measured[s][:, v]))
            for s, v in inside.items()
        }
        drawn = {
            s: _drawn_voxels(lab, predicted[s], measured[s], v, equal) for s, v in inside.items()
        }
        for choice, hits in ((ALL_VOXELS, found), (f"{equal} voxels of it", drawn)):
            n = float(np.mean([len(v) for v in inside.values()])) if choice == ALL_VOXELS else equal
            rows += _rows(
                lab,
                hits,
                CROWD,
                f"top{{k}} of {area}, {choice}",
                only_all=True,
                area=area,
                voxels=choice,
                n_voxels=n,
                subjects=len(inside),
            )
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
            wrong = _wrong_predictions(lab, encoder, predicted, s, control)
            if wrong:
                measured = lab.measured(s)
                found[s] = np.mean(
                    [_hits(scores.retrieval_ranks(w, measured)) for w in wrong], axis=0
                )
        if found:
            rows += _rows(lab, found, CROWD, f"top{{k}}, {control}", control=control)
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


def places(subject: Subject) -> pd.DataFrame:
    """Voxel table of a subject on fsaverage5; empty if it is elsewhere."""
    on_surface = subject.space == "fsaverage5" and "vertex" in subject.voxels
    return subject.voxels if on_surface else pd.DataFrame()


def verdict(
    scored: pd.DataFrame,
    gained: pd.DataFrame,
    gallery: pd.DataFrame,
    voxels: pd.DataFrame,
    by_area: pd.DataFrame,
    controlled: pd.DataFrame,
) -> str:
    """What these numbers say, in words."""
    mean = scored[scored["subject"] == "all"].set_index("condition")
    crowds = scored[(scored["condition"] == CROWD) & (scored["subject"] != "all")]
    shows = (crowds["top1_low"] > 1 / crowds["gallery"]).sum()
    lines = [
        f"the claim, a response tells which image was seen, shows in {shows} of {len(crowds)}"
        " subjects (top-1 above chance by its interval)"
    ]
    lines += [
        f"{condition}: top-1 {_percent(row, 1)}, top-5 {_percent(row, 5)} among"
        f" {row['gallery']:.0f} images; chance is {100 / row['gallery']:.1f} % and"
        f" {500 / row['gallery']:.1f} %"
        for condition, row in mean.iterrows()
    ]
    each = gained[gained["subject"] != "all"]
    whole = gained[gained["subject"] == "all"].iloc[0]
    lines.append(
        f"crowd − alone, top-1: {100 * whole['top1']:+.1f} [{100 * whole['top1_low']:+.1f}, "
        f"{100 * whole['top1_high']:+.1f}] percentage points; interval above 0 in "
        f"{(each['top1_low'] > 0).sum()} of {len(each)} subjects"
    )
    lines += [
        *_gallery_words(gallery),
        *_voxel_words(voxels, mean),
        *_area_words(by_area, mean),
        *_control_words(controlled),
    ]
    return "\n".join(lines)


def _gallery_words(gallery: pd.DataFrame) -> list[str]:
    mine = gallery[(gallery["line"] == CROWD) & (gallery["subject"] == "all")].sort_values(
        "gallery"
    )
    small, large = mine.iloc[0], mine.iloc[-1]
    return [
        f"larger galleries: top-1 goes from {_percent(small, 1)} of {small['gallery']:.0f} to"
        f" {_percent(large, 1)} of {large['gallery']:.0f}; it is"
        f" {small['top1'] * small['gallery']:.0f} and {large['top1'] * large['gallery']:.0f} times"
        " chance"
    ]


def _voxel_words(voxels: pd.DataFrame, mean: pd.DataFrame) -> list[str]:
    lines = []
    for line in (AT_RANDOM, BY_VAL):
        mine = voxels[(voxels["line"] == line) & (voxels["subject"] == "all")].sort_values(
            "n_voxels"
        )
        enough = mine[mine["top1"] >= 0.9 * mean.loc[CROWD, "top1"]]["n_voxels"]
        text = (
            f"{enough.min()} are the fewest of those tried that reach"
            if len(enough)
            else "no number tried reaches"
        )
        fewer = mine[mine["n_voxels"] < enough.min()]  # NaN if there are none
        before = (
            f" ({fewer['n_voxels'].iloc[-1]} give {_percent(fewer.iloc[-1], 1)})"
            if len(fewer)
            else ""
        )
        lines.append(f"voxels {line}: {text} 90 % of the top-1 of all voxels{before}")
    return lines


def _area_words(by_area: pd.DataFrame, mean: pd.DataFrame) -> list[str]:
    if not len(by_area):
        return ["areas: this crowd file names none, or too few of their voxels"]
    whole = by_area[by_area["voxels"] == ALL_VOXELS].set_index("area")
    equal = by_area[by_area["voxels"] != ALL_VOXELS].set_index("area")
    best, worst, per_voxel = whole["top1"].idxmax(), whole["top1"].idxmin(), equal["top1"].idxmax()
    ahead = list(whole.index[whole["top1"] >= mean.loc[CROWD, "top1"]])
    return [
        (
            f"one of {len(whole)} areas only: best {best} {_percent(whole.loc[best], 1)}, worst"
            f" {worst} {_percent(whole.loc[worst], 1)}; areas that do as well as all voxels"
            f" together: {', '.join(ahead) or 'none'}"
        ),
        (
            f"one area, {equal['n_voxels'].iloc[0]:.0f} voxels each: best {per_voxel}"
            f" {_percent(equal.loc[per_voxel], 1)}"
        ),
    ]


def _control_words(controlled: pd.DataFrame) -> list[str]:
    mean = controlled[controlled["subject"] == "all"].set_index("control")
    lines = []
    for control in (c for c in CONTROLS[1:] if c in mean.index):
        row = mean.loc[control]
        chance = 1 / row["gallery"]
        if control == MEAN:
            lines.append(
                f"{control}: top-1 {_percent(row, 1)}; it cannot find anything, since a tie counts"
                " as a miss"
            )
            continue
        where = (
            "above"
            if row["top1_low"] > chance
            else "below"
            if row["top1_high"] < chance
            else "not apart from"
        )
        lines.append(f"{control}: top-1 {_percent(row, 1)}, {where} chance ({100 * chance:.1f} %)")
    missing = [c for c in CONTROLS if c not in mean.index]
    return lines + (
        [f"not shown here, for want of areas or subjects: {'; '.join(missing)}"] if missing else []
    )


def _percent(row: Any, k: int) -> str:
    return (
        f"{100 * row[f'top{k}']:.1f} % [{100 * row[f'top{k}_low']:.1f},"
        f" {100 * row[f'top{k}_high']:.1f}]"
    )


def _hits(ranks: NDArray[np.int64]) -> Array:
    """(n_images, len(KS)), 1 where the image is among the k best."""
    return (np.asarray(ranks)[:, None] < np.array(KS)).astype(np.float64)


def _rows(
    lab: Lab,
    found: Found,
    condition: str,
    name: str = "top{k}",
    gallery: int | None = None,
    only_all: bool = False,
    **columns: Any,
) -> list[dict[str, Any]]:
    """A row for each subject and one for their mean, with intervals over images; recorded as
    `name`.
    """
    images = {s: lab.crowd[s].image_rows("test") for s in found}
    groups = {} if only_all else {s: {s: hits} for s, hits in found.items()}
    rows = []
    for subject, hits in [*groups.items(), ("all", found)]:
        sizes = [gallery or len(h) for h in hits.values()]
        row = {"condition": condition, "subject": subject, "gallery": min(sizes), **columns}
        for at, k in enumerate(KS):
            share = stats.bootstrap_mean_of_subjects(
                {s: h[:, at] for s, h in hits.items()}, images, lab.profile.bootstrap, lab.seed
            )
            lab.record(name.format(k=k), share.value, condition, subject, share, unit="share")
            row |= {f"top{k}": share.value, f"top{k}_low": share.low, f"top{k}_high": share.high}
        rows.append(row)
    return rows


def _drawn_galleries(lab: Lab, search: Search, size: int) -> Array:
    """How often each image was found in galleries drawn at random; NaN where it was in none.
    (n_images, len(KS))
    """
    n = len(search.ranks())
    if size >= n:
        return _hits(search.ranks())
    rng = np.random.default_rng([lab.seed, size])
    total, count = np.zeros((n, len(KS))), np.zeros((n, 1))
    for _ in range(lab.profile.retrieval.draws):
        for images in rng.permutation(n)[: n // size * size].reshape(-1, size):
            total[images] += _hits(search.ranks(images))
            count[images] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _drawn_voxels(
    lab: Lab, predicted: NDArray, measured: NDArray, among: NDArray[np.int64], count: int
) -> Array:
    """How often each image was found by `count` voxels drawn at random, (n_images, len(KS))."""
    rng = np.random.default_rng([lab.seed, count])
    draws = lab.profile.retrieval.draws if count < len(among) else 1
    chosen = [rng.choice(among, count, replace=False) for _ in range(draws)]
    return np.mean(
        [_hits(scores.retrieval_ranks(predicted[:, v], measured[:, v])) for v in chosen], axis=0
    )


def _best_on_val(lab: Lab, encoder: UniversalEncoder, subject: str) -> NDArray[np.int64]:
    """Voxels of a subject, the one with the highest correlation on the val images first."""
    r = predict.correlate(encoder, lab.source, subject, lab.crowd[subject].image_rows("val"))
    return np.argsort(-np.nan_to_num(r, nan=-2.0), kind="stable")


def _areas(subject: Subject) -> dict[str, NDArray[np.int64]]:
    """Area -> its voxels; a voxel may be in several."""
    labels = subject.voxels["areas"].str.split(",").explode()
    return {
        str(a): np.array(rows.index) for a, rows in labels[labels != ""].groupby(labels, sort=False)
    }


def _wrong_predictions(
    lab: Lab,
    encoder: UniversalEncoder,
    predicted: Mapping[str, NDArray],
    subject: str,
    control: str,
) -> list[NDArray]:
    """Predictions of a control for the test images of a subject, (n_images, n_voxels) each; none
    if it cannot be had.
    """
    mine, draws = predicted[subject], range(lab.profile.retrieval.draws)
    rng = np.random.default_rng([lab.seed, CONTROLS.index(control)])
    labels = lab.crowd[subject].voxels["areas"].to_numpy()
    if control == OWN:
        return [mine]
    if control == ANY_VOXEL:
        return [mine[:, rng.permutation(mine.shape[1])] for _ in draws]
    if control == MEAN:
        return [np.broadcast_to(_train_mean(lab.crowd[subject]), mine.shape)]
    if not (labels != "").any():
        return []
    if control == SAME_AREA:
        return [_exchanged(mine, labels, labels, rng) for _ in draws]
    others = [s for s in predicted if s != subject]
    rows = lab.crowd[subject].image_rows("test")
    theirs = {s: predict.predict(encoder, lab.source, s, rows) for s in others}
    turns = [others[i % len(others)] for i in range(max(len(draws), len(others)))] if others else []
    return [
        _exchanged(theirs[s], lab.crowd[s].voxels["areas"].to_numpy(), labels, rng) for s in turns
    ]


def _exchanged(
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


def _train_mean(subject: Subject, batch: int = 256) -> NDArray[np.float64]:
    """Mean response of each voxel to the train images, (n_voxels,), read in batches."""
    rows = subject.image_rows("train")
    batches = (subject.responses_to(rows[i : i + batch]) for i in range(0, len(rows), batch))
    return np.sum([b.sum(0, dtype=np.float64) for b in batches], axis=0) / len(rows)
