"""The values of flags to combine, as the Configs themselves say them (`tried=`).

A choice is a dict of flags; an axis is a list of choices of which a combination has one. Flags that mean nothing
without each other stand on one axis, all others on one of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from xflash import (
    ContinuousTransformerWrapper,
    MultiInputTransformerWrapper,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    XValTransformerWrapper,
)
from xflash.base.registry import Registry, blocks, norms
from xflash.flags.aliases import names
from xflash.flags.flag import Flag, flags_of
from xflash.flags.layout import parse_layout
from xflash.stack.config import SLOTS, Slot, StackConfig, slot_prefix
from xflash.stack.held import parts_of

Choice = dict[str, Any]
Axes = dict[str, list[Choice]]

# A default above this is a size that nobody tries: the first value stands in its place.
LARGE = 16
NORM = Slot("norm", norms, False)


def entries(spec: Flag) -> list[Choice]:
    """What a flag is tried with, without the names of its part."""
    tried = () if isinstance(spec.tried, str) or spec.tried is None else spec.tried
    return [value if isinstance(value, dict) else {spec.name: value} for value in tried]


def is_size(spec: Flag) -> bool:
    """Whether only what it is tried with is small enough for a test."""
    return type(spec.default) is int and spec.default > LARGE and bool(entries(spec))


def sizes(config: type) -> Choice:
    """What stands for defaults that are too large."""
    return {name: spec.tried[0] for name, spec in flags_of(config).items() if is_size(spec)}


def said(prefix: str, choice: Mapping[str, Any]) -> Choice:
    return {prefix + name: value for name, value in choice.items()}


def linked(specs: Iterable[Flag]) -> list[list[str]]:
    """The flags in groups: those of one entry stand in one group."""
    groups: list[list[str]] = []
    for spec in specs:
        here = dict.fromkeys([spec.name, *(name for entry in entries(spec) for name in entry)])
        meet = [group for group in groups if not here.keys().isdisjoint(group)]
        groups = [group for group in groups if group not in meet]
        groups.append(list(dict.fromkeys([*(name for group in meet for name in group), *here])))
    return groups


def variants(config: type) -> list[Choice]:
    """All flags of a part that is chosen by name: at their defaults, together at what they are tried with, and the
    dicts of what is tried each for itself."""
    specs = list(flags_of(config).values())
    together: list[Choice] = []
    for spec in specs:
        for i, value in enumerate(value for value in spec.tried or () if not isinstance(value, (dict, str))):
            together += [{}] if i == len(together) else []
            together[i][spec.name] = value
    alone = [entry for spec in specs for entry in entries(spec) if entry in (spec.tried or ())]
    alone = [entry for entry in alone if not any(entry.items() < other.items() for other in alone)]
    return once(sizes(config) | choice for choice in ({}, *together, *alone))


def once(choices: Iterable[Choice]) -> list[Choice]:
    """Choices without those that were there before."""
    found: list[Choice] = []
    for choice in choices:
        found += [] if choice in found else [choice]
    return found


def parts(flag: str, prefix: str, registry: Registry, spec: Flag, wanted=lambda part: True) -> list[Choice]:
    """A flag that names parts: at its default, in each company that it is tried with, and every part and each of its
    variants at least once."""
    able = {name: part for name, part in registry.items() if wanted(part)}
    shared = set.intersection(*({*flags_of(part.Config)} for part in able.values())) if prefix == "norm_" else set()
    left = {name: variants(part.Config) for name, part in able.items()}
    turns = {name: cycle(found) for name, found in left.items()}
    found: list[Choice] = [{}]

    def choose(*chosen: str, **beside: Any) -> None:
        choice = {**beside, flag: " ".join(chosen)}
        for name in chosen:
            variant = next(turns[name])
            left[name] = [other for other in left[name] if other != variant]
            choice |= said(prefix.format(name), {k: v for k, v in variant.items() if k not in shared})
        found.append(choice)

    for entry in entries(spec):
        if set(chosen := names(entry[spec.name])) <= able.keys():
            choose(*chosen, **{name: value for name, value in entry.items() if name != spec.name})
    for name in able:
        while left[name]:
            choose(name)
    unset = {flag: spec.default}
    return [choice for choice in once(found) if choice != unset]


def axis(specs: Iterable[Flag], prefix: str, named: Axes) -> list[Choice]:
    """The choices of flags that stand together; `named` has those of flags that name parts."""
    specs = list(specs)
    found: list[Choice] = [] if any(is_size(spec) for spec in specs) else [{}]
    for spec in specs:
        found += named[spec.name] if spec.name in named else [said(prefix, entry) for entry in entries(spec)]
    return once(found)


def axes(config: type, prefix: str = "", named: Axes | None = None, wanted: Iterable[str] | None = None) -> Axes:
    """All flags of a Config or those `wanted`, each axis by the first of those that stand together."""
    specs = [spec for name, spec in flags_of(config).items() if wanted is None or name in wanted]
    found = {
        prefix + group[0]: axis((spec for spec in specs if spec.name in group), prefix, named or {})
        for group in linked(specs)
    }
    return varied(found)


def varied(found: Axes) -> Axes:
    """Axes without those that leave nothing to say."""
    return {name: choices for name, choices in found.items() if choices != [{}]}


def stack_axes(wanted: Iterable[str]) -> Axes:
    """Some flags of the stack itself, and those of the parts that they name."""
    named = {
        slot.name: parts(slot.name, "norm_" if slot is NORM else "{}_", slot.registry, flags_of(StackConfig)[slot.name])
        for slot in (NORM, *SLOTS)
    }
    return axes(StackConfig, "", named, wanted)


def norm_axes() -> Axes:
    """What all norms have, whichever is chosen."""
    return axes(norms.base.Config, "norm_")


def held(name: str) -> dict[str, list[Choice]]:
    """The choices of the flags of a block that name parts it holds."""
    block = blocks[name]
    return {
        field: parts(
            f"{name}_{field}",
            f"{name}_{{}}_",
            registry,
            flags_of(block.Config)[field],
            lambda part: not block.refuses(part),
        )
        for field, registry in block.holds.items()
    }


def apart(chosen: Iterable[str]) -> Axes:
    """The flags of several blocks and of what they hold, each block's own on axes of their own."""
    each = [axes(blocks[name].Config, slot_prefix(name), held(name)) for name in chosen]
    return {name: choices for own in each for name, choices in own.items()}


