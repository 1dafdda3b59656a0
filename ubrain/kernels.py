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
   cache. Nothing of the size (B, V, P) or (B, V, 4C) outlives its tile beyond a fixed number of
   bytes (`KEEP`): the backward pass computes it again, as flash attention and gradient
   checkpointing do.

A GPU gets step 2 only (`respond_on_gpu`): pooling is the fused attention that torch has, whose
kernels never store (B, V, P) either, and the rest is compiled, where there is a compiler.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_map

from ubrain.progress import log

if TYPE_CHECKING:
    from ubrain.model import UniversalEncoder

# In the largest tensor of a tile; measured on CPU, from 1 << 18 to 1 << 22.
NUMBERS_PER_TILE = 1 << 21
VOXELS_PER_TILE = 256
# Bytes that a level's forward pass may leave for the backward pass; more gained nothing on CPU.
KEEP = 32 << 20
aten = torch.ops.aten


class Compiled:
    """A function, compiled at its first call; as it is, where torch cannot compile it.

    `dynamic` is torch's: kernels for any shape; None: for the first, and for any if others come.
    """

    def __init__(self, function: Callable[..., Tensor], dynamic: bool | None = True) -> None:
        self._plain, self._call, self._dynamic = function, function, dynamic
        self._tried = False

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        if not self._tried:
            self._tried, self._call = True, torch.compile(self._plain, dynamic=self._dynamic)
            try:
                self._try(inputs, options)
            except Exception as error:  # no compiler, no Triton, an old card: whatever torch says
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.info("computing without compiling, which torch cannot here: %s", reason[:200])
                self._call = self._plain
        return self._call(*inputs, **options)

    def _try(self, inputs: Sequence[Any], options: dict[str, Any]) -> None:
        """Forward and backward once, so that what fails, fails here."""
        torch._dynamo.config.recompile_limit = 64  # shapes, precisions, with gradients or without
        with torch.inference_mode(False), torch.enable_grad():
            leaves = tree_map(
                lambda x: (
                    x.detach().clone().requires_grad_(x.is_floating_point())
                    if isinstance(x, Tensor)
                    else x
                ),
                inputs,
            )
            given = [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]
            outputs = self._call(*leaves, **options).sum()
            torch.autograd.grad(outputs, [t for t in given if t.requires_grad], allow_unused=True)


class Replayed:
    """Forward and backward pass of a step, recorded once as a CUDA graph, then replayed.

    A step of the paper's size is some 2,000 kernels, and Python needs longer to start them than a
    GPU to compute them. Recorded is the first shape of inputs that comes `WARM` times; other
    shapes, and everything without a GPU, are computed as they come.

    Parameters
    ----------
    work : gives tensors from tensors, and leaves gradients at the parameters.
    parameters : that get gradients.
    """

    WARM = 3

    def __init__(
        self, work: Callable[..., tuple[Tensor, ...]], parameters: Sequence[Tensor]
    ) -> None:
        self._work, self._parameters = work, parameters
        self._seen = Counter[tuple[Any, ...]]()
        self._shape: tuple[Any, ...] = ()
        self._replay: Callable[[], None] | None = None
        self._inputs: Sequence[Tensor] = ()
        self._outputs: Sequence[Tensor] = ()
        self._gradients: Sequence[Tensor | None] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The work's outputs; gradients are added to those that the parameters have."""
        shape = tuple((t.shape, t.dtype) for t in inputs)
        if self._replay is not None and shape == self._shape:
            before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
            for mine, given in zip(self._inputs, inputs, strict=True):
                mine.copy_(given)
            self._replay()
            for p, old, new in zip(self._parameters, before, self._gradients, strict=True):
                p.grad = new if old is None or new is None else old + new
            return tuple(t.clone() for t in self._outputs)
        outputs = self._work(*inputs)
        self._seen[shape] += 1
        if inputs[0].is_cuda and not self._shape and self._seen[shape] == self.WARM:
            self._shape = shape
            self._record(inputs)
        return outputs

    def _record(self, inputs: Sequence[Tensor]) -> None:
        gradients = [p.grad for p in self._parameters]
        self._inputs, graph = [t.detach().clone() for t in inputs], torch.cuda.CUDAGraph()
        for p in self._parameters:
            p.grad = None  # so that the recorded pass gets its own, which a replay overwrites
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may read ahead
            self._outputs = self._work(*self._inputs)
        self._gradients, self._replay = [p.grad for p in self._parameters], graph.replay
        for p, gradient in zip(self._parameters, gradients, strict=True):
            p.grad = gradient


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

    @classmethod
    def of(cls, level: Any) -> "SharedTerms":
        """Those of a level of the encoder."""
        return cls(level.norm.weight, level.norm.bias, level.fc1.weight, level.fc1.bias)


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


