"""Adam on all voxel embeddings, at the cost of those that were drawn.

In a step only some voxels of one subject are drawn; the gradient of the others is zero. Dense Adam
moves these all the same: their first moment m and second moment v decay by β1 and β2, and the
embedding coasts along m / √v. With zero gradients this is known in advance, for all rows alike. Let
τ = 1..T be the coming steps of a subject (its own, or all of a training, of which it coasts through
those in which it has no images), B_τ and D_τ the products of β1 and β2 up to τ, and c_τ =
rate_τ · √(1 − β2^t) / (1 − β1^t) · B_τ / √D_τ, with t the steps that the subject has had in all.
Then

    M = m / B_τ and U = v / D_τ do not change while a row is not drawn,
    a step moves the row by −c_τ ρ, where ρ = M / √U,

so a row is stored where it will have coasted to by step T, and is read at step τ as `stored + ρ ·
Σ_{s ≥ τ} c_s`. Steps touch drawn rows only, and no row needs to know when it was drawn last. After
T steps M and U are turned back into m and v, and the stored rows are the embeddings. AMSGrad
divides by the largest v so far, which does not decay: then D_τ = 1 in c_τ and ρ.

Differences from dense Adam (Kingma & Ba 2015; Reddi et al. 2018): rounding, and ε, which is added
to √U once instead of to the bias-corrected √v at every step: gradients must be large against 1e-6,
below which ours moves up to 15 % less in the first steps. Memory per voxel: the embedding and two
more rows of E float32 numbers, three more with AMSGrad; at E = 256 that is 3 · 1024 or 4 · 1024
bytes; the dense pass every 256 steps works in blocks of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ubrain.errors import UbrainError

BETA2, EPSILON = 0.999, 1e-8
BLOCK = 4096  # rows
# steps; M grows by 1 / β1 in each, so the moments are brought back before it overflows
LONGEST = 256


@dataclass(frozen=True)
class Rate:
    """What a schedule says of one step."""

    learning_rate: float
    beta1: float = 0.9


class EmbeddingAdam:
    """The optimiser of the embeddings of one subject.

    Parameters
    ----------
    embeddings : (n_voxels, E), changed in place.
    amsgrad : divide by the largest second moment so far.
    """

    def __init__(self, embeddings: Tensor, amsgrad: bool = False) -> None:
        self.embeddings = embeddings.detach()
        names = ("m", "v", "largest") if amsgrad else ("m", "v")
        self.moments = {name: torch.zeros_like(self.embeddings) for name in names}
        self.steps = 0  # that this subject has had
        self._amsgrad = amsgrad
        self._plan: list[Rate] = []
        self._segment: list[Rate] = []
        self._done = 0  # steps of the segment
        self._growth: list[tuple[float, float]] = []  # 1 / B, 1 / D after each step of the segment
        self._rest: list[float] = []  # Σ c over the steps from this one to the last

    def plan(self, rates: Sequence[Rate]) -> None:
        """Announce the coming steps; no row can be read before, and all of them must be made."""
        if self._segment or self._plan:
            raise UbrainError(
                f"{len(self._plan) + len(self._segment) - self._done} planned steps were not made"
            )
        self._plan = list(rates)
        self._begin()

    def read(self, rows: Tensor) -> Tensor:
        """Embeddings (n, E) of voxels (n,) before the coming step; their gradient is for `step`."""
        stored, at = self.embeddings[rows], self._rest[self._done]
        ratio = self._ratio({k: t[rows] for k, t in self.moments.items()})
        return stored.add_(ratio, alpha=at)

    @torch.no_grad()
    def step(self, rows: Tensor, values: Tensor, gradient: Tensor) -> None:
        """Make the step.

        Parameters
        ----------
        rows : different voxels, (n,).
        values, gradient : what `read` gave for them, and its gradient, (n, E) each.
        """
        up1, up2 = self._growth[self._done]
        beta1 = self._segment[self._done].beta1
        some = {k: t[rows] for k, t in self.moments.items()}
        some["m"].add_(gradient, alpha=(1 - beta1) * up1)
        some["v"].addcmul_(gradient, gradient, value=(1 - BETA2) * up2)
        if self._amsgrad:
            torch.maximum(some["largest"], some["v"] / up2, out=some["largest"])
        for name, moment in some.items():
            self.moments[name][rows] = moment
        self.embeddings[rows] = values - self._ratio(some) * self._rest[self._done]
        self.coast()

    def coast(self) -> None:
        """Let a step go by in which no voxel of this subject is drawn."""
        self._done += 1
        self.steps += 1
        if self._done == len(self._segment):
            self._end()

    def _ratio(self, moments: Mapping[str, Tensor]) -> Tensor:
        return moments["m"] / (moments["largest" if self._amsgrad else "v"].sqrt() + EPSILON)

    @torch.no_grad()
    def _begin(self) -> None:
        self._segment, self._plan = self._plan[:LONGEST], self._plan[LONGEST:]
        if not self._segment:
            return
        down1, down2, moves = 1.0, 1.0, []
        self._growth = []
        for i, step in enumerate(self._segment, self.steps + 1):
            down1, down2 = down1 * step.beta1, down2 * BETA2
            self._growth.append((1 / down1, 1 / down2))
            shrinks = down1 if self._amsgrad else down1 / down2**0.5
            moves.append(step.learning_rate * (1 - BETA2**i) ** 0.5 / (1 - step.beta1**i) * shrinks)
        self._rest = torch.tensor(moves, dtype=torch.float64).flip(0).cumsum(0).flip(0).tolist()
        self._done = 0
        for start in range(0, len(self.embeddings), BLOCK):  # no second copy of everything
            block = slice(start, start + BLOCK)
            ratio = self._ratio({k: t[block] for k, t in self.moments.items()})
            self.embeddings[block] -= ratio * self._rest[0]

    @torch.no_grad()
    def _end(self) -> None:
        up1, up2 = self._growth[-1]
        self.moments["m"] /= up1
        self.moments["v"] /= up2
        self._segment = []
        self._begin()
