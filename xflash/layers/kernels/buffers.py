"""Growing buffers of keys and values: slots are axis 2 of (b, h, slots, width)."""

import torch

from ...shapes import Float, Int, Tensor
from ...state import Ctx

__all__ = ["grow", "write"]


def grow(buffer: Float[Tensor, "b h _ k"], used: int, need: int, copy: bool) -> Float[Tensor, "b h _ k"]:
    """A buffer with room for `need` slots and one to spare, at least doubled when it has to grow.

    Zeros, not `empty`: a weight of zero times an uninitialised NaN would still be NaN. The spare slot keeps
    "full" from being a case of its own in compiled graphs.
    """
    room = buffer.shape[2]
    if need < room:
        return buffer.clone() if copy else buffer
    grown = buffer.new_zeros(*buffer.shape[:2], max(2 * room, need + 1), buffer.shape[3])
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


def write(buffer: Float[Tensor, "b h _ k"], t: Float[Tensor, "b h n k"], ctx: Ctx) -> Float[Tensor, "b h _ k"]:
    """`buffer` with the n new entries of `t` in each row's next slots; in place where the call allows it."""
    n = t.shape[2]
    if ctx.uniform:
        if ctx.in_place:
            buffer[:, :, ctx.past : ctx.past + n] = t
            return buffer
        return torch.cat((buffer[:, :, : ctx.past], t.to(buffer.dtype), buffer[:, :, ctx.past + n :]), 2)
    index = slots(ctx.positions, t)
    if ctx.in_place:
        return buffer.scatter_(2, index, t.to(buffer.dtype))
    return buffer.scatter(2, index, t.to(buffer.dtype))


def slots(positions: Int[Tensor, "_ n"], t: Float[Tensor, "b h n k"]) -> Int[Tensor, "b h n k"]:
    """The slot of each new entry, shaped like the entries."""
    return positions[:, None, :, None].expand_as(t)
