"""Phi-1.5 and 2 (https://arxiv.org/abs/2309.05463): attention and feed-forward block in parallel, on one norm."""

from .family import Family, Flags, families
from .gpt_neox import biased
from .llama import QKV
from .settings import Settings

__all__ = ["phi"]

WEIGHTS = (
    QKV
    + """
    embed_tokens.weight                  embedding.token_emb.weight
    layers.{i}.input_layernorm.weight    attn.before.gain
    layers.{i}.input_layernorm.bias      attn.before.bias
    layers.{i}.self_attn.dense.weight    attn.block.to_out.weight
    layers.{i}.self_attn.dense.bias      attn.block.to_out.bias
    layers.{i}.mlp.fc1.weight            ff.block.to_inner.weight
    layers.{i}.mlp.fc1.bias              ff.block.to_inner.bias
    layers.{i}.mlp.fc2.weight            ff.block.to_out.weight
    layers.{i}.mlp.fc2.bias              ff.block.to_out.bias
    final_layernorm.weight               attn_layers.final_norm.gain
    final_layernorm.bias                 attn_layers.final_norm.bias
    lm_head.weight                       to_logits.weight
    lm_head.bias                         to_logits.bias
"""
)


def phi(settings: Settings) -> Flags:
    flags = biased(settings, "attn+ff", "gelu_new", 0.5)
    settings.only("qk_layernorm", False)
    flags.stack["attn_kv_heads"] = settings("num_key_value_heads", flags.stack["heads"])
    flags.model.update(emb_dropout=settings("embd_pdrop", 0.0), logits_bias=True)
    return flags


HEADS = {"ForCausalLM": {}, "Model": {"return_only_embed": True, "tie_embedding": False, "logits_bias": False}}
families["phi"] = Family(phi, WEIGHTS, heads=HEADS)
