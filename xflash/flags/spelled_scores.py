"""What x-transformers calls scores and relative positions, beside the table of `aliases`."""

from collections.abc import Callable
from typing import Any

__all__ = ["OTHERS", "SAMPLES", "SWITCHES", "unless"]


def unless(idle: Any, flag: str) -> Callable[[Any], dict[str, Any]]:
    """Another name for a flag of a part; what it is without being set is said where the part is not there too."""
    return lambda value: {} if type(value) is type(idle) and value == idle else {flag: value}


SWITCHES: dict[str, tuple[bool, dict[str, Any]]] = {
    "dynamic_pos_bias": (True, {"pos": "dynamic"}),
}
OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "rotate_num_heads": unless(None, "rotary_num_heads"),
    "dynamic_pos_bias_log_distance": unless(False, "dynamic_log_distance"),
    "dynamic_pos_bias_mlp_depth": unless(2, "dynamic_mlp_depth"),
    "dynamic_pos_bias_norm": unless(False, "dynamic_norm"),
}
SAMPLES: dict[str, Any] = {
    "rotate_num_heads": 4,
    "dynamic_pos_bias_log_distance": True,
    "dynamic_pos_bias_mlp_depth": 3,
    "dynamic_pos_bias_norm": True,
}
