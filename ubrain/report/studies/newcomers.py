"""Newcomers: subjects that the crowd's encoder was not trained on, given few images (notebook
03).
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ubrain import config, predict, scores, train, transfer
from ubrain.analysis import baselines, stats
from ubrain.crowd import Crowd, Subject
from ubrain.data.simulate import simulate_crowd, truth
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.paths import atomic, cache_root
from ubrain.readout import STRENGTHS
from ubrain.report import figures
from ubrain.report.lab import ALONE, RIDGE, Lab

GRADIENT, MATCHING, OURS = list(figures.CONDITIONS)[4:7]
METHODS = {GRADIENT: "gradient", MATCHING: "matching", OURS: "ours"}
ENOUGH = 0.9  # of what all images give, or of the ceiling
LEAST_DRAWN = transfer.LEAST_IMAGES


@dataclass(frozen=True)
class Direction:
    """From a crowd to subjects that it does not have."""

    name: str
    crowd: tuple[str, ...]
    newcomers: tuple[str, ...]


def directions(lab: Lab) -> list[Direction]:
    """What this crowd file lets us try: a new subject of the same dataset, the other datasets, and
    back.

    A crowd needs two subjects. The way back starts from the largest of the other datasets.
    """
    n, main = lab.profile.transfer.newcomers, lab.subjects
    own = lab.crowd[main[0]].dataset
    others = {d: s for d, s in lab.datasets.items() if d != own and not set(s) & set(main)}
    last = tuple(main[-min(n, max(len(main) - 2, 0)) :]) if len(main) > 2 else ()
    found = (
        [Direction("a new subject", tuple(s for s in main if s not in last), last)] if last else []
    )
    if len(main) > 1:
        found += [
            Direction(f"{_label(lab, main)} → {_label(lab, s)}", tuple(main), tuple(s[:n]))
            for s in others.values()
        ]
    largest = max(others.values(), key=len, default=[])
    if len(largest) > 1:
        found.append(
            Direction(
                f"{_label(lab, largest)} → {_label(lab, main)}", tuple(largest), tuple(main[-n:])
            )
        )
    return found


def _label(lab: Lab, subjects: Sequence[str]) -> str:
    """The scanner, where it tells the datasets apart, else the dataset."""
    subject = lab.crowd[subjects[0]]
    scanners = {lab.crowd[s[0]].scanner: d for d, s in lab.datasets.items()}
    return (
        subject.scanner
        if subject.scanner and len(scanners) == len(lab.datasets)
        else subject.dataset
    )


class FewImages:
    """A subject as if it had seen only some of its train and val images, and had only some of its
    voxels.

    Every fifth image, or at least five, is val; the test images stay. Whatever learns from a
    `Subject` learns from this.
    """

    def __init__(
        self, subject: Subject, rows: NDArray[np.int64], voxels: NDArray[np.int64]
    ) -> None:
        self._subject, self._voxels = subject, voxels
        self.name, self.n_voxels = subject.name, len(voxels)
        n_val = max(5, len(rows) // 5)
        at = np.linspace(0, len(rows) - 1, n_val).round().astype(int)
        self._rows = {
            "train": np.delete(rows, at),
            "val": rows[at],
            "test": subject.image_rows("test"),
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)

    @property
    def voxels(self) -> pd.DataFrame:
        """Voxel table of the chosen voxels."""
        return self._subject.voxels.iloc[self._voxels].reset_index(drop=True)

    def image_rows(self, split: str = "train") -> NDArray[np.int64]:
        """As of `Subject`."""
        return self._rows[split]

    def responses_to(
        self, rows: NDArray[np.int64], voxels: NDArray[np.int64] | slice = slice(None)
    ) -> NDArray[np.float32]:
        """As of `Subject`."""
        return self._subject.responses_to(rows, self._voxels[voxels])


@dataclass(frozen=True)
class Case:
    """A newcomer with some of its images."""

    lab: Lab
    encoder: UniversalEncoder
    subject: str
    rows: NDArray[np.int64]
    voxels: NDArray[np.int64]
    seed: int

    @property
    def view(self) -> Any:
        """The subject, reduced to these images and voxels."""
        return FewImages(self.lab.crowd[self.subject], self.rows, self.voxels)

    def predict(self, method: str) -> tuple[NDArray[np.float32], str]:
        """Predicted test responses (n_images, n_voxels) of the voxels, and what the method
        chose.
        """
        if method == RIDGE:
            fitted = baselines.ridge(
                self.view, self.lab.features, _light(self.lab.profile.baselines), self.seed
            )
            return fitted.predicted, fitted.chosen
        if method == ALONE:
            return self._from_scratch(), ""
        found = transfer.fit(
            self.encoder,
            self.lab.source,
            self.subject,
            self.rows,
            METHODS[method],
            self.lab.profile.transfer,
            self.seed,
            self.voxels,
        )
        head = transfer.Head(
            self.encoder, self.lab.source, self.lab.crowd[self.subject].image_rows("test")
        )
        return found.respond(head).cpu().numpy(), found.chosen

    def _from_scratch(self) -> NDArray[np.float32]:
        profile = self.lab.profile
        few: Any = _OneSubject(self.lab.crowd, self.view)
        source = replace(self.lab.source, crowd=few)
        steps = profile.transfer.scratch_steps
        training = replace(
            profile.training, epochs=1, min_steps=steps, voxels_per_step=len(self.voxels)
        )
        encoder = train.fit(source, [self.subject], profile.encoder, training, self.seed)
        return predict.predict(encoder, source, self.subject, self.view.image_rows("test"))


class _OneSubject:
    """A crowd of one view of a subject."""

    def __init__(self, crowd: Crowd, view: FewImages) -> None:
        self._crowd, self._view = crowd, view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._crowd, name)

    def __getitem__(self, name: str) -> FewImages:
        return self._view


def _light(settings: config.BaselineConfig) -> config.BaselineConfig:
    """Ridge without the random search over levels, which takes longest and gains least with few
    images.
    """
    return replace(settings, band_draws=0)


def curves(
    lab: Lab,
    directions: Iterable[Direction],
    n_images: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Scores of every method, newcomer, number of images and draw of the images; medians are
    recorded.

    The draws of a subject are nested: the first 25 images are among the first 50. All images are
    drawn once.

    Parameters
    ----------
    n_images : numbers of images; None takes the profile's, and all. Numbers that a newcomer does
        not have are left out.
    methods : conditions; None takes ridge, gradient, matching and ours, and for a few numbers of
        images from scratch.

    Returns
    -------
    One row each: direction, subject, method, n_images, all_images, draw, median_r, top1, gallery,
    ceiling (median over the voxels), seconds, chosen, and resampled_median_r and resampled_top1,
    scores in resamples of images and voxels.
    """
    rows: list[dict[str, Any]] = []
    for direction in directions:
        encoder = lab.encoder(list(direction.crowd))
        for subject in direction.newcomers:
            for case, draw, is_all in _cases(lab, encoder, subject, n_images):
                for method in methods if methods is not None else _methods(lab, case, draw, is_all):
                    rows.append(
                        {
                            "direction": direction.name,
                            "subject": subject,
                            "method": method,
                            "draw": draw,
                            "n_images": len(case.rows),
                            "all_images": is_all,
                            **_score(case, method),
                        }
                    )
    table = pd.DataFrame(rows, columns=COLUMNS)
    for (name, subject, method, n), group in table.groupby(
        ["direction", "subject", "method", "n_images"], sort=False
    ):
        condition = f"{name}, {method}, {n} images"
        for score, unit in (("median_r", "r"), ("top1", "share")):
            lab.record(
                f"transfer_{score}",
                group[score].mean(),
                condition,
                subject,
                n=len(group),
                unit=unit,
            )
    return table


