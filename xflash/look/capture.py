"""`capture`: what the layers of a model do during its calls, on request."""

import sys
from collections import Counter
from collections.abc import Container, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch

from ..base.registry import nearest
from ..base.state import StackState
from ..layers.blocks.block import Block
from ..layers.branch import Branch
from ..stack.face import AttentionLayers
from ..stack.noted import Noted
from ..stack.stepping import refused_step
from ..stack.watched import OF_ALL, watched_by
from .layers import Layer, block_name, layers_of, stacks_of

__all__ = ["Call", "Seen", "Shown", "capture"]


# What blocks of xflash show, some of them.
KINDS = ("maps", "gates", "near", "far")


class Shown(NamedTuple):
    """One thing that one layer has shown: what it is, whose it is (`Layer` has the words), and the tensor or state."""

    kind: str
    stack: str
    place: int
    label: str
    value: Any


class Call(NamedTuple):
    """What one call of a stack has shown; `call['gates']` has it by the labels of the layers."""

    stack: str
    rows: tuple[Shown, ...]

    def __getitem__(self, kind: Any) -> Any:
        return {row.label: row.value for row in self.rows if row.kind == kind}


class Seen:
    """What calls of a model have shown: `calls` has them all in their order, `seen.gates` is of the last one.

    Of a model with several stacks it is of the last call of each. Tensors are as the call made them, with their graph
    unless it was made under torch.no_grad(), and are kept for as long as this is.
    """

    def __init__(self, stacks: dict[str, AttentionLayers], asked: tuple[str, ...]):
        self.asked = asked
        self.calls: list[Call] = []
        self.stacks: Container[Any] = stacks.values()
        self.layers = {stack: layers_of(stack, name, len(stacks) > 1) for name, stack in stacks.items()}

    def __getitem__(self, kind: str) -> dict[str, Any]:
        if kind not in self.asked:
            raise KeyError(f"{kind!r} was not asked for; what was: {', '.join(self.asked)}")
        if not self.calls:
            raise ValueError("nothing is captured yet: call the model inside the with block of capture(...)")
        last = {call.stack: call for call in self.calls}
        return {label: value for call in last.values() for label, value in call[kind].items()}

    def __getattr__(self, kind: str) -> dict[str, Any]:
        if kind not in self.__dict__.get("asked", ()):
            asked = ", ".join(self.__dict__.get("asked", ()))
            raise AttributeError(f"{kind!r} was not asked for; what was: {asked}")
        return self[kind]

    def asked_of(self, stack: AttentionLayers) -> tuple[str, ...]:
        return tuple(kind for kind in self.asked if kind != "state" or not refused_step(stack))

    def given(self, stack: AttentionLayers, x: torch.Tensor) -> torch.Tensor:
        return x

    def take(self, stack: AttentionLayers, noted: Noted, state: StackState | None) -> None:
        layers = self.layers[stack]
        rows = [*maps_of(layers, noted), *shown_of(layers, noted)]
        state = state if "state" in self.asked_of(stack) else None
        rows = [*sorted(rows, key=lambda row: row.place), *hiddens_of(layers, noted), *states_of(stack, layers, state)]
        self.calls.append(Call(layers[0].stack if layers else "", tuple(r for r in rows if r.kind in self.asked)))


def maps_of(layers: list[Layer], noted: Noted) -> Iterator[Shown]:
    """The matrices of those that have one, which have noted them in their order."""
    able = [layer for layer in layers if layer.block.has_matrix]
    for layer, found in zip(able, noted.maps or (), strict=noted.maps is not None):
        yield Shown("maps", layer.stack, layer.place, layer.label, found.weights)


def shown_of(layers: list[Layer], noted: Noted) -> Iterator[Shown]:
    """What blocks have shown of themselves; one that is tied has shown it as often as it has run."""
    seen: Counter[tuple[Block, str]] = Counter()
    for block, kind, t in noted.shown or ():
        runs = [layer for layer in layers if layer.block is block]
        layer = runs[seen[block, kind]]
        seen[block, kind] += 1
        yield Shown(kind, layer.stack, layer.place, layer.label, t)


