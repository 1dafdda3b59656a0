"""Questions about trials: do responses belong to their images, by repeats, ncsnr and pixels?"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ubrain.data.doctor.findings import CHANCE, EXPECTED, ONCE, SURE, Finding, in_units, in_voxels
from ubrain.data.doctor.sample import LAGS, Sample, correlation_z, match

MANY_IMAGES = 200  # from which on responses should fit their images even if nothing tells how well


def sizes_of_splits(s: Sample) -> Iterator[Finding]:
    """With fewer than 12 images a voxel's correlation of 0.5 is within chance (one-sided, 5 %)."""
    test, val = (len(s.subject.image_rows(split)) for split in ("test", "val"))
    if test < 12:
        what = f"{test} test images: below 12, a voxel's correlation of 0.5 is within chance"
        yield Finding("few-test-images", "warning", s.name, what, test)
    if val == 0:
        what = "no val images, by which training decides when to stop"
        yield Finding("no-val-images", "warning", s.name, what, val)


def trial_table(s: Sample) -> Iterator[Finding]:
    """Repeats are numbered once each; z-scoring over n trials removes 1/n of the variance.

    10 % is the limit.
    """
    image, repeat = s.trials.image, s.group["trials/repeat"][:].astype(np.int64)
    twice = len(image) - len(np.unique(image * (int(repeat.max(initial=0)) + 1) + repeat))
    if twice:
        what = f"{twice} trials have the image and the repeat number of another trial"
        yield Finding("repeat-numbers", "warning", s.name, what, twice)
    count, _ = s.trial_counts
    short = np.flatnonzero(count < 10)
    if len(short) and s.trials.normalise != "none":
        what = (
            f"{len(short)} of {len(count)} have fewer than 10 trials; z-scoring over so few removes"
            " their signal"
        )
        fewest = float(count[short].min())
        yield Finding("short-sessions", "warning", in_units(s, short), what, fewest)


