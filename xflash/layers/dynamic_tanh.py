"""`dynamic_tanh`: a tanh in the place of a norm."""

import torch
from torch import nn

from ..base.frozen import frozen
from ..base.registry import norms
from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from ..flags.flag import flag
from .norms import Norm

__all__ = ["DynamicTanh"]


@norms.register("dynamic_tanh")
class DynamicTanh(Norm):
    """g tanh(a x) + b, with one learned number a, and a gain and an offset a channel (2503.10622)."""

    @frozen
    class Config:
        alpha: float = flag(
            1.0,
            "what the number starts at that tokens are multiplied by (the paper: 0.5)",
            above=0,
            tried="weights that are moved are tried with any start",
        )

    def __init__(self, config, site):
        super().__init__(config, site)
        self.alpha = nn.Parameter(torch.full((), config.alpha))
        self.gain, self.bias = nn.Parameter(torch.ones(site.dim)), nn.Parameter(torch.zeros(site.dim))

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        bounded = (x * self.alpha.to(x.dtype)).tanh()
        return bounded * self.gain.to(x.dtype) + self.bias.to(x.dtype)
