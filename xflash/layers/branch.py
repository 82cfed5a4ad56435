"""One branch of a stack: read -> norm -> shift -> block -> norm -> scale -> join."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..base.registry import blocks
from ..base.shapes import Float, Tensor
from ..base.state import BranchState, Ctx, own
from .apart import Apart
from .blocks.block import Block, update_of
from .joins.join import Join
from .norms import Norm
from .reaching import reaching
from .reads.read import Read
from .scales.scale import Scale
from .shift import TokenShift

__all__ = ["BEFORE", "BEHIND", "SUMMED", "Branch", "NormPlace"]

NormPlace = Literal["pre", "post", "sandwich", "after", "pre_and_post"]
# Of these, the ones that have a norm in front of the block, behind it, after the sum.
BEFORE, BEHIND, SUMMED = ("pre", "sandwich", "pre_and_post"), ("sandwich", "after"), ("post", "pre_and_post")


class Branch(nn.Module):
    """`x + f(norm(x))` and its variants: what is read of the stream, what multiplies the update, how it joins.

    Norms stand in three slots: before the block, after it, after the sum. grad_checkpoint: in training nothing inside
    is kept for the gradients, it is computed again (1604.06174).  keeps_read: its block keeps what is read.
    """

    keeps_read = False

    def __init__(
        self,
        block: Block,
        join: Join,
        *,
        reads: Mapping[str, Read] | None = None,
        scale: Mapping[str, Scale] | None = None,
        before: Norm | Apart | None = None,
        after: Norm | None = None,
        final: Norm | None = None,
        shift: TokenShift | None = None,
        dropout: float = 0.0,
        grad_checkpoint: bool = False,
    ):
        super().__init__()
        # None rather than an empty dict, which each call would ask for.
        self.reads = nn.ModuleDict(reads) if reads else None
        self.before, self.shift, self.block, self.after = before, shift, block, after
        self.scale = nn.ModuleDict(scale) if scale else None
        self.join, self.final = join, final
        self.dropout, self.grad_checkpoint = dropout, grad_checkpoint

    def forward(self, x: Float[Tensor, "b n *_ d"], ctx: Ctx, state: BranchState | None = None, place: int = 0):
        """The new stream and the branch's state (None unless `ctx.keep_state`); `place`: of this call in the column."""
        # What is noted or shown is so while it is computed: it would be twice.
        again = self.grad_checkpoint and self.training and torch.is_grad_enabled()
        if again and ctx.maps is None and not ctx.relay.asked:
            return recomputed(self.run, x, ctx, state, place)
        return self.run(x, ctx, state, place)

    def run(self, x: Float[Tensor, "b n *_ d"], ctx: Ctx, state: BranchState | None, place: int):
        """`forward`, each tensor that gradients need kept."""
        last, before = state if state is not None else (None, None)
        join, block = self.join, self.block
        read, x = (x, x) if self.reads is None and not join.wide else self.reading(x, ctx, place)
        if self.keeps_read:
            ctx.relay.leave("read", "here", read)
        y = read if self.before is None else self.before(read, ctx)
        if self.shift is not None:
            y, last = self.shift(y, ctx, last)
        pos = block.site.pos
        y, inner = update_of(block, block(y, ctx if pos is None else ctx.seen_by(pos), before), read)
        if names := block.optional(before):
            y = reaching(y, (p for name, p in block.named_parameters() if name.startswith(names)))
        if self.after is not None:
            y = self.after(y, ctx)
        if self.scale is not None:
            for scale in self.scale.values():
                y = scale(y, ctx)
        if self.dropout and self.training:
            y = drop_rows(y, self.dropout)
        x = join(x, y, ctx)
        if self.final is not None:
            x = join.settled(x, self.final, ctx)
        return x, own(BranchState(last, inner), state) if ctx.keep_state else None

    def kinds(self) -> list[str]:
        """The names of its blocks, several where they stand in parallel."""
        return [blocks.name_of(type(block)) for block, _ in self.block.members()]

    def reading(self, x: Float[Tensor, "b n *_ d"], ctx: Ctx, place: int) -> tuple[Float[Tensor, "b n *_ d"], Any]:
        """What the branch reads of the stream, and what the join is given of it."""
        reads: Any = () if self.reads is None else self.reads.values()
        for read in reads:
            x = read.enter(x, ctx, place)
        y, x = self.join.take(x, ctx)
        for read in reads:
            y = read(y, ctx, place)
        return y, x


def recomputed(run: Callable, x: Float[Tensor, "b n *_ d"], ctx: Ctx, state: BranchState | None, place: int) -> Any:
    """What `run` gives, computed again with the same chance when gradients are wanted, instead of being kept.

    Each time it begins with what was shared among layers and left for it before: what it shares first is made in both,
    and no later layer's tensors are held, which would tie the graph to itself.
    """
    shared, left = dict(ctx.memo), ctx.relay.copy()

    def once(x: Tensor, state: BranchState | None) -> Any:
        memo, relay = dict(shared), left.copy()
        return *run(x, replace(before, memo=memo, relay=relay), state, place), memo, relay.held

    before = replace(ctx, memo=shared, relay=left)
    y, after, memo, held = checkpoint(once, x, state, use_reentrant=False)
    ctx.memo.update(memo)
    ctx.relay.held.update(held)
    return y, after


def drop_rows(y: Float[Tensor, "b n d"], p: float) -> Float[Tensor, "b n d"]:
    """Stochastic depth (https://arxiv.org/abs/1603.09382): each row loses this layer with probability p.

    Drawn from torch's generator, without a sync; the rows that stay are scaled by 1 / (1 - p), so that the
    expectation is what evaluation computes.
    """
    keep = torch.rand(y.shape[0], 1, 1, device=y.device) >= p
    return y * (keep.to(y.dtype) / (1 - p))
