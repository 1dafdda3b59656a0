"""Newcomers: subjects that a crowd's encoder was not trained on, with few images (notebook 03)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ubrain import predict, scores, train, transfer
from ubrain.analysis import baselines, stats
from ubrain.config import SimulationConfig
from ubrain.crowd import Subject
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.report import figures
from ubrain.report.kept import kept
from ubrain.report.lab import ALONE, RIDGE, Lab, simulated_crowd

GRADIENT, MATCHING, OURS = list(figures.CONDITIONS)[4:7]
METHODS = {GRADIENT: "gradient", MATCHING: "matching", OURS: "ours"}
ENOUGH = 0.9  # of what all images give, or of the ceiling


@dataclass(frozen=True)
class Direction:
    """From a crowd to subjects that it does not have."""

    name: str
    crowd: tuple[str, ...]
    newcomers: tuple[str, ...]


def directions(lab: Lab) -> list[Direction]:
    """What this crowd file lets us try: a new subject of its dataset, other datasets, and back.

    A crowd needs two subjects. The way back starts from the largest of the other datasets.
    """
    n, main = lab.profile.transfer.newcomers, tuple(lab.subjects)
    own = lab.crowd[main[0]].dataset
    others = [tuple(s) for d, s in lab.datasets.items() if d != own and not set(s) & set(main)]
    found = []
    if len(main) > 2:
        n_crowd = len(main) - min(n, len(main) - 2)
        found.append(Direction("a new subject", main[:n_crowd], main[n_crowd:]))
    if len(main) > 1:
        found += [Direction(_arrow(lab, main, s), main, s[:n]) for s in others]
    largest = max(others, key=len, default=())
    if len(largest) > 1:
        found.append(Direction(_arrow(lab, largest, main), largest, main[-n:]))
    return found


def _arrow(lab: Lab, crowd: Sequence[str], newcomers: Sequence[str]) -> str:
    """From scanner to scanner, where scanners tell the datasets apart, else between datasets."""
    ends = [lab.crowd[s[0]] for s in (crowd, newcomers)]
    apart = len({lab.crowd[s[0]].scanner for s in lab.datasets.values()}) == len(lab.datasets)
    return " → ".join(end.scanner if apart and end.scanner else end.dataset for end in ends)


class Few(NamedTuple):
    """A newcomer as if it had seen only some images, and had only some voxels.

    Attributes
    ----------
    subject : the view; every fifth image, or at least five, is val; the test images stay.
    voxels : (n_voxels,), which of the newcomer's own.
    n_images, all_images : how many train and val images, and whether these are all.
    draw : number of the draw of the images.
    """

    subject: Subject
    voxels: NDArray[np.int64]
    n_images: int
    all_images: bool
    draw: int


def few_images(lab: Lab, subject: str, n_images: Sequence[int] | None = None) -> list[Few]:
    """A newcomer with few images, for each number of images and each draw of them.

    Draws are nested: the first 25 images are among the first 50. All images are drawn once.

    Parameters
    ----------
    n_images : numbers of images; None takes the profile's, and all. Numbers that the newcomer does
        not have are left out.

    Raises
    ------
    UbrainError
        If a number is too small for a transfer.
    """
    everything, settings = transfer.images_of(lab.crowd, subject), lab.profile.transfer
    wanted = [*settings.n_images, len(everything)] if n_images is None else n_images
    if too_few := [n for n in wanted if n < transfer.LEAST_IMAGES]:
        raise UbrainError(
            f"n_images: expected numbers of at least {transfer.LEAST_IMAGES}, got {too_few[0]}"
        )
    rng = np.random.default_rng(lab.seed)
    voxels = np.sort(rng.permutation(lab.crowd[subject].n_voxels)[: settings.voxels])
    orders = [rng.permutation(everything) for _ in range(settings.draws)]
    found = []
    for n in sorted({n for n in wanted if n <= len(everything)}):
        is_all = n == len(everything)
        for draw, order in enumerate(orders[:1] if is_all else orders):
            rows = np.sort(order[:n])
            val = np.linspace(0, n - 1, max(5, n // 5)).round().astype(int)
            images = {"train": np.delete(rows, val), "val": rows[val]}
            view = lab.crowd[subject].select(images, voxels)
            found.append(Few(view, voxels, n, is_all, draw))
    return found


class Joining:
    """A newcomer before the encoder of a crowd without it, as each of `fews` sees it.

    What a method predicts is kept (`ubrain.report.kept`); the newcomer is matched with the crowd,
    for all of `fews` at once, when a method first has to be fitted.

    Parameters
    ----------
    encoder : of the crowd.
    fews : views of one newcomer, with the same voxels.
    """

    def __init__(self, lab: Lab, encoder: UniversalEncoder, fews: Sequence[Few]) -> None:
        self.lab, self.encoder, self.fews = lab, encoder, fews

    def predicted(self, number: int, method: str) -> tuple[NDArray[np.float32], float]:
        """Test responses (n_images, n_voxels) of the newcomer as `fews[number]` sees it, as a
        method predicts them, and the seconds that its fit took.

        Parameters
        ----------
        method : a condition: ridge, the encoder from scratch, gradient, matching or ours.
        """
        lab, few = self.lab, self.fews[number]
        subject, profile, seed = few.subject, lab.profile, lab.seed + few.draw
        made_from: list[Any] = [method, subject, lab.source, seed]
        if method == RIDGE:  # without the search over levels: it takes longest and gains least here
            light = replace(profile.baselines, band_draws=0)
            made_from.append(light)
        elif method == ALONE:
            steps, n_voxels = profile.transfer.scratch_steps, subject.n_voxels
            alone = replace(profile.training, epochs=1, min_steps=steps, voxels_per_step=n_voxels)
            made_from += [profile.encoder, alone]
        else:
            made_from += [self.encoder, profile.transfer]

        def fit() -> dict[str, Any]:
            ready = None if method in (RIDGE, ALONE) else self._matched
            start, shared = time.monotonic(), 0.0
            if method == RIDGE:
                found = baselines.ridge(subject, lab.features, light, seed).predicted
            elif ready is None:
                source, name = replace(lab.source, crowd=lab.crowd.select(subject)), subject.name
                encoder = train.fit(source, [name], profile.encoder, alone, seed)
                found = predict.predict(encoder, source, name, subject.image_rows("test"))
            else:
                newcomers, test, seconds = ready
                shared = seconds * (method in (MATCHING, OURS))
                found = newcomers[number].fit(METHODS[method]).respond(test).cpu().numpy()
            return {"predicted": found, "seconds": time.monotonic() - start + shared}

        found = kept("newcomer", made_from, fit)
        return found["predicted"], found["seconds"]

    @cached_property
    def _matched(self) -> tuple[list[transfer.Newcomer], transfer.Head, float]:
        """The newcomer of each of `fews`, its test images, and seconds of matching for each."""
        lab, start = self.lab, time.monotonic()
        name, voxels = self.fews[0].subject.name, self.fews[0].voxels
        images, test = transfer.images_of(lab.crowd, name), lab.crowd[name].image_rows("test")
        data = (self.encoder, lab.source, name, images, lab.profile.transfer)
        whole = transfer.Newcomer.of(*data, voxels=voxels)
        rows = [transfer.images_of(lab.crowd.select(few.subject), name) for few in self.fews]
        seeds = [lab.seed + few.draw for few in self.fews]
        draws = zip((np.searchsorted(images, r) for r in rows), seeds, strict=True)
        newcomers, head = whole.draws(list(draws)), transfer.Head(self.encoder, lab.source, test)
        return newcomers, head, (time.monotonic() - start) / len(self.fews)


COLUMNS = [
    *("direction", "subject", "method", "draw", "n_images", "all_images", "median_r", "top1"),
    *("ceiling", "seconds", "resampled_median_r", "resampled_top1"),
]


def curves(
    lab: Lab,
    directions: Sequence[Direction],
    n_images: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Scores of every method, newcomer, number of images and draw of them; medians are recorded.

    Parameters
    ----------
    n_images : as in `few_images`.
    methods : conditions; None takes ridge, gradient, matching and ours, and for a few numbers of
        images from scratch, which costs most.

    Returns
    -------
    One row each: direction, subject, method, draw, n_images, all_images, median_r, top1, ceiling
    (median over the voxels), seconds, and resampled_median_r and resampled_top1, scores in
    resamples of images and voxels.
    """
    rows = []
    for direction in directions:
        encoder = lab.encoder(list(direction.crowd))
        for name in direction.newcomers:
            joining = Joining(lab, encoder, few_images(lab, name, n_images))
            for number, few in enumerate(joining.fews):
                scratch = few.draw == 0 and (
                    few.all_images or few.n_images in lab.profile.transfer.scratch_images
                )
                for method in methods or [RIDGE, *([ALONE] if scratch else []), *METHODS]:
                    predicted, seconds = joining.predicted(number, method)
                    where = [direction.name, name, method, few.draw, few.n_images, few.all_images]
                    rows.append([*where, *_scores(lab, predicted, few.subject, seconds)])
    table = pd.DataFrame(rows, columns=COLUMNS)
    for (name, subject, method, n), group in table.groupby(
        ["direction", "subject", "method", "n_images"], sort=False
    ):
        condition = f"{name}, {method}, {n} images"
        for score, unit in (("median_r", "r"), ("top1", "share")):
            value = group[score].mean()
            lab.record(f"transfer_{score}", value, condition, subject, n=len(group), unit=unit)
    return table