def states_of(stack: AttentionLayers, layers: list[Layer], state: StackState | None) -> Iterator[Shown]:
    """What blocks carry on, without those that carry nothing."""
    for layer in layers if state is not None else ():
        branch = cast(Branch, stack.branches[stack.order[layer.place]])
        held = dict(branch.block.members(cast(StackState, state).branches[layer.place].block))[layer.block]
        if held is not None:
            yield Shown("state", layer.stack, layer.place, layer.label, held)


def hiddens_of(layers: list[Layer], noted: Noted) -> Iterator[Shown]:
    """The stream behind each layer."""
    for layer in {layer.place: layer for layer in layers if noted.hiddens}.values():
        yield Shown("hidden", layer.stack, layer.place, layer.whole, cast(list, noted.hiddens)[layer.place + 1])


@contextmanager
def capture(model: Any, *asked: str) -> Generator[Seen]:
    """Gives what the layers of a model do in the calls inside the `with` block, and leaves nothing on the model.

    asked: 'maps' (b, h, n, m) the weights of attention, for flash (one head; not behind a state) all that it multiplies
    values by, 'hidden' (b, n, d) the stream behind each layer, 'gates'
    (b, n, ...) what attn, gau and flash multiply what they have read by, 'near' and 'far' (b, n, e) what the gate of
    flash multiplies, from inside a group and from across groups, 'state' what a layer carries on, and what blocks of
    your own show. `step` and whatever calls it are seen too. All is where the caller's tokens stand, zeros where the
    mask is False; behind a state, the columns of maps are each row's tokens in their order. What is compiled runs in
    eager meanwhile. ValueError for what no layer of the model has.
    """
    stacks = stacks_of(model)
    check_asked(stacks, asked)
    seen = Seen(stacks, asked)
    with watched_by(seen), uncompiled():
        yield seen


def uncompiled() -> Any:
    """A context in which compiled functions run in eager, where there can be any."""
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return ExitStack()
    return torch.compiler.set_stance("force_eager")


def check_asked(stacks: dict[str, AttentionLayers], asked: tuple[str, ...]) -> None:
    """ValueError for nothing, and for what no layer has, with what they have."""
    blocks = [block for stack in stacks.values() for block in stack.blocks()]
    able = {kind: True for block in blocks for kind in shown_by(block)}
    known = [*able, *OF_ALL]
    if not asked:
        raise ValueError(f"say what to capture: {', '.join(known)}")
    for kind in asked:
        if kind not in known:
            near = "" if kind in KINDS else nearest(kind, known)
            raise ValueError(f"no layer shows {kind!r}{near}; {what_they_show(blocks)}")
    if "maps" in asked:
        check_maps(stacks)
    reasons = [refused_step(stack) for stack in stacks.values()]
    if "state" in asked and all(reasons):
        raise ValueError(reasons[0])


def shown_by(block: Block) -> tuple[str, ...]:
    """What can be had of a block, beside what all layers have."""
    return ("maps",) * block.has_matrix + block.shows()


def check_maps(stacks: dict[str, AttentionLayers]) -> None:
    """ValueError with the reason where one of the matrices cannot be had."""
    for stack in stacks.values():
        reasons = [block.refuses_maps() for block in stack.blocks() if "maps" in shown_by(block)]
        if stack.goes_in_pieces and reasons:
            reasons.append("a stack whose layers read each other's state vectors runs in blocks: it has no whole maps")
        for reason in filter(None, reasons):
            raise ValueError(f"'maps' are asked for, but {reason}")


def what_they_show(blocks: list[Block]) -> str:
    """What there is instead, by the kind of the block."""
    each = {block_name(block): shown_by(block) for block in blocks}
    found = [f"{name} has {', '.join(shows)}" for name, shows in each.items() if shows]
    return "; ".join([*found, f"all layers have {' and '.join(OF_ALL)}"])
