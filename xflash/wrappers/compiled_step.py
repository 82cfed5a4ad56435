"""`CompiledStep`: one new token a row through a compiled graph, the state's buffers grown before it begins."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ..base.checks import check_call, check_switch, shown
from ..base.fallback import as_eager, refusable
from ..base.pieces import lend, take_back
from ..base.shapes import Tensor
from .model_state import ModelState
from .options import check_option_names

__all__ = ["CompilableStep", "CompiledStep"]


class CompiledStep:
    """`model.advance` compiled for calls of one token behind a state, without gradients: few graphs for all lengths.

    The room for the token is made in eager, see `lend`.
    """

    def __init__(self, model: Any, **options: Any):
        self.layers = model.attn_layers

        @refusable
        def one(x, state, mask, own):
            return model.advance(x, state, mask, own, {})

        self.one = as_eager(torch.compile(one, **options), one)

    def __call__(
        self,
        x: Tensor,
        state: ModelState,
        mask: Tensor | None,
        own: Mapping[str, Any],
    ) -> tuple[Any, ModelState]:
        """As `model.step`, for arguments that were found right; own: what its embedding is given beside x."""
        stack, lease = lend(self.layers, state.stack, 1)
        logits, after = self.one(x, state._replace(stack=stack), mask, own)
        return logits, after._replace(stack=take_back(after.stack, lease))


def check_compile_options(options: Mapping[str, Any]) -> None:
    """TypeError or ValueError for options that torch.compile would refuse in other words, or take for others."""
    check_option_names("compile_step", options, list(inspect.signature(torch.compile).parameters)[1:])
    for name in ("fullgraph", "disable", "dynamic"):
        if options.get(name) is not None or (name in options and name != "dynamic"):
            check_switch(name, options[name])
    if not isinstance(options.get("backend"), (str, type(None))):
        check_call("backend", options["backend"])
    try:
        torch.compile(lambda x: x, **options)
    except Exception as error:
        given = ", ".join(f"{name}={shown(value)}" for name, value in options.items())
        raise ValueError(f"torch.compile does not take {given}: {shown(error)}") from error


class CompilableStep(nn.Module):
    """The part of a model that lets its `step` be compiled."""

    compiled_step: CompiledStep | None = None

    def compile_step(self, **options: Any) -> None:
        """From now on a `step` of one new token a row runs compiled; `options` are those of `torch.compile`.

        Only without gradients and behind a state: prompts, segments and training run as before. Few graphs serve all
        lengths. As with `nn.Module.compile`, what is saved or copied of the model is not compiled.
        TypeError or ValueError for options that `torch.compile` does not take.
        """
        cast(Any, self).check_steppable()
        check_compile_options(options)
        self.compiled_step = CompiledStep(self, **options)

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(super().__getstate__())
        kept.pop("compiled_step", None)
        return kept
