"""`l2_distance`: near keys count, not long ones."""

import torch

from ...base.registry import scores
from ...base.shapes import Float, Tensor
from .step import ScoreStep

__all__ = ["L2Distance"]


@scores.register("l2_distance")
class L2Distance(ScoreStep):
    """-|q - k|^2 instead of q.k, multiplied as scores are (https://arxiv.org/abs/2006.04710), memory keys too.

    It is a product of queries and keys that are two channels wider, so that the fused kernel stays.
    """

    def meet(
        self, q: Float[Tensor, "b h n k"], k: Float[Tensor, "b _ m k"]
    ) -> tuple[Float[Tensor, "b h n _"], Float[Tensor, "b _ m _"]]:
        (q2, ones_q), (k2, ones_k) = (squared(t) for t in (q, k))
        return torch.cat((2 * q, -q2, -ones_q), -1), torch.cat((k, ones_k, k2), -1)


def squared(t: Float[Tensor, "b h n k"]) -> tuple[Float[Tensor, "b h n 1"], Float[Tensor, "b h n 1"]]:
    """The squared lengths of vectors, and as many ones."""
    found = t.square().sum(-1, keepdim=True)
    return found, torch.ones_like(found)
