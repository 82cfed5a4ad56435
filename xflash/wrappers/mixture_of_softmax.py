"""`MixtureOfSoftmax`: probabilities that are the mean of several softmaxes."""

from collections.abc import Callable

import torch
from torch import nn

from ..base.shapes import Float, Tensor
from ..generation.sampling import wide

__all__ = ["MixtureOfSoftmax"]


class MixtureOfSoftmax(nn.Module):
    """log sum_i w_i softmax(logits(f_i)): k features f_i of a token, and weights w_i that it says itself (1711.03953).

    One softmax of d features has logits of rank d; a mixture has no such bound.
    """

    def __init__(self, dim: int, k: int):
        super().__init__()
        self.k = k
        self.to_mixture = nn.Linear(dim, dim * k, bias=False)
        self.to_weights = nn.Linear(dim, k, bias=False)

    def forward(self, y: Float[Tensor, "b *n d"], logits: Callable[[Tensor], Tensor]) -> Float[Tensor, "b *n v"]:
        """The log-probabilities, made in float32 at least, in the dtype of the logits."""
        each = logits(self.to_mixture(y).unflatten(-1, (self.k, -1)))
        weights = wide(self.to_weights(y)).log_softmax(-1)
        return torch.logsumexp(wide(each).log_softmax(-1) + weights[..., None], -2).to(each.dtype)

    def extra_repr(self) -> str:
        return f"k={self.k}"
