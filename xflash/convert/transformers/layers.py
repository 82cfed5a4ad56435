"""What differs from layer to layer, as a layout."""

from collections.abc import Sequence
from typing import Any

from .settings import Settings

__all__ = ["layered", "windowed", "windows"]


def layered(layers: Sequence[str]) -> dict[str, Any]:
    """The flags of a column with these layers: what repeats itself is written once."""
    count = len(layers)
    period = next(p for p in range(1, count + 1) if count % p == 0 and list(layers) == list(layers[:p]) * (count // p))
    return {"layers": " ".join(layers[:period]), "depth": count // period}


def windows(settings: Settings, depth: int) -> list[int | None]:
    """How many tokens the attention of each layer sees: `layer_types`, or from which layer on there is a window."""
    window = settings("sliding_window")
    types, first = settings("layer_types"), settings("max_window_layers", depth)
    if types is None:
        on = settings("use_sliding_window", False)
        return [window if on and layer >= first else None for layer in range(depth)]
    settings.without_effect("use_sliding_window")
    known = {"sliding_attention": window, "full_attention": None}
    for name in types:
        if name not in known:
            raise settings.error("layer_types", name, f"known are {', '.join(known)}")
    return [known[name] for name in types]


def windowed(settings: Settings, depth: int) -> dict[str, Any]:
    """The flags of a column whose attention has windows in some layers."""
    found = windows(settings, depth)
    return layered(["attn ff" if window is None else f"attn(window={window}) ff" for window in found])
