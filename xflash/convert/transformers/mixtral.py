"""Mixtral (https://arxiv.org/abs/2401.04088): Mistral with experts, and what all models with experts share."""

from typing import Any

from .family import Family, Flags, families
from .llama import WEIGHTS, llama
from .settings import Settings

__all__ = ["WHOLE", "experts", "mixtral", "without_ff"]

# Files hold the matrices of each expert, models of transformers those of all in one.
WHOLE = """
    layers.{i}.post_attention_layernorm.weight  moe.before.gain
    layers.{i}.mlp.gate.weight                  moe.block.router.weight
    layers.{i}.mlp.experts.gate_up_proj         moe.block.experts.to_inner[E gate up]
    layers.{i}.mlp.experts.down_proj            moe.block.experts.to_out
"""
OWN = """
    layers.{i}.block_sparse_moe.gate.weight             moe.block.router.weight
    layers.{i}.block_sparse_moe.experts.{e}.w1.weight   moe.block.experts.to_inner[gate]
    layers.{i}.block_sparse_moe.experts.{e}.w2.weight   moe.block.experts.to_out
    layers.{i}.block_sparse_moe.experts.{e}.w3.weight   moe.block.experts.to_inner[up]
"""


def experts(settings: Settings, stack: dict[str, Any], width: int) -> dict[str, Any]:
    """The flags of `moe` blocks that are built like the `ff` ones of a stack."""
    # How the router is trained.
    settings.without_effect("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")
    return {
        "moe_experts": settings.need("num_local_experts", "num_experts"),
        "moe_top_k": settings.need("num_experts_per_tok"),
        "moe_dim": width,
        "moe_activation": stack["ff_activation"],
        "moe_glu": True,
        "moe_no_bias": True,
    }


def without_ff(stack: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stack.items() if not name.startswith("ff_")}


def mixtral(settings: Settings) -> Flags:
    stack, model = llama(settings)
    flags = experts(settings, stack, stack["ff_dim"])
    return Flags(without_ff(stack) | flags | {"layers": "attn moe", "attn_window": settings("sliding_window")}, model)


families["mixtral"] = Family(mixtral, WEIGHTS + WHOLE + OWN)
