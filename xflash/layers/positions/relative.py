"""`Relative`: the positions of a stack as its blocks use them."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar, cast

import torch

from ...base.shapes import Float, Int, Tensor
from ...base.state import Ctx
from ..kernels.relative import scores_bias
from .position import Bias, Position, Turn
from .slots import Slots

__all__ = ["Relative"]

P = TypeVar("P", bound=Position)


def table_of(turn: Turn, ctx: Ctx, where: Int[Tensor, "_ n"] | None, key_width: int, dtype: torch.dtype) -> Any:
    """The table of a turn at the places of a call's tokens, or at those of a context."""
    return turn.table(turn.places(ctx) if where is None else where, key_width, dtype)


class Relative:
    """Positions of a stack, by name, as its blocks use them: tables and biases are made once a call."""

    def __init__(self, named: Mapping[str, Position]):
        self.modules = list(named.values())
        self.turns = [m for m in self.modules if isinstance(m, Turn)]
        self.biases = [m for m in self.modules if isinstance(m, Bias)]
        known = [(m.known_as or name, m) for name, m in named.items()]
        self.turned_by = [name for name, m in known if isinstance(m, Turn)]
        self.biased_by = tuple(name for name, m in known if isinstance(m, Bias))

    def of(self, family: type[P]) -> list[P]:
        """The stack's positions of a family, for the blocks that know what it gives."""
        return [m for m in self.modules if isinstance(m, family)]

    def rotate(
        self,
        t: Float[Tensor, "b *h n k"],
        ctx: Ctx,
        inverse: bool = False,
        where: Int[Tensor, "_ n"] | None = None,
        over_context: bool = False,
    ) -> Float[Tensor, "b *h n k"]:
        """Queries (or keys, `inverse`) turned to their places, or keys to those of a context (`where`).

        over_context: whether they meet tokens of a context, by the positions that count where those stand.
        """
        for name, turn in zip(self.turned_by, self.turns, strict=True):
            if over_context and not turn.places_context:
                continue
            width, dtype = t.shape[-1], t.dtype
            make = partial(table_of, turn, ctx, where, width, dtype)
            t = turn.turn(t, ctx.once(("turn", name, width, dtype, where is None), make), inverse)
        return t

    @property
    def turns_once(self) -> bool:
        """Whether all that `rotate` does is to turn pairs of channels by one table of cosines and sines."""
        return len(self.turns) < 2 and all(turn.in_pairs for turn in self.turns)

    def pairs(
        self, ctx: Ctx, key_width: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "n r"], Float[Tensor, "n r"], bool]:
        """The tables (n, width) of a stack that `turns_once`, alike for all rows, and whether pairs are neighbours."""
        (turn,) = self.turns
        make = partial(turn.table, ctx.positions, key_width, dtype)
        cos, sin, _ = ctx.once(("turn", self.turned_by[0], key_width, dtype, True), make)
        return cos[0, 0], sin[0, 0], turn.neighbours

    def rotate_both(
        self, both: Float[Tensor, "b *_ n k"], queries: int, ctx: Ctx
    ) -> tuple[Float[Tensor, "b *_ n k"], Float[Tensor, "b *_ n k"]]:
        """Queries, the first ones on the axis before the tokens, and keys behind them, turned; at once if alike."""
        apart = queries, both.shape[-3] - queries
        if not all(turn.alike for turn in self.turns):
            q, k = both.split(apart, -3)
            return self.rotate(q, ctx), self.rotate(k, ctx, inverse=True)
        q, k = self.rotate(both, ctx).split(apart, -3)
        return q, k

    def turn(
        self, t: Float[Tensor, "b h n k"], where: Int[Tensor, "_ n"], ctx: Ctx, view: Any, inverse: bool = False
    ) -> Float[Tensor, "b h n k"]:
        """Queries (or keys, `inverse`) turned to places in a window, the same in all layers of the same `view`."""
        for name, turn in zip(self.turned_by, self.turns, strict=True):
            make = partial(turn.table, where, t.shape[-1], t.dtype)
            t = turn.turn(t, ctx.once(("window", name, t.shape[-1], t.dtype, view, inverse), make), inverse)
        return t

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"] | None:
        """What the stack's biases add at each distance (key minus query); None without any."""
        if not self.biases:
            return None
        return torch.stack([bias.by_distance(distance, heads, dtype) for bias in self.biases]).sum(0).to(dtype)

    def bias(
        self, heads: int, slots: Slots, m: int, ctx: Ctx, dtype: torch.dtype, view: tuple = (None, 0)
    ) -> Float[Tensor, "_ h n m"] | None:
        """What the stack's biases add to the scores of queries against m slots; None without any.

        view: what makes layers remember other tokens than their neighbours do.
        """
        if not self.biases:
            return None
        return ctx.once(
            ("bias", self.biased_by, heads, dtype, view),
            lambda: scores_bias(lambda gap: cast(Tensor, self.by_distance(gap, heads, dtype)), *slots, m),
        )
