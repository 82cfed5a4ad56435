"""What a layout says of one layer beside its block's own flags: what stands around the block, and its positions."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from ..base.frozen import frozen
from ..base.registry import excerpt, joins, norms, positions, scales
from ..flags.aliases import ALIASES, as_norm, names
from ..flags.flag import build, flag, flags_of
from ..flags.layout import NONE, OWN, LayerSpec, layout_text
from ..layers.branch import NormPlace
from .held import own_names, slot_prefix

__all__ = ["Around", "Chosen", "Entry", "entry_of", "norm_of", "of_group", "position_flag"]

# A registered part and its Config.
Chosen = tuple[str, Any]


@frozen
class Around:
    """What a layout can say of one layer in parentheses behind its block, as `attn(norm=rmsnorm)`."""

    norm: str | None = flag(
        "layernorm", "its norm (of blocks in parallel: of all of them), 'none', or 'own': one beside theirs"
    )
    norm_place: NormPlace = flag("pre", "where its norms stand (of blocks in parallel: of all of them)")
    scale: str | tuple[str, ...] | None = flag(
        None, "what multiplies its update (of blocks in parallel: their sum), or 'none'"
    )
    join: str = flag("add", "how its update joins the stream (of blocks in parallel: their sum)")
    shift_tokens: int | bool = flag(
        0, "tokens by which its channels are delayed (of blocks in parallel: for all of them)", at_least=0
    )
    layer_dropout: float = flag(
        0.0, "chance of a row to skip it (of blocks in parallel: all of them)", at_least=0, below=1
    )
    pos: str | tuple[str, ...] | None = flag(None, "its positions, or 'none'")


class Entry(NamedTuple):
    """A block of a layout: what is said of its own, of what is around it and of its positions; where that is said."""

    spec: LayerSpec
    around: dict[str, Any]
    pos: dict[str, Any]
    where: str


def position_flag(name: str) -> tuple[str, str] | None:
    """The position whose flag this is, and the flag without its prefix."""
    for position, cls in positions.items():
        field = name.removeprefix(slot_prefix(position))
        if field != name and field in flags_of(cls.Config):
            return position, field
    return None


def entry_of(spec: LayerSpec) -> Entry:
    """A block of the layout, what is said of it sorted: its own flags first; TypeError or ValueError for a value."""
    where = f" in the layout entry {excerpt(layout_text([spec]))}" if spec.overrides else ""
    found = Entry(spec._replace(overrides={}), {}, {}, where)
    known, begin = own_names(spec.name), slot_prefix(spec.name)
    for name, value in spec.flags.items():
        own = name in known or begin + name in ALIASES
        if not own and (name == "pos" or position_flag(name)):
            found.pos[name] = value
        elif not own and (name in flags_of(Around) or name.startswith("norm_")):
            found.around[name] = value
        else:
            found.spec.overrides[name] = value  # ty: ignore[invalid-assignment]
    return checked(found)


def checked(entry: Entry) -> Entry:
    """The entry with its choices of parts as names; TypeError or ValueError for a value that none can be."""
    said = {name: value for name, value in {**entry.around, **entry.pos}.items() if name in flags_of(Around)}
    if "norm" in said:
        said["norm"] = as_norm(said["norm"])
    built = build(Around, said, where=entry.where)
    now = {field.name: getattr(built, field.name) for field in fields(Around) if field.name in said}
    for name, registry in (("scale", scales), ("pos", positions), ("join", joins)):
        if name not in now:
            continue
        if name != "join":
            now[name] = names(now[name], name, registry)
        for part in (now[name],) if name == "join" else now[name]:
            registry[part]
    return entry._replace(
        around={name: now.get(name, value) for name, value in entry.around.items()},
        pos={name: now.get(name, value) for name, value in entry.pos.items()},
    )


def of_group(entries: Sequence[Entry]) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """What is said around a layer, and of the norms that some of its members have of their own.

    ValueError where members say it otherwise: a layer has one norm, scale, join, shift and dropout.
    """
    said: dict[str, Any] = {}
    own: dict[int, dict[str, Any]] = {}
    for i, entry in enumerate(entries):
        around = dict(entry.around)
        if around.get("norm") == OWN:
            if len(entries) == 1:
                raise ValueError(
                    f"norm='own'{entry.where} is for one of several blocks in parallel, whose norms are one otherwise"
                )
            own[i] = {n: around.pop(n) for n in entry.around if n.startswith("norm") and n != "norm_place"}
        for name, value in around.items():
            if said.setdefault(name, value) != value:
                raise ValueError(
                    f"{name}={value!r} is set{entry.where}, but another block in parallel with it has "
                    f"{name}={said[name]!r}, and they have one"
                )
    return said, own


def norm_of(name: str, own: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> Chosen | None:
    """A layer's norm from its own flags and those that the stack has for it; None where it has none.

    ValueError for a flag of another norm.
    """
    none = name == NONE
    values = {flag.removeprefix("norm_"): v for flag, v in own.items() if flag not in ("norm", "norm_place")}
    for field in values:
        others = [n for n, part in norms.items() if field in flags_of(part.Config)]
        if others and (none or name not in others):
            raise ValueError(f"norm_{field} is set{where}, but norm={name!r} has no such flag")
    config = NoNorm if none else norms[name].Config
    built = build(config, {**shared, **values}, "norm_", where)
    return None if none else (name, built)


@frozen
class NoNorm:
    """Nothing to set."""
