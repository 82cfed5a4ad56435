"""Which slots a query may see: causality, windows, padding, documents and the caller's own mask, as one boolean."""

from typing import NamedTuple

import torch

from ...base.shapes import Bool, Tensor
from ...base.state import Ctx, document_starts
from ..kernels.tiled import Between
from ..positions.slots import Slots

__all__ = ["Sight", "and_all", "bounds", "sight", "visible"]


class Sight(NamedTuple):
    """What the queries of a call may see of its keys.

    mask: (1 | b, 1 | h, 1 | n, m), None where all are seen.  causal: whether it is *also* plainly causal, which is left
    to the kernel.  blind: (1 | b, 1 | h, 1 | n, 1) the queries that see nothing and read zeros, None where none can be.
    """

    mask: Bool[Tensor, "_ _ _ m"] | None
    causal: bool = False
    blind: Bool[Tensor, "_ _ _ 1"] | None = None


def sight(mask: Bool[Tensor, "_ _ _ m"] | None) -> Sight:
    """What a mask that was given lets see; one made here lets every token see itself at least."""
    return Sight(mask, blind=None if mask is None else ~mask.any(-1, keepdim=True))


def and_all(*masks: Tensor | None) -> Tensor | None:
    """The conjunction of the masks that are there; None when none is."""
    joined = None
    for mask in masks:
        if mask is not None:
            joined = mask if joined is None else joined & mask
    return joined


def bounds(ctx: Ctx, n: int, causal: bool) -> Between | None:
    """What documents or a prefix leave of the keys, as the first and the last each query may see; None: nothing less.

    Without a prefix, causality is left to the kernel; a prefix has it in its bounds.
    """
    slot = torch.arange(n, device=ctx.positions.device)[None]
    if ctx.prefix is not None:
        return Between(None, torch.maximum(slot + 1, ctx.prefix[:, None]))
    if ctx.doc_ids is None:
        return None
    since = slot - ctx.doc_positions()
    if causal:
        return Between(since, None)
    starts = torch.where(document_starts(ctx.doc_ids), slot, n)
    ends = starts.flip(1).cummin(1).values.flip(1)
    return Between(since, torch.cat((ends[:, 1:], torch.full_like(ends[:, :1], n)), 1))


def visible(ctx: Ctx, slots: Slots, m: int, causal: bool, window: int | None = None, sinks: int = 0) -> Sight:
    """Which of m slots each query may see.

    Behind the door a row's tokens fill its slots in order, so that a real causal query sees real keys only; without
    causality the slots behind a row's end are masked, an empty row seeing one of them. Whatever hides the others, a
    token sees itself, real or not, for a softmax over nothing is NaN: only `attn_mask` can leave a query blind.
    `window`: how many tokens a query sees, itself included, looking back (and, without causality or inside a prefix,
    ahead), `sinks`: how many of the first tokens it sees besides.
    """
    # m is that of the call: as part of the key it would tie a compiled graph to one length.
    return ctx.once(("visible", causal, window, sinks), lambda: make_visible(ctx, slots, m, causal, window, sinks))


def make_visible(ctx: Ctx, slots: Slots, m: int, causal: bool, window: int | None, sinks: int) -> Sight:
    n = slots.at.shape[1]
    if causal and n == 1 and ctx.uniform and window is None and ctx.doc_ids is ctx.attn_mask is ctx.prefix is None:
        return Sight(None)
    where = slots.at[:, None, :, None]
    slot = torch.arange(m, device=where.device) if slots.keys is None else slots.keys[:, None, None]
    back = ahead = rows = documents = None
    # A fresh call leaves causality to the kernel; one new token of a uniform call sees all slots there are. Not the
    # comparison itself: while compiling it is symbolic, which the kernel does not take.
    in_kernel = False
    if causal and ctx.length is None and ctx.past == 0:
        in_kernel = True
    if causal and not (ctx.uniform and n == 1) and not in_kernel:
        ahead = slot <= where
    if window is not None:
        back = where - slot < window
        if not causal:
            ahead = slot - where < window
    if ctx.prefix is not None:
        ahead, in_kernel = (slot <= where) | (slot < ctx.prefix[:, None, None, None]), False
        if window is not None:
            ahead = ahead & (slot - where < window)
    if sinks:
        first = (slot if ctx.doc_ids is None else ctx.doc_positions()[:, None, None]) < sinks
        back = first if back is None else back | first
        ahead = ahead if causal or ahead is None else ahead | first
    if not causal and ctx.new is not None:
        rows = (slot < ctx.new.clamp(min=1)[:, None])[:, None, None]
        if window is not None or ctx.doc_ids is not None:
            # A token behind the row's end may have no real one in its window or under its number.
            rows = rows | (slot == where)
    if ctx.doc_ids is not None:
        documents = (ctx.doc_ids[:, :, None] == ctx.doc_ids[:, None, :])[:, None]
    mask = and_all(back, ahead, rows, documents, ctx.attn_mask)
    if mask is not None and in_kernel:
        mask, in_kernel = mask & (slot <= where), False
    return Sight(mask, in_kernel) if ctx.attn_mask is None else sight(mask)
