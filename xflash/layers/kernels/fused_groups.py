"""Causal FLASH from the projection's output to the gated sum, some groups at a time while they are in the cache.

What stands in between (activations, four queries and keys, weights) is made again in the backward: kept are the input,
what the gate multiplies, and a matrix a group. To torch.compile, export and autograd it is one node (a custom op, its
backward another); `mixed_chunk_slow` is the definition. Letters as in mixed_chunk.
"""

from typing import Any, NamedTuple, Optional, cast

import torch

from ...base.operator import operator
from ...base.shapes import Float, Int, Tensor
from .fused_again import differentiable
from .fused_pieces import (
    Parts,
    Piece,
    Settings,
    Work,
    activated,
    band_scores,
    bands,
    given,
    pieces,
    prepared,
    restored,
    turned,
    unreal,
)
from .fused_results import empty, empty_gradients
from .fused_sums import carry_back, read_and_carry
from .operators import as_autocast
from .tiled import add_diagonals, laplace, weights_and_slope
from .triton_choice import triton_groups_for

__all__ = ["Settings", "Turn", "fused_groups"]


class Turn(NamedTuple):
    """Rotary tables (n, width), and whether pairs are neighbours rather than halves."""

    cos: Float[Tensor, "n r"]
    sin: Float[Tensor, "n r"]
    interleaved: bool


def fused_groups(
    hidden: Float[Tensor, "b n c"],
    gamma: Float[Tensor, "4 k"],
    beta: Float[Tensor, "4 k"] | None,
    settings: Settings,
    *,
    vector: Float[Tensor, "1 l"] | None = None,
    turn: Turn | None = None,
    closed: Float[Tensor, "b k e"] | None = None,
    new: Int[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, "b n e"], Float[Tensor, "b k e"]]:
    """The gated sums, and far_k v^T / w summed over the groups that are full, in float32 at least, on top of `closed`.

    hidden: gate, values and base before their activation, c = 2 e + k.  gamma, beta: gains and offsets of q, far_q, k
    and far_k.  vector: the bias inside a group by distance, l = 2 w - 1.  new: each row's real tokens; the sums over
    full groups then count what is behind them as zeros.
    """
    order, paired = None, 0
    if turn is not None and turn.interleaved:
        # In an order in which the members of a pair are half the width apart; products over channels don't mind.
        paired = turn.cos.shape[1]
        order = torch.arange(gamma.shape[1], device=gamma.device)
        order = torch.cat((order[:paired:2], order[1:paired:2], order[paired:]))
        gamma, beta = gamma[:, order], None if beta is None else beta[:, order]
        closed = None if closed is None else closed[:, order]
        turn = Turn(*(apart(t) for t in turn[:2]), False)
    cos, sin = (None, None) if turn is None else turn[:2]
    (hidden,) = cast("list[Tensor]", as_autocast(hidden))
    keep = torch.is_grad_enabled()
    out, _, _, after = flash_groups(hidden, gamma, beta, vector, cos, sin, closed, new, *settings, paired, keep)
    return out, after if order is None else torch.empty_like(after).index_copy(1, order, after)


def apart(t: Float[Tensor, "n r"]) -> Float[Tensor, "n r"]:
    return torch.cat((t[:, ::2], t[:, 1::2]), 1)


