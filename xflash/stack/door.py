"""The door of a stack: padding is solved once, here, and no block has to know of it.

Behind the door every row is right-padded and starts at slot 0, so the key in slot j stands at position j; holes inside
a row are closed up. On the way out every token goes back to its place.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..base.checks import as_mask, given
from ..base.shapes import Bool, Float, Int, Tensor

__all__ = ["Plan", "check_stream", "pack", "pack_mask", "plan_rows", "unpack", "unpack_columns", "unpack_rows"]


class Plan(NamedTuple):
    """How the door packs rows: `order[b, slot]` is the token that goes to a slot, `dest[b, token]` is its slot."""

    mask: Bool[Tensor, "b n"]
    order: Int[Tensor, "b n"]
    dest: Int[Tensor, "b n"]
    new: Int[Tensor, " b"]


def check_stream(dim: int, x: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask as booleans; ValueError or TypeError for what is no stream of width `dim`."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(
            f"x must be a floating-point tensor (batch, tokens, {dim}), not {given(x)}; token ids go into "
            "TransformerWrapper"
        )
    if x.dim() != 3 or x.shape[-1] != dim:
        raise ValueError(f"x must be (batch, tokens, {dim}), not {tuple(x.shape)}")
    if x.shape[1] < 1:
        raise ValueError("x has no tokens; give at least one")
    return None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))


def plan_rows(mask: Bool[Tensor, "b n"]) -> Plan:
    """The stable move of each row's real tokens to its front."""
    real = mask.cumsum(1)
    new = real[:, -1]
    dest = torch.where(mask, real - 1, new[:, None] + (~mask).cumsum(1) - 1)
    slots = torch.arange(mask.shape[1], device=mask.device).expand_as(dest)
    return Plan(mask, torch.empty_like(dest).scatter_(1, dest, slots), dest, new)


def pack(x: Float[Tensor, "b n d"], plan: Plan) -> Float[Tensor, "b n d"]:
    """Real tokens to the front of each row, zeros behind them."""
    zeroed = x.masked_fill(~plan.mask[..., None], 0)
    return zeroed.gather(1, plan.order[..., None].expand_as(x))


def unpack(y: Float[Tensor, "b n d"], plan: Plan) -> Float[Tensor, "b n d"]:
    """The inverse of `pack`: every token back to its place, zeros where the mask is False."""
    moved = y.gather(1, plan.dest[..., None].expand_as(y))
    return moved.masked_fill(~plan.mask[..., None], 0)


def pack_mask(attn_mask: Tensor, plan: Plan | None, memory: int) -> Tensor:
    """The caller's attention mask behind the door: rows packed, memory slots visible, (1 | b, 1 | h, m, m)."""
    mask = attn_mask.bool() if attn_mask.dim() == 4 else attn_mask.bool()[None, None]
    if plan is not None:
        b = plan.order.shape[0]
        mask = mask.expand(b, -1, -1, -1)
        order = plan.order[:, None]
        mask = mask.gather(2, order[..., None].expand_as(mask)).gather(3, order[:, :, None].expand_as(mask))
    return F.pad(mask, (memory, 0, memory, 0), value=True) if memory else mask


def unpack_rows(weights: Float[Tensor, "b h n m"], plan: Plan | None) -> Float[Tensor, "b h n m"]:
    """An attention map with its rows back where the caller's tokens stand, zeros for masked ones."""
    if plan is None:
        return weights
    moved = weights.gather(2, plan.dest[:, None, :, None].expand_as(weights))
    return moved.masked_fill(~plan.mask[:, None, :, None], 0)


def unpack_columns(weights: Float[Tensor, "b h m n"], plan: Plan | None) -> Float[Tensor, "b h m n"]:
    """The same for its columns."""
    return unpack_rows(weights.mT, plan).mT
