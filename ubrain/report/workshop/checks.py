"""Checks of the workshop's exercises: what is wrong with an answer, in one sentence.

A check runs the learner's function on small made-up data on which each likely mistake gives another
result, then on the data of the notebook.
"""

import re
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubrain import scores
from ubrain.errors import UbrainError

Array = NDArray[np.float64]
WORDS = ("face", "body", "food", "word", "animal", "vehicle", "place", "early")
EARLY = ("V1", "V2", "V3", "hV4")
CARD = ("claim", "number", "data", "control", "shows", "does not show")
WIDTH = 90  # characters of a line that fit into a notebook
ENOUGH = 0.7  # share of clusters named right


_passed: set[str] = set()


class Wrong(Exception):
    """An answer is not right yet; the message says what is wrong."""


def check(exercise: str, *answer: Any) -> None:
    """Say whether an answer is right, and if not, what is wrong with it.

    Parameters
    ----------
    exercise : its name, such as "E1".
    answer : what the check of this exercise takes; see the functions of this module.
    """
    if exercise not in CHECKS:
        raise UbrainError(f"no exercise {exercise!r}; there are {', '.join(CHECKS)}")
    _passed.discard(exercise)
    try:
        said = f"{exercise} ✓ {CHECKS[exercise](*answer)}"
    except Wrong as wrong:
        said = f"{exercise}, not yet: {wrong}"
    else:
        _passed.add(exercise)
    print(textwrap.fill(said, WIDTH))


def passed(exercise: str) -> bool:
    """Whether the last check of an exercise passed."""
    return exercise in _passed


def e0(n_voxels: Any, expected: int) -> str:
    """How many voxels a subject has."""
    found = _given(n_voxels, "n_voxels")
    if found != expected:
        raise Wrong(f"you say {found}; `first.n_voxels` knows the number")
    return f"{found} voxels; this is how every exercise works"


def e1(voxel_r: Callable[..., Any], predicted: Array, measured: Array) -> str:
    """Correlation over images of each voxel."""
    found = _array(voxel_r, "voxel_r", predicted, measured)
    _per_voxel("r", found, *np.shape(measured))
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(30, 7))
    p, m = 3 + signal + rng.normal(size=(30, 7)), 5 + 2 * signal + rng.normal(size=(30, 7))
    n, v = p.shape
    _per_voxel("r", r := _array(voxel_r, "voxel_r", p, m), n, v)
    right = scores.correlation(p, m)
    if not np.allclose(r, right, atol=1e-6):
        pc, mc = p - p.mean(0), m - m.mean(0)
        po, mo = p - p.mean(), m - m.mean()
        overall = (po * mo).sum(0) / np.sqrt((po**2).sum(0) * (mo**2).sum(0))
        cosine = (p * m).sum(0) / np.sqrt((p**2).sum(0) * (m**2).sum(0))
        for other, why in (
            (cosine, "you did not subtract each voxel's mean over images"),
            (overall, "you subtracted one mean of everything: take it over images, axis 0"),
            ((pc * mc).mean(0), "that is the covariance: divide it by both standard deviations"),
            ((pc * mc).sum(0), "that is a sum of products: divide it by the lengths of both"),
            (right**2, "that is r²: do not square"),
            (right * (n - 1) / n, "one of your means divides by n, the other by n − 1 (ddof)"),
            (right * n / (n - 1), "one of your means divides by n, the other by n − 1 (ddof)"),
        ):
            if np.allclose(r, other, atol=1e-6):
                raise Wrong(why)
        raise Wrong(f"your r of the first voxel is {r[0]:.3f}, it should be {right[0]:.3f}")
    if not np.allclose(found, scores.correlation(predicted, measured), atol=1e-4, equal_nan=True):
        raise Wrong("right on small data, but not on the subject's: do not fix any number in it")
    return f"one r per voxel, {found.shape}; the median is {np.nanmedian(found):.3f}"