COLUMNS = [
    "direction",
    "subject",
    "method",
    "draw",
    "n_images",
    "all_images",
    "median_r",
    "top1",
    "gallery",
    "ceiling",
    "seconds",
    "chosen",
    "resampled_median_r",
    "resampled_top1",
]


def _cases(
    lab: Lab, encoder: UniversalEncoder, subject: str, n_images: Sequence[int] | None
) -> Iterable[tuple[Case, int, bool]]:
    everything = transfer.images_of(lab.crowd, subject)
    settings = lab.profile.transfer
    wanted = [*settings.n_images, len(everything)] if n_images is None else n_images
    if too_few := [n for n in wanted if n < LEAST_DRAWN]:
        raise UbrainError(f"n_images: expected numbers of at least {LEAST_DRAWN}, got {too_few[0]}")
    rng = np.random.default_rng(lab.seed)
    voxels = np.sort(rng.permutation(lab.crowd[subject].n_voxels)[: settings.voxels])
    orders = [rng.permutation(everything) for _ in range(settings.draws)]
    for n in sorted({n for n in wanted if n <= len(everything)}):
        for draw, order in enumerate(orders[:1] if n == len(everything) else orders):
            yield (
                Case(lab, encoder, subject, np.sort(order[:n]), voxels, lab.seed + draw),
                draw,
                n == len(everything),
            )


