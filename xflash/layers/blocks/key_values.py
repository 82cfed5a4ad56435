"""What softmax attention and GAU carry: the keys and values of the tokens seen, or of the last of them only."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx
from ..kernels.buffers import SPARE, emptied, grow, write

__all__ = ["KV", "Slots", "append", "begin", "fits", "place", "reserve", "shorten"]


class KV(NamedTuple):
    """Keys and values of the tokens a row remembers, in buffers (b, h, slots, width) that grow by doubling.

    gone: (b,) how many tokens behind the first `front` each row has given up: slot j >= front holds token j + gone,
    a slot before it token j.  spared: how many slots fewer than tokens the longest row takes, `gone` where all rows
    are alike.
    """

    k: Tensor
    v: Tensor
    gone: Tensor
    spared: int = 0
    front: int = 0

    def renewed(self, rows: Bool[Tensor, " b"], fresh: "KV | None", bound: int) -> "KV":
        """The state with the named rows as in `fresh` (None: as before their first token), `bound` tokens seen at most.

        What `fresh` holds, all of its slots, may be more than a window has left of the others.
        """
        gone = torch.where(rows, 0 if fresh is None else fresh.gone, self.gone)
        if fresh is None:
            k, v = (t.masked_fill(rows[:, None, None, None], 0) for t in (self.k, self.v))
            return self._replace(k=k, v=v, gone=gone)
        spared = min(self.spared, bound - fresh.k.shape[2])
        room = max(self.k.shape[2], bound - spared)
        ours, new = ([F.pad(t, (0, 0, 0, room - t.shape[2])) for t in (kv.k, kv.v)] for kv in (self, fresh))
        k, v = (torch.where(rows[:, None, None, None], a, b) for a, b in zip(new, ours, strict=True))
        return KV(k, v, gone, spared, max(self.front, fresh.front))


class Slots(NamedTuple):
    """Where the queries of a call and the slots they read stand, in one count.

    at: (1 | b, n) of each query.  keys: (1 | b, m) of each slot, None where slot j stands at j.  alike: every row is
    as the first.
    """

    at: Int[Tensor, "_ n"]
    keys: Int[Tensor, "_ m"] | None
    alike: bool


def begin(k: Float[Tensor, "b h n _"], v: Float[Tensor, "b h n _"], ctx: Ctx) -> KV:
    """The state behind a row's first tokens."""
    none = ctx.once("none gone", lambda: torch.zeros(k.shape[0], dtype=torch.long, device=k.device))
    return KV(k, v, none)


def append(kv: KV, k: Float[Tensor, "b h n _"], v: Float[Tensor, "b h n _"], ctx: Ctx) -> tuple[Tensor, Tensor, KV]:
    """Keys and values of all slots there are, the new ones written behind the old, and the state that holds them."""
    start = ctx.past - kv.spared
    index = None if ctx.uniform else ctx.positions - kv.gone[:, None]
    all_k, all_v = write(kv.k, k, start, index, ctx.in_place), write(kv.v, v, start, index, ctx.in_place)
    if not ctx.in_place:
        kv = kv._replace(k=all_k, v=all_v)
    m = start + k.shape[2]
    return all_k[:, :, :m], all_v[:, :, :m], kv


def place(kv: KV | None, ctx: Ctx, m: int) -> Slots:
    """Where the queries and the m slots stand; without a front that is kept, the distances are those of the slots."""
    if kv is None or not kv.spared:
        return Slots(ctx.positions, None, ctx.length is None)
    if not kv.front:
        # A number for rows that are alike, so that biases stay one for all of them.
        gone = kv.spared if ctx.length is None else kv.gone[:, None]
        return Slots(ctx.positions - gone, None, ctx.length is None)
    slot = torch.arange(m, device=kv.gone.device)[None]
    gone = kv.gone[:1] if ctx.length is None else kv.gone
    return Slots(ctx.positions, torch.where(slot < kv.front, slot, slot + gone[:, None]), ctx.length is None)


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
    k, v = grow(kv.k, used, need, copy), grow(kv.v, used, need, copy)
    if copy and length is not None:
        k, v = (emptied(t, length - kv.gone) for t in (k, v))
    return kv._replace(k=k, v=v)


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
        k, v = (torch.cat((t[:, :, :front], t[:, :, front + extra : used]), 2) for t in (kv.k, kv.v))
        return KV(k, v, kv.gone + extra, kv.spared + extra, front)
    more = (length - kv.gone - left).clamp(min=0)
    slot = torch.arange(left, device=length.device)
    index = torch.where(slot < front, slot, slot + more[:, None])[:, None, :, None]
    k, v = (t.gather(2, index.expand(-1, t.shape[1], -1, t.shape[3])) for t in (kv.k, kv.v))
    return KV(k, v, kv.gone + more, bound - left, front)
