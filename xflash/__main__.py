"""`python -m xflash flags Decoder`: every flag with its meaning; `list`: every part; `compare`: layouts trained side
by side; `docs-flags`: docs/flags.md."""

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

import xflash

from .base.registry import NAMED_BY, blocks, excerpt, nearest
from .experiments import command as comparing
from .flags.flag import REQUIRED, Flag, flags_of, hint_text
from .flags.layout import LETTERS
from .saving.configurable import Configurable
from .stack.catalogue import aliases, catalogue, groups, sentence, unset
from .stack.face import AttentionLayers
from .wrappers.examples import EXAMPLES

# What `flags` builds with where the settings leave it open.
ASSUMED = {"dim": 512, "depth": 1}


def public() -> dict[str, type[Configurable]]:
    """The stacks and wrappers that `import xflash` offers, by name."""
    classes = {name: value for name, value in vars(xflash).items() if isinstance(value, type)}
    return {name: cls for name, cls in classes.items() if issubclass(cls, Configurable) and cls is not Configurable}


def arguments(cls: type[Configurable]) -> list[tuple[str, Flag]]:
    """The arguments of a wrapper; those that it hands on to its stack are not among them."""
    return list(flags_of(cls.Config).items())


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
    """The flags of a class, or of what it or a recipe becomes with these settings."""
    known = public()
    if name in xflash.recipes:
        with torch.device("meta"):
            model = xflash.create(name, **read_settings(words))
        return f"xflash.create({name!r}) is\n{model}\n\n{model.flag_table(changed_only=True)}"
    if name not in known:
        stacks = ", ".join(n for n, c in known.items() if issubclass(c, AttentionLayers))
        raise ValueError(
            f"unknown class {name!r}{as_part(name) or nearest(name, [*known, *xflash.recipes])} (stacks: {stacks})"
        )
    cls = known[name]
    if not issubclass(cls, AttentionLayers):
        if words:
            raise ValueError(f"{name} is no stack: settings are the flags of a stack such as Decoder")
        return f"{name}: {sentence(cls)}\n\n{unset(arguments(cls), {})}"
    if not words:
        return f"{name}: {sentence(cls)}\n\n{catalogue(cls)}"
    flags = read_settings(words)
    open_flags = {"dim"} if flags.get("custom_layers") is not None else {"dim", "depth"}
    assumed = {flag: value for flag, value in ASSUMED.items() if flag in open_flags - set(flags)}
    with torch.device("meta"):
        stack = cls(**{**assumed, **flags})
    size = sum(p.numel() for p in stack.parameters())
    note = f" (assumed: {', '.join(f'{k}={v}' for k, v in assumed.items())})" if assumed else ""
    return f"{name} {stack.layout!r}, {size:,} parameters{note}\n\n{stack.flag_table()}"


def as_part(name: str) -> str:
    """How the flags of a part are asked for, or the empty string for what is none."""
    found = [(flag, registry.kind) for flag, registry in NAMED_BY.items() if name in registry]
    return f"; {name!r} is a {found[0][1]}, ask for flags Decoder {found[0][0]}={name}" if found else ""


def bring(modules: Sequence[str]) -> None:
    """Imports what registers parts of one's own; ValueError for what cannot be."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"cannot import {module!r}: {error}") from None


# What a list says of a recipe first.
SIZES = ("dim", "depth", "heads", "layers", "norm", "pos", "num_tokens")
# How the parts of a registry are chosen, in the order in which they are listed.
CHOSEN = {
    "blocks": "layers='attn ff'; in parallel 'attn+ff'; with flags for one layer '(attn(window=64) ff)*5 attn ff'",
    "norms": "norm='rmsnorm', norm_place='pre', 'post', 'pre_and_post', 'sandwich' or 'after'; "
    "for one layer 'attn(norm=none) ff'",
    "positions": "pos='rotary'; with flags for one layer layers='attn(rotary_base=1e6) ff'",
    "scores": "attn_scores='softclamp'",
    "weight_fns": "attn_weight_fn='sigmoid'",
    "reads": "reads='unet'",
    "scales": "scale='layerscale'",
    "joins": "join='gru'",
    "activations": "ff_activation='silu'",
    "side_inputs": "given to a call: model(x, doc_ids=...)",
}
STACKS = "Decoder(dim=512, depth=6)"
RECIPES = "xflash.create('gpt2'), with flags of one's own behind; all of its: python -m xflash flags gpt2"
WRAPPERS = "python -m xflash flags TransformerWrapper"


def kinds() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """What can be listed: how it is written, and each by its name."""
    known = public()
    stacks = {name for name, cls in known.items() if issubclass(cls, AttentionLayers)}
    return {
        "stacks": (STACKS, {name: known[name] for name in known if name in stacks}),
        "wrappers": (WRAPPERS, {name: known[name] for name in known if name not in stacks}),
        "recipes": (RECIPES, xflash.recipes),
        **{kind: (how, getattr(xflash, kind)) for kind, how in CHOSEN.items()},
    }


def said(part: Any) -> str:
    """A line about a part, or the first flags of a recipe."""
    return sentence(part) if not isinstance(part, dict) else excerpt(words_of(sizes_first(part)), width=80)[1:-1]


def sizes_first(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a recipe, those in front by which one differs from another."""
    order = [size for size in SIZES for size in (size, f"enc_{size}", f"dec_{size}") if size in recipe]
    return {name: recipe[name] for name in dict.fromkeys([*order, *recipe])}


