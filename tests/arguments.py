"""Bad values for every argument of a call, made from its signature, and what becomes of them.

A `Call` is a right one. `tried(call)` puts one bad value at a time into it: a value of another type, NaN, negative,
zero, far out of range, and of tensors other dtypes, shapes and entries. Each is refused in a sentence of xflash's own,
is right after all by the argument's annotation, or is accepted: then it must be one of `MEANINGS`.
"""

import ast
import collections.abc
import functools
import inspect
import itertools
import linecache
import math
import re
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
from xflash.base.state import tensors

PACKAGE = Path(xflash.__file__).parent
LONGEST = 400
NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-1": -1, "-1.5": -1.5, "0": 0}
NUMBERS |= {"2**40": 2**40, "10**400": 10**400, "-10**400": -(10**400)}
ODD: dict[str, Any] = {"'a'": "a", "''": "", "1.5": 1.5, "True": True, "None": None, "[]": [], "{}": {}, "b'a'": b"a"}
ODD |= {"object()": object(), "int": int, "(1, 'a')": (1, "a"), "zeros(2, 3)": torch.zeros(2, 3)}
ODD |= {"Linear(2, 2)": nn.Linear(2, 2), "'a' * 250": "a" * 250, **NUMBERS}
# What stands in a tensor whose numbers cannot be meant.
ENTRIES = {"nans": math.nan, "infs": math.inf, "-1s": -1, "2**40s": 2**40}


class Call(NamedTuple):
    """A right call: what takes the arguments by name, what it is given, and the annotations of all it can be given."""

    name: str
    run: Callable[..., Any]
    given: dict[str, Any]
    hints: dict[str, Any]


class Tried(NamedTuple):
    """One bad value: the argument, the value in words and itself, and the result, which may be an error."""

    call: Call
    argument: str
    words: str
    value: Any
    result: Any

    def __str__(self) -> str:
        return f"{self.call.name}({self.argument}={self.words})"


def hints_of(*functions: Callable) -> dict[str, Any]:
    """The annotations of the named arguments of several functions; those of the first count most."""
    found: dict[str, Any] = {}
    for function in functions:
        hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
        for name, parameter in inspect.signature(function).parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, hints.get(name, Any))
    return found


def near_tensor(t: Tensor) -> dict[str, Any]:
    """A tensor's list, and tensors near it: of another dtype, with other axes, with entries that cannot be meant."""
    near = {"list": t.tolist(), "an axis more": t[None], "complex": t.to(torch.complex64)}
    if t.dim():
        near |= {"an axis less": t[0], "a row less": t[:-1], "no rows": t[:0], "narrower": t[..., :-1]}
        near |= {"wider": torch.cat((t, t[..., -1:]), -1), "empty": t[..., :0]}
    if t.is_floating_point():
        near |= {"doubled": t.double(), "halved": t.half(), "whole": t.long()}
        return near | {words: torch.full_like(t, ENTRIES[words]) for words in ("nans", "infs")}
    near |= {"floats": t.float()} | ({"2s": t.long() * 2} if t.dtype == torch.bool else {"booleans": t.bool()})
    return near | {words: torch.full(t.shape, ENTRIES[words]) for words in ("-1s", "2**40s")}


