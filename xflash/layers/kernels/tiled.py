"""relu^2 and Laplace attention in linear memory: scores are made a tile at a time, and made again in the backward.

Nothing is normalised over a row, so that tiles need not know of each other, and no matrix of n x n is ever alive. To
torch.compile, export and autograd it is one node (a custom op, its backward another).
"""

import math
from collections.abc import Callable
from typing import Any, Optional, cast

import torch

from ...base.operator import operator
from ...base.shapes import Float, Tensor
from .operators import as_autocast, gradients_of
from .tiles import Between, Tile, Work, columns, dropped, hide, prepared, tiles

__all__ = ["Between", "add_diagonals", "laplace", "tiled_attention", "weights_and_slope"]


def laplace(score: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Mega's bounded stand-in for relu^2 (https://arxiv.org/abs/2209.10655): a normal distribution function.

    It has relu^2's value and slope at its mean, sqrt(1/2); its deviation is 1 / sqrt(4 pi). By erfc, for 1 + erf would
    lose most digits of the small weights in half precision.
    """
    return torch.special.erfc((math.sqrt(0.5) - score) * math.sqrt(2 * math.pi)) * 0.5


def tiled_attention(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m e"],
    *,
    attn_fn: str,
    vector: Float[Tensor, "h l"] | None = None,
    causal: bool = False,
    between: Between | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "b h n e"]:
    """The values summed with the weights f(q k^T + bias); f is 'relu2' or 'laplace', l is m + n - 1.

    vector: the bias by distance, -(m - 1) .. n - 1, of the n queries that are the last of m tokens.  causal: none of
    them sees a later token.  Keys that do not exist need no mask: let their values be zero.
    """
    q, k, v = cast("list[Tensor]", as_autocast(q, k, v))
    since, until = (None, None) if between is None else between
    # Drawn on the CPU, where reading it makes no GPU wait.
    seed = torch.randint(2**62, (1,), device="cpu") if dropout_p else None
    return gated_tiles(q, k, v, vector, since, until, seed, attn_fn, causal, dropout_p)


def scores(work: Work, tile: Tile) -> Float[Tensor, "r i j"]:
    """q k^T + bias of a tile, batch rows and heads in one axis."""
    q = work.q[tile.first : tile.last, :, tile.low : tile.high].flatten(0, 1)
    k = work.k[tile.first : tile.last, :, tile.start : tile.end].flatten(0, 1)
    if work.vector is None:
        return torch.bmm(q, k.mT)
    bias = toeplitz_tile(work.vector, work.q.shape[2], tile).to(q.dtype)
    if bias.shape[0] > 1:
        bias = bias.repeat(tile.last - tile.first, 1, 1)
    return torch.baddbmm(bias, q, k.mT)


def toeplitz_tile(vector: Float[Tensor, "h l"], n: int, tile: Tile) -> Float[Tensor, "h i j"]:
    """The tile's part of the matrix whose entry (i, j) is the vector's entry j - i + n - 1."""
    h, vector = vector.shape[0], vector.contiguous()
    size = (h, tile.high - tile.low, tile.end - tile.start)
    first = n - tile.high + tile.start + vector.storage_offset()
    return vector.as_strided(size, (vector.stride(0), 1, 1), first).flip(1)


@operator("gated_tiles")
def gated_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vector: Optional[Tensor],  # noqa: UP045  what the schema is inferred from
    since: Optional[Tensor],  # noqa: UP045
    until: Optional[Tensor],  # noqa: UP045
    seed: Optional[Tensor],  # noqa: UP045
    attn_fn: str,
    causal: bool,
    dropout: float,
) -> Tensor:
    """See `tiled_attention`."""
    work = prepared(q, k, v, vector, since, until, seed, attn_fn, causal, dropout)
    return summed(work, lambda raw: raw.relu_().square_() if attn_fn == "relu2" else laplace(raw))


def summed(work: Work, weigh: Callable[[Tensor], Tensor]) -> Float[Tensor, "b h n e"]:
    """The values summed with `weigh` of the scores, tile after tile."""
    v = work.v
    y = v.new_empty(*work.q.shape[:3], v.shape[3])
    for tile in tiles(work):
        weights = hide(weigh(scores(work, tile)), work, tile)
        keep = dropped(work, weights)
        if keep is not None:
            weights *= keep
        values = v[tile.first : tile.last, :, tile.start : tile.end].flatten(0, 1)
        put(y[tile.first : tile.last, :, tile.low : tile.high], weights.to(v.dtype), values)
    return y


@gated_tiles.register_fake
def _(q, k, v, vector, since, until, seed, attn_fn, causal, dropout):
    return v.new_empty(*q.shape[:3], v.shape[3])


@operator("gated_tiles_backward")
def gated_tiles_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vector: Optional[Tensor],  # noqa: UP045
    since: Optional[Tensor],  # noqa: UP045
    until: Optional[Tensor],  # noqa: UP045
    seed: Optional[Tensor],  # noqa: UP045
    attn_fn: str,
    causal: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and the vector (empty without one), summed over tiles in float32 at least.

    Tiles are blocks of keys, so that the wide gradient of the values is written once; with dropout blocks of queries,
    in whose order the forward has drawn.
    """
    work = prepared(q, k, v, vector, since, until, seed, attn_fn, causal, dropout)
    exact = torch.promote_types(q.dtype, torch.float32)
    once, twice_q, twice_k = work.chance is None, q * 2, k * 2
    dq = torch.zeros(q.shape, dtype=exact, device=q.device)
    dk, dv = (torch.zeros(t.shape, dtype=t.dtype if once else exact, device=t.device) for t in (k, v))
    dvector = torch.zeros(0 if vector is None else vector.shape, dtype=exact, device=q.device)
    for tile in columns(work) if once else tiles(work):
        weights, half, above = pulled(work, tile, dy)
        batch, rows, keys = slice(tile.first, tile.last), slice(tile.low, tile.high), slice(tile.start, tile.end)
        gather = put if once else add
        gather(dv[batch, :, keys], weights.mT, above)
        gather(dk[batch, :, keys], half.mT, twice_q[batch, :, rows].flatten(0, 1))
        add(dq[batch, :, rows], half, twice_k[batch, :, keys].flatten(0, 1))
        if vector is not None:
            distance = q.shape[2] - tile.high + tile.start
            add_diagonals(dvector, half.unflatten(0, (-1, q.shape[1])), distance)
    dvector = dvector if vector is None else dvector.mul_(2).to(vector.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dvector


def pulled(work: Work, tile: Tile, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A tile's weights, half of the gradient of its scores, and its part of dy."""
    weights, slope = weights_and_slope(scores(work, tile), work.attn_fn, lambda t: hide(t, work, tile))
    above = dy[tile.first : tile.last, :, tile.low : tile.high].flatten(0, 1)
    values = work.v[tile.first : tile.last, :, tile.start : tile.end].flatten(0, 1)
    pull = torch.bmm(above, values.mT)
    keep = dropped(work, weights)
    if keep is not None:
        weights, pull = weights * keep, pull * keep
    return weights, slope.mul_(pull), above


def weights_and_slope(raw: Tensor, attn_fn: str, hide: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """f of scores, which it takes the memory of, and half of its derivative; `hide` zeroes what may not be seen."""
    if attn_fn == "relu2":
        slope = hide(raw.relu_())
        return slope.square(), slope
    slope = ((raw - math.sqrt(0.5)).square_() * (-2 * math.pi)).exp_() * math.sqrt(0.5)
    return hide(laplace(raw)), hide(slope)


def put(part: Float[Tensor, "b h i j"], left: Float[Tensor, "r i _"], right: Float[Tensor, "r _ j"]) -> None:
    """Writes a product to where nothing is yet."""
    if left.requires_grad or right.requires_grad:
        # Autograd has no rule for products that are written to a place.
        part.copy_(torch.bmm(left, right).unflatten(0, part.shape[:2]))
    else:
        torch.bmm(left, right, out=part.flatten(0, 1))


def add(total: Float[Tensor, "b h i j"], left: Float[Tensor, "r i _"], right: Float[Tensor, "r _ j"]) -> None:
    """Adds a product to a part of a sum."""
    if total.shape[0] == total.shape[1] == 1 and total.dtype == left.dtype:
        total[0, 0].addmm_(left[0], right[0])
    else:
        total += torch.bmm(left, right).unflatten(0, total.shape[:2])


def add_diagonals(total: Float[Tensor, "h l"], ds: Float[Tensor, "r h i j"], first: int) -> None:
    """Adds the sums along the diagonals of ds to the entries from `first` on: the gradient of a Toeplitz matrix.

    Each row is shifted by one more than the row below it, by writing into a strip whose rows are one longer than those
    it is then read by; the columns of the strip are the diagonals. Those of a high matrix are found in it on its side,
    in the other order.
    """
    h, i, j = ds.shape[1:]
    (low, long), width = sorted((i, j)), i + j - 1
    strip = total.new_zeros(h, low * width)
    laid = strip.as_strided((h, low, long), (low * width, width - 1, 1), low - 1)
    torch.sum(ds, 0, dtype=total.dtype, out=laid.mT if i > j else laid)
    sums = strip.unflatten(1, (low, width)).sum(1)
    total[:, first : first + width] += sums.flip(1) if i > j else sums


@gated_tiles_backward.register_fake
def _(dy, q, k, v, vector, since, until, seed, attn_fn, causal, dropout):
    exact = torch.promote_types(q.dtype, torch.float32)
    dvector = q.new_empty(0, dtype=exact) if vector is None else vector.new_empty(vector.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dvector


def keep_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *held, ctx.attn_fn, ctx.causal, ctx.dropout = inputs
    ctx.save_for_backward(*held)


def backward(ctx: Any, dy: Tensor) -> tuple:
    held = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *again(ctx, dy, held), None, None, None, None, None, None
    dq, dk, dv, dvector = gated_tiles_backward(dy, *held, ctx.attn_fn, ctx.causal, ctx.dropout)
    return dq, dk, dv, None if held[3] is None else dvector, None, None, None, None, None, None


def again(ctx: Any, dy: Tensor, held: tuple) -> list[Tensor | None]:
    """The same gradients, to be differentiated: all weights are kept for it."""

    def slow(q, k, v, vector):
        work = prepared(q, k, v, vector, *held[4:], ctx.attn_fn, ctx.causal, ctx.dropout)
        return (summed(work, lambda raw: raw.relu().square() if ctx.attn_fn == "relu2" else laplace(raw)),)

    return gradients_of(slow, held[:4], ctx.needs_input_grad[:4], (dy,))


gated_tiles.register_autograd(backward, setup_context=keep_for_backward)
