"""Calls that are refused while torch.compile traces them: they are made again in eager, which raises the sentence.

Dynamo gives up a frame in which an error is raised, for good: every later call of its code, in any model, would run in
pieces. And it goes on to trace all that the frame calls, checks and their bookkeeping among it.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["as_eager", "refusable", "tracing"]

dynamo: Any = torch._C._dynamo.eval_frame
# What traces the frames that begin in this thread; None outside of compiled calls. In C, so that it is no frame itself.
tracing: Callable[[], Any] = getattr(dynamo, "get_eval_frame_callback", lambda: None)
# How often Dynamo gave up a call of a function that eager accepts: looks that only eager can have are one reason.
GIVEN_UP: Counter[Callable] = Counter()
# So often it is asked again, which takes the time of a compilation; then the function stays in eager.
TRIES = 5


def refusable(fn: Callable) -> Callable:
    """`fn` that raises under torch.compile what it raises in eager, and is compiled as before in the next call."""

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        if torch.compiler.is_compiling() or not callable(tracing()):
            return fn(*args, **kwargs)
        return torch._dynamo.disable(again)(wrapper, fn, args, kwargs)

    # Dynamo counts graphs per code object: those of one function are not another's.
    inner: Any = wrapper
    inner.__code__ = inner.__code__.replace(co_name=getattr(fn, "__qualname__", "refusable"))
    return wrapper


def as_eager(compiled: Callable, fn: Callable) -> Callable:
    """`compiled`, made of `fn`, that raises the error of `fn` where Dynamo, asked for whole graphs, raises its own."""

    from torch._dynamo.exc import Unsupported

    def call(*args, **kwargs):
        try:
            return compiled(*args, **kwargs)
        except Unsupported as error:
            unsupported = error
        fn(*args, **kwargs)
        raise unsupported

    return call


def again(wrapper: Any, fn: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`fn` in eager, since Dynamo gave up its frame."""
    try:
        out = fn(*args, **kwargs)
    except Exception:
        take_up(wrapper.__code__)
        raise
    GIVEN_UP[fn] += 1
    if GIVEN_UP[fn] <= TRIES:
        take_up(wrapper.__code__)
    return out


def take_up(code: Any) -> None:
    """Has Dynamo look at frames of `code` again, with the graphs it had made of them."""
    if hasattr(dynamo, "set_code_exec_strategy"):
        from torch._dynamo.types import FrameAction, FrameExecStrategy

        dynamo.set_code_exec_strategy(code, FrameExecStrategy(FrameAction.DEFAULT, FrameAction.DEFAULT))
