"""How x-transformers says what stands around blocks and in which order, as flags of ours (part of `aliases`)."""

from collections.abc import Callable, Mapping
from typing import Any

from ..base.checks import number
from .layout import default_layout

__all__ = ["BRANCHES", "BRANCH_SAMPLES", "BRANCH_SWITCHES", "with_macaron"]

BRANCH_SWITCHES: dict[str, tuple[bool, dict[str, Any]]] = {
    "use_dynamic_tanh": (True, {"norm": "dynamic_tanh"}),
    "pre_and_post_norm": (True, {"norm_place": "pre_and_post"}),
    "macaron": (True, {"scale": "macaron"}),
    "zero_init_branch_output": (True, {"branch_start": "zero"}),
    "orthog_residual": (True, {"join": "orthogonal"}),
    "mv_split_residual": (True, {"join": "mv_split"}),
    "resi_dual": (True, {"join": "resi_dual", "norm_place": "post"}),
    "qkv_receive_diff_residuals": (True, {"hyper_views": True}),
    "reinject_input": (True, {"reads": "reinject"}),
    "learned_reinject_input_gate": (True, {"reinject_gate": True}),
}
BRANCH_SAMPLES: dict[str, Any] = {"depth_scale_residual": 0.5, "dynamic_tanh_init_alpha": 0.5}


def by_depth(value: Any) -> dict[str, Any]:
    """A number that updates are multiplied by, or True for weights that start smaller with depth."""
    if isinstance(value, bool):
        return {"branch_start": "depth"} if value else {}
    return {"scale": "constant", "constant_factor": number("depth_scale_residual", value, above=0)}


BRANCHES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "depth_scale_residual": by_depth,
    "dynamic_tanh_init_alpha": lambda value: {"norm_alpha": value},
}


def with_macaron(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """The flags with the layout that `macaron` means where there is no other."""
    if flags.get("macaron") is not True or flags.get("layers", flags.get("custom_layers")) is not None:
        return flags
    crossed = bool(flags.get("cross_attend")), bool(flags.get("only_cross"))
    return {**flags, "layers": default_layout(*crossed, macaron=True)}
