"""What numbers are judged on: a crowd, its splits and a profile, under one name and version.

Numbers of different suites are not compared: the tables of `ubrain.report.claims` refuse them, and
`ubrain.report.results.compare` says so.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ubrain.config import Profile
from ubrain.crowd import Crowd
from ubrain.data.simulate import truth
from ubrain.trials import Rows

VERSION = 1  # raised when what the same data, splits and profile are judged on changes
RANDOM, CATEGORY, BACKGROUND = SPLITS = ("random", "held-out category", "held-out background")
# What no training shows: frozen, so that numbers of the same name can be compared.
HELD_CATEGORY, HELD_BACKGROUND = "vehicle", "indoor"


@dataclass(frozen=True)
class Suite:
    """Name, version and digest; two numbers are of one suite if all three are the same."""

    name: str
    version: int
    digest: str


def suite_of(crowd: Crowd, name: str, profile: Profile) -> Suite:
    """The suite of a crowd file's numbers: its digest covers every value of the profile and, of
    recordings, images, splits, trials and responses; of simulated subjects, all that they are made
    from, as what comes of it differs in the last digits from one processor to the other.

    Parameters
    ----------
    name : of the crowd, such as "sim", to which the profile's is added.
    """
    if truth.subjects(crowd) == list(crowd.subjects):
        splits: Any = [crowd.scheme, HELD_CATEGORY, HELD_BACKGROUND]
        data: Any = {subject: truth.settings(crowd, subject) for subject in crowd.subjects}
    else:
        splits = {split: rows.tolist() for split, rows in split_rows(crowd).items()}
        data = crowd.fingerprint
    parts = json.dumps([data, splits, asdict(profile)], sort_keys=True)
    digest = hashlib.blake2b(parts.encode(), digest_size=6).hexdigest()
    return Suite(f"ubrain-{name}-{profile.name}", VERSION, digest)


def split_rows(crowd: Crowd) -> dict[str, Rows]:
    """Rows of the images that each named split judges on, whatever their split in the file: those
    that show the held-out category, those with the held-out background, and for "random" the rest.

    An image may show both. Of recordings nobody has written down what the images show, and all are
    "random"; what is published stands in their files: the test images of GOD show categories that
    its train images do not, and MOSAIC keeps artificial images (NSD-synthetic) on request.
    """
    scenes: Mapping[str, Any] = truth.scenes(crowd) if crowd.simulated else {}
    shown = [scenes.get(i, {"place": "", "objects": []}) for i in crowd.image_ids]
    held = {
        CATEGORY: [any(o["category"] == HELD_CATEGORY for o in s["objects"]) for s in shown],
        BACKGROUND: [s["place"] == HELD_BACKGROUND for s in shown],
    }
    rest = ~np.any(list(held.values()), axis=0)
    return {s: np.flatnonzero(mask) for s, mask in {RANDOM: rest, **held}.items() if np.any(mask)}
