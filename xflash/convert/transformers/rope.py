"""How transformers says rotary positions: `rope_parameters`, or in older files `rope_theta` and `rope_scaling`."""

import math
from collections.abc import Callable
from typing import Any

from .settings import Settings

__all__ = ["rope", "two_ropes"]


def rope(settings: Settings, dim_head: int, base: float = 10000.0, share: float | None = None) -> dict[str, Any]:
    """The flags of a config's rotary positions; base and share of a head's channels: where it says nothing.

    None: models of this kind turn all channels, whatever is said.
    """
    # transformers, which writes the first, takes the second where there are both.
    said = settings("rope_scaling") or settings("rope_parameters", {})
    settings.without_effect("rope_parameters")
    base = settings("rope_theta", base)
    if share is None:
        settings.only("partial_rotary_factor", 1.0)
    return turned(said, settings, dim_head, base, share and settings("partial_rotary_factor", share))


def turned(
    said: dict[str, Any], settings: Settings, dim_head: int, base: float, share: float | None = None
) -> dict[str, Any]:
    """The flags of rotary positions as one dictionary says them."""
    own = Settings({**said, "model_type": f"{settings.kind} rope"})
    flags = {"pos": "rotary", "rotary_base": float(own("rope_theta", base))}
    if share is None:
        own.only("partial_rotary_factor", 1.0)
    elif (share := own("partial_rotary_factor", share)) != 1:
        flags["rotary_emb_dim"] = int(dim_head * share)
    scaling = own.among("rope_type", SCALINGS, own("type", "default"))
    flags |= scaling(own, settings)
    own.finish()
    return flags


def two_ropes(settings: Settings, dim_head: int, bases: tuple[float, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flags of a stack with rotary positions, and what layers with a window say instead; bases: if none is said."""
    said = settings("rope_parameters") or {}
    if "full_attention" not in said:
        said = {"full_attention": said or settings("rope_scaling", {}), "sliding_attention": {}}
    settings.without_effect("rope_scaling")
    wide, near = (
        turned(said.get(kind, {}), settings, dim_head, base)
        for kind, base in zip(("full_attention", "sliding_attention"), bases, strict=True)
    )
    for name in wide:
        if name not in near and name not in DEFAULTS:
            raise settings.error("rope_parameters", said, f"layers with a window are given no way to undo {name}")
    own = {name: value for name, value in near.items() if wide.get(name) != value}
    return wide, own | {name: DEFAULTS[name] for name in wide if name not in near}


# What a layer says where others lower their frequencies.
DEFAULTS = {"rotary_interpolation_factor": 1.0}


def trained_length(own: Settings, settings: Settings) -> int:
    """How long texts were in training, before they became longer."""
    outside = settings("original_max_position_embeddings", settings("max_position_embeddings"))
    return own("original_max_position_embeddings", outside)


def default(own: Settings, settings: Settings) -> dict[str, Any]:
    own.without_effect("factor", "original_max_position_embeddings")
    return {}


def linear(own: Settings, settings: Settings) -> dict[str, Any]:
    own.without_effect("original_max_position_embeddings")
    return {"rotary_interpolation_factor": float(own.need("factor"))}


def dynamic(own: Settings, settings: Settings) -> dict[str, Any]:
    own.without_effect("original_max_position_embeddings")
    length = settings.need("max_position_embeddings")
    return rotary({"scaling": "dynamic", "scaling_factor": float(own.need("factor")), "scaling_length": length})


def llama3(own: Settings, settings: Settings) -> dict[str, Any]:
    flags = {"scaling": "llama3", "scaling_factor": float(own.need("factor"))}
    flags["scaling_turns"] = (float(own("low_freq_factor", 1)), float(own("high_freq_factor", 4)))
    return rotary({**flags, "scaling_length": trained_length(own, settings)})


def rotary(flags: dict[str, Any]) -> dict[str, Any]:
    return {f"rotary_{name}": value for name, value in flags.items() if value is not None}


def yarn(own: Settings, settings: Settings) -> dict[str, Any]:
    length = trained_length(own, settings)
    factor = own("factor") or settings.need("max_position_embeddings") / length
    size, both = own("attention_factor"), (own("mscale"), own("mscale_all_dim"))
    if size is None and all(both):
        size = (both[0] * math.log(factor) + 10) / (both[1] * math.log(factor) + 10)
    flags = {"scaling": "yarn", "scaling_factor": float(factor), "scaling_length": length, "scaling_attention": size}
    flags["scaling_turns"] = (float(own("beta_slow", 1)), float(own("beta_fast", 32)))
    return rotary({**flags, "scaling_truncate": own("truncate", True)})


def longrope(own: Settings, settings: Settings) -> dict[str, Any]:
    """Two lists of factors: a model here has that of texts no longer than trained on, or that of longer ones."""
    length = trained_length(own, settings)
    factor = own("factor") or settings.need("max_position_embeddings") / length
    lists = {False: own.need("short_factor"), True: own.need("long_factor")}
    own.without_effect("short_mscale", "long_mscale")
    flags = {"scaling": "longrope", "scaling_factors": tuple(map(float, lists[settings.long_context()]))}
    size = own("attention_factor", 1.0 if factor <= 1 else None)
    return rotary(
        flags | ({"scaling_attention": size} if size else {"scaling_factor": factor, "scaling_length": length})
    )


SCALINGS: dict[str, Callable[[Settings, Settings], dict[str, Any]]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
    "su": longrope,
}
