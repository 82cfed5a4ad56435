"""`plot_state`: what layers carry on from call to call, as pictures."""

from typing import Any, NamedTuple

import torch

from ..base.checks import check_count
from ..base.shapes import Float, Tensor
from ..layers.blocks.key_values import KV
from .capture import capture
from .inputs import model_of
from .layers import stacks_of
from .picture import check_row, grid

__all__ = ["Held", "held_by", "plot_state"]


class Held(NamedTuple):
    """What a layer holds of one row: its parts by name (slots, width) behind all tokens, and how large each has been.

    sizes: for each part, behind each number of `tokens` read, the root of the mean square of its numbers.
    """

    parts: dict[str, Float[Tensor, "m _"]]
    tokens: list[int]
    sizes: dict[str, list[float]]


def held_by(model: Any, x: Tensor, every: int = 1, row: int = 0, **named: Any) -> dict[str, Held]:
    """What layers hold while a model reads x (b, n, ...) in steps of `every` tokens.

    Those that hold nothing are left out. named: what its first step is given.  ValueError for a model without `step`.
    """
    check_count("every", every)
    check_row(row, len(x))
    net: Any = model_of(model)
    state, found, stacks = None, {}, stacks_of(net)
    if not hasattr(net, "step"):
        raise ValueError(f"a {type(net).__name__} has no step, and so no state that could be looked at")
    with torch.no_grad(), capture(net, "state") as seen:
        for piece in x.split(every, dim=1):
            _, state = net.step(piece, state, **(named if state is None else {}))[:2]
    read = [min((i + 1) * every, x.shape[1]) for i in range(len(seen.calls))]
    front = len(next(iter(stacks.values())).memory_tokens or ())
    for label in seen.state:
        pairs = zip(seen.calls, read, strict=True)
        history = [parts_of(without_room(call["state"][label], front + n), row) for call, n in pairs]
        sizes = {name: [size(parts[name]) for parts in history if name in parts] for name in history[-1]}
        found[label] = Held(history[-1], read, sizes)
    return found


def without_room(state: Any, used: int) -> Any:
    """A state of `used` tokens without the room that its buffers have for further ones."""
    return state.each(lambda t: t[:, :, : used - state.spared]) if isinstance(state, KV) else state


def parts_of(state: Any, row: int) -> dict[str, Float[Tensor, "m _"]]:
    """The parts of one row of a state that are several vectors, by the names of the fields that hold them."""
    found = {}
    for name, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.dim() >= 3:
            found[str(name)] = part[row].flatten(0, -2).float().cpu()
        elif isinstance(part, tuple):
            found |= {f"{name}.{inner}": t for inner, t in parts_of(part, row).items()}
    return found


def size(t: Tensor) -> float:
    """The root of the mean square."""
    return float(t.square().mean().sqrt())


def plot_state(model: Any, x: Tensor, every: int = 1, row: int = 0, **named: Any) -> Any:
    """A matplotlib figure of states: for each layer that has one its first part behind x, and sizes token by token.

    On the left the numbers (slots down, channels to the right; red above zero, blue below), on the right for each part
    the root of their mean square against the tokens read. every: how many tokens a step reads. row: of the batch.
    """
    held = held_by(model, x, every, row, **named)
    figure, panels = grid(len(held), 2)
    for (left, right), (label, (parts, tokens, sizes)) in zip(panels, held.items(), strict=True):
        name, numbers = next(iter(parts.items()))
        most = float(numbers.abs().max()) or 1.0
        left.imshow(numbers.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
        left.set_title(f"{label}: {name}", fontsize=8)
        for part, values in sizes.items():
            right.plot(tokens[-len(values) :], values, label=part)
        right.set_title(f"{label}: size", fontsize=8)
        right.legend(fontsize=6)
        for panel in (left, right):
            panel.tick_params(labelsize=6)
    return figure
