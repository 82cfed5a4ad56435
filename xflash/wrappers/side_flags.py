"""Which flags the two sides of an `XTransformer` have, and whose each is."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from ..base.registry import nearest
from ..flags.aliases import ALIASES
from ..flags.elsewhere import ELSEWHERE
from ..stack.config import known_flags
from .transformer import TransformerWrapper

__all__ = ["DECIDED", "SIDES", "inner_flags", "read_sides", "side_flags"]

SIDES = {"enc_": "encoder", "dec_": "decoder"}
# What XTransformer itself decides about both sides.
DECIDED = {"attn_layers", "return_only_embed", "dim"}


def inner_flags() -> set[str]:
    """The flags that a side can be given, without its prefix."""
    return {*inspect.signature(TransformerWrapper).parameters, *known_flags(), *ALIASES} - DECIDED


def side_flags(inner: Collection[str]) -> list[str]:
    """These flags, of each side."""
    return [prefix + name for prefix in SIDES for name in sorted(inner)]


def read_sides(flags: Mapping[str, Any], own: Collection[str]) -> dict[str, dict[str, Any]]:
    """The flags of the two sides, prefixes taken off; TypeError for one that belongs to neither. own: both sides'."""
    inner = inner_flags()
    every = [*own, *side_flags(inner)]
    sides: dict[str, dict[str, Any]] = {prefix: {} for prefix in SIDES}
    for name, value in flags.items():
        prefix = next((prefix for prefix in SIDES if name.startswith(prefix)), None)
        if prefix and name[len(prefix) :] == "dim":
            raise TypeError(f"{name}={value!r}: both sides have the same width; give dim instead")
        if name in inner:
            raise TypeError(f"{name} is a flag of one side: give enc_{name} or dec_{name} (or both)")
        if prefix is None or name[len(prefix) :] not in inner:
            raise TypeError(
                f"unknown flag {name!r}{side_meant(name, prefix or '', own, inner) or nearest(name, every)}"
            )
        sides[prefix][name[len(prefix) :]] = value
    for prefix, side in SIDES.items():
        if "num_tokens" not in sides[prefix]:
            raise TypeError(f"XTransformer needs {prefix}num_tokens, the size of the {side}'s vocabulary")
    return sides


def side_meant(name: str, prefix: str, own: Collection[str], inner: Collection[str]) -> str:
    """What a flag is called here that other libraries have another name for, or ''."""
    for ours in ELSEWHERE.get(name.removeprefix(prefix), ()):
        if ours in own or (ours[:4] in SIDES and ours[4:] in inner):
            return f"; it is called {ours!r} here"
        if ours in inner:
            sides = [prefix] if prefix else list(SIDES)
            return f"; it is called {' or '.join(repr(side + ours) for side in sides)} here"
    return ""
