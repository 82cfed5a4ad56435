"""`adaptive_layernorm`: the gain of each channel is a linear map of the call's condition."""

import torch.nn.functional as F
from torch import nn

from ..base.registry import norms
from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from .conditioned import conditioned
from .norms import Norm

__all__ = ["AdaptiveLayerNorm"]


@norms.register("adaptive_layernorm")
class AdaptiveLayerNorm(Norm):
    """Mean zero, variance one, a gain that the condition says, 1 at the start (DiT, https://arxiv.org/abs/2212.09748)."""

    heeds = frozenset({"condition"})

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_gain = nn.Linear(site.dim_condition or site.dim, site.dim, bias=False)
        nn.init.zeros_(self.to_gain.weight)

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        y = F.layer_norm(x, (self.site.dim,), eps=self.config.eps)
        return conditioned(y, ctx, lambda condition: 1 + self.to_gain(condition))
