"""Looks at the values of tensors, where they can be had and make nothing wait."""

from typing import Any

import torch

from .operator import operator
from .shapes import Tensor

__all__ = ["has_values", "is_exporting", "may_look", "transformed", "transformed_further", "within"]

# torch before 2.6 cannot tell an exported graph from a compiled one.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def transformed() -> bool:
    """Whether a transform of torch.func (jvp, grad, vmap ...) is at work."""
    return torch._C._are_functorch_transforms_active()


def transformed_further() -> bool:
    """Whether transforms of torch.func ask for more than gradients: along directions, of each row, of gradients."""
    if not transformed() or torch.compiler.is_compiling():
        return transformed()
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return len(levels) > 1 or any(level.key() != torch._C._functorch.TransformType.Grad for level in levels)


def has_values(t: Tensor) -> bool:
    """Whether `t` has values: not while torch compiles or traces, and not as one of the rows that vmap is at."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta:
        return False
    inside: Any = torch._C._functorch
    while inside.is_functorch_wrapped_tensor(t) and not inside.is_batchedtensor(t):
        t = inside.get_unwrapped(t)
    return not inside.is_functorch_wrapped_tensor(t)


def may_look(t: Tensor) -> bool:
    """Whether a look at the values of `t` is possible and costs nothing: a GPU would have to finish first."""
    return t.device.type == "cpu" and has_values(t)


def within(t: Tensor, low: int, high: int, sentence: str, name: str = "") -> Tensor:
    """The integers `t`, to be gone on with; ValueError if some, on a CPU, are below `low` or above `high`.

    `sentence` may have {name}, {least}, {most}, {past} (most + 1), {wrong}, {high} and {count} (high + 1) in it. A
    compiled graph looks when it runs; where values cannot be looked at (`may_look`), and in exported graphs, nobody
    does.
    """
    if may_look(t):
        refuse_outside(t, low, high, sentence, name)
    elif torch.compiler.is_compiling() and t.device.type == "cpu" and not (transformed() or is_exporting()):
        return look_within(t, low, high, sentence, name)
    return t


def refuse_outside(t: Tensor, low: int, high: int, sentence: str, name: str) -> None:
    if not t.numel():
        return
    least, most = t.min().item(), t.max().item()
    if least < low or most > high:
        wrong = least if least < low else most
        found = {"least": least, "most": most, "past": most + 1, "wrong": wrong}
        raise ValueError(sentence.format(name=name, high=high, count=high + 1, **found))


@operator("look_within")
def look_within(t: Tensor, low: int, high: int, sentence: str, name: str) -> Tensor:
    """A copy of `t`, which graphs read in its place: what nobody reads would be left out of them."""
    refuse_outside(t, low, high, sentence, name)
    return t.clone()


@look_within.register_fake
def _(t, low, high, sentence, name):
    return torch.empty_like(t)
