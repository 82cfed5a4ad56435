"""`CompiledStep`: one new token a row through a compiled graph, the state's buffers grown before it begins."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ..shapes import Float, Int, Tensor
from ..state import TAKEN, Lease
from .model_state import ModelState

__all__ = ["CompilableStep", "CompiledStep"]


class CompiledStep:
    """`model.advance` compiled for calls of one token behind a state, without gradients: few graphs for all lengths.

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
        lease = cast(Lease, stack.lease)
        logits, after = self.one(x, state._replace(stack=stack._replace(lease=TAKEN)), mask, embed_ids)
        lease.fill = after.stack.bound
        return logits, after._replace(stack=after.stack._replace(lease=lease))


class CompilableStep(nn.Module):
    """The part of a model that lets its `step` be compiled."""

    compiled_step: CompiledStep | None = None

    def compile_step(self, **options: Any) -> None:
        """From now on a `step` of one new token a row runs compiled; `options` are those of `torch.compile`.

        Only without gradients and behind a state: prompts, segments and training run as before. Few graphs serve all
        lengths. As with `nn.Module.compile`, what is saved or copied of the model is not compiled.
        """
        cast(Any, self).attn_layers.check_steppable()
        self.compiled_step = CompiledStep(self, **options)

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(super().__getstate__())
        kept.pop("compiled_step", None)
        return kept
