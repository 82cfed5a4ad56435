"""`ModelState`: what a causal model on token ids carries from one call to the next."""

from typing import NamedTuple

from ..base.shapes import Tensor
from ..base.state import StackState, State

__all__ = ["ModelState"]


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
