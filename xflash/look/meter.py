"""What parts of a model cost in a call, each without what is inside it and listed itself: operations, or seconds."""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..base.shapes import Tensor

__all__ = ["count_flops", "measured", "on_meta", "time_parts"]

# Calls whose times the median is of, behind one to warm up.
REPEATS = 3


class Meter:
    """Reads a number that grows when a part begins and ends; what grew inside is that part's."""

    def __init__(self, read: Callable[[], float]):
        self.read = read
        self.spent: dict[nn.Module, float] = defaultdict(float)
        self.shapes: dict[nn.Module, tuple[int, ...]] = {}
        self.open: list[list[float]] = []

    def enter(self, module: nn.Module, *_: Any) -> None:
        self.open.append([self.read(), 0.0])

    def leave(self, module: nn.Module, _: Any, out: Any) -> None:
        start, inside = self.open.pop()
        took = self.read() - start
        self.spent[module] += took - inside
        if self.open:
            self.open[-1][1] += took
        first = out[0] if isinstance(out, tuple) and out else out
        if isinstance(first, torch.Tensor):
            self.shapes[module] = tuple(first.shape)


@contextmanager
def measured(modules: Iterable[nn.Module], read: Callable[[], float]) -> Generator[Meter]:
    """A meter of the modules, whose hooks are gone afterwards."""
    meter, hooks = Meter(read), []
    try:
        for module in modules:
            hooks.append(module.register_forward_pre_hook(meter.enter))
            hooks.append(module.register_forward_hook(meter.leave))
        yield meter
    finally:
        for hook in hooks:
            hook.remove()


def on_meta(model: nn.Module) -> dict[int, nn.Module]:
    """The modules of the model without its numbers, in eval mode, by the ids of those of the original."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *model.buffers()):
        bare = t.detach().to("meta")
        memo[id(t)] = nn.Parameter(bare, False) if isinstance(t, nn.Parameter) else bare
    # Weights that are in the memo are not copied.
    twin = copy.deepcopy(model, memo).eval()
    ours, theirs = (list(module.named_modules()) for module in (model, twin))
    return {id(a): b for (_, a), (_, b) in zip(ours, theirs, strict=True)}


def moved(value: Any, device: str) -> Any:
    """Inputs of a call on another device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return type(value)(moved(part, device) for part in value) if type(value) in (tuple, list) else value


def count_flops(model: nn.Module, parts: Iterable[nn.Module], inputs: tuple, named: dict[str, Any]) -> Meter:
    """A meter of the parts in a call on the meta device, of operations as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter, measured(parts, counter.get_total_flops) as meter:
        model(*moved(inputs, "meta"), **moved(named, "meta"))
    return meter


def time_parts(model: nn.Module, parts: Iterable[nn.Module], inputs: tuple, named: dict[str, Any]) -> tuple:
    """Seconds of each part in a call, and of the whole call: medians, without gradients."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts, whole, found = list(parts), [], []
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for _ in range(REPEATS + 1):
            with measured(parts, lambda: now(device)) as meter:
                start = now(device)
                model(*inputs, **named)
                whole.append(now(device) - start)
            found.append(meter.spent)
    seconds = {part: statistics.median(spent[part] for spent in found[1:]) for part in parts if part in found[0]}
    return seconds, statistics.median(whole[1:])


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)
