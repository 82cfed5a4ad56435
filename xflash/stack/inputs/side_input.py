"""`SideInput`: the interface of what may be given to a call beside x and its mask."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F

from ...base.registry import side_inputs
from ...base.shapes import Tensor
from ..door import Plan

__all__ = ["Call", "Door", "SideInput"]


class Call(NamedTuple):
    """The call that is given something: its stack, its rows and tokens, and the state it goes on from.

    keeps: whether it gives a state back, to be gone on from.
    """

    stack: Any
    batch: int
    n: int
    state: Any
    given: Mapping[str, Any]
    keeps: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch, self.n

    @property
    def stepping(self) -> bool:
        """Whether something came before."""
        return self.state is not None


class Door(NamedTuple):
    """How the door packs a call: its plan (None: rows are whole), and how many memory tokens it puts in front."""

    plan: Plan | None
    memory: int
    n: int
    device: torch.device


class SideInput:
    """Base of the side inputs: registered by name, checked in front of the door, packed there, found in `ctx.beside`.

    per: whether it has an entry for each token (b, n, ...), which is moved and cut with the tokens, for each row
    (b, ...) or is one for the call.  must: whether every block has to name it in its `honours`, or some part of the
    stack in its `heeds`, or neither is looked at.  needed: whether a call without it is refused where a part takes it.
    blank: what stands at tokens that are not the caller's.  example: what examples in the docs give of it, for `{rows}`
    rows of `{tokens}` tokens of width `{dim}`.
    """

    per: ClassVar[Literal["token", "row", "call"]] = "token"
    must: ClassVar[Literal["all", "some", ""]] = "some"
    needed: ClassVar[bool] = False
    blank: ClassVar[float] = 0
    example: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return side_inputs.name_of(type(self))

    def check(self, value: Any, call: Call) -> Any:
        """The value as the door takes it; TypeError or ValueError for one that the call cannot be given."""
        return value

    def asked_by(self, stack: Any) -> bool:
        """Whether `missing` is to be asked where a call of the stack is given nothing at all."""
        return self.needed and self.name in stack.heeded

    def missing(self, call: Call) -> None:
        """ValueError where a call must be given it, and no state holds it."""
        held = [name for name, _ in getattr(call.state, "carried", ())]
        if self.asked_by(call.stack) and self.name not in held:
            raise ValueError(f"parts of the stack need {self.name}, and this call has none: {self.wanted(call)}")

    def wanted(self, call: Call) -> str:
        """What to give."""
        return f"give {self.name}="

    def pack(self, value: Any, door: Door) -> Mapping[str, Any]:
        """What goes behind the door: entries of `ctx.beside`."""
        return {self.name: self.packed(value, door) if self.per == "token" else value}

    def packed(self, value: Tensor, door: Door) -> Tensor:
        """Entries of tokens (1 | b, n, ...) in the order behind the door, blank at memory and at masked tokens."""
        if door.plan is not None:
            tail = (1,) * (value.dim() - 2)
            value = value.expand(len(door.plan.mask), *value.shape[1:])
            value = value.masked_fill(~door.plan.mask.reshape(*door.plan.mask.shape, *tail), self.blank)
            value = value.gather(1, door.plan.order.reshape(*door.plan.order.shape, *tail).expand_as(value))
        return self.fronted(value, door.memory)

    def fronted(self, value: Tensor, count: int) -> Tensor:
        """Entries of tokens behind those of `count` tokens that are not the caller's."""
        return F.pad(value, (0, 0) * (value.dim() - 2) + (count, 0), value=self.blank) if count else value

    def behind(self, value: Any, count: int, shape: tuple[int, int]) -> Mapping[str, Any]:
        """What a stack is given where a model puts `count` tokens in front of the caller's, `shape` (b, n) of them."""
        return {self.name: self.fronted(value, count) if self.per_token(value, shape[1]) else value}

    def per_token(self, value: Any, n: int) -> bool:
        """Whether this has an entry for each of n tokens; what is not checked yet may be anything."""
        tensor = isinstance(value, torch.Tensor) and value.dim() >= 2
        return self.per == "token" and tensor and value.shape[1] == n

    def piece(self, value: Any, start: int, end: int) -> Any:
        """What a piece of the tokens behind the door is given; None where the state holds it by then."""
        return value[:, start:end] if self.per == "token" else value

    def carried(self, value: Any) -> bool:
        """Whether the state carries it on to the next call, which may be given another."""
        return False

    def one_for_all(self, value: Tensor) -> bool:
        """Whether it is the same for all rows, so that rows cannot be reordered in it."""
        return False


side_inputs.base = SideInput
