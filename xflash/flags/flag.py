"""Flags: how flat keyword flags reach the Config of the part that owns them, and how they are shown and saved."""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from torch import nn

from ..base.checks import LARGEST, check_bounds, check_switch, shown
from ..base.registry import nearest, part_meant

__all__ = [
    "Flag",
    "Owner",
    "build",
    "check_idle",
    "flag",
    "flag_table",
    "flags_of",
    "like",
    "route",
]

T = TypeVar("T")
REQUIRED = dataclasses.MISSING
# What a field has that was made without `flag`.
UNSAID = {"doc": "", "bounds": {}, "paper": "", "tried": None}


def flag(
    default: Any = REQUIRED,
    doc: str = "",
    *,
    above=None,
    at_least=None,
    below=None,
    at_most=None,
    paper: str = "",
    tried: tuple[Any, ...] | str | None = None,
) -> Any:
    """A field of a Config: its default (none: it must be given), one line of doc, and the range of its numbers.

    paper: the address of what it is from.  tried: the values, beside the default, that the tests combine with those of
    all other flags; a dict of flags of this Config where the value needs others beside it. A sentence says instead why
    there are none to try.
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    metadata = {"doc": doc, "bounds": bounds, "paper": paper, "tried": tried}
    return dataclasses.field(default=default, metadata=metadata)


def like(config: type, name: str, *default: Any, **other: Any) -> Any:
    """A field of a Config that means what `name` does in another one; its default too, unless it is given.

    other: what is said of it otherwise than there, such as `tried`.
    """
    field = next(field for field in dataclasses.fields(config) if field.name == name)  # ty: ignore
    made: Any = (
        {"default": default[0]} if default else {"default": field.default, "default_factory": field.default_factory}
    )
    return dataclasses.field(metadata={**field.metadata, **other}, **made)


def check_idle(config: Any, names: Iterable[str], why: str, prefix: str = "") -> None:
    """ValueError for flags of a Config that are not at their default, where nothing obeys them; `why`: that is so."""
    for name in names:
        value = getattr(config, name)
        if value != flags_of(type(config))[name].default:
            raise ValueError(f"{prefix}{name}={value!r} is set, but {why}")


class Flag(NamedTuple):
    """One flag of a Config, as the table shows it."""

    name: str
    default: Any
    hint: Any
    doc: str
    bounds: Mapping[str, float]
    paper: str = ""
    tried: tuple[Any, ...] | str | None = None

    def meaning(self, markdown: bool = False) -> str:
        """The doc, and the paper behind it: its address, or in Markdown a short link."""
        if not self.paper:
            return self.doc
        return f"{self.doc} ({link(self.paper) if markdown else self.paper})"


def link(paper: str) -> str:
    """A short Markdown link: the number of an arXiv paper, or else the host."""
    _, _, path = paper.partition("://arxiv.org/abs/")
    return f"[{path or paper.split('/')[2]}]({paper})"


@functools.cache
def flags_of(config: type) -> Mapping[str, Flag]:
    """The flags of a Config class by name."""
    # Reading type hints takes a millisecond, and a stack is built from a hundred readings.
    hints, fields = typing.get_type_hints(config), dataclasses.fields(config)  # ty: ignore[invalid-argument-type]
    return {
        f.name: Flag(f.name, default_of(f), hints[f.name], *(f.metadata.get(key, none) for key, none in UNSAID.items()))
        # What can be given without its name first.
        for f in sorted(fields, key=lambda f: bool(f.kw_only))
    }


def default_of(field: dataclasses.Field) -> Any:
    """What a field is where it is not given, `REQUIRED` where it must be."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def hint_text(hint: Any) -> str:
    """A type as a reader would write it: `'a' | 'b'`, `int | None`."""
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(hint_text(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return f"({', '.join(hint_text(p) if p is not Ellipsis else '...' for p in get_args(hint))})"
    if get_origin(hint) is Callable:
        return "function"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
WORDS[Callable] = "a function"
WORDS[nn.Module] = "a model from token ids to logits such as TransformerWrapper"


def in_words(hint: Any) -> str:
    """A type as a sentence about a value names it; a class may say itself what it is `called`."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(in_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is Callable:
        return "a function"
    if get_origin(hint) is Mapping:
        return f"a mapping of names to {several(get_args(hint)[1])}"
    if get_origin(hint) is tuple and get_args(hint)[-1] is ...:
        return "a tuple" if get_args(hint)[0] is Any else f"a tuple of {several(get_args(hint)[0])}"
    is_module = isinstance(hint, type) and issubclass(hint, nn.Module)
    return WORDS.get(hint) or getattr(hint, "called", "") or f"{'a ' if is_module else ''}{hint_text(hint)}"


def several(hint: Any) -> str:
    """What many values of a type are called."""
    return "anything" if hint is Any else f"{in_words(hint).removeprefix('a ')}s"


def fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether `value` is of type `hint`, and the value to keep: a float takes an int, a tuple takes a list."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for part in get_args(hint):
            ok, kept = fit(value, part)
            if ok:
                return True, kept
        return False, value
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint)), value
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False, value
        parts = get_args(hint)
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        fitted = [fit(v, p) for v, p in zip(value, each, strict=False)]
        return len(each) == len(value) and all(ok for ok, _ in fitted), tuple(v for _, v in fitted)
    if origin is Mapping:
        return isinstance(value, Mapping), value
    if origin is Callable:
        return callable(value), value
    if hint is Any:
        return True, value
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # What is too large is left as it is, to be refused as such: not every whole number can be a float.
        return number, float(value) if number and not abs(value) > LARGEST else value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, hint), value


def choices(hint: Any) -> list[str]:
    """The names a flag can be set to, as far as its type lists them."""
    if get_origin(hint) is Literal:
        return [c for c in get_args(hint) if isinstance(c, str)]
    return [c for part in get_args(hint) for c in choices(part)]


def check_value(name: str, value: Any, spec: Flag, where: str = "") -> Any:
    """The value to keep for flag `name`; TypeError for a wrong type, ValueError for an unknown choice or range."""
    ok, kept = fit(value, spec.hint)
    if not ok:
        if isinstance(value, str) and (known := choices(spec.hint)):
            possible = f"is not one of {hint_text(spec.hint)}{nearest(value, known) or part_meant(value)}"
            raise ValueError(f"{name}={shown(value)}{where} {possible}")
        raise TypeError(f"{name}{where} must be {in_words(spec.hint)}, not {shown(value)}")
    for number in kept if isinstance(kept, tuple) else (kept,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        check_bounds(f"{name}{where}", number, spec.bounds)
    return kept


def build(config: type[T], given: Mapping[str, Any], prefix: str = "", where: str = "") -> T:
    """A Config from flags without their prefix; errors name the flag as the caller wrote it."""
    specs = flags_of(config)
    for name in given:
        if name not in specs:
            full = nearest(prefix + name, [prefix + known for known in specs])
            raise TypeError(f"unknown flag {prefix + name!r}{where}{full}")
    values = {name: check_value(prefix + name, value, specs[name], where) for name, value in given.items()}
    for name, spec in specs.items():
        if spec.default is REQUIRED and name not in values:
            raise TypeError(f"the flag {prefix + name!r} ({spec.doc}) must be given")
    return config(**values)


class Owner(NamedTuple):
    """A part that owns flags: its prefix ('' for the stack), its Config, and why it is absent ('' if present)."""

    prefix: str
    config: type
    absent: str = ""

    def owns(self, name: str) -> bool:
        """Whether a flag is one of the part's."""
        return name.startswith(self.prefix) and name[len(self.prefix) :] in flags_of(self.config)


def route(
    flags: Mapping[str, Any],
    owners: Iterable[Owner],
    spellings: Iterable[str] = (),
    written: Callable[[str], str] = "{} is set".format,
) -> dict[str, dict[str, Any]]:
    """Sorts flat flags by the prefix of their owner, prefixes taken off.

    TypeError for a flag nobody owns (with the nearest known one, other `spellings` included); ValueError for one of a
    part that is absent, and what of the caller's has set it (`written`).
    """
    owners = sorted(owners, key=lambda owner: -len(owner.prefix))
    present = [o for o in owners if not o.absent]
    routed: dict[str, dict[str, Any]] = {o.prefix: {} for o in present}
    for name, value in flags.items():
        candidates = [o for o in owners if o.owns(name)]
        live = [o for o in candidates if not o.absent]
        if live:
            routed[live[0].prefix][name[len(live[0].prefix) :]] = value
        elif candidates:
            raise ValueError(f"{written(name)} but {candidates[0].absent}")
        else:
            known = [*(o.prefix + field for o in owners for field in flags_of(o.config)), *spellings]
            raise TypeError(f"unknown flag {name!r}{nearest(name, known)}")
    return routed


def flag_table(rows: Iterable[tuple[str, Any, Flag]], changed_only: bool = False) -> str:
    """A text table: flag, value, default, type, doc; a value that is not the default is marked with `*`.

    changed_only: leaves out what is at its default.
    """
    check_switch("changed_only", changed_only)
    cells = [("flag", "value", "default", "type", "doc")]
    for name, value, spec in rows:
        default = "(required)" if spec.default is REQUIRED else repr(spec.default)
        if changed_only and value == spec.default:
            continue
        mark = "" if spec.default is REQUIRED or value == spec.default else " *"
        text = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
        cells.append((name, text + mark, default, hint_text(spec.hint), spec.meaning()))
    widths = [min(max(len(row[i]) for row in cells), 36) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in cells
    )
