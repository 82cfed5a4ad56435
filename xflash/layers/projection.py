"""Projections to heads: how those that share one weight lie in it, and what becomes of a shard of its columns."""

from collections.abc import Sequence

import torch
from torch import nn

from ..base.shapes import Float, Tensor

__all__ = ["group_rows", "key_and_value", "linear_in", "split_groups", "split_off_values", "whole"]


def linear_in(dim: int, channels: int, bias: bool) -> nn.Linear:
    """A projection to heads, its bias zero at first."""
    linear = nn.Linear(dim, channels, bias=bias)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def group_rows(parts: Sequence[Float[Tensor, "_ d"]], groups: int) -> Float[Tensor, "_ d"]:
    """The weights of several projections as one, the rows of each group (a key/value head) together, in this order.

    A shard of whole groups is then the fused weight of fewer heads, which shards of [all queries | all keys | all
    values] are not.
    """
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def split_groups(t: Float[Tensor, "b n _"], heads: int, width: int) -> Float[Tensor, "b g _ n k"]:
    """Channels (g heads k) as groups of so many heads; how many groups there are, the projection says."""
    b, n, channels = t.shape
    return t.reshape(b, n, channels // (heads * width), heads, width).permute(0, 2, 3, 1, 4)


def split_off_values(
    t: Float[Tensor, "b n _"], heads: int, width: int, values: int
) -> tuple[Float[Tensor, "b g _ n k"], Float[Tensor, "b g n e"]]:
    """Channels of groups of so many heads, and of a value behind each, which may have another width."""
    if values == width:
        groups, v = split_groups(t, heads + 1, width).split((heads, 1), 2)
        return groups, v[:, :, 0]
    b, n, channels = t.shape
    each = heads * width + values
    groups, v = t.reshape(b, n, channels // each, each).transpose(1, 2).split((heads * width, values), -1)
    return groups.unflatten(-1, (heads, width)).transpose(2, 3), v


def key_and_value(t: Float[Tensor, "b n _"], heads: int) -> tuple[Float[Tensor, "b n _"], Float[Tensor, "b n _"]]:
    """The keys and the values, heads joined, of a projection that has both of each head together."""
    if heads == 1:
        k, v = t.chunk(2, -1)
        return k, v
    both = t.unflatten(-1, (heads, 2, -1))
    return both[..., 0, :].flatten(-2), both[..., 1, :].flatten(-2)


def whole(x: Float[Tensor, "b n _"], channels: int, block: str) -> Float[Tensor, "b n _"]:
    """`x`, what a projection of `block` gave; ValueError unless it has all channels, for a shard has other ones."""
    if x.shape[-1] != channels:
        raise ValueError(
            f"a projection of {block} gave {x.shape[-1]} of its {channels} channels: what lies in them cannot be cut "
            "into shards of neighbours (ColwiseParallel); leave it whole"
        )
    return x
