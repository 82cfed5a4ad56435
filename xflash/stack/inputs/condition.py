"""What adaptive parts are conditioned on: a vector for each row, or one for each token."""

from collections.abc import Mapping
from typing import Any

import torch

from ...base.checks import as_mask, given
from ...base.registry import side_inputs
from .side_input import Call, Door, SideInput

__all__ = ["Condition", "ConditionMask"]


@side_inputs.register("condition")
class Condition(SideInput):
    """(b, width), which the state carries on, or (b, n, width), given with each call.

    Tokens that are not the caller's, memory tokens and embeddings in front, have none.
    """

    needed = True
    example = "torch.randn({rows}, {dim})"

    def wanted(self, call: Call) -> str:
        b, n, width = *call.shape, call.stack.dim_condition
        again = "; one for each token is given with each call" if call.stepping else ""
        return f"give condition=, ({b}, {width}) or ({b}, {n}, {width}){again}"

    def check(self, value: Any, call: Call) -> Any:
        b, n, width = *call.shape, getattr(call.stack, "dim_condition", None)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(
                f"condition must be a floating-point tensor ({b}, {width}) or ({b}, {n}, {width}), not {given(value)}"
            )
        if tuple(value.shape) not in ((b, width), (b, n, width)):
            raise ValueError(
                f"condition must be ({b}, {width}) or ({b}, {n}, {width}), not {tuple(value.shape)}; dim_condition "
                "sets another width"
            )
        return value

    def pack(self, value: Any, door: Door) -> Mapping[str, Any]:
        packed = {self.name: value if value.dim() == 2 else self.packed(value, door)}
        if door.memory:
            packed["condition_mask"] = (torch.arange(door.memory + door.n, device=door.device) >= door.memory)[None]
        return packed

    def behind(self, value: Any, count: int, shape: tuple[int, int]) -> Mapping[str, Any]:
        mask = torch.ones(shape, dtype=torch.bool, device=getattr(value, "device", None))
        row = not isinstance(value, torch.Tensor) or value.dim() == 2
        return {self.name: value if row else self.fronted(value, count), "condition_mask": self.fronted(mask, count)}

    def per_token(self, value: Any, n: int) -> bool:
        return isinstance(value, torch.Tensor) and value.dim() > 2

    def piece(self, value: Any, start: int, end: int) -> Any:
        if value.dim() > 2:
            return value[:, start:end]
        return value if start == 0 else None

    def carried(self, value: Any) -> bool:
        return value.dim() == 2


@side_inputs.register("condition_mask")
class ConditionMask(SideInput):
    """(b, n), True = the token has the condition, as it is without a mask."""

    must = ""

    def check(self, value: Any, call: Call) -> Any:
        if "condition" not in call.stack.heeded:
            raise ValueError("condition_mask is given, but no part of the stack takes a condition")
        return as_mask(value, call.shape, "condition_mask")
