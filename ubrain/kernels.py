"""The encoder's function, rearranged to be computed fast: the same values, the same gradients.

Each step is exact algebra, and moves work from (image, voxel) pairs to voxels:

1. q · (K x_p + b + position_p) = (Kᵀ q) · x_p + q · position_p + q · b: keys of size C, and a bias
   that knows no image. The last term is the same for all tokens, so the softmax does not see it.
2. w · (z + W2 g + b2) = w · z + (W2ᵀ w) · g + w · b2: the second matrix of the MLP is applied to w,
   what the voxel reads, and not to the image.
3. So whatever depends on the voxel only is computed once per batch in training, where the images of
   a batch share their voxels, and once per subject in prediction (`voxel_terms`).
4. What remains for every pair of image and voxel, with f = Kᵀ q, s the bias, w and u = W2ᵀ w::

       pooled = Σ_p softmax_p(f · x_p + s_p) x_p
       z      = Dropout(LayerNorm(pooled))
       out    = w · z + u · gelu(W1 z + b1)

   is computed in tiles: a few images with a few voxels, small enough to stay in the processor's
   cache. Nothing of the size (B, V, P) outlives its tile: the backward pass computes the attention
   again, as flash attention and gradient checkpointing do. The layers after it, (B, V, 4C) and
   smaller, are kept up to a fixed number of bytes (`KEEP`), and else computed again too.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from ubrain.model import UniversalEncoder

# In the largest tensor of a tile; measured on CPU, from 1 << 18 to 1 << 22.
NUMBERS_PER_TILE = {"cpu": 1 << 21, "cuda": 1 << 26}
VOXELS_PER_TILE = {"cpu": 256, "cuda": 8192}
# Bytes that a level's forward pass may leave for the backward pass; more gained nothing on CPU.
KEEP = 32 << 20
aten = torch.ops.aten


class VoxelTerms(NamedTuple):
    """What one level needs to know of the voxels; G is 1 if all images share the voxels, else B."""

    folded: Tensor  # (G, V, C)
    bias: Tensor  # (G, V, P)
    readout: Tensor  # (G, V, C)
    hidden_readout: Tensor  # (G, V, 4C)
    constant: Tensor  # (G, V)


class SharedTerms(NamedTuple):
    """The weights that every pair of image and voxel goes through."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    fc1_weight: Tensor  # (4C, C)
    fc1_bias: Tensor  # (4C,)


def voxel_terms(encoder: "UniversalEncoder", embedding: Tensor) -> list[VoxelTerms]:
    """Everything that depends on the voxels only, per level; once for many batches of images.

    Parameters
    ----------
    embedding : (V, E) of voxels that all images share, or (B, V, E), each image with its own.
    """
    e = embedding if embedding.ndim == 3 else embedding[None]  # (G, V, E)
    position = encoder.positions().T
    found, levels = [], list[Any](encoder.levels)
    for level, weights in zip(levels, encoder.what(e), strict=True):  # weights (G, V, C)
        query = encoder.queries(level, e)
        hidden = weights @ level.fc2.weight
        constant = weights @ level.fc2.bias
        folded = query @ level.key.weight
        found.append(VoxelTerms(folded, query @ position, weights, hidden, constant))
    return found


def respond(
    encoder: "UniversalEncoder",
    projected: Sequence[Tensor],
    voxels: Sequence[VoxelTerms],
    keep: Sequence[Tensor] | None = None,
) -> Tensor:
    """Responses (B, V) to images given by projected tokens, one (B, P, C) per level."""
    return respond_by_level(encoder, projected, voxels, keep).sum(0)


def respond_by_level(
    encoder: "UniversalEncoder",
    projected: Sequence[Tensor],
    voxels: Sequence[VoxelTerms],
    keep: Sequence[Tensor] | None = None,
) -> Tensor:
    """Each level's part of the responses, (L, B, V)."""
    if keep is None and encoder.training:
        shape = len(projected[0]), voxels[0].readout.shape[1]
        keep = dropout_masks(encoder, *shape, projected[0].device)
    parts, levels = [], list[Any](encoder.levels)
    for i, (level, x, mine) in enumerate(zip(levels, projected, voxels, strict=True)):
        norm, fc1 = level.norm, level.fc1
        shared = SharedTerms(norm.weight, norm.bias, fc1.weight, fc1.bias)
        mask = None if keep is None else keep[i]
        parts.append(readout(x, mine, shared, mask, encoder.config.dropout))
    return torch.stack(parts)


