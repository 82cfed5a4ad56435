"""`PairedHead`: two class tokens, each with a head of its own, as models have that learned from a teacher too."""

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from ..base.roles import Role
from ..base.shapes import Float, Tensor

__all__ = ["PairedHead"]


class PairedHead(nn.Module):
    """The mean of the logits of two embeddings, each by its own projection (DeiT, https://arxiv.org/abs/2012.12877)."""

    roles: ClassVar[Mapping[str, Role]] = {"first": "head", "second": "head"}

    def __init__(self, first: nn.Linear, second: nn.Linear):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, y: Float[Tensor, "b 2 d"]) -> Float[Tensor, "b v"]:
        return (self.first(y[:, 0]) + self.second(y[:, 1])) / 2