def near_values(value: Any) -> dict[str, Any]:
    """What is near the value of the right call: a tensor changed, a state of other rows, a list with an odd entry."""
    if isinstance(value, Tensor):
        return near_tensor(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fewer = {"fewer rows": value.reorder(torch.tensor([0]))} if hasattr(value, "reorder") else {}
        return {"its first part": value[0], "a plain tuple": tuple(value), **fewer}
    if isinstance(value, Mapping):
        near = {f"{{{k!r}: {w}}}": {**value, k: odd} for k, v in value.items() for w, odd in bad_values(v).items()}
        return {**near, "{1: 1}": {1: 1}}
    if isinstance(value, (tuple, list)) and value:
        return {f"[{words}, ...]": [odd, *value[1:]] for words, odd in bad_values(value[0]).items()}
    return {}


def bad_values(value: Any) -> dict[str, Any]:
    """All that is tried for an argument that is given `value` in the right call."""
    return {**ODD, **near_values(value)}


def fits(value: Any, hint: Any) -> bool:
    """Whether an annotation allows a value; those that would allow anything allow none of these."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (float, int):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if origin in (tuple, collections.abc.Sequence):
        listed = isinstance(value, tuple) or (isinstance(value, list) and origin is not tuple)
        each = (
            parts if listed and origin is tuple and parts[-1] is not ... else parts[:1] * len(value if listed else ())
        )
        return listed and bool(value) and len(value) == len(each) and all(map(fits, value, each))
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if origin is collections.abc.Callable:
        return callable(value)
    return hint not in (Any, Tensor) and isinstance(hint, type) and isinstance(value, hint)


def odd_entries(found: Tried) -> str:
    """What the tensor that was tried is full of, or ''."""
    return next((words for words in ENTRIES if words in found.words.strip("[").split(",")[0]), "")


def right_after_all(found: Tried) -> bool:
    """Whether the annotation allows the value, its shape beside the others' included; never for odd numbers."""
    call, value = found.call, found.value
    if found.words in NUMBERS or odd_entries(found):
        return False
    with jaxtyped("context"):
        for name, other in call.given.items():
            if name != found.argument:
                fits(other, call.hints.get(name, Any))
        return fits(value, call.hints[found.argument])


def tried(call: Call, arguments: Any = None) -> Iterator[Tried]:
    """Every argument of the call with every bad value in turn."""
    for argument in call.hints if arguments is None else arguments:
        for words, value in bad_values(call.given.get(argument)).items():
            # What can be called is the caller's own code where it belongs.
            if callable(value) and fits(value, call.hints[argument]):
                continue
            try:
                result = call.run(**{**call.given, argument: value})
                result = tuple(result) if isinstance(result, collections.abc.Iterator) else result
            except Exception as error:
                result = error
            yield Tried(call, argument, words, value, result)


@functools.cache
def raising_lines(file: str) -> frozenset[int]:
    """The lines of a file that belong to a `raise`."""
    nodes = [node for node in ast.walk(ast.parse("".join(linecache.getlines(file)))) if isinstance(node, ast.Raise)]
    return frozenset(itertools.chain.from_iterable(range(n.lineno, (n.end_lineno or n.lineno) + 1) for n in nodes))


def named(found: Tried) -> bool:
    """Whether the message names the argument, a word of it, another one it does not fit to, or what they are of."""
    words = set(re.findall(r"\w+", str(found.result)))
    mine = {found.argument, *(part for part in found.argument.split("_") if len(part) > 2)}
    mine |= {*found.call.hints, "token", "tokens", "target", "state", found.argument.removesuffix("s")}
    mine |= set(found.value) if isinstance(found.value, Mapping) else set()
    # Where there is a single argument there is nothing to tell apart.
    return len(found.call.hints) == 1 or bool(mine & {part for word in words for part in (word, *word.split("_"))})


def fault(found: Tried) -> str:
    """What is wrong with a refusal, or ''."""
    error, message = found.result, str(found.result)
    if type(error) not in (TypeError, ValueError):
        return f"{type(error).__name__}: {message[:90]!r}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not Path(last.filename).is_relative_to(PACKAGE) or last.lineno not in raising_lines(last.filename):
        return f"not xflash's own words ({Path(last.filename).name}:{last.lineno}): {message[:90]!r}"
    if "\n" in message or len(message) > LONGEST:
        return f"{len(message)} characters on {message.count(chr(10)) + 1} lines: {message[:90]!r}"
    return "" if named(found) or odd_entries(found) in ("nans", "infs") else f"the argument is not named: {message!r}"


def not_finite(result: Any) -> bool:
    """Whether a tensor of a result has a number that is none."""
    result = list(result.values()) if isinstance(result, dict) else result
    parts = tuple(result) if isinstance(result, list) else result
    return any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors(parts))


# What a value is allowed to mean that would otherwise be refused; docs/arguments.md has them in words.
NONE_OF_IT = re.compile(
    "num_|max_|_tokens$|_len$|dropout|_prob$|sinks|attend_past|gru_keep|_offset$|_smoothing$|_loss$|mem_down$|pool_depth$"
)
ENDS = {"thres", "min_p", "min_p_pow", "min_p_ratio", "filter_thres"}
MEANINGS: dict[str, Callable[[Tried], Any]] = {
    "zero is none": lambda f: f.words == "0" and NONE_OF_IT.search(f.argument),
    "counted from zero": lambda f: (
        f.words == "0" and re.search("_id$|_token$|_token_id$|^pad_value$|^seed$", f.argument)
    ),
    "a label that is none": lambda f: f.argument == "ignore_index" and f.words in ("-1", "0"),
    "the likeliest always": lambda f: f.words == "0" and f.argument in ("temperature", "start_temperature"),
    "the end of a filter": lambda f: f.argument in ENDS | {"filter_kwargs"} and f.words in ("0", "{'thres': 0}"),
    "of any sign": lambda f: (
        f.argument.endswith(("length_penalty", "forget_start", "sigmoid_bias", "mv_split_alpha"))
        and f.words in ("-1", "-1.5", "0")
    ),
    "an empty list is none": lambda f: (
        (f.words in ("[]", "''") and (f.argument in EMPTY or f.argument.endswith("_scores")))
        or f.argument.endswith("read_from")
    ),
    "none inside is not given": lambda f: (
        f.words in ("{'k': None}", "[None, ...]") and f.argument in ("filter_kwargs", "states")
    ),
    "names and places": lambda f: f.argument in ("doc_ids", "context_pos") and odd_entries(f),
    "what is no number stays none": lambda f: odd_entries(f) in ("nans", "infs") and not_finite(f.result),
}
EMPTY = ("pos", "reads", "scale", "recurrent_layers", "mask_ignore_token_ids", "xl_memories", "states")


def meaning(found: Tried) -> str | None:
    """Which of the meanings an accepted value has, or None."""
    return next((name for name, holds in MEANINGS.items() if holds(found)), None)
