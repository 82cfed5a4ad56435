"""Decoders with experts: Mixtral (https://arxiv.org/abs/2401.04088), Qwen 3 MoE (2505.09388), gpt-oss (2508.10925)."""

from typing import Any

from .family import Family, Flags, families
from .layers import attention, layered, types_of
from .llama import WEIGHTS, llama
from .qwen import QK_NORMS
from .settings import Settings

__all__ = ["gpt_oss", "mixtral", "qwen3_moe"]

# Files hold the matrices of each expert, models of transformers those of all in one.
WHOLE = """
    layers.{i}.post_attention_layernorm.weight  moe.before.gain
    layers.{i}.mlp.gate.weight                  moe.block.router.weight
    layers.{i}.mlp.experts.gate_up_proj         moe.block.experts.to_inner[E gate up]
    layers.{i}.mlp.experts.down_proj            moe.block.experts.to_out
"""
MIXTRAL = """
    layers.{i}.block_sparse_moe.gate.weight             moe.block.router.weight
    layers.{i}.block_sparse_moe.experts.{e}.w1.weight   moe.block.experts.to_inner[gate]
    layers.{i}.block_sparse_moe.experts.{e}.w2.weight   moe.block.experts.to_out
    layers.{i}.block_sparse_moe.experts.{e}.w3.weight   moe.block.experts.to_inner[up]
"""
QWEN = """
    layers.{i}.mlp.experts.{e}.gate_proj.weight  moe.block.experts.to_inner[gate]
    layers.{i}.mlp.experts.{e}.down_proj.weight  moe.block.experts.to_out
    layers.{i}.mlp.experts.{e}.up_proj.weight    moe.block.experts.to_inner[up]
"""
# Gates stand beside what they gate there, one channel of each in turn.
GPT_OSS = """
    layers.{i}.self_attn.sinks                  attn.block.reader.steps.learned_sink.score
    layers.{i}.post_attention_layernorm.weight  moe.before.gain
    layers.{i}.mlp.router.weight                moe.block.router.weight
    layers.{i}.mlp.router.bias                  moe.block.router.bias
    layers.{i}.mlp.experts.gate_up_proj         moe.block.experts.to_inner[2 E T gate up]
    layers.{i}.mlp.experts.gate_up_proj_bias    moe.block.experts.inner_bias[2 E gate up]
    layers.{i}.mlp.experts.down_proj            moe.block.experts.to_out[T]
    layers.{i}.mlp.experts.down_proj_bias       moe.block.experts.out_bias
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


def gpt_oss(settings: Settings) -> Flags:
    """Flags of a decoder with a learned sink a head, windows in every second layer and a gate within limits."""
    # Without them transformers takes those of the published models.
    settings.need("rope_parameters", "rope_scaling")
    stack, model = llama(settings)
    biased = settings("attention_bias", True)
    stack |= {"attn_qkv_bias": biased, "attn_out_bias": biased, "norm_eps": settings.need("rms_norm_eps")}
    settings.only("swiglu_alpha", 1.702)
    # What experts have instead; what older files say twice.
    settings.without_effect("experts_per_token", "initial_context_length")
    flags = experts(settings, stack, stack["ff_dim"]) | {
        "moe_activation": "quick_gelu",
        "moe_glu_limit": float(settings("swiglu_limit", 7.0)),
        "moe_glu_offset": 1.0,
        "moe_no_bias": False,
        "moe_router_bias": True,
        "attn_scores": "learned_sink",
    }
    window, depth = settings("sliding_window", 128), stack["depth"]
    types = settings("layer_types") and types_of(settings, depth)
    types = types or ["full_attention" if layer % 2 else "sliding_attention" for layer in range(depth)]
    layers = [attention(window=window if name == "sliding_attention" else None) + " moe" for name in types]
    return Flags(without_ff(stack) | flags | layered(layers), model)


families["mixtral"] = Family(mixtral, WEIGHTS + WHOLE + MIXTRAL)
families["qwen3_moe"] = Family(qwen3_moe, WEIGHTS + QK_NORMS + WHOLE + QWEN)
families["gpt_oss"] = Family(gpt_oss, WEIGHTS + GPT_OSS)
