"""The spellings that users of x-transformers and FLASH-pytorch know, and what they are called here."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from ..base.checks import LARGEST, integer, shown
from ..base.registry import Registry, joins, nearest, positions, reads, scales, scores
from . import spelled_scores
from .branch_spellings import BRANCH_SAMPLES, BRANCH_SWITCHES, BRANCHES, with_macaron
from .layout import NONE
from .spelled_scores import renamed, unless

__all__ = ["ALIASES", "SAMPLES", "SEVERAL", "as_names", "as_norm", "canonical", "names", "spoken", "written"]

# A boolean spelling that is set to the first value says the flags; set to the other, that they are not so.
SWITCHES: dict[str, tuple[bool, dict[str, Any]]] = {
    "use_scalenorm": (True, {"norm": "scalenorm"}),
    "use_rmsnorm": (True, {"norm": "rmsnorm"}),
    "use_simple_rmsnorm": (True, {"norm": "simple_rmsnorm"}),
    "use_adaptive_layernorm": (True, {"norm": "adaptive_layernorm"}),
    "use_adaptive_rmsnorm": (True, {"norm": "adaptive_rmsnorm"}),
    "use_adaptive_layerscale": (True, {"scale": "adaptive_layerscale"}),
    "sandwich_norm": (True, {"norm_place": "sandwich"}),
    "pre_norm": (False, {"norm_place": "post"}),
    "rotary_pos_emb": (True, {"pos": "rotary"}),
    "rel_pos_bias": (True, {"pos": "rel_pos"}),
    "alibi_pos_bias": (True, {"pos": "alibi"}),
    "use_layerscale": (True, {"scale": "layerscale"}),
    "use_rezero": (True, {"scale": "rezero"}),
    "scale_residual": (True, {"join": "scaled"}),
    "gate_residual": (True, {"join": "gru"}),
    "unet_skips": (True, {"reads": "unet"}),
    "integrate_layers": (True, {"reads": "lime", "lime_views": True}),
    "add_value_residual": (True, {"attn_value_residual": True}),
    "learned_value_residual_mix": (False, {"attn_value_residual_learned": False}),
    "layer_integrate_use_softmax": (False, {"lime_weights": "relu"}),
    "attn_use_latent_q": (False, {"attn_dim_latent_q": None}),
    "attn_use_latent_kv": (False, {"attn_dim_latent_kv": None}),
    "attn_one_kv_head": (True, {"attn_kv_heads": 1}),
    "ff_swish": (True, {"ff_activation": "silu"}),
    "ff_relu_squared": (True, {"ff_activation": "relu2"}),
    "flash_laplace_attn_fn": (True, {"flash_attn_fn": "laplace"}),
    "gau_laplace_attn_fn": (True, {"gau_attn_fn": "laplace"}),
    "residual_attn": (True, {"attn_scores": "residual"}),
    "cross_residual_attn": (True, {"cross_attn_scores": "residual"}),
    "attn_data_dependent_alibi": (True, {"attn_scores": "forget"}),
}
# What a block of softmax attention is told, `attn_` or `cross_attn_` in front of it.
READS: dict[str, dict[str, Any]] = {
    "talking_heads": {"scores": "talking_heads"},
    "softclamp_logits": {"scores": "softclamp"},
    "head_learned_sink": {"scores": "learned_sink"},
    "add_zero_kv": {"scores": "zero_key"},
    "sigmoid": {"weight_fn": "sigmoid", "sigmoid_bias": 0.0},
    "hard": {"weight_fn": "hard"},
}
READERS = ("attn", "cross_attn")
SWITCHES |= {
    f"{block}_{name}": (True, {f"{block}_{flag}": meant for flag, meant in flags.items()})
    for block in READERS
    for name, flags in READS.items()
} | BRANCH_SWITCHES
SWITCHES |= spelled_scores.SWITCHES
# Flags that name several parts, which add up, and the order of those that come from other spellings.
STEPS = (
    *("residual", "talking_heads", "forget", "forget_by_query", "rel_proj", "softclamp", "cope", "selective", "topk"),
    *("learned_sink", "zero_key", "l2_distance"),
)
SEVERAL: dict[str, tuple[str, ...]] = {
    "pos": (),
    "reads": (),
    "scale": (),
    **{f"{block}_scores": STEPS for block in READERS},
}
# A value for each alias that is more than a switch, to show what it means.
SAMPLES: dict[str, Any] = {
    **BRANCH_SAMPLES,
    "norm_type": "scalenorm",
    "pre_norm_has_final_norm": False,
    "rotary_xpos": True,
    "layerscale_init_value": 0.1,
    "num_residual_streams": 4,
    "hyper_conn_sinkhorn_iters": 20,
    "residual": "layerscale",
    "residual_init": 0.1,
    "attn_max_attend_past": 63,
    "ff_custom_activation": "tanh",
    **spelled_scores.SAMPLES,
    **{
        f"{block}_{begin}qk_norm{end}": value
        for block in ("block_attn", "recurrent", "state_read")
        for begin in ("", "read_")
        for end, value in (("", True), ("_scale", 10.0))
    },
    **{
        f"{block}_{name}": value
        for block in READERS
        for name, value in (
            ("pre_talking_heads", True),
            ("post_talking_heads", True),
            ("sparse_topk", 8),
            ("sparse_topk_straight_through", True),
            ("logit_softclamp_value", 30.0),
        )
    },
}


def window(past: Any) -> dict[str, Any]:
    """x-transformers counts the tokens before the query, xflash the query too."""
    if past is None:
        return {}
    if not isinstance(past, int) or isinstance(past, bool):
        raise TypeError(f"attn_max_attend_past must be a whole number or None, not {shown(past)}")
    integer("attn_max_attend_past", past, 0, LARGEST - 1)
    return {"attn_window": past + 1}


def residual(name: Any) -> dict[str, Any]:
    """0.1.0 had one slot for what multiplies an update and for how it joins the stream."""
    if not isinstance(name, str):
        raise TypeError(f"residual must be a text, the name of a join or a scale, not {shown(name)}")
    if name not in joins and name not in scales:
        raise ValueError(f"residual={shown(name)} is no registered join or scale{nearest(name, [*joins, *scales])}")
    return {"scale" if name in scales else "join": name}


def streams(count: Any) -> dict[str, Any]:
    """x-transformers says one stream for none of their own."""
    integer("num_residual_streams", count, 1, LARGEST)
    return {} if count == 1 else {"join": "hyper", "hyper_streams": count}


def talking(block: str, how: str) -> Callable[[Any], dict[str, Any]]:
    """Heads that talk before ('pre') or behind ('post') the softmax."""

    def spoken(value: Any) -> dict[str, Any]:
        if not isinstance(value, bool):
            raise TypeError(f"{block}_{how}_talking_heads must be True or False, not {shown(value)}")
        return {f"{block}_scores": "talking_heads", f"{block}_talking_heads_{how}": True} if value else {}

    return spoken


def best(block: str) -> Callable[[Any], dict[str, Any]]:
    """How many keys a query keeps, None for all."""
    return lambda k: {} if k is None else {f"{block}_scores": "topk", f"{block}_topk_k": k}


COSINES = ("qk_norm", "qk_norm_scale", "read_qk_norm", "read_qk_norm_scale")
OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    **BRANCHES,
    "norm_type": lambda name: {"norm": name},
    "pre_norm_has_final_norm": lambda value: {"final_norm": value},
    "rotary_xpos": lambda value: {"rotary_xpos": value, **({"pos": "rotary"} if value is True else {})},
    "layerscale_init_value": lambda value: {"layerscale_init": value},
    "num_residual_streams": streams,
    "hyper_conn_sinkhorn_iters": lambda value: {"hyper_rounds": integer("hyper_conn_sinkhorn_iters", value, 1)},
    "residual": residual,
    "residual_init": lambda value: {"layerscale_init": value},
    "attn_max_attend_past": window,
    "ff_custom_activation": lambda value: {} if value is None else {"ff_activation": value},
    **spelled_scores.OTHERS,
}
for reader in READERS:
    OTHERS |= {
        f"{reader}_pre_talking_heads": talking(reader, "pre"),
        f"{reader}_post_talking_heads": talking(reader, "post"),
        f"{reader}_sparse_topk": best(reader),
        f"{reader}_sparse_topk_straight_through": unless(False, f"{reader}_topk_straight_through"),
        f"{reader}_logit_softclamp_value": renamed(f"{reader}_softclamp_value"),
    }
# What xflash 0.1.0 called otherwise.
OTHERS |= {
    f"{block}_{name}": renamed(f"{block}_{name.replace('qk_norm', 'cosine')}")
    for block, names_then in (("block_attn", COSINES), ("recurrent", COSINES), ("state_read", COSINES[:2]))
    for name in names_then
}
# What a spelling leaves unsaid, as long as nothing else says it.
UNSAID = spelled_scores.UNSAID | {
    f"{reader}_{how}_talking_heads": (f"{reader}_talking_heads_{other}", False)
    for reader in READERS
    for how, other in (("pre", "post"), ("post", "pre"))
}

ALIASES = (*SWITCHES, *OTHERS)


def names(value: Any, flag: str = "pos", registry: Registry = positions) -> tuple[str, ...]:
    """A choice of several of a registry: 'rotary alibi', ('rotary', 'alibi'), None or 'none' as a tuple."""
    if value is None:
        return ()
    if isinstance(value, str):
        found = () if value == NONE else tuple(value.replace(",", " ").split())
    elif isinstance(value, (tuple, list)) and all(isinstance(name, str) for name in value):
        found = tuple(value)
    else:
        some = tuple(islice(registry, 2))
        wanted = f"names of {registry.kind}s such as {' '.join(some)!r} or {some}"
        raise TypeError(f"{flag} must be {wanted}, not {shown(value)}")
    for name in found:
        if found.count(name) > 1:
            raise ValueError(f"{flag}={value!r} names {name!r} twice")
    return found


def as_norm(value: Any) -> Any:
    """A choice of a norm, of which there is one or 'none': None says that too, as it does of other parts."""
    return NONE if value is None else value


def as_names(flag: str, value: Any) -> tuple[str, ...]:
    """The parts that a flag of several names."""
    registry = {"pos": positions, "reads": reads, "scale": scales}.get(flag, scores)
    return names(value, flag, registry)


def spoken(name: str, value: Any) -> dict[str, Any]:
    """What one flag says in xflash's own spelling."""
    if name in SWITCHES:
        said_by, flags = SWITCHES[name]
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False for the whole stack, not {shown(value)}")
        return flags if value is said_by else {}
    return OTHERS[name](value) if name in OTHERS else {name: value}


