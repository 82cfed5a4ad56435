"""Norms by name: each keeps the shape of what it is called with, and works on its last axis."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..base.frozen import frozen
from ..base.registry import norms
from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from ..flags.flag import flag
from .part import Part
from .site import Site

__all__ = ["LayerNorm", "Norm", "RMSNorm", "ScaleNorm", "SimpleRMSNorm", "rms_normed"]


class Norm(Part):
    """Base of the norms: forward(x, ctx), x of any shape whose last axis has the site's width."""

    @frozen
    class Config:
        eps: float = flag(1e-5, "added to the mean square (variance) before the root", above=0, tried=(1e-6,))

    @classmethod
    def of(cls, width: int, **flags: Any) -> Any:
        """A norm of its own somewhere in a part, outside of the stack's slots."""
        return cls(cls.Config(**flags), Site(width))

    def start_at(self, size: float, place: str) -> "Norm":
        """The norm with its gain started at `size`; ValueError for a norm that has none, said of its `norm_place`."""
        gain = getattr(self, "gain", None)
        if gain is None:
            raise ValueError(
                f"norm_place={place!r} starts the norm behind each block small, "
                f"but {type(self).__name__} has no gain: "
                "use a norm with one, such as norm='rmsnorm' or 'scalenorm'"
            )
        nn.init.constant_(gain, size)
        return self


norms.base = Norm


def rms_normed(
    x: Float[Tensor, "... d"], gain: Float[Tensor, " d"], eps: float, unit_offset: bool = False
) -> Float[Tensor, "... d"]:
    """x with mean square one times its gain, or 1 + gain; a sum of 1 and a small gain needs float32."""
    if not unit_offset:
        return F.rms_norm(x, gain.shape, gain.to(x.dtype), eps)
    exact = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(exact), gain.shape, 1 + gain.to(exact), eps).to(x.dtype)


class Gained(Norm):
    """Base of the norms with a learned gain, of each channel or of all."""

    @frozen
    class Config(Norm.Config):
        unit_offset: bool = flag(
            False,
            "the gain is 1 + what is learned, which starts at zero and decays to it (Gemma)",
            paper="https://arxiv.org/abs/2403.08295",
            tried=(True,),
        )

    def __init__(self, config, site, gains: tuple[int, ...] | None = None):
        super().__init__(config, site)
        start = 0.0 if config.unit_offset else 1.0
        self.gain = nn.Parameter(torch.full((site.dim,) if gains is None else gains, start))

    def start_at(self, size: float, place: str) -> Norm:
        return super().start_at(size - 1 if self.config.unit_offset else size, place)


@norms.register("layernorm")
class LayerNorm(Gained):
    """Mean zero, variance one, a gain (and a bias) per channel (https://arxiv.org/abs/1607.06450)."""

    @frozen
    class Config(Gained.Config):
        bias: bool = flag(False, "a learned offset beside the gain", tried=(True,))

    def __init__(self, config, site):
        super().__init__(config, site)
        self.bias = nn.Parameter(torch.zeros(site.dim)) if config.bias else None

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        gain, bias = self.gain, self.bias
        if not self.config.unit_offset:
            return F.layer_norm(x, (self.site.dim,), gain, bias, self.config.eps)
        exact = torch.promote_types(x.dtype, torch.float32)
        bias = None if bias is None else bias.to(exact)
        return F.layer_norm(x.to(exact), (self.site.dim,), 1 + gain.to(exact), bias, self.config.eps).to(x.dtype)


@norms.register("rmsnorm")
class RMSNorm(Gained):
    """Mean square one, a gain per channel (https://arxiv.org/abs/1910.07467)."""

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        return rms_normed(x, self.gain, self.config.eps, self.config.unit_offset)


@norms.register("simple_rmsnorm")
class SimpleRMSNorm(Norm):
    """Mean square one and no parameter (https://arxiv.org/abs/2307.14995)."""

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.site.dim,), None, self.config.eps)


@norms.register("scalenorm")
class ScaleNorm(Gained):
    """Mean square one and a single gain for all channels (https://arxiv.org/abs/1910.05895)."""

    def __init__(self, config, site):
        super().__init__(config, site, ())

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        gain = 1 + self.gain if self.config.unit_offset else self.gain
        return F.rms_norm(x, (self.site.dim,), None, self.config.eps) * gain.to(x.dtype)