def _scores(lab: Lab, predicted: NDArray, subject: Subject, seconds: float) -> list:
    """The last columns of `curves`."""
    measured, ceiling = subject.responses("test"), np.sqrt(subject.noise_ceiling("test"))
    r = np.nan_to_num(scores.correlation(predicted, measured))
    top1 = scores.top_k(scores.retrieval_ranks(predicted, measured), 1)
    highest = float(np.nanmedian(ceiling)) if np.isfinite(ceiling).any() else np.nan
    resampled = stats.resampled_scores(predicted, measured, lab.profile.bootstrap, lab.seed)
    return [float(np.median(r)), top1, highest, seconds, *resampled]


def summarise(table: pd.DataFrame, score: str = "median_r") -> pd.DataFrame:
    """Mean over newcomers and draws with a 95 % interval over them, test images and voxels.

    Parameters
    ----------
    score : median_r or top1.

    Returns
    -------
    One row per direction, method and number of images: value, low, high, n (newcomers × draws),
    ceiling.
    """
    keys = ["direction", "method", "n_images"]
    rows = []
    for key, group in table.groupby(keys, sort=False):
        resampled = np.stack(group[f"resampled_{score}"])
        found = stats.mean_of_units(group[score], resampled)
        mean = [found.value, found.low, found.high, found.n, group["ceiling"].mean()]
        rows.append([*key, *mean])
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n", "ceiling"])


