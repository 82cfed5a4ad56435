"""Calls that answer an argument which they have not with what it is called here."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..base.registry import side_inputs
from .elsewhere import ELSEWHERE, meant

__all__ = ["CALLS", "answer_calls", "answering", "arguments_of", "unknown"]

# The calls of a module whose unknown arguments are answered.
CALLS = ("forward", "step", "generate", "stream", "beam_search", "encode", "features", "save", "flag_table")


def arguments_of(fn: Any) -> dict[str, Any]:
    """The parameters of a function; the side inputs that there are in place of its `**beside`."""
    found = dict(inspect.signature(fn).parameters)
    beside = found.get("beside")
    if beside is not None and beside.kind is beside.VAR_KEYWORD:
        del found["beside"]
        for name in side_inputs:
            found.setdefault(name, inspect.Parameter(name, beside.KEYWORD_ONLY, default=None))
    return found


def answering(fn: Any) -> Callable:
    """The method `fn`, which answers an argument that it has not with what it is called here (TypeError).

    One that takes any keyword does so where it is another name of an argument that is missing. What a call costs more
    is a look at the names that are given: nothing is caught, so that Dynamo traces it as it traces `fn`.
    """
    parameters = inspect.signature(fn).parameters
    known = frozenset(parameters)
    open_ended = any(p.kind is p.VAR_KEYWORD and p.name != "beside" for p in parameters.values())
    further = side_inputs if "beside" in known else ()
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        for name in kwargs:
            if name not in known and name not in further:
                missing = set(needed[len(args) :]).difference(kwargs)
                if not open_ended or missing.intersection(ELSEWHERE.get(name, ())):
                    raise TypeError(unknown(type(args[0]), fn.__name__, name))
        return fn(*args, **kwargs)

    # Dynamo counts recompilations per code object: one shared by all classes would use up its limit.
    inner: Any = wrapper
    inner.__code__ = inner.__code__.replace(co_name=fn.__qualname__)
    inner.answers = True
    return wrapper


def answer_calls(cls: type) -> None:
    """Has the calls of a class `answering`, those of its mixins too."""
    for name in CALLS:
        fn = getattr(cls, name, None)
        if inspect.isfunction(fn) and "self" in inspect.signature(fn).parameters and not hasattr(fn, "answers"):
            setattr(cls, name, answering(fn))


def unknown(cls: type, call: str, name: str) -> str:
    """The sentence about an argument that a call of a class has not."""
    others = [other for other in CALLS if other != call and hasattr(getattr(cls, other, None), "answers")]
    homes = [(f"{cls.__name__}.{other}", arguments_of(getattr(cls, other))) for other in others]
    known = list(arguments_of(getattr(cls, call)))[1:]
    return f"{cls.__name__}.{call} has no argument {name!r}{meant(name, known, homes)}"