def repeats(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Do responses to repeats of an image agree, as they are or after a shift of all trials?"""
    if s.reliability is None or not _at_chance(s, peers):
        return
    lags = {
        lag: match(*halves)
        for lag in range(-LAGS, LAGS + 1)
        if lag and len((halves := s.halves(lag))[0]) >= 10
    }
    best = max(lags, key=lambda lag: lags[lag].z, default=0)
    if best and lags[best].z > SURE:
        what = (
            f"repeats of an image agree only if responses are taken {_later(best)} (z ="
            f" {lags[best].z:.0f}, and {s.reliability.z:.1f} as they are)"
        )
        yield Finding("shifted-trials", "error", f"{s.name}, all sessions", what, float(best))
    else:
        what = (
            "responses to repeats of an image agree no more than those to different images (z ="
            f" {s.reliability.z:.1f}, expected at least {_expected_z(s, peers):.0f})"
        )
        yield Finding("repeats-do-not-agree", "error", s.name, what, s.reliability.z)


def _at_chance(s: Sample, peers: list[Sample]) -> bool:
    r = s.reliability
    return r is not None and r.z < CHANCE and _expected_z(s, peers) >= EXPECTED


def _expected_z(s: Sample, peers: list[Sample]) -> float:
    """What agreement of repeats to expect: by ncsnr, by the other subjects, or with 1 % signal."""
    snr = s.subject.voxels["ncsnr"].to_numpy(np.float64)[s.voxels]
    power = np.where(np.isfinite(snr) & (snr >= 0), snr, 0) ** 2
    others = [p.reliability.r for p in peers if p.reliability and p.reliability.z > SURE]
    by_others = float(np.median(others)) if others else 0.0
    signal = max(float(np.mean(power / (1 + power))), by_others, 0.01)
    return signal / s.reliability.sd if s.reliability and s.reliability.sd > 0 else 0.0


def sessions(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Sessions that agree with the repeats in other sessions only after a shift, or not at all."""
    if _at_chance(s, peers):
        return  # said by `repeats`
    shifted = _shifted(s)
    for session, lag in shifted.items():
        z = [s.by_lag[session][k].z for k in (lag, 0)]
        what = (
            "responses agree with the repeats of their images in other sessions only if they are"
            f" taken {_later(lag)} (z = {z[0]:.0f}, and {z[1]:.1f} as they are)"
        )
        yield Finding("shifted-trials", "error", f"{s.name}, session {session}", what, float(lag))
    agreement = [lags[0].r for lags in s.by_lag.values()]
    signal = float(np.median(agreement)) if len(agreement) > 2 else 0.0
    for session in sorted(set(s.by_lag) - set(shifted)):
        here = s.by_lag[session][0]
        if here.sd > 0 and signal / here.sd >= EXPECTED and here.z < CHANCE:
            what = (
                "responses do not agree with the repeats of their images in other sessions (z ="
                f" {here.z:.1f}, expected {signal / here.sd:.0f})"
            )
            where = f"{s.name}, session {session}"
            yield Finding("session-disagrees", "warning", where, what, here.z)


def _shifted(s: Sample) -> dict[int, int]:
    """Session -> lag at which it agrees far better with other sessions than as it is."""
    best = {session: max(lags, key=lambda lag: lags[lag].z) for session, lags in s.by_lag.items()}
    return {
        i: lag
        for i, lag in best.items()
        if lag and s.by_lag[i][lag].z > SURE + max(s.by_lag[i][0].z, 0)
    }


def _later(lag: int) -> str:
    return f"{abs(lag)} trial{'s' if abs(lag) > 1 else ''} {'later' if lag > 0 else 'earlier'}"


def ncsnr(s: Sample) -> Iterator[Finding]:
    """Is ncsnr possible, and is it that of the repeats? (After `measure`.)"""
    stored = s.subject.voxels["ncsnr"].to_numpy(np.float64)
    high = "above 5: single trials would be 96 % signal, which no scanner measures"
    for bad, level, what in ((stored < 0, "error", "negative"), (stored > 5, "warning", high)):
        bad = bad & ~s.constant
        if bad.any():
            worst = float(stored[bad][np.argmax(np.abs(stored[bad]))])
            what = f"ncsnr of {bad.sum()} voxels is {what} (the worst: {worst:.3g})"
            yield Finding("ncsnr-range", level, in_voxels(s, bad), what, worst)
    if s.repeated and np.isnan(stored).all():
        what = "ncsnr is unknown in all voxels, but images were repeated"
        yield Finding("ncsnr-missing", "warning", s.name, what, 1)
    elif s.reliability is not None and s.reliability.z > CHANCE and not _shifted(s):
        yield from _ncsnr_of_repeats(s, stored)


def _ncsnr_of_repeats(s: Sample, stored: NDArray[np.float64]) -> Iterator[Finding]:
    """Is 1 / (1 + ncsnr²) the noise variance that the repeats have?

    Beyond 10 % and 3 standard errors of it should lie at most 1 voxel in 9. And over voxels the two
    should correlate, all the more the more voxels differ beyond the error of the estimate; else
    ncsnr is that of other voxels.
    """
    noise, error = s.repeat_noise()
    snr = stored[s.voxels]
    implied = 1 / (1 + snr**2)
    usable = (snr >= 0) & (snr <= 5) & (noise > 0) & ~s.constant[s.voxels]
    off = (np.abs(noise - implied) > 0.1 * implied + 3 * error) & ~((snr == 0) & (noise > 1))
    if usable.sum() < 12:
        return
    share, found = float(off[usable].mean()), np.sqrt(np.maximum(1 / noise[usable] - 1, 0))
    x, y = np.log(implied[usable]), np.log(noise[usable])
    spread, blur = float(np.std(x)), float(np.median(error[usable] / noise[usable]))
    r = min(spread / max(np.hypot(spread, blur), 1e-30), 0.999)
    expected = np.arctanh(r) * np.sqrt(len(x) - 3)
    if share > 1 / 3:
        what = (
            f"ncsnr of {share:.0%} of the voxels is not that of the repeats (median"
            f" {np.median(snr[usable]):.2f} in the file, {np.median(found):.2f} by the repeats)"
        )
        yield Finding("ncsnr-disagrees", "warning", s.name, what, share)
    elif expected >= EXPECTED and (z := correlation_z(rankdata(x), rankdata(y))) < CHANCE:
        what = (
            f"ncsnr has no relation to that of the repeats (over voxels, z = {z:.1f}, expected"
            f" {expected:.0f})"
        )
        yield Finding("ncsnr-disagrees", "warning", s.name, what, z)


def images_fit(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Do images alike in contrast, lightness and colour evoke responses more alike than chance?

    What to expect follows from the subject's other split and from its peers; the statistic grows as
    the number of images. Subjects differ twofold in it, so twice as much is asked for as elsewhere.
    """
    if _at_chance(s, peers) or _shifted(s):
        return  # said by `repeats` or `sessions`
    rates = [z / n for p in (s, *peers) for z, n in p.fit.values() if z > SURE]
    rate = float(np.median(rates)) if rates else 0.0
    reliable = s.reliability is not None and s.reliability.z > 10
    large = MANY_IMAGES if not rates and (reliable or not fits(s)) else np.inf
    bad = {
        split: (z, n)
        for split, (z, n) in s.fit.items()
        if z < CHANCE and (rate * n >= 2 * EXPECTED or n >= large)
    }
    if bad:
        z, n = min(bad.values())
        why = f"expected {rate * n:.0f}"
        if not rates:
            why = "although repeats agree" if reliable else "without repeats"
        what = (
            f"responses to {n} images have no relation to their contrast, lightness and colour (z ="
            f" {z:.1f}, {why})"
        )
        level, where = "error" if rates else "warning", f"{s.name}, {' and '.join(bad)} images"
        yield Finding("images-do-not-fit", level, where, what, z)


def fits(s: Sample) -> bool:
    """Whether responses have a relation to the pixels of their images in one split at least."""
    return any(z >= CHANCE for z, _ in s.fit.values())


def hemispheres(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """A hemisphere sees the opposite half: the left one prefers contrast at the right."""
    across, down = s.lateral or (0.0, 0.0)
    if across < -ONCE:
        what = (
            f"the left hemisphere prefers contrast at the left (z = {across:.0f}): mirrored images,"
            " or swapped hemispheres"
        )
        yield Finding("orientation", "warning", s.name, what, -across)
    elif abs(down) > ONCE and abs(down) > 2 * abs(across):
        what = (
            f"one hemisphere prefers contrast at the top (z = {abs(down):.0f}), not at one side (z"
            f" = {across:.0f}): rows and columns may be swapped"
        )
        yield Finding("orientation", "warning", s.name, what, abs(down))
