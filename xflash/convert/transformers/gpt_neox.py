"""GPT-NeoX (https://arxiv.org/abs/2204.06745) and Pythia (2304.01373): attention and feed-forward block in parallel."""

from typing import Any

from .family import Family, Flags, families
from .llama import ACTIVATIONS, around
from .rope import rope
from .settings import Settings

__all__ = ["biased", "gpt_neox"]

WEIGHTS = """
    embed_in.weight                                embedding.token_emb.weight
    layers.{i}.input_layernorm.weight              attn.before.gain
    layers.{i}.input_layernorm.weight              attn.before.shared.gain
    layers.{i}.input_layernorm.bias                attn.before.bias
    layers.{i}.input_layernorm.bias                attn.before.shared.bias
    layers.{i}.post_attention_layernorm.weight     ff.before.gain
    layers.{i}.post_attention_layernorm.weight     ff.before.own.1.gain
    layers.{i}.post_attention_layernorm.bias       ff.before.bias
    layers.{i}.post_attention_layernorm.bias       ff.before.own.1.bias
    layers.{i}.attention.query_key_value.weight    attn.block.query_key_value.weight
    layers.{i}.attention.query_key_value.bias      attn.block.query_key_value.bias
    layers.{i}.attention.dense.weight              attn.block.to_out.weight
    layers.{i}.attention.dense.bias                attn.block.to_out.bias
    layers.{i}.mlp.dense_h_to_4h.weight            ff.block.to_inner.weight
    layers.{i}.mlp.dense_h_to_4h.bias              ff.block.to_inner.bias
    layers.{i}.mlp.dense_4h_to_h.weight            ff.block.to_out.weight
    layers.{i}.mlp.dense_4h_to_h.bias              ff.block.to_out.bias
    final_layer_norm.weight                        attn_layers.final_norm.gain
    final_layer_norm.bias                          attn_layers.final_norm.bias
    lm_head.weight                                 to_logits.weight
    embed_out.weight                               to_logits.weight
"""


def biased(settings: Settings, layers: str, activation: str, share: float) -> Flags:
    """Flags of a decoder with LayerNorms and biases everywhere; share: of each head's channels that are turned."""
    dim, heads = settings.need("hidden_size"), settings.need("num_attention_heads")
    stack: dict[str, Any] = {
        "dim": dim,
        "depth": settings.need("num_hidden_layers"),
        "heads": heads,
        "layers": layers,
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": settings("layer_norm_eps", 1e-5),
        "attn_dim_head": dim // heads,
        "attn_qkv_bias": True,
        "attn_out_bias": True,
        "attn_dropout": settings("attention_dropout", 0.0),
        "ff_dim": settings("intermediate_size", 4 * dim),
        "ff_activation": settings.among("hidden_act", ACTIVATIONS, activation),
        **rope(settings, dim // heads, settings("rotary_emb_base", 10000.0), settings("rotary_pct", share)),
    }
    # Of updates, in training alone.
    settings.without_effect("resid_pdrop", "hidden_dropout", "classifier_dropout")
    return Flags(stack, around(settings))


def gpt_neox(settings: Settings) -> Flags:
    parallel = settings("use_parallel_residual", True)
    flags = biased(settings, "attn+ff(norm=own)" if parallel else "attn ff", "gelu", 0.25)
    has_bias = settings("attention_bias", True)
    flags.stack.update(attn_qkv_bias=has_bias, attn_out_bias=has_bias)
    flags.model["emb_dropout"] = settings("hidden_dropout", 0.0)
    return flags


families["gpt_neox"] = Family(gpt_neox, WEIGHTS, prefix="gpt_neox.", tied={"lm_head.weight": "embed_in.weight"})
