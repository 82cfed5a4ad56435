"""`BlockByBlock`: the way of a stack whose layers read what a layer above wrote in the block before."""

from typing import Any, cast

import torch

from ..base.pieces import Piecewise, borders, fills
from ..base.shapes import Tensor
from ..base.state import StackState

__all__ = ["BlockByBlock"]


class BlockByBlock(Piecewise):
    """The part of a stack that goes through all its layers with one block of tokens, then with the next."""

    piece_width: int | None

    def through(
        self, x: Tensor, state: StackState | None, new: Tensor | None, fields: dict, keep_state: bool, maps: Any
    ) -> tuple[Tensor, StackState | None]:
        """Packed tokens, layer after layer, see the stack."""
        raise NotImplementedError

    def in_pieces(
        self, x: Tensor, state: StackState | None, new: Tensor | None, fields: dict, w: int, maps: Any
    ) -> tuple[Tensor, StackState]:
        """Packed tokens block after block of w, for layers that read what a layer above wrote in the block before."""
        if maps is not None:
            raise ValueError(
                "a stack whose layers read each other's state vectors runs in blocks: it has no whole maps"
            )
        outputs = []
        for start, end in cuts(x.shape[1], w, state):
            here = None if new is None else (new - start).clamp(0, end - start)
            y, state = self.next_piece(state, x[:, start:end], here, fields)
            # From now on the state holds the context.
            fields = {name: None if name.startswith("context") else value for name, value in fields.items()}
            outputs.append(y)
        return torch.cat(outputs, 1), cast(StackState, state)

    @property
    def goes_in_pieces(self) -> bool:
        return self.piece_width is not None

    def one_piece(
        self, state: StackState | None, x: Tensor, new: Tensor | None, fields: dict
    ) -> tuple[Tensor, StackState | None]:
        """Packed tokens without a border of blocks between them."""
        return self.through(x, state, new, fields, True, None)

    def room(self, *piece: Any) -> tuple[Any, int]:
        return self, piece[0].shape[1]


def cuts(n: int, w: int, state: StackState | None) -> list[tuple[int, int]]:
    """Where n new tokens are cut so that no row has a border of its blocks of w inside a piece."""
    if n == 1:
        return [(0, 1)]
    if state is not None and state.length is not None:
        # Rows at different places in their blocks have different borders: the one place that has to look at data.
        return borders(n, w, fills(state.length, w))
    return borders(n, w, [0 if state is None else state.bound])
