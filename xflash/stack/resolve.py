"""From keyword flags to what a stack is built of: its own Config, its layers, and the Config of every part."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..base.registry import blocks, excerpt, joins, norms, positions
from ..flags.aliases import ALIASES, as_norm, canonical, names, written
from ..flags.flag import Flag, Owner, build, check_idle, flags_of, route
from ..flags.layout import NONE, LayerSpec, layout_text
from ..layers.branch import SUMMED
from .around import Around, Chosen, Entry, entry_of, position_flag
from .config import StackConfig, check_cross, check_every, check_positions, column, per_layer
from .held import layer_config, parts_of, with_choices
from .layers import Layer, Member, check_joins, check_scales, layer_of, positions_of
from .misspelt import check_own
from .order import order_of, places_of
from .slots import SLOTS, choices, owners, slot_prefix

__all__ = ["Resolved", "read", "resolve"]


class Resolved(NamedTuple):
    """What a stack is built of.

    order: the layers as numbers, equal ones one module.  norm: the last one.  positions: all that there are, by name,
    and `pos` the names of those that blocks have which say nothing else.  rows: the flags of the stack; said: those
    that the layout says of layers.
    """

    config: StackConfig
    layers: tuple[Layer, ...]
    order: tuple[int, ...]
    period: int
    text: str
    norm: Chosen | None
    reads: dict[str, Any]
    positions: dict[str, Chosen]
    pos: tuple[str, ...]
    flat: dict[str, Any]
    rows: list[tuple[str, Any, Flag]]
    said: list[tuple[str, Any, Flag]]


class Read(NamedTuple):
    """Flags in one spelling, what they choose, and every part that could own one of them."""

    said: dict[str, Any]
    stack: StackConfig
    specs: Sequence[LayerSpec]
    depth: int
    entries: list[list[Entry]]
    chosen: dict[str, tuple[str, ...]]
    owners: list[Owner]


def read(flags: Mapping[str, Any]) -> Read:
    """What flags say, before their values are checked; TypeError or ValueError for what no stack has."""
    check_every(flags)
    said = canonical(flags)
    own = {name: value for name, value in said.items() if name in flags_of(StackConfig)}
    listed = {slot.name: names(own.get(slot.name), slot.name, slot.registry) or None for slot in SLOTS if slot.several}
    stack = build(StackConfig, {**own, **listed})
    specs, depth = column(stack)
    used = list(dict.fromkeys(block.name for spec in specs for block in spec.members))
    text = excerpt(layout_text(specs))
    chosen = choices(stack)
    check_positions(chosen["pos"], used, text)
    check_cross(stack, used, text)
    for name in used:
        if blocks[name].causal_only and not stack.causal:
            raise ValueError(f"the layout {text} has {name!r}, which looks back only, in a bidirectional stack")
    said, entries = sorted_layers(said, specs, stack.causal)
    every = [entry for layer in entries for entry in layer]
    found = owners(StackConfig, said, [e.spec for e in every], everywhere(chosen, every), stack.norm, text)
    return Read(said, stack, specs, depth, entries, chosen, found)


def resolve(flags: Mapping[str, Any]) -> Resolved:
    """Checks and sorts the flags of a stack; TypeError or ValueError says which flag is wrong and what is possible."""
    said, stack, specs, depth, entries, chosen, all_owners = read(flags)
    whole = layout_text(specs)
    routed = route(said, all_owners, ALIASES, lambda name: written(name, flags))
    present = {o.prefix: o.config for o in all_owners if not o.absent}
    parts = {prefix: build(config, routed[prefix], prefix) for prefix, config in present.items() if prefix}
    for layer in entries:
        for entry in layer:
            check_own(entry.spec, entry.where)
    configs = [[layer_config(e.spec, e.where, parts, routed) for e in layer] for layer in entries]
    order = order_of(stack, len(specs) * depth, len(specs))
    members = arranged(entries, configs, order, stack)
    distinct = [members[places[0]] for places in places_of(order)]
    members, there = placed(distinct, entries, chosen["pos"], parts, routed)
    layers = surrounded(members, entries, stack, len(specs) * depth, {**parts, **chosen})
    parts[""] = stack
    # Owners in the order a reader expects them: the stack's flags first, then part by part.
    rows = [(p + name, getattr(parts[p], name), spec) for p in present for name, spec in flags_of(present[p]).items()]
    flat = {name: value for name, value, _ in rows}
    return Resolved(
        config=stack,
        layers=tuple(layers[i] for i in order),
        order=order,
        period=len(specs) if stack.layers_execute_order is None else len(order),
        text=whole if depth == 1 else f"({whole}) x {depth}",
        norm=last_norm(stack, layers, parts.get("norm_")),
        reads={name: parts[slot_prefix(name)] for name in chosen["reads"]},
        positions=there,
        pos=chosen["pos"],
        flat=flat,
        rows=rows,
        said=said_rows(entries, flat),
    )


def sorted_layers(
    said: Mapping[str, Any], specs: Sequence[LayerSpec], causal: bool
) -> tuple[dict[str, Any], list[list[Entry]]]:
    """The stack's flags with checked choices of what blocks hold, and for each layer what is said of its blocks."""
    entries = [[entry_of(block) for block in spec.members] for spec in specs]
    now, own = with_choices(said, [entry.spec for layer in entries for entry in layer], causal)
    found = iter(own)
    return now, [[entry._replace(spec=next(found)) for entry in layer] for layer in entries]


def everywhere(chosen: Mapping[str, Sequence[str]], entries: Sequence[Entry]) -> dict[str, tuple[str, ...]]:
    """The parts chosen for each slot, those that only some layers have among them."""
    found = {}
    for slot, here in chosen.items():
        said = [value for e in entries for name, value in {**e.around, **e.pos}.items() if name == slot]
        every = [name for value in said for name in ((value,) if isinstance(value, str) else value)]
        found[slot] = tuple(dict.fromkeys([*here, *every]))
    return found


