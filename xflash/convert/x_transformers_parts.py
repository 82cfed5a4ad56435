"""What x-transformers' modules are made of, so that nothing in them is overlooked when they are read."""

import copy
from typing import Any

from torch import nn

from ..base.shapes import Tensor

__all__ = ["Reader", "check_parts", "feature", "kind", "read_gain", "read_norm", "set_flags"]

# By class: what is read by the converter, or says nothing about the outputs. Anything else must be unset.
KNOWN = {
    "XTransformer": "cross_attn_tokens_dropout encoder decoder",
    "AutoregressiveWrapper": """pad_value ignore_index net max_seq_len next_embed_loss_weight looped_loss_threshold_exit
        looped_loss_slope looped_exit_loss_weight""",
    "TransformerWrapper": """emb_dim num_tokens num_cls_tokens max_seq_len l2norm_embed pos_emb token_emb post_emb_norm
        max_mem_len shift_mem_down emb_dropout project_emb attn_layers to_logits memory_tokens num_memory_tokens
        tie_embedding_scale
        train_max_recycle_steps train_max_looped_steps can_cache_kv can_cache_kv_outside_max_seq_len
        input_not_include_cache embeds cls_token average_pool_embed to_mixture combine_mixture output_is_log_prob
        has_multiple_heads attn_pool recycling recycled_proj""",
    "AttentionPool": "has_learned_queries queries pooler",
    "ViTransformerWrapper": """patch_size pos_embedding has_register_tokens register_tokens patch_to_embedding
        post_emb_norm dropout attn_layers mlp_head""",
    "ContinuousTransformerWrapper": """max_seq_len max_mem_len pos_emb post_emb_norm emb_dropout has_memory_tokens
        memory_tokens attn_layers average_pool_embed project_in project_out can_cache_kv""",
    "MultiInputTransformerWrapper": """emb_dim max_seq_len max_mem_len pos_emb embeds post_emb_norm emb_dropout
        project_emb attn_layers to_logits num_memory_tokens memory_tokens can_cache_kv
        can_cache_kv_outside_max_seq_len""",
    "XValTransformerWrapper": """emb_dim token_emb numerical_token_id max_seq_len max_mem_len pos_emb emb_dropout
        has_memory_tokens memory_tokens attn_layers to_logits to_numerical_output""",
    "AttentionLayers": """dim causal attn_heads attn_dim_head disable_abs_pos_emb pre_norm sandwich_norm rel_pos
        rotary_pos_emb polar_pos_emb dim_condition norm_need_condition post_branch_fn_needs_condition
        need_condition has_custom_layer_types len_default_block layer_types layers_execute_order
        num_attn_layers num_cross_attn_layers num_ff_layers cross_attend residual_attn
        cross_residual_attn depth
        depth_scale_residual residual_scale layer_dropouts softclamp_output_value
        can_cache_kv layers layer_integrators adaptive_mlp final_norm skip_combines
        unet_skips num_residual_streams stream_emb add_value_residual pre_and_post_norm softclamp_output
        reinject_input reinject_input_proj learned_reinject_input_gate cross_attn_tokens_dropout""",
    "Attention": """scale heads causal max_attend_past kv_heads groups laser_softclamp_value to_v_gate_activation
        to_v_gate qk_norm qk_norm_groups qk_norm_dim_scale qk_norm_q_scale qk_norm_k_scale qk_norm_scale head_scale
        head_scale_params num_mem_kv mem_k mem_v to_value_residual_mix rotate_num_heads can_cache_kv to_q to_k to_v
        qkv_receive_diff_residuals split_q_heads split_k_heads split_v_heads merge_heads to_head_space_headwise
        to_head_space_dimwise to_v_gate_head_space to_output_gate_head_space attend to_out attn_on_attn
        data_dependent_alibi rel_proj_pos_bias sparse_topk gate_values_headwise sublayer_dropout to_v_head_gate
        value_rmsnorm to_latent_q to_latent_kv use_latent_q use_latent_kv to_rotateable_k split_rotateable_k_heads""",
    "Attend": """scale causal create_causal_mask attn_fn dropout attn_dropout softclamp_logits logit_softclamp_value
        flash sdp_context_manager pre_softmax_talking_heads post_softmax_talking_heads head_learned_sink
        head_attn_sink add_zero_kv selective l2_distance cope""",
    "MultiheadRMSNorm": "rmsnorm gamma",
    "CoPE": "max_pos pos_emb talking_heads soft_onehot_temp",
    "DataDependentAlibi": "causal post_log_scale to_forget_gates",
    "PerRowDataDependentAlibi": "scale post_log_scale to_forget_gates",
    "RelativeProjPositionalBias": "heads num_distance_basis max_dist to_distance_weights distance_bank",
    "FeedForward": "ff",
    "GLU": "act proj mult_bias up_softclamp_value",
    "Lambda": "fn",
    "LayerNorm": "unit_offset ln gamma",
    "AdaptiveLayerNorm": "ln to_gamma",
    "AdaptiveRMSNorm": "scale to_gamma",
    "AdaptiveLayerScale": "fn to_gamma",
    "ScaleNorm": "unit_offset scale g",
    "RMSNorm": "unit_offset scale g",
    "SimpleRMSNorm": "scale",
    "DynamicTanh": "pre_tanh_scale gamma beta pre_tanh_scale_offset gamma_offset",
    "Residual": "residual_scale scale_residual_constant",
    "GRUGating": "gru residual_scale",
    "HyperConnection": """norm num_residual_streams layer_index static_beta static_alpha dynamic_alpha_fn
        dynamic_alpha_scale num_input_views dynamic_beta_fn dynamic_beta_scale sinkhorn_iters""",
    "DynamicLIMe": "num_layers multiple_views to_weights",
    "ConcatCombine": "prev_layer_ind combine",
    "Scale": "scale fn",
    "LayerScale": "unit_offset fn gamma",
    "ShiftTokens": "fn shifts",
    "RotaryEmbedding": "interpolation_factor scale_base inv_freq scale",
    "RelativePositionBias": "scale causal num_buckets max_distance relative_attention_bias",
    "PolarEmbedding": "inv_freq learned_bias",
    "DynamicPositionBias": "log_distance mlp",
    "AlibiPositionalBias": "heads total_heads slopes bias",
    "TokenEmbedding": "l2norm_embed emb",
    "AbsolutePositionalEmbedding": "scale max_seq_len l2norm_embed emb",
    "ScaledSinusoidalEmbedding": "scale inv_freq",
    "ReluSquared": "",
    "Identity": "",
}

