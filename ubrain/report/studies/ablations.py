"""What each part of the encoder is worth: variants trained alike, compared pair by pair with the
full encoder (notebook 07).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from ubrain import backbone, predict, scores
from ubrain.analysis.stats import Interval
from ubrain.backbone import Backbone, Features, choose_device
from ubrain.config import EncoderConfig, TrainingConfig
from ubrain.errors import UbrainError
from ubrain.progress import track
from ubrain.report.lab import Lab
from ubrain.report.studies.datasets import steps

FULL, IMAGES = "full encoder", "trained from images"
VOXELS = "voxels per step"


@dataclass(frozen=True)
class Variant:
    """One way to train the encoder.

    Attributes
    ----------
    group : what is varied.
    against : name of the variant that it is compared with.
    levels : which levels are kept, from 0; None: all.
    adapter_rank : of adapters; not None: trained from images, not from cached features (0: without
        adapters).
    """

    name: str
    group: str
    encoder: EncoderConfig
    training: TrainingConfig
    against: str = FULL
    levels: tuple[int, ...] | None = None
    adapter_rank: int | None = None


class SomeLevels(Features):
    """Some levels of cached features: what a backbone would give that reads only these.

    Parameters
    ----------
    features : all levels.
    chosen : which are kept, from 0.
    """

    def __init__(self, features: Features, chosen: tuple[int, ...]) -> None:
        if not chosen or min(chosen) < 0 or max(chosen) >= len(features.widths):
            raise UbrainError(
                f"levels {chosen}: expected some of 0 to {len(features.widths) - 1}, the levels of"
                " the profile"
            )
        self._every = features
        self.config = replace(
            features.config, levels=tuple(features.config.levels[i] for i in chosen)
        )
        self.folder = features.folder.with_name(
            f"{features.folder.name}-levels-{'-'.join(map(str, chosen))}"
        )
        self.widths, self.n_tokens = tuple(features.widths[i] for i in chosen), features.n_tokens
        ends = np.cumsum(features.widths)
        self._columns = np.concatenate(
            [np.arange(ends[i] - features.widths[i], ends[i]) for i in chosen]
        )

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """As in `Features`, of these levels only."""
        return np.ascontiguousarray(self._every.read(rows)[:, :, self._columns])

    def close(self) -> None:
        """Close the files of the cache."""
        self._every.close()


def variants(lab: Lab, n_steps: int | None = None) -> list[Variant]:
    """The full encoder and what is taken from it or changed in it, one thing at a time.

    Parameters
    ----------
    n_steps : of every training; None takes those of the profile.
    """
    config, encoder, training = lab.profile.ablations, lab.profile.encoder, lab.profile.training
    if n := config.steps if n_steps is None else n_steps:
        training = replace(training, epochs=1, min_steps=n)
    base = Variant(FULL, "", encoder, training)
    found = [base]
    for size in config.embedding_sizes:
        sized = replace(encoder, embedding_size=size)
        found.append(
            replace(base, name=f"embedding size {size}", group="embedding size", encoder=sized)
        )
    for levels in config.levels:
        name = f"level{'s' * (len(levels) > 1)} {', '.join(str(i + 1) for i in levels)} only"
        found.append(replace(base, name=name, group="levels", levels=levels))
    for part in ("spatial", "position", "functional"):
        less = replace(encoder, without=(part,))
        name = f"without {part}{' attention' * (part != 'position')}"
        found.append(replace(base, name=name, group="attention", encoder=less))
    other = replace(training, mse_weight=0.1, cosine_weight=0.9)
    found.append(replace(base, name="0.1 MSE − 0.9 cos", group="loss", training=other))
    for n in config.voxels_per_step:
        drawn = replace(training, voxels_per_step=n)
        found.append(replace(base, name=f"{n} voxels per step", group=VOXELS, training=drawn))
    if config.adapter_rank:
        images = replace(base, name=IMAGES, group="adapters", adapter_rank=0)
        found += [
            images,
            replace(
                images,
                name=f"adapters of rank {config.adapter_rank}",
                adapter_rank=config.adapter_rank,
                against=IMAGES,
            ),
        ]
    return found


def settings_table(lab: Lab, chosen: list[Variant]) -> pd.DataFrame:
    """What distinguishes the variants: embedding size, levels, parts left out, loss, voxels per
    step, steps, tokens.
    """
    n_levels = len(lab.profile.backbone.levels)
    rows = [
        {
            "variant": v.name,
            "embedding size": v.encoder.embedding_size,
            "levels": " ".join(str(i + 1) for i in v.levels or range(n_levels)),
            "without": ", ".join(v.encoder.without) or "–",
            "loss": f"{v.training.mse_weight:g} MSE − {v.training.cosine_weight:g} cos",
            "voxels per step": v.training.voxels_per_step,
            "steps": steps(lab, subjects_of(lab), v.training),
            "tokens": (
                "cached" if v.adapter_rank is None else f"images, adapters of rank {v.adapter_rank}"
            ),
        }
        for v in chosen
    ]
    return pd.DataFrame(rows).set_index("variant")


def subjects_of(lab: Lab) -> list[str]:
    """The crowd of all variants: the first subjects of the notebook."""
    return lab.subjects[: lab.profile.ablations.n_subjects]


def train_all(lab: Lab, chosen: list[Variant], n_seeds: int | None = None) -> pd.DataFrame:
    """Train every variant with every seed, on the same subjects, and score it on their test images;
    recorded.

    Returns
    -------
    One row per variant, seed and subject: variant, group, seed, subject, median_r, top1, shared
    (numbers in the shared weights).
    """
    n_seeds = lab.profile.ablations.seeds if n_seeds is None else n_seeds
    if n_seeds < 2:
        raise UbrainError(f"n_seeds is {n_seeds}: differences between variants need two or more")
    jobs = [(v, seed) for seed in range(lab.seed, lab.seed + n_seeds) for v in chosen]
    rows = [row for v, seed in track(jobs, len(jobs), "ablations") for row in _scored(lab, v, seed)]
    for row in rows:
        lab.record(
            f"median_r, seed {row['seed']}",
            row["median_r"],
            row["variant"],
            row["subject"],
            unit="r",
        )
    return pd.DataFrame(rows)


def differences(
    lab: Lab, chosen: list[Variant], table: pd.DataFrame, score: str = "median_r"
) -> pd.DataFrame:
    """Each variant minus what it is compared with, paired by seed and subject, with 95 % t
    intervals; recorded.

    Parameters
    ----------
    table : from `train_all`.
    score : median_r or top1.

    Returns
    -------
    One row per variant but the full encoder: variant, group, against, score (mean), difference,
    low, high, n (pairs), and pairs, the differences themselves.
    """
    wide = table.pivot(index=["seed", "subject"], columns="variant", values=score)
    unit = "r" if score == "median_r" else "share"
    rows = []
    for v in chosen:
        lab.record(score, wide[v.name].mean(), v.name, n=len(wide), unit=unit)
        if v.name == FULL:
            continue
        pairs = (wide[v.name] - wide[v.against]).to_numpy()
        found = t_interval(pairs)
        lab.record(
            f"difference in {score}",
            found.value,
            f"{v.name} − {v.against}",
            interval=found,
            unit=unit,
        )
        rows.append(
            [
                v.name,
                v.group,
                v.against,
                wide[v.name].mean(),
                found.value,
                found.low,
                found.high,
                found.n,
                pairs,
            ]
        )
    return pd.DataFrame(
        rows,
        columns=["variant", "group", "against", score, "difference", "low", "high", "n", "pairs"],
    )


def t_interval(values: ArrayLike) -> Interval:
    """Mean of a few numbers with Student's 95 % interval; a bootstrap of so few would be too
    narrow.
    """
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return Interval(float(x.mean()), np.nan, np.nan, len(x))
    half = float(student.ppf(0.975, len(x) - 1)) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def summary(r: pd.DataFrame, top1: pd.DataFrame) -> pd.DataFrame:
    """The table of the notebook: mean of median r and of top-1 per variant, each with its
    difference and interval.

    Parameters
    ----------
    r, top1 : `differences` of the two scores.
    """
    parts = [r.set_index("variant")[["group", "against", "n"]]]
    for name, frame in (("median_r", r), ("top1", top1)):
        mine = frame.set_index("variant")
        text = [
            f"{d:+.3f} [{low:+.3f}, {high:+.3f}]"
            for d, low, high in mine[["difference", "low", "high"]].to_numpy()
        ]
        parts.append(mine[[name]].round(3).assign(**{f"difference in {name}": text}))
    return pd.concat(parts, axis=1)


def verdict(lab: Lab, found: pd.DataFrame, in_top1: pd.DataFrame) -> str:
    """Which parts matter in these trainings, in words made from the intervals.

    Parameters
    ----------
    found, in_top1 : of `differences`, for median r and for top-1.
    """
    worse, better = found[found["high"] < 0], found[found["low"] > 0]
    open_ = found[(found["low"] <= 0) & (found["high"] >= 0)]
    n, adapters = int(found["n"].iloc[0]), lab.profile.ablations.adapter_rank
    lines = [
        f"{len(found)} variants, each with {n} pairs of the same seed and subject; by chance alone,"
        f" one interval in 20 would not hold 0, here about {len(found) / 20:.1f}"
    ]
    for what, rows in (("worse", worse), ("better", better)):
        ordered = rows.sort_values("difference", key=np.abs, ascending=False)
        less = " and less training" if what == "worse" else ""
        shown = [
            f"{v} ({d:+.3f}{less if group == VOXELS else ''})"
            for v, group, d in ordered[["variant", "group", "difference"]].itertuples(index=False)
        ]
        lines.append(
            f"{what} in median r than what it is compared with: {'; '.join(shown) or 'none'}"
        )
    top1 = in_top1.set_index("variant")
    undecided = [_undecided(v, top1.loc[v]) for v in open_["variant"]]
    lines.append(f"undecided in median r (the interval holds 0): {'; '.join(undecided) or 'none'}")
    if not adapters:
        lines.append(
            "adapters: not run; they need a vision transformer trained from images (profile paper)"
        )
    for name, rows in (("worse", worse), ("better", better), ("open", open_)):
        lab.record("ablation_outcome", len(rows) / len(found), name, n=len(found), unit="share")
    return "\n".join(lines)


def _undecided(variant: str, top1: pd.Series) -> str:
    says = "better" if top1["low"] > 0 else "worse" if top1["high"] < 0 else ""
    return f"{variant}, but {says} in top-1 ({top1['difference']:+.3f})" if says else variant


def _scored(lab: Lab, variant: Variant, seed: int) -> Iterator[dict[str, Any]]:
    source = _source(lab, variant, seed)
    encoder = lab.encoder(subjects_of(lab), variant.encoder, variant.training, seed, source)
    shared = sum(p.numel() for p in encoder.shared_parameters())
    for s in subjects_of(lab):
        predicted = predict.predict(encoder, source, s, lab.crowd[s].image_rows("test"))
        measured = lab.measured(s)
        yield {
            "variant": variant.name,
            "group": variant.group,
            "seed": seed,
            "subject": s,
            "shared": shared,
            "median_r": float(np.nanmedian(scores.correlation(predicted, measured))),
            "top1": float(np.mean(scores.retrieval_ranks(predicted, measured) < 1)),
        }


def _source(lab: Lab, variant: Variant, seed: int) -> backbone.Source:
    if variant.adapter_rank is not None:
        bones = replace(lab.profile.backbone, adapter_rank=variant.adapter_rank)
        return backbone.Source(
            lab.crowd, backbone=Backbone(bones, seed).to(choose_device(lab.profile.training.device))
        )
    if variant.levels is not None:
        return backbone.Source(lab.crowd, SomeLevels(lab.features, variant.levels))
    return lab.source
