"""One branch of a stack: norm -> shift -> block -> norm -> residual."""

from typing import Literal

import torch
from torch import nn

from ..shapes import Float, Tensor
from ..state import BranchState, Ctx
from .block import Block
from .norms import Norm
from .residuals import Residual
from .shift import TokenShift

__all__ = ["Branch", "NormPlace"]

NormPlace = Literal["pre", "post", "sandwich"]


class Branch(nn.Module):
    """`x + f(norm(x))` and its variants as three slots: a norm before the block, one after it, one after the sum."""

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
    ):
        super().__init__()
        self.before, self.shift, self.block = before, shift, block
        self.after, self.residual, self.final = after, residual, final
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: BranchState | None = None):
        """The new stream and the branch's state (None unless `ctx.keep_state`)."""
        last, inner = state if state is not None else (None, None)
        y = x if self.before is None else self.before(x)
        if self.shift is not None:
            y, last = self.shift(y, ctx, last)
        y, inner = self.block(y, ctx, inner)
        if self.after is not None:
            y = self.after(y)
        if self.dropout and self.training:
            y = drop_rows(y, self.dropout)
        x = self.residual(x, y)
        if self.final is not None:
            x = self.final(x)
        return x, BranchState(last, inner) if ctx.keep_state else None


def drop_rows(y: Float[Tensor, "b n d"], p: float) -> Float[Tensor, "b n d"]:
    """Stochastic depth (https://arxiv.org/abs/1603.09382): each row loses this layer with probability p.

    Drawn from torch's generator, without a sync; the rows that stay are scaled by 1 / (1 - p), so that the
    expectation is what evaluation computes.
    """
    keep = torch.rand(y.shape[0], 1, 1, device=y.device) >= p
    return y * (keep.to(y.dtype) / (1 - p))