def e2(ceiling_r: Callable[..., Any], repeats: Array) -> str:
    """Highest correlation of any model with the mean of the repeats."""
    rng = np.random.default_rng(2)
    n, k, v = 400, 3, 6
    share = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.0])  # of the signal in the variance
    x = np.sqrt(share) * rng.normal(size=(n, 1, v)) + np.sqrt(1 - share) * rng.normal(
        size=(n, k, v)
    )
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    x[:, :, -1] = np.array([-1.0, 0.0, 1.0]) * 1.4  # more noise than variance: no signal
    found = _array(ceiling_r, "ceiling_r", x)
    if found.shape == (n, v) or found.shape == (n,):
        raise Wrong(
            f"your ceiling has shape {found.shape}, a value for each image; average the noise"
            " variance over images first"
        )
    if found.shape == (k, v):
        raise Wrong(
            f"your ceiling has shape {found.shape}: you took the variance over images, axis 0;"
            " noise is what varies over repeats, axis 1"
        )
    if found.shape != (v,):
        raise Wrong(f"your ceiling has shape {found.shape}; expected a value per voxel, {(v,)}")
    noise, naive = x.var(1, ddof=1).mean(0), x.var(1).mean(0)
    right = _ceiling(noise, noise / k)
    if np.allclose(found[:-1], right[:-1], atol=0.02) and not np.isclose(found[-1], 0, atol=0.02):
        raise Wrong(
            f"for a voxel whose noise variance is above 1 your ceiling is {found[-1]:.2f}; a"
            " variance of the signal cannot be negative: np.maximum(1 - noise, 0)"
        )
    if not np.allclose(found, right, atol=0.02):
        for other, why in (
            (
                _ceiling(naive, naive / k),
                "np.var divides by n; of 3 repeats that makes the noise a third too small: ddof=1",
            ),
            (
                _ceiling(noise, noise),
                "that is the ceiling of a single repeat; the score is of the"
                f" mean of {k}, whose noise variance is {k} times smaller",
            ),
            (right**2, "that is the share of variance, r²: take the square root"),
            (
                _ceiling(noise, noise) ** 2,
                "that is the share of signal in one repeat: the mean of"
                f" {k} repeats has {k} times less noise; and r is the square root",
            ),
            (
                1 / np.maximum(right, 1e-9),
                "that is the ceiling upside down: signal / (signal + noise)",
            ),
        ):
            if np.allclose(found, other, atol=0.005):
                raise Wrong(why)
        raise Wrong(
            f"for a voxel with noise variance {noise[2]:.2f} your ceiling is {found[2]:.2f}, it"
            f" should be {right[2]:.2f}"
        )
    real = _array(ceiling_r, "ceiling_r", repeats)
    return f"a ceiling per voxel, {real.shape}; the median is {np.nanmedian(real):.3f}"


