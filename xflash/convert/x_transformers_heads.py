"""What x-transformers' heads are made of, and what becomes of what they read, as xflash's weights."""

from typing import Any

import einx
import torch
from torch import nn

from ..base.shapes import Tensor
from .x_transformers_parts import Reader

__all__ = ["latent_flags", "read_outward", "read_projections"]

Weights = dict[str, Tensor]


def read_projections(attn: Any, cross: bool, groups: dict[str, Any], reader: Reader) -> Weights:
    """The weights of queries, keys and values; groups: `g` key heads, `r` queries to each."""
    q, k, v = (reader.take(linear.weight) for linear in (attn.to_q, attn.to_k, attn.to_v))
    ours = einx.id("(r g k) d -> (g r k) d", q, **groups)
    if attn.use_latent_kv:
        latent = {"to_q": ours, "to_latent_kv": reader.take(attn.to_latent_kv.weight), "to_k": k, "to_v": v}
        if attn.to_rotateable_k is not None:
            latent["to_turned_k"] = reader.take(attn.to_rotateable_k.weight)
    elif cross or attn.use_latent_q:
        kept = einx.id("(g k) d, (g e) d -> (g (k + e)) d", k, v, **groups)
        latent = {"to_q": ours, "key_value": kept}
    else:
        fused = "(g r k) d, (g k) d, (g e) d -> (g ((r k) + k + e)) d"
        latent = {"query_key_value": einx.id(fused, ours, k, v, **groups)}
    if attn.use_latent_q:
        latent["to_latent_q"] = reader.take(attn.to_latent_q.weight)
    return {f"{name}.weight": t for name, t in latent.items()}


def latent_flags(attn: Any, width: int) -> dict[str, Any]:
    """What queries, keys and values are made of; width: of a head."""
    flags: dict[str, Any] = {}
    if attn.use_latent_q:
        flags["dim_latent_q"] = attn.to_latent_q.out_features
    if attn.use_latent_kv:
        flags["dim_latent_kv"] = attn.to_latent_kv.out_features
    if attn.to_rotateable_k is not None:
        flags["latent_rope_subheads"] = attn.to_rotateable_k.out_features // width
    return flags


def read_outward(attn: Any, peer: Any, groups: dict[str, Any], reader: Reader) -> Weights:
    """The weights of what becomes of the heads' outputs; groups: `g` key heads, `r` queries to each."""
    glu = isinstance(attn.to_out, nn.Sequential)
    outward = attn.to_out[0] if glu else attn.to_out
    if isinstance(outward, nn.Linear):
        out = reader.take(outward.weight)
    else:
        out = torch.eye(peer.dim, dtype=attn.to_q.weight.dtype, device=attn.to_q.weight.device)
    projected = out.chunk(2) if glu else (out,)
    names = ("to_out.weight", "to_out_gate.weight")
    weights = {n: einx.id("d (r g e) -> d (g r e)", t, **groups) for n, t in zip(names, projected, strict=False)}
    if attn.to_v_gate is not None:
        weights["to_gate.weight"] = einx.id("(r g e) d -> (g r e) d", reader.take(attn.to_v_gate.weight), **groups)
    if (gate := attn.to_v_head_gate) is not None:
        weights["to_head_gate.weight"] = einx.id("(r g) d -> (g r) d", reader.take(gate.weight), **groups)
        weights["to_head_gate.bias"] = einx.id("(r g) -> (g r)", reader.take(gate.bias), **groups)
    if attn.head_scale:
        weights["head_gain"] = einx.id("1 (r g) n k -> (g r) n k", reader.take(attn.head_scale_params), **groups)
    return weights
