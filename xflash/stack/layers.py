"""The layers of a column, each with all that it is built of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..base.registry import blocks, joins, positions, reads, scales
from ..flags.flag import build
from ..flags.layout import NONE
from ..layers.branch import BEFORE
from .around import Chosen, Entry, norm_of, of_group, position_flag
from .slots import slot_prefix

__all__ = ["Layer", "Member", "check_joins", "check_scales", "layer_of", "positions_of"]


class Member(NamedTuple):
    """A block: its name and Config, the Configs of what it holds.

    pos: the names of its positions, None for those of the stack.  norm: one of its own among blocks in parallel.
    """

    name: str
    config: Any
    held: Mapping[str, Any]
    pos: tuple[str, ...] | None = None
    norm: Chosen | None = None


class Layer(NamedTuple):
    """A branch of the column: its block, or those in parallel, and what stands around."""

    members: tuple[Member, ...]
    norm: Chosen | None
    norm_place: str
    scale: dict[str, Any]
    join: Chosen
    shift: int
    dropout: float

    @property
    def name(self) -> str:
        """Its block's, or those in parallel: `attn+ff`."""
        return "+".join(member.name for member in self.members)


def layer_of(
    entries: Sequence[Entry],
    members: Sequence[Member],
    stack: Any,
    shift: int,
    dropout: float,
    parts: Mapping[str, Any],
) -> Layer:
    """A layer from what the layout says of it and what the stack has for all; `parts`: the Configs by their prefix."""
    said, own = of_group(entries)
    place, join = said.get("norm_place", stack.norm_place), said.get("join", stack.join)
    shared = stack.norm, vars(parts["norm_"]) if "norm_" in parts else {}
    norm = norm_of_layer(entries, said, shared)
    norms = norms_of_members(entries, {**said, "norm_place": place}, own, shared)
    return Layer(
        tuple(member._replace(norm=norms.get(i)) for i, member in enumerate(members)),
        norm,
        place,
        {name: parts[slot_prefix(name)] for name in scales_of(entries, said, parts["scale"])},
        (join, parts[slot_prefix(join)]),
        int(said.get("shift_tokens", shift)),
        said.get("layer_dropout", dropout),
    )


def scales_of(entries: Sequence[Entry], said: Mapping[str, Any], shared: Sequence[str]) -> list[str]:
    """The scales of a layer; ValueError for one that the layout says of it and that does not stand there."""
    here = [blocks[entry.spec.name] for entry in entries]
    chosen = said.get("scale", shared)
    fit = [name for name in chosen if scales[name].fits(here)]
    if "scale" in said and len(fit) < len(chosen):
        other = next(name for name in chosen if name not in fit)
        where = next(entry.where for entry in entries if "scale" in entry.around)
        raise ValueError(f"scale={other!r} is set{where}, but {others(other)}")
    return fit


def others(scale: str) -> str:
    """Why a scale does not stand behind every block."""
    able = ", ".join(name for name, block in blocks.items() if scales[scale].fits([block]))
    return f"it stands behind other blocks ({able})"


def check_scales(chosen: Sequence[str], layers: Sequence[Layer]) -> None:
    """ValueError for a scale of the stack that stands behind none of its blocks."""
    for name in chosen:
        if not any(scales[name].fits([blocks[member.name] for member in layer.members]) for layer in layers):
            raise ValueError(f"scale has {name!r}, but {others(name)}")


def norm_of_layer(entries: Sequence[Entry], said: Mapping[str, Any], shared: Chosen) -> Chosen | None:
    """The norm of a layer, from what is said of it and from the stack's, its name and its flags."""
    name = said.get("norm", shared[0])
    own = {flag: value for flag, value in said.items() if flag.startswith("norm")}
    where = next((entry.where for entry in entries if own.keys() & entry.around), "")
    if name == NONE and "norm_place" in own:
        raise ValueError(f"norm_place={own['norm_place']!r} is set{where}, but norm={NONE!r} has nothing to place")
    return norm_of(name, own, shared[1] if name == shared[0] else {}, where)


