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
from ..base.state import tensors
from ..base.steady import FAR, copied, counted, resumed, steady
from .model_state import ModelState
from .options import check_option_names

__all__ = ["CompilableStep", "CompiledStep"]


class CompiledStep:
    """`model.advance` compiled for calls of one token behind a state, without gradients: few graphs for all lengths.

    The room for the token is made in eager, see `lend`. Graphs are given `steady` states, so that what is recorded of
    one can be played for all tokens, but for stacks that keep all tokens on a CPU, where exact lengths cost nothing.
    """

    def __init__(self, model: Any, **options: Any):
        self.model, self.layers = model, model.attn_layers
        blocks = self.layers.blocks()
        self.steady, self.grows = all(block.steady for block in blocks), any(block.keeps_tokens for block in blocks)
        self.recorded = records(options)

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
        limit = self.model.length_limit
        if self.in_numbers(x) or (limit is not None and state.bound >= limit):
            logits, after = self.one(x, state._replace(stack=stack), mask, own)
            return logits, after._replace(stack=take_back(after.stack, lease))
        bound = FAR if limit is None else limit - 1
        given = state._replace(stack=steady(stack, x), bound=bound, length=counted(state, x))
        logits, after = self.played(x, given, mask, own)
        alike = mask is None
        length = None if alike and state.length is None else after.length
        stack = take_back(resumed(after.stack, stack, alike), lease)
        return logits, after._replace(stack=stack, bound=state.bound + 1, length=length)

    def in_numbers(self, x: Tensor) -> bool:
        """Whether graphs are told lengths in numbers."""
        return not self.steady or (self.grows and x.device.type == "cpu")

    def played(self, x: Tensor, state: ModelState, *more: Any) -> tuple[Any, ModelState]:
        """What the graph gives, in tensors that stay as they are."""
        if not self.recorded:
            return self.one(x, state, *more)
        if x.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return copied(self.one(x, state, *more), {t.data_ptr() for t in tensors(state)})


def records(options: Mapping[str, Any]) -> bool:
    """Whether torch.compile is asked to record graphs and to play them again."""
    own = options.get("options") or {}
    return options.get("mode") in ("reduce-overhead", "max-autotune") or bool(own.get("triton.cudagraphs"))


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
