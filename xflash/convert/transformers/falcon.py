"""Falcon (https://arxiv.org/abs/2311.16867)."""

from typing import Any

from .family import Family, Flags, families
from .llama import ACTIVATIONS, around
from .rope import rope
from .settings import Settings

__all__ = ["falcon"]

WEIGHTS = """
    word_embeddings.weight                   embedding.token_emb.weight
    h.{i}.input_layernorm.weight             attn.before.gain
    h.{i}.input_layernorm.bias               attn.before.bias
    h.{i}.ln_attn.weight                     attn.before.shared.gain
    h.{i}.ln_attn.bias                       attn.before.shared.bias
    h.{i}.ln_mlp.weight                      ff.before.own.1.gain
    h.{i}.ln_mlp.bias                        ff.before.own.1.bias
    h.{i}.self_attention.query_key_value.weight  attn.block.query_key_value.weight
    h.{i}.self_attention.query_key_value.bias    attn.block.query_key_value.bias
    h.{i}.self_attention.dense.weight        attn.block.to_out.weight
    h.{i}.self_attention.dense.bias          attn.block.to_out.bias
    h.{i}.mlp.dense_h_to_4h.weight           ff.block.to_inner.weight
    h.{i}.mlp.dense_h_to_4h.bias             ff.block.to_inner.bias
    h.{i}.mlp.dense_4h_to_h.weight           ff.block.to_out.weight
    h.{i}.mlp.dense_4h_to_h.bias             ff.block.to_out.bias
    ln_f.weight                              attn_layers.final_norm.gain
    ln_f.bias                                attn_layers.final_norm.bias
    lm_head.weight                           to_logits.weight
"""
# Blocks that stand one below the other have a norm each.
BELOW = (
    WEIGHTS
    + """
    h.{i}.post_attention_layernorm.weight    ff.before.gain
    h.{i}.post_attention_layernorm.bias      ff.before.bias
"""
)


def falcon(settings: Settings) -> Flags:
    """Flags of a decoder with attention and feed-forward block in parallel, and few keys and values."""
    dim, heads = settings.need("hidden_size", "n_embed"), settings.need("num_attention_heads", "n_head")
    has_bias = settings("bias", False)
    stack: dict[str, Any] = {
        "dim": dim,
        "depth": settings.need("num_hidden_layers", "n_layer"),
        "heads": heads,
        "layers": layout(settings),
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": settings("layer_norm_epsilon", 1e-5),
        "attn_dim_head": dim // heads,
        "attn_kv_heads": shared_heads(settings, heads),
        "attn_qkv_bias": has_bias,
        "attn_out_bias": has_bias,
        "attn_dropout": settings("attention_dropout", 0.0),
        "ff_dim": settings("ffn_hidden_size", 4 * dim),
        "ff_activation": settings.among("activation", ACTIVATIONS, "gelu"),
        "ff_no_bias": not has_bias,
        **positions(settings, dim // heads),
    }
    # Of updates, in training alone; what is said as a width too.
    settings.without_effect("hidden_dropout", "ff_factor")
    model = around(settings)
    model["tie_embedding"] = settings("tie_word_embeddings", True)
    return Flags(stack, model)


def positions(settings: Settings, width: int) -> dict[str, Any]:
    """The flags of rotary positions, or of biases by distance, which are divided by the root of a head's width."""
    if not settings("alibi", False):
        return rope(settings, width)
    settings.without_effect("rope_parameters", "rope_scaling", "rope_theta")
    return {"pos": "alibi", "alibi_slope_scale": width**-0.5}


def layout(settings: Settings) -> str:
    new, parallel = settings("new_decoder_architecture", False), settings("parallel_attn", True)
    norms = settings("num_ln_in_parallel_attn", 2 if new else 1)
    if not parallel:
        if new:
            raise settings.error("parallel_attn", False, "only new_decoder_architecture=False has")
        return "attn ff"
    return "attn+ff(norm=own)" if norms == 2 else "attn+ff"


def shared_heads(settings: Settings, heads: int) -> int:
    """How many heads of keys and values there are."""
    said, many = settings("num_kv_heads", settings("n_head_kv", heads)), settings("multi_query", True)
    if settings("new_decoder_architecture", False):
        return said
    if not many and said != heads:
        raise settings.error("num_kv_heads", said, "only new_decoder_architecture=True has others than heads")
    return 1 if many else heads


families["falcon"] = Family(falcon, BELOW, prefix="transformer.", tied={"lm_head.weight": "word_embeddings.weight"})
