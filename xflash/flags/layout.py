"""The layout: which blocks stand in a stack, and what each sets differently from the others of its kind."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from ..base.checks import shown
from ..base.registry import blocks, excerpt

__all__ = [
    "AROUND",
    "LETTERS",
    "MOST_LAYERS",
    "NONE",
    "OWN",
    "LayerSpec",
    "default_layout",
    "layout_text",
    "parallel",
    "parse_layout",
]

LETTERS = {"a": "attn", "c": "cross_attn", "f": "ff"}

# What a layout can say of any block, beside flags that begin with `norm_` or with a position: no block has such flags.
AROUND = ("norm", "norm_place", "scale", "join", "shift_tokens", "layer_dropout", "pos")
# A choice of nothing, and a norm that one of the blocks in parallel has of its own.
NONE, OWN = "none", "own"

# More are a slip of the pen: to build them alone takes minutes.
MOST_LAYERS = 10_000
# Digits that an error shows of a number of repetitions.
DIGITS = 12
# Overrides in a layout's text have so many closing brackets at most.
MOST_BRACKETS = 100
# The longest run of layers whose repetitions `layout_text` looks for.
LONGEST = 64

SPACE = re.compile(r"\s*")
NAME = re.compile(r"[A-Za-z_]\w*")
PLUS = re.compile(r"\s*\+\s*")
SAID = re.compile(r"([A-Za-z_]\w*)\s*=")
TIMES = re.compile(r"\s*\*\s*(?P<times>-?\d+)")


def default_layout(cross_attend: bool, only_cross: bool, macaron: bool = False) -> str:
    """The layout of a stack that is given none."""
    plain = "cross_attn ff" if only_cross else "attn cross_attn ff" if cross_attend else "attn ff"
    return f"ff {plain}" if macaron else plain


class LayerSpec(NamedTuple):
    """One layer: the registered name of its block, and the flags it overrides (without the block's prefix).

    Of blocks in parallel it is their names, joined by '+', and the overrides of each.
    """

    name: str
    overrides: Mapping[str, Any] | tuple[Mapping[str, Any], ...]

    @property
    def members(self) -> tuple["LayerSpec", ...]:
        """The blocks in parallel, each as a layer; of a block that stands alone, that."""
        if isinstance(self.overrides, Mapping):
            return (self,)
        return tuple(map(LayerSpec, self.name.split("+"), self.overrides))

    @property
    def flags(self) -> dict[str, Any]:
        """The overrides of a block that stands alone."""
        return dict(cast(Mapping[str, Any], self.overrides))


def parallel(members: Sequence[LayerSpec]) -> LayerSpec:
    """Blocks in parallel as one layer; of one block, that block."""
    if len(members) == 1:
        return members[0]
    return LayerSpec("+".join(m.name for m in members), tuple(m.flags for m in members))


def literal(node: ast.expr) -> Any:
    """The value of a literal; a bare word is text."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def parse_call(text: str) -> dict[str, Any] | None:
    """`(window=64, norm=rmsnorm)` as a dict; None when it is not keyword=value pairs of literals and bare words."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            return None
        pairs = {str(k.arg): literal(k.value) for k in call.keywords if k.arg is not None}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return pairs if len(pairs) == len(call.keywords) else None


def read_overrides(text: str, at: int, name: str) -> tuple[dict[str, Any], int]:
    """The overrides that start behind a block's name, and where they end: at the first bracket that makes them whole.

    What stands apart from the name and cannot be overrides is left, for it is a group.
    """
    start = space(text, at)
    if not text.startswith("(", start):
        return {}, at
    end = start
    for _ in range(MOST_BRACKETS):
        end = text.find(")", end) + 1
        overrides = parse_call(text[start:end]) if end else None
        if overrides is not None:
            return overrides, end
        if not end:
            break
    if start > at:
        return {}, at
    given = text[start : text.find(")", start) + 1] or text[start:]
    several = re.search(r"=\s*([A-Za-z_]\w*(?:\s+[A-Za-z_]\w*)+)\s*[,)]", given)
    quoted = f", several words in quotes: {excerpt(several[1])}" if several else ""
    entry = excerpt(name + given)
    words = SAID.findall(given)
    twice = next((f"; it says {word!r} twice" for word in words if words.count(word) > 1), "")
    example = f"; write it as 'attn(window=64, norm=none)'{quoted}"
    raise ValueError(f"cannot read {excerpt(given)} in the layout entry {entry}{twice or example}")


def space(text: str, at: int) -> int:
    """Where what stands at `at` begins, spaces passed over."""
    found = SPACE.match(text, at)
    return found.end() if found else at


# What somebody means who writes, where a block should begin, what this finds.
SLIPS = {
    re.compile("[,;|]"): "blocks are separated by spaces: 'attn ff'",
    re.compile(r"\d"): "a number of times stands behind what it repeats: 'attn*3'",
    re.compile(r"[\[{]"): "groups are in parentheses: '(attn ff)*2'",
    re.compile("="): "flags are in parentheses behind a block, 'attn(window=64)', and a group takes none",
}


def unread(text: str, at: int, why: str = "") -> ValueError:
    """The error at a place of the layout; `why`: what is wrong there, which is else looked for."""
    slips = [said for slip, said in SLIPS.items() if slip.match(text, at)]
    why = why or next(iter(slips), "write 'flash*3 attn(window=64) ff'")
    there = f"at {excerpt(text[at : at + 200].strip())}" if text[at:].strip() else "at its end"
    return ValueError(f"cannot read the layout {excerpt(text, at)} {there}; {why}")


def read_layer(text: str, at: int) -> tuple[LayerSpec, int]:
    """The block that starts at `at`, with those in parallel to it, and where they end."""
    members = []
    while True:
        match = NAME.match(text, at)
        if match is None and members:
            group = text.startswith("(", at)
            why = "'+' has no groups beside it" if group else "'+' stands between two blocks: 'attn+ff'"
            raise unread(text, at, why)
        if match is None:
            raise unread(text, at)
        overrides, end = read_overrides(text, match.end(), match[0])
        members.append(LayerSpec(LETTERS.get(match[0], match[0]), overrides))
        plus = PLUS.match(text, end)
        if plus is None:
            return parallel(members), end
        at = plus.end()


def repeated(text: str, start: int, at: int, layers: list[LayerSpec]) -> tuple[list[LayerSpec], int]:
    """What stands from `start` to `at` as often as is said behind it, and where that ends."""
    match = TIMES.match(text, at)
    times, end = ("1", at) if match is None else (match["times"], match.end())
    most = MOST_LAYERS // max(sum(len(spec.members) for spec in layers), 1)
    if len(times) > len(str(MOST_LAYERS)) or not 1 <= int(times) <= max(most, 1):
        what = "its block" if len(layers) == 1 else f"its {len(layers)} layers"
        raise ValueError(
            f"{excerpt(text[start:end].strip(), end - start)} in the layout {excerpt(text, start)} repeats {what} "
            f"{times if len(times) <= DIGITS else times[:DIGITS] + '...'} times; give 1 to {most}"
        )
    if PLUS.match(text, end):
        raise unread(text, end, "'+' stands between two blocks, and binds closer than '*': '(attn+ff)*2'")
    return layers * int(times), end


def parse_text(text: str) -> list[LayerSpec]:
    """The layers of a layout's text, groups and repetitions written out."""
    levels: list[list[LayerSpec]] = [[]]
    opened: list[int] = []
    at = space(text, 0)
    while at < len(text):
        start = at
        if text[at] == "(":
            opened.append(at)
            levels.append([])
            at = space(text, at + 1)
            continue
        if text[at] == ")":
            if not opened:
                raise unread(text, at, "no group begins before this ')'")
            start, layers, at = opened.pop(), levels.pop(), at + 1
            if not layers:
                raise unread(text, start, "a group holds at least one block, as in '(attn ff)*2'")
        else:
            layer, at = read_layer(text, at)
            layers = [layer]
        layers, at = repeated(text, start, at, layers)
        levels[-1] += layers
        at = space(text, at)
    if opened:
        raise unread(text, opened[-1], "this group has no ')'")
    return levels[0]


def as_spec(entry: Any) -> LayerSpec | None:
    """A layer that is given as `('attn', {'window': 64})` or `('attn+ff', ({}, {}))`; None for anything else."""
    if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not isinstance(entry[0], str):
        return None
    names, own = entry[0].split("+"), entry[1]
    each = [own] if isinstance(own, Mapping) and len(names) == 1 else own
    if not isinstance(each, (tuple, list)) or len(each) != len(names):
        return None
    if not all(isinstance(flags, Mapping) and all(isinstance(flag, str) for flag in flags) for flags in each):
        return None
    return parallel([LayerSpec(LETTERS.get(name, name), dict(o)) for name, o in zip(names, each, strict=True)])


def parse_entries(layers: Sequence[Any]) -> Iterator[LayerSpec]:
    """The layers of a sequence of texts and pairs."""
    for entry in layers:
        if isinstance(entry, str):
            yield from parse_text(entry)
        elif (spec := as_spec(entry)) is not None:
            yield spec
        else:
            raise TypeError(f"a layer is a name or a pair ('attn', {{'window': 64}}), not {shown(entry)}")


def parse_layout(layers: str | Sequence[Any]) -> tuple[LayerSpec, ...]:
    """`'(flash*3 attn(window=64))*2 attn+ff'`, names, or pairs `('attn', {'window': 64})` as a tuple of `LayerSpec`.

    The letters 'a', 'f' and 'c' of x-transformers stand for attn, ff and cross_attn. Raises ValueError for a name
    that is not registered, TypeError for an entry that is neither a name nor a pair.
    """
    if isinstance(layers, str):
        specs = parse_text(layers)
    elif not isinstance(layers, Sequence):
        raise TypeError(f"a layout is text such as 'flash*3 attn ff' or a tuple of layers, not {shown(layers)}")
    else:
        specs = list(parse_entries(layers))
    if not specs:
        raise ValueError("the layout is empty; name at least one block, as in layers='attn ff'")
    if len(specs) > MOST_LAYERS:
        raise ValueError(f"the layout has {len(specs)} layers; a stack has {MOST_LAYERS} at most")
    for spec in specs:
        for block in spec.members:
            blocks[block.name]
    return tuple(specs)


def layer_text(spec: LayerSpec) -> str:
    """One layer: `attn(window=64)`, or `attn+ff`."""
    if len(spec.members) > 1:
        return "+".join(map(layer_text, spec.members))
    args = ", ".join(f"{k}={v!r}" for k, v in spec.flags.items())
    return f"{spec.name}({args})" if args else spec.name


def layout_text(layers: Sequence[LayerSpec]) -> str:
    """The layout as one line, repetitions counted: `(flash*3 attn(window=64))*2 ff`."""
    return folded([layer_text(spec) for spec in layers])


def folded(words: Sequence[str]) -> str:
    """Words as one line, those that come again and again written once."""
    found, at = [], 0
    while at < len(words):
        width, times = most_repeated(words, at)
        run = words[at] if width == 1 else folded(words[at : at + width])
        found.append(run if times == 1 else f"{run if width == 1 else f'({run})'}*{times}")
        at += width * times
    return " ".join(found)


def most_repeated(words: Sequence[str], at: int) -> tuple[int, int]:
    """How many words from `at` on come again behind themselves, and how often, so that most are written once."""
    best = 1, 1
    for width in range(1, min(LONGEST, (len(words) - at) // 2) + 1):
        if words[at + width] != words[at]:
            continue
        times, run = 1, words[at : at + width]
        while words[at + times * width : at + (times + 1) * width] == run:
            times += 1
        if times > 1 and width * (times - 1) > best[0] * (best[1] - 1):
            best = width, times
    return best
