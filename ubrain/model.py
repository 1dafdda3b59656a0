"""The universal encoder: one embedding per voxel, everything else shared.

For a voxel with embedding e (E), and at each level the image's tokens t (P, D)::

    input      x = Linear(LayerNorm(t))                                (P, C)
    query      q = Q e                                                 (E)
    key        k_p = K x_p + position_p                                (E)
    where      pooled = Σ_p softmax_p(q · k_p) x_p                     (C)  spatial attention
    per level  z = Dropout(LayerNorm(pooled)),  h = z + W2 gelu(W1 z)  (C)
    what       response = Σ_levels (e F)_level · h_level                    functional attention

Q, K, W1, W2 and the norms are a level's own, and have biases; position, F and e are shared by the
levels. The attention scores q · k are not divided by √E, and functional attention has no softmax.

`UniversalEncoder.forward` is written as these formulas read. By default it hands over to
`ubrain.kernels`, which computes the same function several times faster; `encoder.fast = False`
brings the plain form back, everywhere. A variant of the attention changes `where` here and
`voxel_terms` there (a test holds them equal), and raises `ubrain.train.VERSION`.

For ablations, `EncoderConfig.without` takes parts away: "spatial", all tokens count alike (q = 0);
"position", tokens are told apart by content only (position = 0); "functional", all voxels read the
same channels (a constant in place of e in e F).

Source of the formulas: Beliy et al., arXiv 2406.12179, and the authors' released code (facts, no
line of it).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ubrain import kernels
from ubrain.config import EncoderConfig
from ubrain.errors import UbrainError, some

PARTS = ("spatial", "position", "functional")


class Level(nn.Module):
    """The shared weights of one backbone level."""

    def __init__(self, width: int, config: EncoderConfig) -> None:
        super().__init__()
        size, channels = config.embedding_size, config.channels
        self.norm_in = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, channels)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(channels, size)  # its bias changes nothing: the same for all tokens
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, config.mlp_ratio * channels)
        self.fc2 = nn.Linear(config.mlp_ratio * channels, channels)


class UniversalEncoder(nn.Module):
    """Predicts the responses of any voxel of any subject of the crowd to images.

    Parameters
    ----------
    config : every size.
    subjects : number of voxels of each subject.

    Attributes
    ----------
    embeddings : one parameter (n_voxels, E) per subject; the only thing that belongs to a subject.
    fast : compute with `ubrain.kernels` (the default), or as the formulas read.

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
        without = set(config.without)
        if not without <= set(PARTS) or {"spatial", "functional"} <= without:
            raise UbrainError(
                f"without: expected some of {', '.join(PARTS)}, and not both spatial and"
                f" functional, which would leave nothing to the voxel; got {config.without}"
            )
        size, channels, n_levels = config.embedding_size, config.channels, len(config.widths)
        self.config, self.fast = config, True
        self.levels = nn.ModuleList(Level(width, config) for width in config.widths)
        position, std = torch.randn(config.n_tokens, size), config.position_std
        self.position = nn.Parameter(position / math.sqrt(size) if std is None else position * std)
        functional = torch.randn(size, n_levels * channels)
        self.functional = nn.Parameter(functional * config.functional_std)
        self.embeddings = nn.ParameterDict()
        for name, n_voxels in subjects.items():
            self.add_subject(name, n_voxels)

    def forward(
        self,
        tokens: Sequence[Tensor],
        voxels: str | Tensor,
        keep: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predicted responses (B, V), in units of the z-scored responses.

        Parameters
        ----------
        tokens : one (B, P, D) per level, from `Backbone` or `Features`.
        voxels : a subject, for all its voxels; or embeddings, (V, E) of voxels that all images
            share, or (B, V, E), each image with its own.
        keep : one (B, V, C) boolean per level, what dropout keeps; drawn in training if not given.
        """
        e = self.subject(voxels) if isinstance(voxels, str) else voxels  # (V, E)
        return self.respond(self.project(tokens), e, keep)

    def respond(
        self, projected: Sequence[Tensor], e: Tensor, keep: Sequence[Tensor] | None = None
    ) -> Tensor:
        """As `forward`, from projected tokens x, one (B, P, C) per level, and embeddings e."""
        if self.fast and not self.tiled:
            return kernels.respond_on_gpu(self, projected, e, keep)
        if self.fast:
            return kernels.respond(self, projected, kernels.voxel_terms(self, e), keep)
        responses = torch.zeros((), dtype=e.dtype, device=e.device)
        levels: list[Any] = list(self.levels)
        for i, (level, x, what) in enumerate(zip(levels, projected, self.what(e), strict=True)):
            pooled = self.where(level, x, e) @ x  # (B, V, C)
            z = level.norm(pooled)
            if keep is None:
                z = F.dropout(z, self.config.dropout, self.training)
            else:
                z = z * keep[i] / (1 - self.config.dropout)
            h = z + level.fc2(F.gelu(level.fc1(z)))  # (B, V, C)
            responses = responses + (what * h).sum(-1)  # (B, V)
        return responses

    def attention(self, tokens: Sequence[Tensor], voxels: str | Tensor) -> Tensor:
        """Spatial attention, (n_levels, B, V, P), summing to 1 over tokens; see `forward`."""
        e = self.subject(voxels) if isinstance(voxels, str) else voxels
        levels: list[Any] = list(self.levels)
        pairs = zip(levels, self.project(tokens), strict=True)
        return torch.stack([self.where(level, x, e) for level, x in pairs])

    def where(self, level: Level, x: Tensor, embedding: Tensor) -> Tensor:
        """Spatial attention of voxels over projected tokens x (B, P, C): (B, V, P)."""
        key = level.key(x) + self.positions()  # (B, P, E)
        return torch.softmax(self.queries(level, embedding) @ key.transpose(1, 2), dim=2)

    def queries(self, level: Level, embedding: Tensor) -> Tensor:
        """What voxels look for, (..., V, E)."""
        query = level.query(embedding)
        return torch.zeros_like(query) if "spatial" in self.config.without else query

    def positions(self) -> Tensor:
        """What tells tokens apart by place, (P, E)."""
        without = "position" in self.config.without
        return torch.zeros_like(self.position) if without else self.position

    def what(self, embedding: Tensor) -> Sequence[Tensor]:
        """Functional attention: the channels that voxels read, one (..., V, C) per level."""
        if "functional" in self.config.without:
            embedding = torch.full_like(embedding, self.embedding_std)
        return (embedding @ self.functional).split(self.config.channels, dim=-1)

    def project(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Tokens of the backbone, (B, P, D) per level -> (B, P, C) per level."""
        expected = [(self.config.n_tokens, width) for width in self.config.widths]
        got = [tuple(t.shape[1:]) for t in tokens]
        if got != expected:
            raise UbrainError(
                f"tokens: expected levels of (P, D) = {expected}, got {got}; is it another"
                " backbone?"
            )
        levels: list[Any] = list(self.levels)
        return [level.project_in(level.norm_in(t)) for level, t in zip(levels, tokens, strict=True)]

    @property
    def tiled(self) -> bool:
        """Whether `ubrain.kernels` computes in tiles: not on a GPU."""
        return self.fast and self.position.device.type != "cuda"

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the numbers of a new embedding, scale / (2 √E)."""
        return self.config.embedding_scale / (2 * math.sqrt(self.config.embedding_size))

    def add_subject(self, name: str, n_voxels: int) -> None:
        """Give a new subject fresh embeddings, N(0, (scale / (2 √E))²)."""
        if name in self.embeddings:
            raise UbrainError(f"the encoder already has a subject {name!r}")
        start = torch.randn(n_voxels, self.config.embedding_size) * self.embedding_std
        self.embeddings[name] = nn.Parameter(start)

    def subject(self, name: str) -> nn.Parameter:
        """Embeddings of a subject's voxels, (n_voxels, E)."""
        if name not in self.embeddings:
            known = some(self.embeddings)
            raise UbrainError(f"the encoder has no subject {name!r}; it has {known}")
        return self.embeddings[name]

    def drop_subject(self, name: str) -> None:
        """Forget a subject's embeddings."""
        self.subject(name)
        del self.embeddings[name]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Everything but the voxel embeddings."""
        return [p for name, p in self.named_parameters() if not name.startswith("embeddings.")]

    def frozen(self) -> "UniversalEncoder":
        """A view of this encoder, without copies, to predict with: no gradients, no dropout."""
        same = {id(t): t.detach() for t in (*self.parameters(), *self.buffers())}
        return copy.deepcopy(self, same).eval()

    def describe(self) -> dict[str, object]:
        """Config and voxels per subject, as plain values."""
        subjects = {name: len(e) for name, e in self.embeddings.items()}
        return {"config": asdict(self.config), "subjects": subjects}
