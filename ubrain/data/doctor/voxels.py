"""Questions about voxels: are numbers possible, is each there once, are areas what they say?"""

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ubrain.data.doctor.findings import Finding, in_units, in_voxels, listed
from ubrain.data.doctor.sample import Sample

COMPARED_VOXELS = 1 << 16  # voxels of subjects that are compared at a time
PAIRED_BYTES = 192 << 20  # of responses in which copies of voxels are sought
# Voxels at most: twice what the largest subject has; elsewhere vertices of a surface. With the
# voxels that the label file calls -1 it would be more.
NSDGENERAL = {"func1pt8mm": 40_000, "func1mm": 232_000}
NSDGENERAL_ELSEWHERE = 100_000
EARLY = {area: re.compile(f"{area}[vd]?", re.I) for area in ("V1", "V2", "V3")}
NO_AREA = {"0", "-1", "nan", "none", "null", "unknown", "unlabeled", "background", "???", "*"}


def finite(s: Sample) -> Iterator[Finding]:
    """Is every number one?"""
    bad = ~(np.isfinite(s.raw_moments).all((0, 1)) & np.isfinite(s.moments).all((0, 1)))
    if bad.any():
        what = f"{bad.sum()} voxels have responses or session moments that are NaN or infinite"
        yield Finding("not-finite", "error", in_voxels(s, bad), what, float(bad.mean()))


def stored_moments(s: Sample) -> Iterator[Finding]:
    """Do the moments, with which responses are z-scored on reading, belong to the responses?

    The mean of n of the N trials of a session has the standard error σ / √n · √((N − n) / (N − 1)),
    and the standard deviation one of about σ times that: 0 if all trials were read, so that then
    every single voxel is judged, up to rounding.
    """
    total, n = s.trial_counts
    error = 5 * np.sqrt((total - n) / np.maximum(total - 1, 1) / np.maximum(n, 1))[:, None]
    wrong, off = np.empty(s.moments.shape[1:], bool), np.empty(s.moments.shape[1:], np.float32)
    for start in range(0, s.subject.n_voxels, COMPARED_VOXELS):
        block = np.s_[:, start : start + COMPARED_VOXELS]
        stored, found = s.moments[:, *block].astype(np.float64), s.raw_moments[:, *block]
        eps = float(np.finfo(s.group["responses"].dtype).eps)
        rounding = 4 * eps * (np.abs(found[0]) + 5 * found[1]) + 1e-30
        away = np.nan_to_num(np.abs(stored - found), posinf=float(np.finfo(np.float32).max))
        wrong[block] = away[0] > error * stored[1] + rounding
        # the error of a standard deviation is that of its logarithm
        wrong[block] |= away[1] > np.expm1(error) * np.minimum(stored[1], found[1]) + rounding
        off[block] = away.max(0)
    share = wrong.mean(1)
    bad = np.flatnonzero(np.where(n < total, share > 0.25, share > 0) & (n > 1))
    if len(bad):
        deviation, (mean, scale) = s.raw_moments[1, bad][wrong[bad]], s.moments[:, bad]
        by = float(np.median(off[bad][wrong[bad]] / np.maximum(deviation, 1e-30)))
        plain = np.allclose(mean, 0, atol=1e-6) and np.allclose(scale, 1, atol=1e-6)
        why = (
            "the file takes the responses for z-scored, but they are not"
            if plain
            else "they are those of other responses"
        )
        what = (
            f"the stored mean or standard deviation of {share[bad].mean():.0%} of the voxels is off"
            f" by {by:.2g} standard deviations of the responses: {why}"
        )
        yield Finding("not-z-scored", "error", in_units(s, bad), what, by)
    elif s.trials.normalise == "none":
        yield from _z_scored_already(s)


def _z_scored_already(s: Sample) -> Iterator[Finding]:
    """Averages of up to 35 z-scored repeats keep mean 0, and a standard deviation of 1/√35 to 1."""
    mean, deviation = np.abs(s.raw_moments[0][:, ~s.constant]), s.raw_moments[1][:, ~s.constant]
    if mean.size and (np.median(mean) > 0.5 or not 0.1 < np.median(deviation) < 2):
        what = (
            "the file says that responses are z-scored, but the median voxel has the mean"
            f" ±{np.median(mean):.3g} and the standard deviation {np.median(deviation):.3g}"
        )
        yield Finding("not-z-scored", "error", s.name, what, float(np.median(deviation)))


