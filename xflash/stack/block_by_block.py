"""`BlockByBlock`: the way of a stack whose layers read what a layer above wrote in the block before."""

import itertools
from collections.abc import Mapping
from typing import Any, cast

import torch

from ..base.looks import has_values
from ..base.pieces import borders, fills
from ..base.shapes import Bool, Int, Tensor
from ..base.state import StackState, document_positions
from .column import Column
from .noted import Noted
from .side_inputs import piece
from .stepping import reset

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
        beside = dict(beside)
        doc_ids, n, w = beside.pop("doc_ids", None), x.shape[1], self.piece_width
        for start, end, anew in cuts(n, w, state) if doc_ids is None else document_cuts(doc_ids, w, new):
            if anew is not None and state is not None:
                # Where a document begins its row does.
                state = reset(self, state, anew, None)
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


def cuts(n: int, w: int, state: StackState | None) -> list[tuple[int, int, None]]:
    """Where n new tokens are cut so that no row has a border of its blocks of w inside a piece."""
    if n == 1:
        return [(0, 1, None)]
    # Rows at different places in their blocks have different borders: one of two places that have to look at data.
    ragged = state is not None and state.length is not None
    filled = fills(state.length, w) if ragged else [0 if state is None else state.bound]
    return [(start, end, None) for start, end in borders(n, w, filled)]


def document_cuts(
    doc_ids: Int[Tensor, "b n"], w: int, new: Int[Tensor, " b"] | None
) -> list[tuple[int, int, Bool[Tensor, " b"] | None]]:
    """The same for packed documents, whose blocks begin anew, with the rows that begin one there (None: none does).

    ValueError while torch compiles, since documents have to be looked at.
    """
    n, position = doc_ids.shape[1], document_positions(doc_ids)
    begin = torch.stack((position == 0, position % w == 0))
    if new is not None:
        begin = begin & (torch.arange(n, device=doc_ids.device) < new[:, None])
    if torch.compiler.is_compiling():
        raise ValueError(
            "doc_ids in a compiled stack whose layers read each other's state vectors: it runs piece after piece, and "
            "where documents begin has to be looked at; model.compile() compiles what is done with a piece"
        )
    # Pieces of one token where values cannot be had.
    anew, places = begin.any(1).tolist() if has_values(begin) else [[True] * n] * 2
    starts = [i for i in range(n) if places[i] or not i]
    return [(i, j, begin[0, :, i] if anew[i] else None) for i, j in itertools.pairwise([*starts, n])]
