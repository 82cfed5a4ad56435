"""Learned biases by distance: those that GAU and FLASH keep of their own, and T5's."""

from typing import Any, Literal

import torch
from torch import nn

from ...base.shapes import Float, Int, Tensor
from ...base.state import Ctx
from ..kernels.relative import t5_bucket

__all__ = ["DistanceBias", "T5Bias", "ToeplitzBias", "own_bias"]


class DistanceBias(nn.Module):
    """Base of the learned biases by distance: an entry of `weight` (heads, entries) for each, (heads, l) from l."""

    weight: nn.Parameter
    settings: tuple

    def index(self, distance: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
        """Which entry each distance has."""
        raise NotImplementedError

    def forward(self, distance: Int[Tensor, " l"]) -> Float[Tensor, "h l"]:
        return self.weight[:, self.index(distance)]

    def at(self, distance: Int[Tensor, " l"], ctx: Ctx, key: Any) -> Float[Tensor, "h l"]:
        """As forward; layers that ask for the same distances (the same `key`) share the index of a call."""
        return self.weight.index_select(1, ctx.once((key, *self.settings), lambda: self.index(distance)))


class T5Bias(DistanceBias):
    """A learned bias by T5's distance buckets (https://arxiv.org/abs/1910.10683)."""

    def __init__(self, heads: int, causal: bool, num_buckets: int, max_distance: int):
        super().__init__()
        if max_distance <= num_buckets // (2 if causal else 4):
            raise ValueError(
                f"a T5 bias with {num_buckets} buckets needs a max distance above "
                f"{num_buckets // (2 if causal else 4)}, not {max_distance}"
            )
        self.causal, self.num_buckets, self.max_distance = causal, num_buckets, max_distance
        self.settings = ("t5", causal, num_buckets, max_distance)
        # Small and unscaled: a unit-normal bias times sqrt(width) drowns the content of the scores for good.
        self.weight = nn.Parameter(torch.empty(heads, num_buckets).normal_(std=0.02))

    def index(self, distance: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
        return t5_bucket(distance, self.causal, self.num_buckets, self.max_distance)


class ToeplitzBias(DistanceBias):
    """A learned bias for each distance below `length` either way; farther ones share the last."""

    def __init__(self, heads: int, length: int):
        super().__init__()
        self.length = length
        self.settings = ("toeplitz", length)
        self.weight = nn.Parameter(torch.empty(heads, 2 * length - 1).normal_(std=0.02))

    def index(self, distance: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
        return distance.clamp(1 - self.length, self.length - 1) + self.length - 1


def own_bias(kind: Literal["t5", "toeplitz"] | None, heads: int, causal: bool, length: int) -> DistanceBias | None:
    """The bias a GAU or FLASH block keeps for itself: T5's 32 buckets up to 128, one entry a distance, or none."""
    if kind is None:
        return None
    return T5Bias(heads, causal, 32, 128) if kind == "t5" else ToeplitzBias(heads, length)
