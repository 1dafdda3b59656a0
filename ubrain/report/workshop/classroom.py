"""What a class does together: results are pooled, and a neighbour gets a file with a fault."""

import secrets
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain import paths
from ubrain.analysis import stats
from ubrain.data.crowdfile import content_digest
from ubrain.errors import UbrainError

FAULTS = ("transpose", "shift")
COLUMNS = ["pair", "newcomer", "n_images", "ridge", "matching"]


def result_line(pair: int, newcomer: str, n_images: int, ridge: float, matching: float) -> str:
    """A result as a line of text to paste: pair, newcomer, images, two values of median r."""
    return f"{pair},{newcomer},{n_images},{ridge:.4f},{matching:.4f}"


def pool(lines: str) -> pd.DataFrame:
    """The results of a class: mean over pairs with Student's 95 % interval.

    Parameters
    ----------
    lines : lines of `result_line`, pasted; a line that is there twice counts once.

    Returns
    -------
    One row per method and number of images: method, n_images, value, low, high, n (pairs).

    Raises
    ------
    UbrainError
        Naming the first line that is none.
    """
    rows = []
    for line in dict.fromkeys(text.strip() for text in lines.splitlines() if text.strip()):
        try:
            pair, newcomer, n_images, ridge, matching = line.split(",")
            rows.append([int(pair), newcomer, int(n_images), float(ridge), float(matching)])
        except ValueError:
            raise UbrainError(
                f"{line[:60]!r} is no result: expected a line such as 7,S5,25,0.1332,0.4189"
            ) from None
    table = pd.DataFrame(rows, columns=COLUMNS)
    found = []
    for method in COLUMNS[3:]:
        for n_images, values in table.groupby("n_images")[method]:
            mean = stats.t_interval(values)
            found.append([method, n_images, mean.value, mean.low, mean.high, mean.n])
    return pd.DataFrame(found, columns=["method", "n_images", "value", "low", "high", "n"])


def sabotage(clean: str | Path, out: str | Path, fault: str | None = None) -> None:
    """Write a copy of a crowd file with a fault, as an import could have made it. The fault is not
    printed.

    Parameters
    ----------
    clean : crowd file.
    out : file to write.
    fault : "transpose": rows and columns of all images are swapped; "shift": in each session, the
        responses are those of the trial before. None draws one of them.
    """
    chosen = secrets.choice(FAULTS) if fault is None else fault
    if chosen not in FAULTS:
        raise UbrainError(f"unknown fault {chosen!r}: expected one of {', '.join(FAULTS)}")
    with paths.atomic(Path(out)) as partial:
        partial.write_bytes(Path(clean).read_bytes())
        with h5py.File(partial, "r+") as file:
            _transpose(file) if chosen == "transpose" else _shift(file["subjects"].values())


def _transpose(file: h5py.File) -> None:
    """Swap rows and columns of all images. Their digests follow: an import computes them itself."""
    images, content = file["images"], file["images/content"].asstr()[:]
    shape, place = images["shape"][:], images["row"][:]
    if (shape[:, 0] != shape[:, 1]).any():
        raise UbrainError("only square images can be transposed in place")
    for size in np.unique(shape[:, 0]):
        pixels = images[f"pixels/{size}x{size}"]
        swapped = pixels[:].transpose(0, 2, 1, 3)
        pixels[...] = swapped
        for row in np.flatnonzero(shape[:, 0] == size):
            content[row] = content_digest(swapped[place[row]])
    images["content"][...] = content


def _shift(subjects: Iterable[h5py.Group]) -> None:
    """Move the responses of each session by one trial; the last one comes first."""
    for subject in subjects:
        session = subject["trials/session"][:]
        values: NDArray = subject["responses"][:]
        for number in np.unique(session):
            values[session == number] = np.roll(values[session == number], 1, axis=0)
        subject["responses"][...] = values
