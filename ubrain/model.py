"""The universal encoder: one embedding per voxel, everything else shared.

For voxel v with embedding e (E), and at each level l the image's tokens x (P, C)::

    query      q = Q e                                            (E)
    key        k_p = K x_p + b + position_p                       (E)
    where      pooled = Σ_p softmax_p(q · k_p) x_p                (C)   spatial attention, without
    1/sqrt(E) per level  z = Dropout(LayerNorm(pooled)),  h = z + W2 gelu(W1 z + b1) + b2
    what       response = Σ_l (e F_l) · h_l                             functional attention, no
    softmax

The same function is computed after exact re-associations, each of which moves work from (image,
voxel) pairs to voxels:

1. q · (K x_p + b + position_p) = (Kᵀ q) · x_p + q · position_p + q · b: keys of size C, and a bias
   that knows no image. The last term is the same for all tokens, so the softmax does not see it: b
   never gets a gradient.
2. w · (z + W2 g + b2) = w · z + (W2ᵀ w) · g + w · b2: the second matrix of the MLP is applied to w,
   not to the image.
3. Images of a batch share a set of voxels, so whatever depends on the voxel only is computed once
   per batch in training, and once per subject in prediction (`voxel_terms`).
4. What remains for every pair of image and voxel is computed in tiles that are never kept
   (`ubrain.kernels`).

For ablations, `EncoderConfig.without` takes parts away: "spatial", all tokens count alike (q = 0);
"position", tokens are told apart by content only (position_p = 0); "functional", all voxels read
the same channels (e F_l with a constant in place of e).

Source of the formulas: Beliy et al., arXiv 2406.12179, and the authors' released code (facts only).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from ubrain.config import EncoderConfig
from ubrain.errors import UbrainError
from ubrain.kernels import SharedTerms, VoxelTerms, dropout_mask, readout
from ubrain.readout import LinearRest, n_features

PARTS = ("spatial", "position", "functional")


class Level(nn.Module):
    """The shared weights of one backbone level."""

    def __init__(self, width: int, config: EncoderConfig) -> None:
        super().__init__()
        size, channels = config.embedding_size, config.channels
        self.norm_in = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, channels)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(channels, size)
        self.norm = nn.LayerNorm(channels)
        self.dropout = config.dropout
        self.without = config.without
        self.fc1 = nn.Linear(channels, config.mlp_ratio * channels)
        self.fc2 = nn.Linear(config.mlp_ratio * channels, channels)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P, D) of the backbone -> (B, P, C)."""
        return self.project_in(self.norm_in(tokens))

    def voxel_terms(self, embedding: Tensor, position: Tensor, weights: Tensor) -> VoxelTerms:
        """Everything at this level that depends on the voxel only.

        Parameters
        ----------
        embedding : (G, V, E), G = 1 if all images share their voxels.
        position : (P, E)
        weights : (G, V, C), functional attention of the voxels to this level.
        """
        query = self.query(embedding)  # (G, V, E)
        if "spatial" in self.without:
            query = torch.zeros_like(query)
        if "position" in self.without:
            position = torch.zeros_like(position)
        return VoxelTerms(
            folded=query @ self.key.weight,
            bias=query @ position.T,
            readout=weights,
            hidden_readout=weights @ self.fc2.weight,
            constant=weights @ self.fc2.bias,
        )

    def forward(self, tokens: Tensor, voxels: VoxelTerms, keep: Tensor | None = None) -> Tensor:
        """One level's part of the responses, (B, V); `keep` (B, V, C) is what dropout keeps, drawn
        if training.
        """
        x = self.project(tokens)
        if keep is None and self.training and self.dropout:
            keep = dropout_mask((len(x), *voxels.readout.shape[1:]), self.dropout, x.device)
        shared = SharedTerms(self.norm.weight, self.norm.bias, self.fc1.weight, self.fc1.bias)
        return readout(x, voxels, shared, keep, self.dropout)

    def attention(self, tokens: Tensor, voxels: VoxelTerms) -> Tensor:
        """Spatial attention of each voxel on each image, (B, V, P), summing to 1 over tokens."""
        return torch.softmax(
            voxels.folded @ self.project(tokens).transpose(1, 2) + voxels.bias, dim=2
        )


