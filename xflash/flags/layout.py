"""The layout: which blocks stand in a stack, and what each sets differently from the others of its kind."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..base.checks import shown
from ..base.registry import blocks, excerpt

__all__ = ["LETTERS", "MOST_LAYERS", "LayerSpec", "default_layout", "layout_text", "parse_layout"]

LETTERS = {"a": "attn", "c": "cross_attn", "f": "ff"}

# More are a slip of the pen: to build them alone takes minutes.
MOST_LAYERS = 10_000
# Overrides in a layout's text have so many closing brackets at most.
MOST_BRACKETS = 100

NAME = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*")
TIMES = re.compile(r"\s*\*\s*(?P<times>-?\d+)")


def default_layout(cross_attend: bool, only_cross: bool) -> str:
    """The layout of a stack that is given none."""
    return "cross_attn ff" if only_cross else "attn cross_attn ff" if cross_attend else "attn ff"


class LayerSpec(NamedTuple):
    """One layer: the registered name of its block, and the flags it overrides (without the block's prefix)."""

    name: str
    overrides: Mapping[str, Any]


def parse_call(text: str) -> dict[str, Any] | None:
    """`(window=64, dropout=.1)` as a dict; None when it is not keyword=value pairs of literals."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            return None
        pairs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return pairs if len(pairs) == len(call.keywords) else None


def parse_overrides(text: str, at: int, name: str) -> tuple[dict[str, Any], int]:
    """The overrides that start at `at`, and where they end: at the first bracket that makes them whole."""
    if not text.startswith("(", at):
        return {}, at
    end = at
    for _ in range(MOST_BRACKETS):
        end = text.find(")", end) + 1
        overrides = parse_call(text[at:end]) if end else None
        if overrides is not None:
            return overrides, end
        if not end:
            break
    given = text[at : text.find(")", at) + 1] or text[at:]
    bare = re.search(r"=\s*(?!True\b|False\b|None\b)([A-Za-z_]\w*)\s*[,)]", given)
    quoted = f", text in quotes: {excerpt(bare[1])}" if bare else ""
    entry = excerpt(name + given)
    raise ValueError(f"cannot read {excerpt(given)} in the layout entry {entry}; write it as 'attn(window=64)'{quoted}")


def parse_text(text: str) -> list[LayerSpec]:
    specs: list[LayerSpec] = []
    at = 0
    while text[at:].strip():
        match = NAME.match(text, at)
        if match is None:
            raise ValueError(
                f"cannot read the layout {excerpt(text, at)} at {excerpt(text[at:].strip())}; write 'flash*3 "
                "attn(window=64) ff'"
            )
        overrides, end = parse_overrides(text, match.end(), match["name"])
        repeated = TIMES.match(text, end)
        times, end = ("1", end) if repeated is None else (repeated["times"], repeated.end())
        if len(times) > len(str(MOST_LAYERS)) or not 1 <= int(times) <= MOST_LAYERS:
            word = excerpt(text[at:end].strip())
            raise ValueError(
                f"{word} in the layout {excerpt(text, at)} repeats its block {times:.9} times; give 1 to {MOST_LAYERS}"
            )
        specs += [LayerSpec(match["name"], overrides)] * int(times)
        at = end
    return specs


def is_pair(entry: Any) -> bool:
    """Whether a layer is given as `('attn', {'window': 64})`."""
    pair = isinstance(entry, (tuple, list)) and len(entry) == 2
    return pair and isinstance(entry[0], str) and isinstance(entry[1], Mapping)


def parse_layout(layers: str | Sequence[Any]) -> tuple[LayerSpec, ...]:
    """`'flash*3 attn(window=64) ff'`, names, or pairs `('attn', {'window': 64})` as a tuple of `LayerSpec`.

    The letters 'a', 'f' and 'c' of x-transformers stand for attn, ff and cross_attn. Raises ValueError for a name
    that is not registered, TypeError for an entry that is neither a name nor a pair.
    """
    if isinstance(layers, str):
        specs = parse_text(layers)
    elif not isinstance(layers, Sequence):
        raise TypeError(f"a layout is text such as 'flash*3 attn ff' or a tuple of layers, not {shown(layers)}")
    else:
        specs = []
        for entry in layers:
            if isinstance(entry, str):
                specs += parse_text(entry)
            elif is_pair(entry):
                specs.append(LayerSpec(entry[0], dict(entry[1])))
            else:
                raise TypeError(f"a layer is a name or a pair ('attn', {{'window': 64}}), not {shown(entry)}")
    if not specs:
        raise ValueError("the layout is empty; name at least one block, as in layers='attn ff'")
    if len(specs) > MOST_LAYERS:
        raise ValueError(f"the layout has {len(specs)} layers; a stack has {MOST_LAYERS} at most")
    named = tuple(LayerSpec(LETTERS.get(spec.name, spec.name), spec.overrides) for spec in specs)
    for spec in named:
        blocks[spec.name]
    return named


def layout_text(layers: Sequence[LayerSpec]) -> str:
    """The layout as one line, equal neighbours counted: `flash*3 attn(window=64) ff`."""
    words: list[tuple[str, int]] = []
    for spec in layers:
        args = ", ".join(f"{k}={v!r}" for k, v in spec.overrides.items())
        word = f"{spec.name}({args})" if args else spec.name
        if words and words[-1][0] == word:
            words[-1] = (word, words[-1][1] + 1)
        else:
            words.append((word, 1))
    return " ".join(word if times == 1 else f"{word}*{times}" for word, times in words)
