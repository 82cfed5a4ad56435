"""The context that blocks attend to, which of its tokens are real, and where they stand."""

from collections.abc import Mapping
from typing import Any

import torch

from ...base.checks import as_mask, given, is_integral
from ...base.registry import blocks, positions, side_inputs
from ..places import users
from .side_input import Call, Door, SideInput

__all__ = ["Context", "ContextMask", "ContextPlaces", "unplaced"]


class OfContext(SideInput):
    """What is given in the first call only: the blocks that attend to it keep it in their states."""

    per = "row"
    must = ""

    def piece(self, value: Any, start: int, end: int) -> Any:
        return value if start == 0 else None


@side_inputs.register("context")
class Context(OfContext):
    """(b, c, width): what is attended to beside the stack's own tokens."""

    example = "torch.randn({rows}, 5, {dim})"

    def asked_by(self, stack: Any) -> bool:
        return any(block.takes_context for block in stack.blocks())

    def missing(self, call: Call) -> None:
        for name in ("context_mask", "context_pos"):
            if name in call.given:
                raise ValueError(f"{name} is given without context")
        takers = [block for block in call.stack.blocks() if block.takes_context]
        if takers and not call.stepping:
            raise ValueError(
                f"the layout {call.stack.layout!r} attends to a context: give context=, of width "
                f"{takers[0].context_width()}"
            )

    def check(self, value: Any, call: Call) -> Any:
        takers = [block for block in call.stack.blocks() if block.takes_context]
        if not takers:
            able = ", ".join(name for name in blocks if blocks[name].takes_context)
            raise ValueError(
                f"context is given, but no block of the layout {call.stack.layout!r} attends to one (blocks that do: "
                f"{able}; cross_attend=True puts one into the default layout)"
            )
        if call.stepping:
            raise ValueError("the state holds the context already: give context in the first call only")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"context must be a floating-point tensor (batch, tokens, width), not {given(value)}")
        for block in takers:
            block.check_context(value, call.batch)
        if "context_mask" not in call.given:
            return value
        # What stands at masked places may be anything, and zero times NaN is NaN.
        mask = as_mask(call.given["context_mask"], tuple(value.shape[:2]), "context_mask")
        return value.masked_fill(~mask[..., None], 0)


@side_inputs.register("context_mask")
class ContextMask(OfContext):
    """(b, c), True = real token."""

    def check(self, value: Any, call: Call) -> Any:
        return as_mask(value, tuple(call.given["context"].shape[:2]), "context_mask")


@side_inputs.register("context_pos")
class ContextPlaces(OfContext):
    """(c,) or (b, c) integers: where the context's tokens stand."""

    def missing(self, call: Call) -> None:
        if "context" in call.given and (idle := unplaced(call.stack)):
            raise ValueError(
                f"pos={idle!r} has nothing to turn in the layout {call.stack.layout!r} unless the context's tokens "
                "have positions: give context_pos"
            )

    def check(self, value: Any, call: Call) -> Any:
        """As (1 | b, c)."""
        batch, c = call.given["context"].shape[:2]
        named = [name for name, p in call.stack.positions.items() if p.places_context]
        if not any(block.takes_context for name in named for block in users(call.stack, name)):
            able = " or ".join(name for name in positions if positions[name].places_context)
            raise ValueError(f"context_pos is for {able} positions, and this stack has none")
        for p in call.stack.positions.values():
            if refused := p.refuses_ahead():
                raise ValueError(f"context_pos and {refused[0]} exclude each other: {refused[1]} without bound")
        if not is_integral(value):
            raise TypeError(f"context_pos must be an integer tensor ({c},) or ({batch}, {c}), not {given(value)}")
        if tuple(value.shape) not in ((c,), (1, c), (batch, c)):
            raise ValueError(f"context_pos must be ({c},) or ({batch}, {c}), not {tuple(value.shape)}")
        return value.long() if value.dim() == 2 else value[None].long()

    def pack(self, value: Any, door: Door) -> Mapping[str, Any]:
        # Tokens stand behind the memory tokens, so that the context's have to move as far.
        return {self.name: value + door.memory if door.memory else value}

    def one_for_all(self, value: torch.Tensor) -> bool:
        return value.dim() == 1 or value.shape[0] == 1


def unplaced(stack: Any) -> str:
    """A position of the stack that has only a context's tokens to place, and is not told where they stand; or ''."""
    for name, position in stack.positions.items():
        if position.places_context and all(block.takes_context for block in users(stack, name)):
            return positions.name_of(type(position))
    return ""
