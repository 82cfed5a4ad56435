"""`rel_proj`: a bias by distance that each query makes for itself."""

from typing import Any

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import scores
from ...base.shapes import Float, Tensor
from ...flags.flag import flag
from .step import Read, ScoreStep

__all__ = ["RelProj"]


@scores.register("rel_proj")
class RelProj(ScoreStep):
    """A query's bias by distance is a sum of learned curves, weighed by its token (x-transformers' rel_proj_pos_bias).

    Curves are shared by the heads, weights are each head's own. Keys ahead, and those from `max_dist` on, have none.
    """

    needs = frozenset({"tokens"})
    shared = False

    @frozen
    class Config:
        num_distance_basis: int = flag(16, "learned curves", at_least=1, tried="any number is as any other")
        max_dist: int = flag(1024, "distances that have a bias, from 0 on", at_least=1, tried=(6,))

    def __init__(self, config: Any, site: Any, heads: int, kind: str):
        super().__init__(config, site, heads, kind)
        self.to_weights = nn.Linear(site.dim, heads * config.num_distance_basis)
        self.curves = nn.Parameter(torch.randn(config.num_distance_basis, config.max_dist) * 0.02)

    def ask(self, x: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        return {"rel_proj": self.to_weights(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)}

    def bias(self, read: Read) -> Float[Tensor, "b h n m"]:
        distance, weights = read.distance(read.k.shape[2]), read.asked["rel_proj"]
        bias = weights @ self.curves.to(weights.dtype)
        last = self.config.max_dist - 1
        found = bias.gather(-1, distance.clamp(0, last).expand(*bias.shape[:3], -1))
        return found.masked_fill((distance < 0) | (distance > last), 0)
