"""`python -m xflash flags Decoder`: every flag with its value, default, type and meaning."""

import argparse
import ast
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

import xflash

from .base.registry import Registry, blocks, joins, nearest, norms, positions, reads, scales
from .flags.aliases import ALIASES, SWITCHES, spoken
from .flags.flag import REQUIRED, Flag, flag_table, flags_of, hint_text
from .flags.layout import LETTERS
from .saving.configurable import Configurable
from .stack.config import StackConfig, slot_prefix
from .stack.face import AttentionLayers

# What `flags` builds with where the settings leave it open.
ASSUMED = {"dim": 512, "depth": 1}
# A value for each alias that is more than a switch, to show what it means.
SAMPLES: dict[str, Any] = {
    "norm_type": "scalenorm",
    "pre_norm_has_final_norm": False,
    "rotary_xpos": True,
    "layerscale_init_value": 0.1,
    "num_residual_streams": 4,
    "hyper_conn_sinkhorn_iters": 20,
    "residual": "layerscale",
    "residual_init": 0.1,
    "attn_max_attend_past": 63,
    **{
        f"{block}_{begin}qk_norm{end}": value
        for block in ("block_attn", "recurrent", "state_read")
        for begin in ("", "read_")
        for end, value in (("", True), ("_scale", 10.0))
    },
    **{
        f"{block}_{name}": value
        for block in ("attn", "cross_attn")
        for name, value in (
            ("pre_talking_heads", True),
            ("post_talking_heads", True),
            ("sparse_topk", 8),
            ("sparse_topk_straight_through", True),
            ("logit_softclamp_value", 30.0),
        )
    },
}


class Group(NamedTuple):
    """The flags of one part, with a heading and a sentence on the part."""

    title: str
    doc: str
    flags: list[tuple[str, Flag]]


class Open:
    """What stands in the table for the value of a flag that must be given."""

    def __repr__(self) -> str:
        return "-"


def public() -> dict[str, type[Configurable]]:
    """The stacks and wrappers that `import xflash` offers, by name."""
    classes = {name: value for name, value in vars(xflash).items() if isinstance(value, type)}
    return {name: cls for name, cls in classes.items() if issubclass(cls, Configurable) and cls is not Configurable}


def sentence(part: Any) -> str:
    """The first line of a part's docstring."""
    return (inspect.getdoc(part) or "").split("\n")[0]


def groups() -> Iterator[Group]:
    """Every flag of every registered part, the stack's own first."""
    yield Group("the stack", "", list(flags_of(StackConfig).items()))
    for registry in (blocks, positions, reads, scales, joins):
        for name, part in registry.items():
            own = [(slot_prefix(name) + flag, spec) for flag, spec in flags_of(part.Config).items()]
            lender = getattr(part, "borrows", None)
            taken = f" Flags of {lender} reach it too, unless its own say otherwise." if lender else ""
            yield Group(f"{registry.kind} {name!r}", sentence(part) + taken, own)
    for field, registry in {f: r for block in blocks.values() for f, r in block.holds.items()}.items():
        for name, part in registry.items():
            takers = [b for b, block in blocks.items() if field in block.holds and not block.refuses(part)]
            rows = [(f"{name}_{flag}", spec) for flag, spec in flags_of(part.Config).items()]
            begin = f"; flags begin with the block, as {takers[0]}_{rows[0][0]}" if rows else ""
            yield Group(f"{registry.kind} {name!r}", f"{sentence(part)} For {', '.join(takers)}{begin}.", rows)
    yield slot("norm", norms)


def slot(name: str, registry: Registry) -> Group:
    """The flags of all parts that can take a place of which there is one, and who has them where not all do."""
    found: dict[tuple[str, Any], tuple[Flag, list[str]]] = {}
    for part_name, part in registry.items():
        for flag, spec in flags_of(part.Config).items():
            found.setdefault((flag, spec.default), (spec, []))[1].append(part_name)
    rows = []
    for spec, owners in found.values():
        only = "" if len(owners) == len(registry) else f" ({', '.join(owners)})"
        rows.append((slot_prefix(name) + spec.name, spec._replace(doc=spec.doc + only)))
    return Group(f"{name}s", f"{name}= one of {', '.join(registry)}.", rows)


def aliases() -> list[tuple[str, str]]:
    """The other spellings, and what each means in xflash's own."""
    rows = []
    for name in ALIASES:
        value = SWITCHES[name][0] if name in SWITCHES else SAMPLES[name]
        meant = ", ".join(f"{flag}={value!r}" for flag, value in spoken(name, value).items())
        rows.append((f"{name}={value!r}", meant))
    return rows


def arguments(cls: type[Configurable]) -> list[tuple[str, Flag]]:
    """The arguments of a wrapper as flags without a doc; those that it hands on to its stack are not among them."""
    found = []
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        found.append((parameter.name, Flag(parameter.name, default, parameter.annotation, "", {})))
    return found


