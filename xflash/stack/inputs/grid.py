"""Where tokens stand that lie in rows and columns, such as the patches of an image."""

from typing import Any

import torch

from ...base.checks import given, is_integral
from ...base.registry import side_inputs
from .side_input import Call, SideInput

__all__ = ["Grid"]


@side_inputs.register("grid")
class Grid(SideInput):
    """(b, n, 2), or (1, n, 2) for all rows alike: the row and the column of each token, integers, given with each call.

    Tokens that are not the caller's stand at (0, 0), which turns nothing.
    """

    needed = True
    example = "torch.arange({tokens}).view(1, -1, 1).expand(1, -1, 2)"

    def wanted(self, call: Call) -> str:
        b, n = call.shape
        return f"give grid=, ({b}, {n}, 2) or (1, {n}, 2), the row and the column of each token"

    def check(self, value: Any, call: Call) -> Any:
        b, n = call.shape
        if not is_integral(value):
            raise TypeError(f"grid must be an integer tensor ({b}, {n}, 2) or (1, {n}, 2), not {given(value)}")
        # Not `in`: traced, it does not compare sizes that are symbols.
        if (
            value.dim() != 3
            or value.shape[1] != n
            or value.shape[2] != 2
            or (value.shape[0] != b and value.shape[0] != 1)
        ):
            raise ValueError(f"grid must be ({b}, {n}, 2) or (1, {n}, 2), not {tuple(value.shape)}")
        return value.long()

    def one_for_all(self, value: torch.Tensor) -> bool:
        return value.dim() != 3 or value.shape[0] == 1
