"""`adaptive_layerscale`: the condition opens and closes each channel of the update."""

from dataclasses import dataclass

from torch import nn

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

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bias: float = flag(-2.0, "what the map's bias starts at; its weights start at zero")

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_gain = nn.Linear(site.dim_condition or site.dim, site.dim)
        nn.init.zeros_(self.to_gain.weight)
        nn.init.constant_(self.to_gain.bias, config.bias)

    def forward(self, update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return conditioned(update, ctx, lambda condition: self.to_gain(condition).sigmoid())