def e3(spatial: Callable[..., Any], q: Array, k: Array, x: Array, pooled: Array) -> str:
    """Spatial attention of voxels: weights of the tokens, and the tokens' weighted mean.

    Parameters
    ----------
    q, k, x : (n_voxels, E), (n_tokens, E), (n_tokens, C), of the encoder.
    pooled : (n_voxels, C), what the encoder makes of them.
    """
    rng = np.random.default_rng(3)
    small = (2 * rng.normal(size=(5, 4)), rng.normal(size=(7, 4)), rng.normal(size=(7, 3)))
    w, _ = _two(_call(spatial, "spatial", *small), "spatial", "weights, pooled")
    if w.shape == (7, 5):
        raise Wrong("your weights have shape (tokens, voxels): turn them, each voxel is a row")
    if w.shape != (5, 7):
        raise Wrong(f"your weights have shape {w.shape}; expected (voxels, tokens) = (5, 7)")
    a = small[0] @ small[1].T
    right = _softmax(a)
    if not np.allclose(w, right, atol=1e-6):
        if np.allclose(w, a):
            raise Wrong("those are the scores q · k; the softmax over tokens is missing")
        if np.allclose(w, np.exp(a)) or np.allclose(w, np.exp(a - a.max(1, keepdims=True))):
            raise Wrong("each voxel's weights must sum to 1: divide by their sum over tokens")
        if np.allclose(w.sum(0), 1):
            raise Wrong(
                "your weights sum to 1 over voxels, as if voxels shared a token: sum over tokens,"
                " axis 1, with keepdims=True"
            )
        if np.allclose(w, _softmax(a / 2)):
            raise Wrong("you divided the scores by √E, as transformers do; this encoder does not")
        if np.allclose(w.sum(), 1):
            raise Wrong("all weights together sum to 1; it should be each voxel's, axis 1")
        raise Wrong("your weights are no softmax of q · k over the tokens")
    huge = _two(
        _call(spatial, "spatial", 400 * small[0], *small[1:]), "spatial", "weights, pooled"
    )[0]
    if not np.isfinite(huge).all():
        raise Wrong(
            "right, but exp overflows for large scores: subtract each voxel's largest score first;"
            " the weights stay the same"
        )
    found = _two(_call(spatial, "spatial", q, k, x), "spatial", "weights, pooled")[1]
    if found.shape != pooled.shape:
        raise Wrong(
            f"your pooled tokens have shape {found.shape}; expected (voxels, channels) ="
            f" {pooled.shape}: weights @ x"
        )
    miss = float(np.abs(found - pooled).max())
    if miss > 1e-3:
        raise Wrong(f"the weights are right, but pooled is off by {miss:.3f}: weights @ x")
    return f"pooled tokens {found.shape} as in the encoder; largest difference {miss:.0e}"


def e3b(
    functional: Callable[..., Any],
    e: Array,
    f: Sequence[Array],
    h: Sequence[Array],
    response: Array,
) -> str:
    """Functional attention: which channels a voxel reads.

    Parameters
    ----------
    e, f, h : (n_voxels, E), and of each level (E, C) and (n_voxels, C).
    response : (n_voxels,), the encoder's, which is the sum over levels.
    """
    rng = np.random.default_rng(4)
    small = rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    found = _array(functional, "functional", *small)
    what = small[0] @ small[1]
    if found.shape == (5, 5):
        raise Wrong(
            "your response has shape (voxels, voxels): you let every voxel read what every other"
            " voxel pooled; multiply element by element, then sum over channels"
        )
    if found.shape == (5, 3):
        raise Wrong("you have a number per channel: sum over channels, axis 1")
    if found.shape == (3,):
        raise Wrong("you summed over voxels: sum over channels, axis 1")
    if found.shape != (5,):
        raise Wrong(f"your response has shape {found.shape}; expected one per voxel, (5,)")
    if not np.allclose(found, (what * small[2]).sum(1)):
        if np.allclose(found, (_softmax(what) * small[2]).sum(1)):
            raise Wrong("functional attention has no softmax: a voxel may also dislike a channel")
        if np.allclose(found, (what * small[2]).mean(1)):
            raise Wrong("that is the mean over channels; the encoder sums")
        raise Wrong("expected the sum over channels of (e @ F) times h")
    total = sum(_array(functional, "functional", e, *level) for level in zip(f, h, strict=True))
    miss = float(np.abs(total - response).max())
    if miss > 1e-3:
        raise Wrong(f"right on small data, but the sum over levels is off by {miss:.3f}")
    return f"summed over {len(f)} levels it is the encoder's response; difference {miss:.0e}"


