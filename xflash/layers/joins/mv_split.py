"""`mv_split`: an update's mean and what varies around it join the stream each with a gain of its own."""

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import joins
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .join import Join

__all__ = ["MVSplit"]


@joins.register("mv_split")
class MVSplit(Join):
    """x + b (u - mean u) + a (mean u - mean x), u being f(x): the mean moves towards the update's (2605.06169).

    Means are those of each token's channels, so that no token waits for another; a and b are learned, one a channel.
    """

    @frozen
    class Config:
        alpha: float = flag(
            0.0, "what the gains of the mean start at", tried="weights that are moved are tried with any start"
        )
        beta: float = flag(
            0.03,
            "what the gains of all around it start at",
            above=0,
            tried="weights that are moved are tried with any start",
        )

    def __init__(self, config, site):
        super().__init__(config, site)
        self.alpha = nn.Parameter(torch.full((site.dim,), config.alpha))
        self.beta = nn.Parameter(torch.full((site.dim,), config.beta))

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        mean = update.mean(-1, keepdim=True)
        alpha, beta = self.alpha.to(x.dtype), self.beta.to(x.dtype)
        return x + (update - mean) * beta + (mean - x.mean(-1, keepdim=True)) * alpha
