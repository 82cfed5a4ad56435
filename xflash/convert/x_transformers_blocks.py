"""The blocks of x-transformers as xflash's flags and weights."""

from typing import Any

import einx
import torch
import torch.nn.functional as F
from torch import nn

from ..base.shapes import Tensor
from ..layers.blocks.attention import Attention
from .x_transformers_heads import latent_flags, read_outward, read_projections
from .x_transformers_parts import Reader, feature, set_flags
from .x_transformers_residual import TINY
from .x_transformers_scores import read_scores

__all__ = ["read_attention"]

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
    check_attention(attn, peer, cross)
    groups: dict[str, Any] = {"g": kv_heads, "r": heads // kv_heads}
    weights = read_outward(attn, peer, groups, reader) | read_projections(attn, cross, groups, reader)
    if attn.num_mem_kv:
        weights["mem_kv"] = einx.id("g t k, g t k -> (1 + 1) g t k", reader.take(attn.mem_k), reader.take(attn.mem_v))
    if isinstance(mix := attn.to_value_residual_mix, nn.Module):
        weights |= {f"to_mix.{name}": reader.take(t) for name, t in mix[0].named_parameters()}
    if attn.value_rmsnorm is not None:
        weights["v_gain"] = reader.take(attn.value_rmsnorm.gamma) + 1
    if attn.qk_norm and attn.qk_norm_dim_scale:
        weights["q_gain"] = einx.id("(r g) n k -> (g r) n k", reader.take(attn.qk_norm_q_scale), **groups)
        weights["k_gain"] = reader.take(attn.qk_norm_k_scale)
    order = head_order(heads, kv_heads)
    steps, more = read_scores(attn, peer, cross, torch.tensor(order, device=attn.to_q.weight.device), reader)
    return attention_flags(attn, peer, steps, cross, width), weights | more, order


def check_attention(attn: Any, peer: Any, cross: bool) -> None:
    """ValueError for settings of an attention block that only their values tell from what xflash has."""
    if cross and (attn.use_latent_q or attn.use_latent_kv):
        raise feature("attn_use_latent_q, attn_use_latent_kv", "in cross attention")
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
        "gate_values_headwise": attn.to_v_gate is not None and attn.gate_values_headwise,
        "gate_value_heads": attn.to_v_head_gate is not None,
        "sublayer_dropout": 0.0 if attn.sublayer_dropout is None else attn.sublayer_dropout.p,
        "on_attn": isinstance(attn.to_out, nn.Sequential),
        "value_dim_head": None if (values := attn.to_v.out_features // attn.kv_heads) == width else values,
        "value_rmsnorm": attn.value_rmsnorm is not None,
        "head_scale": attn.head_scale,
        "value_residual": peer.add_value_residual,
    }
    if attn.value_rmsnorm is not None:
        flags["value_rmsnorm_eps"] = TINY
    if attn.qk_norm:
        flags |= {"qk_norm": True, "qk_norm_groups": attn.qk_norm_groups, "qk_norm_dim_scale": attn.qk_norm_dim_scale}
        if not attn.qk_norm_dim_scale:
            flags["qk_norm_scale"] = attn.qk_norm_scale
    if cross:
        inward, stream = attn.to_k.in_features, attn.to_q.in_features
        # All of them, lest those of the stack's own attention count for it.
        return {**flags, "dim_context": None if inward == stream else inward}
    flags |= latent_flags(attn, width)
    window = None if attn.max_attend_past is None else attn.max_attend_past + 1
    # Their first attention has no such weights, ours neither: the flag is alike in all.
    mixes = [getattr(m, "to_value_residual_mix", None) for m in peer.modules()]
    learned = not peer.add_value_residual or any(isinstance(mix, nn.Module) for mix in mixes)
    return set_flags({**flags, "window": window, "value_residual_learned": learned}, Attention.Config)