def e3c(nowhere: Any, attention: Array) -> str:
    """The voxel that looks nowhere; attention (n_voxels, n_tokens), of one level and image."""
    found = _number(nowhere, "nowhere")
    if int(found) != found or not 0 <= found < len(attention):
        raise Wrong(f"expected the number of a voxel, 0 to {len(attention) - 1}, got {found:g}")
    entropy = -(attention * np.log(np.maximum(attention, 1e-12))).sum(1)
    place, n = int((entropy > entropy[int(found)]).sum()), len(entropy)
    if place >= n - 3:
        raise Wrong(
            "that voxel looks at the smallest part of the image: you found the other end (argmin"
            " for argmax)"
        )
    if place > 0.02 * n:
        raise Wrong(
            f"{place} voxels look at a larger part of the image than voxel {found:g}; a voxel's"
            " entropy is a sum over its tokens, axis 1"
        )
    tokens = np.exp(entropy[int(found)])
    return f"voxel {found:g} spreads its look over {tokens:.0f} of {attention.shape[1]} tokens"


def e4(gain: Any, r: Mapping[str, Array]) -> str:
    """The gain of a crowd over an encoder that was trained for as long; r of each encoder."""
    found = _number(gain, "gain")
    median = {name: float(np.nanmedian(x)) for name, x in r.items()}
    right, unfair = median["crowd"] - median["alone"], median["crowd"] - median["short"]
    if not np.isclose(found, right, atol=1e-6):
        if np.isclose(found, unfair, atol=1e-6):
            raise Wrong(
                f"crowd − short = {unfair:+.3f} mixes two causes: the crowd, and four times as many"
                " steps of training; compare with the encoder that had as many"
            )
        if np.isclose(found, median["alone"] - median["short"], atol=1e-6):
            raise Wrong("that is what longer training is worth; no crowd took part in it")
        if np.isclose(found, -right, atol=1e-6):
            raise Wrong("the sign is the wrong way round: a gain is crowd − alone")
        if np.isclose(found, np.nanmean(r["crowd"] - r["alone"]), atol=1e-6):
            raise Wrong("you took means; a few voxels pull a mean: here it is medians")
        if np.isclose(found, np.nanmedian(r["crowd"] - r["alone"]), atol=1e-6):
            raise Wrong(
                "that is the median of the voxels' gains, a fair question, too; here it is the"
                " difference of the two medians"
            )
        raise Wrong(f"{found:+.4f} is no difference of two of the medians above")
    longer = median["alone"] - median["short"]
    return f"gain of the crowd {right:+.3f}; four times the steps alone are worth {longer:+.3f}"


def e5(bootstrap: Callable[..., Any], crowd: Array, alone: Array, measured: Array) -> str:
    """Gains in median r over resamples of the images."""
    n_boot, rng = 40, np.random.default_rng(5)
    m = rng.normal(size=(60, 9))
    good, bad = m + 0.3 * rng.normal(size=m.shape), m + 2 * rng.normal(size=m.shape)

    def run(a: Array, b: Array, c: Array, n: int = n_boot) -> Array:
        found = _array(bootstrap, "bootstrap", a, b, c, n, np.random.default_rng(0))
        if found.shape == (2,):
            raise Wrong(f"return all {n} gains, not the interval: the next cell takes percentiles")
        if found.shape != (n,):
            raise Wrong(f"you return shape {found.shape}; expected {n} gains, ({n},)")
        return found

    gains, expected = (
        run(good, bad, m),
        np.median(scores.correlation(good, m)) - np.median(scores.correlation(bad, m)),
    )
    same = run(bad, bad.copy(), m)
    if np.ptp(gains) < 1e-9:
        raise Wrong(
            "all gains are the same: you drew no images, or every image once; draw n_images out of"
            " n_images with replacement: rng.integers(n_images, size=n_images)"
        )
    if abs(np.median(gains) + expected) < 0.2:
        raise Wrong("the sign is the wrong way round: a gain is crowd − alone")
    if abs(np.median(gains) - expected) > 0.2:
        raise Wrong(
            f"your gains are near {np.median(gains):.2f}, expected near {expected:.2f}: did you"
            " take the drawn images of the predictions and of the measured responses?"
        )
    if np.abs(same).max() > 1e-9:
        raise Wrong(
            "an encoder gains over itself with you: not paired; draw the images once in each round,"
            " and use the same ones for crowd, alone and measured"
        )
    a, b, c = (np.tile(x[:, :1], (1, 9)) for x in (good, bad, m))
    if np.ptp(run(a, b, c)) < 1e-9:
        raise Wrong("you drew voxels, axis 1; draw images, axis 0")
    low, high = np.percentile(run(crowd, alone, measured, 100), [2.5, 97.5])
    return f"paired; of 100 gains the middle 95 % are {low:+.3f} to {high:+.3f}"


