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
COLUMNS = ["area", "voxels", *QUARTILES, "NSD", "repeats", "ceiling", "published"]
CUT = 0.2  # ncsnr above which voxels are in some of the published tables
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
    """Quartiles of a subject's ncsnr by area, and its median ceiling, beside the published ones.

    Returns
    -------
    One row per area, the largest first: voxels, quartiles of ncsnr, those of NSD in an area of that
    name (of the same subject, or else the mean of four subjects; "": nothing is published), repeats
    and ceiling (median, percent: 100 · ncsnr² / (ncsnr² + 1 / repeats), for the repeats of which it
    is published, or else those of the test images), and published (NaN: nothing is). Where only
    voxels above some ceiling or ncsnr are published, so are ours, in a row of their own.
    """
    ncsnr = subject.voxels["ncsnr"].to_numpy(np.float64)
    members = [set(str(text).split(",")) - {""} for text in subject.voxels["areas"]]
    sizes = pd.Series([area for mine in members for area in mine], dtype=object).value_counts()
    rows = list[dict[str, Any]]()
    for area in _areas(subject, [str(area) for area in sizes.index]):
        inside = [not area.of or (bool(area.of & m) and not area.without & m) for m in members]
        values = ncsnr[np.array(inside, dtype=bool) & np.isfinite(ncsnr)]
        values = values[values >= area.least]
        if len(values):
            quartiles = dict(zip(QUARTILES, np.quantile(values, (0.25, 0.5, 0.75)), strict=True))
            row = {"area": area.label, "voxels": len(values), **quartiles, "repeats": area.repeats}
            row["NSD"] = " ".join(f"{value:.2f}" for value in area.nsd)
            row["ceiling"] = np.median(100 * values**2 / (values**2 + 1 / area.repeats))
            rows.append({**row, "published": area.median})
    return pd.DataFrame(rows, columns=COLUMNS)


class _Area(NamedTuple):
    """Voxels that are in one of some areas, in none of others, with an ncsnr of at least `least`;
    and what is published of them.
    """

    label: str
    of: set[str]
    repeats: float
    without: frozenset[str] = frozenset()
    least: float = 0
    median: float = np.nan
    nsd: tuple[float, ...] = ()


def _areas(subject: Subject, names: list[str]) -> Iterator[_Area]:
    """Rows of a table: all voxels, areas of which ceilings are published, and those by name."""
    known, test = list(_published(subject)), subject.image_rows("test")
    repeats = float(1 / (1 / subject.trials.repeats(test)).mean()) if len(test) else 1.0
    repeats = known[0].repeats if known else repeats
    yield _Area("all", set(), repeats)
    yield from known
    for name in names:
        if name not in {area.label for area in known}:
            yield _Area(name, {name}, repeats, nsd=_of_nsd(subject, name, "all"))
        if cut := _of_nsd(subject, name, "cut"):
            yield _Area(f"{name} (ncsnr above {CUT})", {name}, repeats, least=CUT, nsd=cut)


def _of_nsd(subject: Subject, area: str, voxels: str) -> tuple[float, ...]:
    """Quartiles of ncsnr in NSD: those of this subject of NSD, or else the mean of subjects."""
    table = {name.lower(): values for name, values in _masks()["quartiles"][voxels].items()}
    values = dict(zip(_masks()["quartiles"]["subjects"], table.get(area.lower(), []), strict=False))
    mine = values.get(_number(subject), []) if subject.dataset == "NSD" else []
    if mine or not values:
        return tuple(mine)
    return tuple(np.mean([quartiles for quartiles in values.values() if quartiles], axis=0))


def _published(subject: Subject) -> Iterator[_Area]:
    """Areas with a median ceiling that is published for this dataset and space."""
    space = str(subject.group.attrs["space"])
    for entry in _masks()["ceilings"]:
        if subject.dataset == entry["dataset"] and entry["space"] in ("", space):
            above, n = entry["above"], entry["repeats"]
            least = float(np.sqrt(above / (100 - above) / n))
            for name, said in entry["areas"].items():
                median = _of(said["median"], _number(subject)) or np.nan
                label = f"{name} (above {above} %)" if above else name
                without = frozenset(said.get("without", ()))
                yield _Area(label, set(said["of"]), n, without, least, median)


def _number(subject: Subject) -> int:
    found = re.search(r"(\d+)$", subject.name)
    return int(found[1]) if found else 0


def report(subject: Subject) -> str:
    """The table of `ceilings` as text."""
    table = ceilings(subject)
    if not len(table):
        return f"{subject.name}: ncsnr is unknown"
    text = table.head(SHOWN).to_string(index=False, float_format="{:.2f}".format, na_rep="-")
    more = f"\nand {len(table) - SHOWN} more areas" if len(table) > SHOWN else ""
    head = (
        f"{subject.name}: ncsnr beside quartiles of NSD (1.8 mm); median noise ceiling in percent"
    )
    return f"{head}\n{text}{more}"
