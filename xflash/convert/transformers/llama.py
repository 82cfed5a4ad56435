"""LLaMA and its kin: rotary positions, RMS norms, gated feed-forward blocks."""

from typing import Any

import torch

from ...base.shapes import Tensor
from ...layers.projection import group_rows
from .peer import Peer
from .rope import rotary_flags

__all__ = ["read_llama"]

Weights = dict[str, Tensor]
# The norms around a block: in front of it, or (OLMo 2) behind it.
BEFORE = ("input_layernorm", "post_attention_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
# What queries and keys are normed by, by the class of the model.
QK_NORMS = {"Qwen3ForCausalLM": "head", "Olmo2ForCausalLM": "width"}


def read_llama(peer: Peer) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """The flags of the stack, the arguments of the model around it, the weights."""
    dim, heads, depth = peer.said("hidden_size"), peer.said("num_attention_heads"), peer.said("num_hidden_layers")
    width = peer.said("head_dim") or dim // heads
    kv_heads = peer.said("num_key_value_heads") or heads
    after = not peer.has("model.layers.0.input_layernorm.weight")
    attn, ff = "model.layers.0.self_attn", "model.layers.0.mlp"
    unfuse(peer, depth, (heads * width, kv_heads * width, kv_heads * width))
    flags = {
        **layers(peer, depth),
        **rotary_flags(peer, width),
        "dim": dim,
        "heads": heads,
        "norm": "rmsnorm",
        "norm_eps": peer.said("rms_norm_eps"),
        "attn_dim_head": width,
        "attn_kv_heads": None if kv_heads == heads else kv_heads,
        "attn_qkv_bias": peer.has(f"{attn}.q_proj.bias"),
        "attn_out_bias": peer.has(f"{attn}.o_proj.bias"),
        "attn_dropout": peer.said("attention_dropout"),
        "ff_glu": True,
        "ff_dim": peer.said("intermediate_size"),
        "ff_activation": peer.activation("hidden_act"),
        "ff_no_bias": not peer.has(f"{ff}.up_proj.bias"),
    }
    peer.asked |= {"attention_bias", "mlp_bias"}
    if peer.name in QK_NORMS:
        flags |= {"attn_qk_rmsnorm": QK_NORMS[peer.name], "attn_qk_rmsnorm_eps": flags["norm_eps"]}
    if after:
        flags["norm_place"] = "after"
    weights: Weights = {}
    for i in range(depth):
        for j, norm in enumerate(AFTER if after else BEFORE):
            name = f"attn_layers.branches.{2 * i + j}.{'after' if after else 'before'}.gain"
            weights[name] = peer.take(f"model.layers.{i}.{norm}.weight")
        weights |= attention(peer, f"model.layers.{i}.self_attn.", f"attn_layers.branches.{2 * i}.block.", kv_heads)
        weights |= feed_forward(peer, f"model.layers.{i}.mlp.", f"attn_layers.branches.{2 * i + 1}.block.")
    weights["attn_layers.final_norm.gain"] = peer.take("model.norm.weight")
    weights["embedding.token_emb.weight"] = peer.take("model.embed_tokens.weight")
    arguments = {"num_tokens": peer.said("vocab_size"), "use_abs_pos_emb": False}
    arguments |= {"emb_dropout": peer.said("embd_pdrop", 0.0)}
    if peer.said("tie_word_embeddings"):
        return flags, {**arguments, "tie_embedding": True}, weights
    return flags, arguments, {**weights, "to_logits.weight": peer.take("lm_head.weight")}


def unfuse(peer: Peer, depth: int, widths: tuple[int, ...]) -> None:
    """Parts of what is one projection in Phi-3 get the names that they have elsewhere."""
    for i in range(depth):
        attn, ff = (f"model.layers.{i}.{block}" for block in ("self_attn", "mlp"))
        peer.split(f"{attn}.qkv_proj.weight", [f"{attn}.{part}_proj.weight" for part in "qkv"], widths)
        half = peer.said("intermediate_size")
        peer.split(f"{ff}.gate_up_proj.weight", [f"{ff}.{p}_proj.weight" for p in ("gate", "up")], (half, half))


def layers(peer: Peer, depth: int) -> dict[str, Any]:
    """The layout and how often it is repeated: each layer's window, and whether it has positions."""
    window, kinds = peer.said("sliding_window"), peer.said("layer_types")
    peer.asked |= {"use_sliding_window", "no_rope_layer_interval"}
    if not kinds:
        kinds = ["sliding_attention" if window else "full_attention"] * depth
    turned = peer.said("no_rope_layers") or [1] * depth
    said = []
    for kind, turns in zip(kinds, turned, strict=True):
        if kind not in ("full_attention", "sliding_attention"):
            raise peer.refused("layer_types", kind)
        own = [f"window={window}"] if kind == "sliding_attention" else []
        own += [] if turns else ["pos=none"]
        said.append(f"attn({', '.join(own)}) ff" if own else "attn ff")
    if len(set(said)) == 1:
        return {"layers": said[0], "depth": depth}
    return {"layers": " ".join(said), "depth": 1}


def attention(peer: Peer, there: str, here: str, kv_heads: int) -> Weights:
    """The weights of attention: the rows of each key/value head together, its queries, its key, its value."""
    found = {f"{here}to_out.weight": peer.take(f"{there}o_proj.weight")}
    if peer.has(f"{there}o_proj.bias"):
        found[f"{here}to_out.bias"] = peer.take(f"{there}o_proj.bias")
    for kind in ("weight", "bias"):
        if kind == "weight" or peer.has(f"{there}q_proj.{kind}"):
            parts = peer.taken(f"{there}{part}_proj.{kind}" for part in "qkv")
            found[f"{here}query_key_value.{kind}"] = group_rows(parts, kv_heads)
    for part in "qk":
        if peer.has(f"{there}{part}_norm.weight"):
            found[f"{here}{part}_gain"] = peer.take(f"{there}{part}_norm.weight")
    return found


def feed_forward(peer: Peer, there: str, here: str) -> Weights:
    """The weights of a gated feed-forward block: what is gated, then the gate."""
    found: Weights = {}
    for kind in ("weight", "bias"):
        if kind == "weight" or peer.has(f"{there}up_proj.{kind}"):
            found[f"{here}to_inner.{kind}"] = torch.cat(peer.taken(f"{there}{p}_proj.{kind}" for p in ("up", "gate")))
            found[f"{here}to_out.{kind}"] = peer.take(f"{there}down_proj.{kind}")
    return found
