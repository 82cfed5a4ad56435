"""GPT-2 (https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)."""

from typing import Any

from .family import NO_HEAD, Family, Flags, families
from .layers import layered
from .llama import ACTIVATIONS
from .settings import Settings

__all__ = ["gpt2"]

WEIGHTS = """
    wte.weight                    embedding.token_emb.weight
    wpe.weight                    embedding.pos_emb.weight
    h.{i}.ln_1.weight             attn.before.gain
    h.{i}.ln_1.bias               attn.before.bias
    h.{i}.attn.c_attn.weight      attn.block.query_key_value.weight[T q k v]
    h.{i}.attn.c_attn.bias        attn.block.query_key_value.bias[q k v]
    h.{i}.attn.c_proj.weight      attn.block.to_out.weight[T]
    h.{i}.attn.c_proj.bias        attn.block.to_out.bias
    h.{i}.ln_2.weight             ff.before.gain
    h.{i}.ln_2.bias               ff.before.bias
    h.{i}.mlp.c_fc.weight         ff.block.to_inner.weight[T]
    h.{i}.mlp.c_fc.bias           ff.block.to_inner.bias
    h.{i}.mlp.c_proj.weight       ff.block.to_out.weight[T]
    h.{i}.mlp.c_proj.bias         ff.block.to_out.bias
    ln_f.weight                   attn_layers.final_norm.gain
    ln_f.bias                     attn_layers.final_norm.bias
    lm_head.weight                to_logits.weight
"""


def gpt2(settings: Settings) -> Flags:
    """Flags of a decoder with learned positions, LayerNorms and biases everywhere."""
    dim, heads = settings.need("n_embd", "hidden_size"), settings.need("n_head", "num_attention_heads")
    stack: dict[str, Any] = {
        "dim": dim,
        "heads": heads,
        **layered(scaled(settings, dim // heads)),
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": settings("layer_norm_epsilon", 1e-5),
        "attn_dim_head": dim // heads,
        "attn_qkv_bias": True,
        "attn_out_bias": True,
        "attn_dropout": settings("attn_pdrop", 0.1),
        "ff_dim": settings("n_inner", 4 * dim),
        "ff_activation": settings.among("activation_function", ACTIVATIONS, "gelu_new"),
    }
    # Of the updates, in training alone; the heads of other tasks; how half precision is kept finite.
    settings.without_effect("resid_pdrop", "reorder_and_upcast_attn")
    settings.without_effect(*(f"summary_{name}" for name in SUMMARY), "n_ctx")
    model = {
        "num_tokens": settings.need("vocab_size"),
        "max_seq_len": settings.need("n_positions", "max_position_embeddings"),
        "emb_dropout": settings("embd_pdrop", 0.1),
        "tie_embedding": settings("tie_word_embeddings", True),
    }
    return Flags(stack, model)


SUMMARY = ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")


def scaled(settings: Settings, width: int) -> list[str]:
    """The layers, each with what its scores are multiplied by where that is not as everywhere."""
    scale = width**-0.5 if settings("scale_attn_weights", True) else 1.0
    depth = settings.need("n_layer", "num_hidden_layers")
    divided = settings("scale_attn_by_inverse_layer_idx", False)
    scales = [scale / (layer + 1) if divided else scale for layer in range(depth)]
    return ["attn ff" if each == width**-0.5 else f"attn(score_scale={each!r}) ff" for each in scales]


families["gpt2"] = Family(
    gpt2,
    WEIGHTS,
    heads={"LMHeadModel": {}, "Model": NO_HEAD},
    prefix="transformer.",
    tied={"lm_head.weight": "wte.weight"},
)