def e6(break_link: Callable[..., Any]) -> str:
    """Images of trials, shuffled such that nothing but the link to the responses is lost."""
    images = np.array([4, 7, 4, 9, 7, 9, 2, 4, 2, 11, 11, 7])
    before = images.copy()
    found = _array(break_link, "break_link", images, np.random.default_rng(6))
    if (images != before).any():
        raise Wrong("your function changes the array it is given: the true pairs are lost for good")
    if found.shape != images.shape:
        raise Wrong(f"you return shape {found.shape}; expected an image per trial, {images.shape}")
    found = found.astype(int)
    if (found == images).all():
        raise Wrong("nothing has changed: responses still belong to their images")
    if not set(found.tolist()) <= set(images.tolist()):
        raise Wrong("there are images in it that the subject never saw")
    if any(len(set(found[images == i].tolist())) > 1 for i in set(images.tolist())):
        raise Wrong(
            "repeats of one image now have different images: that also destroys the agreement of"
            " repeats; shuffle the distinct images, and move all repeats of one together"
        )
    if len(set(found.tolist())) < len(set(images.tolist())):
        raise Wrong(
            "some images were drawn twice and others are lost: a permutation, not random choices"
        )
    again = _array(break_link, "break_link", images, np.random.default_rng(7)).astype(int)
    if (again == found).all() and len(np.unique(images)) > 4:
        raise Wrong("another rng gives the same order: shuffle with the rng that you are given")
    return "as many images, trials and repeats as before; only the link is gone"


def e7(match: Callable[..., Any], score: Callable[..., float], r_ridge: float) -> str:
    """Embeddings of new voxels: means of the crowd's, weighted by agreement.

    Parameters
    ----------
    score : takes the learner's function, gives its median r on the newcomer's test images.
    r_ridge : that of ridge from the same images.
    """
    rng = np.random.default_rng(8)
    crowd = rng.normal(size=(200, 6)).astype(np.float32)
    images = rng.normal(size=(25, 6))
    f, new = 20 + images @ crowd.T, crowd[:12] + 0.2 * rng.normal(size=(12, 6))
    y = 10 + images @ new.T + 0.3 * rng.normal(size=(25, 12))
    found = _array(match, "match", f, y, crowd)
    if found.shape == (6, 12):
        raise Wrong("your embeddings are (E, voxels): turn them, each voxel is a row")
    if found.shape == (12, 200):
        raise Wrong("those are the weights (new voxels, crowd voxels): the last line is w @ crowd")
    if found.shape != (12, 6):
        raise Wrong(f"your embeddings have shape {found.shape}; expected (new voxels, E) = (12, 6)")
    if not np.isfinite(found).all():
        raise Wrong("there are nan or inf in your embeddings: is exp of something too large?")
    if np.ptp(found, axis=0).max() < 1e-6:
        raise Wrong("all voxels get the same embedding: the weights do not depend on the voxel")
    scaled = np.linalg.norm(found) / np.linalg.norm(new)
    if scaled > 3:
        raise Wrong(
            "your embeddings are far too long: each new voxel's weights must sum to 1, over the"
            " crowd's voxels, axis 1, and none may be negative (exp first)"
        )
    twins = y[:, :1] + 0.3 * rng.normal(size=(25, 40))  # half of them the other way round
    sign = np.repeat([1.0, -1.0], 20)
    both = _array(match, "match", twins * sign, y[:, :1], sign[:, None] * np.ones((40, 6)))
    if both.mean() < 0.5 and scaled > 0.5:
        raise Wrong(
            "crowd voxels that respond the opposite way (r = −1) get as much weight as those that"
            " agree: do not square r, and do not take its absolute value"
        )
    agree = scores.correlation(images @ found.T, y).mean()
    if scaled < 0.25:
        raise Wrong(
            f"your embeddings are only {scaled:.0%} as long as they should be: nearly the mean of"
            " the crowd. Are the means over images subtracted? Are the weights too flat? exp(r)"
            " hardly differs between r = 0 and r = 1; exp(20 * r) does"
        )
    if agree < 0.8:
        raise Wrong(
            f"the new voxels' predictions agree with their responses only to r = {agree:.2f}:"
            " correlate over images, the columns of f and y centred and scaled to length 1"
        )

    def finite(*data: Array) -> Array:
        embeddings = np.asarray(match(*data))
        if not np.isfinite(embeddings).all():
            raise Wrong(
                "on the newcomer's own responses there are nan or inf in your embeddings: exp of"
                " something too large? With columns of length 1, r lies between −1 and 1"
            )
        return embeddings

    ours = score(finite)
    verdict = "beats" if ours > r_ridge else "does not beat"
    return f"median r of the newcomer {ours:.3f}; it {verdict} ridge, {r_ridge:.3f}"


