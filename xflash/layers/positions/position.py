"""`Position`: the interface of the relative positions of a stack, and what the two families of them give."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks, positions
from ...base.shapes import Float, Int, Tensor
from ...base.state import Ctx
from ..blocks.block import Block

__all__ = ["Bias", "Position", "Turn"]


class Position(nn.Module):
    """Base of the positions: built from a Config, the direction of the stack, and the head counts that take a bias.

    A class that derives from it directly is a family of its own: what it gives is between it and the blocks that name
    it, or another one of its family, in their `positions`; they find it as `ctx.relative.of(Family)`.
    `places_context`: whether it also counts where the tokens of a context stand (`context_pos`). `heeds` names the side
    inputs in `ctx.beside` that it looks at. `known_as`: what its tables are remembered by in a call, the same for those
    that make the same ones. `example`: the flags that its example in the docs has.
    """

    places_context: ClassVar[bool] = False
    heeds: ClassVar[frozenset[str]] = frozenset()
    known_as: str = ""
    example: ClassVar[Mapping[str, Any]] = {}

    @frozen
    class Config:
        """Nothing to set."""

    def __init__(self, config: Any, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__()
        self.config = config
        self.causal = causal

    @classmethod
    def family(cls) -> type["Position"]:
        """The class whose interface this one has (`Turn`, `Bias`): a block that can use one member can use all."""
        return next(c for c in cls.__mro__ if issubclass(c, Position) and Position in c.__bases__)

    @classmethod
    def fits(cls, block: Block | type[Block]) -> bool:
        """Whether a block, or those of a class, can use it: those that name it or another of its family."""
        return any(positions[name].family() is cls.family() for name in block.positions)

    def meet(self, users: Sequence[Block]) -> None:
        """Is called once, when the stack is built: makes parameters whose shapes the blocks that use it decide."""

    def check(self, users: Sequence[Block]) -> None:
        """ValueError for settings that the blocks of the stack that use it cannot follow."""

    def refuses_ahead(self) -> tuple[str, str] | None:
        """The setting that keeps keys ahead of a query (of a context, a prefix) out, and why; None without one."""
        return None


positions.base = Position


class Turn(Position):
    """Base of the positions that change queries and keys by where they stand."""

    places_context = True

    def check(self, users: Sequence[Block]) -> None:
        for block in users:
            if block.turns_kept and type(self).places is not Turn.places:
                raise ValueError(
                    f"pos={positions.name_of(type(self))!r} has places that nobody counts, but "
                    f"{blocks.name_of(type(block))!r} turns keys of former calls by their count: with "
                    "latent_rope_subheads it turns each once"
                )

    @property
    def alike(self) -> bool:
        """Whether queries and keys are changed alike, so that both can be at once."""
        return False

    @property
    def in_pairs(self) -> bool:
        """Whether its table is cosines, signed sines and None, by which pairs are turned, and that is all."""
        return False

    @property
    def neighbours(self) -> bool:
        """Of one that turns pairs: whether they are neighbours rather than halves."""
        return False

    def places(self, ctx: Ctx) -> Int[Tensor, "_ n *_"]:
        """Where the tokens of a call stand: counted anew in each document, which keys that are not turned see alone."""
        return ctx.positions if ctx.doc_ids is None else ctx.doc_positions()

    def table(self, where: Int[Tensor, "_ n *_"], key_width: int, dtype: torch.dtype) -> Any:
        """What depends on the places only: made once for all layers whose keys have this width."""
        raise NotImplementedError

    def turn(self, t: Float[Tensor, "b *h n k"], table: Any, inverse: bool = False) -> Float[Tensor, "b *h n k"]:
        """Queries, or keys (`inverse`), as they are at the places of the table; heads are the first axis behind b."""
        raise NotImplementedError


class Bias(Position):
    """Base of the positions that add something to the scores by the distance between key and query."""

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"]:
        """The bias of each head at each distance (key minus query position), for scores of `dtype`."""
        raise NotImplementedError
