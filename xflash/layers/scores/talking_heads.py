"""`talking_heads`: heads mixed with each other, before and behind the softmax."""

from typing import Any

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import scores
from ...base.shapes import Float, Tensor
from ...flags.flag import flag
from .step import Read, ScoreStep

__all__ = ["TalkingHeads"]


@scores.register("talking_heads")
class TalkingHeads(ScoreStep):
    """Scores and weights of a head as learned sums of those of all heads (https://arxiv.org/abs/2003.02436).

    Biases by position stay each head's own. A head starts as itself alone.
    """

    @frozen
    class Config:
        pre: bool = flag(True, "mixes the scores, before the softmax", tried=({"pre": False},))
        post: bool = flag(True, "mixes the weights, behind the softmax", tried=({"post": False},))

    def __init__(self, config: Any, site: Any, heads: int, kind: str):
        super().__init__(config, site, heads, kind)
        if not config.pre and not config.post:
            name = f"{kind}_talking_heads"
            raise ValueError(f"{name}_pre=False and {name}_post=False leave nothing to {kind}_scores='talking_heads'")
        self.pre = nn.Parameter(torch.eye(heads)) if config.pre else None
        self.post = nn.Parameter(torch.eye(heads)) if config.post else None

    def before(self, s: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        if self.pre is None:
            return s
        return mixed(s, self.pre) if read.bias is None else mixed(s - read.bias, self.pre) + read.bias

    def behind(self, weights: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        return weights if self.post is None else mixed(weights, self.post)


def mixed(t: Float[Tensor, "b h n m"], by: Float[Tensor, "h2 h"]) -> Float[Tensor, "b h2 n m"]:
    """Each head as the sum of all heads that a row of `by` weighs."""
    return torch.einsum("gh,bhnm->bgnm", by.to(t.dtype), t)
