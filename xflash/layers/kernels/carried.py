"""Causal mixed chunk attention with a state of constant size: inside the open group, across groups, a token a row."""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F

from ...base.looks import may_look
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx
from ...base.values import tree_map
from .buffers import emptied, put
from .groups import place
from .mixed_chunk import Heads, Spec, attend, local_bias, outer, read, step_bias

__all__ = [
    "FlashState",
    "across",
    "before",
    "carry",
    "close",
    "in_time",
    "reserve",
    "settled",
    "step",
    "tidied",
    "within",
    "written",
]


class FlashState(NamedTuple):
    """What causal FLASH carries, of constant size; a fresh row is all zeros, slots not filled yet are never read.

    closed: sum of far_k v^T / w over the closed groups, float32 at least.  keys, far_keys, values: the open group's,
    which may be full: `close` is for the call that goes on from there.  rounded: `closed` as each token reads it, where
    that is in a narrower dtype (None: to be rounded then).  held: where groups are closed late (`late.py`), how many
    tokens of each row are in the buffers, which then have room for more than a group.
    """

    closed: Float[Tensor, "b k e"]
    keys: Float[Tensor, "b w k"]
    far_keys: Float[Tensor, "b w k"]
    values: Float[Tensor, "b w e"]
    rounded: Float[Tensor, "b k e"] | None = None
    held: Int[Tensor, " b"] | None = None

    # What a step of one token leaves where it is.
    in_place = ("closed", "keys", "far_keys", "values", "rounded")

    @property
    def buffers(self) -> tuple[Float[Tensor, "b w _"], ...]:
        return self.keys, self.far_keys, self.values

    def sums(self, dtype: torch.dtype) -> Float[Tensor, "b k e"]:
        """`closed` in the dtype of who reads it."""
        if self.closed.dtype != dtype and self.rounded is not None and self.rounded.dtype == dtype:
            return self.rounded
        return self.closed.to(dtype)

    def renewed(self, rows: Bool[Tensor, " b"], fresh: "FlashState | None", bound: int) -> "FlashState":
        """The state with the named rows as in `fresh`, zeros where that is None."""
        if fresh is None:
            return tree_map(lambda t: t.masked_fill(rows.view(-1, *[1] * (t.dim() - 1)), 0), self)
        state, chosen = in_time(self, fresh.values.shape[1]), rows[:, None, None]
        pairs = zip((fresh.closed, *fresh.buffers), (state.closed, *state.buffers), strict=True)
        return settled(*(torch.where(chosen, new, t) for new, t in pairs))


def settled(closed: Float[Tensor, "b k e"], *buffers: Float[Tensor, "b w _"]) -> FlashState:
    """The state with these sums, which many tokens will read, rounded for them once."""
    dtype = buffers[2].dtype
    return FlashState(closed, *buffers, None if dtype == closed.dtype else closed.to(dtype))


def close(state: FlashState, rows: Bool[Tensor, " b"] | None = None) -> FlashState:
    """The open group, full in the named rows (None: all), joined to the closed ones, and an empty one in new buffers.

    To a row whose group was closed already, and none of the next begun, it adds nothing.
    """
    total = state.closed + outer(state.far_keys, state.values, state.keys.shape[1])
    if rows is None:
        return settled(total, *map(torch.zeros_like, state.buffers))
    rows = rows[:, None, None]
    return settled(torch.where(rows, total, state.closed), *(t.masked_fill(rows, 0) for t in state.buffers))


def tidied(state: FlashState, w: int) -> FlashState:
    """The state with all full groups closed, what is behind them moved to the front, in buffers of its own."""
    held = cast(Tensor, state.held)
    full = held >= w
    rows = full[:, None, None]
    total = state.closed + outer(state.far_keys[:, :w], state.values[:, :w], w)
    buffers = (torch.where(rows, F.pad(t[:, w:], (0, 0, 0, w)), emptied(t, held)) for t in state.buffers)
    return settled(torch.where(rows, total, state.closed), *buffers)._replace(held=held - w * full)


def in_time(state: FlashState, w: int) -> FlashState:
    """The state as the other ways through a call know it: buffers of a group, no group full."""
    if state.held is None:
        return state
    tidy = tidied(state, w)
    return FlashState(tidy.closed, *(t[:, :w].contiguous() for t in tidy.buffers), tidy.rounded)


def reserve(state: FlashState, w: int, used: int, copy: bool, length: Int[Tensor, " b"] | None) -> FlashState:
    """The state with room for a token in the open group of every row; `copy` asks for buffers of its own."""
    fill = (used if length is None else length) % w
    if not isinstance(fill, torch.Tensor):
        if not fill:
            return close(state)
    elif not may_look(fill) or not bool(fill.all()):
        state = close(state, fill == 0)
    return FlashState(state.closed, *(emptied(t, fill) for t in state.buffers), state.rounded) if copy else state


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
        new = tuple(append(held, part, fill, ctx.in_place) for held, part in zip(state.buffers, new, strict=True))
        if ctx.past >= w:
            count = 1 if spec.normaliser == "sum" else ctx.past // w
            far = (t.far_q / count) @ state.sums(t.far_q.dtype)
    elif ctx.keep_state:
        new = tuple(F.pad(part, (0, 0, 0, w - n)) for part in new)
    keys, _, values = new
    bias = local_bias(spec, n, end, t.q)
    y = attend(spec, t.q, keys[:, :end].to(t.q.dtype), values[:, :end].to(t.v.dtype), bias, far)
    if not ctx.keep_state:
        return y, None
    return y, settled(nothing(t), *new) if state is None else FlashState(state.closed, *new, state.rounded)


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
    held = (None,) * 3 if state is None else state.buffers
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
    keys, far_keys, values = written(state, (t.k, t.far_k, t.v), slot, ctx.in_place)
    far = read(per_closed(spec, t.far_q[:, None], filled[:, None] // w), state.sums(t.far_q.dtype)[:, None])
    seen = keys[:, None].to(t.q.dtype), values[:, None].to(t.v.dtype)
    y = attend(spec, t.q[:, None], *seen, step_bias(spec, slot, t.q), far)[:, 0]
    return y, FlashState(state.closed, keys, far_keys, values, state.rounded) if ctx.keep_state else None


def written(
    state: FlashState, token: tuple[Float[Tensor, "b 1 _"], ...], slot: Int[Tensor, " b"], in_place: bool
) -> list[Float[Tensor, "b w _"]]:
    """The buffers with a token in a slot of each row's own."""
    # A slot is written in place once only, so that an older state keeps reading what it knew.
    return [put(held, new, slot[:, None], in_place) for held, new in zip(state.buffers, token, strict=True)]


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
    return settled(total, *(pick(t, full) for t in buffers))