def means(flag: str, value: Any, why: str, verb: str = " means") -> str:
    """What was written, and what it means where that is written otherwise."""
    said = f"{flag}={shown(value)}"
    return why if why == said else f"{why}{verb} {said}"


def canonical(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags in xflash's own spelling; parts add up, anything else that is said twice must agree (ValueError)."""
    said: dict[str, tuple[Any, str]] = {}
    if flags.get("gate_residual") is True and flags.get("scale_residual") is True:
        # x-transformers' gated residual has a gain too then.
        flags = {**{name: value for name, value in flags.items() if name != "scale_residual"}, "gru_gain": True}
    flags = with_macaron(flags)
    if flags.get("attn_data_dependent_alibi_per_row") is True:
        # Gates of pairs stand in the place of those of tokens.
        flags = {name: value for name, value in flags.items() if name != "attn_data_dependent_alibi"}
    for name, value in flags.items():
        for flag, meant in spoken(name, value).items():
            meant = as_norm(meant) if flag == "norm" else meant
            if flag in SEVERAL:
                before = said[flag][0] if flag in said else ()
                meant = before + tuple(p for p in as_names(flag, meant) if p not in before)
            elif flag in said and said[flag][0] != meant:
                first, second = said[flag], (meant, f"{name}={shown(value)}")
                raise ValueError(f"{means(flag, *first)}, but {means(flag, *second)}")
            said[flag] = (meant, f"{name}={shown(value)}")
    for name, (flag, value) in UNSAID.items():
        if flags.get(name) is True:
            said.setdefault(flag, (value, f"{name}=True"))
    for flag, order in SEVERAL.items():
        if order and flag in said:
            own, (every, why) = as_names(flag, flags.get(flag)), said[flag]
            said[flag] = (own + tuple(sorted(set(every).difference(own), key=order.index)), why)
    for name in flags:
        if name in SWITCHES:
            check_unsaid(name, flags[name], said)
    if flags.get("attn_max_attend_past") is not None and not flags.get("causal"):
        raise ValueError(
            "attn_max_attend_past leaves the future open, which only says something in a causal stack; "
            "attn_window limits a bidirectional one both ways"
        )
    for side in ("q", "kv"):
        if flags.get(f"attn_use_latent_{side}") and said.get(f"attn_dim_latent_{side}", (None, ""))[0] is None:
            raise ValueError(f"attn_use_latent_{side}=True needs its width, attn_dim_latent_{side}")
    return {flag: meant for flag, (meant, _) in said.items()}


def written(flag: str, flags: Mapping[str, Any]) -> str:
    """How a flag was set: by its own name, or by another spelling."""
    for name, value in flags.items():
        if name != flag and flag not in flags and flag in (meant := spoken(name, value)):
            return f"{name}={shown(value)} means {flag}={shown(meant[flag])},"
    return f"{flag} is set"


def check_unsaid(name: str, value: bool, said: Mapping[str, tuple[Any, str]]) -> None:
    """ValueError when a switch is off, but another flag says what it stands for."""
    said_by, flags = SWITCHES[name]
    for flag, meant in flags.items():
        if value is said_by or flag not in said:
            continue
        if meant in said[flag][0] if flag in SEVERAL else meant == said[flag][0]:
            raise ValueError(f"{name}={value} contradicts {means(flag, *said[flag], ', which means')}")
