"""How often do 95 % intervals hold the truth? Every kind that the notebooks print, in small worlds.

A world draws images and voxels from one population, and the truth is that of the population: the
median over infinitely many voxels of the correlation over infinitely many images, the share of hits
over infinitely many sets of images, the mean over infinitely many newcomers. `before` is the
percentile bootstrap that `now` replaces, and `basic` the basic bootstrap.

Run: python benchmarks/coverage.py [--worlds 500] [--only median]
"""

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain import scores
from ubrain.analysis import stats

Array = NDArray[np.float64]
Found = tuple[float, stats.Interval, Array | None]  # truth, interval, bootstrap samples
FEATURES, N_BOOT, TAIL = 12, 200, 10  # TAIL: degrees of freedom of how images differ in contrast


class Voxels(NamedTuple):
    """A subject: what its voxels respond to, and what two encoders, a and b, take that for."""

    signal: Array  # (n_voxels, FEATURES), of length 1
    b: Array  # of length 1; a is right
    unpredicted: Array  # (n_voxels, FEATURES), of length 0.5
    noise: Array  # (n_voxels,)

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int, quality: float = 0.85) -> "Voxels":
        """`quality` is the correlation of a and b over images."""
        signal, wrong, other = (_unit(rng.standard_normal((n, FEATURES))) for _ in range(3))
        b = _unit(quality * signal + np.sqrt(1 - quality**2) * wrong)
        return cls(signal, b, 0.5 * other, rng.gamma(3, 0.45, n) + 0.25)

    def truth(self) -> tuple[Array, Array]:
        """Correlation of each voxel with a and with b, over all images."""
        total = np.sqrt(1.25 + self.noise**2)
        return 1 / total, (self.signal * self.b).sum(1) / total

    def see(self, seen: tuple[Array, Array], rng: np.random.Generator) -> tuple[Array, ...]:
        """What a and b predict, and what is measured: (n_images, n_voxels) each."""
        z, y = seen
        noise = self.noise * rng.standard_normal((len(z), len(self.noise)))
        return z @ self.signal.T, z @ self.b.T, z @ self.signal.T + y @ self.unpredicted.T + noise


