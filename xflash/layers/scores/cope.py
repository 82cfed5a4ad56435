"""`cope`: positions that count the keys that matter to the query."""

from typing import Any

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import scores
from ...base.shapes import Float, Tensor
from ...flags.flag import flag
from .step import Read, ScoreStep
from .talking_heads import mixed

__all__ = ["CoPE"]


@scores.register("cope")
class CoPE(ScoreStep):
    """Contextual position encoding (https://arxiv.org/abs/2405.18719): q.e(p) is added to the score of a key.

    p is the sum of the sigmoids of the scores so far, biases included, of the keys from this one up to the query that
    the query sees; e(p) lies between the learned vectors of the two whole numbers around p. Keys ahead, which only a
    prefix shows, are at 0; memory keys are at none.
    """

    needs = frozenset({"causal"})
    takes_queries = True

    @frozen
    class Config:
        positions: int = flag(64, "learned positions, what is farther away being at the last", at_least=2, tried=(3,))
        talking_heads: bool = flag(False, "gates are made of learned sums of the scores of all heads", tried=(True,))

    def __init__(self, config: Any, site: Any, heads: int, kind: str):
        super().__init__(config, site, heads, kind)
        self.talk = nn.Parameter(torch.eye(heads)) if config.talking_heads else None
        self.e = nn.Parameter(torch.zeros(config.positions, site.dim_head))

    def before(self, s: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        mixing = s if self.talk is None else mixed(s, self.talk)
        gates = mixing.to(torch.promote_types(s.dtype, torch.float32)).sigmoid()
        gates = read.shown(gates)
        memory, tokens = gates.split((read.memory, s.shape[-1] - read.memory), -1)
        if read.ctx.prefix is not None:
            tokens = tokens.masked_fill(read.distance(tokens.shape[-1]) < 0, 0)
        p = tokens.flip(-1).cumsum(-1).flip(-1).clamp(max=self.config.positions - 1)
        near = p.detach().floor()
        by_number = (read.q @ self.e.mT.to(read.q.dtype)).to(p.dtype)
        below, above = (by_number.gather(-1, t.long()) for t in (near, p.detach().ceil()))
        return s + torch.cat((torch.zeros_like(memory), torch.lerp(below, above, p - near)), -1).to(s.dtype)
