"""Groups of rows of different lengths that are closed late: on a GPU, where a look which of them are full would wait.

A row's tokens stand one behind the other in buffers with room for a group and some tokens more, those of a full group
in front of those of the next. After as many tokens all rows give up what is full, a group each at most. Until then a
query reads a full group token by token, as it would read the sum: closed late or at once, outputs are the same.
"""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F

from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx
from . import carried
from .buffers import emptied
from .carried import FlashState, in_time, tidied, written
from .mixed_chunk import WEIGHTS, Heads, Spec
from .relative import distances

__all__ = ["closes_late", "reserve", "spare", "step"]


def closes_late(length: Int[Tensor, " b"]) -> bool:
    """Whether rows of these lengths close their groups late: where a look at them costs nothing they close in time."""
    return length.device.type != "cpu" and not torch.compiler.is_compiling()


def spare(w: int) -> int:
    """Slots beside those of a group: tokens between two times at which groups are closed."""
    return max(1, w // 8)


def reserve(
    state: FlashState, w: int, used: int, need: int, copy: bool, length: Int[Tensor, " b"] | None
) -> FlashState:
    """As `carried.reserve`, of rows that take a token each and close late the state that `step` goes on from."""
    late = need - used == 1 and length is not None and closes_late(length)
    if not late:
        return carried.reserve(in_time(state, w), w, used, copy, length)
    if state.held is None:
        return begun(state, w, length)
    if used % spare(w) == 0:
        return tidied(state, w)
    return state._replace(**copied(state, state.held)) if copy else state


def copied(state: FlashState, ends: Int[Tensor, " b"]) -> dict[str, Float[Tensor, "b w _"]]:
    """The buffers of a state, in memory of their own."""
    names = FlashState._fields[1:4]
    return {name: emptied(t, ends) for name, t in zip(names, state.buffers, strict=True)}


def begun(state: FlashState, w: int, length: Int[Tensor, " b"]) -> FlashState:
    """A state whose groups were closed in time, with room for some tokens more, in buffers of its own."""
    # A group that is full may have been closed already: its slots are zeros then, which add nothing.
    held = length - (length - 1).clamp(min=0) // w * w
    # Behind a row's tokens another continuation of the same state may have written.
    buffers = (F.pad(emptied(t, held), (0, 0, 0, spare(w))) for t in state.buffers)
    return FlashState(state.closed, *buffers, state.rounded, held)


class Places(NamedTuple):
    """What all layers of a call share: where rows have their tokens, and what is seen of each slot.

    slot: where the new token goes.  hidden: slots that are not of its group.  gaps: the distances inside a group, gap:
    which of them each slot has.  waiting: 1 for slots of a full group, else 0.  closed: groups before the token's own.
    held: tokens in the buffers behind the call.
    """

    slot: Int[Tensor, " b"]
    hidden: Bool[Tensor, "b 1 m"]
    gaps: Int[Tensor, " l"]
    gap: Int[Tensor, "b m"]
    waiting: Float[Tensor, "b 1 m"]
    closed: Int[Tensor, "b 1 1"]
    held: Int[Tensor, " b"]


def places(held: Int[Tensor, " b"], ctx: Ctx, w: int, m: int, dtype: torch.dtype) -> Places:
    slots = torch.arange(m, device=held.device)
    first, last = (held // w * w)[:, None], held[:, None]
    hidden = (slots < first) | (slots > last)
    closed = (ctx.filled() // w).clamp(min=1)[:, None, None]
    gap = (slots - last + w - 1).clamp(0, w - 1)
    new = 1 if ctx.new is None else ctx.new
    waiting = (slots < first)[:, None].to(dtype)
    return Places(held, hidden[:, None], distances(w, w, held.device), gap, waiting, closed, held + new)


def step(t: Heads, spec: Spec, ctx: Ctx, state: FlashState) -> tuple[Float[Tensor, "b 1 e"], FlashState | None]:
    """One token a row, rows at any fill, full groups among what the buffers hold."""
    w, held = spec.w, cast(Tensor, state.held)
    at = ctx.once(("late", w), lambda: places(held, ctx, w, state.values.shape[1], t.q.dtype))
    keys, far_keys, values = written(state, (t.k, t.far_k, t.v), at.slot, ctx.in_place)
    scores = near_bias(spec, at, t.q).baddbmm_(t.q, keys.to(t.q.dtype).mT, alpha=spec.scale)
    weights = WEIGHTS[spec.fn](scores)
    if spec.dropout:
        weights = F.dropout(weights, spec.dropout)
    far_q = t.far_q if spec.normaliser == "sum" else t.far_q / at.closed
    # Weights are divided by `divide`, the sums by w.
    waiting = far_q @ far_keys.to(far_q.dtype).mT
    weights = torch.addcmul(weights, waiting, at.waiting, value=spec.divide / w).to(t.v.dtype)
    far = far_q @ state.sums(far_q.dtype)
    y = far.baddbmm_(weights, values.to(t.v.dtype), alpha=1 / spec.divide)
    after = FlashState(state.closed, keys, far_keys, values, state.rounded, at.held)
    return y, after if ctx.keep_state else None


def near_bias(spec: Spec, at: Places, like: Float[Tensor, "b 1 k"]) -> Float[Tensor, "b 1 m"]:
    """What is added to the scores of the slots, a tensor of its own; -inf outside the token's group."""
    if spec.bias is None:
        return like.new_zeros(at.hidden.shape).masked_fill_(at.hidden, -math.inf)
    return spec.bias(at.gaps)[0][at.gap][:, None].to(like.dtype).masked_fill_(at.hidden, -math.inf)
