"""What a caller may give a stack beside x and its mask: one table, gone through at each station of a call."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..base.registry import blocks, joins, norms, positions, reads, scales, scores, side_inputs
from ..base.shapes import Tensor
from ..flags.answering import unknown
from ..layers.blocks.block import Block
from ..layers.positions.position import Position
from . import inputs  # noqa: F401
from .inputs.side_input import Call, Door, SideInput

__all__ = [
    "Door",
    "SideInput",
    "asked_by",
    "behind_front",
    "carried",
    "check_prefix",
    "checked",
    "given_here",
    "heeded_by",
    "packed",
    "piece",
    "untaken",
]


def given_here(stack: Any, further: Mapping[str, Any], **named: Any) -> dict[str, Any]:
    """The side inputs that are given, without those that are None; TypeError for one that nobody registered."""
    for name in further:
        if name not in side_inputs:
            raise TypeError(unknown(type(stack), "forward", name))
    named = {**named, **further} if further else named
    return {name: value for name, value in named.items() if value is not None}


def heeded_by(stack: Any) -> frozenset[str]:
    """The names of the side inputs that parts of a stack take, beside those that its blocks honour."""
    return frozenset().union(*(getattr(module, "heeds", ()) for module in stack.modules() if module is not stack))


def asked_by(stack: Any) -> list[str]:
    """The names of those that a call of the stack may have to be given."""
    return [name for name in side_inputs if side_inputs[name]().asked_by(stack)]


def checked(stack: Any, x: Tensor, beside: Mapping[str, Any], state: Any = None, keeps: bool = False) -> dict[str, Any]:
    """What is given as the door takes it; TypeError or ValueError for what no stack, or not this one, can take.

    state: what the call goes on from, which holds what the first call was given.  keeps: whether it gives one back.
    """
    call = Call(stack, x.shape[0], x.shape[1], state, beside, keeps)
    found = {}
    for name in side_inputs if beside else stack.asked:
        side = side_inputs[name]()
        if name in beside:
            check_heeded(side, stack)
            found[name] = side.check(beside[name], call)
            check_honoured(side, stack)
        else:
            side.missing(call)
    return found


def check_heeded(side: SideInput, stack: Any) -> None:
    """ValueError where no part of the stack looks at what is given."""
    if side.must != "some" or side.name in stack.heeded:
        return
    raise ValueError(f"{side.name} is given, but {untaken(side.name)}")


def untaken(name: str) -> str:
    """Why a side input would have no effect."""
    kinds = (blocks, norms, positions, reads, scales, joins, scores)
    able = [part for kind in kinds for part, cls in kind.items() if name in getattr(cls, "heeds", ())]
    return f"no part of the stack takes one (parts that do: {', '.join(able) or 'none'})"


def check_honoured(side: SideInput, stack: Any) -> None:
    """ValueError where a block cannot honour what all have to."""
    for block in stack.blocks() if side.must == "all" else ():
        if side.name not in block.honours:
            able = ", ".join(name for name in blocks if side.name in blocks[name].honours)
            raise ValueError(f"{type(block).__name__} cannot honour {side.name}; blocks that can: {able}")


def packed(beside: Mapping[str, Any], door: Door) -> dict[str, Any]:
    """What was checked as it is behind the door."""
    found: dict[str, Any] = {}
    for name, value in beside.items():
        found |= side_inputs[name]().pack(value, door)
    return found


def piece(beside: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """What the tokens from `start` to `end` behind the door are given, those before them read."""
    found = {name: side_inputs[name]().piece(value, start, end) for name, value in beside.items()}
    return {name: value for name, value in found.items() if value is not None}


def carried(beside: Mapping[str, Any], held: tuple[tuple[str, Tensor], ...]) -> tuple[tuple[str, Tensor], ...]:
    """What a state carries on of what its call was given, and of what the state before held; copies."""
    if not beside:
        return held
    new = {name: value.clone() for name, value in beside.items() if side_inputs[name]().carried(value)}
    return tuple({**dict(held), **new}.items()) if new else held


def behind_front(beside: Mapping[str, Any], count: int, shape: tuple[int, int]) -> dict[str, Any]:
    """What a model's stack is given, before it is checked, where the model puts `count` tokens of its own in front."""
    found: dict[str, Any] = {}
    for name in side_inputs:
        if beside.get(name) is not None:
            found |= side_inputs[name]().behind(beside[name], count, shape)
    return found


def check_prefix(here: Iterable[Block], there: Iterable[Position]) -> None:
    """ValueError for a block or a position that cannot honour a prefix."""
    able = ", ".join(name for name in blocks if "prefix" in blocks[name].honours)
    for block in here:
        if "prefix" not in block.honours:
            raise ValueError(
                f"{type(block).__name__} cannot honour the prefix of a PrefixDecoder; blocks that can: {able}"
            )
    for position in there:
        if refused := position.refuses_ahead():
            raise ValueError(f"{refused[0]} in a PrefixDecoder: {refused[1]}")
