"""Bad values for every argument of a call, made from its signature, and what becomes of them.

A `Call` is a right one. `tried(call)` puts one bad value at a time into it: a value of another type, NaN, negative,
zero, far out of range, and of tensors other dtypes, shapes and entries. Each is refused in a sentence of xflash's own,
is right after all by the argument's annotation, or is accepted: then the tests ask what that means.
"""

import ast
import collections.abc
import functools
import inspect
import linecache
import math
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import torch
from jaxtyping import jaxtyped
from torch import Tensor, nn

import xflash

PACKAGE = Path(xflash.__file__).parent
LONGEST = 400
HUGE = {"2**40": 2**40, "10**30": 10**30, "-10**30": -(10**30)}
NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-1": -1, "-1.5": -1.5, "0": 0, **HUGE}


class Call(NamedTuple):
    """A right call: what takes the arguments by name, what it is given, and the annotations of all it can be given."""

    name: str
    run: Callable[..., Any]
    given: dict[str, Any]
    hints: dict[str, Any]


class Tried(NamedTuple):
    """One bad value: the argument, the value in words and itself, and the error (None: it was accepted)."""

    call: Call
    argument: str
    words: str
    value: Any
    error: Exception | None

    def __str__(self) -> str:
        return f"{self.call.name}: {self.argument}={self.words}"


def hints_of(*functions: Callable) -> dict[str, Any]:
    """The annotations of the named arguments of several functions, those of the first count most."""
    found: dict[str, Any] = {}
    for function in functions:
        hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
        for name, parameter in inspect.signature(function).parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, hints.get(name, Any))
    return found


def odd_values() -> dict[str, Any]:
    """Values of every kind, most of them of the wrong one for any argument."""
    kinds = {"'a'": "a", "''": "", "1.5": 1.5, "True": True, "None": None, "[]": [], "{}": {}, "b'a'": b"a"}
    kinds |= {"object()": object(), "int": int, "(1, 'a')": (1, "a"), "zeros(2, 3)": torch.zeros(2, 3)}
    return {**kinds, "Linear(2, 2)": nn.Linear(2, 2), **NUMBERS}


def odd_tensors(t: Tensor) -> dict[str, Any]:
    """A tensor's list, and tensors near it: of another dtype, with another axis, with entries that cannot be meant."""
    near = {"list": t.tolist(), "an axis more": t[None], "complex": t.to(torch.complex64)}
    if t.dim():
        near |= {"an axis less": t[0], "a row less": t[:-1], "no rows": t[:0], "narrower": t[..., :-1]}
        near |= {"wider": torch.cat((t, t[..., -1:]), -1), "empty": t[..., :0]}
    if t.is_floating_point():
        near |= {"doubled": t.double(), "halved": t.half(), "whole": t.long()}
        return near | {f"{n}s": torch.full_like(t, float(n)) for n in ("nan", "inf")}
    near |= {"floats": t.float(), "booleans": t.bool()}
    return near | {f"{n}s": torch.full(t.shape, n) for n in (-1, 2, 2**40)}


def odd_tuples(value: tuple) -> dict[str, Any]:
    """What is near a state: its parts, a plain tuple of them, and the state of fewer rows."""
    near = {"its first part": value[0], "a plain tuple": tuple(value)}
    if hasattr(value, "reorder"):
        near["fewer rows"] = value.reorder(torch.tensor([0]))
    return near


def bad_values(value: Any) -> dict[str, Any]:
    """All that is tried for an argument that is given `value` in the right call."""
    near: dict[str, Any] = {}
    if isinstance(value, Tensor):
        near = odd_tensors(value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        near = odd_tuples(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            near |= {f"{{{key!r}: {words}}}": {**value, key: odd} for words, odd in bad_values(part).items()}
        near["{1: 1}"] = {1: 1}
    elif isinstance(value, (tuple, list)) and value:
        near = {f"[{words}, ...]": [odd, *value[1:]] for words, odd in bad_values(value[0]).items()}
    return {**odd_values(), **near}


def fits(value: Any, hint: Any) -> bool:
    """Whether an annotation allows a value; annotations that allow anything allow none of these."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in parts)
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (float, int):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if origin is tuple:
        each = [parts[0]] * len(value) if isinstance(value, tuple) and parts[-1] is ... else list(parts)
        return isinstance(value, tuple) and len(value) == len(each) and all(map(fits, value, each))
    if origin is collections.abc.Sequence:
        return isinstance(value, (list, tuple)) and bool(value) and all(fits(v, parts[0]) for v in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if origin is collections.abc.Callable:
        return False
    return hint is not Any and isinstance(hint, type) and isinstance(value, hint)


def right_after_all(call: Call, argument: str, value: Any) -> bool:
    """Whether the annotations allow the value beside the other arguments, shapes included."""
    with jaxtyped("context"):
        others = {name: other for name, other in call.given.items() if name != argument}
        return all(fits(other, call.hints.get(name, Any)) or True for name, other in others.items()) and fits(
            value, call.hints[argument]
        )


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def tried(call: Call, arguments: Any = None) -> Iterator[Tried]:
    """Every argument of the call with every bad value in turn."""
    for argument in call.hints if arguments is None else arguments:
        for words, value in bad_values(call.given.get(argument)).items():
            try:
                out = call.run(**{**call.given, argument: value})
                if isinstance(out, collections.abc.Iterator):
                    list(out)
            except Exception as error:
                yield Tried(call, argument, words, value, error)
            else:
                yield Tried(call, argument, words, value, None)


@functools.cache
def raising_lines(file: str) -> frozenset[int]:
    """The lines of a file that belong to a `raise`."""
    raises = [node for node in ast.walk(ast.parse("".join(linecache.getlines(file)))) if isinstance(node, ast.Raise)]
    return frozenset(line for node in raises for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))


def fault(found: Tried) -> str:
    """What is wrong with the words of a refusal, or ''."""
    error, message = found.error, str(found.error)
    if type(error) not in (TypeError, ValueError):
        return f"{type(error).__name__}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not Path(last.filename).is_relative_to(PACKAGE) or last.lineno not in raising_lines(last.filename):
        return f"not xflash's own words ({Path(last.filename).name}:{last.lineno})"
    if "\n" in message or len(message) > LONGEST:
        return f"{len(message)} characters, {message.count(chr(10)) + 1} lines"
    return ""
