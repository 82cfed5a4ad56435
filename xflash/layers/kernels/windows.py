"""Attention in blocks of w tokens that see their own block, the one before and what is kept of older ones.

`c` here is the width of all key/value heads together. A row's tokens fill its blocks from its first token on; whatever
is kept of a block is committed when the block is full, never before, so that no cut of a sequence shows.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import may_look
from ...base.shapes import Bool, Float, Int, Tensor
from .buffers import put
from .carried import pick
from .groups import Padded, Scattered, place
from .packed_windows import DocumentBlocks, moved_on

__all__ = [
    "Blocks",
    "Older",
    "Window",
    "fold",
    "fold_documents",
    "followed",
    "kept",
    "slots_of",
    "valid",
    "window_mask",
    "within",
]


class Window(NamedTuple):
    """What a row carries: keys and values (b, w, c) of the block before and of the open one, zeros where unfilled.

    older: (b, m, l, c) what is kept of the m blocks before those, l entries of each, the oldest first; None if nothing.
    memory: the layer's `Memory` of whole blocks before the window, if it has one.  lost: (b,) the reconstruction loss
    of the compressed entries, summed over the row's tokens, if the layer has one.
    """

    past_k: Tensor
    past_v: Tensor
    open_k: Tensor
    open_v: Tensor
    older_k: Tensor | None = None
    older_v: Tensor | None = None
    memory: Any = None
    lost: Tensor | None = None

    # What a step of one token leaves where it is.
    in_place = ("open_k", "open_v")


class Older(NamedTuple):
    """Entries kept of blocks, (b, m + 1 + g, l, c): the state's m, the block before, each block of this call."""

    k: Float[Tensor, "b _ l c"]
    v: Float[Tensor, "b _ l c"]
    m: int


class Blocks(NamedTuple):
    """The tokens of a call in their blocks, g of them a row, behind what the state holds.

    layout: where each token stands; None when all of them stay in the open block of their row, which then is the
    only one.  k, v: (b, g, w, c).  before_k, before_v: the same one block earlier.  closed: blocks each row had closed
    before the call, full: how many it closes in it; numbers where all rows agree, else (b,).  documents: how packed
    documents lie in the blocks, which then have numbers of their own.
    """

    layout: Padded | Scattered | None
    k: Float[Tensor, "b g w c"]
    v: Float[Tensor, "b g w c"]
    before_k: Float[Tensor, "b g w c"]
    before_v: Float[Tensor, "b g w c"]
    closed: int | Int[Tensor, " b"]
    full: int | Int[Tensor, " b"]
    numbers: Int[Tensor, "b g"] | None = None
    documents: DocumentBlocks | None = None

    def number(self) -> Int[Tensor, "_ g"]:
        """How many blocks there are before each."""
        if self.numbers is not None:
            return self.numbers
        closed, device = self.closed, self.k.device
        closed = closed if isinstance(closed, torch.Tensor) else torch.full((1,), closed, device=device)
        return closed[:, None] + torch.arange(self.k.shape[1], device=device)

    def behind(self) -> tuple[Float[Tensor, "b _ w c"], Float[Tensor, "b _ w c"]]:
        """The block before each, and the last; of packed documents nobody sees what is kept of the last."""
        if self.documents is not None:
            return self.before_k, self.before_v
        k, v = (torch.cat((b[:, :1], t), 1) for b, t in ((self.before_k, self.k), (self.before_v, self.v)))
        return k, v

    def rest(self) -> Window:
        """The state behind the call, but for older blocks."""
        full = self.full
        if not isinstance(full, torch.Tensor):
            ends = [t[:, full] if full < t.shape[1] else torch.zeros_like(t[:, 0]) for t in (self.k, self.v)]
            past = (self.k[:, full - 1], self.v[:, full - 1]) if full else (self.before_k[:, 0], self.before_v[:, 0])
            return Window(*past, *ends)
        row = torch.arange(self.k.shape[0], device=self.k.device)
        return Window(*(t[row, full] for t in self.behind()), *(pick(t, full) for t in (self.k, self.v)))


def fold(
    k: Float[Tensor, "b n c"],
    v: Float[Tensor, "b n c"],
    state: Window | None,
    w: int,
    filled: int | Int[Tensor, " b"],
    new: Int[Tensor, " b"] | None,
) -> Blocks:
    """Any number of tokens, rows at any fill; the keys and values of tokens that do not exist are zeros.

    filled: tokens seen before, a number where all rows agree.  new: (b,) real tokens of this call, None if all are.
    """
    b, n = k.shape[:2]
    if isinstance(filled, torch.Tensor):
        filled = filled.expand(b)
    layout = place(n, w, filled % w)
    put = [layout.put(t, head) for t, head in ((k, state and state.open_k), (v, state and state.open_v))]
    before = []
    for t, past in zip(put, (state and state.past_k, state and state.past_v), strict=True):
        if torch.compiler.is_compiling():
            # All but the last would be a guard on there being two.
            t = F.pad(t, (0, 0, 0, 0, 1, -1))
            if past is not None:
                t[:, 0] = past
        else:
            first = torch.zeros_like(t[:, :1]) if past is None else past[:, None].to(t.dtype)
            t = torch.cat((first, t[:, :-1]), 1)
        before.append(t)
    full = (filled % w + (n if new is None else new)) // w
    if torch.compiler.is_compiling() and not isinstance(full, torch.Tensor):
        full = torch.full((1,), full, device=k.device)
    return Blocks(
        layout, *put, *before, closed=filled // w, full=full.expand(b) if isinstance(full, torch.Tensor) else full
    )