def attention(x: Tensor, voxels: VoxelTerms) -> Tensor:
    """Spatial attention of one level over projected tokens x (B, P, C): (B, V, P)."""
    return torch.softmax(voxels.folded @ x.transpose(1, 2) + voxels.bias, dim=2)


def dropout_masks(
    encoder: "UniversalEncoder", n_images: int, n_voxels: int, device: torch.device
) -> list[Tensor] | None:
    """What dropout keeps, one (B, V, C) boolean per level; None for no dropout."""
    share, shape = encoder.config.dropout, (n_images, n_voxels, encoder.config.channels)
    return [dropout_mask(shape, share, device) for _ in encoder.levels] if share else None


def readout(
    x: Tensor, voxels: VoxelTerms, shared: SharedTerms, keep: Tensor | None, dropout: float
) -> Tensor:
    """One level's part of the responses, (B, V) in float32 or the wider type of `x`.

    Parameters
    ----------
    x : (B, P, C)
    keep : (B, V, C) bool, what dropout keeps; None for no dropout.
    dropout : share of numbers that is dropped.

    Under autocast the tiles are computed in its type; sums over tiles are kept in float32.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if keep is not None:  # what is kept is scaled up here, once, instead of in every tile
        norm_weight, norm_bias = (t / (1 - dropout) for t in shared[:2])
        shared = shared._replace(norm_weight=norm_weight, norm_bias=norm_bias)
    with torch.autocast(kind, enabled=False):
        wide = [t if t.dtype == torch.float64 else t.float() for t in (x, *voxels[:4], *shared)]
        room = KEEP if torch.is_grad_enabled() else 0
        return _Readout.apply(*wide, keep, dtype, room) + voxels.constant


def dropout_mask(shape: tuple[int, ...], dropout: float, device: torch.device) -> Tensor:
    """True with probability 1 − dropout, to 1/256: random bytes are faster than random floats."""
    n = math.prod(shape)
    words = torch.empty(-(-n // 8), dtype=torch.int64, device=device).random_(-(2**63), None)
    return (words.view(torch.uint8)[:n] >= round(dropout * 256)).view(shape)


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        *tensors, keep, dtype, room = rest
        out = x.new_empty(len(x), tensors[0].shape[1])
        left: list[Tensor | None] = []
        for tile in _tiles(x, tensors, keep, dtype):
            layers = tile.layers(tile.attention())
            room -= sum(t.nbytes for t in layers)
            left += layers if room >= 0 else [None] * len(layers)
            part = F.gelu(layers.hidden).mul_(tile.hidden_readout).sum(2).to(out.dtype)
            out[tile.images, tile.voxels] = part.add_((layers.z * tile.readout).sum(2))
        ctx.save_for_backward(x, *tensors, keep, *left)
        ctx.dtype = dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors, keep = ctx.saved_tensors[:10]
        left = ctx.saved_tensors[10:]
        sums = [torch.zeros_like(t) for t in (x, *tensors)]
        with torch.autocast(x.device.type, enabled=False):  # the types are chosen already
            for i, tile in enumerate(_tiles(x, tensors, keep, ctx.dtype)):
                attention = tile.attention()
                mine = left[5 * i : 5 * i + 5]
                layers = tile.layers(attention) if mine[0] is None else _Layers(*mine)
                tile.backward(
                    gradient[tile.images, tile.voxels, None].to(ctx.dtype), attention, layers, sums
                )
        return (*sums, None, None, None)


def _tiles(
    x: Tensor, tensors: list[Tensor], keep: Tensor | None, dtype: torch.dtype
) -> Iterator["_Tile"]:
    per_voxel, shared = tensors[:4], SharedTerms(*(t.to(dtype) for t in tensors[4:]))
    x, shares = x.to(dtype), len(per_voxel[0]) == 1
    if not len(x) or not per_voxel[0].shape[1]:
        return
    n_images, n_voxels = _tile_shape(x, tensors)
    for voxels in _slices(per_voxel[0].shape[1], n_voxels):
        some = [t[:, voxels].to(dtype) for t in per_voxel]
        if shares:
            some[0] = (
                some[0].expand(n_images, -1, -1).contiguous()
            )  # or each product would do it again
        for images in _slices(len(x), n_images):
            mine = x[images]
            folded, bias, direct, hidden = (
                (some[0][: len(mine)], *some[1:]) if shares else (t[images] for t in some)
            )
            kept = None if keep is None else keep[images, voxels].to(dtype)
            yield _Tile(images, voxels, mine, folded, bias, direct, hidden, shared, kept)


def _tile_shape(x: Tensor, tensors: list[Tensor]) -> tuple[int, int]:
    """Images and voxels of a tile."""
    kind = x.device.type if x.device.type in NUMBERS_PER_TILE else "cuda"
    pairs = NUMBERS_PER_TILE[kind] // max(x.shape[1], tensors[3].shape[2])
    n_voxels = min(VOXELS_PER_TILE[kind], tensors[0].shape[1])
    return min(max(1, pairs // n_voxels), len(x)), n_voxels


def _slices(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


class _Layers(NamedTuple):
    """What lies between attention and readout in one tile."""

    pooled: Tensor  # (b, v, C)
    mean: Tensor  # (b, v, 1)
    rstd: Tensor  # (b, v, 1)
    z: Tensor  # (b, v, C)
    hidden: Tensor  # (b, v, 4C)


class _Tile(NamedTuple):
    """b images with v voxels; G is 1 if they share their voxels, else b."""

    images: slice
    voxels: slice
    x: Tensor  # (b, P, C)
    folded: Tensor  # (b, v, C)
    bias: Tensor  # (G, v, P)
    readout: Tensor  # (G, v, C)
    hidden_readout: Tensor  # (G, v, 4C)
    shared: SharedTerms
    keep: Tensor | None  # (b, v, C), 0 or 1

    def attention(self) -> Tensor:
        """Spatial attention, (b, v, P)."""
        bias = self.bias.expand(len(self.x), -1, -1)
        scores = torch.baddbmm(bias, self.folded, self.x.transpose(1, 2))
        return torch.softmax(scores, 2)

    def layers(self, attention: Tensor) -> "_Layers":
        """Everything between the attention and the readout."""
        pooled = torch.bmm(attention, self.x)
        norm = (pooled.shape[2:], self.shared.norm_weight, self.shared.norm_bias)
        z, mean, rstd = aten.native_layer_norm(pooled, *norm, 1e-5)
        if self.keep is not None:
            z.mul_(self.keep)
        return _Layers(
            pooled, mean, rstd, z, F.linear(z, self.shared.fc1_weight, self.shared.fc1_bias)
        )

    def backward(self, g: Tensor, attention: Tensor, layers: "_Layers", sums: list[Tensor]) -> None:
        """Add this tile's gradients, g (b, v, 1), to `sums`, in the order of `_Readout`."""
        (
            d_x,
            d_folded,
            d_bias,
            d_readout,
            d_hidden_readout,
            d_norm_weight,
            d_norm_bias,
            d_fc1_weight,
            d_fc1_bias,
        ) = sums
        rows = (g.numel(), -1)

        self._add(d_hidden_readout, F.gelu(layers.hidden).mul_(g))
        dh = aten.gelu_backward(self.hidden_readout * g, layers.hidden).view(rows)
        d_fc1_weight += dh.T @ layers.z.view(rows)
        d_fc1_bias += dh.sum(0)
        dz = (dh @ self.shared.fc1_weight).view_as(layers.z).addcmul_(self.readout, g)
        self._add(d_readout, layers.z * g)
        if self.keep is not None:
            dz.mul_(self.keep)

        norm = (
            layers.mean,
            layers.rstd,
            self.shared.norm_weight,
            self.shared.norm_bias,
            [True, True, True],
        )
        dp, d_weight, d_norm = aten.native_layer_norm_backward(
            dz, layers.pooled, dz.shape[2:], *norm
        )
        d_norm_weight += d_weight
        d_norm_bias += d_norm
        ds = torch.bmm(dp, self.x.transpose(1, 2))
        ds = aten._softmax_backward_data(ds, attention, 2, ds.dtype)  # (b, v, P)
        self._add(d_bias, ds)
        self._add(d_folded, torch.bmm(ds, self.x))
        part = torch.bmm(attention.transpose(1, 2), dp)
        d_x[self.images] += part.baddbmm_(ds.transpose(1, 2), self.folded)

    def _add(self, total: Tensor, part: Tensor) -> None:
        """Add (b, v, ·) to its place in (G, V, ·), summed over images that share voxels."""
        if len(total) == 1:
            total[0, self.voxels] += part.sum(0)
        else:
            total[self.images, self.voxels] += part
