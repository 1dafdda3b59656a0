"""The paper against here: every size and choice side by side, here as the profiles say.

`faithfulness.toml` has the facts about the paper and its released code. `ubrain notebooks` writes
the table into `docs/faithfulness.md`.
"""

import tomllib
from importlib import resources
from typing import Any

import pandas as pd

from ubrain.config import Profile, TrainingConfig, TransferConfig, load_profile

UNKNOWN = "to be transcribed from the PDF"
PROFILES = ("paper", "fast")


def read() -> dict[str, Any]:
    """What is known of the paper and of the released code: `sources`, and one `row` per choice."""
    file = resources.files("ubrain.report").joinpath("faithfulness.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def table(short: bool = False) -> pd.DataFrame:
    """One row per choice: the paper, the released code, and each profile.

    Parameters
    ----------
    short : only the choices that matter most.
    """
    rows = [row for row in read()["row"] if row.get("short") or not short]
    known = {name: counted(load_profile(name)) for name in PROFILES}
    columns = {
        "paper": [row.get("paper", UNKNOWN) for row in rows],
        "released code": [row["released"] for row in rows],
        **{f"profile {name}": [here(row, known[name]) for row in rows] for name in PROFILES},
    }
    keys = [(row["about"], row["choice"]) for row in rows]
    return pd.DataFrame(columns, pd.MultiIndex.from_tuples(keys, names=["", "choice"]))


def here(row: dict[str, Any], known: dict[str, Any]) -> str:
    """What is done here; `otherwise` of the row, if there is no such option, or it is None."""
    try:
        text = row["here"].format(**known)
    except (AttributeError, TypeError):
        text = row["otherwise"].format(**known)
    for value, words in row.get("words", {}).items():
        text = text.replace(value, words)
    return text


def counted(profile: Profile) -> dict[str, Any]:
    """Fields of a profile, and what follows from them, by the names used in the rows."""
    backbone, training = profile.backbone, profile.training
    plateau = training.schedule == "plateau"
    grid, rank = backbone.grid, backbone.adapter_rank
    limits = f"patience {training.patience}, factor {training.factor:g}"
    return vars(profile) | {
        "crowds": ", ".join(f"{s.subjects} brains at {s.scanner}" for s in profile.simulation),
        "n_levels": len(backbone.levels),
        "levels": ", ".join(str(level + 1) for level in backbone.levels),
        "tokens": f"{grid**2}: {grid} × {grid} places" if grid else "257: class token and 16 × 16",
        "adapters": f"rank {rank}, alpha {backbone.adapter_alpha:g}" if rank else "none",
        "optimiser": "Adam with AMSGrad" if plateau else "Adam",
        "schedule": f"plateau of the validation score: {limits}, threshold {training.threshold:g}"
        if plateau
        else training.schedule,
        "epochs": epochs(training),
        "transfer_epochs": epochs(profile.transfer),
        "shift": f"± {training.image_shift}" if rank else "none: features are cached",
        "transfer_images": ", ".join(f"{n:,}" for n in profile.transfer.n_images),
    }


def epochs(config: TrainingConfig | TransferConfig) -> str:
    """How many epochs, and the fewest steps if there is such a number."""
    least = f", at least {config.min_steps:,} steps" if config.min_steps else ""
    return f"{config.epochs}{least}"


def page() -> str:
    """The text of `docs/faithfulness.md`."""
    wide = table().reset_index()
    lines = [list(wide.columns), ["---"] * len(wide.columns), *wide.to_numpy().tolist()]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    data = read()
    return data["page"].format(rows=rows, unknown=UNKNOWN, **data["sources"])
