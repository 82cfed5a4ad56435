"""The parts that blocks hold (steps on scores, weight functions): which are chosen, and whose flags go to whom."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from ..base.registry import blocks
from ..flags.aliases import ALIASES, canonical, names
from ..flags.flag import Owner, build, flags_of
from ..flags.layout import LayerSpec

__all__ = [
    "borrowed",
    "held_by_none",
    "held_owners",
    "layer_config",
    "own_names",
    "parts_of",
    "slot_prefix",
    "with_choices",
]


def slot_prefix(name: str) -> str:
    return name + "_"


def parts_of(block: str) -> list[tuple[str, str, type]]:
    """What a block can hold: the field of its Config that chooses it, its name and its own Config."""
    cls = blocks[block]
    return [
        (field, name, part.Config)
        for field, registry in cls.holds.items()
        for name, part in registry.items()
        if not cls.refuses(part)
    ]


def chosen(value: Any) -> tuple[str, ...]:
    """The parts that a choice names; nothing of what is no choice, which is refused where its type is looked at."""
    if isinstance(value, str):
        return names(value)
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, tuple) else ()


def is_single(block: str, field: str) -> bool:
    """Whether a choice is of one part."""
    return type(None) not in get_args(flags_of(blocks[block].Config)[field].hint)


def choice(block: str, field: str, value: Any) -> Any:
    """A choice as its Config keeps it; ValueError for a part that there is not, or that the block cannot hold."""
    cls = blocks[block]
    registry, single = cls.holds[field], is_single(block, field)
    if single and not isinstance(value, str):
        return next((name for name, part in registry.items() if part is value), value)
    found = (value,) if single else names(value, f"{block}_{field}", registry)
    for name in found:
        if name not in registry:
            raise ValueError(f"{block}_{field} has an {registry.unknown(name)}")
        why = cls.refuses(registry[name])
        if why:
            able = ", ".join(b for b in blocks if field in blocks[b].holds and not blocks[b].refuses(registry[name]))
            raise ValueError(f"{block}_{field} has {name!r}, but {why} (blocks that have: {able})")
    return value if single else found or None


def held_by_none(block: str, field: str) -> str:
    """The answer to a choice of parts that a block does not have, or '' where `field` is no such choice."""
    able = [name for name in blocks if field in blocks[name].holds]
    if not able or block in able:
        return ""
    return f": {block} has no {blocks[able[0]].holds[field].kind}s (blocks that have: {', '.join(able)})"


def own_names(block: str) -> list[str]:
    """The flags that a block and what it can hold have, as a layout says them."""
    held = [slot_prefix(part) + flag for _, part, config in parts_of(block) for flag in flags_of(config)]
    return [*flags_of(blocks[block].Config), *held]


def spelled(spec: LayerSpec, causal: bool) -> LayerSpec:
    """A layer with its overrides in xflash's own spelling, and what it holds as Configs keep it."""
    begin, own = slot_prefix(spec.name), spec.flags
    if any(begin + name in ALIASES for name in own):
        said = canonical({**{begin + name: value for name, value in own.items()}, "causal": causal})
        own = {name.removeprefix(begin): value for name, value in said.items() if name != "causal"}
    for field in set(own).intersection(blocks[spec.name].holds):
        own[field] = choice(spec.name, field, own[field])
    return spec._replace(overrides=own)


def with_choices(
    said: Mapping[str, Any], specs: Sequence[LayerSpec], causal: bool
) -> tuple[dict[str, Any], tuple[LayerSpec, ...]]:
    """The flags of a stack and its layers with checked choices of parts, borrowed ones among them."""
    now = borrowed(said, dict.fromkeys(spec.name for spec in specs))
    for name in {spec.name for spec in specs}:
        for field in blocks[name].holds:
            flag = slot_prefix(name) + field
            if flag in now:
                now[flag] = choice(name, field, now[flag])
    return now, tuple(spelled(spec, causal) for spec in specs)


