"""How rotary positions are scaled there (`modeling_rope_utils`), in flags of ours."""

import math
from collections.abc import Mapping
from typing import Any

from .peer import Peer

__all__ = ["rotary_flags"]

# What every kind may say, and what each kind says beside it.
ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
BESIDE = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_slow", "beta_fast", "truncate"),
        *("attention_factor", "mscale", "mscale_all_dim"),
    ),
    "longrope": ("factor", "original_max_position_embeddings", "short_factor", "long_factor", "attention_factor"),
}


def rotary_flags(peer: Peer, width: int) -> dict[str, Any]:
    """The flags of rotary positions of keys of `width` channels; ValueError for a kind that is not known."""
    rope = dict(peer.said("rope_parameters") or {})
    kind, most = rope.get("rope_type", "default"), peer.said("max_position_embeddings")
    if kind not in BESIDE:
        raise peer.refused("rope_type", kind)
    for name, value in rope.items():
        if name not in ALWAYS and name not in BESIDE[kind] and value is not None:
            raise peer.refused(f"{name} of {kind!r} rotary positions", value)
    turned = int(width * rope.get("partial_rotary_factor", 1.0))
    flags = {"pos": "rotary", "rotary_base": float(rope.get("rope_theta", 10000.0))}
    flags |= {} if turned == width else {"rotary_emb_dim": turned}
    return flags | {f"rotary_{name}": value for name, value in scaling(kind, rope, most, peer.long_texts).items()}


def scaling(kind: str, rope: Mapping[str, Any], most: int, long_texts: bool) -> dict[str, Any]:
    """The flags that say how frequencies are lowered; most: positions that the model has."""
    if kind == "default":
        return {}
    length = rope.get("original_max_position_embeddings", most)
    factor = float(rope.get("factor") or most / length)
    if kind == "linear":
        return {"interpolation_factor": factor}
    found = {"scaling": kind, "scaling_factor": factor, "scaling_length": length}
    if kind == "llama3":
        return {**found, "scaling_turns": (float(rope["low_freq_factor"]), float(rope["high_freq_factor"]))}
    if kind == "yarn":
        turns = (float(rope.get("beta_slow") or 1), float(rope.get("beta_fast") or 32))
        found |= {"scaling_turns": turns, "scaling_truncate": rope.get("truncate", True)}
        return {**found, "scaling_attention": attention_factor(rope, factor)}
    if kind == "longrope":
        factors = tuple(map(float, rope["long_factor" if long_texts else "short_factor"]))
        return {**found, "scaling_factors": factors, "scaling_attention": rope.get("attention_factor")}
    return found


def attention_factor(rope: Mapping[str, Any], factor: float) -> float | None:
    """What yarn multiplies turned channels by, where that is not what it is by itself (DeepSeek's two mscales)."""
    scales = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is None and all(scales) and factor > 1:
        top, bottom = (0.1 * scale * math.log(factor) + 1 for scale in scales if scale)
        return top / bottom
    return rope.get("attention_factor")
