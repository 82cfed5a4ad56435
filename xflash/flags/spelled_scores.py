"""What x-transformers calls scores and relative positions, beside the table of `aliases`."""

from collections.abc import Callable
from typing import Any

__all__ = ["OTHERS", "SAMPLES", "SWITCHES", "UNSAID", "renamed", "unless"]

READERS = ("attn", "cross_attn")


def unless(idle: Any, flag: str) -> Callable[[Any], dict[str, Any]]:
    """Another name for a flag of a part; what it is without being set is said where the part is not there too."""
    return lambda value: {} if type(value) is type(idle) and value == idle else {flag: value}


# What a block of softmax attention is told, `attn_` or `cross_attn_` in front of it.
READS: dict[str, dict[str, Any]] = {
    "l2_distance": {"scores": "l2_distance"},
    "gumbel_softmax": {"weight_fn": "gumbel"},
}


def renamed(flag: str) -> Callable[[Any], dict[str, Any]]:
    """Another name for a flag."""
    return lambda value: {flag: value}


SWITCHES: dict[str, tuple[bool, dict[str, Any]]] = {
    **{
        f"{block}_{name}": (True, {f"{block}_{flag}": meant for flag, meant in flags.items()})
        for block in READERS
        for name, flags in READS.items()
    },
    "dynamic_pos_bias": (True, {"pos": "dynamic"}),
    "polar_pos_emb": (True, {"pos": "polar"}),
    "attn_selective": (True, {"attn_scores": "selective"}),
    "attn_use_rel_proj_pos_bias": (True, {"attn_scores": "rel_proj"}),
    "attn_data_dependent_alibi_per_row": (True, {"attn_scores": "forget_by_query"}),
    "attn_use_cope": (True, {"attn_scores": "cope"}),
}
OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "rotate_num_heads": unless(None, "rotary_num_heads"),
    "dynamic_pos_bias_log_distance": unless(False, "dynamic_log_distance"),
    "dynamic_pos_bias_mlp_depth": unless(2, "dynamic_mlp_depth"),
    "dynamic_pos_bias_norm": unless(False, "dynamic_norm"),
    "polar_bias_uniform_init": unless(False, "polar_uniform_start"),
    "attn_data_dependent_alibi_per_row_dim_head": unless(8, "attn_forget_by_query_dim_head"),
    "attn_cope_max_pos": renamed("attn_cope_positions"),
}
for reader in READERS:
    OTHERS |= {
        f"{reader}_gumbel_softmax_temp": unless(1.0, f"{reader}_gumbel_temperature"),
        f"{reader}_gumbel_softmax_hard": unless(True, f"{reader}_gumbel_hard"),
        f"{reader}_custom_attn_fn": unless(None, f"{reader}_weight_fn"),
    }
# What a spelling leaves unsaid, as long as nothing else says it.
UNSAID: dict[str, tuple[str, Any]] = {"attn_use_cope": ("attn_cope_positions", 16)}
SAMPLES: dict[str, Any] = {
    "rotate_num_heads": 4,
    "dynamic_pos_bias_log_distance": True,
    "dynamic_pos_bias_mlp_depth": 3,
    "dynamic_pos_bias_norm": True,
    "polar_bias_uniform_init": True,
    "attn_data_dependent_alibi_per_row_dim_head": 4,
    "attn_cope_max_pos": 16,
    **{
        f"{reader}_{name}": value
        for reader in READERS
        for name, value in (
            ("gumbel_softmax_temp", 0.5),
            ("gumbel_softmax_hard", False),
            ("custom_attn_fn", "hard"),
        )
    },
}
