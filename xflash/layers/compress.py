"""`Compressor`: blocks of keys and values made shorter before they are kept (https://arxiv.org/abs/1911.05507)."""

from typing import Literal

import torch
from torch import nn

from ..shapes import Float, Tensor

__all__ = ["Compressor"]


class Compressor(nn.Module):
    """Every `factor` neighbouring tokens become one entry: their mean, their maximum, or a learned sum ('conv').

    `heads` counts those of keys and values together, each of which is compressed for itself; `blocks` is how many
    blocks a layer keeps.
    """

    def __init__(self, kind: Literal["conv", "mean", "max"], factor: int, blocks: int, heads: int, width: int):
        super().__init__()
        self.kind, self.factor, self.blocks = kind, factor, blocks
        self.conv: nn.Conv1d | None = None
        if kind == "conv":
            self.conv = nn.Conv1d(heads * width, heads * width, factor, stride=factor, groups=heads)

    def forward(
        self, k: Float[Tensor, "b g w c"], v: Float[Tensor, "b g w c"]
    ) -> tuple[Float[Tensor, "b g _ c"], Float[Tensor, "b g _ c"]]:
        """Keys and values of g blocks of w tokens, w a multiple of the factor."""
        if self.conv is not None:
            both = torch.cat((k, v), -1)
            short = self.conv(both.flatten(0, 1).mT).mT.unflatten(0, both.shape[:2])
            short_k, short_v = short.chunk(2, -1)
            return short_k, short_v
        grouped = [t.unflatten(2, (-1, self.factor)) for t in (k, v)]
        if self.kind == "mean":
            return grouped[0].mean(3), grouped[1].mean(3)
        return grouped[0].amax(3), grouped[1].amax(3)
