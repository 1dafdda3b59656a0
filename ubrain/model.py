"""The universal encoder: one embedding per voxel, everything else shared.

For voxel v with embedding e (E), and at each level l the image's tokens x (P, C)::

    query      q = Q e                                            (E)
    key        k_p = K x_p + b + position_p                       (E)
    where      pooled = Σ_p softmax_p(q · k_p) x_p                (C)   spatial attention, without 1/sqrt(E)
    per level  z = Dropout(LayerNorm(pooled)),  h = z + W2 gelu(W1 z + b1) + b2
    what       response = Σ_l (e F_l) · h_l                             functional attention, no softmax

`Head.forward` computes the same function after three exact re-associations, each of which moves work from
(image, voxel) pairs to voxels:

1. q · (K x_p + b + position_p) = (Kᵀ q) · x_p + q · (b + position_p): keys of size C, and a bias that knows no image.
2. w · (z + W2 g + b2) = w · z + (W2ᵀ w) · g + w · b2: the second matrix of the MLP is applied to w, not to the image.
3. All images of a batch share a set of voxels, so whatever depends on the voxel only is computed once.

Source of the formulas: Beliy et al., arXiv 2406.12179, and the authors' released code (facts only).
"""

import math
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ubrain.config import EncoderConfig
from ubrain.errors import UbrainError


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
        self.dropout = nn.Dropout(config.dropout)
        self.fc1 = nn.Linear(channels, config.mlp_ratio * channels)
        self.fc2 = nn.Linear(config.mlp_ratio * channels, channels)

    def forward(self, tokens: Tensor, embedding: Tensor, position: Tensor, weights: Tensor) -> Tensor:
        """One level's part of the responses.

        Parameters
        ----------
        tokens : (B, P, D)
        embedding : (V, E)
        position : (P, E)
        weights : (V, C), the functional attention of the voxels to this level.

        Returns
        -------
        (B, V)
        """
        x = self.project_in(self.norm_in(tokens))  # (B, P, C)
        query = self.query(embedding)  # (V, E)
        folded = query @ self.key.weight  # (V, C)
        bias = query @ (self.key.bias + position).T  # (V, P)
        attention = torch.softmax(folded @ x.transpose(1, 2) + bias, dim=2)  # (B, V, P)
        z = self.dropout(self.norm(attention @ x))  # (B, V, C)
        hidden = F.gelu(self.fc1(z))  # (B, V, 4C)
        out = torch.einsum("bvc,vc->bv", z, weights) + torch.einsum("bvh,vh->bv", hidden, weights @ self.fc2.weight)
        return out + weights @ self.fc2.bias

    def attention(self, tokens: Tensor, embedding: Tensor, position: Tensor) -> Tensor:
        """Spatial attention of each voxel on each image, (B, V, P), summing to 1 over tokens."""
        x = self.project_in(self.norm_in(tokens))
        query = self.query(embedding)
        return torch.softmax((query @ self.key.weight) @ x.transpose(1, 2) + query @ (self.key.bias + position).T, dim=2)


class UniversalEncoder(nn.Module):
    """Predicts the responses of any voxel of any subject of the crowd to images, from tokens of a backbone.

    Parameters
    ----------
    config : every size.
    subjects : number of voxels of each subject.

    Attributes
    ----------
    embeddings : one parameter (n_voxels, E) per subject; the only thing that belongs to a subject.

    Examples
    --------
    >>> config = EncoderConfig(widths=(8, 16), n_tokens=9, embedding_size=4, channels=6)
    >>> encoder = UniversalEncoder(config, {"S1": 20})
    >>> tokens = [torch.zeros(5, 9, 8), torch.zeros(5, 9, 16)]  # one (n_images, P, D) per level
    >>> encoder(tokens, "S1").shape  # (n_images, n_voxels)
    torch.Size([5, 20])
    """

    def __init__(self, config: EncoderConfig, subjects: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        size, channels = config.embedding_size, config.channels
        self.levels = nn.ModuleList(Level(width, config) for width in config.widths)
        self.position = nn.Parameter(torch.randn(config.n_tokens, size) / math.sqrt(size))
        self.functional = nn.Parameter(torch.randn(size, len(config.widths) * channels))
        self.embeddings = nn.ParameterDict()
        for name, n_voxels in subjects.items():
            self.add_subject(name, n_voxels)

    def add_subject(self, name: str, n_voxels: int) -> None:
        """Give a new subject fresh embeddings, N(0, (scale / (2 sqrt(E)))²)."""
        if name in self.embeddings:
            raise UbrainError(f"the encoder already has a subject {name!r}")
        size = self.config.embedding_size
        std = self.config.embedding_scale / (2 * math.sqrt(size))
        self.embeddings[name] = nn.Parameter(torch.randn(n_voxels, size) * std)

    def subject(self, name: str) -> nn.Parameter:
        """Embeddings of a subject's voxels, (n_voxels, E)."""
        if name not in self.embeddings:
            raise UbrainError(f"the encoder has no subject {name!r}; it has {', '.join(self.embeddings)}")
        return self.embeddings[name]

    def forward(self, tokens: list[Tensor], subject: str, voxels: Tensor | None = None) -> Tensor:
        """Predicted responses.

        Parameters
        ----------
        tokens : one (B, P, D) per level, from `Backbone` or `Features`.
        subject : whose voxels.
        voxels : (V,) indices of voxels; all of the subject by default.

        Returns
        -------
        (B, V), in units of the z-scored responses.
        """
        embedding = self.subject(subject)
        return self.respond(tokens, embedding if voxels is None else embedding[voxels])

    def respond(self, tokens: list[Tensor], embedding: Tensor) -> Tensor:
        """Responses of voxels given by their embeddings (V, E): (B, V)."""
        self._check(tokens)
        weights = (embedding @ self.functional).split(self.config.channels, dim=1)  # L × (V, C)
        parts = [
            level(x, embedding, self.position, w) for level, x, w in zip(self.levels, tokens, weights, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def attention(self, tokens: list[Tensor], subject: str, voxels: Tensor | None = None) -> Tensor:
        """Spatial attention: (n_levels, B, V, P)."""
        self._check(tokens)
        embedding = self.subject(subject) if voxels is None else self.subject(subject)[voxels]
        return torch.stack([
            level.attention(x, embedding, self.position)  # type: ignore[operator]
            for level, x in zip(self.levels, tokens, strict=True)
        ])  # fmt: skip

    def shared_parameters(self) -> list[nn.Parameter]:
        """Everything but the voxel embeddings."""
        return [p for name, p in self.named_parameters() if not name.startswith("embeddings.")]

    def _check(self, tokens: list[Tensor]) -> None:
        expected = [(self.config.n_tokens, width) for width in self.config.widths]
        got = [tuple(t.shape[1:]) for t in tokens]
        if got != expected:
            raise UbrainError(f"tokens: expected levels of (P, D) = {expected}, got {got}; is it another backbone?")

    def describe(self) -> dict[str, object]:
        """Config and voxels per subject, as plain values."""
        return {"config": asdict(self.config), "subjects": {n: len(e) for n, e in self.embeddings.items()}}
