"""A clock of the work itself: process time on a CPU, events on a GPU; and numbers too small to be worth their time."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

__all__ = ["flushed", "seconds_of"]

T = TypeVar("T")


def seconds_of(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What the work gives, and how long the device computed for it.

    On a CPU all threads of the process are counted, and nothing that other processes do.
    """
    if device.type == "cuda":
        return by_events(work, device)
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def by_events(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    with torch.cuda.device(device):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        result = work()
        ended.record()
        ended.synchronize()
    return result, begun.elapsed_time(ended) / 1000


def flushes() -> bool:
    """Whether numbers below float32's normal ones are taken for 0 by this thread."""
    smallest: Any = torch.tensor(2.0**-126)
    return (smallest / 2).item() == 0


@contextmanager
def flushed() -> Generator[None]:
    """Takes denormal numbers for 0, and leaves that setting as it was.

    A CPU computes with them many times as slowly, and a variant that has more of them would pay for it.
    """
    before = flushes()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