def borrowed(said: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The flags with those that blocks take over from another block, unless their own say otherwise.

    What a block that is not there lends to others is said of those.
    """
    now = dict(said)
    for name in used:
        lender = blocks[name].borrows
        if lender is None:
            continue
        begin, own = slot_prefix(lender), slot_prefix(name)
        lent = {flag: own + flag.removeprefix(begin) for flag in said if flag.startswith(begin)}
        lent = {flag: mine for flag, mine in lent.items() if mine not in said}
        taken = {mine: value for flag, mine in lent.items() for value in taken_over(name, flag, mine, said[flag])}
        taken |= part_flags(name, {mine: said[flag] for flag, mine in lent.items()}, {**said, **taken})
        now |= taken
        if lender not in used:
            now = {flag: value for flag, value in now.items() if lent.get(flag) not in taken}
    return now


def taken_over(block: str, flag: str, mine: str, value: Any) -> list[Any]:
    """What a block makes of another's flag as its own flag `mine`, none or one."""
    cls, field = blocks[block], mine.removeprefix(slot_prefix(block))
    if field not in flags_of(cls.Config):
        return []
    if field not in cls.holds:
        return [value]
    registry = cls.holds[field]
    single = is_single(block, field)
    if single and not isinstance(value, str):
        return [value]
    given = names(value, flag, registry)
    found = tuple(name for name in given if cls.takes_over(registry[name]))
    return [value] if found == given else [found] if found and not single else []


def part_flags(block: str, lent: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the lent flags that are of parts which the block has chosen too."""
    found = {}
    for field, part, config in parts_of(block):
        if part in chosen(said.get(slot_prefix(block) + field)):
            begin = slot_prefix(f"{block}_{part}")
            found |= {name: lent[name] for name in (begin + flag for flag in flags_of(config)) if name in lent}
    return found


def held_owners(block: str, said: Mapping[str, Any], specs: Sequence[LayerSpec], absent: str) -> list[Owner]:
    """The parts of a block that could own a flag, and why they are absent where they are."""
    found, config = [], flags_of(blocks[block].Config)
    own = [spec.flags for spec in specs if spec.name == block]
    for field, part, flags in parts_of(block):
        flag = slot_prefix(block) + field
        value = said.get(flag, config[field].default)
        there = any(part in chosen(overrides.get(field, value)) for overrides in own)
        why = absent or ("" if there else f"{flag}={' '.join(chosen(value)) or None!r} has no {part!r}")
        found.append(Owner(slot_prefix(f"{block}_{part}"), flags, why))
    return found


def layer_config(
    spec: LayerSpec, where: str, shared: Mapping[str, Any], routed: Mapping[str, Mapping[str, Any]]
) -> tuple[Any, dict[str, Any]]:
    """The Configs of one block and of the parts it holds: the stack's flags with the layout's overrides on top.

    where: how the place of these is named.
    """
    begin, own = slot_prefix(spec.name), spec.flags
    given = {}
    for _, part, flags in parts_of(spec.name):
        there = [name for name in own if name.startswith(slot_prefix(part))]
        there = [name for name in there if name.removeprefix(slot_prefix(part)) in flags_of(flags)]
        given[part] = {name.removeprefix(slot_prefix(part)): own.pop(name) for name in there}
    config = shared[begin]
    if own:
        config = build(blocks[spec.name].Config, {**routed[begin], **own}, where=where)
    held = {}
    for field, part, flags in parts_of(spec.name):
        prefix, value = slot_prefix(begin + part), getattr(config, field)
        if part in chosen(value):
            values = {**routed[prefix], **given[part]}
            held[part] = build(flags, values, slot_prefix(part), where) if given[part] else shared[prefix]
        elif given[part]:
            flag = slot_prefix(part) + next(iter(given[part]))
            raise ValueError(f"{flag} is set{where}, but {begin}{field}={value!r} has no {part!r}")
    return config, held
