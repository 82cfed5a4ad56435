"""Phi-3 (https://arxiv.org/abs/2404.14219): LLaMA's layers with projections in one."""

from .family import Family, Flags, families
from .llama import WEIGHTS, llama
from .settings import Settings

__all__ = ["phi3"]

FUSED = """
    layers.{i}.self_attn.qkv_proj.weight        attn.block.query_key_value.weight[q k v]
    layers.{i}.mlp.gate_up_proj.weight          ff.block.to_inner.weight[gate up]
"""
SPLIT = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")


def phi3(settings: Settings) -> Flags:
    flags = llama(settings, share=1.0)
    flags.stack["attn_window"] = settings("sliding_window")
    flags.model["emb_dropout"] = settings("embd_pdrop", 0.0)
    # Phi-4-mini says that it does nothing of the kind.
    settings.only("full_attn_mod", 1)
    settings.only("interpolate_factor", 1)
    # Of the updates, in training alone.
    settings.without_effect("resid_pdrop", "original_max_position_embeddings")
    return flags


families["phi3"] = Family(
    phi3, "\n".join(line for line in WEIGHTS.split("\n") if not any(f".{name}." in line for name in SPLIT)) + FUSED
)
