"""What older versions wrote, read as this one would have written it: a table for configs, and one for weights."""

import ast
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from torch import nn

from ..base.shapes import Tensor
from ..flags.aliases import SEVERAL, as_names, spoken
from ..flags.layout import parse_layout
from ..layers.projection import group_rows

__all__ = ["ARGUMENTS", "FORMAT", "WEIGHTS", "Argument", "Weight", "read_arguments", "read_weights", "same_maker"]

# Of configs: 1 is that of xflash 0.1.0, which don't say so.
FORMAT = 3


class Argument(NamedTuple):
    """An argument in configs older than format `since`, and the arguments that say the same now."""

    since: int
    name: str
    says: Callable[[Any], Mapping[str, Any]]


class Weight(NamedTuple):
    """A submodule that has another name now, since its weight's rows lie otherwise; `lay` gives them from the old."""

    old: str
    new: str
    lay: Callable[[Any, Tensor], Tensor]


def keys_values(module: Any, weight: Tensor) -> Tensor:
    """From [keys of all heads | values of all heads]."""
    return group_rows(weight.chunk(2), module.kv_heads)


def queries_keys_values(module: Any, weight: Tensor) -> Tensor:
    """From [queries of all heads | keys of all heads | values of all heads]."""
    heads = (module.heads, module.kv_heads, module.kv_heads)
    width = weight.shape[0] // sum(heads)
    return group_rows(weight.split([h * width for h in heads]), module.kv_heads)


# What was the default is left out: states say what their stack has set, and those of 0.1.0 are to go on.
ARGUMENTS: tuple[Argument, ...] = tuple(
    Argument(2, name, lambda value, name=name: {} if value == 4.0 else {name: value})
    for name in ("ff_mult", "enc_ff_mult", "dec_ff_mult")
)
# A name is never used again for other rows: which of the two a file has, its names alone must say.
WEIGHTS: tuple[Weight, ...] = (
    Weight("to_qkv", "query_key_value", queries_keys_values),
    Weight("to_kv", "key_value", keys_values),
    Weight("state_to_kv", "state_key_value", keys_values),
)
# Names of tensors of one module that only were renamed; which of several new ones, the module says that has it.
RENAMED: tuple[tuple[str, str], ...] = (
    ("residual.gain", "join.gain"),
    ("residual.gain", "scale.layerscale.gain"),
    ("residual.gain", "scale.rezero.gain"),
    *(
        (name, f"embedding.{name}")
        for name in (
            *("patch_emb.before.gain", "patch_emb.project.weight", "patch_emb.project.bias", "patch_emb.after.gain"),
            *("pos_emb.weight", "post_emb_norm.gain", "register_tokens"),
        )
    ),
    ("cls_token", "pooled.cls_tokens.tokens"),
    ("pool.query", "pooled.attn_pool.query"),
)


# Format 1 cut the product of such a factor and the width off; of these classes the factor says something else.
FACTORS = ("ff_mult", "expansion_factor")
OWN_FACTORS = frozenset({"BlockRecurrentTransformer"})


def factor_built(factor: Any, dim: Any) -> Any:
    """The factor that says how many channels format 1 made of this one; anything else as it is."""
    if type(factor) not in (int, float) or type(dim) is not int or not 1 <= factor * dim < math.inf:
        return factor
    return factor if factor * dim == int(factor * dim) else int(factor * dim) / dim


def factors_built(given: Mapping[str, Any]) -> dict[str, Any]:
    """`factor_built` of every factor among the arguments, and in the layout."""
    dim = given.get("dim")
    now = {k: factor_built(v, dim) if k.endswith(FACTORS) else v for k, v in given.items()}
    for name in (key for key in now if key.endswith("layers") and isinstance(now[key], (str, list))):
        specs = parse_layout(now[name])
        built = [
            {k: factor_built(v, dim) if f"ff_{k}".endswith(FACTORS) else v for k, v in spec.flags.items()}
            for spec in specs
        ]
        if built != [spec.overrides for spec in specs]:
            now[name] = [[spec.name, overrides] for spec, overrides in zip(specs, built, strict=True)]
    return now


