"""`Parallel`: blocks that read the same stream side by side, their updates added (GPT-J, PaLM, GPT-NeoX)."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from ...base.shapes import Float, Int, Tensor, typed
from ...base.state import Ctx
from ..site import Site
from .block import Block, update_of

__all__ = ["Parallel"]


class Parallel(Block):
    """The blocks that a layout joins by '+' (https://arxiv.org/abs/2204.02311): x + f(norm(x)) + g(norm(x)).

    Its state is the tuple of its members' states, its maps are theirs, and what it is asked the members answer.
    Members with norms of their own are each given a tensor of their own (b, n, members, d).
    """

    def __init__(self, blocks: Sequence[Block], site: Site):
        super().__init__(self.Config(), site)
        self.blocks = nn.ModuleList(blocks)

    def members(self, state: Any = None) -> list[tuple[Block, Any]]:
        states = (None,) * len(self.blocks) if state is None else state
        return list(zip(cast("list[Block]", list(self.blocks)), states, strict=True))

    @typed
    def forward(
        self, x: Float[Tensor, "b n *m d"], ctx: Ctx, state: tuple | None = None
    ) -> tuple[Float[Tensor, "b n d"], tuple | None]:
        total, states = None, []
        for i, (block, held) in enumerate(self.members(state)):
            read = x if x.dim() == 3 else x[:, :, i]
            y, after = update_of(block, block(read, ctx.seen_by(block.site.pos), held), read)
            total = y if total is None else total + y
            states.append(after)
        return cast(Tensor, total), tuple(states) if ctx.keep_state else None

    def each(self, state: tuple | None, ask: Callable[[Block, Any], Any]) -> tuple | None:
        """What `ask` gives for every member and its state; None without a state."""
        return None if state is None else tuple(ask(block, held) for block, held in self.members(state))

    def optional(self, state: tuple | None) -> tuple[str, ...]:
        named = [(i, *pair) for i, pair in enumerate(self.members(state))]
        return tuple(f"blocks.{i}.{name}" for i, block, held in named for name in block.optional(held))

    def kept_on_reset(self, state: tuple | None) -> tuple | None:
        kept = self.each(state, lambda block, held: block.kept_on_reset(held))
        return None if kept is None or all(part is None for part in kept) else kept

    def reserve(
        self, state: tuple | None, used: int, need: int, copy: bool, length: Int[Tensor, " b"] | None
    ) -> tuple | None:
        room = self.each(state, lambda block, held: block.reserve(held, used, need, copy, length))
        same = state is None or room is None or all(a is b for a, b in zip(state, room, strict=True))
        return state if same else room

    def shorten(
        self, state: tuple | None, tokens: int, front: int, bound: int, length: Int[Tensor, " b"] | None
    ) -> tuple | None:
        return self.each(state, lambda block, held: block.shorten(held, tokens, front, bound, length))
