"""What states are made of: tensors and plain values in (named) tuples, gone through as one."""

import operator
from collections.abc import Callable
from typing import Any

import torch

from .looks import transformed
from .shapes import Tensor

__all__ = ["again", "first_tensor", "own", "row_count", "tensors", "tree_map"]

# What a state may hold beside tensors.
PLAIN = (bool, int, float, str, torch.dtype, torch.device)


def tree_map(fn: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Applies `fn` to every tensor of a state made of (named) tuples, None and plain values."""
    if isinstance(state, torch.Tensor):
        return fn(state)
    if isinstance(state, tuple):
        return again(state, [tree_map(fn, part) for part in state])
    return state


def again(state: tuple, parts: list) -> Any:
    """A (named) tuple of the kind of `state` with other parts."""
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def own(state: Any, before: Any = None) -> Any:
    """`state` with nothing else in the storages of its tensors: what is part of something bigger is copied.

    Parts that are those of `before`, the state that was gone on from, are not looked at. TypeError for a part that
    would not be reordered, moved or detached with the others.
    """
    if state is None or state is before:
        return state
    if torch.compiler.is_dynamo_compiling() or transformed():
        return contiguous(state, before)
    if isinstance(state, torch.Tensor):
        return state if alone(state) else state.clone(memory_format=torch.contiguous_format)
    if isinstance(state, tuple):
        known = before if isinstance(before, tuple) and len(before) == len(state) else (None,) * len(state)
        if all(map(operator.is_, state, known)):
            return state
        parts = [own(part, held) for part, held in zip(state, known, strict=True)]
        return state if all(map(operator.is_, parts, state)) else again(state, parts)
    if isinstance(state, PLAIN):
        return state
    raise TypeError(f"a state is made of tensors and plain values in (named) tuples, not of {type(state).__name__}")


def contiguous(state: Any, before: Any) -> Any:
    """`state` with its tensors whole, but for those of `before`."""
    if isinstance(state, torch.Tensor):
        return state if state is before else state.contiguous()
    if isinstance(state, tuple):
        known = before if isinstance(before, tuple) and len(before) == len(state) else (None,) * len(state)
        return again(state, [contiguous(part, held) for part, held in zip(state, known, strict=True)])
    return state


def alone(t: Tensor) -> bool:
    """Whether nothing else is in the storage of `t`; where a transform of torch.func hides it, what is most likely."""
    if torch._C._are_functorch_transforms_active():
        return t.is_contiguous()
    return t.untyped_storage().nbytes() == t.nbytes


def tensors(state: Any) -> list[Tensor]:
    """The tensors of a state, in order."""
    found: list[Tensor] = []
    tree_map(lambda t: (found.append(t), t)[1], state)
    return found


def first_tensor(state: Any) -> Tensor | None:
    """The first of `tensors(state)`, the others not looked at."""
    if isinstance(state, torch.Tensor):
        return state
    if isinstance(state, tuple):
        for part in state:
            if (found := first_tensor(part)) is not None:
                return found
    return None


def row_count(state: Any) -> int | None:
    """How many rows a state has; None when it holds no tensor that would say so."""
    held = first_tensor(state)
    return None if held is None else held.shape[0]