def images_needed(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """Images that a method needs for 90 % of what the paper's method reaches with all images of the
    newcomer, and for 90 % of the ceiling; recorded.

    Returns
    -------
    One row per direction and method: images for both, NaN where the curve does not get there.
    """
    rows = []
    for (direction, method), curve in summarise(table).groupby(["direction", "method"], sort=False):
        papers = table[(table["direction"] == direction) & (table["method"] == GRADIENT)]
        targets = {
            "90 % of gradient with all": papers["median_r"][papers["all_images"]].mean(),
            "90 % of the ceiling": curve["ceiling"].iloc[0],
        }
        row = {"direction": direction, "method": method}
        for what, target in targets.items():
            row[what] = reached(curve["n_images"], curve["value"], ENOUGH * target)
            lab.record(f"images for {what}", row[what], f"{direction}, {method}", unit="images")
        rows.append(row)
    return pd.DataFrame(rows)


def reached(n_images: Sequence[float], values: Sequence[float], target: float) -> float:
    """The first number of images at which a curve reaches a target; NaN if it does not.

    Between two numbers of images the curve is a straight line over the logarithm of the number. A
    curve that is there at its first number counts as that number: it may need fewer.
    """
    order = np.argsort(n_images)
    n, y = np.log(np.asarray(n_images, float))[order], np.asarray(values, float)[order]
    above = np.flatnonzero(y >= target)
    if not len(above):
        return np.nan
    i = above[0]
    return float(np.exp(n[i] if i == 0 else np.interp(target, y[i - 1 : i + 1], n[i - 1 : i + 1])))


def against_best(lab: Lab, table: pd.DataFrame, score: str = "median_r") -> pd.DataFrame:
    """Ours minus the best of ridge, gradient and matching, per direction and number of images;
    recorded.

    The best is the one that is best on average over newcomers and draws, on the test images, which
    favours it a little. The difference is paired: the same newcomers, draws, test images, voxels.

    Parameters
    ----------
    score : median_r or top1.

    Returns
    -------
    One row per direction and number of images: best of the others, difference, low, high (95 % over
    newcomers, draws, test images and voxels).
    """
    name, unit = (
        (f"ours_minus_best in {score}", "share") if score == "top1" else ("ours_minus_best", "r")
    )
    keys, rows = ["direction", "n_images"], []
    for (direction, n_images), group in table.groupby(keys, sort=False):
        mean = group.groupby("method", sort=False)[score].mean()
        rivals = mean.reindex([RIDGE, GRADIENT, MATCHING]).dropna()
        if OURS not in mean or not len(rivals):
            continue
        best = str(rivals.idxmax())
        ours, other = (
            group[group["method"] == m].set_index(["subject", "draw"]).sort_index()
            for m in (OURS, best)
        )
        resampled = [np.stack(x[f"resampled_{score}"]) for x in (ours, other)]
        paired, noise = ours[score] - other[score], resampled[0] - resampled[1]
        found = stats.mean_of_units(paired, noise)
        condition = f"{direction}, {n_images} images, {best}"
        lab.record(name, found.value, condition, interval=found, unit=unit)
        rows.append([direction, n_images, best, found.value, found.low, found.high])
    columns = [*keys, "best of the others", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


SMALL = SimulationConfig(subjects=5, images=250, test_images=100, voxels=300, scanner="7T")
NOISY, MIXED = replace(SMALL, snr=0.5), replace(SMALL, spread=3.0)
FOUR, NEW = replace(SMALL, subjects=4), replace(SMALL, subjects=1)
# seed, and parts of the crowd file; its last subject is the newcomer
VARIANTS: dict[str, tuple[int, tuple[SimulationConfig, ...]]] = {
    "seed 11": (11, (SMALL,)),
    "seed 12": (12, (SMALL,)),
    "ncsnr halved": (11, (NOISY,)),
    "other mixes of types": (11, (MIXED,)),
    "nobody has type place": (11, (replace(FOUR, lacking="place"), NEW)),
    "seed 31 (new)": (31, (SMALL,)),
    "ncsnr halved (new)": (32, (NOISY,)),
    "other mixes of types (new)": (33, (MIXED,)),
    "nobody has type word (new)": (34, (replace(FOUR, lacking="word"), NEW)),
}


def robustness(
    lab: Lab,
    variants: Mapping[str, tuple[int, tuple[SimulationConfig, ...]]] = VARIANTS,
    n_images: Sequence[int] = (25, 100, 250),
    steps: int = 600,
) -> pd.DataFrame:
    """Transfer to the last subject of other simulated crowds; medians are recorded.

    Crowds and encoders are kept in the cache. The voxels of a type that nobody in the crowd has are
    also scored alone.

    Parameters
    ----------
    steps : of the training of each crowd's encoder.

    Returns
    -------
    Mean median r over draws: a row per crowd, voxels ("all", or the type) and number of images, a
    column per method, and "ours − best" of the others.
    """
    rows = []
    for crowd, (seed, parts) in variants.items():
        path = simulated_crowd(replace(lab.profile, simulation=parts), seed)
        other = Lab(lab.notebook, str(path), lab.profile.name, seed)
        training = replace(lab.profile.training, epochs=1, min_steps=steps, voxels_per_step=128)
        other.profile = replace(other.profile, training=training)
        *known, new = other.subjects
        types = truth.voxels(other.crowd, new)["type"].to_numpy()
        joining = Joining(other, other.encoder(known), few_images(other, new, n_images))
        for number, few in enumerate(joining.fews):
            measured = few.subject.responses("test")
            groups = {"all": np.ones(len(few.voxels), bool)}
            if lacking := parts[0].lacking:
                groups[lacking] = types[few.voxels] == lacking
            for method in (RIDGE, *METHODS):
                predicted, _ = joining.predicted(number, method)
                r = np.nan_to_num(scores.correlation(predicted, measured))
                rows += [
                    [crowd, f"{group} ({mask.sum()})", few.n_images, method, np.median(r[mask])]
                    for group, mask in groups.items()
                ]
    keys = ["crowd", "voxels", "n_images", "method"]
    table = pd.DataFrame(rows, columns=[*keys, "median_r"])
    for (crowd, group, n, method), found in table.groupby(keys, sort=False)["median_r"]:
        condition = f"{crowd}, {group.split()[0]} voxels, {method}, {n} images"
        lab.record("other_crowds_median_r", found.mean(), condition, n=len(found), unit="r")
    wide = table.pivot_table("median_r", keys[:3], "method", sort=False)
    return wide.assign(**{"ours − best": wide[OURS] - wide.drop(columns=OURS).max(axis=1)})


def draw(
    found: Sequence[Direction],
    mean: pd.DataFrame,
    label: str,
    ceiling: bool = False,
    scale: float = 1,
) -> Figure:
    """Learning curves, a panel for each direction, two side by side; `mean` as from `summarise`,
    its values times `scale`. Intervals may leave a panel: few newcomers make them wide.
    """
    n_rows = max(-(-len(found) // 2), 1)
    figure, axes = plt.subplots(
        n_rows, 2, figsize=(9.5, 3.4 * n_rows + 0.8), sharey=True, squeeze=False
    )
    if not found:
        figures.text_only(
            axes[0, 0],
            "this crowd file has no newcomer: it has one dataset with fewer than three subjects",
        )
        axes[0, 1].set_axis_off()
        return figure
    scaled = mean.assign(**{c: scale * mean[c] for c in ("value", "low", "high")})
    for ax, direction in zip(axes.flat, found, strict=False):
        mine = scaled[scaled["direction"] == direction.name]
        limit = mine["ceiling"].mean() if ceiling else None
        figures.learning_curves(ax, mine, label, limit)
        unknown = limit is not None and np.isnan(limit)
        ax.set_title(f"{direction.name} (ceiling unknown)" if unknown else direction.name)
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    highest = np.nanmax([scaled["value"].max(), *(mean["ceiling"] if ceiling else [])])
    axes[0, 0].set_ylim(min(0, scaled["value"].min()) - 0.03 * highest, 1.12 * highest)
    lines = {
        text: line
        for ax in axes.flat
        for line, text in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    return figure
