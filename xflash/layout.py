"""The layout: which blocks stand in a stack, and what each sets differently from the others of its kind."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .registry import blocks

__all__ = ["LETTERS", "LayerSpec", "layout_text", "parse_layout"]

LETTERS = {"a": "attn", "c": "cross_attn", "f": "ff"}

ENTRY = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<args>[^()]*(?:\([^()]*\)[^()]*)*)\))?\s*(?:\*\s*(?P<times>-?\d+))?")


class LayerSpec(NamedTuple):
    """One layer: the registered name of its block, and the flags it overrides (without the block's prefix)."""

    name: str
    overrides: Mapping[str, Any]


def parse_args(text: str, entry: str) -> dict[str, Any]:
    """`window=64, dropout=.1` as a dict; ValueError when it is not keyword=value pairs of literals."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"cannot read {text!r} in the layout entry {entry!r}; write it as 'attn(window=64)'") from None


def parse_text(text: str) -> list[LayerSpec]:
    specs: list[LayerSpec] = []
    at = 0
    while text[at:].strip():
        match = ENTRY.match(text, at)
        if match is None:
            raise ValueError(f"cannot read the layout {text!r} at {text[at:].strip()!r}; write 'flash*3 attn(window=64) ff'")
        times = int(match["times"] or 1)
        if times < 1:
            raise ValueError(f"{match[0].strip()!r} in the layout {text!r} repeats {times} times; give 1 or more")
        overrides = parse_args(match["args"], match[0].strip()) if match["args"] else {}
        specs += [LayerSpec(match["name"], overrides)] * times
        at = match.end()
    return specs


def parse_layout(layers: str | Sequence[Any]) -> tuple[LayerSpec, ...]:
    """`'flash*3 attn(window=64) ff'`, names, or pairs `('attn', {'window': 64})` as a tuple of `LayerSpec`.

    The letters 'a', 'f' and 'c' of x-transformers stand for attn, ff and cross_attn. Raises ValueError for a name
    that is not registered, TypeError for an entry that is neither a name nor a pair.
    """
    if isinstance(layers, str):
        specs = parse_text(layers)
    else:
        specs = []
        for entry in layers:
            if isinstance(entry, str):
                specs += parse_text(entry)
            elif isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[1], Mapping):
                specs.append(LayerSpec(entry[0], dict(entry[1])))
            else:
                raise TypeError(f"a layer is a name or a pair ('attn', {{'window': 64}}), not {entry!r}")
    if not specs:
        raise ValueError("the layout is empty; name at least one block, as in layers='attn ff'")
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
