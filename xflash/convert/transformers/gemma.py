"""Gemma (https://arxiv.org/abs/2403.08295), Gemma 2 (https://arxiv.org/abs/2408.00118) and 3 (2503.19786)."""

from .family import Family, Flags, families
from .layers import attention, layered, types_of, windowed
from .llama import ACTIVATIONS, WEIGHTS, llama
from .qwen import QK_NORMS
from .rope import two_ropes
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
    if settings.kind != "gemma3_text":
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
    settings.without_effect("sliding_window_size")
    flags = gemma(settings)
    flags.stack.update(windowed(settings, flags.stack["depth"], every=2), norm_place="sandwich")
    bounded(flags, settings, 50.0, 30.0)
    return flags


def gemma3(settings: Settings) -> Flags:
    """Flags of Gemma 2 with norms of queries and keys, and other wavelengths where there is a window."""
    plain = Settings({**settings.config, "rope_parameters": {}})
    plain.taken = settings.taken
    flags = gemma(plain)
    bases = (settings("rope_theta", 1e6), settings("rope_local_base_freq", 1e4))
    wide, own = two_ropes(settings, flags.stack["attn_dim_head"], bases)
    window = {"window": settings("sliding_window"), **own}
    if settings("use_bidirectional_attention", False):
        # EmbeddingGemma, whose windows are as wide, half to each side.
        flags.stack["causal"] = False
        window["window"] = window["window"] // 2 + 1
    every = settings("sliding_window_pattern", settings("_sliding_window_pattern", 6))
    types = types_of(settings, flags.stack["depth"], every)
    flags.stack.update(layered([(attention(**window) if name[0] == "s" else "attn") + " ff" for name in types]), **wide)
    flags.stack.update(norm_place="sandwich", attn_qk_rmsnorm="head", attn_qk_rmsnorm_unit_offset=True)
    flags.stack["attn_qk_rmsnorm_eps"] = flags.stack["norm_eps"]
    # transformers has the setting and does not use it.
    settings.only("attn_logit_softcapping", None)
    bounded(flags, settings, None, None)
    return flags


def bounded(flags: Flags, settings: Settings, scores: float | None, logits: float | None) -> None:
    """Puts in what scores are multiplied by, and the bounds of scores and of logits: these where none are said."""
    flags.stack["attn_score_scale"] = settings("query_pre_attn_scalar", 256) ** -0.5
    if bound := settings.said("attn_logit_softcapping", scores):
        flags.stack.update(attn_scores="softclamp", attn_softclamp_value=bound)
    flags.model["logits_softclamp"] = settings.said("final_logit_softcapping", logits)


families["gemma"] = Family(gemma, WEIGHTS)
families["gemma3_text"] = Family(gemma3, SANDWICH + QK_NORMS)
families["gemma2"] = Family(gemma2, SANDWICH)
