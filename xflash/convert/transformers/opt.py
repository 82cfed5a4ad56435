"""OPT (https://arxiv.org/abs/2205.01068)."""

from typing import Any

from .family import Family, Flags, families
from .llama import ACTIVATIONS
from .settings import Settings

__all__ = ["opt"]

WEIGHTS = """
    decoder.embed_tokens.weight                     embedding.token_emb.weight
    decoder.embed_positions.weight                  embedding.pos_emb.weight
    decoder.layers.{i}.self_attn_layer_norm.weight  attn.before.gain
    decoder.layers.{i}.self_attn_layer_norm.bias    attn.before.bias
    decoder.layers.{i}.self_attn_layer_norm.weight  attn.final.gain
    decoder.layers.{i}.self_attn_layer_norm.bias    attn.final.bias
    decoder.layers.{i}.self_attn.q_proj.weight      attn.block.query_key_value.weight[q]
    decoder.layers.{i}.self_attn.q_proj.bias        attn.block.query_key_value.bias[q]
    decoder.layers.{i}.self_attn.k_proj.weight      attn.block.query_key_value.weight[k]
    decoder.layers.{i}.self_attn.k_proj.bias        attn.block.query_key_value.bias[k]
    decoder.layers.{i}.self_attn.v_proj.weight      attn.block.query_key_value.weight[v]
    decoder.layers.{i}.self_attn.v_proj.bias        attn.block.query_key_value.bias[v]
    decoder.layers.{i}.self_attn.out_proj.weight    attn.block.to_out.weight
    decoder.layers.{i}.self_attn.out_proj.bias      attn.block.to_out.bias
    decoder.layers.{i}.final_layer_norm.weight      ff.before.gain
    decoder.layers.{i}.final_layer_norm.bias        ff.before.bias
    decoder.layers.{i}.final_layer_norm.weight      ff.final.gain
    decoder.layers.{i}.final_layer_norm.bias        ff.final.bias
    decoder.layers.{i}.fc1.weight                   ff.block.to_inner.weight
    decoder.layers.{i}.fc1.bias                     ff.block.to_inner.bias
    decoder.layers.{i}.fc2.weight                   ff.block.to_out.weight
    decoder.layers.{i}.fc2.bias                     ff.block.to_out.bias
    decoder.final_layer_norm.weight                 attn_layers.final_norm.gain
    decoder.final_layer_norm.bias                   attn_layers.final_norm.bias
    decoder.project_in.weight                       embedding.project_emb.weight
    decoder.project_out.weight                      project_out.weight
    lm_head.weight                                  to_logits.weight
"""


def opt(settings: Settings) -> Flags:
    """Flags of a decoder with learned positions of which two are nobody's, and norms before blocks or behind sums."""
    dim, heads = settings.need("hidden_size"), settings.need("num_attention_heads")
    settings.only("layer_norm_elementwise_affine", True)
    before, has_bias = settings("do_layer_norm_before", True), settings("enable_bias", True)
    stack: dict[str, Any] = {
        "dim": dim,
        "depth": settings.need("num_hidden_layers"),
        "heads": heads,
        "layers": "attn ff",
        "norm": "layernorm",
        "norm_bias": True,
        "norm_place": "pre" if before else "post",
        "final_norm": before and not settings("_remove_final_layer_norm", False),
        "attn_dim_head": dim // heads,
        "attn_qkv_bias": has_bias,
        "attn_out_bias": has_bias,
        "attn_dropout": settings("attention_dropout", 0.0),
        "ff_dim": settings.need("ffn_dim"),
        "ff_activation": settings.among("activation_function", ACTIVATIONS, "relu"),
        "ff_no_bias": not has_bias,
    }
    # In training alone: dropout of updates and of whole layers, and how weights begin.
    settings.without_effect("dropout", "layerdrop", "init_std", "activation_dropout")
    model = {
        "num_tokens": settings.need("vocab_size"),
        "max_seq_len": settings.need("max_position_embeddings"),
        "pos_emb_offset": 2,
        "tie_embedding": settings("tie_word_embeddings", True),
    }
    if (width := settings("word_embed_proj_dim", dim)) != dim:
        model |= {"emb_dim": width, "emb_proj_bias": False, "pos_emb_at_dim": True}
    return Flags(stack, model)


families["opt"] = Family(opt, WEIGHTS, tied={"lm_head.weight": "decoder.embed_tokens.weight"})
