"""From keyword flags to what a stack is built of: its own Config, its layers, and the Config of every part."""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..base.registry import blocks, excerpt, norms, positions
from ..flags.aliases import ALIASES, canonical, names, written
from ..flags.elsewhere import meant, meant_block
from ..flags.flag import Flag, build, flags_of, route
from ..flags.layout import MOST_LAYERS, LayerSpec, default_layout, layout_text, parse_layout
from ..layers.blocks.block import Block
from ..layers.positions.position import Position
from ..saving.configurable import homes
from .held import held_by_none, layer_config, parts_of, with_choices
from .side_inputs import untaken
from .slots import SLOTS, Slot, choices, owners, slot_prefix
from .stack_config import StackConfig

__all__ = [
    "Resolved",
    "StackConfig",
    "check_condition",
    "check_known",
    "check_uses",
    "check_widths",
    "every_flag",
    "known_flags",
    "resolve",
    "slot_prefix",
]


class Resolved(NamedTuple):
    """What a stack is built of; for each layer of the whole column its block's Config, and those of what it holds."""

    config: StackConfig
    layers: tuple[tuple[str, Any], ...]
    held: tuple[Mapping[str, Any], ...]
    period: int
    text: str
    norm: Any
    join: Any
    reads: dict[str, Any]
    scale: dict[str, Any]
    positions: dict[str, Any]
    shifts: tuple[int, ...]
    dropouts: tuple[float, ...]
    flat: dict[str, Any]
    rows: list[tuple[str, Any, Flag]]


def column(config: StackConfig) -> tuple[tuple[LayerSpec, ...], int]:
    """One period of the layout and how often it is repeated."""
    if config.only_cross and config.cross_attend is False:
        raise ValueError("only_cross=True contradicts cross_attend=False")
    if config.custom_layers is not None:
        for name in ("layers", "depth"):
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


def check_uses(blocks_here: Sequence[Block], here: Iterable[Position]) -> None:
    """ValueError for settings of positions that the blocks that use them cannot follow."""
    for position in here:
        position.check([block for block in blocks_here if position.fits(type(block))])


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


def resolve(flags: Mapping[str, Any]) -> Resolved:
    """Checks and sorts the flags of a stack; TypeError or ValueError says which flag is wrong and what is possible."""
    check_every(flags)
    said = canonical(flags)
    own = {name: value for name, value in said.items() if name in flags_of(StackConfig)}
    listed = {slot.name: names(own.get(slot.name), slot.name, slot.registry) or None for slot in SLOTS if slot.several}
    stack = build(StackConfig, {**own, **listed})
    specs, depth = column(stack)
    used = list(dict.fromkeys(spec.name for spec in specs))
    whole = layout_text(specs)
    text = excerpt(whole)
    chosen = choices(stack)
    check_positions(chosen["pos"], used, text)
    check_cross(stack, used, text)
    for name in used:
        if blocks[name].causal_only and not stack.causal:
            raise ValueError(f"the layout {text} has {name!r}, which looks back only, in a bidirectional stack")
    said, specs = with_choices(said, specs, stack.causal)
    all_owners = owners(StackConfig, said, specs, chosen, stack.norm, text)
    routed = route(said, all_owners, ALIASES, lambda name: written(name, flags))
    present = {o.prefix: o.config for o in all_owners if not o.absent}
    parts = {prefix: build(config, routed[prefix], prefix) for prefix, config in present.items() if prefix}
    made = [layer_config(spec, parts, routed) for spec in specs]
    layers = tuple((spec.name, config) for spec, (config, _) in zip(specs, made, strict=True)) * depth
    for place, (name, _) in enumerate(layers):
        layers = tuple(blocks[name].arrange(place, layers, stack.heads))
    if stack.weight_tie_layers and depth == 1:
        raise ValueError(
            "weight_tie_layers=True ties the repetitions of the layout, but it is there only once (depth=1)"
        )
    parts[""] = stack
    distinct = len(specs) if stack.weight_tie_layers else len(layers)
    # Owners in the order a reader expects them: the stack's flags first, then part by part.
    rows = [(p + name, getattr(parts[p], name), spec) for p in present for name, spec in flags_of(present[p]).items()]
    return Resolved(
        config=stack,
        layers=layers,
        held=tuple(held for _, held in made) * depth,
        period=len(specs),
        text=whole if depth == 1 else f"({whole}) x {depth}",
        norm=parts["norm_"],
        join=parts[slot_prefix(stack.join)],
        reads={name: parts[slot_prefix(name)] for name in chosen["reads"]},
        scale={name: parts[slot_prefix(name)] for name in chosen["scale"]},
        positions={name: parts[slot_prefix(name)] for name in chosen["pos"]},
        shifts=per_layer("shift_tokens", stack.shift_tokens, len(layers), distinct),
        dropouts=per_layer("layer_dropout", stack.layer_dropout, len(layers), distinct),
        flat={name: value for name, value, _ in rows},
        rows=rows,
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
        for part in names(chosen, slot.name) if readable else ():
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
