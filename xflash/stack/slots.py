"""The slots of a stack that parts are chosen for by name, and whose flags there are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..base.registry import Registry, blocks, joins, norms, positions, reads, scales
from ..flags.aliases import as_norm, names
from ..flags.flag import Owner
from ..flags.layout import NONE, LayerSpec
from .held import held_owners, slot_prefix

__all__ = ["SLOTS", "Slot", "choices", "owners", "slot_prefix"]


class Slot(NamedTuple):
    """A flag that names parts of a registry, and whether it names several."""

    name: str
    registry: Registry
    several: bool = True


SLOTS = (Slot("pos", positions), Slot("reads", reads), Slot("scale", scales), Slot("join", joins, False))


def owners(
    stack: type,
    said: Mapping[str, Any],
    specs: Sequence[LayerSpec],
    chosen: Mapping[str, Sequence[str]],
    norm: str | None,
    text: str,
) -> list[Owner]:
    """Every part that could own a flag, and why it is absent where it is; `stack`: the Config of a stack's own."""
    found, used = [Owner("", stack)], {spec.name for spec in specs}
    for name, block in blocks.items():
        absent = "" if name in used else f"the layout {text} has no {name!r}"
        found.append(Owner(slot_prefix(name), block.Config, absent))
        found += held_owners(name, said, specs, absent)
    for slot in SLOTS:
        here = chosen[slot.name]
        for name, part in slot.registry.items():
            absent = "" if name in here else f"{slot.name}={' '.join(here) or None!r} has no {name!r}"
            found.append(Owner(slot_prefix(name), part.Config, absent))
    named: str = as_norm(norm)
    if named != NONE:
        found.append(Owner("norm_", norms[named].Config))
    others = [part for name, part in norms.items() if name != named]
    return found + [Owner("norm_", part.Config, f"norm={named!r} has no such flag") for part in others]


def choices(config: Any) -> dict[str, tuple[str, ...]]:
    """The parts chosen for each slot; ValueError for a name that is not registered."""
    chosen = {}
    for slot in SLOTS:
        named = getattr(config, slot.name)
        chosen[slot.name] = names(named, slot.name, slot.registry) if slot.several else (named,)
        for name in chosen[slot.name]:
            slot.registry[name]
    return chosen
