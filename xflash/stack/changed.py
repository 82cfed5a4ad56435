"""The flags of a stack with others in their place."""

from collections.abc import Mapping
from typing import Any

from ..flags.aliases import canonical
from .config import check_every
from .face import AttentionLayers
from .resolve import read

__all__ = ["changed"]

# What says a column in a word of its own, and what it says otherwise.
COLUMN = {
    "layers": ("custom_layers", "layers_execute_order"),
    "custom_layers": ("layers", "depth", "sandwich_coef", "layers_execute_order"),
    "depth": ("layers_execute_order",),
}


def changed(stack: AttentionLayers, given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that are not at their default, `given` in their place, without those of parts that are gone by it."""
    check_every(given)
    said = canonical(given)
    instead = {*said, *stack.fixed, *(other for name in said for other in COLUMN.get(name, ()))}
    old = {name: value for name, value, spec in stack.rows if value != spec.default and name not in instead}
    there = [owner for owner in read({**stack.fixed, **old, **given}).owners if not owner.absent]
    return {name: value for name, value in old.items() if any(owner.owns(name) for owner in there)} | dict(given)
