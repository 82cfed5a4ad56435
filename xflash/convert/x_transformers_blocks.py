"""The blocks of x-transformers as xflash's flags and weights."""

from typing import Any

import einx
import torch
import torch.nn.functional as F
from torch import nn

from ..base.shapes import Tensor
from ..layers.blocks.attention import Attention
from ..layers.blocks.feedforward import FeedForward
from .x_transformers_parts import Reader, feature, kind, read_gain
from .x_transformers_scores import read_scores

__all__ = ["read_attention", "read_ff"]

ACTIVATIONS = {"GELU": "gelu", "SiLU": "silu", "ReluSquared": "relu2", "ReLU": "relu", "Tanh": "tanh"}

Weights = dict[str, Tensor]


def head_order(heads: int, kv_heads: int) -> tuple[int, ...]:
    """For each of xflash's query heads, which of the peer's it is: theirs share key head h % kv_heads, ours h // r."""
    return tuple(j * kv_heads + g for g in range(kv_heads) for j in range(heads // kv_heads))


def read_attention(
    attn: Any, peer: Any, cross: bool, reader: Reader
) -> tuple[dict[str, Any], Weights, tuple[int, ...]]:
    """The flags and weights of an attention block (`cross`: to a context), and its heads' order."""
    heads, kv_heads = attn.heads, attn.kv_heads
    width = attn.to_q.out_features // heads
    check_attention(attn, peer, cross, width)
    groups = {"g": kv_heads, "r": heads // kv_heads}
    q, k, v = (reader.take(linear.weight) for linear in (attn.to_q, attn.to_k, attn.to_v))
    if isinstance(attn.to_out, nn.Linear):
        out = reader.take(attn.to_out.weight)
    else:
        out = torch.eye(peer.dim, dtype=attn.to_q.weight.dtype, device=attn.to_q.weight.device)
    weights = {"to_out.weight": einx.id("d (r g k) -> d (g r k)", out, **groups)}
    if cross:
        weights["to_q.weight"] = einx.id("(r g k) d -> (g r k) d", q, **groups)
        weights["key_value.weight"] = einx.id("(g k) d, (g k) d -> (g (k + k)) d", k, v, **groups)
    else:
        fused = "(r g k) d, (g k) d, (g k) d -> (g ((r k) + k + k)) d"
        weights["query_key_value.weight"] = einx.id(fused, q, k, v, **groups)
    if attn.num_mem_kv:
        weights["mem_kv"] = einx.id("g t k, g t k -> (1 + 1) g t k", reader.take(attn.mem_k), reader.take(attn.mem_v))
    if attn.to_v_gate is not None:
        weights["to_gate.weight"] = einx.id("(r g k) d -> (g r k) d", reader.take(attn.to_v_gate.weight), **groups)
    if isinstance(mix := attn.to_value_residual_mix, nn.Module):
        weights |= {f"to_mix.{name}": reader.take(t) for name, t in mix[0].named_parameters()}
    if attn.head_scale:
        weights["head_gain"] = einx.id("1 (r g) n k -> (g r) n k", reader.take(attn.head_scale_params), **groups)
    if attn.qk_norm and attn.qk_norm_dim_scale:
        weights["q_gain"] = einx.id("(r g) n k -> (g r) n k", reader.take(attn.qk_norm_q_scale), **groups)
        weights["k_gain"] = reader.take(attn.qk_norm_k_scale)
    order = head_order(heads, kv_heads)
    steps, more = read_scores(attn, peer, cross, torch.tensor(order, device=attn.to_q.weight.device), reader)
    return attention_flags(attn, peer, steps, cross, width), weights | more, order


def check_attention(attn: Any, peer: Any, cross: bool, width: int) -> None:
    """ValueError for settings of an attention block that only their values tell from what xflash has."""
    if attn.to_v.out_features != width * attn.kv_heads:
        raise feature("attn_value_dim_head", attn.to_v.out_features // attn.kv_heads)
    if cross and attn.max_attend_past is not None:
        # attn_ flags count for cross attention too, where this one would compare places of two sequences.
        raise feature("attn_max_attend_past", f"{attn.max_attend_past} in cross attention")
    if attn.num_mem_kv and not cross and peer.rotary_pos_emb is not None and peer.rotary_pos_emb.scale is not None:
        # Their decay is counted from the middle of the sequence, which only keys that have a position cancel.
        raise feature("rotary_xpos", "with attn_num_mem_kv, where outputs depend on the sequence's length")
    if attn.to_v_gate is not None and attn.to_v_gate_activation is not F.sigmoid:
        raise feature("attn_swiglu_values", True)
    if attn.max_attend_past is not None and not peer.causal:
        raise feature("attn_max_attend_past", "in a bidirectional stack, where it limits the past but not the future")
    if isinstance(attn.to_out, nn.Sequential):
        raise feature("attn_on_attn", True)


def attention_flags(attn: Any, peer: Any, steps: dict[str, Any], cross: bool, width: int) -> dict[str, Any]:
    """What differs from the defaults of xflash's attention."""
    flags = {
        **steps,
        "dim_head": width,
        "kv_heads": None if attn.kv_heads == attn.heads else attn.kv_heads,
        "flash": attn.attend.flash or None,
        "dropout": attn.attend.dropout,
        "num_mem_kv": attn.num_mem_kv,
        "gate_values": attn.to_v_gate is not None,
        "head_scale": attn.head_scale,
        "value_residual": peer.add_value_residual,
    }
    if attn.qk_norm:
        flags |= {"qk_norm": True, "qk_norm_groups": attn.qk_norm_groups, "qk_norm_dim_scale": attn.qk_norm_dim_scale}
        if not attn.qk_norm_dim_scale:
            flags["qk_norm_scale"] = attn.qk_norm_scale
    if cross:
        inward, stream = attn.to_k.in_features, attn.to_q.in_features
        # All of them, lest those of the stack's own attention count for it.
        return {**flags, "dim_context": None if inward == stream else inward}
    window = None if attn.max_attend_past is None else attn.max_attend_past + 1
    # Their first attention has no such weights, ours neither: the flag is alike in all.
    mixes = [getattr(m, "to_value_residual_mix", None) for m in peer.modules()]
    learned = not peer.add_value_residual or any(isinstance(mix, nn.Module) for mix in mixes)
    return set_flags({**flags, "window": window, "value_residual_learned": learned}, Attention.Config)


def set_flags(flags: dict[str, Any], config: Any) -> dict[str, Any]:
    """The flags that are not at their default."""
    own = config.__dataclass_fields__
    return {k: v for k, v in flags.items() if k not in own or v != own[k].default}


def read_ff(ff: Any, reader: Reader) -> tuple[dict[str, Any], Weights, tuple[int, ...]]:
    """The flags and weights of a feed-forward block."""
    first, *rest = ff.ff
    glu = kind(first) == "GLU"
    inward, activation = (first.proj, first.act) if glu else (first[0], first[1])
    name = ACTIVATIONS.get(kind(activation))
    if name is None or getattr(activation, "approximate", "none") != "none":
        raise feature("ff_custom_activation", activation)
    norm = rest.pop(0) if kind(rest[0]) == "LayerNorm" else None
    drop, outward, *after = rest
    if any(part.p for part in after):
        raise feature("ff_sublayer_dropout", after[0].p)
    if outward.out_features != inward.in_features:
        raise feature("ff_dim_out", outward.out_features)
    inner = outward.in_features
    flags = {
        "dim": None if inner == 4 * inward.in_features else inner,
        "activation": name,
        "glu": glu,
        "no_bias": inward.bias is None and outward.bias is None,
        "post_act_ln": norm is not None,
        "dropout": drop.p,
    }
    weights = {}
    for key, linear in (("to_inner", inward), ("to_out", outward)):
        weights[f"{key}.weight"] = reader.take(linear.weight)
        if not flags["no_bias"]:
            # Their GLU keeps its bias when ff_no_bias takes that of the other map.
            zeros = linear.weight.new_zeros(linear.out_features)
            weights[f"{key}.bias"] = zeros if linear.bias is None else reader.take(linear.bias)
    if glu and isinstance(first.mult_bias, torch.Tensor):
        plain = weights["to_inner.weight"].new_ones(outward.in_features)
        scale = einx.id("gate, value -> (gate + value)", reader.take(first.mult_bias), plain)
        weights["to_inner.weight"] = einx.multiply("o d, o -> o d", weights["to_inner.weight"], scale)
        weights["to_inner.bias"] = weights["to_inner.bias"] * scale
    if norm is not None:
        weights["norm.gain"] = read_gain(norm, reader)
    return set_flags(flags, FeedForward.Config), weights, ()
