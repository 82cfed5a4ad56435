"""Who looks at a stack while it runs: known to the call's context, so that nothing is written on the stack."""

from collections.abc import Container, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from ..base.shapes import Tensor
from ..base.state import StackState
from .noted import Noted

__all__ = ["OF_ALL", "Watch", "asked_of", "noted_for", "watched_by", "watching"]

# What every layer has: blocks say the rest (`Block.shows`), and whether they have a matrix.
OF_ALL = ("hidden", "state")


class Watch(Protocol):
    """Somebody who is given what calls of some stacks note of what is asked."""

    stacks: Container[Any]

    def asked_of(self, stack: Any) -> tuple[str, ...]:
        """What is asked of a stack."""

    def given(self, stack: Any, x: Tensor) -> Tensor:
        """What a stack reads in the place of x, which is the same in numbers."""

    def take(self, stack: Any, noted: Noted, state: StackState | None) -> None:
        """What a call has noted, where the caller's tokens stand, and the state behind it, where it was asked for."""


WATCHING: ContextVar[tuple[Watch, ...]] = ContextVar("watching", default=())


def watching(stack: Any) -> tuple[Watch, ...]:
    """Those who look at `stack` in this thread; a graph is looked at by nobody."""
    if torch.compiler.is_compiling() or not (watches := WATCHING.get()):
        return ()
    return tuple(watch for watch in watches if stack in watch.stacks)


@contextmanager
def watched_by(watch: Watch) -> Generator[None]:
    """Lets somebody look at what this thread calls in the `with` block."""
    token = WATCHING.set((*WATCHING.get(), watch))
    try:
        yield
    finally:
        WATCHING.reset(token)


def asked_of(stack: Any, watches: tuple[Watch, ...]) -> tuple[str, ...]:
    """What they ask of a stack, each once."""
    return tuple(dict.fromkeys(name for watch in watches for name in watch.asked_of(stack)))


def noted_for(asked: tuple[str, ...], noted: Noted | None) -> Noted:
    """Lists for what is asked for, beside those of the caller, whose own stay the same."""
    maps, hiddens, losses, *_ = Noted() if noted is None else noted
    maps = [] if maps is None and "maps" in asked else maps
    return Noted(maps, [] if hiddens is None and "hidden" in asked else hiddens, losses, [], asked)