def e8(names: Any, labels: NDArray[np.int64], types: ArrayLike) -> str:
    """Names of clusters, from 1, beside the true types of their voxels (n_voxels,)."""
    given = _given(names, "names")
    if not isinstance(given, Mapping):
        raise Wrong('expected a dictionary such as {1: "face", 2: "early", ...}')
    n = int(np.max(labels)) + 1
    known = np.where(np.isin(types, EARLY), "early", np.asarray(types))
    for cluster in range(1, n + 1):
        name = given.get(cluster, "?")
        if name == "?":
            raise Wrong(f"cluster {cluster} has no name yet; one of {', '.join(WORDS)}")
        if name not in WORDS:
            raise Wrong(f"cluster {cluster}: {name!r} is none of {', '.join(WORDS)}")
    true = {}
    for cluster in range(1, n + 1):
        words, counts = np.unique(known[labels == cluster - 1], return_counts=True)
        true[cluster] = str(words[counts.argmax()]) if len(words) else "early"
    missed = [c for c in true if given[c] != true[c]]
    if len(set(given.values())) == 1 and n > 2:
        raise Wrong("all clusters have one name; look at what the images of each have in common")
    early = [c for c in missed if true[c] == "early"]
    if len(missed) > (1 - ENOUGH) * n:
        more = f"; {_list(early)}: do the images share an object, or only strong contrast?"
        raise Wrong(
            f"{n - len(missed)} of {n} agree with the true types; look again at {_list(missed)}"
            + more * bool(early)
        )
    rest = "; ".join(f"{c}: you said {given[c]}, the truth is {true[c]}" for c in missed)
    return f"{n - len(missed)} of {n} names agree with the true types" + f" ({rest})" * bool(rest)


def e9(card: Any) -> str:
    """The claim card."""
    given = _given(card, "card")
    if not isinstance(given, Mapping) or set(given) != set(CARD):
        raise Wrong(f"expected a dictionary with {', '.join(CARD)}")
    words = {key: str(value).strip().lower() for key, value in given.items()}
    for key in CARD:
        if len(words[key]) < 2 or words[key] == "...":
            raise Wrong(f"the field {key!r} is empty")
    text = re.sub(r"95 ?%", "", words["number"].replace("−", "-"))
    one = r"[+-]?\d*\.?\d+"
    found = re.search(rf"({one}).*?({one})\s*(?:,|;|to|and|…|–)\s*({one})", text)
    if found is None:
        raise Wrong("the number needs its interval, such as 0.123 [0.045, 0.201]")
    value, low, high = map(float, found.groups())
    if not low <= value <= high:
        raise Wrong(f"{value:g} does not lie in its interval, from {low:g} to {high:g}")
    if not any(word in words["data"] for word in ("simulat", "synthetic")):
        raise Wrong("the data are simulated: a reader has to see that in the field 'data'")
    if "brain" in words["shows"] and "simulat" not in words["shows"]:
        raise Wrong("'shows' speaks of brains as if they had been measured: no brain was")
    return "a claim with number, interval, data and control. Read it to your neighbour"


