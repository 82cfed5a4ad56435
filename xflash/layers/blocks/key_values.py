"""What softmax attention and GAU carry: keys, values and named buffers of the tokens seen, or of the last of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import AttentionMap, Ctx
from ...base.steady import cut
from ..kernels.buffers import SPARE, emptied, grow, write
from ..positions.slots import Slots

__all__ = ["KV", "added", "append", "begin", "fits", "last", "over_all_tokens", "place", "reserve", "shorten"]


class KV(NamedTuple):
    """Keys and values of the tokens a row remembers, in buffers (b, h, slots, width) that grow by doubling.

    brought: further buffers of the same slots, what score steps bring.
    gone: (b,) how many tokens behind the first `front` each row has given up: slot j >= front holds token j + gone,
    a slot before it token j.  spared: how many slots fewer than tokens the longest row takes, `gone` where all rows
    are alike.
    """

    k: Tensor
    v: Tensor
    gone: Tensor
    spared: int = 0
    front: int = 0
    brought: tuple[Tensor, ...] = ()

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All that is kept a token, in slots."""
        return self.k, self.v, *self.brought

    def holding(self, buffers: Sequence[Tensor]) -> "KV":
        """The state with other buffers, in their order."""
        k, v, *brought = buffers
        return KV(k, v, self.gone, self.spared, self.front, tuple(brought))

    def each(self, fn: Callable[[Tensor], Tensor]) -> "KV":
        """The state with what `fn` makes of every buffer."""
        return self.holding([fn(t) for t in self.buffers])

    # What a step of one token leaves where it is.
    in_place = ("k", "v", "gone")

    def steady(self, bound: int) -> "KV":
        """The state of `bound` tokens at most without numbers that grow, and with room for one more."""
        return self.each(lambda t: cut(t, bound + 1 - self.spared))._replace(spared=bool(self.spared))

    def resumed(self, before: "KV") -> "KV":
        """The state behind a token that was written into the buffers of `before`."""
        return before

    def tokens(self, m: int | None = None, rows: int | None = None) -> Int[Tensor, "_ m"]:
        """Which token each of the first m slots (None: all) of the first rows (None: all) holds."""
        slot = torch.arange(self.k.shape[2] if m is None else m, device=self.gone.device)[None]
        return torch.where(slot < self.front, slot, slot + self.gone[:rows, None])

    def stand(self, ctx: Ctx, m: int) -> Int[Tensor, "_ m"]:
        """(1 | b, m) which of its row's tokens each of the m slots holds, one row for all that are alike."""
        return self.tokens(m, 1 if ctx.length is None else None)

    def renewed(self, rows: Bool[Tensor, " b"], fresh: "KV | None", bound: int) -> "KV":
        """The state with the named rows as in `fresh` (None: as before their first token), `bound` tokens seen at most.

        What `fresh` holds, all of its slots, may be more than a window has left of the others.
        """
        gone = torch.where(rows, 0 if fresh is None else fresh.gone, self.gone)
        chosen = rows[:, None, None, None]
        if fresh is None:
            return self.each(lambda t: t.masked_fill(chosen, 0))._replace(gone=gone)
        spared = min(self.spared, bound - fresh.k.shape[2])
        room = max(self.k.shape[2], bound - spared)
        ours, new = ([F.pad(t, (0, 0, 0, room - t.shape[2])) for t in kv.buffers] for kv in (self, fresh))
        mixed = self.holding([torch.where(chosen, a, b) for a, b in zip(new, ours, strict=True)])
        return mixed._replace(gone=gone, spared=spared, front=max(self.front, fresh.front))


def begin(k: Float[Tensor, "b h n _"], v: Float[Tensor, "b h n _"], ctx: Ctx, *brought: Tensor) -> KV:
    """The state behind a row's first tokens."""
    none = ctx.once("none gone", lambda: torch.zeros(k.shape[0], dtype=torch.long, device=k.device))
    return KV(k, v, none, brought=brought)


def append(
    kv: KV, k: Float[Tensor, "b h n _"], v: Float[Tensor, "b h n _"], ctx: Ctx, *brought: Tensor
) -> tuple[list[Tensor], KV]:
    """What all slots hold that there are, the new tokens' written behind the old, and the state that holds it."""
    start = ctx.past - kv.spared
    index = None if ctx.uniform else ctx.positions - kv.gone[:, None]
    pairs = zip(kv.buffers, (k, v, *brought), strict=True)
    every = [write(buffer, t, start, index, ctx.in_place) for buffer, t in pairs]
    if not ctx.in_place:
        kv = kv.holding(every)
    m = start + k.shape[2]
    return [t[:, :, :m] for t in every], kv