def respond_on_gpu(
    encoder: "UniversalEncoder",
    projected: Sequence[Tensor],
    e: Tensor,
    keep: Sequence[Tensor] | None = None,
) -> Tensor:
    """As `UniversalEncoder.respond`, by kernels that torch has for a GPU.

    Voxels are the queries of the attention, tokens its keys and values. Its fastest kernels, in
    half precision, want both of one size, a multiple of 8 up to 256: what is shorter is filled up
    with zeros, which add nothing.
    """
    if keep is None and encoder.training:
        keep = dropout_masks(encoder, len(projected[0]), e.shape[-2], e.device)
    channels, parts, levels = encoder.config.channels, list[Tensor](), list[Any](encoder.levels)
    size = -(-max(channels, encoder.config.embedding_size) // 8) * 8
    for i, (level, x, weights) in enumerate(zip(levels, projected, encoder.what(e), strict=True)):
        query = encoder.queries(level, e).expand(len(x), -1, -1)
        key = F.linear(x, level.key.weight) + encoder.positions()  # its bias changes nothing
        q, k, v = (t.to(x.dtype)[:, None] for t in (query, key, x))
        if x.dtype.itemsize == 2 and size <= 256:
            q, k, v = (F.pad(t, (0, size - t.shape[3])) for t in (q, k, v))
        pooled = F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0, :, :channels]
        terms = weights, weights @ level.fc2.weight, weights @ level.fc2.bias
        mask = None if keep is None else keep[i]
        shared, dropout = SharedTerms.of(level), encoder.config.dropout
        parts.append(read_out(pooled, *terms, shared, mask, dropout))
    return torch.stack(parts).sum(0)


def _read_out(
    pooled: Tensor,
    weights: Tensor,
    hidden_weights: Tensor,
    constant: Tensor,
    shared: SharedTerms,
    keep: Tensor | None,
    dropout: float,
) -> Tensor:
    """One level's part of the responses (B, V), from what was pooled, (B, V, C)."""
    z = F.layer_norm(pooled, pooled.shape[-1:], shared.norm_weight, shared.norm_bias)
    if keep is not None:
        z = z * keep / (1 - dropout)
    units = F.gelu(F.linear(z, shared.fc1_weight, shared.fc1_bias))
    return (weights * z).sum(-1) + (hidden_weights * units).sum(-1) + constant


read_out = Compiled(_read_out)


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
        mask = None if keep is None else keep[i]
        parts.append(readout(x, mine, SharedTerms.of(level), mask, encoder.config.dropout))
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
            layers = tile.layers()
            room -= sum(t.nbytes for t in layers)
            left += layers if room >= 0 else [None] * len(layers)
            part = _dot(layers.units, tile.hidden_readout).to(out.dtype)
            out[tile.images, tile.voxels] = part.add_(_dot(layers.z, tile.readout)).T
        ctx.save_for_backward(x, *tensors, keep, *left)
        ctx.dtype = dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors, keep = ctx.saved_tensors[:10]
        left = ctx.saved_tensors[10:]
        wanted = zip((x, *tensors), ctx.needs_input_grad[:9], strict=True)
        sums = [torch.zeros_like(t) if wants else None for t, wants in wanted]
        n = len(_Layers._fields)
        with torch.autocast(x.device.type, enabled=False):  # the types are chosen already
            for i, tile in enumerate(_tiles(x, tensors, keep, ctx.dtype)):
                mine = left[n * i : n * i + n]
                layers = tile.layers() if mine[0] is None else _Layers(*mine)
                g = gradient[tile.images, tile.voxels].T.to(ctx.dtype).contiguous()
                tile.backward(g[..., None], layers, sums)
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
        for images in _slices(len(x), n_images):
            mine = [(t if shares else t[images]).transpose(0, 1) for t in some]
            kept = None if keep is None else keep[images, voxels].transpose(0, 1)
            yield _Tile(images, voxels, x[images], mine[0], mine[1], mine[2], mine[3], shared, kept)


