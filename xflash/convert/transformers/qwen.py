"""Qwen 2 (https://arxiv.org/abs/2407.10671), with biases, and 3 (2505.09388), with norms of heads, and experts."""

from .family import Family, Flags, families
from .layers import layered, windowed
from .llama import WEIGHTS, llama
from .mixtral import WHOLE, experts, without_ff
from .settings import Settings

__all__ = ["QK_NORMS", "qwen2", "qwen3", "qwen3_moe"]

QK_NORMS = """
    layers.{i}.self_attn.q_norm.weight          attn.block.q_gain
    layers.{i}.self_attn.k_norm.weight          attn.block.k_gain
"""
EXPERTS = """
    layers.{i}.mlp.experts.{e}.gate_proj.weight  moe.block.experts.to_inner[gate]
    layers.{i}.mlp.experts.{e}.down_proj.weight  moe.block.experts.to_out
    layers.{i}.mlp.experts.{e}.up_proj.weight    moe.block.experts.to_inner[up]
"""


def qwen2(settings: Settings) -> Flags:
    flags = llama(settings)
    flags.stack.update(windowed(settings, flags.stack["depth"]), attn_qkv_bias=True)
    return flags


def qwen3(settings: Settings) -> Flags:
    flags = llama(settings)
    flags.stack.update(windowed(settings, flags.stack["depth"]))
    flags.stack.update(attn_qk_rmsnorm="head", attn_qk_rmsnorm_eps=flags.stack["norm_eps"])
    return flags


def qwen3_moe(settings: Settings) -> Flags:
    stack, model = llama(settings)
    stack |= {"attn_qk_rmsnorm": "head", "attn_qk_rmsnorm_eps": stack["norm_eps"]}
    if settings("use_sliding_window", False):
        stack["attn_window"] = settings("sliding_window")
    settings.without_effect("sliding_window", "max_window_layers")
    flags = experts(settings, stack, settings.need("moe_intermediate_size"))
    flags["moe_normalize"] = settings("norm_topk_prob", False)
    dense, step = settings("mlp_only_layers", []), settings("decoder_sparse_step", 1)
    kinds = ["ff" if layer in dense or (layer + 1) % step else "moe" for layer in range(stack["depth"])]
    stack = stack if "ff" in kinds else without_ff(stack)
    return Flags(stack | flags | layered([f"attn {kind}" for kind in kinds]), model)


families["qwen2"] = Family(qwen2, WEIGHTS)
families["qwen3"] = Family(qwen3, WEIGHTS + QK_NORMS)
families["qwen3_moe"] = Family(qwen3_moe, WEIGHTS + QK_NORMS + WHOLE + EXPERTS)
