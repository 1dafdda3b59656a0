"""New voxels on a frozen encoder: by gradient (the paper), by matching, or by both (ours).

The shared weights stay as they are, bit for bit; what is found is an embedding e for each new
voxel, from its responses y to n images.

Gradient (the paper)
    Adam from a random start; the embeddings that are best on held-out images are kept. As released
    (`held_out: val`) these are the val images, looked at after each epoch, and images are shifted.
Matching (ours)
    The encoder says how every voxel j of the crowd would respond to the same images, f_j. Under y =
    a f_j + c + noise, with a > 0, c and the noise variance unknown and integrated out, the evidence
    of y is

        (1 − r_j²)^(−(n − 2) / 2) · P(a > 0),  P(a > 0) ≈ Φ(r_j √((n − 2) / (1 − r_j²))),

    with r_j the correlation of y with f_j and Φ the normal distribution in place of Student's. The
    embedding is the mean of the crowd's, weighted by evidence^τ. The temperature τ is chosen on
    held-out images: the new voxel is no copy of any in the crowd. Many images or little noise
    sharpen the weights, noise flattens them; no number of neighbours is fixed. Then each embedding
    is multiplied by the one of a few factors whose predictions have the least squared error.
Ours
    The embedding that minimises

        Σ_i (y_i − f(e; x_i))² / σ² + pull · (e − m)ᵀ Σ⁻¹ (e − m)

    with m the matched embedding, Σ the covariance of the crowd's embeddings and σ² what noise the
    matching left to the voxel. The first sum grows with the images, the second does not: the prior
    fades. The pull is chosen on held-out images for each newcomer, the strongest that is within a
    standard error of the best; an infinite one is matching alone. Near m, f is almost linear in e,
    so a few Gauss–Newton steps, solved exactly for each voxel, do what takes Adam hundreds, and
    need no learning rate. In this tangent space the crowd's directions Σ are what a linear mixture
    of crowd voxels can reach; but whatever comes out is an embedding. What it leaves over goes to
    a linear readout (`ubrain.readout`) if held-out images say clearly that it gains something: a
    voxel unlike any of the crowd ends near ridge regression.
Refit (ours)
    A subject that the encoder was trained on, fitted by *ours* as if it were new to the others.
    Training gives each of its voxels an embedding from few, noisy images; now it also hears what
    similar voxels of the others have learned, and gets a readout. The shared weights have seen
    responses to its train images, so only its val images say how strong pull and readout should be.

Source of the first: Beliy et al., arXiv 2406.12179, and the authors' released code (facts only).
The others are ours.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubrain import kernels
from ubrain.config import TrainingConfig, TransferConfig
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.progress import track
from ubrain.readout import (
    Components,
    LinearReadout,
    candidates,
    features,
    is_clear,
    no_readout,
)
from ubrain.train import LEAST_VAL_IMAGES, loss_of

if TYPE_CHECKING:
    from ubrain.crowd import Crowd
    from ubrain.features import Source

METHODS = ("ours", "matching", "gradient", "refit")
LEAST_IMAGES = 10
IMAGES, VOXELS, CROWD_VOXELS = 32, 512, 4096  # at a time
WIDE = 1 << 30  # bytes of tokens, above which they are kept in half precision
HELD_OUT = 150  # images; folds are added until so many are held out, more would tell little
SCALES = (0.7, 0.85, 1.0, 1.2, 1.4)
LEAST_NOISE = 0.05  # share of a voxel's variance
TINY = 1e-6  # keeps voxels without any variance from dividing by zero
MOST_R = 0.9999
LOOK = 10  # steps between looks at the held-out images


class Head:
    """The shared weights, frozen, in front of some images whose tokens are projected once.

    Parameters
    ----------
    rows : images, as rows of the source's crowd file.

    Attributes
    ----------
    n_images : number of images.
    source, rows : as given; `rows` those of a view.
    """

    def __init__(
        self, encoder: UniversalEncoder, source: "Source", rows: NDArray[np.int64]
    ) -> None:
        _check_source(encoder, source)
        self.encoder, self.device = encoder.frozen(), encoder.position.device
        self.source, self.rows, self.n_images, c = source, rows, len(rows), encoder.config
        self._at = torch.arange(len(rows), device=self.device)
        wide = len(rows) * c.n_tokens * c.channels * len(c.widths) * 4 > WIDE
        dtype = torch.float16 if wide else torch.float32
        shape = (len(rows), c.n_tokens, c.channels)
        self._x = [torch.empty(shape, dtype=dtype, device=self.device) for _ in c.widths]
        with torch.no_grad():
            for some in slices(len(rows), IMAGES):
                projected = self.encoder.project(source.tokens(rows[some], self.device))
                for kept, x in zip(self._x, projected, strict=True):
                    kept[some] = x.to(dtype)

    def select(self, images: NDArray[np.int64]) -> "Head":
        """A view of some of the images."""
        view = copy.copy(self)
        view.n_images, view.rows = len(images), self.rows[images]
        view._at = self._at[torch.from_numpy(images).to(self.device)]
        return view

    def respond(
        self,
        embedding: Tensor,
        images: NDArray[np.int64] | None = None,
        readout: LinearReadout | None = None,
    ) -> Tensor:
        """Predicted responses (n_images, n_voxels) of voxels given by embeddings (n_voxels, E)."""
        with torch.no_grad():
            encoder, parts = self.encoder, []
            terms = kernels.voxel_terms(encoder, embedding) if encoder.tiled else None
            for x in self._batches(images):
                if terms is not None:
                    responses = kernels.respond(encoder, x, terms)
                else:
                    responses = encoder.respond(x, embedding)
                parts.append(responses if readout is None else readout(responses, x))
            return torch.cat(parts)

    def train_on(self, embedding: Tensor, images: NDArray[np.int64], shift: int = 0) -> Tensor:
        """As `respond` for a few images, with dropout and with a gradient.

        `shift` moves them by up to so many pixels, if they come as images.
        """
        keep = kernels.dropout_masks(self.encoder, len(images), len(embedding), self.device)
        if not shift or self.source.features is not None:
            return self.encoder.respond(self._read(images), embedding, keep)
        with torch.no_grad():
            x = self.encoder.project(self.source.tokens(self.rows[images], self.device, shift))
        return self.encoder.respond(x, embedding, keep)

    def features(self) -> list[Tensor]:
        """What linear readouts read of the images, (n_images, n_squares, C) each."""
        batches = [features(x) for x in self._batches(None)]
        return [torch.cat(part) for part in zip(*batches, strict=True)]

    def linearise(self, embedding: Tensor, images: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Responses, and their slopes in each voxel's embedding.

        Returns
        -------
        (n_images, n_voxels) and (n_voxels, n_images, E).
        """
        responses, slopes = [], []
        for x in self._batches(images):
            # A copy for each image: a voxel's response to it depends on that copy only, so one
            # backward pass gives all slopes.
            each = embedding.detach().expand(len(x[0]), -1, -1).clone().requires_grad_()
            out = self.encoder.respond(x, each)
            slopes.append(torch.autograd.grad(out.sum(), each)[0].transpose(0, 1))
            responses.append(out.detach())
        return torch.cat(responses), torch.cat(slopes, 1)

    def _batches(self, images: NDArray[np.int64] | None) -> Iterator[list[Tensor]]:
        images = np.arange(self.n_images) if images is None else images
        return (self._read(images[some]) for some in slices(len(images), IMAGES))

    def _read(self, images: NDArray[np.int64]) -> list[Tensor]:
        at = self._at[torch.from_numpy(images).to(self.device)]
        return [t[at].float() for t in self._x]


