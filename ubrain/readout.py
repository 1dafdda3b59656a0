"""What the voxels of a new subject read from an image beside their embedding: a linear readout.

The shared weights were made for the crowd. A voxel that wants something else of an image gets it by
ridge regression of what the embedding leaves over::

    response(x) = scale · f(e; x) + φ(x) · basis · weights + offset

φ(x) are the encoder's projected tokens of each level, averaged over 1, 2 × 2 and 4 × 4 squares of
the image, and the class token if there is one. The basis holds the principal components of φ over
the new subject's images, so a voxel costs a few hundred numbers more. Three kinds of readout
compete for each voxel: the embedding alone; the embedding, with ridge regression of what it leaves
over; and ridge regression alone; the last two with penalties of any strength. Each has the evidence

    S^(−n / 4),  S the sum of its squared errors over n held-out images, the noise variance unknown
    and integrated out,

times its share among all voxels, which is found from the same evidence (expectation maximisation);
the full evidence, n / 2, is too sure of itself where candidates share images (seen on simulated
crowds of seeds 21 to 25). The readout is the mean over candidates. If that, with shares found on
other images, does not lower the squared error over all voxels by more than three standard errors,
there is none (seen on the same crowds: at 25 noisy images it costs retrieval). So few images or
much noise leave the embedding alone, more images add a linear readout, and a voxel unlike any of
the crowd ends near ridge regression. This is ours, not the paper's, and no part of the encoder.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDES = (1, 2, 4)  # squares per side of the image
MOST_COMPONENTS = 512
# Of the penalty, relative to the mean square of the features.
STRENGTHS = tuple(10 ** (i / 2) for i in range(-6, 9))
TRUST = 0.5  # exponent of the evidence
CLEAR = 3  # standard errors that a linear readout must gain
PARTS = 5  # of the images, each scored with shares of the others
ROUNDS = 100  # of expectation maximisation
TINY = 1e-6
BUFFERS = ("basis", "shift", "weights", "offset", "scale")


class LinearReadout(nn.Module):
    """What the voxels of one subject read beside their embeddings.

    Parameters
    ----------
    basis : (n_features, n_components), principal components of φ.
    shift : (n_components,), of the mean image.
    weights : (n_components, n_voxels)
    offset : (n_voxels,)
    scale : (n_voxels,), of the embedding's response.
    """

    basis: Tensor
    shift: Tensor
    weights: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(
        self, basis: Tensor, shift: Tensor, weights: Tensor, offset: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        for name, tensor in zip(BUFFERS, (basis, shift, weights, offset, scale), strict=True):
            self.register_buffer(name, tensor)

    def forward(
        self, responses: Tensor, projected: Sequence[Tensor], voxels: Tensor | slice = slice(None)
    ) -> Tensor:
        """The whole responses (B, V), from those of the embeddings.

        Parameters
        ----------
        projected : tokens, one (B, P, C) per level, from `UniversalEncoder.project`.
        voxels : which of the subject's voxels the responses are of, (V,).
        """
        components = torch.cat([f.flatten(1) for f in features(projected)], 1) @ self.basis
        rest = (components - self.shift) @ self.weights[:, voxels]
        return self.scale[voxels] * responses + rest + self.offset[voxels]


def features(levels: Sequence[Tensor]) -> list[Tensor]:
    """φ of projected tokens, one (B, P, C) per level: a (B, n_squares, C) for each level and
    number of squares.
    """
    found = []
    for x in levels:
        x, side = x.float(), math.isqrt(x.shape[1])
        more = x.shape[1] - side**2
        if more > 1:  # no square grid
            found.append(x.mean(1, keepdim=True))
            continue
        found += [x[:, :1]] if more else []
        grid = x[:, more:].transpose(1, 2).unflatten(2, (side, side))
        found += [
            F.adaptive_avg_pool2d(grid, s).flatten(2).transpose(1, 2) for s in SIDES if s <= side
        ]
    return found


class Components:
    """Principal components of φ over the images of a new subject.

    Every channel is divided by its standard deviation, and every kind of square weighs the same.

    Parameters
    ----------
    parts : φ of all images, as from `features`.

    Attributes
    ----------
    basis, shift : as of `LinearReadout`.
    values : (n_images, n_components), coordinates of the images; their mean square, summed over
        components, is 1.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        means, scales = [], []
        for part in parts:
            mean, std = part.mean(0), part.std((0, 1), correction=0)
            scale = torch.where(std > TINY, 1 / std.clamp_min(TINY), 0).expand_as(mean)
            size = ((part - mean) * scale).square().sum((1, 2)).mean().clamp_min(TINY)
            means.append(mean.flatten())
            scales.append((scale / (size * len(parts)).sqrt()).flatten())
        mean, scale = torch.cat(means), torch.cat(scales)
        x = (torch.cat([part.flatten(1) for part in parts], 1) - mean) * scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            n_components = min(MOST_COMPONENTS, *x.shape)
            axes = torch.svd_lowrank(x, n_components)[2]  # (n_features, n_components)
        self.basis = scale[:, None] * axes
        self.shift = mean @ self.basis
        self.values = x @ axes

    def ridge(self, y: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Ridge regression of y (n, n_voxels), the responses to some of the images.

        Returns
        -------
        Weights (n_strengths, n_components, n_voxels) and offsets (n_strengths, n_voxels).
        """
        u, mean = self.values[images], self.values[images].mean(0)
        size, turn = torch.linalg.eigh((u - mean).T @ (u - mean) / len(u))
        right = turn.T @ ((u - mean).T @ (y - y.mean(0)) / len(u))
        weights = torch.stack(
            [turn @ (right / (size.clamp_min(0) + a / len(u))[:, None]) for a in STRENGTHS]
        )
        return weights, y.mean(0) - mean @ weights

    def misses(self, y: Tensor, f: Tensor, fitted: Tensor, held: Tensor) -> Tensor:
        """What candidates leave over of held-out images.

        Parameters
        ----------
        y, f : (n_images, n_voxels), measured responses, and those of embeddings that know only the
            images `fitted`, scaled.

        Returns
        -------
        (2 n_strengths + 1, n_held_out, n_voxels): with embedding and ridge, with ridge, with the
        embedding alone.
        """
        both = torch.cat([y - f, y], 1)
        weights, offset = self.ridge(both[fitted], fitted)
        left = both[held] - self.values[held] @ weights - offset[:, None]
        return torch.cat([*left.chunk(2, 2), (y - f)[held][None]])

    def fit(self, y: Tensor, f: Tensor, shares: Tensor) -> dict[str, Tensor]:
        """Weights, offset and scale of the mean over all candidates, by their shares."""
        joint, alone = shares[:-1].split(len(STRENGTHS))
        images = torch.arange(len(y), device=y.device)
        weights, offset = self.ridge(torch.cat([y - f, y], 1), images)
        weights = torch.einsum("av,akv->kv", torch.cat([joint, alone], 1), weights)
        offset = (torch.cat([joint, alone], 1) * offset).sum(0)
        n = y.shape[1]
        return {
            "weights": weights[:, :n] + weights[:, n:],
            "offset": offset[:n] + offset[n:],
            "scale": 1 - alone.sum(0),
        }

    def readout(self, parts: Sequence[Mapping[str, Tensor]], scale: float = 1.0) -> LinearReadout:
        """The readout of a subject, from blocks of its voxels; f was multiplied with `scale`."""
        found = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
        found["scale"] = scale * found["scale"]
        return LinearReadout(self.basis, self.shift, **found)


def is_clear(misses: Tensor) -> bool:
    """Whether there is something to get beside the embedding, from `Components.misses`."""
    everything, unit = misses.square().sum(1), misses[-1].square().mean(0).clamp_min(TINY)
    gains = []
    for part in misses.tensor_split(PARTS, 1):
        shares = candidates(everything - part.square().sum(1), misses.shape[1] - part.shape[1])
        mixed = (shares[:, None] * part).sum(0)
        gains.append(((part[-1].square() - mixed.square()) / unit).mean(1))
    gain = torch.cat(gains)
    return bool(gain.mean() > CLEAR * gain.std() / math.sqrt(len(gain)))


def no_readout(n_voxels: int, device: torch.device) -> Tensor:
    """Shares (n_candidates, n_voxels) of no linear readout at all."""
    return F.one_hot(torch.full((n_voxels,), 2 * len(STRENGTHS), device=device)).T.float()


def candidates(errors: Tensor, n_images: int) -> Tensor:
    """Share of each candidate for each voxel, (n_candidates, n_voxels).

    Parameters
    ----------
    errors : (n_candidates, n_voxels), squared errors summed over held-out images.
    """
    evidence = -TRUST * n_images / 2 * errors.clamp_min(TINY).log()
    common = torch.zeros(len(errors), 1, device=errors.device)
    for _ in range(ROUNDS):
        shares = torch.softmax(evidence + common, 0)
        common = shares.mean(1, keepdim=True).clamp_min(TINY).log()
    return shares
