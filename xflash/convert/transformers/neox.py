"""GPT-NeoX (Pythia) and Phi: attention and feed-forward in parallel, LayerNorms, rotary positions of some channels."""

from typing import Any

from ...base.shapes import Tensor
from ...layers.projection import group_rows
from .peer import Peer
from .rope import rotary_flags

__all__ = ["read_neox", "read_phi"]

Weights = dict[str, Tensor]
# There: here.
NEOX = {"attention.dense": "attn.to_out", "mlp.dense_h_to_4h": "ff.to_inner", "mlp.dense_4h_to_h": "ff.to_out"}
PHI = {"self_attn.dense": "attn.to_out", "mlp.fc1": "ff.to_inner", "mlp.fc2": "ff.to_out"}


def common(peer: Peer, layout: str, biased: bool) -> dict[str, Any]:
    """The flags of both."""
    dim, heads = peer.said("hidden_size"), peer.said("num_attention_heads")
    return {
        **rotary_flags(peer, dim // heads),
        "layers": layout,
        "depth": peer.said("num_hidden_layers"),
        "dim": dim,
        "heads": heads,
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": peer.said("layer_norm_eps"),
        "attn_dim_head": dim // heads,
        "attn_dropout": peer.said("attention_dropout"),
        "attn_qkv_bias": biased,
        "attn_out_bias": biased,
        "ff_dim": peer.said("intermediate_size"),
        "ff_activation": peer.activation("hidden_act"),
    }


def read_neox(peer: Peer) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """The flags of the stack, the arguments of the model around it, the weights."""
    parallel, biased = peer.said("use_parallel_residual"), peer.said("attention_bias")
    flags = common(peer, "attn+ff(norm=own)" if parallel else "attn ff", biased)
    weights: Weights = {}
    for i in range(flags["depth"]):
        there, here = f"gpt_neox.layers.{i}.", blocks(i, parallel)
        norms = ("before.shared", "before.own.1") if parallel else ("before", "before")
        for j, name in enumerate(("input_layernorm", "post_attention_layernorm")):
            branch = f"attn_layers.branches.{i if parallel else 2 * i + j}."
            weights |= norm(peer, f"{there}{name}", f"{branch}{norms[j]}")
        weights |= moved(peer, there, here, NEOX)
        # By head there too: its query, its key, its value.
        for kind in ("weight", "bias") if biased else ("weight",):
            fused = peer.take(f"{there}attention.query_key_value.{kind}")
            weights[f"{here['attn']}query_key_value.{kind}"] = fused
    weights |= norm(peer, "gpt_neox.final_layer_norm", "attn_layers.final_norm")
    weights["embedding.token_emb.weight"] = peer.take("gpt_neox.embed_in.weight")
    arguments = {"num_tokens": peer.said("vocab_size"), "use_abs_pos_emb": False}
    if peer.said("tie_word_embeddings"):
        return flags, {**arguments, "tie_embedding": True}, weights
    head = "lm_head" if peer.has("lm_head.weight") else "embed_out"
    return flags, arguments, {**weights, "to_logits.weight": peer.take(f"{head}.weight")}


def read_phi(peer: Peer) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """The flags of the stack, the arguments of the model around it, the weights."""
    if peer.said("qk_layernorm"):
        raise peer.refused("qk_layernorm", True)
    flags = common(peer, "attn+ff", True)
    kv_heads = peer.said("num_key_value_heads") or flags["heads"]
    flags["attn_kv_heads"] = None if kv_heads == flags["heads"] else kv_heads
    weights: Weights = {}
    for i in range(flags["depth"]):
        there, here = f"model.layers.{i}.", blocks(i, True)
        weights |= norm(peer, f"{there}input_layernorm", f"attn_layers.branches.{i}.before")
        weights |= moved(peer, there, here, PHI)
        for kind in ("weight", "bias"):
            parts = peer.taken(f"{there}self_attn.{part}_proj.{kind}" for part in "qkv")
            weights[f"{here['attn']}query_key_value.{kind}"] = group_rows(parts, kv_heads)
    weights |= norm(peer, "model.final_layernorm", "attn_layers.final_norm")
    weights["embedding.token_emb.weight"] = peer.take("model.embed_tokens.weight")
    arguments = {"num_tokens": peer.said("vocab_size"), "use_abs_pos_emb": False, "logits_bias": True}
    arguments["emb_dropout"] = peer.said("embd_pdrop")
    if peer.said("tie_word_embeddings"):
        raise peer.refused("tie_word_embeddings", True)
    return (
        flags,
        arguments,
        weights | {f"to_logits.{kind}": peer.take(f"lm_head.{kind}") for kind in ("weight", "bias")},
    )


def blocks(i: int, parallel: bool) -> dict[str, str]:
    """Where the two blocks of the i-th layer are."""
    if parallel:
        return {block: f"attn_layers.branches.{i}.block.blocks.{j}." for j, block in enumerate(("attn", "ff"))}
    return {block: f"attn_layers.branches.{2 * i + j}.block." for j, block in enumerate(("attn", "ff"))}


def moved(peer: Peer, there: str, here: dict[str, str], names: dict[str, str]) -> Weights:
    """Projections that are the same, with their biases."""
    found: Weights = {}
    for name, ours in names.items():
        block, projection = ours.split(".")
        for kind in ("weight", "bias"):
            if kind == "weight" or peer.has(f"{there}{name}.bias"):
                found[f"{here[block]}{projection}.{kind}"] = peer.take(f"{there}{name}.{kind}")
    return found


def norm(peer: Peer, there: str, here: str) -> Weights:
    return {f"{here}.gain": peer.take(f"{there}.weight"), f"{here}.bias": peer.take(f"{there}.bias")}
