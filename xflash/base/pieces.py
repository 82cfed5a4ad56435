"""Modules that go through a sequence piece after piece: what they do with one piece can be compiled, for any number."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .fallback import as_eager, refusable
from .looks import has_values
from .shapes import Int, Tensor
from .state import TAKEN, Lease, StackState

__all__ = ["CompiledPiece", "Piecewise", "borders", "fills", "innermost", "lend", "take_back"]


def borders(n: int, w: int, fills: Sequence[int]) -> list[tuple[int, int]]:
    """The pieces of n new tokens between the places where a row that has `fills` tokens completes w of them."""
    if len(fills) == 1:
        # By counting alone: traced with sizes as symbols, a graph serves all n of as many pieces.
        first = w - fills[0] % w
        starts = [0, *(first + i * w for i in range(max(0, (n - first + w - 1) // w)))]
        return list(zip(starts, [*starts[1:], n], strict=True))
    places = {at for fill in fills for at in range((-fill) % w, n, w)} | {0, n}
    return list(itertools.pairwise(sorted(places)))


def fills(length: Int[Tensor, " b"], w: int) -> list[int]:
    """How many tokens rows have, for `borders`; where values cannot be had, any number (pieces of one token)."""
    if not has_values(length) and not torch.compiler.is_compiling():
        return list(range(1, w + 1))
    return length.tolist() or [0]


def lend(layers: Any, state: StackState, n: int) -> tuple[StackState, Lease | None]:
    """The state with room for n more slots, for a graph that is to make none itself; and its lease, to be taken back.

    A graph that grows a buffer, or cuts or closes one, would be a graph of its own each time.
    """
    opened, _ = layers.open(state, n)
    return opened._replace(lease=TAKEN), opened.lease


def take_back(state: StackState, lease: Lease | None) -> StackState:
    """The state that a graph made of a lent one, as it would be had the graph made the room itself."""
    if state.lease is not TAKEN or lease is None or lease is TAKEN:
        return state
    lease.release(state.bound)
    return state._replace(lease=lease)


class CompiledPiece:
    """`module.one_piece` compiled: few graphs for pieces of all lengths, however many there are."""

    def __init__(self, module: "Piecewise", **options: Any):
        self.module = module

        @refusable
        def piece(state, *args):
            return module.one_piece(state, *args)

        options.setdefault("dynamic", True)
        self.piece = as_eager(torch.compile(piece, **options), piece)

    def __call__(self, state: Any, *args: Any) -> tuple[Any, Any]:
        layers, n = self.module.room(*args)
        args = tuple(owned(arg) for arg in args)
        stack = state if isinstance(state, StackState) else getattr(state, "stack", None)
        if layers is None or not isinstance(stack, StackState):
            return self.piece(state, *args)
        layers.check_state(stack, args[0].shape[0])
        lent, lease = lend(layers, stack, n)
        y, after = self.piece(with_stack(state, lent), *args)
        left = after if isinstance(after, StackState) else after.stack
        return y, after if left is None else with_stack(after, take_back(left, lease))


def with_stack(state: Any, stack: StackState) -> Any:
    """A stack's or a model's state with `stack` in place of what it holds."""
    return stack if isinstance(state, StackState) else state._replace(stack=stack)


def owned(arg: Any) -> Any:
    """`arg` with no tensor a view of another: whether a piece is all of a tensor would be two graphs."""
    if isinstance(arg, torch.Tensor):
        return arg.clone() if arg._is_view() or not arg.is_contiguous() else arg
    if isinstance(arg, Mapping):
        return {name: owned(value) for name, value in arg.items()}
    return arg


class Piecewise(nn.Module):
    """The part of a module that goes through a sequence piece after piece.

    It has `one_piece(state, x, ...) -> (y, state)` and calls `next_piece` instead.
    """

    compiled_piece: CompiledPiece | None = None
    one_piece: Callable[..., tuple[Any, Any]]

    @property
    def goes_in_pieces(self) -> bool:
        """Whether it does, as it was built."""
        return True

    def room(self, *piece: Any) -> tuple[Any, int]:
        """The stack whose state is gone on from (None: not known), and how many slots of it a piece takes."""
        raise NotImplementedError

    def next_piece(self, state: Any, *args: Any) -> tuple[Any, Any]:
        """`one_piece`, compiled once `compile_piece` was called."""
        if self.compiled_piece is None or torch.compiler.is_compiling():
            return self.one_piece(state, *args)
        return self.compiled_piece(state, *args)

    def compile_piece(self, **options: Any) -> None:
        """From now on pieces run compiled; options as of `torch.compile`, dynamic=True unless given."""
        self.compiled_piece = CompiledPiece(self, **options)

    def __getstate__(self) -> dict[str, Any]:
        # As with nn.Module.compile, what is saved or copied of a module is not compiled.
        kept = dict(super().__getstate__())
        kept.pop("compiled_piece", None)
        return kept


def innermost(module: nn.Module) -> list[Piecewise]:
    """The modules inside (or the module) that go piece after piece, those with others of them inside left out."""
    found = [m for m in module.modules() if isinstance(m, Piecewise) and m.goes_in_pieces]
    return [m for m in found if not any(n is not m and n in found for n in m.modules())]
