"""`Given`: one's own function from scores to weights."""

from collections.abc import Callable
from typing import Any

import torch

from ...base.registry import weight_fns
from ...base.shapes import Float, Tensor
from .step import WeightFn

__all__ = ["Given", "weight_fn"]


class Given(WeightFn):
    """A function of scores (b, h, n, m), -inf where a key is not seen, which has no weight whatever it gives there.

    Keys are the last axis; how many there are, hidden ones included, is not for it to count.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        super().__init__(self.Config())
        self.fn = fn

    def forward(self, s: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        s = s.to(torch.promote_types(s.dtype, torch.float32))
        return self.fn(s).masked_fill(s == -torch.inf, 0)


def weight_fn(chosen: str | Callable, site: Any) -> WeightFn:
    """The function of a name, with the Config that the site has for it, or one that is given."""
    if not isinstance(chosen, str):
        return Given(chosen)
    fn = weight_fns[chosen]
    return fn(site.parts.get(chosen) or fn.Config())
