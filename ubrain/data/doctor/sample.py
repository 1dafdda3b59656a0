"""A sample of one subject's responses, and what it says about repeats, sessions and images."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ubrain.crowd import Subject
from ubrain.data.doctor.lookalikes import Gallery
from ubrain.scores import correlation
from ubrain.trials import BLOCK_BYTES, Rows, Trials, session_moments

VOXELS = 2000  # voxels of a subject whose trials are compared
RAW_BYTES = 512 << 20  # of a subject's responses that are read for questions about single voxels
SESSION_BYTES = 24 << 20  # of each session's responses that are compared with their repeats
REPEATED_IMAGES, REPEATS = 300, 8  # images whose repeats are compared, and repeats of each
LAGS = 10  # trials by which a session may be shifted
COMMON_VOXELS = 300  # voxels of a subject that are sought among those of others
FITTED_IMAGES = 400  # images of a split whose pixels are compared with the responses
EARLY = ("v1", "v2", "v3", "v1v", "v1d", "v2v", "v2d", "v3v", "v3d")


@dataclass(frozen=True)
class Match:
    """How well two sets of responses to the same images agree.

    Attributes
    ----------
    z : standard deviations above random matching.
    r : mean product of z-scored responses: the share of the variance that repeats.
    sd : standard deviation of `r` under random matching.
    """

    z: float
    r: float
    sd: float


def match(a: NDArray, b: NDArray) -> Match:
    """Agreement of row i of a with row i of b, (n_images, n_voxels), against random matching.

    Under random matching the sum of the products of matched rows has mean 0, after the products of
    all rows were centred in both directions, and variance Σ c² / (n − 1) (Hoeffding 1951): no
    shuffling is needed, and no distribution assumed.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    products = a @ b.T / a.shape[1]
    c = products - products.mean(0) - products.mean(1)[:, None] + products.mean()
    r, sd = float(np.trace(c)) / len(c), float(np.sqrt((c**2).sum() / (len(c) - 1))) / len(c)
    return Match(r / sd if sd > 0 else 0.0, r, sd)


def kernel_match(a: NDArray, b: NDArray, rng: np.random.Generator, shuffles: int = 200) -> float:
    """Are images that are alike in a, (n_images, n_features), alike in b, too?

    In standard deviations above shuffled images. The statistic is the sum of the products of the
    two matrices of inner products, without their diagonals (kernel alignment; Gretton et al. 2005
    test independence with it).
    """
    grams = []
    for x in (a, b):
        x = np.asarray(x, dtype=np.float64) - np.mean(x, 0, dtype=np.float64)
        spread = x.std(0)
        usable = spread > 1e-6 * max(float(spread.max(initial=0)), 1e-30)
        x = np.divide(x, spread, out=np.zeros_like(x), where=usable)
        gram = x @ x.T / x.shape[1]
        grams.append(gram - np.diag(np.diag(gram)))
    orders = (rng.permutation(len(grams[0])) for _ in range(shuffles))
    null = np.array([(grams[0] * grams[1][np.ix_(p, p)]).sum() for p in orders])
    above = float((grams[0] * grams[1]).sum() - null.mean())
    return above / float(null.std()) if null.std() > 0 else 0.0


def correlation_z(x: NDArray, y: NDArray) -> float:
    """Pearson correlation in standard errors at 0 (Fisher's transform); 0 where it is undefined."""
    r = float(correlation(x[:, None], y[:, None])[0])
    z = float(np.arctanh(np.clip(r, -0.999999, 0.999999)) * np.sqrt(max(len(x) - 3, 1)))
    return z if np.isfinite(r) else 0.0


