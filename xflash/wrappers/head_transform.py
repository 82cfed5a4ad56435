"""`HeadTransform`: what masked language models have between a stack and the projection to the vocabulary."""

from collections.abc import Callable

from torch import nn

from ..base.checks import shown
from ..base.registry import activations, nearest
from ..base.shapes import Float, Tensor
from ..layers.norms import LayerNorm

__all__ = ["HeadTransform"]


class HeadTransform(nn.Module):
    """A linear map, an activation and a LayerNorm (BERT, https://arxiv.org/abs/1810.04805)."""

    def __init__(self, dim: int, activation: str, eps: float, bias: bool):
        super().__init__()
        if activation not in activations:
            raise ValueError(f"head_transform has an {activations.unknown(activation)}")
        self.dense = nn.Linear(dim, dim, bias=bias)
        self.activation = chosen(activation)
        self.norm = LayerNorm.of(dim, eps=eps, bias=bias)

    def forward(self, y: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
        return self.norm(self.activation(self.dense(y)))


def chosen(activation: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name; ValueError, with the argument's, for one that is not registered."""
    if activation not in activations:
        known = ", ".join(map(repr, activations))
        raise ValueError(
            f"head_transform={shown(activation)} is no activation{nearest(activation, activations)} (known: {known})"
        )
    return activations[activation]
