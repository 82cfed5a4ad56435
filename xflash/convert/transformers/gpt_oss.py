"""gpt-oss (https://arxiv.org/abs/2508.10925): experts, a learned sink a head, windows in every second layer."""

from .family import Family, Flags, families
from .layers import attention, layered, types_of
from .llama import WEIGHTS, llama
from .mixtral import experts, without_ff
from .mxfp4 import check_packed, unpacked
from .settings import Settings

__all__ = ["gpt_oss"]

# Gates stand beside what they gate there, one channel of each in turn.
OWN = """
    layers.{i}.self_attn.sinks                  attn.block.reader.steps.learned_sink.score
    layers.{i}.post_attention_layernorm.weight  moe.before.gain
    layers.{i}.mlp.router.weight                moe.block.router.weight
    layers.{i}.mlp.router.bias                  moe.block.router.bias
    layers.{i}.mlp.experts.gate_up_proj         moe.block.experts.to_inner[2 E T gate up]
    layers.{i}.mlp.experts.gate_up_proj_bias    moe.block.experts.inner_bias[2 E gate up]
    layers.{i}.mlp.experts.down_proj            moe.block.experts.to_out[T]
    layers.{i}.mlp.experts.down_proj_bias       moe.block.experts.out_bias
"""


def gpt_oss(settings: Settings) -> Flags:
    """Flags of a decoder with a learned sink a head, windows in every second layer and a gate within limits."""
    # Without them transformers takes those of the published models.
    settings.need("rope_parameters", "rope_scaling")
    check_packed(settings)
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


families["gpt_oss"] = Family(gpt_oss, WEIGHTS + OWN, made=unpacked)
