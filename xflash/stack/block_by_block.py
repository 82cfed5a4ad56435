"""`BlockByBlock`: the way of a stack whose layers read what a layer above wrote in the block before."""

from collections.abc import Mapping
from typing import Any, cast

import torch

from ..base.pieces import borders, fills
from ..base.shapes import Tensor
from ..base.state import StackState
from .column import Column
from .noted import Noted
from .side_inputs import piece

__all__ = ["BlockByBlock"]


class BlockByBlock(Column):
    """A column through all of whose layers one block of tokens goes, then the next."""

    def __init__(self, stack: Any):
        super().__init__(stack)
        self.piece_width: int = stack.piece_width
        self.next_piece = stack.next_piece

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
        """As `Column.run`, piece after piece; ValueError where matrices are asked for."""
        if noted is not None and noted.maps is not None:
            raise ValueError(
                "a stack whose layers read each other's state vectors runs in blocks: it has no whole maps"
            )
        outputs: list[Tensor] = []
        found: list[Noted] = []
        for start, end in cuts(x.shape[1], self.piece_width, state):
            here = None if new is None else (new - start).clamp(0, end - start)
            given = x[:, start:end], here, piece(beside, start, end)
            if noted is None:
                y, state = self.next_piece(state, *given)
            else:
                # What is noted goes in lists, of which a compiled piece knows nothing.
                found.append(noted.alike())
                y, state = self.piece(given[0], state, *given[1:], found[-1])
            outputs.append(y)
        if noted is not None:
            noted.join(found)
        return torch.cat(outputs, 1), cast(StackState, state) if keep_state else None

    def piece(
        self,
        x: Tensor,
        state: StackState | None,
        new: Tensor | None,
        beside: Mapping[str, Any],
        noted: Noted | None = None,
    ) -> tuple[Tensor, StackState | None]:
        """Packed tokens without a border of blocks between them."""
        return super().run(x, state, new, beside, keep_state=True, noted=noted)

    def states(self, x: Tensor, state: StackState | None) -> dict[int, Tensor]:
        """The state vectors that publishing layers had before this piece, by their number from 1."""
        blocks, states = self.blocks(), {}
        for place, i in enumerate(self.order):
            for block, held in blocks[i].members(None if state is None else state.branches[place].block):
                if block.publishes:
                    states[len(states) + 1] = block.published(held, x)
        return states


def cuts(n: int, w: int, state: StackState | None) -> list[tuple[int, int]]:
    """Where n new tokens are cut so that no row has a border of its blocks of w inside a piece."""
    if n == 1:
        return [(0, 1)]
    if state is not None and state.length is not None:
        # Rows at different places in their blocks have different borders: the one place that has to look at data.
        return borders(n, w, fills(state.length, w))
    return borders(n, w, [0 if state is None else state.bound])