# Before format 3 the flags of attn did not count for cross_attn, whose defaults these were.
CROSS_ATTN: dict[str, Any] = {
    "dim_head": 64,
    "heads": None,
    "kv_heads": None,
    "flash": None,
    "dropout": 0.0,
    "num_mem_kv": 0,
    "qk_norm": False,
    "qk_norm_groups": 1,
    "qk_norm_scale": 10.0,
    "qk_norm_dim_scale": False,
    "gate_values": False,
    "head_scale": False,
}


def apart(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The arguments with those of cross_attn that would be taken over from attn; configs of stacks name them all."""
    layers = given.get(f"{prefix}layers") or given.get(f"{prefix}custom_layers") or "attn cross_attn ff"
    if all(spec.name != "cross_attn" for spec in parse_layout(layers)):
        return dict(given)
    # One of them has another spelling too.
    said = {flag for name, value in given.items() for flag in spoken(name.removeprefix(prefix), value)}
    lent = {f"{prefix}cross_attn_{k}": v for k, v in CROSS_ATTN.items() if f"attn_{k}" in said}
    return {**lent, **given}


def read_arguments(given: Mapping[str, Any], written: int, kind: str = "") -> dict[str, Any]:
    """The arguments of a module from its part of a config of format `written`; `kind`: its class."""
    if written == 1 and kind not in OWN_FACTORS:
        given = factors_built(given)
    if written < 3 and kind == "XTransformer":
        given = apart(given, "dec_")
    now: dict[str, Any] = {}
    moved = {argument.name: argument.says for argument in ARGUMENTS if written < argument.since}
    for name, value in given.items():
        now |= moved[name](value) if name in moved else {name: value}
    return now


def same_maker(written: str, maker: str) -> bool:
    """Whether the maker that a state names is this one by the names that flags have now."""
    return written == maker or ((now := maker_now(written)) is not None and now == maker_now(maker))


def maker_now(maker: str) -> tuple[str, dict[str, Any]] | None:
    """The class and the flags of a maker, as they are called now; None for what no stack has written."""
    try:
        call: Any = ast.parse(maker, mode="eval").body
        said = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        layers = parse_layout(said.pop("layers")) if "layers" in said else []
        members = [one for spec in layers for one in spec.members]
        column = [(one.name, called_now({f"{one.name}_{k}": v for k, v in one.flags.items()})) for one in members]
        return call.func.id, {**called_now(said), "layers": column}
    except (AttributeError, SyntaxError, TypeError, ValueError):
        return None


def called_now(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags by their names of today; of parts that may be several, all."""
    now = {flag: meant for name, value in flags.items() for flag, meant in spoken(name, value).items()} | {
        name: value for name, value in flags.items() if name in spoken(name, value)
    }
    return {**now, **{name: as_names(name, now[name]) for name in now if name in SEVERAL}}


def read_weights(root: nn.Module, weights: MutableMapping[str, Tensor], prefix: str = "") -> None:
    """Puts weights of `root`, under their old names behind `prefix`, where they belong now; in place."""
    for path, module in root.named_modules(remove_duplicate=False):
        at = f"{prefix}{path}." if path else prefix
        for moved in WEIGHTS:
            if moved.new in module._modules and f"{at}{moved.old}.weight" in weights:
                old = weights.pop(f"{at}{moved.old}.weight")
                weights[f"{at}{moved.new}.weight"] = moved.lay(module, old)
        for old_name, name in RENAMED:
            if f"{at}{old_name}" in weights and has(module, name):
                weights[f"{at}{name}"] = weights.pop(f"{at}{old_name}")


def has(module: nn.Module, name: str) -> bool:
    """Whether the module has a tensor of this name."""
    return any(name == known for known, _ in module.named_parameters())
