"""The positions of a stack: which blocks use which."""

from collections.abc import Sequence
from typing import Any, cast

from ..base.registry import positions
from ..layers.blocks.block import Block
from ..layers.positions.position import Position

__all__ = ["apart", "check_uses", "make_position", "users"]


def apart(blocks: Sequence[Block]) -> list[tuple[str, ...]]:
    """The names of the positions of blocks that have not those of the stack, each choice once."""
    return list(dict.fromkeys(block.site.pos for block in blocks if block.site.pos is not None))


def offered(stack: Any, name: str) -> list[Block]:
    """The blocks of a stack that have the position of this name, whether they can use it or not."""
    return [block for block in stack.blocks() if name in (stack.pos if block.site.pos is None else block.site.pos)]


def users(stack: Any, name: str) -> list[Block]:
    """The blocks of a stack that use the position of this name."""
    return [block for block in offered(stack, name) if stack.positions[name].fits(block)]


def make_position(stack: Any, name: str, kind: str, config: Any) -> Position:
    """A position of a stack, for the heads of the blocks that have it."""
    heads = sorted({h for block in offered(stack, name) if (h := block.bias_heads()) is not None})
    position = positions[kind](config, stack.causal, tuple(heads))
    position.meet([block for block in offered(stack, name) if position.fits(block)])
    if next(position.parameters(), None) is None:
        # Layers with positions of their own that have the same settings share their tables.
        position.known_as = f"{kind} {config}"
    return position


def check_uses(stack: Any) -> None:
    """ValueError for settings of positions that the blocks that use them cannot follow."""
    for name, position in stack.positions.items():
        cast(Position, position).check(users(stack, name))