def _tile_shape(x: Tensor, tensors: list[Tensor]) -> tuple[int, int]:
    """Images and voxels of a tile."""
    pairs = NUMBERS_PER_TILE // max(x.shape[1], tensors[3].shape[2])
    n_voxels = min(VOXELS_PER_TILE, tensors[0].shape[1])
    return min(max(1, pairs // n_voxels), len(x)), n_voxels


def _slices(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


class _Layers(NamedTuple):
    """What lies between the tokens and the readout in one tile."""

    attention: Tensor  # (v, b, P)
    pooled: Tensor  # (v, b, C)
    mean: Tensor  # (v, b, 1)
    rstd: Tensor  # (v, b, 1)
    z: Tensor  # (v, b, C)
    hidden: Tensor  # (v, b, 4C)
    units: Tensor  # (v, b, 4C), gelu(hidden)


class _Tile(NamedTuple):
    """v voxels with b images; G is 1 if images share the voxels, else b.

    Voxels come first: what they share among images then meets all images in one matrix product.
    """

    images: slice
    voxels: slice
    x: Tensor  # (b, P, C)
    folded: Tensor  # (v, G, C)
    bias: Tensor  # (v, G, P)
    readout: Tensor  # (v, G, C)
    hidden_readout: Tensor  # (v, G, 4C)
    shared: SharedTerms
    keep: Tensor | None  # (v, b, C), boolean

    def layers(self) -> "_Layers":
        """Everything from the attention to the readout."""
        folded = self.folded.expand(-1, len(self.x), -1)
        attention = torch.softmax(_by_image(folded, self.x.transpose(1, 2)).add_(self.bias), 2)
        pooled = _by_image(attention, self.x)
        norm = (pooled.shape[2:], self.shared.norm_weight, self.shared.norm_bias)
        z, mean, rstd = aten.native_layer_norm(pooled, *norm, 1e-5)
        if self.keep is not None:
            z.mul_(self.keep)
        hidden = F.linear(z, self.shared.fc1_weight, self.shared.fc1_bias)
        return _Layers(attention, pooled, mean, rstd, z, hidden, F.gelu(hidden))

    def backward(self, g: Tensor, layers: "_Layers", sums: list[Tensor | None]) -> None:
        """Add this tile's gradients, g (v, b, 1), to `sums`, in the order of `_Readout`; None is
        not wanted.
        """
        d_x, d_folded, d_bias, d_readout, d_hidden_readout, *d_shared = sums
        rows = (g.numel(), -1)

        self._add(d_hidden_readout, layers.units, g)
        self._add(d_readout, layers.z, g)
        dh = aten.gelu_backward(self.hidden_readout * g, layers.hidden).reshape(rows)
        dz = (dh @ self.shared.fc1_weight).view_as(layers.z).addcmul_(self.readout, g)
        if self.keep is not None:
            dz.mul_(self.keep)

        trained = d_shared[0] is not None  # the shared weights, all or none of them
        norm = (layers.mean, layers.rstd, *self.shared[:2], [True, trained, trained])
        dp, *d_norm = aten.native_layer_norm_backward(dz, layers.pooled, dz.shape[2:], *norm)
        if trained:
            parts = (*d_norm, dh.T @ layers.z.view(rows), dh.sum(0))
            for total, part in zip(d_shared, parts, strict=True):
                assert total is not None
                total += part

        ds = _by_image(dp, self.x.transpose(1, 2))
        ds = aten._softmax_backward_data(ds, layers.attention, 2, ds.dtype)  # (v, b, P)
        self._add(d_bias, ds)
        self._add(d_folded, _by_image(ds, self.x))
        if d_x is None:
            return
        part = torch.bmm(layers.attention.permute(1, 2, 0), dp.transpose(0, 1))  # (b, P, C)
        folded = self.folded.expand(-1, len(self.x), -1).transpose(0, 1)
        d_x[self.images] += part.baddbmm_(ds.permute(1, 2, 0), folded)

    def _add(self, total: Tensor | None, part: Tensor, g: Tensor | None = None) -> None:
        """Add (v, b, ·), times g, to its place in (G, V, ·), summed over images that share
        voxels.
        """
        if total is None:
            return
        if len(total) > 1:
            total[self.images, self.voxels] += (part if g is None else part * g).transpose(0, 1)
        elif g is None:
            total[0, self.voxels] += part.sum(1)
        else:
            total[0, self.voxels] += torch.bmm(g.transpose(1, 2), part)[:, 0]


def _by_image(a: Tensor, b: Tensor) -> Tensor:
    """Each image's product: (v, b, n) and (b, n, m) give (v, b, m)."""
    out = a.new_empty(*a.shape[:2], b.shape[2])
    torch.bmm(a.transpose(0, 1), b, out=out.transpose(0, 1))
    return out


def _dot(a: Tensor, weights: Tensor) -> Tensor:
    """Σ a · weights over the last axis: (v, b, n) and (v, G, n) give (v, b)."""
    if weights.shape[1] == 1:
        return torch.bmm(a, weights.transpose(1, 2))[..., 0]
    return (a * weights).sum(2)
