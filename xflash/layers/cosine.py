"""Cosine attention: queries and keys of length one before they meet."""

import torch
from torch import nn

from ..shapes import Float, Tensor
from .kernels.softmax import unit

__all__ = ["Cosine"]


class Cosine(nn.Module):
    """Queries and keys l2-normalised and scaled per channel, so that scores are cosines times a fixed scale."""

    def __init__(self, width: int):
        super().__init__()
        self.q_gain = nn.Parameter(torch.ones(width))
        self.k_gain = nn.Parameter(torch.ones(width))

    def forward(self, q: Float[Tensor, "*_ k"], k: Float[Tensor, "*_ k"]) -> tuple[Tensor, Tensor]:
        return self.queries(q), self.keys(k)

    def queries(self, q: Float[Tensor, "*_ k"]) -> Float[Tensor, "*_ k"]:
        return unit(q) * self.q_gain.to(q.dtype)

    def keys(self, k: Float[Tensor, "*_ k"]) -> Float[Tensor, "*_ k"]:
        return unit(k) * self.k_gain.to(k.dtype)
