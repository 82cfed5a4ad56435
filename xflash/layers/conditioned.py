"""What adaptive norms and scales have in common: a gain for each channel, made of the call's condition."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from .norms import Norm

__all__ = ["AdaptiveNorm", "conditioned"]


def conditioned(
    x: Float[Tensor, "b n *s d"], ctx: Ctx | None, gain: Callable[[Float[Tensor, "... c"]], Float[Tensor, "... d"]]
) -> Float[Tensor, "b n *s d"]:
    """x times the `gain` of each token's condition, (b, c) or (b, n, c); tokens that have none stay as they are.

    What a stack takes in itself, such as memory tokens in front of a row that is reset, has no condition at all.
    """
    condition = None if ctx is None else ctx.beside.get("condition")
    if ctx is None or condition is None:
        return x
    gains = gain(condition).to(x.dtype)
    gains = gains if condition.dim() > 2 else gains[:, None]
    there = ctx.beside.get("condition_mask")
    gains = gains if there is None else torch.where(there[..., None], gains, 1.0)
    # Streams and views of a token have axes of their own.
    return x * gains.view(*gains.shape[:2], *[1] * (x.dim() - 3), gains.shape[2])


class AdaptiveNorm(Norm):
    """Base of the norms whose gain is a linear map of the condition, 1 at the start (https://arxiv.org/abs/2212.09748)."""

    heeds = frozenset({"condition"})

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_gain = nn.Linear(site.dim_condition or site.dim, site.dim, bias=False)
        nn.init.zeros_(self.to_gain.weight)

    @abstractmethod
    def plain(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """x normed, without a gain."""

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        return conditioned(self.plain(x), ctx, lambda condition: 1 + self.to_gain(condition))
