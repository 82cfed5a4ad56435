"""Steady states: as a graph is given them that serves all tokens, without a number that grows from one to the next.

Where graphs are recorded and played again (CUDA graphs), each value of a number among the inputs is a recording of its
own, and what is written in place must stay where it is.
"""

from typing import Any

import torch

from .shapes import Int, Tensor
from .state import BranchState, StackState
from .values import again

__all__ = ["FAR", "copied", "counted", "cut", "resumed", "steady"]

# Stands for the bound of a steady state: more slots than any state has.
FAR = 2**40
# Into how many parts a buffer is cut, of so many slots at least: as many recordings serve until it is full.
PARTS, LEAST = 8, 64


def counted(state: Any, x: Tensor) -> Int[Tensor, " b"]:
    """(b,) how many tokens each row of a state has seen that tokens x (b, ...) follow."""
    return state.length if state.length is not None else torch.full((x.shape[0],), state.bound, device=x.device)


def steady(state: StackState, x: Tensor) -> StackState:
    """A state that says in tensors alone how many tokens its rows have seen; what stays in place is marked as such."""
    branches = tuple(BranchState(branch.shift, held_steady(branch.block, state.bound)) for branch in state.branches)
    return state._replace(bound=FAR, length=counted(state, x), branches=branches)


def resumed(after: StackState, before: StackState, alike: bool) -> StackState:
    """What a graph made of the steady form of `before` and a token a row, with its numbers and whole buffers again.

    alike: whether all rows have a token.
    """
    pairs = zip(after.branches, before.branches, strict=True)
    branches = tuple(BranchState(new.shift, held_resumed(new.block, old.block)) for new, old in pairs)
    length = None if alike and before.length is None else after.length
    return after._replace(bound=before.bound + 1, length=length, branches=branches)


def held_steady(held: Any, bound: int) -> Any:
    """What a block holds of `bound` tokens at most."""
    if not isinstance(held, tuple):
        return held
    if hasattr(held, "steady"):
        held = held.steady(bound)
    for name in getattr(held, "in_place", ()):
        if getattr(held, name) is not None:
            torch._dynamo.mark_static_address(getattr(held, name), guard=False)
    return again(held, [held_steady(part, bound) for part in held])


def held_resumed(after: Any, before: Any) -> Any:
    """What a block holds behind a token, where `before` was held."""
    if hasattr(after, "resumed"):
        return after.resumed(before)
    if not isinstance(after, tuple) or not isinstance(before, tuple):
        return after
    return again(after, [held_resumed(new, old) for new, old in zip(after, before, strict=True)])


def cut(buffer: Tensor, used: int) -> Tensor:
    """A buffer (b, h, slots, width) without most of the slots behind the `used` ones, alike for many tokens."""
    room = buffer.shape[2]
    part = max(-(-room // PARTS), LEAST)
    return buffer[:, :, : min(-(-used // part) * part, room)]


def copied(state: Any, kept: set[int]) -> Any:
    """A copy of what a recorded graph made, for its next run writes there; tensors at the addresses `kept` stay."""
    if isinstance(state, torch.Tensor):
        return state if state.data_ptr() in kept else state.clone()
    return again(state, [copied(part, kept) for part in state]) if isinstance(state, tuple) else state