def together(chosen: Sequence[str]) -> Axes:
    """The flags of several blocks, those of the same name on one axis, set in all that have them at once."""
    found = {}
    flags = {name: flags_of(blocks[name].Config) for name in chosen}
    for group in linked(spec for own in flags.values() for spec in own.values()):
        each = [
            axis((spec for spec in own.values() if spec.name in group), slot_prefix(name), held(name))
            for name, own in flags.items()
        ]
        longest = max(map(len, each))
        found[group[0]] = [
            {k: v for choice in choices for k, v in choice.items()}
            for choices in zip(*(islice(cycle(own), longest) for own in each), strict=True)
        ]
    return varied(found)


LAYOUT = ("layers", "custom_layers")


def inside(layers: Any) -> list[str]:
    """The blocks of a layout."""
    return list(dict.fromkeys(block.name for spec in parse_layout(layers) for block in spec.members))


def layouts(chosen: Iterable[str]) -> list[Choice]:
    """Every layout that is tried and has all these blocks, with sizes for the others in it."""
    found = []
    for flag in LAYOUT:
        for entry in flags_of(StackConfig)[flag].tried:
            choice = entry if isinstance(entry, dict) else {flag: entry}
            layers = choice[flag]
            if set(chosen) <= set(here := inside(layers)):
                others = [said(slot_prefix(name), sizes(blocks[name].Config)) for name in here if name not in chosen]
                found.append({**choice, **{k: v for other in others for k, v in other.items()}})
    return found


MODELS = (
    TransformerWrapper,
    ContinuousTransformerWrapper,
    MultiInputTransformerWrapper,
    XValTransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)


def owners() -> list[tuple[str, type]]:
    """Every Config of the package's own stacks, parts and models, and what its flags begin with."""
    named = [("norm_", part) for part in norms.values()]
    named += [(slot_prefix(name), part) for slot in SLOTS for name, part in slot.registry.items()]
    found = [("", StackConfig), *((prefix, part.Config) for prefix, part in named)]
    for name, block in blocks.items():
        found.append((slot_prefix(name), block.Config))
        found += [(slot_prefix(f"{name}_{part}"), config) for _, part, config in parts_of(name)]
    found += [("", model.Config) for model in MODELS]
    return [(prefix, config) for prefix, config in found if config.__module__.startswith("xflash.")]
