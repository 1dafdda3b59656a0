"""What the doctor says: findings, what to do about each kind, and the thresholds from which on
something is one.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain.data.doctor.sample import Sample

EXPECTED, CHANCE, SURE, ONCE = 8.0, 3.0, 6.0, 4.5  # standard deviations; see `ubrain.data.doctor`
LEVELS = ("error", "warning", "note")

TO_DO = {  # every code, and what to do about it
    "unreadable": "import or simulate the data again",
    "altered-images": (
        "import the data again; splits and cached features would belong to other images"
    ),
    "blank-images": (
        "look at the files; one that could not be read may have been replaced by a blank image"
    ),
    "split-overlap": (
        "give both the same split, or leave one out: a score on these images shows memory, not"
        " prediction"
    ),
    "mirrored-overlap": "look at them: empty horizons do so by chance",
    "orientation": (
        "look at some images, best beside the same ones of another subject, and import them again,"
        " turned. Arrays of MATLAB have to be transposed on reading; and are the hemispheres in the"
        " right order?"
    ),
    "channel-order": "look at some images, and import them again as RGB; OpenCV reads BGR",
    "grey-images": "import the images again, in colour",
    "few-test-images": "hold out more images",
    "no-val-images": "hold out some training images for validation",
    "repeat-numbers": "number the repeats of each image 0, 1, 2, ... in the order of the trials",
    "short-sessions": "join sessions, or leave these out",
    "not-finite": "import again without these voxels",
    "not-z-scored": (
        "import again; responses are z-scored on reading, with numbers that are not theirs"
    ),
    "constant-voxels": "leave them out: they cannot be predicted, and pull every mean down",
    "duplicate-voxels": "keep one of each: copies count several times in every mean and interval",
    "scale": "check the scale factor of the import: it may have been applied twice, or not at all",
    "ncsnr-range": "check its unit: percent and r² are not ncsnr",
    "ncsnr-missing": "import without an ncsnr column: then it is computed from the repeats",
    "ncsnr-disagrees": "check its unit, and that its voxels are in the order of the responses",
    "repeats-do-not-agree": (
        "the rows of responses and of trials are not in the same order; import again"
    ),
    "shifted-trials": (
        "shift the trial list against the responses: a trial was lost or added, or an index counts"
        " from 1"
    ),
    "session-disagrees": "compare its trial list with the responses, or leave the session out",
    "images-do-not-fit": (
        "images and responses are probably not in the same order: does the image index count"
        " from 1?"
    ),
    "versions-differ": (
        "look at some images of both: in one of the two an index probably counts from 1 instead"
        " of 0"
    ),
    "copied-subject": "one recording was imported twice; leave one out",
    "area-names": (
        "correct the names; results are averaged by name, and voxels without an area have none"
    ),
    "area-sizes": "check which number of the label file is which area",
    "areas-missing": "import the areas, or leave it so if they were not found in this subject",
    "not-checked": "nothing",
    "sampled": "nothing; another seed looks at others",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that could not be checked.

    Attributes
    ----------
    code : kind of finding, for programs.
    level : "error" (results would be wrong), "warning" (look at it) or "note".
    where : subject, and sessions, voxels or images.
    what : what was found, with the numbers.
    how_bad : the number on which the finding rests; `what` says which.
    """

    code: str
    level: str
    where: str
    what: str
    how_bad: float

    @property
    def to_do(self) -> str:
        """What to do about it."""
        return TO_DO[self.code]


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if there are errors, 1 if there are warnings, else 0."""
    return max((2 - LEVELS.index(f.level) for f in findings), default=0)


def table(findings: Iterable[Finding]) -> pd.DataFrame:
    """The findings as a table, one a row; for notebooks."""
    rows = [asdict(f) | {"to_do": f.to_do} for f in findings]
    return pd.DataFrame(rows, columns=[*Finding.__dataclass_fields__, "to_do"])


def as_json(findings: Iterable[Finding]) -> str:
    """The findings as a JSON list of objects with the columns of `table`."""
    return str(table(findings).to_json(orient="records", indent=1, force_ascii=False))


def report(findings: list[Finding]) -> str:
    """The findings as text: how many, and for each what was found, where, and what to do."""
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    lines = [", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items())]
    for f in findings:
        lines += [
            f"{f.level:<8} {f.code} | {f.where}",
            f"         {f.what}",
            f"         to do: {f.to_do}",
        ]
    return "\n".join(lines)


def listed(names: ArrayLike, most: int = 6) -> str:
    """Names or numbers, of which only the first are shown."""
    all_names = [str(n) for n in np.asarray(names, dtype=object)]
    more = len(all_names) - most
    return ", ".join(all_names[:most]) + (f" and {more} more" if more > 0 else "")


def in_voxels(s: Sample, which: NDArray[np.bool_]) -> str:
    """A subject and some of its voxels."""
    return f"{s.name}, voxels {listed(np.flatnonzero(which))}"


def in_units(s: Sample, which: NDArray[np.int64]) -> str:
    """Sessions, or runs where responses are z-scored by run."""
    return f"{s.name}, {'runs' if s.trials.normalise == 'run' else 'sessions'} {listed(which)}"