def added(kv: KV, names: Sequence[str], more: Mapping[str, Tensor], m: int) -> KV:
    """The state with what score steps add to their buffers in the last of the m slots that there are.

    They get tensors of their own: other states go on from what was there.
    """
    found = []
    for name, t in zip(names, kv.brought, strict=True):
        if name in more:
            t = t + F.pad(more[name], (0, 0, m - more[name].shape[2], t.shape[2] - m)).to(t.dtype)
        found.append(t)
    return kv._replace(brought=tuple(found))


def last(kv: KV, ctx: Ctx) -> list[Float[Tensor, "b _ 1 _"]]:
    """What score steps have brought of each row's last token before this call, zeros where it has none."""
    if ctx.length is None:
        end = ctx.past - kv.spared
        return [t[:, :, end - 1 : end] for t in kv.brought]
    slot = (ctx.length - kv.gone - 1).clamp(min=0)[:, None, None, None]
    none = (ctx.length == 0)[:, None, None, None]
    found = (t.gather(2, slot.expand(-1, t.shape[1], 1, t.shape[3])) for t in kv.brought)
    return [t.masked_fill(none, 0) for t in found]


def place(kv: KV | None, ctx: Ctx, m: int) -> Slots:
    """Where the queries and the m slots stand; without a front that is kept, the distances are those of the slots."""
    if kv is None or not kv.spared:
        return Slots(ctx.positions, None, ctx.length is None)
    if not kv.front:
        # A number for rows that are alike, so that biases stay one for all of them.
        gone = kv.spared if ctx.length is None else kv.gone[:, None]
        return Slots(ctx.positions - gone, None, ctx.length is None)
    return Slots(ctx.positions, kv.stand(ctx, m), ctx.length is None)


def over_all_tokens(maps: list[AttentionMap], kv: KV | None, ctx: Ctx) -> None:
    """Gives the last of the maps a column for each token there is: of slots that hold others, zeros for those gone."""
    if kv is None or not kv.spared:
        return
    weights = maps[-1].weights
    *rows, n, m = weights.shape
    at = kv.stand(ctx, m)[:, None, None].expand_as(weights)
    maps[-1] = AttentionMap(weights.new_zeros(*rows, n, ctx.past + n).scatter(3, at, weights), True)


def fits(kv: KV, need: int) -> bool:
    """Whether there is room for the slots of `need` tokens."""
    return need - kv.spared + SPARE <= kv.k.shape[2]


def reserve(kv: KV, used: int, need: int, copy: bool, length: Int[Tensor, " b"] | None) -> KV:
    """Room for the slots of `need` tokens, `used` of them there; `copy` asks for buffers of its own.

    length: (b,) tokens seen by each row, None where all have seen `used`.
    """
    if fits(kv, need) and not copy:
        return kv
    used, need = used - kv.spared, need - kv.spared
    kv = kv.each(lambda t: grow(t, used, need, copy))
    if copy and length is not None:
        ends = length - kv.gone
        kv = kv.each(lambda t: emptied(t, ends))
    return kv


def shorten(kv: KV, tokens: int, front: int, bound: int, length: Int[Tensor, " b"] | None) -> KV:
    """The state with each row's last `tokens` tokens and its first `front` ones only, in buffers of its own.

    bound: tokens seen, at most; length: (b,) by each row, None where all have seen `bound`.
    """
    used = bound - kv.spared
    left = min(used, front + tokens)
    if left == used:
        return kv
    if length is None:
        extra = used - left
        kv = kv.each(lambda t: torch.cat((t[:, :, :front], t[:, :, front + extra : used]), 2))
        return kv._replace(gone=kv.gone + extra, spared=kv.spared + extra, front=front)
    more = (length - kv.gone - left).clamp(min=0)
    slot = torch.arange(left, device=length.device)
    index = torch.where(slot < front, slot, slot + more[:, None])[:, None, :, None]
    kv = kv.each(lambda t: t.gather(2, index.expand(-1, t.shape[1], -1, t.shape[3])))
    return kv._replace(gone=kv.gone + more, spared=bound - left, front=front)
