"""Norms by name: each keeps the shape of what it is called with, and works on its last axis."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..base.registry import norms
from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from ..flags.flag import flag
from .blocks.block import Site
from .part import Part

__all__ = ["LayerNorm", "Norm", "RMSNorm", "ScaleNorm", "SimpleRMSNorm"]


class Norm(Part):
    """Base of the norms: forward(x, ctx), x of any shape whose last axis has the site's width."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        eps: float = flag(1e-5, "added to the mean square (variance) before the root", above=0, tried=(1e-6,))

    @classmethod
    def of(cls, width: int, **flags: Any) -> Any:
        """A norm of its own somewhere in a part, outside of the stack's slots."""
        return cls(cls.Config(**flags), Site(width))

    def start_at(self, size: float) -> "Norm":
        """The norm with its gain started at `size`; ValueError for a norm that has none."""
        gain = getattr(self, "gain", None)
        if gain is None:
            raise ValueError(
                "norm_place='sandwich' starts the norm behind each block small, "
                f"but {type(self).__name__} has no gain: "
                "use a norm with one, such as norm='rmsnorm' or 'scalenorm'"
            )
        nn.init.constant_(gain, size)
        return self


norms.base = Norm


@norms.register("layernorm")
class LayerNorm(Norm):
    """Mean zero, variance one, a gain (and a bias) per channel (https://arxiv.org/abs/1607.06450)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Norm.Config):
        bias: bool = flag(False, "a learned offset beside the gain", tried=(True,))

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.ones(site.dim))
        self.bias = nn.Parameter(torch.zeros(site.dim)) if config.bias else None

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        return F.layer_norm(x, (self.site.dim,), self.gain, self.bias, self.config.eps)


@norms.register("rmsnorm")
class RMSNorm(Norm):
    """Mean square one, a gain per channel (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.site.dim,), self.gain.to(x.dtype), self.config.eps)


@norms.register("simple_rmsnorm")
class SimpleRMSNorm(Norm):
    """Mean square one and no parameter (https://arxiv.org/abs/2307.14995)."""

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.site.dim,), None, self.config.eps)


@norms.register("scalenorm")
class ScaleNorm(Norm):
    """Mean square one and a single gain for all channels (https://arxiv.org/abs/1910.05895)."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.site.dim,), None, self.config.eps) * self.gain.to(x.dtype)
