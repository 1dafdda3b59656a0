"""Which voxels are meant: masks that are published, with the number of voxels in each subject, and
what others report of their noise ceilings (masks.toml).
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ubrain.crowd import Subject
from ubrain.errors import UbrainError

QUARTILES = ["ncsnr 25%", "ncsnr 50%", "ncsnr 75%"]
COLUMNS = ["area", "voxels", *QUARTILES, "repeats", "ceiling", "published"]
SHOWN = 20  # areas of a subject


@cache
def _masks() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("masks.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


class Selection(NamedTuple):
    """A mask that an importer has selected as a whole.

    Parameters
    ----------
    where : dataset and space, as in masks.toml.
    mask : its name.
    subject : number, from 1.
    size : of the grid, or of what else says that the files are those published.
    n : number of voxels in it.
    """

    where: str
    mask: str
    subject: int
    size: tuple[int, ...]
    n: int


def named(where: str, areas: str) -> str:
    """The areas that a named selection consists of; others as they are."""
    return str(_masks()["names"].get(where, {}).get(areas.strip().lower(), areas))


def compare(selections: Iterable[Selection], unusual: bool, source: str) -> list[str]:
    """Sentences that compare masks with the published ones; nothing where none is published, or
    the files have another size than the published ones.

    Raises
    ------
    UbrainError
        If the number of voxels is another one, it is sure, and `unusual` is False.
    """
    said = []
    for where, mask, subject, size, n in selections:
        if list(size) != _of(_masks()["sizes"].get(where, []), subject):
            continue
        counts = {name.lower(): n for name, n in _masks()["counts"][where].items()}
        expected = _of(counts.get(mask.lower(), []), subject)
        if not expected:
            continue
        unsure = subject in _masks()["unsure"].get(where, [])
        text = f"{mask}: {n:,} voxels, as {'reported (unconfirmed)' if unsure else 'published'}"
        if n != expected and unsure:
            text = f"{mask}: {n:,} voxels; {expected:,} are reported (unconfirmed)"
        elif n != expected and unusual:
            text = f"{mask}: {n:,} voxels; published are {expected:,} (--unusual)"
        elif n != expected:
            raise UbrainError(
                f"{source}: {mask} has {n:,} voxels, but {expected:,} as published; are these this"
                " subject's files, complete and as published? --unusual imports them as they are"
            )
        said.append(text)
    return said


def _of(values: list[Any], subject: int) -> Any:
    """What is said of a subject; a single value is that of all."""
    if len(values) == 1:
        return values[0]
    return values[subject - 1] if 1 <= subject <= len(values) else 0


def ceilings(subject: Subject) -> pd.DataFrame:
    """Quartiles of a subject's ncsnr by area, and its median ceiling beside the published one.

    Returns
    -------
    One row per area, the largest first: voxels, quartiles of ncsnr, repeats and ceiling (median,
    percent: 100 · ncsnr² / (ncsnr² + 1 / repeats), for the repeats of which it is published, or
    else those of the test images), and published (NaN: nothing is). Where medians are published of
    voxels above some ceiling, so are ours.
    """
    ncsnr = subject.voxels["ncsnr"].to_numpy(np.float64)
    members = [set(str(text).split(",")) - {""} for text in subject.voxels["areas"]]
    known, rows = list(_published(subject)), list[dict[str, Any]]()
    test = subject.image_rows("test")
    repeats = float(1 / (1 / subject.trials.repeats(test)).mean()) if len(test) else 1.0
    repeats = known[0].repeats if known else repeats
    sizes = pd.Series([area for mine in members for area in mine], dtype=object).value_counts()
    plain = [_Ceiling(area, {area}, set(), repeats, 0, np.nan) for area in sizes.index]
    names = {c.area for c in known if not c.above}
    for area, of, without, n, above, published in (
        _Ceiling("all", set(), set(), repeats, 0, np.nan),
        *known,
        *(c for c in plain if c.area not in names),
    ):
        inside = [not of or (bool(of & mine) and not without & mine) for mine in members]
        values = ncsnr[np.array(inside, dtype=bool) & np.isfinite(ncsnr)]
        percent = 100 * values**2 / (values**2 + 1 / n)
        values, percent = values[percent >= above], percent[percent >= above]
        if len(values):
            label = f"{area} (above {above} %)" if above else area
            quartiles = dict(zip(QUARTILES, np.quantile(values, (0.25, 0.5, 0.75)), strict=True))
            more = {"repeats": n, "ceiling": float(np.median(percent)), "published": published}
            rows.append({"area": label, "voxels": len(values), **quartiles, **more})
    return pd.DataFrame(rows, columns=COLUMNS)


class _Ceiling(NamedTuple):
    """A median noise ceiling of voxels that are in an area, and not in another."""

    area: str
    of: set[str]
    without: set[str]
    repeats: float
    above: float
    median: float


def _published(subject: Subject) -> Iterator[_Ceiling]:
    number = re.search(r"(\d+)$", subject.name)
    space = str(subject.group.attrs["space"])
    for entry in _masks()["ceilings"]:
        if subject.dataset == entry["dataset"] and entry["space"] in ("", space):
            for area, said in entry["areas"].items():
                median = _of(said["median"], int(number[1]) if number else 0) or np.nan
                of, without = set(said["of"]), set(said.get("without", ()))
                yield _Ceiling(area, of, without, entry["repeats"], entry["above"], median)


def report(subject: Subject) -> str:
    """The table of `ceilings` as text."""
    table = ceilings(subject)
    if not len(table):
        return f"{subject.name}: ncsnr is unknown"
    text = table.head(SHOWN).to_string(index=False, float_format="{:.2f}".format, na_rep="-")
    more = f"\nand {len(table) - SHOWN} more areas" if len(table) > SHOWN else ""
    return f"{subject.name}: ncsnr, and median noise ceiling in percent\n{text}{more}"
