"""`ModelState`: what a causal model on token ids carries from one call to the next."""

from typing import Any, NamedTuple

import torch

from ..base.checks import as_order
from ..base.shapes import Int, Tensor
from ..base.state import StackState, row_count, tree_map

__all__ = ["ModelState", "stack_state"]


class ModelState(NamedTuple):
    """The stack's state, and how many tokens each row has seen, embeddings in front of them not counted.

    `bound` is an upper bound, `length` each row's own (b,) where rows differ.
    """

    stack: StackState
    bound: int
    length: Tensor | None

    def map(self, fn) -> "ModelState":
        """A state of its own with `fn` applied to every tensor."""
        return ModelState(self.stack.map(fn), self.bound, tree_map(fn, self.length))

    def __deepcopy__(self, memo: dict) -> "ModelState":
        return self.map(torch.clone)

    def reorder(self, index: Int[Tensor, " b2"]) -> "ModelState":
        """The rows that `index` names, in its order; a row may be named more than once (beam search)."""
        index = as_order(index, row_count(self))
        return self.map(lambda t: t.index_select(0, index))

    def detach(self) -> "ModelState":
        """The same values, cut from the graph that made them."""
        return self._replace(stack=self.stack.detach())

    def to(self, *args, **kwargs) -> "ModelState":
        """Moved or cast like a tensor; integer tensors keep their dtype."""
        length = None if self.length is None else self.length.to(*args, **kwargs).to(self.length.dtype)
        return ModelState(self.stack.to(*args, **kwargs), self.bound, length)

    @property
    def rows(self) -> int | None:
        """The number of rows the state has; None where it holds no tensor, and so fits any."""
        return row_count(self)


def stack_state(state: Any) -> StackState:
    """The stack's part of what step() gave; TypeError for anything else."""
    if not isinstance(state, ModelState):
        raise TypeError(f"state must be what step() gave, a ModelState, not {type(state).__name__}")
    return state.stack
