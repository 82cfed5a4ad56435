"""The catalogue: every flag of every registered part, with its default and its meaning."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..base.registry import blocks, norms
from ..flags.aliases import ALIASES, SAMPLES, SWITCHES, spoken
from ..flags.flag import REQUIRED, Flag, flag_table, flags_of
from ..flags.layout import LETTERS
from .config import SLOTS, Slot, StackConfig, slot_prefix
from .examples import example, held_example

__all__ = ["Group", "aliases", "catalogue", "groups", "sentence", "unset"]


class Group(NamedTuple):
    """The flags of one part, with a heading, a sentence on the part and an example."""

    title: str
    doc: str
    flags: list[tuple[str, Flag]]
    example: str = ""


class Open:
    """What stands in the table for the value of a flag that must be given."""

    def __repr__(self) -> str:
        return "-"


def sentence(part: Any) -> str:
    """The first line of a part's docstring; the name of a function of PyTorch."""
    line = (inspect.getdoc(part) or "").split("\n")[0]
    return f"PyTorch's {part.__name__}" if not isinstance(part, type) and "->" in line else line


def groups() -> Iterator[Group]:
    """Every flag of every registered part, the stack's own first."""
    yield Group("the stack", "", list(flags_of(StackConfig).items()))
    for slot in (Slot("layers", blocks), *SLOTS):
        for name, part in slot.registry.items():
            own = [(slot_prefix(name) + flag, spec) for flag, spec in flags_of(part.Config).items()]
            lender = getattr(part, "borrows", None)
            taken = f" Flags of {lender} reach it too, unless its own say otherwise." if lender else ""
            title = f"{slot.registry.kind} {name!r}"
            yield Group(title, sentence(part) + taken, own, example(slot.name, name, part))
    for field, registry in {f: r for block in blocks.values() for f, r in block.holds.items()}.items():
        for name, part in registry.items():
            takers = [b for b, block in blocks.items() if field in block.holds and not block.refuses(part)]
            rows = [(f"{name}_{flag}", spec) for flag, spec in flags_of(part.Config).items()]
            begin = f"; flags begin with the block, as {takers[0]}_{rows[0][0]}" if rows else ""
            doc = f"{sentence(part)} For {', '.join(takers)}{begin}."
            yield Group(f"{registry.kind} {name!r}", doc, rows, held_example(field, name, part, takers))
    yield norm_flags()
    for name, part in norms.items():
        yield Group(f"norm {name!r}", sentence(part), [], example("norm", name, part))


def norm_flags() -> Group:
    """The flags of all norms, of which a stack has one, and who has them where not all do."""
    found: dict[tuple[str, Any], tuple[Flag, list[str]]] = {}
    for name, part in norms.items():
        for flag, spec in flags_of(part.Config).items():
            found.setdefault((flag, spec.default), (spec, []))[1].append(name)
    rows = []
    for spec, owners in found.values():
        only = "" if len(owners) == len(norms) else f" ({', '.join(owners)})"
        rows.append((f"norm_{spec.name}", spec._replace(doc=spec.doc + only)))
    return Group("norms", f"norm= one of {', '.join(norms)}.", rows)


def aliases() -> list[tuple[str, str]]:
    """The other spellings, and what each means in xflash's own."""
    rows = []
    for name in ALIASES:
        value = SWITCHES[name][0] if name in SWITCHES else SAMPLES[name]
        meant = ", ".join(f"{flag}={value!r}" for flag, value in spoken(name, value).items())
        rows.append((f"{name}={value!r}", meant))
    return rows


def unset(rows: Sequence[tuple[str, Flag]], fixed: Mapping[str, Any]) -> str:
    """The table of flags that nobody has set, but for those the class fixes."""
    return flag_table((name, fixed.get(name, Open() if f.default is REQUIRED else f.default), f) for name, f in rows)


def catalogue(cls: Any) -> str:
    """Every flag a class of stacks can take, part by part."""
    fixed = cls.fixed
    text = []
    for group in groups():
        if group.flags:
            text.append(f"{group.title}{': ' + group.doc if group.doc else ''}")
            text.append(unset(group.flags, fixed) + "\n")
    width = max(len(said) for said, _ in aliases())
    text += ["other spellings", *(f"{said.ljust(width)}  {meant}" for said, meant in aliases())]
    letters = ", ".join(f"{letter!r} for {name}" for letter, name in LETTERS.items() if name in blocks)
    text.append(f"\nIn a layout the letters of x-transformers are understood too: {letters}.")
    return "\n".join(text)
