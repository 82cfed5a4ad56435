"""Norms by name: each is built from its Config and the width it works on, and keeps the shape."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..base.registry import norms
from ..base.shapes import Float, Tensor
from ..flags.flag import flag

__all__ = ["LayerNorm", "Norm", "RMSNorm", "ScaleNorm", "SimpleRMSNorm"]


class Norm(nn.Module):
    """Base of the norms: a Config with `eps`, and the width `dim` as the second constructor argument."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        eps: float = flag(1e-5, "added to the mean square (variance) before the root", above=0)

    def __init__(self, config, dim: int):
        super().__init__()
        self.config = config
        self.dim = dim

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

    def extra_repr(self) -> str:
        return ", ".join([str(self.dim), *(f"{name}={value!r}" for name, value in vars(self.config).items())])


norms.base = Norm


@norms.register("layernorm")
class LayerNorm(Norm):
    """Mean zero, variance one, a gain (and a bias) per channel (https://arxiv.org/abs/1607.06450)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Norm.Config):
        bias: bool = flag(False, "a learned offset beside the gain")

    def __init__(self, config, dim: int):
        super().__init__(config, dim)
        self.gain = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if config.bias else None

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.layer_norm(x, (self.dim,), self.gain, self.bias, self.config.eps)


@norms.register("rmsnorm")
class RMSNorm(Norm):
    """Mean square one, a gain per channel (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, config, dim: int):
        super().__init__(config, dim)
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.dim,), self.gain.to(x.dtype), self.config.eps)


@norms.register("simple_rmsnorm")
class SimpleRMSNorm(Norm):
    """Mean square one and no parameter (https://arxiv.org/abs/2307.14995)."""

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.dim,), None, self.config.eps)


@norms.register("scalenorm")
class ScaleNorm(Norm):
    """Mean square one and a single gain for all channels (https://arxiv.org/abs/1910.05895)."""

    def __init__(self, config, dim: int):
        super().__init__(config, dim)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.dim,), None, self.config.eps) * self.gain.to(x.dtype)
