"""Cosine attention: queries and keys of length one before they meet."""

import torch
from torch import nn

from ...base.shapes import Float, Tensor
from ..kernels.softmax import unit

__all__ = ["Cosine"]


class Cosine(nn.Module):
    """Queries and keys l2-normalised and scaled per channel, so that scores are cosines times a fixed scale.

    flag: which asks for it, with its block's name, for the ValueError where heads have one channel.
    """

    def __init__(self, width: int, flag: str):
        super().__init__()
        if width < 2:
            raise ValueError(f"{flag}=True needs heads of 2 channels or more, not {width}: give a wider dim_head")
        self.q_gain = nn.Parameter(torch.ones(width))
        self.k_gain = nn.Parameter(torch.ones(width))

    def forward(self, q: Float[Tensor, "*_ k"], k: Float[Tensor, "*_ k"]) -> tuple[Tensor, Tensor]:
        return self.queries(q), self.keys(k)

    def queries(self, q: Float[Tensor, "*_ k"]) -> Float[Tensor, "*_ k"]:
        return unit(q) * self.q_gain.to(q.dtype)

    def keys(self, k: Float[Tensor, "*_ k"]) -> Float[Tensor, "*_ k"]:
        return unit(k) * self.k_gain.to(k.dtype)
