"""`diff`: which flags two models have otherwise."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..base.checks import given
from ..base.tables import html_table, text_table
from ..flags.flag import Flag
from .classes import kind

__all__ = ["ABSENT", "Difference", "Differences", "diff"]


class Absent:
    """What stands for a flag of something that a model does not have."""

    def __repr__(self) -> str:
        return "-"


ABSENT = Absent()


class Difference(NamedTuple):
    """A flag, its two values (`ABSENT` where a model has nothing that it is a flag of), and what it means."""

    flag: str
    one: Any
    other: Any
    meaning: str


class Differences(tuple[Difference, ...]):
    """The flags that differ, printed as a table, in notebooks too; empty, and so false, where none does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return text_table(*self.table(), words=True) if self else "no flag differs"

    def _repr_html_(self) -> str:
        return html_table(*self.table(), words=True) if self else "<p>no flag differs</p>"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Its head and its rows."""
        lines = [[row.flag, repr(row.one), repr(row.other), row.meaning] for row in self]
        return ["flag", "one", "other", "meaning"], lines


def diff(one: Any, other: Any) -> Differences:
    """Which flags two models have otherwise; either may be a config, as `to_config()` gives it.

    A flag of something that one of them has not (a block that is not in its layout) differs if the other sets it. The
    layout says what blocks there are, and what it says in parentheses of a layer has a row of its own.
    TypeError for what is neither, and what `from_config` raises for a config that builds nothing.
    """
    one, other = built(one), built(other)
    return Differences(differing(one, other))


def built(module: Any) -> Any:
    """A model as it is, or one of a config, without weights."""
    from .configurable import Configurable, from_config

    if isinstance(module, Configurable):
        return module
    if not isinstance(module, Mapping):
        raise TypeError(f"diff compares models and configs as to_config() gives them, not {given(module)}")
    with torch.device("meta"):
        return from_config(module)


def differing(one: Any, other: Any) -> Iterator[Difference]:
    """Class first, then flags in the order of the first model, those that only the other has behind them."""
    if kind(one) is not kind(other):
        yield Difference("class", kind(one).__name__, kind(other).__name__, "what is built")
    ours, theirs = (flags_in(module) for module in (one, other))
    for name, (mine, spec) in {**ours, **theirs}.items():
        pair = [flags[name][0] if name in flags else ABSENT for flags in (ours, theirs)]
        unset = any(value is ABSENT for value in pair) and same(mine, spec.default)
        if not unset and not same(*pair):
            yield Difference(name, *pair, spec.meaning())


def flags_in(module: Any) -> dict[str, tuple[Any, Flag]]:
    """The flags of a model, without the models inside, whose flags are among them."""
    return {name: (value, spec) for name, value, spec in module.flag_rows() if not isinstance(value, nn.Module)}


def same(a: Any, b: Any) -> bool:
    """Whether two values are one: True is not 1."""
    return type(a) is type(b) and bool(a == b)
