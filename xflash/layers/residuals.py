"""Residual connections by name: how a branch's output joins the stream."""

from dataclasses import dataclass

import torch
from torch import nn

from ..base.registry import residuals
from ..base.shapes import Float, Tensor
from ..flags.flag import flag

__all__ = ["Add", "LayerScale", "ReZero", "Residual", "ScaledResidual"]


class Residual(nn.Module):
    """Base of the residuals: forward(stream, update) gives the new stream."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to set."""

    def __init__(self, config, dim: int):
        super().__init__()
        self.config = config


residuals.base = Residual


@residuals.register("add")
class Add(Residual):
    """x + f(x)."""

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return x + update


@residuals.register("layerscale")
class LayerScale(Residual):
    """x + g * f(x) with a learned gain per channel that starts small (https://arxiv.org/abs/2103.17239)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        init: float = flag(1e-2, "what each channel's gain starts at", above=0)

    def __init__(self, config, dim: int):
        super().__init__(config, dim)
        self.gain = nn.Parameter(torch.full((dim,), config.init))

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return torch.addcmul(x, update.to(x.dtype), self.gain.to(x.dtype))


@residuals.register("rezero")
class ReZero(Residual):
    """x + a * f(x) with one learned scalar that starts at zero (https://arxiv.org/abs/2003.04887)."""

    def __init__(self, config, dim: int):
        super().__init__(config, dim)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return x + update * self.gain.to(update.dtype)


@residuals.register("scaled")
class ScaledResidual(Residual):
    """g * x + f(x) with a learned gain per channel of the stream (NormFormer, https://arxiv.org/abs/2110.09456)."""

    def __init__(self, config, dim: int):
        super().__init__(config, dim)
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return x * self.gain.to(x.dtype) + update