def show(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Features of n images that encoders know, and that they do not."""
    contrast = np.sqrt((TAIL - 2) / rng.chisquare(TAIL, (n, 1)))
    return rng.standard_normal((n, FEATURES)) * contrast, rng.standard_normal((n, FEATURES))


@cache
def population(quality: float = 0.85) -> tuple[float, float]:
    """Median correlation with a and b, over all voxels and images."""
    of = Voxels.draw(np.random.default_rng(0), 300_000, quality).truth()
    return float(np.median(of[0])), float(np.median(of[1]))


def median_r(rng: np.random.Generator, n: int, v: int, gain: bool) -> Found:
    """Median r of a, or its gain over b."""
    voxels = Voxels.draw(rng, v)
    a, b, m = voxels.see(show(rng, n), rng)
    images = rng.multinomial(n, np.full(n, 1 / n), N_BOOT) / n  # weights of the drawn images
    drawn = rng.integers(v, size=(N_BOOT, v))
    samples = []
    for p in (a, b) if gain else (a,):
        mean_p, mean_m = images @ p, images @ m
        norm = np.sqrt((images @ p**2 - mean_p**2) * (images @ m**2 - mean_m**2))
        r = (images @ (p * m) - mean_p * mean_m) / norm
        samples.append(np.median(np.take_along_axis(r, drawn, 1), axis=1))
    true = population()
    if gain:
        return true[0] - true[1], stats.median_r(a, m, b), samples[0] - samples[1]
    return true[0], stats.median_r(a, m), samples[0]


def top1(rng: np.random.Generator, n: int, v: int, kind: str) -> Found:
    """Share of images found first by a, its gain over b, or its mean over three subjects."""
    subjects, true = _searched(n, v)
    seen = show(rng, n)
    hits = np.array([_hits(s, seen, rng) for s in subjects])  # (n_subjects, 2, n_images)
    images = dict.fromkeys(range(3), np.arange(n))
    if kind == "gain":
        x, truth, found = hits[0, 0] - hits[0, 1], true[0, 0] - true[0, 1], None
        found = stats.gain_in_share({0: hits[0, 0] - hits[0, 1]}, images)
    elif kind == "one":
        x, truth, found = hits[0, 0], true[0, 0], stats.share({0: hits[0, 0]}, images)
    else:
        x, truth = hits[:, 0].mean(0), true[:, 0].mean()
        found = stats.share(dict(enumerate(hits[:, 0])), images)
    return truth, found, x[rng.integers(n, size=(N_BOOT, n))].mean(1)


def newcomers(rng: np.random.Generator, n: int, v: int, units: int, draws: int) -> Found:
    """Mean median r of b over newcomers, each with draws of few images that make b as good as it
    is; they see the same test images.
    """
    seen, values, resampled = show(rng, n), [], []
    for quality in 0.75 + 0.05 * rng.standard_normal(units):
        voxels = Voxels.draw(rng, v)
        for q in np.clip(quality + 0.03 * rng.standard_normal(draws), 0, 0.99):
            wrong = _unit(rng.standard_normal((v, FEATURES)))
            one = voxels._replace(b=q * voxels.signal + np.sqrt(1 - q**2) * wrong)
            _, b, m = one.see(seen, np.random.default_rng(rng.integers(1 << 30)))
            values.append(np.median(scores.correlation(b, m)))
            resampled.append(stats.resampled_scores(b, m, N_BOOT)[0])
    x, shifted = np.array(values), np.array(resampled)
    shifted += (x - shifted.mean(1))[:, None]
    drawn = rng.integers(len(x), size=(N_BOOT, len(x)))
    before = shifted[drawn, rng.integers(N_BOOT, size=(N_BOOT, 1))].mean(1)
    return _of_newcomers(), stats.mean_of_units(x, resampled), before


def fields(rng: np.random.Generator, v: int) -> Found:
    """Correlation over voxels of two quantities with heavy tails."""
    x, e = rng.standard_t(6, (2, v))
    y = 0.8 * x + 0.6 * e
    before = [stats.pearson(x[d], y[d]) for d in rng.integers(v, size=(N_BOOT, v))]
    return 0.8, stats.bootstrap(stats.pearson, x, y, n_boot=N_BOOT), np.array(before)


def worlds(rng: np.random.Generator, n: int) -> Found:
    """Mean over simulated worlds."""
    x = rng.standard_normal(n)
    return 0.0, stats.t_interval(x), x[rng.integers(n, size=(N_BOOT, n))].mean(1)


KINDS: dict[str, Callable[[np.random.Generator], Found]] = {}
for n, v in ((30, 60), (50, 20), (50, 60), (200, 20), (200, 60), (200, 300)):
    for gain in (False, True):
        what = f"{'gain in ' if gain else ''}median r, {n} images × {v} voxels"
        KINDS[what] = lambda rng, n=n, v=v, gain=gain: median_r(rng, n, v, gain)
for n, v in ((50, 60), (200, 12), (200, 60)):
    for kind in ("one", "gain", "mean of 3 subjects"):
        KINDS[f"top-1 ({kind}), {n} images, {v} voxels"] = lambda rng, n=n, v=v, kind=kind: top1(
            rng, n, v, kind
        )
for units, draws in ((2, 2), (3, 2), (4, 1), (12, 1)):
    KINDS[f"newcomers: {units} × {draws} draws, 100 images × 60 voxels"] = (
        lambda rng, units=units, draws=draws: newcomers(rng, 100, 60, units, draws)
    )
for v in (20, 60, 300):
    KINDS[f"correlation over {v} voxels (fields)"] = lambda rng, v=v: fields(rng, v)
for n in (3, 5):
    KINDS[f"mean of {n} worlds"] = lambda rng, n=n: worlds(rng, n)


def coverage(kind: str, n_worlds: int = 500) -> dict[str, float]:
    """Share of worlds whose interval holds the truth, now, before and with the basic bootstrap."""
    inside = np.zeros((n_worlds, 3))
    for i in range(n_worlds):
        truth, now, samples = KINDS[kind](np.random.default_rng([i, 15]))
        low, high = np.nanpercentile(samples, [2.5, 97.5])
        basic = 2 * now.value - high, 2 * now.value - low
        ends = [(low, high), basic, (now.low, now.high)]
        inside[i] = [a - 1e-9 <= truth <= b + 1e-9 for a, b in ends]
    return dict(zip(("before", "basic", "now"), inside.mean(0), strict=True))


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _hits(voxels: Voxels, seen: tuple[Array, Array], rng: np.random.Generator) -> list[Array]:
    a, b, m = voxels.see(seen, rng)
    return [(scores.retrieval_ranks(p, m) < 1).astype(np.float64) for p in (a, b)]


@cache
def _searched(n: int, v: int) -> tuple[list[Voxels], Array]:
    """Three subjects, and their shares of hits (a and b) over many sets of n images."""
    subjects = [Voxels.draw(np.random.default_rng(s), v) for s in range(3)]
    rng = np.random.default_rng(99)
    sets = [(seen := show(rng, n)) and [_hits(s, seen, rng) for s in subjects] for _ in range(600)]
    return subjects, np.mean(sets, axis=(0, 3))


@cache
def _of_newcomers() -> float:
    rng = np.random.default_rng(1)
    q = 0.75 + 0.05 * rng.standard_normal(3000) + 0.03 * rng.standard_normal(3000)
    return float(np.mean(np.clip(q, 0, 0.99)) * population()[0])


def main() -> Iterator[str]:
    """Lines of a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=500)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    asked = parser.parse_args()
    yield f"| 95 % interval of ({asked.worlds} worlds) | before | basic | now |"
    yield "|---|---|---|---|"
    for kind in (k for k in KINDS if asked.only in k):
        found = pd.Series(coverage(kind, asked.worlds))
        yield f"| {kind} | " + " | ".join(f"{100 * x:.1f} %" for x in found) + " |"


if __name__ == "__main__":
    for line in main():
        print(line, flush=True)
