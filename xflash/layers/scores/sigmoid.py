"""`sigmoid`: each key weighed for itself."""

import torch

from ...base.registry import weight_fns
from ...base.shapes import Float, Tensor
from .step import WeightFn

__all__ = ["Sigmoid"]


@weight_fns.register("sigmoid")
class Sigmoid(WeightFn):
    """1 / (1 + exp(-s)), no key at the cost of another (https://arxiv.org/abs/2409.04431, without its bias)."""

    def forward(self, s: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        return s.to(torch.promote_types(s.dtype, torch.float32)).sigmoid()
