"""`CompiledStep`: one new token a row through a compiled graph, the state's buffers grown before it begins."""

from collections.abc import Mapping
from typing import Any

import torch

from ..shapes import Float, Int, Tensor
from ..state import TAKEN
from .model_state import ModelState

__all__ = ["CompiledStep"]


class CompiledStep:
    """`model.advance` compiled for calls of one token behind a state; few graphs, whatever the lengths.

    A graph that grows a buffer, or cuts or closes one, would be a graph of its own each time: the room is made in
    eager, as the lease is taken and given back.
    """

    def __init__(self, model: Any, **options: Any):
        self.layers = model.attn_layers

        def one(x, state, mask, embed_ids):
            return model.advance(x, state, mask, embed_ids=embed_ids)

        # Dynamo counts graphs per code object: those of one model are not another's.
        one.__code__ = one.__code__.replace(co_name="step")
        self.one = torch.compile(one, **options)

    def __call__(
        self,
        x: Int[Tensor, "b 1"],
        state: ModelState,
        mask: Tensor | None,
        embed_ids: Mapping[str, Tensor] | None,
    ) -> tuple[Float[Tensor, "b 1 v"], ModelState]:
        """As `model.step`, for arguments that were found right."""
        stack, _ = self.layers.open(state.stack, 1)
        lease = stack.lease
        logits, after = self.one(x, state._replace(stack=stack._replace(lease=TAKEN)), mask, embed_ids)
        if lease is not None:
            lease.fill = after.stack.bound
        return logits, after._replace(stack=after.stack._replace(lease=lease))