def fold_documents(k: Float[Tensor, "b n c"], v: Float[Tensor, "b n c"], documents: DocumentBlocks) -> Blocks:
    """The same of packed documents, which no state goes before or behind."""
    put_k, put_v = (documents.layout.put(t) for t in (k, v))
    before = documents.before(k, put_k), documents.before(v, put_v)
    return Blocks(documents.layout, put_k, put_v, *before, 0, documents.count, documents.number, documents)


def followed(folded: Blocks, documents: DocumentBlocks) -> Blocks:
    """Of packed documents the blocks that another of their document follows, in their order."""
    k, v = (t[:, : documents.later] for t in (folded.before_k, folded.before_v))
    number = documents.number[:, : documents.later] - 1
    return Blocks(None, k, v, moved_on(k), moved_on(v), 0, documents.count, number)


def within(
    k: Float[Tensor, "b n c"],
    v: Float[Tensor, "b n c"],
    state: Window | None,
    w: int,
    filled: int | Int[Tensor, " b"],
    new: Int[Tensor, " b"] | None,
    in_place: bool,
) -> Blocks:
    """The same where all tokens stay in the open block of their row: rows alike, or one token a row."""
    n = k.shape[1]
    if state is None:
        opened = [F.pad(t, (0, 0, 0, w - n)) for t in (k, v)]
        past = [torch.zeros_like(opened[0])] * 2
    else:
        slot = filled % w
        opened = [single(t, extra, slot, in_place) for t, extra in ((state.open_k, k), (state.open_v, v))]
        past = [state.past_k, state.past_v]
    full = (filled % w + (n if new is None else new)) // w
    if isinstance(full, torch.Tensor) and may_look(full) and not bool(full.any()):
        full = 0
    return Blocks(None, *(t[:, None] for t in (*opened, *past)), closed=filled // w, full=full)


def window_mask(where: Int[Tensor, "*_ r"], w: int, older: int, sliding: bool) -> Bool[Tensor, "*_ r _"]:
    """Which of `older` + 2w slots the token at `where` of its block may see: up to its own, `sliding` w of them.

    Older slots are left to their own validity. Not sliding, a token sees the whole block before its own.
    """
    query, key = where[..., None], torch.arange(2 * w, device=where.device)
    mask = key <= query + w
    if sliding:
        mask = mask & (key > query)
    return F.pad(mask, (older, 0), value=True) if older else mask


def valid(number: Int[Tensor, "_ g"], w: int, m: int, length: int) -> Bool[Tensor, "_ g _"]:
    """Which slots of blocks, by their number, hold something: m older blocks of `length`, the block before, its own."""
    before = (number >= 1)[..., None].expand(-1, -1, w)
    parts = [before, torch.ones_like(before)]
    if m:
        # The j-th of m older blocks is block number - 1 - m + j.
        kept = number[..., None] - 1 - m + torch.arange(m, device=number.device) >= 0
        parts = [kept.repeat_interleave(length, -1), *parts]
    return torch.cat(parts, -1)


def seen_older(older: Older, g: int) -> tuple[Float[Tensor, "b g _ c"], Float[Tensor, "b g _ c"]]:
    """For each of g blocks the entries kept of the m blocks before the block before it."""
    index = torch.arange(g, device=older.k.device)[:, None] + torch.arange(older.m, device=older.k.device)
    k, v = (t[:, index].flatten(2, 3) for t in (older.k, older.v))
    return k, v


def single(buffer: Float[Tensor, "b w c"], t: Float[Tensor, "b n c"], slot: int | Int[Tensor, " b"], in_place: bool):
    """The open block with `t` behind its fill: n tokens where all rows agree, one where they do not."""
    if isinstance(slot, int):
        if in_place:
            buffer[:, slot : slot + t.shape[1]] = t
            return buffer
        return torch.cat((buffer[:, :slot], t.to(buffer.dtype), buffer[:, slot + t.shape[1] :]), 1)
    return put(buffer, t, slot[:, None], in_place)


def kept(t: Float[Tensor, "b _ l c"], full: int | Int[Tensor, " b"], m: int) -> Float[Tensor, "b m l c"]:
    """The m entries that stand in front of the next call's blocks, `full` blocks further on."""
    if not isinstance(full, torch.Tensor):
        return t[:, full : full + m]
    index = full[:, None] + torch.arange(m, device=t.device)
    return t.gather(1, index[..., None, None].expand(-1, -1, *t.shape[2:]))


def slots_of(folded: Blocks, older: Older | None, w: int) -> tuple[Tensor, Tensor, int, Bool[Tensor, "_ g _"]]:
    """Keys and values of each block's window, how many are older entries, and which slots hold something."""
    k, v = (torch.cat(pair, 2) for pair in ((folded.before_k, folded.k), (folded.before_v, folded.v)))
    g, extra, m = k.shape[1], 0, 0
    if older is not None:
        old_k, old_v = seen_older(older, g)
        extra, m = old_k.shape[2], older.m
        k, v = torch.cat((old_k.to(k.dtype), k), 2), torch.cat((old_v.to(v.dtype), v), 2)
    return k, v, extra, valid(folded.number(), w, m, extra // max(m, 1))
