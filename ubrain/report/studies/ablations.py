"""What each part of the encoder is worth: variants trained alike, compared pair by pair with the
full encoder (notebook 07).
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ubrain import predict, scores
from ubrain.analysis.stats import t_interval
from ubrain.config import EncoderConfig, TrainingConfig, recipes
from ubrain.errors import UbrainError
from ubrain.features import Source, choose_source
from ubrain.parallel import choose_device
from ubrain.progress import track
from ubrain.report.lab import Lab
from ubrain.report.studies.datasets import steps

FULL, IMAGES, COSINE = "full encoder", "trained from images", "0.1 MSE − 0.9 cos"
# Options of a recipe that are changed alone; learning rate and schedule belong to the whole.
ALONE = {
    "functional_std": "start of functional attention",
    "position_std": "start of position",
    "embedding_steps": "steps of embeddings",
    "batches": "batches",
    "voxel_draws": "draws of voxels",
    "validation": "validation",
}


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
    recipe : what is as in another recipe than the profile's, if anything is.
    resize : how images are resized, where trained from images; None: as in the profile.
    """

    name: str
    group: str
    encoder: EncoderConfig
    training: TrainingConfig
    against: str = FULL
    levels: tuple[int, ...] | None = None
    adapter_rank: int | None = None
    recipe: str = ""
    resize: str | None = None


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
    for part in ("spatial", "functional", "position"):
        less = replace(encoder, without=(part,))
        name = f"without {part}{' attention' * (part != 'position')}"
        found.append(replace(base, name=name, group="attention", encoder=less))
    for size in config.embedding_sizes:
        sized = replace(encoder, embedding_size=size)
        name = f"embedding size {size}"
        found.append(replace(base, name=name, group="embedding size", encoder=sized))
    for levels in config.levels:
        name = f"level{'s' * (len(levels) > 1)} {', '.join(str(i + 1) for i in levels)} only"
        found.append(replace(base, name=name, group="levels", levels=levels))
    other = replace(training, mse_weight=0.1, cosine_weight=0.9)
    found.append(replace(base, name=COSINE, group="loss", training=other))
    for n in config.voxels_per_step:
        drawn, name = replace(training, voxels_per_step=n), f"{n} voxels per step"
        found.append(replace(base, name=name, group="voxels per step", training=drawn))
    found += of_other_recipe(lab, base)
    if rank := config.adapter_rank:
        images = replace(base, name=IMAGES, group="adapters", adapter_rank=0)
        name = f"adapters of rank {rank}"
        found += [images, replace(images, name=name, adapter_rank=rank, against=IMAGES)]
    return found


def of_other_recipe(lab: Lab, base: Variant) -> list[Variant]:
    """Each option alone in which the other recipe differs from the profile's, and all of them."""
    other = "ours" if lab.profile.recipe == "paper" else "paper"
    table, found = recipes()[other], list[Variant]()
    for name, words in ALONE.items():
        section = "encoder" if name in table["encoder"] else "training"
        changed = {section: replace(getattr(base, section), **{name: table[section][name]})}
        what = f"{words}, {other}"
        mine = replace(base, name=what, group="recipe", recipe=what)
        found.append(replace(mine, **changed))
    training = replace(base.training, **table["training"])
    encoder, name = replace(base.encoder, **table["encoder"]), f"all of recipe {other}"
    whole = replace(base, name=name, group="recipe", recipe=name)
    found.append(replace(whole, encoder=encoder, training=training))
    if lab.profile.ablations.adapter_rank:
        name, resize = f"resizing, {other}", table["backbone"]["resize"]
        images = replace(base, name=name, group="recipe", recipe=name, against=IMAGES)
        found.append(replace(images, adapter_rank=0, resize=resize))
    return found


