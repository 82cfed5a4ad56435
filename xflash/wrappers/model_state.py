"""`ModelState`: what a causal model on token ids carries from one call to the next."""

from typing import Any, NamedTuple

from ..base.shapes import Tensor
from ..base.state import StackState, State

__all__ = ["ModelState", "stack_state"]


class ModelFields(NamedTuple):
    """What a model carries."""

    stack: StackState
    bound: int
    length: Tensor | None


class ModelState(State, ModelFields):
    """The stack's state, and how many tokens each row has seen, embeddings in front of them not counted.

    `bound` is an upper bound, `length` each row's own (b,) where rows differ.
    """

    __slots__ = ()


def stack_state(state: Any) -> StackState:
    """The stack's part of what step() gave; TypeError for anything else."""
    if not isinstance(state, ModelState):
        raise TypeError(f"state must be what step() gave, a ModelState, not {type(state).__name__}")
    return state.stack