@dataclass(frozen=True)
class Matched:
    """What the crowd says about new voxels.

    Attributes
    ----------
    mean : (n_voxels, E), posterior mean of the embedding.
    noise : (n_voxels,), share of the variance of the responses that the matching voxels leave.
    voxels : (n_voxels,), how many crowd voxels take part: exp of the entropy of their weights.
    """

    mean: Tensor
    noise: Tensor
    voxels: Tensor


class _Posterior:
    """Weighted sums over crowd voxels that come in blocks, whose log weights may be of any size."""

    def __init__(self, n_voxels: int, size: int, device: torch.device) -> None:
        self._top = torch.full((n_voxels, 1), -math.inf, device=device)
        self._sums = torch.zeros(
            n_voxels, size + 3, device=device
        )  # of embedding, 1, residual share, log weight

    def add(self, log_weight: Tensor, residual: Tensor, embedding: Tensor) -> None:
        """Take in crowd voxels: log weights, residual shares (n_voxels, n), embeddings (n, E)."""
        top = torch.maximum(self._top, log_weight.amax(1, keepdim=True))
        weight = (log_weight - top).exp()
        self._sums *= (self._top - top).exp()
        extra = [weight.sum(1), (weight * residual).sum(1), (weight * log_weight).sum(1)]
        self._sums += torch.cat([weight @ embedding, torch.stack(extra, 1)], 1)
        self._top = top

    def value(self) -> Matched:
        *mean, total, residual, log_weight = self._sums.unbind(1)
        entropy = self._top[:, 0] + total.log() - log_weight / total
        return Matched(torch.stack(mean, 1) / total[:, None], residual / total, entropy.exp())


