"""`Stepping`: what a stack does with its state between two calls."""

from typing import Any, cast

import torch
from torch import nn

from ..base.checks import as_rows, check_count, check_dtype, main_weight
from ..base.shapes import Bool, Float, Tensor
from ..base.state import TAKEN, BranchState, Ctx, Lease, StackState, row_count, tensors
from ..layers.blocks.block import Block
from ..layers.embeddings import MemoryTokens
from .parts import auxiliary_loss, renewed
from .side_inputs import SideInputs

__all__ = ["Stepping"]


class Stepping:
    """The part of a stack that checks, opens, closes, resets, shortens and weighs states."""

    causal: bool
    dim: int
    maker: str
    layout: str
    order: list[int]
    memory_tokens: MemoryTokens | None

    def blocks(self) -> list[Block]:
        """The distinct blocks of the column, top to bottom."""
        raise NotImplementedError

    def packed(
        self, x: Tensor, state: StackState | None, new: Tensor | None, fields: dict, keep_state: bool, maps: Any
    ) -> tuple[Tensor, StackState | None]:
        """Rows behind the door through the column, see the stack."""
        raise NotImplementedError

    def run(
        self,
        x: Tensor,
        state: StackState | None,
        mask: Tensor | None,
        beside: SideInputs,
        *,
        keep_state: bool = False,
        maps: list | None = None,
    ) -> tuple[Tensor, StackState | None]:
        """The way of a tensor, see the stack."""
        raise NotImplementedError

    def explained(
        self, x: Tensor, state: StackState | None, mask: Tensor | None, beside: SideInputs, **options: Any
    ) -> tuple[Tensor, StackState | None]:
        """`run`; where it fails and dtypes differ, a TypeError that says which.

        Only then: sharded and quantised models, whose weights look different until they are used, run as they are. What
        is compiled is looked at while it is traced, for there an error has no words of its own.
        """
        if torch.compiler.is_compiling():
            if self.plain_weights():
                self.check_dtypes(x, state, beside.context)
            return self.run(x, state, mask, beside, **options)
        try:
            return self.run(x, state, mask, beside, **options)
        except RuntimeError:
            try:
                self.check_dtypes(x, state, beside.context)
            except TypeError as reason:
                raise reason from None
            raise

    def plain_weights(self) -> bool:
        """Whether the weights are what they look like."""
        layers = [m for block in self.blocks() for m in block.modules() if isinstance(m, nn.Linear)]
        return all(type(m) is nn.Linear and type(m.weight) is nn.Parameter for m in layers)

    def check_dtypes(self, x: Tensor, state: StackState | None, context: Tensor | None) -> None:
        """TypeError for tensors of another dtype than that of the stack's weights; under autocast all will do."""
        weight = main_weight(cast(Any, self))
        if weight is None or torch.is_autocast_enabled(x.device.type):
            return
        model = weight.dtype
        check_dtype("x is", "x", x.dtype, model)
        if context is not None:
            check_dtype("the context is", "context", context.dtype, model)
        for t in tensors(state):
            # Sums over the sequence are kept in float32 at least.
            if t.is_floating_point() and t.dtype != torch.promote_types(model, torch.float32):
                check_dtype("the state holds", "state", t.dtype, model)

    def check_steppable(self) -> None:
        """ValueError with the reason when the stack cannot be stepped."""
        if not self.causal:
            raise ValueError(
                f"a bidirectional stack ({type(self).__name__}) has no state and no step: call it on whole sequences"
            )
        for block in self.blocks():
            if block.refuses_step():
                raise ValueError(f"this stack cannot be stepped: {block.refuses_step()}")

    def check_state(self, state: StackState, batch: int | None = None) -> None:
        """TypeError or ValueError when `state` is not one of this stack's, or has another batch size (None: any)."""
        if not isinstance(state, StackState):
            raise TypeError(f"state must be what step() gave, a StackState, not {type(state).__name__}")
        if state.maker != self.maker or len(state.branches) != len(self.order):
            raise ValueError(f"the state was made by another stack: {state.maker}; this one is {self.maker}")
        # Not `in`: traced, it does not compare sizes that are symbols.
        if batch is not None and (rows := row_count(state)) is not None and rows != batch:
            raise ValueError(f"the state has {rows} rows, but x has {batch}")

    def open(self, state: StackState | None, n: int) -> tuple[StackState | None, bool]:
        """The state with room for n more slots, and whether this call may write into its buffers.

        Only without grad, and only for the newest state of the buffers: a step from an older one copies them, and
        not what newer ones have written.
        """
        if state is None:
            return None, False
        if state.lease is TAKEN:
            return state, not torch.is_grad_enabled()
        # `is_compiling` is true in all threads while one compiles.
        compiling, recording = torch.compiler.is_dynamo_compiling(), torch.is_grad_enabled()
        if not compiling and of_inference(state) and not torch.is_inference_mode_enabled():
            state = state.map(torch.clone)
        if not recording and state.lease is None:
            state = state.detach()
        # A graph claims nothing: what it is told is so each time that it runs, in other threads too.
        in_place, lease = not recording and not compiling, state.lease
        if in_place:
            copy = lease is None or not lease.claim(state.bound)
        else:
            copy = not compiling and lease is not None and lease.fill != state.bound
        need = state.bound + n
        distinct, branches = self.blocks(), []
        for i, branch in zip(self.order, state.branches, strict=True):
            held = distinct[i].reserve(branch.block, state.bound, need, copy, state.length)
            branches.append(branch if held is branch.block else BranchState(branch.shift, held))
        lease = (Lease(state.bound) if copy else state.lease) if in_place else None
        return state._replace(branches=tuple(branches), lease=lease), in_place

    def close(self, carried: list, ctx: Ctx, n: int, lease: Lease | None = None) -> StackState:
        """The state behind this call."""
        bound = ctx.past + n
        # Buffers made or written with grad are part of a graph: nobody may write into them.
        if torch.is_grad_enabled():
            lease = None
        elif lease is None:
            lease = Lease(bound)
        elif lease is not TAKEN:
            lease.release(bound)
        return StackState(self.maker, bound, ctx.ends(n), lease, tuple(carried))

    def reset(self, state: StackState, rows: Bool[Tensor, " b"]) -> StackState:
        """`state` with the named rows as fresh as before their first token; a context they attend to stays theirs."""
        self.check_state(state)
        rows = as_rows("rows", rows, row_count(state))
        distinct = self.blocks()
        kept = [distinct[i].kept_on_reset(b.block) for i, b in zip(self.order, state.branches, strict=True)]
        start, fresh = 0, None
        if self.memory_tokens is not None:
            x = self.memory_tokens.tokens[None].expand(rows.shape[0], -1, -1)
            begun = StackState(self.maker, 0, None, None, tuple(BranchState(None, held) for held in kept))
            behind = cast(
                StackState, self.packed(x, begun, None, SideInputs().fields(None, 0, x.device), True, None)[1]
            )
            fresh, start = behind.branches, behind.bound
        branches = tuple(
            renewed(b, rows, fresh and fresh[i], state.bound)
            if held is None
            else BranchState(renewed(b.shift, rows, fresh and fresh[i].shift, state.bound), held)
            for i, (b, held) in enumerate(zip(state.branches, kept, strict=True))
        )
        before = torch.full_like(rows, state.bound, dtype=torch.long) if state.length is None else state.length
        length = torch.where(rows, torch.full_like(before, start), before)
        return state._replace(length=length, lease=None, branches=branches)

    def shorten(self, state: StackState, tokens: int) -> StackState:
        """`state` with the keys and values of each row's last `tokens` tokens only, and of its memory tokens.

        Transformer-XL's memory (https://arxiv.org/abs/1901.02860), once it is detached: what a token sees then depends
        on where a sequence is cut. Blocks whose state is bounded keep it.
        """
        self.check_state(state)
        check_count("tokens", tokens)
        front = 0 if self.memory_tokens is None else len(self.memory_tokens)
        distinct = self.blocks()
        branches = tuple(
            b._replace(block=distinct[i].shorten(b.block, tokens, front, state.bound, state.length))
            for i, b in zip(self.order, state.branches, strict=True)
        )
        # Blocks that keep all they have still share it with the state before.
        return state._replace(lease=None, branches=branches)

    def auxiliary_loss(self, state: StackState, since: StackState | None = None) -> Float[Tensor, ""]:
        """What the layers lose beside the model's own loss (block_attn_compress_loss), to be added to it in training.

        The mean over the tokens read between `since` (None: the beginning) and `state`, and over the layers that have
        such a loss. ValueError when none has.
        """
        self.check_state(state)
        if since is not None:
            self.check_state(since, row_count(state))
        return auxiliary_loss(self.blocks(), self.order, self.layout, state, since)


def of_inference(state: StackState) -> bool:
    """Whether a tensor of the state was made in inference mode: nobody may write into it, or save it for gradients."""
    lease = state.lease
    return (lease is None or lease.inference) and any(t.is_inference() for t in tensors(state))
