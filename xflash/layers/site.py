"""`Site`: where a part stands."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ..base.registry import blocks
from ..base.shapes import Float, Tensor

__all__ = ["MOST", "BranchStart", "Site"]

BranchStart = Literal["even", "depth", "zero"]

# A factor such as 960 / 704 is meant as written, although in floats it times 704 falls short of 960.
SLACK = 1e-6
# The largest such factor: a product beyond what floats count one by one is nobody's width.
MOST = 10**6


@dataclass(frozen=True)
class Site:
    """Where a part stands: the width, heads and direction of its stack, and its places in the column.

    branches: how many blocks the stack runs, those in parallel counted each.  places: all those of the column, from 0,
    at which this one module stands: several where layers are tied.  member: which one of blocks in parallel is here.
    period: the layers in one repetition of the layout.  parts: the Configs of the parts that a block holds, by name;
    those that are not there have their defaults.  layers: the names of all blocks down the column, of those in parallel
    'attn+ff'.  pos: the names of the block's positions, None for those of the stack.  views: how many tensors the block
    here can read in place of one.  dim_head: how wide the queries are whose scores a step stands behind.  start: how
    large updates start.
    """

    dim: int
    heads: int = 1
    causal: bool = False
    branches: int = 1
    places: tuple[int, ...] = (0,)
    period: int = 1
    layers: tuple[str, ...] = ()
    views: int = 1
    dim_condition: int | None = None
    dim_head: int | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    member: int = 0
    pos: tuple[str, ...] | None = None
    start: BranchStart = "even"

    def check_views(self, flag: str) -> None:
        """ValueError where no block of the column can read a tensor each for queries, keys and values."""
        if not any(blocks[name].views > 1 for name in self.layers if name in blocks):
            able = ", ".join(name for name, block in blocks.items() if block.views > 1)
            raise ValueError(f"{flag}=True, but no block of the stack reads several mixtures (those that do: {able})")

    def is_first(self, name: str) -> bool:
        """Whether the block here is the first of this name down the column, at one of its places."""
        named = ((p, m) for p, layer in enumerate(self.layers) for m, n in enumerate(layer.split("+")) if n == name)
        return next(named, None) in [(place, self.member) for place in self.places]

    def channels(self, flag: str, factor: float, instead: str = "") -> int:
        """The whole number of channels that `factor` times the stream's width makes; ValueError for any other number.

        `flag` is what the factor is called, `instead` a flag that takes the number itself.
        """
        exact = factor * self.dim
        width = round(exact)
        if width >= 1 and abs(exact - width) <= SLACK:
            return width
        near = dict.fromkeys((max(1, math.floor(exact)), math.ceil(exact)))
        ways = " or ".join(f"{instead}={n}" if instead else f"{flag}={n}/{self.dim}" for n in near)
        raise ValueError(
            f"{flag}={factor} with dim={self.dim} makes {exact:.10g} channels, no whole number: give {ways}"
        )

    def linear_out(self, width: int, bias: bool = False, gated: bool = False) -> nn.Linear:
        """The projection back to the stream, which starts as `started` says, with a bias of zeros."""
        linear = nn.Linear(width, self.dim, bias=bias)
        self.started(linear.weight, gated)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        return linear

    @torch.no_grad()
    def started(self, weight: Float[Tensor, "*_ d e"], gated: bool = False) -> Float[Tensor, "*_ d e"]:
        """A weight that projects back to the stream, begun as `nn.Linear` begins it, as `start` has it; in place.

        'even': scaled by 1/sqrt(branches) so that their sum keeps its size; 'depth': with a deviation of
        1/sqrt(2 e l) in the l-th repetition of the layout, or layer where it is there once; 'zero'.
        `gated`: what it projects is a product of two small factors, so that an even start is small as it is.
        """
        if self.start == "zero":
            return weight.zero_()
        if self.start == "depth":
            once = self.period == len(self.layers)
            number = 1 + self.places[0] // (1 if once else self.period)
            return weight.normal_(std=(2 * weight.shape[-1] * number) ** -0.5)
        return weight if gated else weight.mul_(self.branches**-0.5)
