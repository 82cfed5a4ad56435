"""Growing buffers of keys and values: slots are the last axis but one."""

import torch

from ...base.shapes import Float, Int, Tensor

__all__ = ["SPARE", "emptied", "grow", "put", "write"]

# Slots that always stay free: in compiled graphs a rest of none or of one would each be a case of its own.
SPARE = 2


def grow(buffer: Float[Tensor, "b h _ k"], used: int, need: int, copy: bool) -> Float[Tensor, "b h _ k"]:
    """A buffer with room for `need` slots and SPARE more, at least doubled when it has to grow.

    Zeros, not `empty`: a weight of zero times an uninitialised NaN would still be NaN.
    """
    room = buffer.shape[2]
    if need + SPARE <= room:
        return buffer.clone() if copy else buffer
    grown = buffer.new_zeros(*buffer.shape[:2], max(2 * room, need + SPARE), buffer.shape[3])
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


def emptied(buffer: Float[Tensor, "b *_ slots k"], ends: int | Int[Tensor, " b"]) -> Float[Tensor, "b *_ slots k"]:
    """The buffer as one of its own, zeros from each row's end on.

    Another continuation of the same state may have written NaN there, which a weight of zero would not hide.
    """
    slot = torch.arange(buffer.shape[-2], device=buffer.device)
    behind = slot >= (ends[:, None] if isinstance(ends, torch.Tensor) else ends)
    return buffer.masked_fill(behind.view(-1, *[1] * (buffer.dim() - 3), buffer.shape[-2], 1), 0)


def write(
    buffer: Float[Tensor, "b h _ k"],
    t: Float[Tensor, "b h n k"],
    start: int,
    slots: Int[Tensor, "b n"] | None,
    in_place: bool,
) -> Float[Tensor, "b h _ k"]:
    """`buffer` with the n new entries of `t` in the slots from `start` on, or in each row's own `slots`."""
    n = t.shape[2]
    if slots is None:
        if in_place:
            buffer[:, :, start : start + n] = t
            return buffer
        return torch.cat((buffer[:, :, :start], t.to(buffer.dtype), buffer[:, :, start + n :]), 2)
    return put(buffer, t, slots, in_place)


def put(
    buffer: Float[Tensor, "b *h _ k"], t: Float[Tensor, "b *h n k"], slots: Int[Tensor, "b n"], in_place: bool
) -> Float[Tensor, "b *h _ k"]:
    """`buffer` with the n entries of `t` in each row's own slots."""
    t = t.to(buffer.dtype)
    if not torch.compiler.is_compiling():
        index = (slots[:, None, :, None] if t.dim() == 4 else slots[..., None]).expand_as(t)
        return (buffer.scatter_ if in_place else buffer.scatter)(-2, index, t)
    # A compiler takes a scatter for a copy of the buffer and one back, and does not take this so.
    buffer, row = buffer if in_place else buffer.clone(), torch.arange(buffer.shape[0], device=buffer.device)[:, None]
    if t.dim() == 4:
        buffer[row, :, slots] = t.transpose(1, 2)
    else:
        buffer[row, slots] = t
    return buffer
