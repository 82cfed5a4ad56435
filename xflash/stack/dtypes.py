"""What is said about tensors whose dtypes are not the weights', where a call fails for it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..base.checks import check_dtype, main_weight
from ..base.shapes import Tensor
from ..base.state import StackState, tensors
from ..layers.blocks.block import Block

__all__ = ["check_dtypes", "explained"]


def explained(
    stack: Any, x: Tensor, state: StackState | None, mask: Tensor | None, beside: Mapping[str, Any], **options: Any
) -> tuple[Tensor, StackState | None]:
    """`stack.run`; where it fails and dtypes differ, a TypeError that says which.

    Only then: sharded and quantised models, whose weights look different until they are used, run as they are. What
    is compiled is looked at while it is traced, for there an error has no words of its own.
    """
    if torch.compiler.is_compiling():
        if plain_weights(stack.blocks()):
            check_dtypes(stack, x, state, beside)
        return stack.run(x, state, mask, beside, **options)
    try:
        return stack.run(x, state, mask, beside, **options)
    except RuntimeError:
        try:
            check_dtypes(stack, x, state, beside)
        except TypeError as reason:
            raise reason from None
        raise


def plain_weights(blocks: Iterable[Block]) -> bool:
    """Whether the weights are what they look like."""
    layers = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    return all(type(m) is nn.Linear and type(m.weight) is nn.Parameter for m in layers)


def check_dtypes(stack: nn.Module, x: Tensor, state: StackState | None, beside: Mapping[str, Any]) -> None:
    """TypeError for tensors of another dtype than that of the stack's weights; under autocast all will do."""
    weight = main_weight(stack)
    if weight is None or torch.is_autocast_enabled(x.device.type):
        return
    model = weight.dtype
    check_dtype("x is", "x", x.dtype, model)
    for name, value in beside.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            check_dtype(f"the {name} is", name, value.dtype, model)
    for t in tensors(state):
        # Sums over the sequence are kept in float32 at least.
        if t.is_floating_point() and t.dtype != torch.promote_types(model, torch.float32):
            check_dtype("the state holds", "state", t.dtype, model)
