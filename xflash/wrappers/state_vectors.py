"""What is handed back to a BlockRecurrentTransformer: whether memories fit, and the state with other vectors in it."""

import torch

from ..base.checks import given
from ..base.shapes import Tensor
from ..base.state import StackState
from ..layers.blocks.recurrent import RecurrentState

__all__ = ["check_memories", "with_vectors"]


def check_memories(state: StackState, wanted: Tensor) -> None:
    """ValueError for memories of another dtype than the model's (`wanted`), but under autocast, which casts them."""
    # The first layer is one of attention, with state vectors or without.
    held = state.branches[0].block
    found = (held.window if isinstance(held, RecurrentState) else held).open_k
    if found.dtype != wanted.dtype and not torch.is_autocast_enabled(wanted.device.type):
        raise ValueError(
            f"xl_memories are {found.dtype}, but the model is {wanted.dtype}: cast them with memories.state.to"
        )


def with_vectors(before: RecurrentState, vectors: Tensor | None) -> RecurrentState:
    """The state of a recurrent layer with other state vectors; None: the learned ones it starts with."""
    if vectors is None:
        return before._replace(writes=torch.zeros_like(before.writes))
    if not isinstance(vectors, torch.Tensor) or not vectors.is_floating_point():
        raise TypeError(f"states must be floating-point tensors of {tuple(before.vectors.shape)}, not {given(vectors)}")
    if vectors.shape != before.vectors.shape:
        raise ValueError(f"states must be of shape {tuple(before.vectors.shape)}, not {tuple(vectors.shape)}")
    if vectors.dtype != before.vectors.dtype:
        raise ValueError(f"states must be {before.vectors.dtype}, as this model keeps them, not {vectors.dtype}")
    return before._replace(vectors=vectors, writes=before.writes.clamp(min=1))
