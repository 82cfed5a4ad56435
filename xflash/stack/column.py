"""`Column`: what a tensor goes down behind the door of a stack, and the one way of going."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..base.relay import Relay
from ..base.shapes import Tensor
from ..base.state import BranchState, Ctx, StackState
from ..layers.blocks.block import Block
from ..layers.branch import Branch
from ..layers.positions.position import Position
from ..layers.positions.relative import Relative
from .noted import Noted
from .side_inputs import carried
from .stepping import closed, opened

__all__ = ["Column"]


class Column:
    """The branches of a stack in the order in which a tensor meets them, its positions and its last norm.

    A value that a stack puts together for each call out of what it owns, so that parameters have the stack's names and
    what is replaced in the stack is replaced here.
    """

    def __init__(self, stack: Any):
        self.maker: str = stack.maker
        self.layout: str = stack.layout
        self.order: list[int] = stack.order
        self.branches: list[Branch] = list(stack.branches)
        self.last_norm: Any = stack.final_norm
        self.positions: nn.ModuleDict = stack.positions
        self.pos: tuple[str, ...] = stack.pos
        self.apart: list[tuple[str, ...]] = stack.apart

    def blocks(self) -> list[Block]:
        """The distinct blocks, top to bottom, those in parallel as one."""
        return [branch.block for branch in self.branches]

    def down(self) -> list[Block]:
        """The blocks as a tensor meets them, tied ones as often as they run, those in parallel each."""
        return [block for i in self.order for block, _ in self.branches[i].block.members()]

    def run(
        self,
        x: Tensor,
        state: StackState | None,
        new: Tensor | None,
        beside: Mapping[str, Any],
        *,
        keep_state: bool = False,
        noted: Noted | None = None,
    ) -> tuple[Tensor, StackState | None]:
        """Packed tokens down the branches and through the last norm, and the state behind them if it is asked for.

        new: (b,) the real tokens of each row, None where all are.  beside: the side inputs, as the door packs them.
        noted: where what is asked for beside the output goes.
        """
        n = x.shape[1]
        state, in_place = opened(self, state, n)
        before = (None,) * len(self.order) if state is None else state.branches
        held = () if state is None else state.carried
        maps, hiddens, losses, shown, asked = (None, None, None, None, ()) if noted is None else noted
        seen = {**dict(held), **beside} if held else beside
        # The relay is made here, not by default, for Dynamo does not know factories.
        relay = Relay({}, losses is not None, asked, shown)
        ctx = self.context(x, state, new, seen, (keep_state, in_place, maps, relay))
        after_all: list[BranchState | None] = []
        join = self.branches[self.order[0]].join if self.branches else None
        if hiddens is not None:
            hiddens.append(x)
        if join is not None and join.wide:
            x = join.widen(x)
        for place, index in enumerate(self.order):
            x, after = self.branches[index](x, ctx, before[place], place)
            after_all.append(after)
            if hiddens is not None and join is not None:
                hiddens.append(join.narrow(x))
        if join is not None and join.wide:
            x = join.ended(x, self.last_norm, ctx)
        elif self.last_norm is not None:
            x = self.last_norm(x, ctx)
        if hiddens is not None:
            hiddens.append(x)
        if losses is not None:
            losses.extend(ctx.relay.lost())
        if not keep_state:
            return x, None
        return x, closed(self, after_all, ctx, n, state and state.lease, carried(beside, held))

    def states(self, x: Tensor, state: StackState | None) -> dict[int, Tensor]:
        """The state vectors that layers may read of others, by number."""
        return {}

    def context(
        self, x: Tensor, state: StackState | None, new: Tensor | None, beside: Mapping[str, Any], how: tuple
    ) -> Ctx:
        """What goes down beside x; how: is a state kept, is it written in place, where do maps go, and the rest."""
        keep, in_place, maps, relay = how
        past, length = (0, None) if state is None else (state.bound, state.length)
        where = torch.arange(x.shape[1], device=x.device)[None]
        where = where + past if length is None else where + length[:, None]
        relative, apart = self.relative(self.pos), {pos: self.relative(pos) for pos in self.apart}
        states = self.states(x, state)
        return Ctx(past, length, new, where, keep, in_place, beside, relative, states, maps, {}, relay, apart)

    def relative(self, names: Sequence[str]) -> Relative | None:
        """The positions of these names as blocks use them; None where there are none."""
        return Relative({name: cast(Position, self.positions[name]) for name in names}) if names else None
