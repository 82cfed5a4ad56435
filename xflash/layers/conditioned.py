"""What adaptive norms and scales have in common: a gain for each channel, made of the call's condition."""

from collections.abc import Callable

import torch

from ..base.shapes import Float, Tensor
from ..base.state import Ctx

__all__ = ["conditioned"]


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