CHECKS: dict[str, Callable[..., str]] = {
    "E0": e0,
    "E1": e1,
    "E2": e2,
    "E3": e3,
    "E3b": e3b,
    "E3c": e3c,
    "E4": e4,
    "E5": e5,
    "E6": e6,
    "E7": e7,
    "E8": e8,
    "E9": e9,
}


def _given(value: Any, name: str) -> Any:
    if value is None or value is ...:
        raise Wrong(f"{name} is still empty: put your code in place of the dots")
    return value


def _call(function: Callable[..., Any], name: str, *arguments: Any) -> Any:
    """What a learner's function returns; its errors become a sentence."""
    try:
        with np.errstate(all="ignore"):
            value = function(*arguments)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line or "?"
        raise Wrong(f"{name} stopped with {type(error).__name__}: {error} (at `{line}`)") from None
    if value is None or value is ...:
        raise Wrong(
            f"{name} gives nothing back yet: put your code in place of the dots, and `return` it"
        )
    return value


def _array(function: Callable[..., Any], name: str, *arguments: Any) -> Array:
    value = _call(function, name, *arguments)
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"{name} gives a {type(value).__name__}; expected an array") from None


def _two(value: Any, name: str, what: str) -> tuple[Array, Array]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise Wrong(f"{name} must return two things: {what}")
    try:
        first, second = (np.asarray(part, dtype=np.float64) for part in value)
    except (TypeError, ValueError):
        raise Wrong(f"{name} must return two arrays: {what}") from None
    return first, second


def _number(value: Any, name: str) -> float:
    value = _given(value, name)
    if np.ndim(value):
        raise Wrong(f"{name} has shape {np.shape(value)}; expected one number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Wrong(f"{name} is {value!r}; expected a number") from None


def _per_voxel(name: str, found: Array, n_images: int, n_voxels: int) -> None:
    """Refuse what is no value per voxel, by the mistake that its shape gives away."""
    shapes = {
        (): "you correlated all numbers of all voxels at once",
        (n_voxels, n_voxels): "you correlated every voxel with every voxel",
        (2 * n_voxels, 2 * n_voxels): "np.corrcoef puts both arrays together and correlates every"
        " voxel with every voxel",
        (n_images,): "one r per image: you correlated over voxels; images are axis 0",
        (n_images, n_images): "you correlated every image with every image",
        (2 * n_images, 2 * n_images): "np.corrcoef puts both arrays together and correlates every"
        " image with every image",
        (n_images, n_voxels): "the sum or mean over images, axis 0, is missing",
        (1, n_voxels): "drop the first axis (no keepdims at the end)",
    }
    if found.shape != (n_voxels,):
        why = shapes.get(found.shape, f"expected a value per voxel, ({n_voxels},)")
        raise Wrong(f"your {name} has shape {found.shape}: {why}")


def _ceiling(noise: Array, remaining: Array) -> Array:
    signal = np.maximum(1 - noise, 0)
    return np.sqrt(signal / (signal + remaining))


def _softmax(a: Array) -> Array:
    w = np.exp(a - a.max(1, keepdims=True))
    return w / w.sum(1, keepdims=True)


def _list(clusters: Sequence[int]) -> str:
    return ", ".join(map(str, clusters))
