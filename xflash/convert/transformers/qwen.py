"""Qwen 2 (https://arxiv.org/abs/2407.10671), with biases, and 3 (2505.09388), with norms of heads."""

from .family import Family, Flags, families
from .layers import windowed
from .llama import WEIGHTS, llama
from .settings import Settings

__all__ = ["QK_NORMS", "qwen2", "qwen3"]

QK_NORMS = """
    layers.{i}.self_attn.q_norm.weight          attn.block.q_gain
    layers.{i}.self_attn.k_norm.weight          attn.block.k_gain
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


families["qwen2"] = Family(qwen2, WEIGHTS)
families["qwen3"] = Family(qwen3, WEIGHTS + QK_NORMS)
