"""`scaled`: a gain on the stream."""

import torch
from torch import nn

from ...base.registry import joins
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from .join import Join

__all__ = ["Scaled", "ScaledResidual"]


@joins.register("scaled")
class Scaled(Join):
    """g * x + f(x) with a learned gain per channel of the stream (NormFormer, https://arxiv.org/abs/2110.09456)."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return x * self.gain.to(x.dtype) + update


# The name that 0.1.0 had for it.
ScaledResidual = Scaled
