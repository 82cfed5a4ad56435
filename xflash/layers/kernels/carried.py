"""Causal mixed chunk attention with a state of constant size: inside the open group, across groups, a token a row."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import may_look
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx
from .buffers import emptied, put
from .groups import place
from .mixed_chunk import Heads, Spec, attend, local_bias, outer, read, step_bias

__all__ = ["FlashState", "across", "before", "carry", "close", "reserve", "step", "within"]


class FlashState(NamedTuple):
    """What causal FLASH carries, of constant size; a fresh row is all zeros, slots not filled yet are never read.

    closed: sum of far_k v^T / w over the closed groups, float32 at least.  keys, far_keys, values: the open group's,
    which may be full: `close` is for the call that goes on from there.
    """

    closed: Float[Tensor, "b k e"]
    keys: Float[Tensor, "b w k"]
    far_keys: Float[Tensor, "b w k"]
    values: Float[Tensor, "b w e"]

    # What a step of one token leaves where it is.
    in_place = ("closed", "keys", "far_keys", "values")


def close(state: FlashState, rows: Bool[Tensor, " b"] | None = None) -> FlashState:
    """The open group, full in the named rows (None: all), joined to the closed ones, and an empty one in new buffers.

    To a row whose group was closed already, and none of the next begun, it adds nothing.
    """
    total = state.closed + outer(state.far_keys, state.values, state.keys.shape[1])
    if rows is None:
        return FlashState(total, *map(torch.zeros_like, state[1:]))
    rows = rows[:, None, None]
    return FlashState(torch.where(rows, total, state.closed), *(t.masked_fill(rows, 0) for t in state[1:]))


def reserve(state: FlashState, w: int, used: int, copy: bool, length: Int[Tensor, " b"] | None) -> FlashState:
    """The state with room for a token in the open group of every row; `copy` asks for buffers of its own."""
    fill = (used if length is None else length) % w
    if not isinstance(fill, torch.Tensor):
        if not fill:
            return close(state)
    elif not may_look(fill) or not bool(fill.all()):
        state = close(state, fill == 0)
    return FlashState(state.closed, *(emptied(t, fill) for t in state[1:])) if copy else state


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
    far, new = None, (t.k, t.far_k, t.v)
    if state is not None:
        new = tuple(append(held, part, fill, ctx.in_place) for held, part in zip(state[1:], new, strict=True))
        if ctx.past >= w:
            count = 1 if spec.normaliser == "sum" else ctx.past // w
            far = (t.far_q / count) @ state.closed.to(t.far_q.dtype)
    elif ctx.keep_state:
        new = tuple(F.pad(part, (0, 0, 0, w - n)) for part in new)
    keys, _, values = new
    bias = local_bias(spec, n, end, t.q)
    y = attend(spec, t.q, keys[:, :end].to(t.q.dtype), values[:, :end].to(t.v.dtype), bias, far)
    if not ctx.keep_state:
        return y, None
    closed = nothing(t) if state is None else state.closed
    return y, FlashState(closed, *new)


def nothing(t: Heads) -> Float[Tensor, "b k e"]:
    """The sum over no groups."""
    exact = torch.promote_types(t.v.dtype, torch.float32)
    return t.v.new_zeros(t.v.shape[0], t.k.shape[2], t.v.shape[2], dtype=exact)


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
    q, far_q = map(layout.put, (t.q, t.far_q))
    held = (None,) * 3 if state is None else state[1:]
    keys, far_keys, values = (layout.put(new, old) for new, old in zip((t.k, t.far_k, t.v), held, strict=True))
    kv = outer(far_keys, values, w)
    closed = None if state is None else state.closed
    far = read(per_closed(spec, far_q, start), before(kv, closed))
    y = layout.take(attend(spec, q, keys, values, local_bias(spec, w, w, q), far))
    if not ctx.keep_state:
        return y, None
    new = n if ctx.new is None else ctx.new
    return y, carry(closed, kv, (keys, far_keys, values), ((filled % w + new) // w).expand(b))


def step(t: Heads, spec: Spec, ctx: Ctx, state: FlashState) -> tuple[Float[Tensor, "b 1 e"], FlashState | None]:
    """One token a row, rows at any fill."""
    b, w = t.v.shape[0], spec.w
    filled = ctx.filled().expand(b)
    slot = filled % w
    # A slot is written in place once only, so that an older state keeps reading what it knew.
    pairs = zip(state[1:], (t.k, t.far_k, t.v), strict=True)
    keys, far_keys, values = (put(held, new, slot[:, None], ctx.in_place) for held, new in pairs)
    far = read(per_closed(spec, t.far_q[:, None], filled[:, None] // w), state.closed[:, None])
    seen = keys[:, None].to(t.q.dtype), values[:, None].to(t.v.dtype)
    y = attend(spec, t.q[:, None], *seen, step_bias(spec, slot, t.q), far)[:, 0]
    return y, FlashState(state.closed, keys, far_keys, values) if ctx.keep_state else None


def pick(t: Float[Tensor, "b g x y"], group: Int[Tensor, " b"]) -> Float[Tensor, "b x y"]:
    """The group that each row names; zeros for a row that names the one past the last."""
    chosen = t[torch.arange(t.shape[0], device=t.device), group.clamp(max=t.shape[1] - 1)]
    return chosen.masked_fill((group == t.shape[1])[:, None, None], 0)


def carry(
    closed: Float[Tensor, "b k e"] | None,
    kv: Float[Tensor, "b g k e"],
    buffers: tuple[Float[Tensor, "b g w _"], ...],
    full: Int[Tensor, " b"],
) -> FlashState:
    """The state after groups of which each row filled the first `full`: only full ones are committed.

    buffers: keys, keys across groups and values of the tokens in them.
    """
    done = torch.arange(kv.shape[1], device=kv.device) < full[:, None]
    total = torch.where(done[..., None, None], kv, 0).sum(1)
    if closed is not None:
        total = closed + total
    return FlashState(total, *(pick(t, full) for t in buffers))
