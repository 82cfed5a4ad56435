"""Token embeddings, absolute positions, memory tokens."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..base.roles import Role
from ..base.shapes import Float, Int, Tensor
from .positions.angles import angle_dtype, inverse_frequencies

__all__ = ["LearnedPositions", "MemoryTokens", "ScaledSinusoidal", "TokenEmbedding"]


class TokenEmbedding(nn.Module):
    """A learned vector per token; with `l2norm` kept at length one and started tiny (fixnorm, 1910.05895)."""

    roles: ClassVar[Mapping[str, Role]] = {"weight": "embedding"}

    def __init__(self, num_tokens: int, dim: int, l2norm: bool = False):
        super().__init__()
        self.l2norm = l2norm
        self.weight = nn.Parameter(torch.empty(num_tokens, dim).normal_(std=1e-5 if l2norm else 0.02))

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        # Bytes come as uint8, which the lookup itself does not take.
        found = F.embedding(ids.long(), self.weight)
        return F.normalize(found, dim=-1) if self.l2norm else found

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class LearnedPositions(nn.Module):
    """A learned vector for each of `max_seq_len` positions, behind `offset` that no token has."""

    def __init__(self, max_seq_len: int, dim: int, l2norm: bool = False, offset: int = 0):
        super().__init__()
        self.l2norm, self.offset = l2norm, offset
        self.max_seq_len = max_seq_len
        self.weight = nn.Parameter(torch.empty(max_seq_len + offset, dim).normal_(std=1e-5 if l2norm else 0.02))

    def forward(self, where: Int[Tensor, "_ n"]) -> Float[Tensor, "_ n d"]:
        where = where.clamp(max=self.max_seq_len - 1)
        found = F.embedding(where + self.offset if self.offset else where, self.weight)
        return F.normalize(found, dim=-1) if self.l2norm else found

    def extra_repr(self) -> str:
        return f"{self.max_seq_len}, {self.weight.shape[1]}" + f", offset={self.offset}" * bool(self.offset)


class ScaledSinusoidal(nn.Module):
    """Sines and cosines of the position times one learned scalar that starts at 1/sqrt(d) (2202.10447)."""

    def __init__(self, dim: int, base: float = 10000.0):
        super().__init__()
        self.dim, self.base = dim, base
        self.scale = nn.Parameter(torch.full((), dim**-0.5))

    def forward(self, where: Int[Tensor, "_ n"]) -> Float[Tensor, "_ n d"]:
        exact = angle_dtype(self.scale.dtype)
        width = self.dim + self.dim % 2
        angle = where.to(exact)[..., None] * inverse_frequencies(width, self.base, where.device).to(exact)
        waves = torch.cat((angle.sin(), angle.cos()), -1)[..., : self.dim]
        return waves.to(self.scale.dtype) * self.scale


class MemoryTokens(nn.Module):
    """Learned tokens in front of every sequence (https://arxiv.org/abs/2006.11527)."""

    def __init__(self, number: int, dim: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(number, dim).normal_(std=0.02))

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        return torch.cat((self.tokens.to(x.dtype).expand(x.shape[0], -1, -1), x), 1)
