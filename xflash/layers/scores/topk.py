"""`topk`: each query keeps its best keys only."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ...base.frozen import frozen
from ...base.registry import scores
from ...base.shapes import Float, Tensor
from ...flags.flag import flag
from .step import ScoreStep

__all__ = ["TopK"]


@scores.register("topk")
class TopK(ScoreStep):
    """The k keys with the highest scores have weights, whatever other steps have made of them (1912.11637).

    Of those that a query sees; more of them where scores are equal. `straight_through` (https://arxiv.org/abs/2505.22074):
    gradients are those of the weights of all keys.
    """

    @frozen
    class Config:
        k: int = flag(8, "keys that a query keeps", at_least=1, tried=(3,))
        straight_through: bool = flag(
            False, "gradients as if all keys were kept", paper="https://arxiv.org/abs/2505.22074", tried=(True,)
        )

    def around(self, s: Float[Tensor, "b h n m"], weigh: Callable[[Tensor], Tensor]) -> Float[Tensor, "b h n m"]:
        k = self.config.k
        # As many keys at least as are kept, lest a graph be tied to lengths beyond that.
        least = F.pad(s, (0, k), value=-torch.inf).topk(k, -1).values[..., -1:]
        kept = weigh(s.masked_fill(s < least, -torch.inf))
        if not self.config.straight_through:
            return kept
        soft = weigh(s)
        return kept.detach() + soft - soft.detach()
