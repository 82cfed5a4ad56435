"""`reaching`: gradients of zeros for parameters that a call did not use."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..base.shapes import Float, Tensor

__all__ = ["reaching"]


def reaching(y: Float[Tensor, "..."], parameters: Iterable[nn.Parameter]) -> Float[Tensor, "..."]:
    """`y`, from which a gradient reaches each of the parameters: zeros where nothing else does.

    What is added is a sum over nothing: a zero times a parameter would carry its NaN into y.
    """
    if not torch.is_grad_enabled():
        return y
    nothing: Any = sum(local(p).flatten()[:0].sum() for p in parameters if p.requires_grad)
    return y if isinstance(nothing, int) else y + nothing.to(y.dtype)


def local(p: Tensor) -> Tensor:
    """A parameter, or the part of a sharded one that is here, which can be added to a plain tensor."""
    here = getattr(p, "to_local", None)
    return p if here is None else here()
