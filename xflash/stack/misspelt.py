"""A flag that the layout says of one layer and that there is not: whose it is, or how it is spelled."""

from collections.abc import Sequence

from ..base.registry import blocks, nearest, norms, positions
from ..flags.aliases import ALIASES
from ..flags.flag import flags_of
from ..flags.layout import AROUND, LayerSpec
from .held import held_by_none, own_names, slot_prefix
from .stack_config import StackConfig

__all__ = ["check_own"]


def check_own(spec: LayerSpec, where: str) -> None:
    """TypeError for a flag of a layer that neither its block nor what that can hold or stands around has."""
    known = own_names(spec.name)
    for name in spec.flags:
        if name not in known:
            said = held_by_none(spec.name, name) or owner(spec.name, name, known) or near(name, known)
            raise TypeError(f"unknown flag {name!r}{where}{said}")


def owner(block: str, name: str, known: Sequence[str]) -> str:
    """Whose flag that is which is said of a layer of `block`, or ''."""
    for other in (block, *blocks):
        own = name.removeprefix(slot_prefix(other))
        if own != name and own in (known if other == block else own_names(other)):
            return f"; of one layer it is {own!r}" if other == block else f"; it is a flag of {other!r}"
    if name in flags_of(StackConfig) or name in ALIASES:
        return "; it is a flag of the whole stack"
    able = [other for other in blocks if name in own_names(other)]
    return f"; blocks that have it: {', '.join(able)}" if able else ""


def near(name: str, known: Sequence[str]) -> str:
    """The nearest flag of a layer: its block's own, and those of norms and positions, which it can set too."""
    parts = [*(("norm", part) for part in norms.values()), *positions.items()]
    around = [slot_prefix(begin) + flag for begin, part in parts for flag in flags_of(part.Config)]
    return nearest(name, [*known, *AROUND, *around])
