"""`StackConfig`: the flags of a stack itself; which flags there are at all, and what contradicts each other."""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..base.registry import blocks, norms, positions
from ..flags.aliases import ALIASES, names
from ..flags.elsewhere import meant, meant_block
from ..flags.flag import Flag, flags_of
from ..flags.layout import MOST_LAYERS, NONE, LayerSpec, default_layout, parse_layout
from ..layers.blocks.block import Block
from ..saving.classes import homes
from .held import held_by_none, parts_of
from .order import sandwiched
from .side_inputs import untaken
from .slots import SLOTS, Slot, slot_prefix
from .stack_config import StackConfig

__all__ = [
    "StackConfig",
    "check_condition",
    "check_cross",
    "check_every",
    "check_known",
    "check_positions",
    "check_widths",
    "column",
    "every_flag",
    "known_flags",
    "per_layer",
    "slot_prefix",
]


def column(config: StackConfig) -> tuple[tuple[LayerSpec, ...], int]:
    """One period of the layout and how often it is repeated."""
    if config.only_cross and config.cross_attend is False:
        raise ValueError("only_cross=True contradicts cross_attend=False")
    if config.custom_layers is not None:
        for name in ("layers", "depth", "sandwich_coef"):
            if getattr(config, name) is not None:
                raise ValueError(f"custom_layers is the whole column of layers, so {name} cannot be given beside it")
        return parse_layout(config.custom_layers), 1
    if config.depth is None:
        raise TypeError("the flag 'depth' (how often the layout is repeated) must be given")
    default = default_layout(bool(config.cross_attend), config.only_cross)
    specs = parse_layout(default if config.layers is None else config.layers)
    if len(specs) * config.depth > MOST_LAYERS:
        raise ValueError(
            f"depth={config.depth} repeats the layout's {len(specs)} layers; a stack has {MOST_LAYERS} at most"
        )
    if config.sandwich_coef is not None:
        return sandwiched(specs, config.depth, config.sandwich_coef, config.weight_tie_layers), 1
    return specs, config.depth


def check_cross(config: StackConfig, used: Sequence[str], text: str) -> None:
    """ValueError when the layout contradicts cross_attend or only_cross."""
    crossing = [name for name in used if blocks[name].takes_context]
    able = ", ".join(name for name in blocks if blocks[name].takes_context)
    if config.cross_attend and not crossing:
        raise ValueError(f"cross_attend=True, but no block of the layout {text} attends to a context ({able})")
    if config.cross_attend is False and crossing:
        raise ValueError(f"cross_attend=False contradicts the layout {text}, which has {crossing[0]!r}")
    if config.only_cross and (not crossing or any(blocks[name].mixes_tokens for name in used)):
        raise ValueError(f"only_cross=True contradicts the layout {text}; leave out one of them")


def check_widths(blocks_here: Sequence[Block]) -> None:
    """ValueError when blocks expect contexts of different widths: there is only one context."""
    found = {w: blocks.name_of(type(block)) for block in blocks_here if (w := block.context_width()) is not None}
    if len(found) > 1:
        said = ", ".join(f"{name} one of width {width}" for width, name in found.items())
        raise ValueError(f"there is one context for all layers, but {said}; give them the same width")


def check_condition(config: StackConfig, taken: Collection[str]) -> None:
    """ValueError for the width of a condition that no part of the stack takes."""
    if config.dim_condition is not None and "condition" not in taken:
        raise ValueError(
            f"dim_condition={config.dim_condition} is the width of the condition, but {untaken('condition')}"
        )


def per_layer(name: str, value: Any, count: int, period: int) -> tuple:
    """One value a layer from one number for all or a tuple with exactly one entry a layer, the same every `period`."""
    if not isinstance(value, tuple):
        return (int(value) if isinstance(value, bool) else value,) * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries, but the stack has {count} layers; give one a layer")
    if value != value[:period] * (count // period):
        raise ValueError(
            f"{name}={value} differs between repetitions of the layout, but weight_tie_layers=True makes them one"
        )
    return value


def check_positions(pos: Sequence[str], used: Sequence[str], text: str) -> None:
    """ValueError for a position that no block of the layout can use."""
    for name in pos:
        if not any(positions[name].fits(blocks[block]) for block in used):
            able = ", ".join(block for block in blocks if positions[name].fits(blocks[block]))
            raise ValueError(
                f"pos has {name!r}, but no block of the layout {text} can use it (blocks that can: {able})"
            )


def check_every(flags: Mapping[str, Any]) -> None:
    """TypeError for a flag that no stack has, before anything that is missing is asked for."""
    known = [*known_flags(), *ALIASES]
    for name in flags:
        if name not in known:
            check_parts(flags)
            raise TypeError(f"unknown flag {name!r}{answer(name, known)}")


def check_parts(flags: Mapping[str, Any]) -> None:
    """ValueError for a part that is not registered: nobody knows its flags."""
    for name in ("layers", "custom_layers"):
        if isinstance(flags.get(name), (str, tuple)):
            parse_layout(flags[name])
    for slot in (Slot("norm", norms, False), *SLOTS):
        chosen = flags.get(slot.name)
        readable = isinstance(chosen, (str, tuple) if slot.several else str)
        for part in names(chosen, slot.name) if readable and (slot.several or chosen != NONE) else ():
            slot.registry[part]


def answer(name: str, known: Sequence[str]) -> str:
    """What somebody may have meant who gave the unknown flag `name`: where it belongs, or the nearest known one."""
    if name in blocks:
        return meant_block(name)
    for block in blocks:
        begin = slot_prefix(block)
        if name.startswith(begin) and (said := held_by_none(block, name.removeprefix(begin))):
            return said
    return meant(name, known, homes(but="AttentionLayers", ending=", not of a stack"))


def check_known(flags: Iterable[str], cls: type) -> None:
    """TypeError for a name that is no flag of any stack, with the nearest of those and of the arguments of `cls`."""
    arguments = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = [*arguments, *known_flags(), *ALIASES]
    for name in flags:
        if name not in known:
            raise TypeError(f"unknown flag {name!r}{answer(name, known)}")


def every_flag() -> dict[str, Flag]:
    """Every flag that some stack has, by its whole name, aliases not counted."""
    named = [*blocks.items(), *(item for slot in SLOTS for item in slot.registry.items())]
    parts = [("", StackConfig), *((slot_prefix(name), part.Config) for name, part in named)]
    parts += [(slot_prefix(f"{name}_{part}"), config) for name in blocks for _, part, config in parts_of(name)]
    parts += [("norm_", part.Config) for part in norms.values()]
    found: dict[str, Flag] = {}
    for prefix, config in parts:
        for name, spec in flags_of(config).items():
            found.setdefault(prefix + name, spec)
    return found


def known_flags() -> list[str]:
    """The names of all flags."""
    return list(every_flag())
