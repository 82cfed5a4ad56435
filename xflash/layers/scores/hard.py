"""`hard`: one key a query."""

import torch

from ...base.registry import weight_fns
from ...base.shapes import Float, Tensor
from ..kernels.softmax import softmax
from .step import WeightFn

__all__ = ["Hard"]


@weight_fns.register("hard")
class Hard(WeightFn):
    """One for the key with the highest score, zero for the others; gradients are the softmax's (straight through).

    https://arxiv.org/abs/1308.3432, as x-transformers' attn_hard.
    """

    def forward(self, s: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        soft = softmax(s)
        one = torch.zeros_like(soft).scatter(-1, s.argmax(-1, keepdim=True), 1.0)
        return one + soft - soft.detach()