# What x-transformers' users call an attribute or a class; the others bear the name of their flag.
FLAGS = {
    "to_output_gate": "attn_output_gate",
    "q_rmsnorm": "attn_qk_rmsnorm",
    "soft_onehot": "attn_cope_soft_onehot_pos",
    "qkv_receive_diff_residuals": "qkv_receive_diff_residuals / integrate_layers",
    "OrthogonalResidualUpdate": "orthog_residual",
    "MVSplitResidualUpdate": "mv_split_residual",
    "GatedMultiResidual": "gated_multi_residual",
    "AttentionResidual": "attn_aggregated_residuals",
    "Derf": "use_derf",
    "SoLU": "ff_solu",
    "LoRALinear": "attn_gate_values_rank",
}

# Settings whose neutral value is not what Python calls false.
NEUTRAL: dict[str, Any] = {"emb_frac_gradient": 1}
ATTENTION = ("Attention", "Attend")


def kind(part: Any) -> str:
    """The name of the class of a part."""
    return type(part).__name__


def feature(name: str, what: Any) -> ValueError:
    """The error for what xflash has no counterpart of."""
    return ValueError(f"xflash has no counterpart of x-transformers' {name} ({what})")


def memory_length(module: Any, unpositioned: bool, flags: Any) -> int | None:
    """max_mem_len, where a segment behind a memory is what xflash makes of it."""
    if not module.max_mem_len:
        if getattr(module, "shift_mem_down", 0):
            raise feature("shift_mem_down", "without max_mem_len")
        return None
    restarts = {"num_memory_tokens": hasattr(module, "memory_tokens"), "use_abs_pos_emb": not unpositioned}
    restarts |= {"shift_tokens": flags.get("shift_tokens"), "attn_num_mem_kv": flags.get("attn_num_mem_kv")}
    for name, value in restarts.items():
        if value:
            raise feature("max_mem_len", f"with {name}, which begin anew in each segment there")
    return module.max_mem_len


