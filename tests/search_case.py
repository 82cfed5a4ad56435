"""A case of the search: a model, a call and what is done with it, as plain values: drawn, shrunk, shown."""

import linecache
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import laws
import torch

import xflash
from xflash.flags.layout import LayerSpec, layout_text, parallel

HERE = str(Path(xflash.__file__).parent)
MOST_WORDS = 90
# What a call holds by row, by token, by both, and by token of the context or of what stands in front.
BY_TOKEN, BY_CONTEXT, IN_FRONT = ("mask", "doc_ids"), ("context_mask", "context_pos"), ("prepend_mask",)


@dataclass(frozen=True)
class Case:
    """`cls` built from `flags` (its layers as pairs of name and overrides), inside `wraps` from the inside out.

    call: what a call is given, as lists and numbers; `rows` and `tokens` are its size.  plan: what laws do with it.
    """

    cls: str
    flags: Mapping[str, Any]
    wraps: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    rows: int = 2
    tokens: int = 5
    call: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """'stack', 'model' (of token ids), 'seq2seq' or 'vit'."""
        last = self.wraps[-1][0] if self.wraps else self.cls
        return {"TransformerWrapper": "model", "ViTransformerWrapper": "vit", "XTransformer": "seq2seq"}.get(
            last, "stack"
        )

    def changed(self, **fields: Any) -> "Case":
        return replace(self, **fields)


def spoken(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags as a user writes them, layouts as text."""
    return {
        name: layout_text([LayerSpec(*entry) for entry in value]) if isinstance(value, list) else value
        for name, value in flags.items()
    }


def layouts(case: Case) -> dict[str, list]:
    """The layouts among the flags of a case, as lists of (name, overrides)."""
    return {name: value for name, value in case.flags.items() if isinstance(value, list)}


def members(layer: tuple[str, Any]) -> list[tuple[str, dict]]:
    """The blocks of a layer, those in parallel each, with their overrides."""
    return [(block.name, block.flags) for block in LayerSpec(*layer).members]


def joined(blocks: list[tuple[str, dict]]) -> tuple[str, Any]:
    """Blocks in parallel as one layer."""
    return tuple(parallel([LayerSpec(*block) for block in blocks]))


def every_block(layers: list) -> list[tuple[str, dict]]:
    """The blocks of a layout, those in parallel each."""
    return [block for layer in layers for block in members(layer)]


def built(case: Case) -> torch.nn.Module:
    """The model of a case, its parameters moved, in float64."""
    torch.manual_seed(0)
    model = getattr(xflash, case.cls)(**spoken(case.flags))
    for name, given in case.wraps:
        model = wrapped(name, model, given)
    return laws.live(model)


def wrapped(name: str, model: torch.nn.Module, given: Mapping[str, Any]) -> torch.nn.Module:
    """`model` in one wrapper more."""
    inner = {"attn_layers": model} if isinstance(model, xflash.AttentionLayers) else {"net": model}
    return getattr(xflash, name)(**inner, **given)


def noise(seed: int, *shape: int) -> torch.Tensor:
    """Numbers that are the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def words(rows: int, tokens: int, count: int) -> torch.Tensor:
    """Token ids that are the same each time."""
    return torch.randint(count, (rows, tokens), generator=torch.Generator().manual_seed(1))


def inputs(case: Case, model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, Any]]:
    """What the model is called with: x, or token ids, and what goes beside them."""
    b, n = case.rows, case.tokens
    if case.kind == "vit":
        return noise(1, b, model.channels, *model.image_size), {}
    if case.kind == "seq2seq":
        x, stack = words(b, n, model.decoder.net.num_tokens), model.decoder.net.attn_layers
    else:
        stack = getattr(model, "attn_layers", model)
        x = noise(1, b, n, stack.dim) if stack is model else words(b, n, model.num_tokens)
    return x, {name: side_input(name, value, b, stack, model) for name, value in case.call.items()}


def side_input(name: str, value: Any, b: int, stack: Any, model: torch.nn.Module) -> Any:
    """What goes beside x under a name: numbers say how many tokens, lists are what they say."""
    if name == "src":
        return words(b, value, model.encoder.num_tokens)
    if name == "context":
        return noise(2, b, value, next((w for block in stack.blocks() if (w := block.context_width())), stack.dim))
    if name.endswith("condition"):
        layers = model.encoder.attn_layers if name.startswith("src") else stack
        return noise(4, b, layers.dim_condition)
    if name == "prepend_embeds":
        return noise(3, b, value, stack.dim)
    if isinstance(value, int):
        return value
    return torch.tensor(value).bool() if name.endswith("mask") else torch.tensor(value)


def sentence(error: BaseException) -> str:
    """'' for a refusal: a TypeError or ValueError of one sentence that xflash raises itself; else what is wrong."""
    kind = type(error).__name__
    if type(error) not in (TypeError, ValueError):
        return f"{kind}: {first_line(error)}"
    at = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(at.filename, at.lineno or 0).strip()
    if not at.filename.startswith(HERE) or not line.startswith("raise"):
        return f"{kind} that xflash does not raise: {first_line(error)}"
    text = str(error)
    if "\n" in text or not 3 <= len(text.split()) <= MOST_WORDS:
        return f"{kind} that is no sentence: {text[:200]!r}"
    return ""


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