def constant_voxels(s: Sample) -> Iterator[Finding]:
    """Voxels that never change."""
    if s.constant.any():
        what = f"{s.constant.sum()} voxels never change within a session"
        share = float(s.constant.mean())
        yield Finding("constant-voxels", "warning", in_voxels(s, s.constant), what, share)


def sessions_of_one_size(s: Sample) -> Iterator[Finding]:
    """Gains of sessions differ by some ten per cent; a factor of 10 is halfway to one of 100."""
    ratio = s.sizes / max(float(np.median(s.sizes)), 1e-30) if len(s.sizes) else np.empty(0)
    odd = np.flatnonzero((ratio > 10) | (ratio < 0.1))
    if len(odd):
        worst = float(ratio[odd][np.argmax(np.abs(np.log(np.maximum(ratio[odd], 1e-30))))])
        what = f"responses are {worst:.3g} times as large as in the median session"
        yield Finding("scale", "warning", in_units(s, odd), what, worst)


def size_of_responses(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Percent signal change has a standard deviation of 1 to 3, z-scores 1, averages 0.17 or more.

    A factor of 300 too much or too little is told from that halfway, in logarithm: at 30, and at
    1/√300, which is 0.06.
    """
    sizes = [float(np.median(p.sizes)) for p in (s, *peers) if len(p.sizes)]
    if not len(s.sizes) or s.trials.normalise == "none":
        return
    ratio = sizes[0] / max(float(np.median(sizes)), 1e-30) if len(sizes) > 2 else 1.0
    if not 0.05 < sizes[0] < 30:
        what = (
            f"the median voxel has a standard deviation of {sizes[0]:.3g}; percent signal change"
            " has 1 to 3 (NSD's files hold 300 times that), z-scores have 1"
        )
        yield Finding("scale", "warning", s.name, what, sizes[0])
    elif not 0.1 < ratio < 10:
        what = (
            f"responses are {ratio:.3g} times as large as those of the other subjects of"
            f" {s.subject.dataset}"
        )
        yield Finding("scale", "warning", s.name, what, ratio)


def duplicate_voxels(s: Sample) -> Iterator[Finding]:
    """Columns that correlate above 0.999 over 12 trials or more: by chance 1 pair in 1e14 does.

    Copies have the same projection on random weights, so it is enough to compare neighbours in the
    order of projections.
    """
    most = max(24, PAIRED_BYTES // (4 * s.subject.n_voxels))
    rows = np.sort(s.rng.permutation(s.raw_rows)[: min(most, 256)])
    usable = np.flatnonzero(~s.constant & np.isfinite(s.raw_moments).all((0, 1)))
    if len(rows) < 12:
        return
    z, values = (
        np.zeros((len(rows), len(usable)), np.float32),
        s.trials.raw(rows),
    )
    for row, unit in enumerate(s.unit[rows]):
        mean, deviation = s.raw_moments[:, unit, usable]
        np.divide(
            values[row, usable] - mean,
            deviation,
            out=z[row],
            where=deviation > 0,
            casting="same_kind",
        )
    del values
    z -= z.mean(0)
    z /= np.maximum(np.linalg.norm(z, axis=0), 1e-12)
    order = np.argsort(s.rng.standard_normal(len(z)).astype(np.float32) @ z)
    copies = np.zeros(s.subject.n_voxels, bool)
    for step in range(1, min(5, len(order))):
        for start in range(0, len(order) - step, COMPARED_VOXELS):
            left = order[start : start + COMPARED_VOXELS][: len(order) - step - start]
            right = order[start + step : start + step + COMPARED_VOXELS]
            alike = (z[:, left] * z[:, right]).sum(0) > 0.999
            copies[usable[left[alike]]] = copies[usable[right[alike]]] = True
    if copies.any():
        what = f"{copies.sum()} voxels are copies of one another (correlation above 0.999)"
        share = float(copies.mean())
        yield Finding("duplicate-voxels", "warning", in_voxels(s, copies), what, share)


def copied_subject(a: Sample, b: Sample) -> Iterator[Finding]:
    """Noise is never the same: over 12 images no voxel of one subject should be one of another."""
    same = a.group.attrs["digest"] == b.group.attrs["digest"]
    same |= a.moments_digest == b.moments_digest
    share = 1.0 if same else _shared_voxels(a, b)
    if share > 0.05:
        what = f"{share:.0%} of the voxels of {a.name} are also voxels of {b.name}, noise included"
        level = "error" if share > 0.5 else "warning"
        yield Finding("copied-subject", level, f"{a.name}, {b.name}", what, share)


def _shared_voxels(a: Sample, b: Sample) -> float:
    """Share of a's kept voxels that correlate above 0.99 with a voxel of b over common images."""
    images = sorted(a.common.keys() & b.common.keys())
    if len(images) < 12:
        return 0.0
    x = _of_length_1(np.stack([a.common[i] for i in images]))
    best = np.full(x.shape[1], -1.0)
    for start in range(0, b.subject.n_voxels, COMPARED_VOXELS):
        block = slice(start, start + COMPARED_VOXELS)
        y = _of_length_1(np.stack([b.common[i][block] for i in images])[:, ~b.constant[block]])
        best = np.maximum(best, (x.T @ y).max(1, initial=-1))
    return float((best > 0.99).mean()) if best.size else 0.0


def _of_length_1(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = columns - columns.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12)


def area_sizes(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """V1, V2 and V3 are about equally large, V1 varies threefold: a factor of 5 is not nature's."""
    mine, others = s.areas, [p.areas for p in peers if p.areas]
    if not mine and others:
        what = f"no voxel is in an area, but the other subjects of {s.subject.dataset} have areas"
        yield Finding("areas-missing", "warning", s.name, what, 0)
        return
    odd = {area: (n, why) for area, n, why in (*_odd_early_areas(s), *_odd_nsdgeneral(s))}
    shared = sorted(set(mine).intersection(*others)) if others else []
    for area in shared:
        usual = float(np.median([o[area] / sum(o.values()) for o in others])) * sum(mine.values())
        if not odd and (_far_larger(mine[area], usual) or _far_larger(usual, mine[area])):
            odd[area] = mine[area], f"where the other subjects would have about {usual:.0f}"
    for area, (n, why) in odd.items():
        what = f"{area} has {n} voxels, {why}"
        yield Finding("area-sizes", "warning", f"{s.name}, {area}", what, n)
    missing = sorted(set.intersection(*map(set, others)) - set(mine)) if len(others) > 1 else []
    if missing:
        what = (
            f"{len(missing)} areas that all other subjects of {s.subject.dataset} have are absent"
        )
        yield Finding("areas-missing", "note", f"{s.name}, {listed(missing)}", what, len(missing))


def _odd_early_areas(s: Sample) -> Iterator[tuple[str, int, str]]:
    """An area, its size and why that cannot be; V1 is also what is called V1v or V1d."""
    together = s.subject.voxels["areas"].value_counts()
    sizes = {
        area: sum(
            int(n)
            for names, n in together.items()
            if any(map(pattern.fullmatch, re.split(r"\s*,\s*", names)))
        )
        for area, pattern in EARLY.items()
    }
    known = sorted((n, area) for area, n in sizes.items() if n)
    if known and _far_larger(known[-1][0], known[0][0]):
        yield known[-1][1], known[-1][0], f"but {known[0][1]} only {known[0][0]}"
    elif known and len(s.areas) > 2 and known[-1][0] > s.subject.n_voxels / 2:
        yield known[-1][1], known[-1][0], f"more than half of all {s.subject.n_voxels}"


def _odd_nsdgeneral(s: Sample) -> Iterator[tuple[str, int, str]]:
    n, most = s.areas.get("nsdgeneral", 0), NSDGENERAL.get(s.subject.space, NSDGENERAL_ELSEWHERE)
    if n > most:
        yield (
            "nsdgeneral",
            n,
            f"but nobody has more than {most}: does it include the voxels that are numbered -1?",
        )


def _far_larger(a: float, b: float) -> bool:
    """More than 5 times as large, by more than 5 standard deviations of counts."""
    return a - 5 * b > 5 * float(np.sqrt(a + 25 * b))


def area_names(samples: list[Sample]) -> Iterator[Finding]:
    """One area spelled in several ways; names that mean no area."""
    spelled: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for s in samples:
        for area in s.areas:
            spelled[re.sub(r"[\s_-]+", "", area.casefold())][area].append(s)
        none = [a for a in s.areas if a.casefold() in NO_AREA]
        if none:
            n = sum(s.areas[a] for a in none)
            what = f"{n} voxels are in areas whose name means none"
            yield Finding("area-names", "warning", f"{s.name}, {listed(none)}", what, n)
    for ways in spelled.values():
        if len(ways) > 1:
            rare = min(ways, key=lambda way: sum(s.areas[way] for s in ways[way]))
            where = f"{', '.join(s.name for s in ways[rare])}, {rare}"
            what = f"one area is spelled in {len(ways)} ways: {', '.join(sorted(ways))}"
            yield Finding("area-names", "warning", where, what, len(ways))