def match(
    head: Head,
    crowd: Tensor,
    responses: Tensor,
    parts: Sequence[NDArray[np.int64]],
    temperatures: Sequence[float],
) -> list[list[Matched]]:
    """Posterior over the crowd's voxels for new voxels; see the module's text.

    Parameters
    ----------
    head : looks at the images.
    crowd : (n_crowd_voxels, E), embeddings; they are read in blocks, each of which is predicted
        once.
    responses : (n_images, n_voxels), of the new voxels.
    parts : images to match on, each an array of indices; all of them in the same pass over the
        crowd.
    temperatures : exponents of the evidence.

    Returns
    -------
    One for each part and temperature.
    """
    found = [
        [_Posterior(responses.shape[1], crowd.shape[1], head.device) for _ in temperatures]
        for _ in parts
    ]
    units = [_unit(responses[part]) for part in parts]
    for some in slices(len(crowd), CROWD_VOXELS):
        predicted = head.respond(crowd[some])
        for images, measured, posteriors in zip(parts, units, found, strict=True):
            r = (measured.T @ _unit(predicted[images])).clamp(-MOST_R, MOST_R)
            residual, freedom = 1 - r.square(), len(images) - 2
            evidence = (
                torch.special.log_ndtr(r * (freedom / residual).sqrt())
                - freedom / 2 * residual.log()
            )
            for temperature, posterior in zip(temperatures, posteriors, strict=True):
                posterior.add(temperature * evidence, residual, crowd[some])
    return [[posterior.value() for posterior in posteriors] for posteriors in found]


@dataclass(frozen=True)
class Fitted:
    """Embeddings of new voxels, and what was chosen on held-out images.

    Attributes
    ----------
    embeddings : (n_voxels, E)
    chosen : in words.
    validation : mean over voxels of the correlation on held-out images of the few, by which it was
        chosen; of gradient as released, the 75th percentile on the val images.
    readout : what the voxels read beside their embeddings, if the method has that.
    """

    embeddings: Tensor
    chosen: str
    validation: float
    readout: LinearReadout | None = None

    def respond(self, head: Head) -> Tensor:
        """Predicted responses (n_images, n_voxels) to the images that a head looks at."""
        readout = self.readout and self.readout.to(head.device)
        return head.respond(self.embeddings.to(head.device), readout=readout)