def settings_table(lab: Lab, chosen: list[Variant]) -> pd.DataFrame:
    """What distinguishes the variants: embedding size, levels, parts left out, loss, voxels per
    step, recipe, steps, tokens.
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
            "recipe": v.recipe or lab.profile.recipe,
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
    One row per variant, seed and subject: variant, group, seed, subject, shared (numbers in the
    shared weights), median_r, top1.

    Raises
    ------
    UbrainError
        For fewer than two seeds.
    """
    n_seeds = lab.profile.ablations.seeds if n_seeds is None else n_seeds
    if n_seeds < 2:
        raise UbrainError(f"n_seeds is {n_seeds}: differences between variants need two or more")
    jobs = [(v, seed) for seed in range(lab.seed, lab.seed + n_seeds) for v in chosen]
    rows = []
    for v, seed in track(jobs, len(jobs), "ablations"):
        source = source_of(lab, v, seed)
        encoder = lab.encoder(subjects_of(lab), v.encoder, v.training, seed, source)
        shared = sum(p.numel() for p in encoder.shared_parameters())
        for s in subjects_of(lab):
            measured, test = lab.measured(s), lab.crowd[s].image_rows("test")
            predicted = predict.predict(encoder, source, s, test)
            r = float(np.nanmedian(scores.correlation(predicted, measured)))
            top1 = scores.top_k(scores.retrieval_ranks(predicted, measured), 1)
            rows.append([v.name, v.group, seed, s, shared, r, top1])
            lab.record(f"median_r, seed {seed}", r, v.name, s, unit="r")
    columns = ["variant", "group", "seed", "subject", "shared", "median_r", "top1"]
    return pd.DataFrame(rows, columns=columns)


def source_of(lab: Lab, variant: Variant, seed: int) -> Source:
    """Where the tokens of a variant come from: cached levels, or images through a backbone."""
    if variant.adapter_rank is not None:
        config = replace(lab.profile.backbone, adapter_rank=variant.adapter_rank)
        config = replace(config, resize=variant.resize or config.resize)
        device = choose_device(lab.profile.training.device)
        return choose_source(lab.crowd, config, device, seed)
    if variant.levels is not None:
        return Source(lab.crowd, lab.features.select(variant.levels))
    return lab.source


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
        mean = wide[v.name].mean()
        lab.record(score, mean, v.name, n=len(wide), unit=unit)
        if v.name == FULL:
            continue
        pairs = (wide[v.name] - wide[v.against]).to_numpy()
        found, condition = t_interval(pairs), f"{v.name} − {v.against}"
        lab.record(f"difference in {score}", found.value, condition, interval=found, unit=unit)
        paired = [found.value, found.low, found.high, found.n, pairs]
        rows.append([v.name, v.group, v.against, mean, *paired])
    columns = ["variant", "group", "against", score, "difference", "low", "high", "n", "pairs"]
    return pd.DataFrame(rows, columns=columns)


def outcomes(lab: Lab, in_r: pd.DataFrame, in_top1: pd.DataFrame) -> pd.DataFrame:
    """Which variants are worse or better than what they are compared with, by the intervals, and
    which are open; the shares of those in median r are recorded.

    Parameters
    ----------
    in_r, in_top1 : `differences` of the two scores.

    Returns
    -------
    One row per variant: against, and for each score its mean, the difference with its interval, and
    the outcome: "worse", "better" or "open".
    """
    columns = {"against": in_r.set_index("variant")["against"]}
    for name, frame in (("median_r", in_r), ("top1", in_top1)):
        mine = frame.set_index("variant").rename(columns={"difference": f"{name} difference"})
        columns |= {c: mine[c] for c in (name, f"{name} difference")}
        columns |= {f"{name} {end}": mine[end] for end in ("low", "high")}
        decided = [mine["high"] < 0, mine["low"] > 0]
        sides = np.select(decided, ["worse", "better"], "open")
        columns[f"{name} outcome"] = pd.Series(sides, mine.index)
    table = pd.DataFrame(columns)
    for outcome in ("worse", "better", "open"):
        share = (table["median_r outcome"] == outcome).mean()
        lab.record("ablation_outcome", share, outcome, n=len(table), unit="share")
    return table
