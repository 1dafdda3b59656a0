"""The encoder exactly as its formulas read, for every (image, voxel) pair, with nothing
re-associated, fused or shared.

The product's form is tested against this one, and `ubrain bench` times the two side by side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ubrain.model import UniversalEncoder


def respond(
    encoder: UniversalEncoder,
    tokens: Sequence[Tensor],
    embedding: Tensor,
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """Responses (B, V) to tokens, one (B, P, D) per level.

    Parameters
    ----------
    embedding : (V, E), the same voxels for every image, or (B, V, E), each image with its own.
    masks : one (B, V, C) per level, 1 where dropout keeps a number; without them dropout draws its
        own in training.
    """
    p_drop = encoder.config.dropout
    e = embedding.expand(len(tokens[0]), *embedding.shape[-2:])  # (B, V, E)
    levels = []
    for i, (level, t) in enumerate(zip(encoder.levels, tokens, strict=True)):
        x = F.linear(
            F.layer_norm(t, t.shape[-1:], level.norm_in.weight, level.norm_in.bias),
            level.project_in.weight,
            level.project_in.bias,
        )  # (B, P, C)
        query = F.linear(e, level.query.weight, level.query.bias)  # (B, V, E)
        key = F.linear(x, level.key.weight, level.key.bias) + encoder.position  # (B, P, E)
        attention = torch.softmax(query @ key.transpose(1, 2), dim=2)  # (B, V, P)
        pooled = attention @ x  # (B, V, C)
        z = F.layer_norm(pooled, pooled.shape[-1:], level.norm.weight, level.norm.bias)
        z = F.dropout(z, p_drop, encoder.training) if masks is None else z * masks[i] / (1 - p_drop)
        hidden = F.gelu(F.linear(z, level.fc1.weight, level.fc1.bias))  # (B, V, 4C)
        levels.append(z + F.linear(hidden, level.fc2.weight, level.fc2.bias))
    return ((e @ encoder.functional) * torch.cat(levels, 2)).sum(2)