class Sample:
    """What is looked at of one subject. Call `read_moments`, `measure`, then `release` to forget
    the responses and keep the results.

    Attributes
    ----------
    voxels : (n,), a random choice of voxels: those whose trials are compared.
    measured : whether the following have been filled in.
    unit : (n_trials,), the session or run over which each trial is z-scored.
    reliability : agreement of the even with the odd repeats of images; None if too few images were
        repeated.
    by_lag : session -> lag -> agreement of its responses, `lag` trials later, with repeats in other
        sessions.
    fit : split -> (z, n): agreement of n images' pixels with the responses to them.
    lateral : (z across, z down): does the left hemisphere prefer images with more contrast at the
        right, and at the top?
    common : photograph -> responses of all voxels, for the photographs by which subjects are
        compared.
    raw_rows : (n,), the trials whose responses are read for all voxels: all, or as many of each
        unit as the budget allows. From here on after `read_moments`.
    raw_moments : (2, n_units, n_voxels), mean and standard deviation of the trials in `raw_rows`.
    moments, moments_digest : those that the file holds, of the same shape, and their digest.
    constant : (n_voxels,), whether a voxel is constant within every unit.
    sizes : (n_units,), standard deviation of the median voxel, as the numbers are in the file.
    """

    def __init__(self, subject: Subject, rng: np.random.Generator) -> None:
        self.subject, self.name, self.group = subject, subject.name, subject.group
        self.trials = Trials(self.group)
        self.rng = np.random.default_rng(rng.integers(2**63))
        self.voxels: Rows = np.sort(self.rng.permutation(subject.n_voxels)[:VOXELS])
        self.unit: Rows = self.trials.unit
        self.n_units = int(self.unit.max(initial=-1)) + 1
        self.n_sessions = int(self.trials.session.max(initial=-1)) + 1
        self.measured = False
        self.reliability: Match | None = None
        self.by_lag: dict[int, dict[int, Match]] = {}
        self.fit: dict[str, tuple[float, int]] = {}
        self.lateral: tuple[float, float] | None = None
        self.common: dict[int, NDArray[np.float32]] = {}
        self._order = np.argsort(self.trials.image, kind="stable")
        self._sorted = self.trials.image[self._order]
        self._place = np.full(subject.n_trials, -1)
        self._values = np.empty((0, len(self.voxels)), np.float32)

    def measure(self, gallery: Gallery) -> None:
        """Read what is needed and fill in the results."""
        self.measured = True
        if len(self.repeated) >= 10:
            self.reliability = match(*self.halves())
        self.by_lag = {s: lags for s in range(self.n_sessions) if (lags := self._lags(s))}
        for split in ("train", "test"):
            self._compare_with_images(gallery, split)

    def respond(self, photograph: Rows, common: Rows) -> None:
        """Fill in `common` with those wanted; `photograph` is that of each image of the file."""
        seen, images = np.unique(photograph[self.trials.image], return_index=True)
        for number in np.intersect1d(common, seen):
            image = self.trials.image[images[np.searchsorted(seen, number)]]
            rows = self.trials_of(image, self.subject.n_trials)[:3]
            responses = self.trials.zscored(rows).mean(0)
            self.common[int(number)] = np.nan_to_num(responses, posinf=0, neginf=0)

    def release(self) -> None:
        """Forget what is large; of `common`, all but a random choice of voxels that vary."""
        if self.common:
            kept = self.rng.permutation(np.flatnonzero(~self.constant))[:COMMON_VOXELS]
            self.common = {number: responses[kept] for number, responses in self.common.items()}
        self._place[:] = -1
        self._values = self._values[:0]
        self.trials = Trials(self.group)  # the other keeps the moments of all voxels

    @cached_property
    def areas(self) -> dict[str, int]:
        """Voxels of each area."""
        names = self.subject.voxels["areas"].str.split(",").explode().str.strip()
        return {str(area): int(n) for area, n in names[names != ""].value_counts().items()}

    # ---- all voxels, some trials

    def read_moments(self) -> None:
        """Fill in the moments of all voxels, and what follows from them."""
        responses = self.group["responses"]
        budget = RAW_BYTES // (responses.shape[1] * responses.dtype.itemsize)
        units = (np.flatnonzero(self.unit == u) for u in range(self.n_units))
        n = max(2, int(budget) // max(self.n_units, 1))
        self.raw_rows = np.sort(np.concatenate([self.rng.permutation(rows)[:n] for rows in units]))
        self.raw_moments = np.full((2, self.n_units, self.subject.n_voxels), np.nan)
        for _ in session_moments(self._raw_blocks(), self.unit[self.raw_rows], self._keep):
            pass
        self.moments = self.trials.moments()
        self.moments_digest = hashlib.blake2b(self.moments.data, digest_size=16).hexdigest()
        self.constant = np.ones(self.subject.n_voxels, bool)
        for mean, deviation in zip(*self.raw_moments, strict=True):
            self.constant &= deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
        usable = ~self.constant & np.isfinite(self.raw_moments[1]).all(0)
        deviations = self.raw_moments[1] if usable.any() else ()
        self.sizes = np.array([np.median(deviation[usable]) for deviation in deviations])

    def _raw_blocks(self) -> Iterator[NDArray]:
        step = max(1, BLOCK_BYTES // (8 * self.subject.n_voxels))
        for start in range(0, len(self.raw_rows), step):
            yield self.trials.raw(self.raw_rows[start : start + step]).astype(np.float64)

    def _keep(self, unit: int, moments: NDArray[np.float64]) -> None:
        self.raw_moments[:, unit] = moments

    def forget_moments(self) -> None:
        """Forget the moments of all voxels, but not what follows from them."""
        self.raw_moments, self.moments = np.empty((2, 0, 0)), np.empty((2, 0, 0), np.float32)

    @property
    def trial_counts(self) -> tuple[Rows, Rows]:
        """Trials of each unit, (n_units,): all, and those in `raw_rows`."""
        return np.bincount(self.unit), np.bincount(self.unit[self.raw_rows], minlength=self.n_units)

    # ---- some voxels, some trials

    def zscored(self, trials: Rows) -> NDArray[np.float32]:
        """Z-scored responses of `voxels`, (n_trials, n), read once; not finite counts as 0."""
        missing = np.unique(trials[self._place[trials] < 0])
        if len(missing):
            step = max(1, BLOCK_BYTES // (4 * self.subject.n_voxels))
            blocks = [
                self.trials.zscored(missing[s : s + step], self.voxels)
                for s in range(0, len(missing), step)
            ]
            self._place[missing] = len(self._values) + np.arange(len(missing))
            self._values = np.concatenate(
                [self._values, *(np.nan_to_num(b, posinf=0, neginf=0) for b in blocks)]
            )
        return self._values[self._place[trials]]

    def trials_of(self, image: int, most: int = REPEATS) -> Rows:
        """Trials of an image, in order; a random choice of them if there are more than `most`."""
        first, last = (np.searchsorted(self._sorted, image, side) for side in ("left", "right"))
        rows = self._order[first:last]
        return rows if len(rows) <= most else np.sort(self.rng.permutation(rows)[:most])

    @cached_property
    def repeated(self) -> list[Rows]:
        """Trials of a sample of the images that were shown at least twice."""
        images, counts = np.unique(self.trials.image, return_counts=True)
        chosen = self.rng.permutation(images[counts > 1])[:REPEATED_IMAGES]
        return [self.trials_of(i) for i in np.sort(chosen)]

    def halves(self, lag: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean response to the even and to the odd repeats of images, (n_images, n) each.

        With a lag, the responses that were measured so many trials later in the same session.
        """
        kept = [r for r in (self._later(rows, lag) for rows in self.repeated) if len(r) > 1]
        self.zscored(np.concatenate(kept) if kept else np.empty(0, np.int64))
        even, odd = ([self.zscored(r[half::2]).mean(0) for r in kept] for half in (0, 1))
        return np.array(even), np.array(odd)

    def _later(self, rows: Rows, lag: int) -> Rows:
        later = rows + lag
        inside = (later >= 0) & (later < self.subject.n_trials)
        rows, later = rows[inside], later[inside]
        return later[self.trials.session[later] == self.trials.session[rows]]

    def repeat_noise(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Variance over repeats, pooled over images, and its standard error: (n,) each.

        The standard error comes from the spread of the images' contributions, so it holds for any
        distribution.
        """
        freedom = np.array([len(r) - 1 for r in self.repeated])
        self.zscored(np.concatenate(self.repeated))
        squares = np.array(
            [self.zscored(r).var(0, dtype=np.float64) * len(r) for r in self.repeated]
        )
        noise = squares.sum(0) / freedom.sum()
        return noise, np.sqrt(((squares - noise * freedom[:, None]) ** 2).sum(0)) / freedom.sum()

    def _lags(self, session: int) -> dict[int, Match]:
        """Agreement of a session's responses, at each lag, with their repeats elsewhere."""
        rows = np.flatnonzero(self.trials.session == session)
        partners = [self._elsewhere(i, session) for i in self.trials.image[rows]]
        have = np.flatnonzero([len(p) > 0 for p in partners])
        n = max(48, SESSION_BYTES // (16 * self.subject.n_voxels))
        first = int(self.rng.integers(max(len(have) - n, 0) + 1))
        have = have[first : first + n]
        if len(have) < 12:
            return {}
        self.zscored(np.concatenate([partners[i] for i in have]))
        repeats = np.stack([self.zscored(partners[i]).mean(0) for i in have])
        lags = {}
        for lag in range(-LAGS, LAGS + 1):
            inside = (have + lag >= 0) & (have + lag < len(rows))
            if inside.sum() >= 12:
                lags[lag] = match(self.zscored(rows[have[inside] + lag]), repeats[inside])
        return lags

    def _elsewhere(self, image: int, session: int) -> Rows:
        rows = self.trials_of(image)
        return rows[self.trials.session[rows] != session][:3]

    def _compare_with_images(self, gallery: Gallery, split: str) -> None:
        images = np.intersect1d(self.subject.image_rows(split), gallery.rows)
        images = np.sort(self.rng.permutation(images)[:FITTED_IMAGES])
        if len(images) < 12:
            return
        trials = [self.trials_of(i, 3) for i in images]
        self.zscored(np.concatenate(trials))
        responses = np.stack([self.zscored(rows).mean(0) for rows in trials])
        thumbnails = gallery.thumbnails[np.searchsorted(gallery.rows, images)].astype(np.float32)
        z = kernel_match(simple_features(thumbnails), responses, self.rng)
        self.fit[split] = z, len(images)
        if self.lateral is None:  # the train images: there are more of them
            self.lateral = self._lateral(thumbnails, responses)

    def _lateral(self, thumbnails: NDArray, responses: NDArray) -> tuple[float, float] | None:
        table = self.subject.voxels.iloc[self.voxels]
        areas = table["areas"].str.lower().str.split(",")
        early = areas.map(lambda names: any(a.strip() in EARLY for a in names)).to_numpy()
        sides = [(table["hemisphere"] == side).to_numpy() for side in ("L", "R")]
        if min((side & early).sum() for side in sides) >= 3:
            sides = [side & early for side in sides]
        if min(side.sum() for side in sides) < 3:
            return None
        left_minus_right = responses[:, sides[0]].mean(1) - responses[:, sides[1]].mean(1)
        contrast, half = local_contrast(thumbnails), thumbnails.shape[1] // 2
        parts = np.s_[:, :, half:], np.s_[:, :, :half], np.s_[:, :half], np.s_[:, half:]
        right, left, top, bottom = (np.log1p(contrast[part].mean((1, 2))) for part in parts)
        return (
            correlation_z(left_minus_right, right - left),
            correlation_z(left_minus_right, top - bottom),
        )


def local_contrast(thumbnails: NDArray) -> NDArray[np.float32]:
    """Length of the gradient of grey values, (n_images, side, side), of images in RGB."""
    down, across = np.gradient(thumbnails.astype(np.float32).mean(3), axis=(1, 2))
    return np.hypot(down, across)


def simple_features(thumbnails: NDArray) -> NDArray[np.float32]:
    """Contrast, lightness, blue against red in 8 × 8 places: every visual area relates to them."""

    def pooled(maps: NDArray) -> NDArray:
        step = maps.shape[1] // 8
        return maps.reshape(len(maps), 8, step, 8, step).mean((2, 4)).reshape(len(maps), -1)

    contrast, blue = np.log1p(local_contrast(thumbnails)), thumbnails[..., 2] - thumbnails[..., 0]
    return np.concatenate([pooled(m) for m in (contrast, thumbnails.mean(3), blue)], axis=1)