def _methods(lab: Lab, case: Case, draw: int, is_all: bool) -> list[str]:
    """Those of the profile; from scratch, which costs most, once and for some numbers of images."""
    scratch = draw == 0 and (is_all or len(case.rows) in lab.profile.transfer.scratch_images)
    return [RIDGE, *([ALONE] if scratch else []), *METHODS]


def _score(case: Case, method: str) -> dict[str, Any]:
    started = time.monotonic()
    predicted, chosen = case.predict(method)
    seconds = time.monotonic() - started
    measured = case.view.responses_to(case.view.image_rows("test"))
    r, ranks = (
        np.nan_to_num(scores.correlation(predicted, measured)),
        scores.retrieval_ranks(predicted, measured),
    )
    resampled = stats.resampled_scores(
        predicted, measured, case.lab.profile.bootstrap, case.lab.seed
    )
    return {
        "median_r": float(np.median(r)),
        "top1": scores.top_k(ranks, 1),
        "gallery": len(ranks),
        "chosen": chosen,
        "ceiling": _median(case.lab.ceiling_r(case.subject)[case.voxels]),
        "seconds": seconds,
        "resampled_median_r": resampled[0],
        "resampled_top1": resampled[1],
    }


def summarise(
    table: pd.DataFrame, score: str = "median_r", n_boot: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean over newcomers and draws with a 95 % interval over them, and over test images and
    voxels.

    Parameters
    ----------
    score : median_r or top1.

    Returns
    -------
    One row per direction, method and number of images: value, low, high, n (newcomers × draws),
    ceiling.
    """
    rows = []
    for (direction, method, n_images), group in table.groupby(
        ["direction", "method", "n_images"], sort=False
    ):
        found = stats.bootstrap_units(
            group[score], np.stack(group[f"resampled_{score}"]), n_boot, seed
        )
        rows.append(
            {
                "direction": direction,
                "method": method,
                "n_images": n_images,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "ceiling": group["ceiling"].mean(),
            }
        )
    return pd.DataFrame(
        rows, columns=["direction", "method", "n_images", "value", "low", "high", "n", "ceiling"]
    )


def images_needed(lab: Lab, table: pd.DataFrame) -> pd.DataFrame:
    """Images that a method needs for 90 % of what the paper's method reaches with all, and of the
    ceiling; recorded.

    Between two numbers of images the curve is a straight line over the logarithm of the number.

    Returns
    -------
    One row per direction and method: images for both, NaN where the curve does not get there. A
    curve that is there at its first number of images counts as that number: it may need fewer.
    """
    mean = summarise(table)
    rows = []
    for (direction, method), curve in mean.groupby(["direction", "method"], sort=False):
        mine = table[table["direction"] == direction]
        papers = mine[(mine["method"] == GRADIENT) & mine["all_images"]]["median_r"].mean()
        row = {"direction": direction, "method": method}
        targets = {
            "90 % of gradient with all": float(papers),
            "90 % of the ceiling": curve["ceiling"].iloc[0],
        }
        for what, target in targets.items():
            row[what] = _reached(curve["n_images"], curve["value"], ENOUGH * target)
            lab.record(f"images for {what}", row[what], f"{direction}, {method}", unit="images")
        rows.append(row)
    return pd.DataFrame(rows)


def _median(values: NDArray) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan


def _reached(n_images: Sequence[float], values: Sequence[float], target: float) -> float:
    """The first number of images at which a curve reaches a target; NaN if it does not."""
    n, y = np.log(np.asarray(n_images, dtype=float)), np.asarray(values, dtype=float)
    order = np.argsort(n)
    n, y = n[order], y[order]
    above = np.flatnonzero(y >= target)
    if not len(above):
        return np.nan
    i = above[0]
    return float(np.exp(n[i] if i == 0 else np.interp(target, y[i - 1 : i + 1], n[i - 1 : i + 1])))


def against_best(lab: Lab, table: pd.DataFrame, score: str = "median_r") -> pd.DataFrame:
    """Ours minus the best of ridge, gradient and matching, for each direction and number of images;
    recorded.

    The best is the one that is best on average over newcomers and draws, on the test images, which
    favours it a little. The difference is paired: the same newcomers, draws, test images and
    voxels.

    Parameters
    ----------
    score : median_r or top1.

    Returns
    -------
    One row per direction and number of images: best, difference, low, high (95 % over newcomers,
    draws, test images and voxels).
    """
    rows = []
    for (direction, n_images), group in table.groupby(["direction", "n_images"], sort=False):
        mean = group.groupby("method", sort=False)[score].mean()
        rivals = mean.reindex([RIDGE, GRADIENT, MATCHING]).dropna()
        if OURS not in mean or not len(rivals):
            continue
        best = rivals.idxmax()
        mine, other = (
            group[group["method"] == m].set_index(["subject", "draw"]).sort_index()
            for m in (OURS, best)
        )
        resampled = [np.stack(x[f"resampled_{score}"]) for x in (mine, other)]
        found = stats.bootstrap_units(
            mine[score] - other[score], resampled[0] - resampled[1], lab.profile.bootstrap, lab.seed
        )
        name, unit = (
            ("ours_minus_best", "r")
            if score == "median_r"
            else (f"ours_minus_best in {score}", "share")
        )
        lab.record(
            name, found.value, f"{direction}, {n_images} images, {best}", interval=found, unit=unit
        )
        rows.append(
            {
                "direction": direction,
                "n_images": n_images,
                "best of the others": best,
                "difference": found.value,
                "low": found.low,
                "high": found.high,
            }
        )
    return pd.DataFrame(
        rows, columns=["direction", "n_images", "best of the others", "difference", "low", "high"]
    )


SMALL = config.SimulationConfig(subjects=5, images=250, test_images=100, voxels=300, scanner="7T")
VARIANTS: dict[
    str, tuple[int, tuple[config.SimulationConfig, ...]]
] = {  # seed, and parts of the crowd file; last is new
    "seed 11": (11, (SMALL,)),
    "seed 12": (12, (SMALL,)),
    "ncsnr halved": (11, (replace(SMALL, snr=0.5),)),
    "other mixes of types": (11, (replace(SMALL, spread=3.0),)),
    "nobody has type place": (
        11,
        (replace(SMALL, subjects=4, lacking="place"), replace(SMALL, subjects=1)),
    ),
    "seed 31 (new)": (31, (SMALL,)),
    "ncsnr halved (new)": (32, (replace(SMALL, snr=0.5),)),
    "other mixes of types (new)": (33, (replace(SMALL, spread=3.0),)),
    "nobody has type word (new)": (
        34,
        (replace(SMALL, subjects=4, lacking="word"), replace(SMALL, subjects=1)),
    ),
}


def robustness(
    lab: Lab,
    variants: Mapping[str, tuple[int, tuple[config.SimulationConfig, ...]]] = VARIANTS,
    n_images: Sequence[int] = (25, 100, 250),
    steps: int = 600,
) -> pd.DataFrame:
    """Transfer to the last subject of simulated crowds other than that of the notebook; medians are
    recorded.

    Crowds and encoders are kept in the cache. The voxels of a type that nobody in the crowd has are
    also scored alone.

    Parameters
    ----------
    steps : of the training of each crowd's encoder.

    Returns
    -------
    One row per variant, voxels ("all", or the type), method, number of images and draw: median_r.
    """
    rows = []
    for name, (seed, parts) in variants.items():
        other = Lab(lab.notebook, str(_simulated(parts, seed)), lab.profile.name, seed)
        other.profile = replace(
            other.profile,
            training=replace(
                other.profile.training, epochs=1, min_steps=steps, voxels_per_step=128
            ),
        )
        new = other.subjects[-1]
        types = truth.voxels(other.crowd, new)["type"].to_numpy()
        for case, draw, _ in _cases(other, other.encoder(other.subjects[:-1]), new, n_images):
            groups = {"all": np.ones(len(case.voxels), dtype=bool)}
            if parts[0].lacking:
                groups[parts[0].lacking] = types[case.voxels] == parts[0].lacking
            measured = case.view.responses_to(case.view.image_rows("test"))
            for method in (RIDGE, *METHODS):
                r = np.nan_to_num(scores.correlation(case.predict(method)[0], measured))
                rows += [
                    {
                        "crowd": name,
                        "voxels": f"{group} ({mask.sum()})",
                        "method": method,
                        "n_images": len(case.rows),
                        "draw": draw,
                        "median_r": float(np.median(r[mask])),
                    }
                    for group, mask in groups.items()
                ]
    table = pd.DataFrame(rows)
    for (name, group, method, n), found in table.groupby(
        ["crowd", "voxels", "method", "n_images"], sort=False
    ):
        condition = f"{name}, {group.split()[0]} voxels, {method}, {n} images"
        lab.record(
            "other_crowds_median_r", found["median_r"].mean(), condition, n=len(found), unit="r"
        )
    return table


def robustness_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over draws: a row per crowd, voxels and number of images, a column per method."""
    return table.pivot_table("median_r", ["crowd", "voxels", "n_images"], "method", sort=False)


def robustness_verdict(table: pd.DataFrame, margin: float = 0.01) -> str:
    """Where ours is more than `margin` below the best of the others, and where above the paper's
    method.
    """
    mean = robustness_table(table)
    return "\n".join(
        (
            _count(
                f"ours is at most {margin} below the best of the others",
                mean[OURS] >= mean.drop(columns=OURS).max(1) - margin,
            ),
            _count(f"ours is above {GRADIENT}", mean[OURS] > mean[GRADIENT]),
        )
    )


def _simulated(parts: Sequence[config.SimulationConfig], seed: int) -> Path:
    settings = repr((seed, *map(asdict, parts)))
    path = (
        cache_root()
        / f"simulated-variant-{hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()}.h5"
    )
    if not path.exists():
        with atomic(path) as partial:
            for number, part in enumerate(parts):
                simulate_crowd(partial, part, seed, append=number > 0)
    return path


def time_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds per newcomer: a row per method, a column per number of images. They are not
    recorded: they vary.
    """
    return table.pivot_table("seconds", "method", "n_images", sort=False).sort_index(axis=1)


def draw(
    found: Sequence[Direction],
    mean: pd.DataFrame,
    label: str,
    ceiling: bool = False,
    scale: float = 1,
) -> Figure:
    """Learning curves, a panel for each direction; `mean` as from `summarise`, its values times
    `scale`.
    """
    figure, axes = plt.subplots(
        1, max(len(found), 1), figsize=(max(4 * len(found), 6), 4.6), sharey=True, squeeze=False
    )
    if not found:
        figures.text_only(
            axes[0, 0],
            "this crowd file has no newcomer: it has one dataset with fewer than three subjects",
        )
        return figure
    scaled = mean.assign(**{c: scale * mean[c] for c in ("value", "low", "high")})
    for ax, direction in zip(axes[0], found, strict=True):
        mine = scaled[scaled["direction"] == direction.name]
        highest = mine["ceiling"].mean() if ceiling else None
        figures.learning_curves(ax, mine, label, highest)
        unknown = highest is not None and np.isnan(highest)
        ax.set_title(f"{direction.name} (ceiling unknown)" if unknown else direction.name)
        ax.label_outer()
    lines = {
        text: line
        for ax in axes[0]
        for line, text in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def settings_table(lab: Lab) -> pd.DataFrame:
    """How much was given to each method, which decides the comparison. One row per method."""
    t = lab.profile.transfer
    steps = (
        f"Adam, learning rate {t.learning_rate:g}, {t.epochs} epochs, at least {t.min_steps} steps"
    )
    rows = {
        "all": (
            f"at most {t.voxels} voxels of a newcomer, all its test images, {t.draws} draws of the"
            " images (one of all)"
        ),
        RIDGE: "its search over weights of the levels, as in 01, is left out",
        ALONE: (
            f"{t.scratch_steps} steps, on these voxels; in 01 at least"
            f" {lab.profile.training.min_steps}, on all"
        ),
        GRADIENT: f"{steps} (released code: 0.001, 50 epochs); the best on held-out images is kept",
        MATCHING: f"{len(t.temperatures)} temperatures are tried on held-out images",
        OURS: (
            f"matching, then {t.steps} Gauss–Newton steps with one of {len(t.pulls)} pulls, and a"
            f" linear rest of one of {len(STRENGTHS)} strengths or none, chosen on held-out images"
        ),
    }
    return pd.DataFrame({"setting": rows})


def overview(lab: Lab, found: Sequence[Direction]) -> pd.DataFrame:
    """One row per direction: its crowd, its newcomers, and how many images each newcomer has."""
    return pd.DataFrame(
        [
            {
                "direction": d.name,
                "crowd": ", ".join(d.crowd),
                "newcomers": ", ".join(d.newcomers),
                "images": ", ".join(
                    str(len(transfer.images_of(lab.crowd, s))) for s in d.newcomers
                ),
            }
            for d in found
        ],
        columns=["direction", "crowd", "newcomers", "images"],
    )


def verdict(
    table: pd.DataFrame, needed: pd.DataFrame, against: pd.DataFrame, in_top1: pd.DataFrame
) -> str:
    """What the numbers say about transfer, in words, naming where a claim does not show.

    Parameters
    ----------
    table : of `curves`.
    needed : of `images_needed`.
    against, in_top1 : of `against_best`, for median r and for top-1.
    """
    if table.empty:
        return "nothing to compare: this crowd file has no newcomer"
    wide = summarise(table).pivot_table("value", ["direction", "n_images"], "method", sort=False)
    images = table.groupby("direction", sort=False)["n_images"].max()
    enough = needed.pivot(
        index="direction", columns="method", values="90 % of gradient with all"
    ).reindex(images.index)
    # not where all images were not tried
    known = enough[GRADIENT].notna() if GRADIENT in enough else enough.index == ""
    lines = []
    if GRADIENT in wide:
        lines += [
            _paper_words(name, wide.loc[name], enough.loc[name, GRADIENT], table)
            for name in images.index
        ]
        half = (enough[GRADIENT] <= images / 2)[known]
        lines.append(
            _count(
                "the paper's way reaches 90 % of its own best with at most half of the images", half
            )
        )
    for mine, other in ((GRADIENT, ALONE), (GRADIENT, RIDGE), (OURS, ALONE)):
        if {mine, other} <= set(wide):
            both = wide[[mine, other]].dropna()
            lines.append(_count(f"{mine} is above {other} in median r", both[mine] > both[other]))
    lines += [
        _against_words(rows, score)
        for score, rows in (("median r", against), ("top-1", in_top1))
        if len(rows)
    ]
    if {GRADIENT, OURS} <= set(enough):
        half = (enough[OURS] <= enough[GRADIENT] / 2)[known]
        lines.append(
            _count(
                "ours reaches 90 % of the paper's best with at most half of the paper's images",
                half,
            )
        )
    return "\n".join(lines)


def _paper_words(direction: str, curve: pd.DataFrame, enough: float, table: pd.DataFrame) -> str:
    """What the paper's way reaches with how many images, and what else there is to reach."""
    last, ceiling = curve.index.max(), table[table["direction"] == direction]["ceiling"].mean()
    rivals = {"ridge": RIDGE, "from scratch": ALONE}
    found = {name: curve[c].loc[last] for name, c in rivals.items() if c in curve}
    others = [f"{name} {r:.2f}" for name, r in found.items() if np.isfinite(r)]
    others.append(f"ceiling {ceiling:.2f}" if np.isfinite(ceiling) else "ceiling unknown")
    reached = (
        f"90 % of its own best with {enough:.0f} of {last} images; " if np.isfinite(enough) else ""
    )
    return (
        f"the paper's way, {direction}: {reached}median r "
        + ", ".join(f"{r:.2f} with {n}" for n, r in curve[GRADIENT].dropna().items())
        + f" images; beside it, with {last}: {', '.join(others)}"
    )


def _against_words(rows: pd.DataFrame, score: str) -> str:
    below, above = rows[rows["high"] < 0], rows[rows["low"] > 0]
    where = "; ".join(
        f"{r.direction} at {r.n_images} ({r.difference:+.3f})" for r in below.itertuples()
    )
    return (
        f"ours against the best of ridge, gradient and matching, in {score}, by the 95 % intervals:"
        f" below in {len(below)} of {len(rows)}{': ' * bool(where)}{where}; above in {len(above)},"
        f" neither in {len(rows) - len(below) - len(above)}; the difference itself is below 0 in"
        f" {(rows['difference'] < 0).sum()}, at worst by {-min(rows['difference'].min(), 0):.3f};"
        f" mean over all {rows['difference'].mean():+.3f}"
    )


def _count(claim: str, holds: pd.Series) -> str:
    fails = [
        " at ".join(map(str, i)) if isinstance(i, tuple) else str(i) for i in holds.index[~holds]
    ]
    return f"{claim}: {holds.sum()} of {len(holds)}" + (
        f"; not {'; '.join(fails)}" if fails else ""
    )
