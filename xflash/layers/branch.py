"""One branch of a stack: norm -> shift -> block -> norm -> residual."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..base.checks import given
from ..base.shapes import Float, Tensor
from ..base.state import BranchState, Ctx, own
from .blocks.block import Block
from .norms import Norm
from .reaching import reaching
from .residuals import Residual
from .shift import TokenShift

__all__ = ["Branch", "NormPlace"]

NormPlace = Literal["pre", "post", "sandwich"]


class Branch(nn.Module):
    """`x + f(norm(x))` and its variants as three slots: a norm before the block, one after it, one after the sum.

    grad_checkpoint: in training nothing inside is kept for the gradients, it is computed again (1604.06174).
    """

    def __init__(
        self,
        block: Block,
        residual: Residual,
        *,
        before: Norm | None = None,
        after: Norm | None = None,
        final: Norm | None = None,
        shift: TokenShift | None = None,
        dropout: float = 0.0,
        grad_checkpoint: bool = False,
    ):
        super().__init__()
        self.before, self.shift, self.block = before, shift, block
        self.after, self.residual, self.final = after, residual, final
        self.dropout, self.grad_checkpoint = dropout, grad_checkpoint

    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: BranchState | None = None):
        """The new stream and the branch's state (None unless `ctx.keep_state`)."""
        # A map of the weights is noted while it is computed: it would be noted twice.
        if self.grad_checkpoint and self.training and torch.is_grad_enabled() and ctx.maps is None:
            return recomputed(self.run, x, ctx, state)
        return self.run(x, ctx, state)

    def run(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: BranchState | None):
        """`forward`, each tensor that gradients need kept."""
        last, inner = state if state is not None else (None, None)
        y = x if self.before is None else self.before(x)
        if self.shift is not None:
            y, last = self.shift(y, ctx, last)
        before = inner
        y, inner = update_of(self.block, self.block(y, ctx, inner), x)
        if names := self.block.optional(before):
            y = reaching(y, (p for name, p in self.block.named_parameters() if name.startswith(names)))
        if self.after is not None:
            y = self.after(y)
        if self.dropout and self.training:
            y = drop_rows(y, self.dropout)
        x = self.residual(x, y)
        if self.final is not None:
            x = self.final(x)
        return x, own(BranchState(last, inner), state) if ctx.keep_state else None


def recomputed(run: Callable, x: Float[Tensor, "b n d"], ctx: Ctx, state: BranchState | None) -> Any:
    """What `run` gives, computed again with the same chance when gradients are wanted, instead of being kept.

    Each time it begins with what was shared among layers and left for it before: what it shares first is made in both,
    and no later layer's tensors are held, which would tie the graph to itself.
    """
    shared, left = dict(ctx.memo), dict(ctx.relay)

    def once(x: Tensor, state: BranchState | None) -> Any:
        memo, relay = dict(shared), dict(left)
        return *run(x, replace(before, memo=memo, relay=relay), state), memo, relay

    before = replace(ctx, memo=shared, relay=left)
    y, after, memo, relay = checkpoint(once, x, state, use_reentrant=False)
    ctx.memo.update(memo)
    ctx.relay.update(relay)
    return y, after


def update_of(block: Block, out: Any, x: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n d"], Any]:
    """What a block gave; TypeError or ValueError unless it is a pair of an update in the shape of x and a state.

    A tensor of two rows would be taken apart into a pair, and one of another shape be broadcast by the residual.
    """
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], torch.Tensor):
        shown = f"({', '.join(given(part) for part in out)})" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(
            f"{type(block).__name__}.forward must give (y, state), a tensor and a state or None, not {shown}"
        )
    if out[0].shape != x.shape:
        raise ValueError(
            f"{type(block).__name__}.forward must give y in the shape of x, {tuple(x.shape)}, not {tuple(out[0].shape)}"
        )
    return out


def drop_rows(y: Float[Tensor, "b n d"], p: float) -> Float[Tensor, "b n d"]:
    """Stochastic depth (https://arxiv.org/abs/1603.09382): each row loses this layer with probability p.

    Drawn from torch's generator, without a sync; the rows that stay are scaled by 1 / (1 - p), so that the
    expectation is what evaluation computes.
    """
    keep = torch.rand(y.shape[0], 1, 1, device=y.device) >= p
    return y * (keep.to(y.dtype) / (1 - p))
