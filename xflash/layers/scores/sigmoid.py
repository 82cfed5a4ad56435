"""`sigmoid`: each key weighed for itself."""

import torch

from ...base.frozen import frozen
from ...base.registry import weight_fns
from ...base.shapes import Float, Tensor
from ...flags.flag import flag
from .step import WeightFn

__all__ = ["Sigmoid"]


@weight_fns.register("sigmoid")
class Sigmoid(WeightFn):
    """1 / (1 + exp(-s - b)), no key at the cost of another (https://arxiv.org/abs/2409.04431)."""

    @frozen
    class Config:
        bias: float = flag(
            -4.0, "b: minus the logarithm of how many keys there are, about (x-transformers has 0)", tried=(-2.0,)
        )

    def forward(self, s: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        return (s.to(torch.promote_types(s.dtype, torch.float32)) + self.config.bias).sigmoid()