def words_of(recipe: Mapping[str, Any]) -> str:
    """Flags as they are written in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in recipe.items())


def listing(kind: str | None) -> str:
    """Everything there is of a kind or of all, a line each; ValueError for a kind that there is not."""
    known = kinds()
    if kind is not None and kind not in known:
        raise ValueError(f"unknown kind {kind!r}{nearest(kind, known)} (kinds: {', '.join(known)})")
    text = []
    for name, (how, found) in known.items():
        if kind in (None, name):
            width = max(map(len, found))
            text.append(f"{name}: {how}")
            text += [f"  {word.ljust(width)}  {said(part)}".rstrip() for word, part in found.items()] + [""]
    return "\n".join(text).rstrip()


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
        text += [*table(group.flags), ""] if group.flags else []
        text += ["```python", group.example, "```", ""] if group.example else []
    text += ["## Other spellings", "", "| written | means |", "|---|---|"]
    text += [f"| `{said}` | `{meant}` |" for said, meant in aliases()]
    letters = ", ".join(f"`{letter}` stands for `{name}`" for letter, name in LETTERS.items() if name in blocks)
    text += ["", f"In a layout, {letters}.", ""]
    for name, cls in public().items():
        if not issubclass(cls, AttentionLayers):
            text += [f"## `{name}`", "", sentence(cls), "", *table(arguments(cls)), "", *example(name, public())]
    return "\n".join(text).rstrip() + "\n"


def example(name: str, known: Mapping[str, Any]) -> list[str]:
    """The lines of a wrapper's example, imports in front."""
    if name not in EXAMPLES:
        return []
    code = EXAMPLES[name].strip()
    imported = sorted({word for word in re.findall(r"\w+", code) if word in known})
    return ["```python", "import torch", f"from xflash import {', '.join(imported)}", "", code, "```", ""]


def recipe_page() -> str:
    """docs/recipes.md: the flags of known models, and how many parameters they make."""
    text = [
        "# Recipes",
        "",
        "Written by `python -m xflash docs-recipes > docs/recipes.md`; a test fails when stale.",
        "",
        "`xflash.recipes` are plain dictionaries of flags; `xflash.create('llama3-8b', depth=4)` builds one, with",
        "flags of your own in the place of its. Weights are random; `xflash.convert.from_pretrained` reads a folder's.",
        "",
        "| recipe | parameters | flags |",
        "|---|---|---|",
    ]
    for name, flags in xflash.recipes.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in xflash.create(name).parameters())
        text.append(f"| `{name}` | {count:,} | `{words_of(flags)}` |")
    return "\n".join(text) + "\n"


def table(rows: Sequence[tuple[str, Flag]]) -> Iterator[str]:
    """The lines of a Markdown table of flags."""
    yield "| flag | default | type | meaning |"
    yield "|---|---|---|---|"
    for name, spec in rows:
        default = "(required)" if spec.default is REQUIRED else f"`{spec.default!r}`"
        cells = [f"`{name}`", default, f"`{hint_text(spec.hint)}`", spec.meaning(markdown=True)]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m xflash", description=inspect.getdoc(xflash))
    commands = parser.add_subparsers(dest="command", required=True)
    flags = commands.add_parser("flags", help="all flags of a class, or those of a stack with some of them set")
    flags.add_argument("name", metavar="CLASS", help="a stack such as Decoder, a wrapper, or a recipe")
    flags.add_argument("settings", nargs="*", metavar="FLAG=VALUE", help="such as layers='flash ff' pos=rotary")
    parts = commands.add_parser("list", help="everything that a stack can be made of, a line each")
    parts.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(kinds())}; all without")
    for command in (flags, parts):
        command.add_argument(
            "--import", dest="modules", metavar="MODULE", action="append", default=[], help="with parts of one's own"
        )
    comparing.add_to(commands)
    commands.add_parser("docs-flags", help="flags, with an example for each part, as Markdown for docs/flags.md")
    commands.add_parser("docs-recipes", help="known models as flags, as Markdown for docs/recipes.md")
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["compare"]:
        words[1:] = comparing.settings_first(words[1:])
    given, unknown = parser.parse_known_args(words)
    if unknown:
        command = commands.choices[given.command]
        options = [name for action in command._actions for name in action.option_strings]
        command.error(f"{unknown[0]!r} is no argument of {given.command}{nearest(unknown[0], options)}")
    run = {
        "flags": lambda: show(given.name, given.settings) + "\n",
        "list": lambda: listing(given.kind) + "\n",
        "compare": lambda: comparing.run(given, read_settings),
        "docs-flags": markdown,
        "docs-recipes": recipe_page,
    }
    try:
        bring(getattr(given, "modules", ()))
        text = run[given.command]()
    except (TypeError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