class UniversalEncoder(nn.Module):
    """Predicts the responses of any voxel of any subject of the crowd to images, from tokens of a
    backbone.

    Parameters
    ----------
    config : every size.
    subjects : number of voxels of each subject.
    rests : number of components of the linear rest of those subjects that have one.

    Attributes
    ----------
    embeddings : one parameter (n_voxels, E) per subject; the only thing that belongs to a subject.
    rests : of subjects that `ubrain.transfer` brought, what their voxels read beside the embedding;
        see `ubrain.readout`.

    Examples
    --------
    >>> config = EncoderConfig(widths=(8, 16), n_tokens=9, embedding_size=4, channels=6)
    >>> encoder = UniversalEncoder(config, {"S1": 20})
    >>> tokens = [torch.zeros(5, 9, 8), torch.zeros(5, 9, 16)]  # one (n_images, P, D) per level
    >>> encoder(tokens, "S1").shape  # (n_images, n_voxels)
    torch.Size([5, 20])
    """

    def __init__(
        self, config: EncoderConfig, subjects: dict[str, int], rests: dict[str, int] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        unknown = sorted(set(config.without) - set(PARTS))
        if unknown or {"spatial", "functional"} <= set(config.without):
            raise UbrainError(
                f"without: expected some of {', '.join(PARTS)}, and not both spatial and"
                f" functional, which would leave nothing to the voxel; got {config.without}"
            )
        size, channels = config.embedding_size, config.channels
        self._start = config.embedding_scale / (
            2 * math.sqrt(size)
        )  # standard deviation of a new embedding's numbers
        self.levels = nn.ModuleList(Level(width, config) for width in config.widths)
        self.position = nn.Parameter(torch.randn(config.n_tokens, size) / math.sqrt(size))
        self.functional = nn.Parameter(torch.randn(size, len(config.widths) * channels))
        self.embeddings = nn.ParameterDict()
        self.rests = nn.ModuleDict()
        for name, n_voxels in subjects.items():
            self.add_subject(name, n_voxels)
        sizes = n_features(len(config.widths), config.n_tokens, channels)
        for name, n_components in (rests or {}).items():
            self.rests[name] = LinearRest(sizes, n_components, subjects[name])

    def add_subject(self, name: str, n_voxels: int) -> None:
        """Give a new subject fresh embeddings, N(0, (scale / (2 sqrt(E)))²)."""
        if name in self.embeddings:
            raise UbrainError(f"the encoder already has a subject {name!r}")
        self.embeddings[name] = nn.Parameter(
            torch.randn(n_voxels, self.config.embedding_size) * self._start
        )

    def subject(self, name: str) -> nn.Parameter:
        """Embeddings of a subject's voxels, (n_voxels, E)."""
        if name not in self.embeddings:
            raise UbrainError(
                f"the encoder has no subject {name!r}; it has {', '.join(self.embeddings)}"
            )
        return self.embeddings[name]

    def drop_subject(self, name: str) -> None:
        """Forget a subject's embeddings."""
        self.subject(name)
        del self.embeddings[name]
        if name in self.rests:
            del self.rests[name]

    def forward(
        self, tokens: Sequence[Tensor], subject: str, voxels: Tensor | None = None
    ) -> Tensor:
        """Predicted responses.

        Parameters
        ----------
        tokens : one (B, P, D) per level, from `Backbone` or `Features`.
        subject : whose voxels.
        voxels : indices of voxels, (V,) for all images or (B, V) for each its own; all of the
            subject by default.

        Returns
        -------
        (B, V), in units of the z-scored responses.
        """
        embedding = self.subject(subject)
        out = self.respond(
            tokens, self.voxel_terms(embedding if voxels is None else embedding[voxels])
        )
        return self.with_rest(out, tokens, subject, slice(None) if voxels is None else voxels)

    def with_rest(
        self, responses: Tensor, tokens: Sequence[Tensor], subject: str, voxels: Tensor | slice
    ) -> Tensor:
        """Responses of a subject's voxels, (B, V), with its linear rest if it has one.

        Raises
        ------
        UbrainError
            If it has one, and each image has its own voxels, as in training.
        """
        if subject not in self.rests:
            return responses
        if not isinstance(voxels, slice) and voxels.ndim > 1:
            raise UbrainError(
                f"subject {subject!r} has a linear rest, which is for voxels that all images share"
            )
        projected = [level.project(t) for level, t in zip(self._levels, tokens, strict=True)]
        return self.rests[subject](responses, projected, voxels)

    def voxel_terms(self, embedding: Tensor) -> list[VoxelTerms]:
        """Everything that depends on the voxels only, per level; compute it once for many batches
        of images.

        Parameters
        ----------
        embedding : (V, E) for voxels that all images share, or (B, V, E).
        """
        e = embedding if embedding.ndim == 3 else embedding[None]
        what = torch.full_like(e, self._start) if "functional" in self.config.without else e
        weights = (what @ self.functional).split(self.config.channels, dim=2)  # L × (G, V, C)
        return [
            level.voxel_terms(e, self.position, w)
            for level, w in zip(self._levels, weights, strict=True)
        ]

    def respond(
        self,
        tokens: Sequence[Tensor],
        voxels: list[VoxelTerms],
        keep: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Responses (B, V) of voxels given by their terms; `keep`, one (B, V, C) per level,
        replaces dropout's own masks.
        """
        self._check(tokens)
        masks: Sequence[Tensor | None] = keep or [None] * len(tokens)
        parts = [
            level(t, v, k)
            for level, t, v, k in zip(self._levels, tokens, voxels, masks, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def attention(
        self, tokens: Sequence[Tensor], subject: str, voxels: Tensor | None = None
    ) -> Tensor:
        """Spatial attention: (n_levels, B, V, P)."""
        self._check(tokens)
        terms = self.voxel_terms(
            self.subject(subject) if voxels is None else self.subject(subject)[voxels]
        )
        return torch.stack(
            [level.attention(t, v) for level, t, v in zip(self._levels, tokens, terms, strict=True)]
        )

    @property
    def _levels(self) -> list[Level]:
        return list(self.levels)  # type: ignore[arg-type]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Everything but the voxel embeddings."""
        return [p for name, p in self.named_parameters() if not name.startswith("embeddings.")]

    def _check(self, tokens: Sequence[Tensor]) -> None:
        expected = [(self.config.n_tokens, width) for width in self.config.widths]
        got = [tuple(t.shape[1:]) for t in tokens]
        if got != expected:
            raise UbrainError(
                f"tokens: expected levels of (P, D) = {expected}, got {got}; is it another"
                " backbone?"
            )

    def describe(self) -> dict[str, object]:
        """Config and voxels per subject, as plain values."""
        rests = {name: rest.n_components for name, rest in self.rests.items()}
        return {
            "config": asdict(self.config),
            "subjects": {n: len(e) for n, e in self.embeddings.items()},
            "rests": rests,
        }
