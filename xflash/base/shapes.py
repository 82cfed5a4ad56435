"""The dimension letters, used alike in annotations, einops patterns and einsums, and `typed`, which checks them.

The stack, its blocks, the embeddings and the heads (`logits`) of models are `typed`. Wrappers and calls of a stack
check what they are given one by one, in sentences of their own; what they hand on is checked there. A function that is
`typed` remembers the kinds of calls it has found right (`kind`: shapes and dtypes of tensors, types of everything
else), and looks at a call of a kind it remembers no further: a decoder that makes one token after the other is checked
at the first.

| letter | what it counts | letter | what it counts |
|---|---|---|---|
| b | batch | k | query/key width |
| n | tokens in this call | e | value width |
| m | tokens seen (past and this call) | g | groups |
| c | context tokens | w | tokens in a group |
| d | model width | s | state vectors |
| h | heads | t | memory tokens |
| | | v | vocabulary |
"""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jaxtyping
import torch
from torch import Tensor

from .fallback import tracing

__all__ = ["CHECKING", "Bool", "Float", "Int", "Integer", "Tensor", "kind", "typed"]


class Once:
    """A kind of numbers that makes each annotation once: jaxtyping makes a class at every mention of one."""

    def __init__(self, kind: Any):
        self.kind: Any = kind
        self.made: dict[Any, Any] = {}

    def __getitem__(self, item: Any) -> Any:
        if item not in self.made:
            self.made[item] = self.kind[item]
        return self.made[item]


if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Integer
else:
    Bool, Float, Int, Integer = map(Once, (jaxtyping.Bool, jaxtyping.Float, jaxtyping.Int, jaxtyping.Integer))

CHECKING = os.environ.get("XFLASH_TYPECHECK", "1").lower() not in ("0", "false", "")
# Kinds of calls a function remembers: as many lengths of prompts.
MOST_KINDS = 512
# Numbers up to which kinds tell them apart, as Literal annotations do: larger ones count tokens, anew in each call.
SMALL = 8
CONTAINERS = frozenset({tuple, list, dict, set, frozenset})


class Unknown(Exception):
    """A value of which nobody knows how deep an annotation looks into it."""


def kind(value: Any) -> Any:
    """All that an annotation of a `typed` function can look at in `value`; `Unknown` for plain tuples and lists."""
    if isinstance(value, torch.Tensor):
        return type(value), value.shape, value.dtype
    if isinstance(value, str) or (isinstance(value, (int, float)) and -SMALL <= value <= SMALL):
        return type(value), value
    found = type(value)
    if found is dict:
        return found, *value, *map(kind, value.values())
    if found in CONTAINERS:
        raise Unknown
    return found


def kinds(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The kind of a call."""
    if kwargs:
        return *map(kind, args), *kwargs, *map(kind, kwargs.values())
    return tuple(map(kind, args))


def kind_of_result(out: Any) -> Any:
    """`kind` of what a function gives, one by one if that is a plain tuple."""
    return tuple(map(kind, out)) if type(out) is tuple else kind(out)


def typed(fn: Callable) -> Callable:
    """Checks the tensor shapes in the annotations of `fn`, arguments and result, at every call of a new kind.

    Arguments are checked before `fn` runs. It steps aside while torch compiles, also in frames
    that Dynamo gave up (it would trace the checks themselves); `XFLASH_TYPECHECK=0` in the
    environment (read at import) makes it the identity.
    """
    if not CHECKING:
        return fn
    # Made when it is first needed: what a program does not call need not be read for its import.
    checks: list[Callable] = []
    known: dict[Any, Any] = {}

    def checked(*args, **kwargs):
        if not checks:
            checks.append(checking(fn))
        return checks[0](*args, **kwargs)

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        if torch.compiler.is_compiling() or callable(tracing()):
            return fn(*args, **kwargs)
        try:
            call = kinds(args, kwargs)
            right = known.get(call)
        except (Unknown, TypeError):
            # TypeError: sizes that are symbols cannot be looked up.
            return checked(*args, **kwargs)
        out = checked(*args, **kwargs) if right is None else fn(*args, **kwargs)
        try:
            given = kind_of_result(out)
        except Unknown:
            return out if right is None else recheck(fn, out, args, kwargs)
        if given == right:
            return out
        if right is not None:
            recheck(fn, out, args, kwargs)
        if len(known) >= MOST_KINDS:
            known.clear()
        known[call] = given
        return out

    # Dynamo counts recompilations per code object: one shared by all wrapped functions would use up its limit.
    inner: Any = wrapper
    inner.__code__ = inner.__code__.replace(co_name=getattr(fn, "__qualname__", "typed"))
    return wrapper


def checking(fn: Callable) -> Callable:
    """`fn` with its annotations checked at every call."""
    from beartype import beartype

    return jaxtyping.jaxtyped(fn, typechecker=beartype)


def recheck(fn: Callable, out: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`out`, checked as what `fn` gave for these arguments, which are not given to it again."""

    @functools.wraps(fn)
    def gave(*_args, **_kwargs):
        return out

    return checking(gave)(*args, **kwargs)