def unset(rows: Sequence[tuple[str, Flag]], fixed: Mapping[str, Any]) -> str:
    """The table of flags that nobody has set, but for those the class fixes."""
    return flag_table((name, fixed.get(name, Open() if f.default is REQUIRED else f.default), f) for name, f in rows)


def catalogue(cls: type[AttentionLayers]) -> str:
    """Every flag a class can take, part by part."""
    fixed = cls.fixed
    text = [f"{cls.__name__}: {sentence(cls)}"]
    for group in groups():
        if group.flags:
            text.append(f"\n{group.title}{': ' + group.doc if group.doc else ''}")
            text.append(unset(group.flags, fixed))
    width = max(len(said) for said, _ in aliases())
    text += ["\nother spellings", *(f"{said.ljust(width)}  {meant}" for said, meant in aliases())]
    letters = ", ".join(f"{letter!r} for {name}" for letter, name in LETTERS.items() if name in blocks)
    text.append(f"\nIn a layout the letters of x-transformers are understood too: {letters}.")
    return "\n".join(text)


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as flags; ValueError for a word without `=`."""
    flags: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"cannot read {word!r}: settings are written flag=value, such as pos=rotary")
        try:
            flags[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            flags[name] = value
    return flags


def show(name: str, words: Sequence[str]) -> str:
    """The flags of a class, or of what it becomes with these settings."""
    known = public()
    if name not in known:
        stacks = ", ".join(n for n, c in known.items() if issubclass(c, AttentionLayers))
        raise ValueError(f"unknown class {name!r}{nearest(name, known)} (stacks: {stacks})")
    cls = known[name]
    if not issubclass(cls, AttentionLayers):
        if words:
            raise ValueError(f"{name} is no stack: settings are the flags of a stack such as Decoder")
        return f"{name}: {sentence(cls)}\n\n{unset(arguments(cls), {})}"
    if not words:
        return catalogue(cls)
    flags = read_settings(words)
    open_flags = {"dim"} if flags.get("custom_layers") is not None else {"dim", "depth"}
    assumed = {flag: value for flag, value in ASSUMED.items() if flag in open_flags - set(flags)}
    with torch.device("meta"):
        stack = cls(**{**assumed, **flags})
    size = sum(p.numel() for p in stack.parameters())
    note = f" (assumed: {', '.join(f'{k}={v}' for k, v in assumed.items())})" if assumed else ""
    return f"{name} {stack.layout!r}, {size:,} parameters{note}\n\n{stack.flag_table()}"


def markdown() -> str:
    """docs/flags.md: all flags, their other spellings, and the arguments of the wrappers."""
    text = [
        "# Flags",
        "",
        "Written by `python -m xflash docs-flags > docs/flags.md`; a test fails when stale.",
        "",
    ]
    for group in groups():
        text += [f"## {group.title[0].upper()}{group.title[1:]}", ""]
        text += [group.doc, ""] if group.doc else []
        text += [*table(group.flags), ""] if group.flags else ["No flags.", ""]
    text += ["## Other spellings", "", "| written | means |", "|---|---|"]
    text += [f"| `{said}` | `{meant}` |" for said, meant in aliases()]
    letters = ", ".join(f"`{letter}` stands for `{name}`" for letter, name in LETTERS.items() if name in blocks)
    text += ["", f"In a layout, {letters}.", ""]
    for name, cls in public().items():
        if not issubclass(cls, AttentionLayers):
            text += [f"## `{name}`", "", sentence(cls), "", *table(arguments(cls), docs=False), ""]
    return "\n".join(text).rstrip() + "\n"


def table(rows: Sequence[tuple[str, Flag]], docs: bool = True) -> Iterator[str]:
    """The lines of a Markdown table of flags."""
    yield "| flag | default | type | meaning |" if docs else "| argument | default | type |"
    yield "|---|---|---|---|" if docs else "|---|---|---|"
    for name, spec in rows:
        default = "(required)" if spec.default is REQUIRED else f"`{spec.default!r}`"
        cells = [f"`{name}`", default, f"`{hint_text(spec.hint)}`", *([spec.meaning(markdown=True)] if docs else [])]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m xflash", description=inspect.getdoc(xflash))
    commands = parser.add_subparsers(dest="command", required=True)
    flags = commands.add_parser("flags", help="all flags of a class, or those of a stack with some of them set")
    flags.add_argument("name", metavar="CLASS", help="a stack: Decoder, Encoder, AttentionLayers; or a wrapper")
    flags.add_argument("settings", nargs="*", metavar="FLAG=VALUE", help="such as layers='flash ff' pos=rotary")
    commands.add_parser("docs-flags", help="the same as Markdown, for docs/flags.md")
    given = parser.parse_args(words)
    try:
        text = markdown() if given.command == "docs-flags" else show(given.name, given.settings) + "\n"
    except (TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
