"""When `attn` reads only the keys between two bounds of each query: documents, prefixes, padding, biases."""

from typing import Any

import torch

from ...base.looks import may_look
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ..kernels.bounded import LEAST, attend_bounded
from ..kernels.flex import attend_flex, can_flex, flex_mask
from ..kernels.relative import distances
from ..kernels.tiles import Between
from ..positions.slots import Slots
from .masks import bounds

__all__ = ["read_bounded", "whole_bounds"]


def read_bounded(
    block: Any,
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b g m k"],
    v: Float[Tensor, "b g m e"],
    ctx: Ctx,
    slots: Slots,
) -> Float[Tensor, "b h n e"] | None:
    """What the queries read; None where one matrix is to be read, or a kernel knows what they see.

    By FlexAttention on a GPU, and where a look at the bounds is free, in blocks of queries.
    """
    if not is_bounded(block, ctx, slots):
        return None
    dropout = block.reader.dropout if block.training else 0.0
    flex = can_flex(q, v, dropout)
    n, causal, scale = q.shape[2], block.site.causal, block.reader.scale
    if not (flex or may_look(ctx.positions)) or n < LEAST or n != k.shape[2]:
        return None
    between = ctx.once(("whole bounds", causal), lambda: whole_bounds(ctx, n, causal))
    if flex:
        mask = ctx.once(("flex", causal), lambda: flex_mask(between, n))
        return attend_flex(q, k, v, mask, biased(block, ctx, n, torch.float32), scale)
    if not all(may_look(bound) for bound in between):
        return None
    return attend_bounded(q, k, v, between, biased(block, ctx, n, q.dtype), scale, dropout)


def is_bounded(block: Any, ctx: Ctx, slots: Slots) -> bool:
    """Whether it is bounds, and a bias by distance at most, that keep the call from the kernel, and nothing else."""
    if block.config.window is not None or block.config.num_mem_kv or not (block.reader.plain and block.reader.fused):
        return False
    if not ctx.attn_mask is ctx.maps is ctx.length is slots.keys is None:
        return False
    if ctx.relay.weighing and block.weighs():
        return False
    hidden = not ctx.doc_ids is ctx.prefix is None or (ctx.new is not None and not block.site.causal)
    return hidden or bool(ctx.relative is not None and ctx.relative.biases)


def biased(block: Any, ctx: Ctx, n: int, dtype: torch.dtype) -> Float[Tensor, "h l"] | None:
    """What the stack's positions add at the distances of n tokens from each other, made once a call."""
    relative: Any = ctx.relative
    if relative is None or not relative.biases:
        return None
    key = "bias by distance", relative.biased_by, block.heads, dtype
    return ctx.once(key, lambda: relative.by_distance(distances(n, n, ctx.positions.device), block.heads, dtype))


def whole_bounds(ctx: Ctx, n: int, causal: bool) -> Between:
    """All that a call says of what its tokens see, as the first and the last key of each, (1 | b, n).

    A token that is not real sees itself.
    """
    since, until = bounds(ctx, n, causal) or (None, None)
    slot = torch.arange(n, device=ctx.positions.device)[None]
    if until is None:
        until = slot + 1 if causal else torch.full_like(slot, n)
    since = torch.zeros_like(slot) if since is None else since
    real = None if causal else ctx.real(n)
    if ctx.new is not None and real is not None:
        since = torch.where(real, since, slot)
        until = torch.where(real, torch.minimum(until, ctx.new[:, None]), slot + 1)
    rows = max(len(since), len(until))
    return Between(since.expand(rows, -1), until.expand(rows, -1))
