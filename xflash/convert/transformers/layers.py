"""What differs from layer to layer, as a layout."""

from collections.abc import Sequence
from typing import Any

from .settings import Settings

__all__ = ["attention", "layered", "said_types", "types_of", "windowed"]


def layered(layers: Sequence[str]) -> dict[str, Any]:
    """The flags of a column with these layers: what repeats itself is written once."""
    count = len(layers)
    period = next(p for p in range(1, count + 1) if count % p == 0 and list(layers) == list(layers[:p]) * (count // p))
    return {"layers": " ".join(layers[:period]), "depth": count // period}


def types_of(settings: Settings, depth: int, every: int | None = None) -> list[str]:
    """Which layers have windows: `layer_types`, or all but each `every`-th, or as older files of Qwen say."""
    first, on = settings("max_window_layers", depth), settings("use_sliding_window", False)
    some = [on and layer >= first if every is None else (layer + 1) % every for layer in range(depth)]
    return said_types(settings, ["sliding_attention" if window else "full_attention" for window in some])


def said_types(settings: Settings, otherwise: list[str]) -> list[str]:
    """The `layer_types` of a config, `otherwise` where it has none; ValueError for others, or for some layers only."""
    types = settings("layer_types", otherwise)
    for name in types:
        if name not in ("sliding_attention", "full_attention"):
            raise settings.error("layer_types", name, "known are sliding_attention and full_attention")
    if len(types) != len(otherwise):
        raise settings.error("layer_types", types, f"there are {len(otherwise)} layers")
    return types


def attention(**flags: Any) -> str:
    """An `attn` layer with flags of its own, those that are None left out."""
    said = ", ".join(f"{name}={value!r}" for name, value in flags.items() if value is not None)
    return f"attn({said})" if said else "attn"


def windowed(settings: Settings, depth: int, every: int | None = None) -> dict[str, Any]:
    """The flags of a column whose attention has windows in some layers."""
    window, types = settings("sliding_window"), types_of(settings, depth, every)
    window = window if settings("use_sliding_window", True) else None
    return layered([attention(window=window if name == "sliding_attention" else None) + " ff" for name in types])
