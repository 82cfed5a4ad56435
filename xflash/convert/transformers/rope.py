"""How transformers says rotary positions: `rope_parameters`, or in older files `rope_theta` and `rope_scaling`."""

from typing import Any

from .settings import Settings

__all__ = ["rope"]


def rope(settings: Settings, dim_head: int, base: float = 10000.0) -> dict[str, Any]:
    """The flags of a config's rotary positions."""
    said = dict(settings("rope_parameters", None) or settings("rope_scaling", {}))
    settings.without_effect("rope_scaling")
    base = said.pop("rope_theta", settings("rope_theta", base))
    share = said.pop("partial_rotary_factor", settings("partial_rotary_factor", 1.0))
    kind = said.pop("rope_type", said.pop("type", "default"))
    said.pop("type", None)
    flags = {"pos": "rotary", "rotary_base": float(base)}
    if share != 1:
        flags["rotary_emb_dim"] = int(dim_head * share)
    if kind not in SCALINGS:
        raise settings.error("rope_type", kind, f"known are {', '.join(SCALINGS)}")
    return flags | SCALINGS[kind](said)


def plain(said: dict[str, Any]) -> dict[str, Any]:
    return {}


def linear(said: dict[str, Any]) -> dict[str, Any]:
    return {"rotary_interpolation_factor": float(said["factor"])}


SCALINGS = {"default": plain, "linear": linear}