def unset(name: str, value: Any) -> bool:
    """Whether a setting is at the value that switches it off."""
    if name in NEUTRAL:
        return bool(value == NEUTRAL[name])
    return value is None or kind(value) == "Identity" or (isinstance(value, (bool, int, float, tuple)) and not value)


def check_parts(module: nn.Module) -> None:
    """ValueError, with the name of the flag, when a part of the peer does what the converter does not read."""
    for path, part in module.named_modules():
        if not type(part).__module__.startswith(("x_transformers.", "torch_einops_utils.")):
            continue
        name = "AttentionLayers" if kind(part) in ("Encoder", "Decoder", "CrossAttender") else kind(part)
        if name not in KNOWN:
            raise feature(FLAGS.get(name, name), f"{kind(part)} at {path or 'the top'}")
        known = {"training", *KNOWN[name].split()}
        held = {k: v for k, v in vars(part).items() if not k.startswith("_")}
        for attribute, value in {**held, **part._parameters, **part._buffers, **part._modules}.items():
            if attribute in known or unset(attribute, value):
                continue
            prefix = "attn_" if name in ATTENTION and not attribute.startswith("attn_") else ""
            plain = isinstance(value, (bool, int, float, str, tuple))
            raise feature(FLAGS.get(attribute, prefix + attribute), value if plain else f"{attribute} of {name}")


class Reader:
    """Hands out copies of a peer's tensors, each once, and knows which nobody asked for."""

    def __init__(self, module: nn.Module):
        self.names = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
        self.left = dict(self.names)
        self.own: list[nn.Module] = []

    def take(self, t: Tensor) -> Tensor:
        """A copy without a graph; ValueError when another part has it already."""
        if self.left.pop(id(t), None) is None:
            raise ValueError(f"{self.names.get(id(t), 'a tensor')} is shared by two parts of the x-transformers module")
        return t.detach().clone()

    def alike(self, part: nn.Module) -> nn.Module:
        """A copy of a module of the peer's user, the same one for all that are built alike."""
        for known in self.own:
            if type(known) is type(part) and repr(known) == repr(part):
                return known
        self.own.append(copy.deepcopy(part))
        return self.own[-1]

    def finish(self) -> None:
        """ValueError when tensors are left."""
        if self.left:
            raise feature("tensors", ", ".join(self.left.values()))


def read_norm(norm: Any, reader: Reader) -> dict[str, Tensor]:
    """The weights of a norm by their names here."""
    if kind(norm).startswith("Adaptive"):
        return {"to_gain.weight": reader.take(norm.to_gamma.weight)}
    if kind(norm) == "DynamicTanh":
        gain, alpha = reader.take(norm.gamma) + norm.gamma_offset, reader.take(norm.pre_tanh_scale)
        return {"gain": gain, "bias": reader.take(norm.beta), "alpha": alpha + norm.pre_tanh_scale_offset}
    return {} if kind(norm) == "SimpleRMSNorm" else {"gain": read_gain(norm, reader)}


def read_gain(norm: Any, reader: Reader) -> Tensor:
    """The gain of a norm (or LayerScale), stored as the distance from one where it has a unit offset."""
    stored = norm.g if hasattr(norm, "g") else norm.gamma
    gain = reader.take(stored) + float(norm.unit_offset)
    return gain.reshape(()) if kind(norm) == "ScaleNorm" else gain


def set_flags(flags: dict[str, Any], config: Any) -> dict[str, Any]:
    """The flags that are not at their default."""
    own = config.__dataclass_fields__
    return {k: v for k, v in flags.items() if k not in own or v != own[k].default}