def arranged(
    entries: Sequence[Sequence[Entry]],
    made: Sequence[Sequence[tuple[Any, Any]]],
    order: Sequence[int],
    stack: StackConfig,
) -> list[list[Member]]:
    """The blocks of all layers of the column as they are run, with what they ask of each other."""
    layers = [
        [Member(e.spec.name, *how) for e, how in zip(*layer, strict=True)] for layer in zip(entries, made, strict=True)
    ]
    column = [layers[i % len(layers)] for i in order]
    every: Any = tuple((member.name, member.config) for layer in column for member in layer)
    for place, (name, _) in enumerate(every):
        every = tuple(blocks[name].arrange(place, every, stack.heads))
    found = iter(every)
    return [[member._replace(config=next(found)[1]) for member in layer] for layer in column]


def placed(
    layers: Sequence[Sequence[Member]],
    entries: Sequence[Sequence[Entry]],
    chosen: tuple[str, ...],
    parts: Mapping[str, Any],
    routed: Mapping[str, Mapping[str, Any]],
) -> tuple[list[list[Member]], dict[str, Chosen]]:
    """The blocks with the names of their positions, and all positions there are by name.

    ValueError for one of the stack's, `chosen`, that every block which can use it has set aside.
    """
    own: dict[str, Chosen] = {}
    found = []
    for i, layer in enumerate(layers):
        here = []
        for m, (member, entry) in enumerate(zip(layer, entries[i % len(entries)], strict=True)):
            pos, made = positions_of(entry, f"{i}_{m}" if len(layer) > 1 else f"{i}", chosen, routed)
            here.append(member._replace(pos=pos))
            own |= made
        found.append(here)
    every = [member for layer in found for member in layer]
    shared = {}
    for name in (name for name in positions if slot_prefix(name) in parts):
        users = [m for m in every if name in (chosen if m.pos is None else m.pos)]
        if any(positions[name].fits(blocks[member.name]) for member in users):
            shared[name] = name, parts[slot_prefix(name)]
        elif name in chosen:
            raise ValueError(
                f"pos has {name!r}, but every layer that could use it has positions of its own: say pos={name} in "
                "each layer's parentheses, not of the stack"
            )
    return found, {name: shared[name] for name in [*chosen, *shared] if name in shared} | own


def surrounded(
    members: Sequence[Sequence[Member]],
    entries: Sequence[Sequence[Entry]],
    stack: StackConfig,
    count: int,
    parts: Mapping[str, Any],
) -> list[Layer]:
    """The distinct layers of a column, from their blocks; `count`: of the layout's layers, tied ones each."""
    distinct = len(members)
    shifts = per_layer("shift_tokens", stack.shift_tokens, count, distinct)
    dropouts = per_layer("layer_dropout", stack.layer_dropout, count, distinct)
    layers = [
        layer_of(entries[i % len(entries)], members[i], stack, shifts[i], dropouts[i], parts) for i in range(distinct)
    ]
    check_joins(layers, parts["reads"])
    check_scales(parts["scale"], layers)
    check_norms(stack, layers)
    return layers


def check_norms(stack: StackConfig, layers: Sequence[Layer]) -> None:
    """ValueError for flags of norms where there is none, and of a clamp that is not there."""
    if not stack.softclamp_output:
        check_idle(stack, ("softclamp_output_value",), "softclamp_output is False")
    if stack.norm == NONE and stack.final_norm:
        raise ValueError(f"final_norm=True is set, but norm={NONE!r}")
    if stack.norm_place != "pre" and not any(layer.norm or any(m.norm for m in layer.members) for layer in layers):
        raise ValueError(f"norm_place={stack.norm_place!r} is set, but norm={NONE!r} has nothing to place")


def last_norm(stack: StackConfig, layers: Sequence[Layer], config: Any) -> Chosen | None:
    """The norm behind the last layer, with its Config."""
    usual = stack.norm_place not in SUMMED or joins[layers[0].join[0] if layers else stack.join].norms_end
    wanted = usual if stack.final_norm is None else stack.final_norm
    norm = as_norm(stack.norm)
    return (norm, config) if wanted and norm != NONE else None


def said_rows(entries: Sequence[Sequence[Entry]], flat: Mapping[str, Any]) -> list[tuple[str, Any, Flag]]:
    """A row for each flag that the layout says of a layer, beside what the stack says of it."""
    rows = []
    for place, layer in enumerate(entries):
        for entry in layer:
            block, said = entry.spec.name, {**entry.spec.flags, **entry.around, **entry.pos}
            for name, value in said.items():
                spec, of_stack = said_flag(block, name, name in entry.spec.overrides)
                rows.append(
                    (f"{place}: {block}({name})", value, spec._replace(default=flat.get(of_stack, spec.default)))
                )
    return rows


def said_flag(block: str, name: str, own: bool) -> tuple[Flag, str]:
    """The flag of a layer, its block's `own` or not, and what it is called among the stack's."""
    found = position_flag(name)
    if own:
        held = {
            slot_prefix(part) + flag: spec
            for _, part, config in parts_of(block)
            for flag, spec in flags_of(config).items()
        }
        return {**held, **flags_of(blocks[block].Config)}[name], slot_prefix(block) + name
    if name in flags_of(Around):
        return flags_of(Around)[name], name
    if found is not None:
        return flags_of(positions[found[0]].Config)[found[1]], name
    field = name.removeprefix("norm_")
    return next(flags_of(part.Config)[field] for part in norms.values() if field in flags_of(part.Config)), name
