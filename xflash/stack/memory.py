"""Enhanced recurrence: layers that remember what a layer below them read of the stream (ERNIE-Doc)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..base.registry import blocks as registered
from ..base.registry import joins
from ..base.state import StackState
from ..layers.branch import Branch

if TYPE_CHECKING:
    from .column import Column

__all__ = ["keep_reads", "moved_down"]


def keep_reads(stack: Any, down: int) -> None:
    """Has the layers whose memories can move `down` keep what they read; ValueError where they cannot move so far."""
    said = f"shift_mem_down={down} gives layers what others have read of the stream"
    movers = [branch for branch in stack.branches if branch.block.moves]
    count = sum(stack.branches[i].block.moves for i in stack.order)
    if not down < count:
        able = ", ".join(name for name, block in registered.items() if block.moves)
        most = f"give at most {count - 1}" if count > 1 else "give 0"
        raise ValueError(f"{said}, but the stack has {count} layers that can (blocks: {able}); {most}")
    if unlike(stack, down):
        raise ValueError(
            f"{said}, but those with windows of their own have memories of unlike lengths; give one window"
        )
    why = next((why for branch in movers if (why := rooted(branch))), "")
    if not why and (asked := sorted({"condition", "grid"} & set(stack.heeded))):
        why = f"layers read the {asked[0]} of tokens too, which no memory keeps"
    if why:
        raise ValueError(f"{said}, but {why}")
    for branch in movers:
        branch.keeps_read = branch.block.keeps_read = True
    stack.maker = f"{stack.maker} with shift_mem_down"


def unlike(stack: Any, down: int) -> bool:
    """Whether layers that see windows alike, and so share masks and biases, would be given memories that are not."""
    blocks = [stack.branches[i].block for i in stack.order if stack.branches[i].block.moves]
    views = [block.seen_window() for block in blocks]
    given: dict[Any, Any] = {}
    moved = [*views[down:], *views[:down]]
    return any(given.setdefault(own, other) != other for own, other in zip(views, moved, strict=True))


def rooted(branch: Branch) -> str:
    """Why no other layer's memory can be in the place of this one's, or ''."""
    if branch.reads is not None:
        return f"with reads={' '.join(branch.reads)!r} layers read more than the stream"
    if branch.join.wide:
        return f"with join={joins.name_of(type(branch.join))!r} there are several streams"
    return "with shift_tokens layers read tokens that are mixed" if branch.shift is not None else branch.block.rooted()


def moved_down(column: Column, state: StackState, down: int) -> StackState:
    """`state` in which each layer has, of the tokens there are, keys and values of what the layer `down` below it read.

    Each is a layer's own, made anew (https://arxiv.org/abs/2012.15688); the last ones go on with the first ones'.
    """
    places = [place for place, i in enumerate(column.order) if column.branches[i].keeps_read]
    found = list(state.branches)
    for at, place in enumerate(places):
        branch, source = column.branches[column.order[place]], state.branches[places[(at + down) % len(places)]].block
        read = source.brought[-1][:, 0]
        plain = column.context(read, None, None, {}, (False, False, None, None))
        ctx = replace(plain, positions=source.tokens()).seen_by(branch.block.site.pos)
        normed = read if branch.before is None else branch.before(read, ctx)
        found[place] = found[place]._replace(block=branch.block.remade(source, normed, ctx))
    return state._replace(lease=None, branches=tuple(found))
