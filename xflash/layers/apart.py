"""`Apart`: norms in front of blocks in parallel, of which some have one of their own (GPT-NeoX)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from .norms import Norm

__all__ = ["Apart"]


class Apart(nn.Module):
    """A tensor for each of several blocks (b, n, members, d): normed by its own norm, or by that of all others.

    shared: None where these read the stream as it is, or where there are no others.
    """

    def __init__(self, shared: Norm | None, own: Mapping[int, Norm], members: int):
        super().__init__()
        self.shared, self.members = shared, members
        self.own = nn.ModuleDict({str(i): norm for i, norm in own.items()})

    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx | None = None) -> Float[Tensor, "b n m d"]:
        others: Any = x if self.shared is None else self.shared(x, ctx)
        found = [self.own[i](x, ctx) if i in self.own else others for i in map(str, range(self.members))]
        return torch.stack(found, 2)
