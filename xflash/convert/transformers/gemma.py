"""Gemma (https://arxiv.org/abs/2403.08295) and Gemma 2 (https://arxiv.org/abs/2408.00118)."""

from .family import Family, Flags, families
from .layers import windowed
from .llama import ACTIVATIONS, WEIGHTS, llama
from .settings import Settings

__all__ = ["gemma", "gemma2"]

TANH = "gelu_pytorch_tanh"
SANDWICH = WEIGHTS.replace("post_attention_layernorm.weight  ff.before", "pre_feedforward_layernorm.weight  ff.before")
SANDWICH += """
    layers.{i}.post_attention_layernorm.weight    attn.after.gain
    layers.{i}.post_feedforward_layernorm.weight  ff.after.gain
"""


def gemma(settings: Settings) -> Flags:
    """Flags of a decoder whose gains are 1 + what is learned, and whose embeddings are scaled."""
    flags = llama(settings)
    settings.only("use_bidirectional_attention", False)
    flags.stack.update({"norm_unit_offset": True, "ff_activation": activation(settings)})
    flags.model["emb_scale"] = flags.stack["dim"] ** 0.5
    flags.model["tie_embedding"] = settings("tie_word_embeddings", True)
    return flags


def activation(settings: Settings) -> str:
    """Gemma 1 says `hidden_act`, and in old files meant what it did not say; Gemma 2 says another name."""
    if settings.kind == "gemma":
        settings.without_effect("hidden_activation")
        found = settings("hidden_act", TANH)
        return ACTIVATIONS[TANH if found == "gelu" else found]
    settings.without_effect("hidden_act")
    return settings.among("hidden_activation", ACTIVATIONS, TANH)


def gemma2(settings: Settings) -> Flags:
    """Flags of Gemma with norms before and behind each block, bounded scores and logits, and windows in turn."""
    flags = gemma(settings)
    flags.stack.update(windowed(settings, flags.stack["depth"], every=2), norm_place="sandwich")
    bounded(flags, settings, 50.0, 30.0)
    return flags


def bounded(flags: Flags, settings: Settings, scores: float | None, logits: float | None) -> None:
    """Puts in what scores are multiplied by, and the bounds of scores and of logits: these where none are said."""
    flags.stack["attn_score_scale"] = settings("query_pre_attn_scalar", 256) ** -0.5
    if bound := settings.said("attn_logit_softcapping", scores):
        flags.stack.update(attn_scores="softclamp", attn_softclamp_value=bound)
    flags.model["logits_softclamp"] = settings.said("final_logit_softcapping", logits)


families["gemma"] = Family(gemma, WEIGHTS)
families["gemma2"] = Family(gemma2, SANDWICH)
