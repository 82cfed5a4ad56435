"""What is known of a variant without training it: size, work, memory, and what a decoded token costs."""

import os
import statistics
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..base.values import tensors
from .clock import seconds_of
from .tasks.task import Task, moved
from .variants import Variant

__all__ = ["decode_times", "facts_of", "flops_of", "peak_bytes", "size_of", "state_bytes"]

DECODED, SKIPPED = 40, 5


def facts_of(variant: Variant, task: Task, optimizer_of: Callable[[nn.Module], Any], device: torch.device) -> dict:
    """Parameters, FLOPs a unit (forward, and with the backward), peak bytes of a step, bytes of state a token."""
    forward, both = flops_of(variant, task)
    model = variant.built(task, device)
    facts = {"parameters": size_of(model), "flops": forward, "training_flops": both}
    facts["peak_bytes"] = peak_bytes(model, optimizer_of(model), task, device)
    net = task.net(model)
    if net is not None:
        facts["state_bytes"] = state_bytes(net, task.row_tokens, device)
    return facts


def size_of(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters())


def flops_of(variant: Variant, task: Task, **other: Any) -> tuple[float, float]:
    """FLOPs a unit of a forward, and of a forward with its backward, counted on meta.

    A CPU's fused attention counts for nothing in PyTorch's counter; what cannot be on meta has its attention written
    out instead.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    place = "meta" if task.on_meta else "cpu"
    model = variant.built(task, place, **other)
    batch = moved(task.batch(torch.Generator().manual_seed(0)), torch.device(place))
    plain = nullcontext() if task.on_meta else sdpa_kernel(SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter:
        try:
            loss = task.loss(model, batch)
        except (TypeError, ValueError) as error:
            raise type(error)(f"variant {variant.name!r} cannot be trained on {task.name}: {error}") from None
        forward = counter.get_total_flops()
        loss.backward()
    return forward / task.units, counter.get_total_flops() / task.units


def peak_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, device: torch.device) -> int:
    """The most memory that a training step holds at once: weights, the optimizer's state, gradients, what is kept."""
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        task.loss(model, moved(task.batch(generator), device)).backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    held = sum(t.nbytes for t in [*model.parameters(), *model.buffers(), *states(optimizer)])
    return held + (on_gpu(step, device) if device.type == "cuda" else on_cpu(step))


def states(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def on_gpu(step: Callable[[], None], device: torch.device) -> int:
    """The most that a step holds beyond what there was."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def on_cpu(step: Callable[[], None]) -> int:
    """The same, from what PyTorch's allocator notes."""
    from torch.profiler import ProfilerActivity, profile

    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    noted: Any = seen.profiler
    events = [event for event in noted.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@contextmanager
def quiet() -> Generator[None]:
    """Without standard error: the profiler writes two lines there that nobody asked for, below Python."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@torch.no_grad()
def state_bytes(net: Any, seq_len: int, device: torch.device) -> float:
    """Bytes that the state of one row grows by a token, in the second half of a text."""
    held = {}
    for length in (seq_len // 2, seq_len):
        _, state = net.step(torch.zeros(1, length, dtype=torch.long, device=device))
        held[length] = sum(t.nbytes for t in tensors(state))
    return (held[seq_len] - held[seq_len // 2]) / (seq_len - seq_len // 2)


@torch.inference_mode()
def decode_times(nets: Mapping[str, Any], seq_len: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a token behind half a row, medians; the nets take turns, so that noise hits all alike."""
    context = max(1, seq_len // 2)
    count = max(1, min(DECODED, seq_len - context))
    ids = torch.zeros(1, context, dtype=torch.long, device=device)
    states = {name: net.eval().step(ids)[1] for name, net in nets.items()}
    taken: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(count):
        for name, net in nets.items():
            (_, states[name]), seconds = seconds_of(partial(net.step, ids[:, :1], states[name]), device)
            taken[name].append(1000 * seconds)
    return {name: statistics.median(times[min(SKIPPED, count - 1) :]) for name, times in taken.items()}