def norms_of_members(
    entries: Sequence[Entry], said: Mapping[str, Any], own: Mapping[int, Mapping[str, Any]], shared: Chosen
) -> dict[int, Chosen | None]:
    """The norms that some blocks in parallel have of their own, of the kind that the layer or else the stack has."""
    kinds = [kind for kind in (said.get("norm", NONE), shared[0]) if kind != NONE]
    found = {}
    for i, flags in own.items():
        if not kinds or said["norm_place"] not in BEFORE:
            why = (
                f"norm_place={said['norm_place']!r} has none there" if kinds else f"norm={NONE!r} is what the stack has"
            )
            raise ValueError(f"norm='own'{entries[i].where} is a norm in front of the block, but {why}")
        found[i] = norm_of(kinds[0], flags, shared[1] if kinds[0] == shared[0] else {}, entries[i].where)
    return found


def check_joins(layers: Sequence[Layer], chosen: Sequence[str]) -> None:
    """ValueError where only some layers have the streams of a join that has several, or norms stand elsewhere.

    chosen: the reads of the stack, which may not have what a join gives.
    """
    found = list(dict.fromkeys(layer.join[0] for layer in layers))
    wide = [name for name in found if joins[name].wide]
    if wide and len(found) > 1:
        other = next(name for name in found if name != wide[0])
        raise ValueError(
            f"join={wide[0]!r} has streams of its own from the first layer to the last, but join={other!r} is set for "
            "some"
        )
    for layer in layers:
        name, config = layer.join
        alone = next((read for read in chosen if not reads[read].takes_views), None)
        if alone is not None and joins[name].views(config):
            raise ValueError(
                f"reads={alone!r} reads one mixture of what is above, but {name}_views=True gives queries, keys and "
                "values one each"
            )
        able = joins[layer.join[0]].norm_places
        if able and layer.norm_place not in able:
            raise ValueError(
                f"join={layer.join[0]!r} needs a norm after each sum, but norm_place={layer.norm_place!r} has none "
                f"there: give {' or '.join(map(repr, able))}"
            )


def positions_of(
    entry: Entry, at: str, chosen: Sequence[str], routed: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[str, ...] | None, dict[str, Chosen]]:
    """The names of a block's positions (None: the stack's), and those among them that it has of its own.

    at: what the names of these begin with.  ValueError for a position that the block has no use for.
    """
    if not entry.pos:
        return None, {}
    block, here, own = entry.spec.name, entry.pos.get("pos", tuple(chosen)), {}
    for name, value in entry.pos.items():
        if (found := position_flag(name)) is not None:
            if found[0] not in here:
                raise ValueError(
                    f"{name} is set{entry.where}, but pos={' '.join(here) or None!r} has no {found[0]!r}: say "
                    f"pos={found[0]} beside it"
                )
            own.setdefault(found[0], {})[found[1]] = value
    for name in (*(here if "pos" in entry.pos else own),):
        check_use(name, block, entry.where)
    if not here and not any(cls.fits(blocks[block]) for cls in positions.values()):
        raise ValueError(f"pos is set{entry.where}, but {block!r} uses no positions")
    made = {}
    for name, flags in own.items():
        prefix = slot_prefix(name)
        config = build(positions[name].Config, {**routed[prefix], **flags}, prefix, entry.where)
        made[f"{at}_{name}"] = (name, config)
    keys = tuple(f"{at}_{name}" if name in own else name for name in here)
    return (None if keys == tuple(chosen) else keys), made


def check_use(name: str, block: str, where: str) -> None:
    """ValueError for a position that a block cannot use."""
    if not positions[name].fits(blocks[block]):
        able = ", ".join(other for other in blocks if positions[name].fits(blocks[other]))
        raise ValueError(f"{name!r} is set{where}, but {block!r} cannot use it (blocks that can: {able})")