@dataclass(frozen=True)
class Newcomer:
    """New voxels, the crowd that is to help them, and the frozen encoder before their images.

    Attributes
    ----------
    crowd : (n_crowd_voxels, E), embeddings.
    responses : (n_images, n_voxels), rows as the images of the head.
    matched : what `match` says of the newcomer's `parts`, if it is known already.
    subject, voxels : whose responses, and of which voxels (None: all), where val images are needed.
    held : images to choose by, as indices; None chooses by folds.
    """

    head: Head
    crowd: Tensor
    responses: Tensor
    config: TransferConfig
    seed: int = 0
    matched: list[list[Matched]] | None = None
    subject: str = ""
    voxels: NDArray[np.int64] | None = None
    held: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        encoder: UniversalEncoder,
        source: "Source",
        subject: str,
        rows: NDArray[np.int64] | None = None,
        config: TransferConfig | None = None,
        seed: int = 0,
        voxels: NDArray[np.int64] | None = None,
    ) -> "Newcomer":
        """A new subject before a frozen encoder; parameters as of `fit`."""
        rows = images_of(source.crowd, subject) if rows is None else rows
        known = [e.detach().cpu() for e in encoder.embeddings.values()]
        crowd = torch.cat([torch.empty(0, encoder.config.embedding_size), *known])
        head, some = Head(encoder, source, rows), slice(None) if voxels is None else voxels
        responses = torch.from_numpy(source.crowd[subject].responses_to(rows, some))
        tensors = crowd.to(head.device), responses.to(head.device)
        return cls(head, *tensors, config or TransferConfig(), seed, None, subject, voxels)

    def folds(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Images to fit on and to hold out, until at least `HELD_OUT` images are held out."""
        n = self.head.n_images
        if self.held is not None:
            return [(np.setdiff1d(np.arange(n), self.held), self.held)]
        order = np.random.RandomState(self.seed).permutation(n)  # folds as of scikit-learn's KFold
        parts = [np.sort(part) for part in np.array_split(order, self.config.folds)]
        enough = max(-(-HELD_OUT * self.config.folds // n), 1)
        return [(np.setdiff1d(order, held), held) for held in parts[:enough]]

    def parts(self) -> list[NDArray[np.int64]]:
        """Images to match on: those that each fold fits on, and all."""
        return [*(fitted for fitted, _ in self.folds()), np.arange(self.head.n_images)]

    @cached_property
    def prior(self) -> "_Prior":
        """The matching, made once for all methods."""
        return _Prior.of(self)

    def fit(self, method: str = "ours") -> "Fitted":
        """By "ours", "matching" or "gradient"; see the module's text."""
        return {"ours": ours, "matching": matching, "gradient": gradient}[method](self)

    def draws(self, some: Sequence[tuple[NDArray[np.int64], int]]) -> list["Newcomer"]:
        """The newcomer with some of its images, and a seed, several times.

        All of them are matched in one pass over the crowd, which takes longest; what is held is
        (n_voxels, E) for each temperature, draw and fold.
        """
        views = [
            replace(
                self, head=self.head.select(images), responses=self.responses[images], seed=seed
            )
            for images, seed in some
        ]
        parts = [
            [images[part] for part in view.parts()]
            for (images, _), view in zip(some, views, strict=True)
        ]
        everything = list(chain(*parts))
        found = iter(
            match(self.head, self.crowd, self.responses, everything, self.config.temperatures)
        )
        return [
            replace(view, matched=list(islice(found, len(mine))))
            for view, mine in zip(views, parts, strict=True)
        ]


def fit(
    encoder: UniversalEncoder,
    source: "Source",
    subject: str,
    rows: NDArray[np.int64] | None = None,
    method: str = "ours",
    config: TransferConfig | None = None,
    seed: int = 0,
    voxels: NDArray[np.int64] | None = None,
) -> Fitted:
    """Embeddings of a new subject's voxels; the encoder is not changed.

    Parameters
    ----------
    encoder : its shared weights are frozen; the voxels of all its subjects are the crowd.
    source : the new subject's crowd file, and where tokens come from.
    rows : images, as rows of the crowd file; by default all train and val images of the subject.
    method : one of `METHODS`; see the module's text. "refit" takes a subject of the encoder.
    voxels : indices of voxels; all by default.

    Raises
    ------
    UbrainError
        For an unknown method or subject, too few images, an encoder without a crowd, or another
        backbone.
    """
    rows, held = images_of(source.crowd, subject) if rows is None else rows, None
    if method == "refit":
        held = np.flatnonzero(np.isin(rows, source.crowd[subject].image_rows("val")))
        if not LEAST_VAL_IMAGES <= len(held) < len(rows):
            raise UbrainError(
                f"subject {subject!r}: {len(held)} of {len(rows)} images are val images; a refit"
                f" chooses on these, and needs {LEAST_VAL_IMAGES} and others"
            )
        encoder = encoder.frozen()
        encoder.drop_subject(subject)
    _check(method, subject, len(rows), sum(map(len, encoder.embeddings.values())))
    newcomer = Newcomer.of(encoder, source, subject, rows, config, seed, voxels)
    return replace(newcomer, held=held).fit("ours" if method == "refit" else method)


def images_of(
    crowd: "Crowd", subject: str, n_images: int | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """Rows of a subject's train and val images, or of so many of them, drawn at random; sorted."""
    rows = np.concatenate([crowd[subject].image_rows("train"), crowd[subject].image_rows("val")])
    if n_images is None:
        return np.sort(rows)
    if n_images > len(rows):
        raise UbrainError(
            f"subject {subject!r} has {len(rows)} train and val images, {n_images} were asked for"
        )
    return np.sort(np.random.default_rng(seed).permutation(np.sort(rows))[:n_images])


def _check(method: str, subject: str, n_images: int, n_crowd: int) -> None:
    if method not in METHODS:
        raise UbrainError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if n_images < LEAST_IMAGES:
        raise UbrainError(
            f"subject {subject!r}: {n_images} train and val images with responses are too few for a"
            f" transfer; it needs at least {LEAST_IMAGES}"
        )
    if method != "gradient" and n_crowd < 2:
        raise UbrainError(
            "the encoder has no voxels to match with; give one with subjects, or use method"
            f" 'gradient' instead of {method!r}"
        )


def matching(newcomer: Newcomer) -> Fitted:
    """The posterior mean of the crowd's embeddings, with a scale fitted to each voxel."""
    prior = newcomer.prior
    embeddings = _scaled(newcomer, prior.matched.mean)
    return Fitted(embeddings, prior.words, prior.validation)


@dataclass(frozen=True)
class _Prior:
    """The matching at the temperature that is best on held-out images, from all and by fold."""

    matched: Matched
    of_fold: list[Matched]
    words: str
    validation: float

    @classmethod
    def of(cls, newcomer: Newcomer) -> "_Prior":
        head, y, folds = newcomer.head, newcomer.responses, newcomer.folds()
        *found, final = newcomer.matched or match(
            head, newcomer.crowd, y, newcomer.parts(), newcomer.config.temperatures
        )
        held_out = np.concatenate([held for _, held in folds])
        r = []
        for t in range(len(newcomer.config.temperatures)):
            predicted = [
                head.respond(f[t].mean, held) for f, (_, held) in zip(found, folds, strict=True)
            ]
            r.append(_mean_r(torch.cat(predicted), y[held_out]))
        best = int(np.argmax(r))
        words = (
            f"temperature {newcomer.config.temperatures[best]:g},"
            f" {float(final[best].voxels.median()):.0f} crowd voxels"
        )
        return cls(final[best], [f[best] for f in found], words, r[best])


def _scaled(newcomer: Newcomer, embeddings: Tensor) -> Tensor:
    """Each embedding times the factor, of a few, whose predictions have the least squared error."""
    errors = [
        (newcomer.responses - newcomer.head.respond(scale * embeddings)).square().sum(0)
        for scale in SCALES
    ]
    best = torch.stack(errors).argmin(0)
    return torch.tensor(SCALES, device=embeddings.device)[best, None] * embeddings


def ours(newcomer: Newcomer) -> Fitted:
    """Matching, then Gauss–Newton steps that are pulled toward it; see the module's text."""
    prior = newcomer.prior
    pulls = [*newcomer.config.pulls, math.inf]
    blocks = [
        _Block(newcomer, prior, voxels) for voxels in slices(newcomer.responses.shape[1], VOXELS)
    ]
    moments = torch.cat(
        [block.moments(pulls) for block in track(blocks, len(blocks), "choosing the pull")], 2
    )
    best = _strongest(r := _r(moments))
    pull, scale = pulls[best], _slope(moments[:, best])
    components = Components(newcomer.head.features())
    ends = [torch.cat(fold) for fold in zip(*(block.ends[best] for block in blocks), strict=True)]
    some = _Block(newcomer, prior, slice(None, None, len(blocks))).misses(components, ends, scale)
    shares = no_readout(newcomer.responses.shape[1], some.device)
    if is_clear(some):
        errors = [some.square().sum(1)]
        if len(blocks) > 1:
            steps = track(blocks, len(blocks), "choosing the readout")
            errors = [block.misses(components, ends, scale).square().sum(1) for block in steps]
        shares = candidates(torch.cat(errors, 1), some.shape[1])
    embeddings, parts = [], []
    for block in track(blocks, len(blocks), f"fitting {newcomer.responses.shape[1]} voxels"):
        embeddings.append(block.fit(pull))
        f = scale * newcomer.head.respond(embeddings[-1])
        parts.append(components.fit(block.y, f, shares[:, block.voxels]))
    readout = components.readout(parts, scale)
    words = f"{prior.words}, pull {pull:g}, linear readout {1 - float(shares[-1].mean()):.0%}"
    return Fitted(torch.cat(embeddings), words, float(r[best].mean()), readout)


def _r(moments: Tensor) -> Tensor:
    """Correlations (n_pulls, n_voxels) from moments."""
    fy, ff, yy = moments
    return fy / (ff * yy).sqrt().clamp_min(TINY)


def _slope(moments: Tensor) -> float:
    """The slope of measured on predicted responses at the chosen pull; voxels count by r²."""
    weight = _r(moments).clamp_min(0).square()
    return float((weight * moments[0]).sum() / (weight * moments[1]).sum().clamp_min(TINY))


def _strongest(r: Tensor) -> int:
    """The strongest pull whose mean r is within one standard error, paired, of the highest."""
    behind = r[r.mean(1).argmax()] - r
    error = behind.std(1, correction=0) / math.sqrt(r.shape[1])
    return int(torch.nonzero(behind.mean(1) <= error)[-1])


class _Block:
    """Some of a newcomer's voxels, fitted together; each has its own optimum."""

    def __init__(self, newcomer: Newcomer, prior: _Prior, voxels: slice) -> None:
        self.newcomer, self.prior, self.voxels = newcomer, prior, voxels
        self.y = newcomer.responses[:, voxels]
        covariance = torch.cov(newcomer.crowd.T)
        floor = (
            1e-4
            * covariance.diagonal().mean()
            * torch.eye(len(covariance), device=covariance.device)
        )
        self.root = torch.linalg.cholesky(covariance + floor)  # e = m + root z

    def moments(self, pulls: Sequence[float]) -> Tensor:
        """Centred sums of f y, f f, y y over held-out images, (3, n_pulls, n_voxels), by pull.

        The embeddings, a list of (n_voxels, E) by fold for each pull, are left in `ends`.
        """
        predicted: list[list[Tensor]] = [[] for _ in pulls]
        self.ends: list[list[Tensor]] = [[] for _ in pulls]
        folds = self.newcomer.folds()
        for matched, (images, held) in zip(self.prior.of_fold, folds, strict=True):
            zero, noise = self.start(matched, images)
            gram, right = self.normal_equations(matched, zero, images)
            for out, ends, pull in zip(predicted, self.ends, pulls, strict=True):
                z = _solve(gram, right, pull * noise) if pull < math.inf else zero
                ends.append(self.embedding(matched, z))
                out.append(self.newcomer.head.respond(ends[-1], held))
        held_out = np.concatenate([held for _, held in folds])
        f, y = torch.stack([torch.cat(p) for p in predicted]), self.y[held_out]
        f, y = f - f.mean(1, keepdim=True), (y - y.mean(0)).expand_as(f)
        return torch.stack([(f * y).sum(1), f.square().sum(1), y.square().sum(1)])

    def misses(self, components: Components, ends: Sequence[Tensor], scale: float) -> Tensor:
        """What candidates leave over on held-out images, (n_candidates, n_images, n_voxels).

        Parameters
        ----------
        ends : embeddings of all the newcomer's voxels, by fold.
        """
        parts = []
        for end, fold in zip(ends, self.newcomer.folds(), strict=True):
            f = scale * self.newcomer.head.respond(end[self.voxels])
            images, held = (torch.from_numpy(i).to(f.device) for i in fold)
            parts.append(components.misses(self.y, f, images, held))
        return torch.cat(parts, 1)

    def fit(self, pull: float) -> Tensor:
        """Embeddings (n_voxels, E) from all images."""
        matched, images = self.prior.matched, np.arange(len(self.y))
        z, noise = self.start(matched, images)
        for _ in range(self.newcomer.config.steps if pull < math.inf else 0):
            gram, right = self.normal_equations(matched, z, images)
            z = self.shorten(matched, images, z, _solve(gram, right, pull * noise), pull * noise)
        return self.embedding(matched, z)

    def start(self, matched: Matched, images: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """z = 0 (n_voxels, E), and the variance of each voxel's noise (n_voxels,)."""
        noise = self.y[images].var(0) * matched.noise[self.voxels].clamp_min(LEAST_NOISE) + TINY
        return torch.zeros_like(matched.mean[self.voxels]), noise

    def embedding(self, matched: Matched, z: Tensor) -> Tensor:
        """The embedding at z, (n_voxels, E): the matched one, and z times the root of Σ."""
        return matched.mean[self.voxels] + z @ self.root.T

    def normal_equations(
        self, matched: Matched, z: Tensor, images: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """AᵀA and Aᵀ(y − f(z) + A z), with A the slope in z: (n_voxels, E, E), (n_voxels, E)."""
        responses, slope = self.newcomer.head.linearise(self.embedding(matched, z), images)
        slope = slope @ self.root  # (n_voxels, n_images, E)
        target = (self.y[images] - responses).T + (slope @ z[:, :, None])[:, :, 0]
        return slope.transpose(1, 2) @ slope, (slope.transpose(1, 2) @ target[:, :, None])[:, :, 0]

    def shorten(
        self, matched: Matched, images: NDArray[np.int64], start: Tensor, end: Tensor, pull: Tensor
    ) -> Tensor:
        """Of the step of each voxel, its half, its quarter and none, the one that is best."""

        def objective(z: Tensor) -> Tensor:
            predicted = self.newcomer.head.respond(self.embedding(matched, z), images)
            return (self.y[images] - predicted).square().sum(0) + pull * z.square().sum(1)

        ways = [start + length * (end - start) for length in (1, 0.5, 0.25, 0)]
        best = torch.stack([objective(z) for z in ways]).argmin(0)
        return torch.stack(ways)[best, torch.arange(len(start))]


def _solve(gram: Tensor, right: Tensor, pull: Tensor) -> Tensor:
    """(gram + pull · 1)⁻¹ right, for each voxel."""
    damped = gram + torch.diag_embed(pull[:, None].expand(-1, gram.shape[1]))
    return torch.linalg.solve(damped, right)


def gradient(newcomer: Newcomer) -> Fitted:
    """The paper's transfer: Adam from a random start; the best on held-out images are kept."""
    if newcomer.config.held_out == "val":
        return _as_released(newcomer)
    fitted, held = newcomer.folds()[0]
    blocks = list(slices(newcomer.responses.shape[1], newcomer.config.voxels_per_step))
    found = [
        _by_gradient(newcomer, voxels, fitted, held)
        for voxels in track(blocks, len(blocks), "transfer by gradient")
    ]
    r = _mean_r(
        torch.cat([newcomer.head.respond(e, held) for e, _ in found], 1), newcomer.responses[held]
    )
    steps = ", ".join(f"{step}" for _, step in found[:3]) + ", ..." * (len(found) > 3)
    return Fitted(
        torch.cat([e for e, _ in found]),
        f"step {steps} of {_n_steps(newcomer.config, len(fitted))}",
        r,
    )


def _n_steps(config: TransferConfig, n_images: int) -> int:
    return max(config.epochs * -(-n_images // config.batch_images), config.min_steps)


def _by_gradient(
    newcomer: Newcomer, voxels: slice, fitted: NDArray[np.int64], held: NDArray[np.int64]
) -> tuple[Tensor, int]:
    """Embeddings of the best step, and which it was."""
    config, head, y = newcomer.config, newcomer.head, newcomer.responses[:, voxels]
    embedding, optimiser, rng = _start(newcomer, y.shape[1])
    best, best_r, best_step = embedding.detach().clone(), -math.inf, 0
    n = _n_steps(config, len(fitted))
    for step in range(1, n + 1):
        batch = np.sort(rng.choice(fitted, min(config.batch_images, len(fitted)), replace=False))
        loss = loss_of(head.train_on(embedding, batch), y[batch], TrainingConfig())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % LOOK == 0 or step == n:
            r = _mean_r(head.respond(embedding.detach(), held), y[held])
            if r > best_r:
                best, best_r, best_step = embedding.detach().clone(), r, step
    return best, best_step


def _as_released(newcomer: Newcomer) -> Fitted:
    """Embeddings of the epoch that is best on the val images, by the 75th percentile of r."""
    config, head, y = newcomer.config, newcomer.head, newcomer.responses
    subject = head.source.crowd[newcomer.subject]
    val, some = subject.image_rows("val"), newcomer.voxels
    fitted = np.flatnonzero(~np.isin(head.rows, val))
    if len(val) < LEAST_VAL_IMAGES or not len(fitted):
        raise UbrainError(
            f"subject {subject.name!r}: {len(val)} val images and {len(fitted)} others are too few"
            f" for a transfer by gradient as released, which needs {LEAST_VAL_IMAGES} and others;"
            " profile fast holds out some of the others (held_out: fold)"
        )
    look = Head(head.encoder, head.source, val)
    measured = torch.from_numpy(subject.responses_to(val, slice(None) if some is None else some))
    measured = _unit(measured.to(head.device))
    embedding, optimiser, rng = _start(newcomer, y.shape[1])
    batches = list(slices(len(fitted), config.batch_images))
    epochs = max(config.epochs, -(-config.min_steps // len(batches)))
    best, best_r, best_epoch = embedding.detach().clone(), -math.inf, 0
    for epoch in track(range(1, epochs + 1), epochs, "transfer by gradient"):
        order = rng.permutation(fitted)
        for part in batches:
            images = np.sort(order[part])
            optimiser.zero_grad()
            for voxels in slices(len(embedding), config.voxels_per_step):
                predicted = head.train_on(embedding[voxels], images, config.image_shift)
                loss_of(predicted, y[images][:, voxels], TrainingConfig()).backward()
            optimiser.step()
        each = (_unit(look.respond(embedding.detach())) * measured).sum(0)
        if (r := float(each.quantile(0.75))) > best_r:
            best, best_r, best_epoch = embedding.detach().clone(), r, epoch
    return Fitted(best, f"epoch {best_epoch} of {epochs}", best_r)


def _start(
    newcomer: Newcomer, n_voxels: int
) -> tuple[Tensor, torch.optim.Optimizer, np.random.Generator]:
    """Random embeddings of some voxels, their optimiser, and what draws images."""
    torch.manual_seed(newcomer.seed)  # of the start and of dropout
    std, size = newcomer.head.encoder.embedding_std, newcomer.crowd.shape[1]
    embedding = (std * torch.randn(n_voxels, size)).to(newcomer.head.device).requires_grad_()
    adam = torch.optim.Adam([embedding], lr=newcomer.config.learning_rate, amsgrad=True)
    return embedding, adam, np.random.default_rng(newcomer.seed)


def _mean_r(predicted: Tensor, measured: Tensor) -> float:
    """Mean over voxels of the correlation over images; 0 where one is constant."""
    return float((_unit(predicted) * _unit(measured)).sum(0).mean())


def _unit(x: Tensor) -> Tensor:
    """Columns centred and scaled to length 1 (a constant column becomes 0)."""
    x = x - x.mean(0)
    return x / x.norm(dim=0).clamp_min(1e-6)


def slices(n: int, step: int) -> Iterable[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _check_source(encoder: UniversalEncoder, source: "Source") -> None:
    want, got = (
        (encoder.config.widths, encoder.config.n_tokens),
        (source.widths, source.n_tokens),
    )
    if want != got:
        raise UbrainError(
            f"the encoder reads levels of widths {want[0]} with {want[1]} tokens, the backbone"
            f" gives {got[0]} with {got[1]}; take the backbone that the encoder was trained on"
        )