@operator("flash_groups")
def flash_groups(
    hidden: Tensor,
    gamma: Tensor,
    beta: Optional[Tensor],  # noqa: UP045  what the schema is inferred from
    vector: Optional[Tensor],  # noqa: UP045
    cos: Optional[Tensor],  # noqa: UP045
    sin: Optional[Tensor],  # noqa: UP045
    closed: Optional[Tensor],  # noqa: UP045
    new: Optional[Tensor],  # noqa: UP045
    w: int,
    attn_fn: str,
    scale: float,
    divide: float,
    mean: bool,
    start: int,
    paired: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fused_groups`; also what the gate multiplies and what each group reads, both empty unless kept."""
    settings = Settings(w, attn_fn, scale, divide, mean, start)
    if (kernels := triton_groups_for(hidden, gamma, w)) is not None:
        return kernels.forward(hidden, gamma, beta, vector, cos, sin, closed, new, settings, paired, keep)
    work = prepared(hidden, gamma, beta, vector, cos, sin, new, settings, paired)
    out, y_all, kept, after = empty(hidden, gamma, w, keep)
    sums = kept.unflatten(1, (-1, gamma.shape[1]))
    for piece in pieces(work):
        parts = activated(work, piece)
        y, length = place_for(y_all, piece, keep, parts.v), piece.tokens.stop - piece.tokens.start
        for low, high in bands(piece.w, hidden):
            raw = band_scores(work, parts, low, high)
            weights = (raw.relu_().square_() if attn_fn == "relu2" else laplace(raw)).tril_(low)
            torch.baddbmm(y[:, low:high], weights, parts.v[:, :high], beta=0, alpha=1 / divide, out=y[:, low:high])
        if piece.group == 0:
            after[piece.batch] = 0 if closed is None else closed[piece.batch]
        seen = (
            read_of(sums, piece)
            if keep
            else sums.new_empty(len(parts.v) // piece.groups, piece.groups, *sums.shape[2:])
        )
        read_and_carry(work, piece, parts, after[piece.batch], seen)
        y.baddbmm_(parts.four[1], seen.reshape(-1, *sums.shape[2:]))
        shape = (-1, length, y.shape[2])
        torch.mul(parts.gate.reshape(shape), y.view(shape), out=out[piece.batch, piece.tokens])
        if keep and y.data_ptr() != y_all[piece.batch, piece.tokens].data_ptr():
            y_all[piece.batch, piece.tokens] = y.view(shape)
    return out, y_all, kept, after


def place_for(y_all: Tensor, piece: Piece, keep: bool, v: Tensor) -> Float[Tensor, "g w e"]:
    """Where a piece's sums go: to what is kept, if they lie there in one."""
    if keep and (there := y_all[piece.batch, piece.tokens]).is_contiguous():
        return there.view(v.shape)
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def read_of(sums: Float[Tensor, "b _ k e"], piece: Piece) -> Float[Tensor, "b g k e"]:
    """What the groups of a piece read of those before them, where it is kept."""
    return sums[piece.batch, piece.group : piece.group + piece.groups]


@flash_groups.register_fake
def _(hidden, gamma, beta, vector, cos, sin, closed, new, w, attn_fn, scale, divide, mean, start, paired, keep):
    return empty(hidden, gamma, w, keep)


@operator("flash_groups_backward")
def flash_groups_backward(
    dout: Tensor,
    dafter: Optional[Tensor],  # noqa: UP045
    hidden: Tensor,
    gamma: Tensor,
    beta: Optional[Tensor],  # noqa: UP045
    vector: Optional[Tensor],  # noqa: UP045
    cos: Optional[Tensor],  # noqa: UP045
    sin: Optional[Tensor],  # noqa: UP045
    new: Optional[Tensor],  # noqa: UP045
    y: Tensor,
    sums: Tensor,
    w: int,
    attn_fn: str,
    scale: float,
    divide: float,
    mean: bool,
    start: int,
    paired: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of hidden, gamma, beta, vector and closed (empty where there is no such input)."""
    settings = Settings(w, attn_fn, scale, divide, mean, start)
    if (kernels := triton_groups_for(hidden, gamma, w)) is not None:
        held = (hidden, gamma, beta, vector, cos, sin, new, y, sums)
        return kernels.backward(dout, dafter, *held, settings, paired)
    work = prepared(hidden, gamma, beta, vector, cos, sin, new, settings, paired)
    dhidden, dgamma, dbeta, dvector, dclosed = empty_gradients(hidden, gamma, beta, vector)
    exact = torch.promote_types(gamma.dtype, torch.float32)
    totals = Totals(
        torch.zeros_like(dgamma, dtype=exact),
        torch.zeros_like(dbeta, dtype=exact),
        None if vector is None else vector.new_zeros(1, w, w, dtype=torch.promote_types(vector.dtype, torch.float32)),
    )
    above = dclosed.zero_() if dafter is None else dclosed.copy_(dafter)
    for piece in pieces(work, backwards=True):
        into = dhidden[piece.batch, piece.tokens]
        pass_back(work, piece, dout, y, sums.unflatten(1, (-1, gamma.shape[1])), above[piece.batch], totals, into)
    dgamma.copy_(totals.gamma)
    dbeta.copy_(totals.beta)
    if totals.bias is not None:
        diagonals = totals.bias.new_zeros(dvector.shape)
        add_diagonals(diagonals, totals.bias[None], 0)
        dvector.copy_(diagonals)
    return dhidden, dgamma, dbeta, dvector, dclosed


class Totals(NamedTuple):
    """Gradients that all pieces add to, float32 at least."""

    gamma: Float[Tensor, "4 k"]
    beta: Float[Tensor, "_ k"]
    bias: Float[Tensor, "1 w w"] | None


def pass_back(work: Work, piece: Piece, dout, y, sums, above: Float[Tensor, "b k e"], totals: Totals, into) -> None:
    """A piece's part of the backward; `above` is the gradient of the sums behind it, and is carried to before it."""
    settings, parts = work.settings, activated(work, piece)
    above_gate = dout[piece.batch, piece.tokens].reshape(parts.gate.shape)
    dgate = above_gate * y[piece.batch, piece.tokens].reshape(parts.gate.shape)
    dy = above_gate * parts.gate
    dfour = torch.empty_like(parts.four)
    torch.bmm(dy, read_of(sums, piece).flatten(0, 1).mT, out=dfour[1])
    dkv = carry_back(work, piece, parts, dy, above)
    if dkv is None:
        dfour[3].zero_()
        dv = torch.zeros_like(dy)
    else:
        torch.bmm(parts.v, dkv.mT, out=dfour[3])
        dv = torch.bmm(parts.four[3], dkv)
    near_backward(work, parts, dy if settings.divide == 1 else dy / settings.divide, dfour, dv, totals)
    if work.new is not None:
        dv.masked_fill_(unreal(work.new, piece), 0)
    dz = back_to_base(work, piece, parts, dfour, totals)
    for grad, before, place in zip((dgate, dv, dz), given(work, piece), into.split(work.widths, -1), strict=True):
        torch.ops.aten.silu_backward.grad_input(grad.view(before.shape), before, grad_input=place)


def near_backward(work: Work, parts: Parts, dy: Tensor, dfour: Tensor, dv: Tensor, totals: Totals) -> None:
    """What the weights inside the groups pass on: added to `dv` and the bias, laid down in `dfour`."""
    q, k, (dq, _, dk, _) = parts.four[0], parts.four[2], dfour
    # The slope is half of what it is.
    alpha = 2 * work.settings.scale
    # The widest band first, so that it can lay down what the others add to.
    for i, (low, high) in enumerate(reversed(bands(dy.shape[1], dy))):
        raw = band_scores(work, parts, low, high)
        weights, slope = weights_and_slope(raw, work.settings.attn_fn, lambda t, at=low: t.tril_(at))
        ds = slope.mul_(torch.bmm(dy[:, low:high], parts.v[:, :high].mT))
        dv[:, :high].baddbmm_(weights.mT, dy[:, low:high])
        torch.baddbmm(dq[:, low:high], ds, k[:, :high], beta=0, alpha=alpha, out=dq[:, low:high])
        dk[:, :high].baddbmm_(ds.mT, q[:, low:high], beta=min(i, 1), alpha=alpha)
        if totals.bias is not None:
            totals.bias[:, low:high, :high] += 2 * ds.sum(0, dtype=totals.bias.dtype)


def back_to_base(work: Work, piece: Piece, parts: Parts, dfour: Tensor, totals: Totals) -> Float[Tensor, "g w k"]:
    """Out of the queries and keys: the gradient of the base; those of gains and offsets are added to `totals`."""
    if work.cos is not None and work.sin is not None:
        dfour = turned(work.cos[piece.tokens], work.sin[piece.tokens], dfour, back=True)
    flat, exact = dfour.flatten(1, 2), totals.gamma.dtype
    totals.gamma.add_((flat * parts.z.flatten(0, 1)).sum(1, dtype=exact))
    if work.beta is not None:
        totals.beta.add_(flat.sum(1, dtype=exact))
    base = dfour[0] * work.gamma[0]
    for i in (1, 2, 3):
        base.addcmul_(dfour[i], work.gamma[i])
    return restored(base, work.paired) if work.paired else base


@flash_groups_backward.register_fake
def _(
    dout, dafter, hidden, gamma, beta, vector, cos, sin, new, y, sums, w, attn_fn, scale, divide, mean, start, paired
):
    return empty_gradients(hidden, gamma, beta, vector)


def keep_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    hidden, gamma, beta, vector, cos, sin, closed, new, *ctx.settings, _ = inputs
    ctx.save_for_backward(hidden, gamma, beta, vector, cos, sin, new, output[1], output[2], closed)
    ctx.set_materialize_grads(False)


def backward(ctx: Any, dout: Tensor | None, _y: Any, _sums: Any, dafter: Tensor | None) -> tuple:
    hidden, gamma, beta, vector, *_, closed = held = ctx.saved_tensors
    if torch.is_grad_enabled():
        return differentiable(ctx, held, dout, dafter)
    if dout is None:
        e = (hidden.shape[2] - gamma.shape[1]) // 2
        dout = hidden.new_zeros(*hidden.shape[:2], e)
    dhidden, dgamma, dbeta, dvector, dclosed = flash_groups_backward(dout, dafter, *held[:-1], *ctx.settings)
    found = (dhidden, dgamma, None if beta is None else dbeta, None if vector is None else dvector)
    return *found, None, None, None if closed is None else dclosed, *[None] * 9


flash_groups.register_autograd(backward, setup_context=keep_for_backward)
