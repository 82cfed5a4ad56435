"""What blocks that attend to a context carry on: its keys and values, computed once."""

from typing import NamedTuple

from ..shapes import Bool, Float, Tensor
from ..state import Ctx

__all__ = ["Context", "context_mask"]


class Context(NamedTuple):
    """Keys and values (b, h, c, width) of a context, which of its tokens are real, and whether the keys are turned."""

    k: Float[Tensor, "b h c k"]
    v: Float[Tensor, "b h c e"]
    mask: Bool[Tensor, "b c"] | None
    turned: bool = False


def context_mask(held: Context) -> Bool[Tensor, "b 1 1 c"] | None:
    """The mask of a context as it broadcasts to scores (b, h, n, c)."""
    return None if held.mask is None else held.mask[:, None, None]


def source(ctx: Ctx) -> Float[Tensor, "b c _"]:
    """The context of this call; ValueError where the stack was given none."""
    if ctx.context is None:
        raise ValueError("this block attends to a context, but the call has none")
    return ctx.context
