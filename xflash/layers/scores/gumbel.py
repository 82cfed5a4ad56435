"""`gumbel`: keys drawn by chance while training."""

import torch

from ...base.frozen import frozen
from ...base.registry import weight_fns
from ...base.shapes import Float, Tensor
from ...flags.flag import flag
from ..kernels.softmax import softmax
from .step import WeightFn

__all__ = ["Gumbel"]


@weight_fns.register("gumbel")
class Gumbel(WeightFn):
    """In training each query draws a key by its weights (https://arxiv.org/abs/1611.01144); otherwise their softmax.

    Gradients are those of the softmax of the scores with the noise that drew it.
    """

    needs = frozenset({"chance"})

    @frozen
    class Config:
        temperature: float = flag(1.0, "the lower, the nearer the softmax is to what was drawn", above=0, tried=(0.5,))
        hard: bool = flag(True, "the key that was drawn alone has weight, not that softmax", tried=(False,))

    def forward(self, s: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        if not self.training:
            return softmax(s)
        noise = -torch.empty_like(s, dtype=torch.promote_types(s.dtype, torch.float32)).exponential_().log()
        soft = softmax((s + noise) / self.config.temperature)
        if not self.config.hard:
            return soft
        drawn = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return drawn + soft - soft.detach()
