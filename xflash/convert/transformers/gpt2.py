"""GPT-2: learned positions, LayerNorms, biases everywhere; its weights lie as (in, out)."""

from typing import Any

from ...base.shapes import Tensor
from ...layers.projection import group_rows
from .peer import Peer

__all__ = ["read_gpt2"]

Weights = dict[str, Tensor]


def read_gpt2(peer: Peer) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """The flags of the stack, the arguments of the model around it, the weights."""
    dim, heads, depth = peer.said("n_embd"), peer.said("n_head"), peer.said("n_layer")
    if peer.said("add_cross_attention"):
        raise peer.refused("add_cross_attention", True)
    flags = {
        **layers(peer, depth, dim // heads),
        "dim": dim,
        "heads": heads,
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": peer.said("layer_norm_epsilon"),
        "attn_dim_head": dim // heads,
        "attn_qkv_bias": True,
        "attn_out_bias": True,
        "attn_dropout": peer.said("attn_pdrop"),
        "ff_dim": peer.said("n_inner") or 4 * dim,
        "ff_activation": peer.activation("activation_function"),
    }
    weights: Weights = {}
    for i in range(depth):
        attn, ff = (f"attn_layers.branches.{2 * i + j}." for j in (0, 1))
        for there, here in ((f"transformer.h.{i}.ln_1.", attn), (f"transformer.h.{i}.ln_2.", ff)):
            weights |= norm(peer, there, f"{here}before.")
        for kind in ("weight", "bias"):
            fused = rows(peer.take(f"transformer.h.{i}.attn.c_attn.{kind}")).chunk(3)
            weights[f"{attn}block.query_key_value.{kind}"] = group_rows(fused, heads)
            for there, here in (
                ("attn.c_proj", f"{attn}block.to_out"),
                ("mlp.c_fc", f"{ff}block.to_inner"),
                ("mlp.c_proj", f"{ff}block.to_out"),
            ):
                weights[f"{here}.{kind}"] = rows(peer.take(f"transformer.h.{i}.{there}.{kind}"))
    weights |= norm(peer, "transformer.ln_f.", "attn_layers.final_norm.")
    weights["embedding.token_emb.weight"] = peer.take("transformer.wte.weight")
    weights["embedding.pos_emb.weight"] = peer.take("transformer.wpe.weight")
    arguments = {"num_tokens": peer.said("vocab_size"), "max_seq_len": peer.said("n_positions")}
    arguments["emb_dropout"] = peer.said("embd_pdrop")
    if peer.said("tie_word_embeddings"):
        return flags, {**arguments, "tie_embedding": True}, weights
    return flags, arguments, {**weights, "to_logits.weight": peer.take("lm_head.weight")}


def layers(peer: Peer, depth: int, width: int) -> dict[str, Any]:
    """The layout and how often it is repeated, with what scores are multiplied by where each layer has its own."""
    plain = width**-0.5 if peer.said("scale_attn_weights") else 1.0
    if not peer.said("scale_attn_by_inverse_layer_idx"):
        return {"layers": "attn ff", "depth": depth, "attn_score_scale": plain}
    scaled = [f"attn(score_scale={plain / (i + 1)!r}) ff" for i in range(depth)]
    return {"layers": " ".join(scaled), "depth": 1}


def rows(t: Tensor) -> Tensor:
    """A weight (in, out), or a bias, with a row for each channel that comes out."""
    return t.mT if t.dim() == 2 else t


def norm(peer: Peer, there: str, here: str) -> Weights:
    return {f"{here}gain": peer.take(f"{there}weight"), f"{here}bias": peer.take(f"{there}bias")}
