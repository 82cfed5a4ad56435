"""`Scale`: the interface of what multiplies a branch's update; `layerscale` and `rezero`."""

from collections.abc import Sequence

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import scales
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from ..blocks.block import Block
from ..part import Part

__all__ = ["LayerScale", "ReZero", "Scale"]


class Scale(Part):
    """Base of the scales: forward(update, ctx) gives the update that joins the stream."""

    calls = ("update", "ctx")

    @classmethod
    def fits(cls, blocks: Sequence[type[Block]]) -> bool:
        """Whether one stands behind these blocks, which are in parallel where there are several."""
        return True


scales.base = Scale


@scales.register("layerscale")
class LayerScale(Scale):
    """g * f(x) with a learned gain per channel that starts small (https://arxiv.org/abs/2103.17239)."""

    @frozen
    class Config:
        init: float = flag(1e-2, "what each channel's gain starts at", above=0, tried=(0.1,))

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.full((site.dim,), config.init))

    def forward(self, update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return update * self.gain.to(update.dtype)


@scales.register("rezero")
class ReZero(Scale):
    """a * f(x) with one learned scalar that starts at zero (https://arxiv.org/abs/2003.04887)."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return update * self.gain.to(update.dtype)
