"""LLaMA (https://arxiv.org/abs/2302.13971), and what is built like it."""

from typing import Any

from .family import Family, Flags, families
from .rope import rope
from .settings import Settings

__all__ = ["ACTIVATIONS", "QKV", "WEIGHTS", "llama"]

ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "mish": "mish"}
ACTIVATIONS |= {"relu2": "relu2", "quick_gelu": "quick_gelu", "tanh": "tanh", "linear": "identity"}
ACTIVATIONS |= dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh")

# Queries, keys and values, each in projections of their own.
QKV = """
    layers.{i}.self_attn.q_proj.weight          attn.block.query_key_value.weight[q]
    layers.{i}.self_attn.q_proj.bias            attn.block.query_key_value.bias[q]
    layers.{i}.self_attn.k_proj.weight          attn.block.query_key_value.weight[k]
    layers.{i}.self_attn.k_proj.bias            attn.block.query_key_value.bias[k]
    layers.{i}.self_attn.v_proj.weight          attn.block.query_key_value.weight[v]
    layers.{i}.self_attn.v_proj.bias            attn.block.query_key_value.bias[v]
"""
WEIGHTS = (
    QKV
    + """
    embed_tokens.weight                         embedding.token_emb.weight
    layers.{i}.input_layernorm.weight           attn.before.gain
    layers.{i}.self_attn.o_proj.weight          attn.block.to_out.weight
    layers.{i}.self_attn.o_proj.bias            attn.block.to_out.bias
    layers.{i}.post_attention_layernorm.weight  ff.before.gain
    layers.{i}.mlp.up_proj.weight               ff.block.to_inner.weight[up]
    layers.{i}.mlp.up_proj.bias                 ff.block.to_inner.bias[up]
    layers.{i}.mlp.gate_proj.weight             ff.block.to_inner.weight[gate]
    layers.{i}.mlp.gate_proj.bias               ff.block.to_inner.bias[gate]
    layers.{i}.mlp.down_proj.weight             ff.block.to_out.weight
    layers.{i}.mlp.down_proj.bias               ff.block.to_out.bias
    norm.weight                                 attn_layers.final_norm.gain
    lm_head.weight                              to_logits.weight
"""
)


def llama(settings: Settings, share: float | None = None) -> Flags:
    """Flags of a decoder with RMS norms, rotary positions and a gated feed-forward block; share: see `rope`."""
    dim, heads = settings.need("hidden_size"), settings.need("num_attention_heads")
    dim_head = settings("head_dim", dim // heads)
    biased = settings("attention_bias", False)
    # Of the first ones.
    settings.without_effect("max_sequence_length")
    stack: dict[str, Any] = {
        "dim": dim,
        "depth": settings.need("num_hidden_layers"),
        "heads": heads,
        "layers": "attn ff",
        "norm": "rmsnorm",
        "norm_eps": settings.need("rms_norm_eps"),
        "attn_dim_head": dim_head,
        "attn_kv_heads": settings("num_key_value_heads", heads),
        "attn_qkv_bias": biased,
        "attn_out_bias": biased,
        "attn_dropout": settings("attention_dropout", 0.0),
        "ff_dim": settings.need("intermediate_size"),
        "ff_activation": settings.among("hidden_act", ACTIVATIONS, "silu"),
        "ff_glu": True,
        "ff_no_bias": not settings("mlp_bias", False),
        **rope(settings, dim_head, share=share),
    }
    return Flags(stack, around(settings))


def around(settings: Settings) -> dict[str, Any]:
    """What stands around the stack of a language model without absolute positions."""
    return {
        "num_tokens": settings.need("vocab_size"),
        "max_seq_len": settings("max_position_embeddings"),
        "use_abs_pos_emb": False,
        "tie_embedding": settings("tie_word_embeddings", False),
    }


families["llama"] = Family(llama, WEIGHTS)
