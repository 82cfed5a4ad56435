"""Causal mixed chunk attention with a state of constant size: inside the open group, across groups, a token a row."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...shapes import Float, Int, Tensor
from ...state import Ctx
from .groups import place
from .mixed_chunk import Heads, Spec, attend, local_bias, outer, read, step_bias

__all__ = ["FlashState", "across", "before", "carry", "step", "within"]


class FlashState(NamedTuple):
    """What causal FLASH carries, of constant size; a fresh row is all zeros, slots not filled yet are never read.

    closed: sum of far_k v^T / w over the closed groups, float32 at least.  open: the same of the open group.
    keys, values: the open group's.
    """

    closed: Float[Tensor, "b k e"]
    open: Float[Tensor, "b k e"]
    keys: Float[Tensor, "b w k"]
    values: Float[Tensor, "b w e"]


def before(kv: Float[Tensor, "b g k e"], closed: Float[Tensor, "b k e"] | None = None) -> Float[Tensor, "b g k e"]:
    """For each group the sum over the groups before it, on top of `closed`; never the difference of two sums."""
    shifted = F.pad(kv, (0, 0, 0, 0, 1, -1))
    if closed is not None:
        shifted[:, 0] += closed
    return shifted.cumsum(1)


def per_closed(
    spec: Spec, far_q: Float[Tensor, "b g n k"], start: int | Int[Tensor, "b 1"]
) -> Float[Tensor, "b g n k"]:
    """Queries over the number of groups closed before theirs, `start` of them before the first group here."""
    if spec.normaliser == "sum":
        return far_q
    count = torch.arange(far_q.shape[1], device=far_q.device) + start
    return far_q / count.clamp(min=1)[..., None, None]


def append(
    buffer: Float[Tensor, "b w _"], t: Float[Tensor, "b n _"], at: int, in_place: bool
) -> Float[Tensor, "b w _"]:
    """The buffer with t in slots at .. at + n - 1."""
    if in_place:
        buffer[:, at : at + t.shape[1]] = t
        return buffer
    return torch.cat((buffer[:, :at], t.to(buffer.dtype), buffer[:, at + t.shape[1] :]), 1)


def within(
    t: Heads, spec: Spec, ctx: Ctx, state: FlashState | None
) -> tuple[Float[Tensor, "b n e"], FlashState | None]:
    """All new tokens in the open group, rows alike (or fresh and shorter than w): no group wider than its fill."""
    n, w = t.v.shape[1], spec.w
    fill = 0 if state is None else ctx.past % w
    end = fill + n
    keys, values, far = t.k, t.v, None
    if state is not None:
        keys = append(state.keys, t.k, fill, ctx.in_place)
        values = append(state.values, t.v, fill, ctx.in_place)
        if ctx.past >= w:
            count = 1 if spec.normaliser == "sum" else ctx.past // w
            far = read(t.far_q[:, None] / count, state.closed[:, None])
    elif ctx.keep_state:
        keys, values = F.pad(t.k, (0, 0, 0, w - n)), F.pad(t.v, (0, 0, 0, w - n))
    bias = local_bias(spec, n, end, t.q)
    seen = keys[:, None, :end].to(t.q.dtype), values[:, None, :end].to(t.v.dtype)
    y = attend(spec, t.q[:, None], *seen, bias, far)[:, 0]
    if not ctx.keep_state:
        return y, None
    total = outer(t.far_k, t.v, w)
    closed, total = (torch.zeros_like(total), total) if state is None else (state.closed, state.open + total)
    if end < w:
        return y, FlashState(closed, total, keys, values)
    # New buffers, not cleared ones: an older state may still read the old.
    return y, FlashState(closed + total, *map(torch.zeros_like, (total, keys, values)))


def across(
    t: Heads, spec: Spec, ctx: Ctx, state: FlashState | None
) -> tuple[Float[Tensor, "b n e"], FlashState | None]:
    """Any number of tokens, rows at any fill; the keys and values of tokens that do not exist are zeros."""
    b, n, w = *t.v.shape[:2], spec.w
    filled = ctx.filled()
    if state is None:
        layout, start = place(n, w, 0), 0
    elif ctx.length is None and not torch.compiler.is_compiling():
        layout, start = place(n, w, ctx.past % w), ctx.past // w
    else:
        layout, start = place(n, w, (filled % w).expand(b)), filled[:, None] // w
    q, far_q, far_k = map(layout.put, (t.q, t.far_q, t.far_k))
    keys = layout.put(t.k, None if state is None else state.keys)
    values = layout.put(t.v, None if state is None else state.values)
    kv = outer(far_k, values, w)
    if state is not None:
        kv[:, 0] += state.open
    closed = None if state is None else state.closed
    far = read(per_closed(spec, far_q, start), before(kv, closed))
    y = layout.take(attend(spec, q, keys, values, local_bias(spec, w, w, q), far))
    if not ctx.keep_state:
        return y, None
    new = n if ctx.new is None else ctx.new
    return y, carry(closed, kv, keys, values, ((filled % w + new) // w).expand(b))


def step(t: Heads, spec: Spec, ctx: Ctx, state: FlashState) -> tuple[Float[Tensor, "b 1 e"], FlashState | None]:
    """One token a row, rows at any fill."""
    b, w = t.v.shape[0], spec.w
    filled = ctx.filled().expand(b)
    slot = filled % w
    full = (slot + (1 if ctx.new is None else ctx.new)) // w
    # A slot is written in place once only, so that an older state keeps reading what it knew.
    stays = ctx.in_place and looks(full) and not bool(full.any())
    write = Tensor.scatter_ if stays else Tensor.scatter
    keys = write(state.keys, 1, slot[:, None, None].expand_as(t.k), t.k.to(state.keys.dtype))
    values = write(state.values, 1, slot[:, None, None].expand_as(t.v), t.v.to(state.values.dtype))
    far = read(per_closed(spec, t.far_q[:, None], filled[:, None] // w), state.closed[:, None])
    seen = keys[:, None].to(t.q.dtype), values[:, None].to(t.v.dtype)
    y = attend(spec, t.q[:, None], *seen, step_bias(spec, slot, t.q), far)[:, 0]
    if not ctx.keep_state:
        return y, None
    total = state.open + outer(t.far_k, t.v, w)
    if stays:
        return y, FlashState(state.closed, total, keys, values)
    return y, carry(state.closed, total[:, None], keys[:, None], values[:, None], full)


def looks(t: Tensor) -> bool:
    """Whether a look at the data of `t` costs nothing."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


def pick(t: Float[Tensor, "b g x y"], group: Int[Tensor, " b"]) -> Float[Tensor, "b x y"]:
    """The group that each row names; zeros for a row that names the one past the last."""
    chosen = t[torch.arange(t.shape[0], device=t.device), group.clamp(max=t.shape[1] - 1)]
    return chosen.masked_fill((group == t.shape[1])[:, None, None], 0)


def carry(
    closed: Float[Tensor, "b k e"] | None,
    kv: Float[Tensor, "b g k e"],
    keys: Float[Tensor, "b g w k"],
    values: Float[Tensor, "b g w e"],
    full: Int[Tensor, " b"],
) -> FlashState:
    """The state after groups of which each row filled the first `full`: only full ones are committed."""
    done = torch.arange(kv.shape[1], device=kv.device) < full[:, None]
    total = torch.where(done[..., None, None], kv, 0).sum(1)
    if closed is not None:
        total = closed + total
    return FlashState(total, pick(kv, full), pick(keys, full), pick(values, full))
