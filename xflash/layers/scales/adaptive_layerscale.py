"""`adaptive_layerscale`: the condition opens and closes each channel of the update."""

import math

from torch import nn

from ...base.frozen import frozen
from ...base.registry import scales
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from ..conditioned import conditioned
from .scale import Scale

__all__ = ["AdaptiveLayerScale"]


@scales.register("adaptive_layerscale")
class AdaptiveLayerScale(Scale):
    """g * f(x), g a sigmoid of a linear map of the condition: beside adaptive norms DiT's adaLN-Zero (2212.09748)."""

    heeds = frozenset({"condition"})

    @frozen
    class Config:
        init: float = flag(
            0.12, "what each channel's gain starts at, whatever the condition", above=0, below=1, tried=(0.3,)
        )

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_gain = nn.Linear(site.dim_condition or site.dim, site.dim)
        nn.init.zeros_(self.to_gain.weight)
        nn.init.constant_(self.to_gain.bias, math.log(config.init / (1 - config.init)))

    def forward(self, update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return conditioned(update, ctx, lambda condition: self.to_gain(condition).sigmoid())
