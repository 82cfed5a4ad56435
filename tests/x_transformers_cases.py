"""What x-transformers is built with in the tests that compare with it: flags it has in common with xflash, and others.

Importing this skips the importing test file where the peer is missing, or fails it with XFLASH_REQUIRE_PEERS=1.
"""

import functools
import os
import warnings

import laws
import pytest
import torch
import torch.nn.functional as F
from x_transformers_values import VALUES

from xflash.layers.positions.angles import inverse_frequencies

try:
    with warnings.catch_warnings():
        # It scripts a function when it is imported.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        import x_transformers as peers
        from x_transformers.attend import Attend
        from x_transformers.x_transformers import DynamicPositionBias, ScaledSinusoidalEmbedding
except ImportError:
    if os.environ.get("XFLASH_REQUIRE_PEERS") == "1":
        raise
    pytest.skip("x-transformers is not installed", allow_module_level=True)

VOCABULARY, LIMIT = 31, 29
SMALL = {"dim": 34, "depth": 2, "heads": 4, "attn_dim_head": 12, "verbose": False}

# Flags of the stack, and of the wrapper where a second entry stands. `causal` or `bidirectional`: only so.
STACKS = {
    "plain": {},
    "deeper": {"depth": 3, "heads": 3, "attn_dim_head": 7},
    "attn_flash": {"attn_flash": True},
    "one head": {"heads": 1, "attn_project_out": True},
    "one head, no projection": {"heads": 1, "attn_dim_head": 34},
    "kv_heads": {"attn_kv_heads": 2, "heads": 6},
    "kv_heads rel_pos gates": {
        "attn_kv_heads": 2, "heads": 6, "rel_pos_bias": True, "attn_gate_values": True, "attn_head_scale": True,
        "attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_num_mem_kv": 3,
    },
    "one_kv_head": {"attn_one_kv_head": True},
    "kv_heads a layer": {"attn_kv_heads": (2, 1), "heads": 6, "rotary_pos_emb": True},
    "num_mem_kv": {"attn_num_mem_kv": 5},
    "num_mem_kv rotary kv_heads": {"attn_num_mem_kv": 5, "rotary_pos_emb": True, "attn_kv_heads": 2},
    "qk_norm": {"attn_qk_norm": True},
    "qk_norm groups": {"attn_qk_norm": True, "attn_qk_norm_groups": 3, "attn_qk_norm_scale": 8, "attn_num_mem_kv": 2},
    "qk_norm dim_scale": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_kv_heads": 2},
    "gate_values": {"attn_gate_values": True, "attn_kv_heads": 2},
    "head_scale": {"attn_head_scale": True, "attn_kv_heads": 2},
    "dropouts": {"attn_dropout": 0.1, "ff_dropout": 0.2, "layer_dropout": (0.1, 0.0, 0.2, 0.0)}
    | {"attn_sublayer_dropout": 0.1, "ff_sublayer_dropout": 0.1},
    "dynamic_tanh": {"use_dynamic_tanh": True, "dynamic_tanh_init_alpha": 0.5},
    "dynamic_tanh, its numbers as they are": {"use_dynamic_tanh": True, "norm_add_unit_offset": False},
    "pre_and_post_norm": {"pre_and_post_norm": True, "rotary_pos_emb": True},
    "softclamp_output": {"softclamp_output": True, "softclamp_output_value": 2.0},
    "softclamp_output post norm": {"softclamp_output": True, "pre_norm": False},
    "reinject_input": {"reinject_input": True},
    "reinject_input of some": {
        "reinject_input": True, "learned_reinject_input_gate": True, "integrate_layers": True, "unet_skips": True,
        "depth": 2,
    },
    "qkv_receive_diff_residuals": {"num_residual_streams": 3, "qkv_receive_diff_residuals": True, "attn_kv_heads": 2},
    "rotary": {"rotary_pos_emb": True},
    "rotary width": {"rotary_pos_emb": True, "rotary_emb_dim": 12},
    "rotary odd width": {"rotary_pos_emb": True, "rotary_emb_dim": 3},
    "rotary interpolation": {"rotary_pos_emb": True, "rotary_interpolation_factor": 2.5},
    "rotary rescaled": {"rotary_pos_emb": True, "rotary_base_rescale_factor": 3.7, "rotary_emb_dim": 10},
    "rotary heads": {"rotary_pos_emb": True, "rotate_num_heads": 3},
    "dynamic": {"dynamic_pos_bias": True, "attn_num_mem_kv": 2, "attn_kv_heads": 2, "dynamic_pos_bias_mlp_depth": 1},
    "dynamic, norm": {
        "dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": True, "dynamic_pos_bias_norm": True,
    },
    "polar": {"polar_pos_emb": True},
    "polar, one key head": {"polar_pos_emb": True, "attn_one_kv_head": True, "attn_qk_norm": True},
    "rotary alibi": {"rotary_pos_emb": True, "alibi_pos_bias": True},
    "rel_pos": {"rel_pos_bias": True, "rel_pos_num_buckets": 10, "rel_pos_max_distance": 17},
    "alibi": {"alibi_pos_bias": True, "heads": 12},
    "alibi heads": {"alibi_pos_bias": True, "heads": 7, "alibi_num_heads": 5, "attn_flash": True},
    "glu": {"ff_glu": True},
    "glu swish no_bias": {"ff_glu": True, "ff_swish": True, "ff_no_bias": True, "ff_mult": 2.7},
    "glu mult_bias": {"ff_glu": True, "ff_glu_mult_bias": True, "ff_post_act_ln": True},
    "relu_squared no_bias": {"ff_relu_squared": True, "ff_no_bias": True},
    "post_act_ln": {"ff_post_act_ln": True, "ff_mult": 1 / 3},
    "custom_activation": {"ff_custom_activation": torch.nn.Tanh()},
    "scalenorm": {"use_scalenorm": True},
    "rmsnorm": {"use_rmsnorm": True},
    "simple_rmsnorm": {"use_simple_rmsnorm": True},
    "no unit offset": {"use_rmsnorm": True, "norm_add_unit_offset": False, "use_layerscale": True},
    "sandwich_norm": {"sandwich_norm": True},
    "post norm": {"pre_norm": False},
    "no final norm": {"pre_norm_has_final_norm": False, "use_scalenorm": True},
    "layerscale": {"use_layerscale": True, "layerscale_init_value": 0.3},
    "adaptive_layernorm": {"use_adaptive_layernorm": True, "dim_condition": 7, "rotary_pos_emb": True},
    "adaptive_rmsnorm after": {"use_adaptive_rmsnorm": True, "pre_norm": False, "scale_residual": True},
    "adaLN-Zero": {"use_adaptive_layernorm": True, "use_adaptive_layerscale": True, "dim_condition": 7},
    "adaptive_layerscale": {"use_rmsnorm": True, "use_adaptive_layerscale": True, "weight_tie_layers": True},
    "layerscale sandwich": {"use_layerscale": True, "sandwich_norm": True, "layerscale_init_value": 0.3},
    "scale_residual": {"scale_residual": True},
    "scale_residual_constant layerscale": {
        "scale_residual_constant": 0.7, "use_layerscale": True, "layerscale_init_value": 0.3, "pre_norm": False
    },
    "depth_scale_residual": {"depth_scale_residual": 0.5},
    "macaron": {"macaron": True},
    "macaron, all scales": {
        "macaron": True, "depth_scale_residual": 0.7, "use_layerscale": True, "layerscale_init_value": 0.3,
        "sandwich_coef": 1,
    },
    "macaron sandwich": {"macaron": True, "depth_scale_residual": 0.7, "sandwich_norm": True},
    "shift_tokens": {"shift_tokens": 1},
    "shift_tokens a layer": {"shift_tokens": (2, 0, 1, 3), "rotary_pos_emb": True},
    "weight_tie_layers": {"weight_tie_layers": True, "depth": 3, "rel_pos_bias": True},
    "weight_tie_layers shift": {"weight_tie_layers": True, "depth": 3, "shift_tokens": (2, 0)},
    "custom_layers": {"custom_layers": ("a", "f", "f", "a", "a", "f"), "depth": None},
    "only_attn": {"only_attn": True, "shift_tokens": 1},
    "gate_residual": {"gate_residual": True, "use_layerscale": True, "layerscale_init_value": 0.3},
    "gate_residual scale_residual": {"gate_residual": True, "scale_residual": True, "weight_tie_layers": True},
    "num_residual_streams": {"num_residual_streams": 3, "use_rmsnorm": True},
    "num_residual_streams tied": {"num_residual_streams": 2, "weight_tie_layers": True, "depth": 3, "pre_norm": False},
    "unet_skips": {"unet_skips": True, "depth": 4},
    "unet_skips odd": {"unet_skips": True, "depth": 3, "shift_tokens": 1, "sandwich_norm": True},
    "integrate_layers": {"integrate_layers": True, "depth": 3},
    "integrate_layers relu": {"integrate_layers": True, "layer_integrate_use_softmax": False, "gate_residual": True},
    "all residuals": {
        "integrate_layers": True, "unet_skips": True, "num_residual_streams": 2, "depth": 4, "use_layerscale": True,
        "layerscale_init_value": 0.3,
    },
    "add_value_residual": {"add_value_residual": True, "learned_value_residual_mix": False, "depth": 3}
    | {"attn_kv_heads": 2, "attn_num_mem_kv": 3},
    "add_value_residual tied": {"add_value_residual": True, "depth": 3, "weight_tie_layers": True},
    "learned_value_residual_mix": {"add_value_residual": True, "depth": 3}
    | {"macaron": True, "integrate_layers": True, "shift_tokens": 1},
    "layerscale scale_residual": {"use_layerscale": True, "scale_residual": True, "layerscale_init_value": 0.3},
    "sandwich_coef": {"sandwich_coef": 1, "depth": 3},
    "par_ratio": {"par_ratio": 3, "depth": 3},
    "layers_execute_order": {
        "custom_layers": ("a", "f", "a", "f"), "depth": None, "layers_execute_order": (0, 1, 0, 2, 3, 2),
        "shift_tokens": (1, 0, 2, 0),
    },
    "layers_execute_order of blocks": {"layers_execute_order": (0, 1, 0, 1, 2, 3), "attn_kv_heads": (2, 1)},
    "zero_init_branch_output": {"zero_init_branch_output": True},
    "everything": {
        "rotary_pos_emb": True, "attn_kv_heads": 2, "attn_num_mem_kv": 3, "attn_qk_norm": True, "attn_flash": True,
        "ff_glu": True, "ff_swish": True, "ff_post_act_ln": True, "use_rmsnorm": True, "sandwich_norm": True,
        "scale_residual": True, "attn_gate_values": True, "attn_head_scale": True, "weight_tie_layers": True,
        "depth": 3,
    },
}  # fmt: skip
STACKS |= VALUES
CAUSAL_STACKS = {
    "xpos": {"rotary_xpos": True},
    "xpos base": {"rotary_xpos": True, "rotary_xpos_scale_base": 64, "rotary_emb_dim": 8},
    "max_attend_past": {"attn_max_attend_past": 4},
    "max_attend_past a layer": {"attn_max_attend_past": (4, None), "attn_num_mem_kv": 2, "rel_pos_bias": True},
    "all causal": {
        "rotary_xpos": True, "attn_kv_heads": 2, "attn_head_scale": True, "attn_max_attend_past": 9, "shift_tokens": 1,
        "ff_glu": True, "use_scalenorm": True, "scale_residual": True,
    },
}  # fmt: skip
# With a context, of width 34 unless a flag says otherwise; `only_cross` also as a CrossAttender.
CROSS = {
    "cross_attend": {"cross_attend": True},
    "own width": {"cross_attend": True, "cross_attn_dim_context": 20, "cross_attn_tokens_dropout": 0.1},
    "only_cross": {"cross_attend": True, "only_cross": True, "cross_attn_dim_head": 7},
    "attn_ flags count for both": {
        "cross_attend": True, "attn_kv_heads": 2, "attn_num_mem_kv": 3, "attn_qk_norm": True, "attn_gate_values": True,
        "attn_head_scale": True, "attn_flash": True, "attn_dropout": 0.1,
    },
    "cross_attn_ flags": {
        "cross_attend": True, "cross_attn_kv_heads": 2, "cross_attn_num_mem_kv": 2, "cross_attn_dim_head": 7,
        "cross_attn_qk_norm": True, "cross_attn_qk_norm_dim_scale": True, "cross_attn_flash": True,
    },
    "cross_attn_ flags override": {
        "cross_attend": True, "attn_kv_heads": 2, "cross_attn_kv_heads": 1, "attn_num_mem_kv": 3,
        "cross_attn_num_mem_kv": 0, "attn_gate_values": True, "cross_attn_gate_values": False,
    },
    "a layer": {"cross_attend": True, "attn_kv_heads": (2, 1), "cross_attn_kv_heads": (1, 2), "rotary_pos_emb": True},
    "rotary": {"cross_attend": True, "rotary_pos_emb": True, "rotary_emb_dim": 8, "attn_kv_heads": 2},
    "values of their own": {
        "cross_attend": True, "attn_value_dim_head": 5, "attn_on_attn": True, "cross_attn_gate_value_heads": True,
        "cross_attn_value_rmsnorm": True, "cross_attn_value_dim_head": 12, "cross_attn_add_zero_kv": True,
    },
    "rel_pos, sandwich": {"cross_attend": True, "rel_pos_bias": True, "sandwich_norm": True, "use_rmsnorm": True},
    "custom layers, layerscale": {
        "custom_layers": ("a", "c", "c", "f", "c"), "depth": None, "cross_attend": True, "use_layerscale": True,
        "layerscale_init_value": 0.3,
    },
    "value residual": {"cross_attend": True, "add_value_residual": True, "integrate_layers": True},
    "tied, macaron, scaled": {
        "cross_attend": True, "weight_tie_layers": True, "macaron": True, "scale_residual": True, "shift_tokens": 1,
        "depth": 3,
    },
}  # fmt: skip
WRAPPERS = {
    "learned": ({}, {}),
    "none": ({}, {"use_abs_pos_emb": False}),
    "no length": ({}, {"max_seq_len": 0}),
    "rotary": ({"rotary_pos_emb": True}, {}),
    "alibi and learned": ({"alibi_pos_bias": True}, {}),
    "sinusoidal": ({}, {"scaled_sinu_pos_emb": True}),
    "sinusoidal and rotary": (
        {"rotary_pos_emb": True, "disable_abs_pos_emb": False}, {"scaled_sinu_pos_emb": True, "emb_dropout": 0.1}
    ),
    "l2norm_embed": ({}, {"l2norm_embed": True}),
    "post_emb_norm": ({}, {"post_emb_norm": True, "emb_dropout": 0.1}),
    "emb_dim": ({}, {"emb_dim": 20, "post_emb_norm": True}),
    "tie_embedding": ({}, {"tie_embedding": True}),
    "tie_embedding_scale": ({"pre_norm": False}, {"tie_embedding": True, "tie_embedding_scale": 0.3}),
    "logits_dim": ({}, {"logits_dim": 7}),
    "return_only_embed": ({}, {"return_only_embed": True}),
    "to_logits": ({}, {"to_logits": torch.nn.Linear(34, VOCABULARY)}),
    "memory tokens": ({"rotary_pos_emb": True}, {"num_memory_tokens": 3}),
    "memory tokens, rel_pos": ({"rel_pos_bias": True, "attn_num_mem_kv": 2}, {"num_memory_tokens": 3}),
    "embed_num_tokens": ({}, {"embed_num_tokens": {"segment": 2, "type": 5}, "post_emb_norm": True}),
    "embed_num_tokens emb_dim": ({"rotary_pos_emb": True}, {"embed_num_tokens": {"kind": 3}, "emb_dim": 20}),
    "num_output_heads": ({}, {"num_output_heads": 2, "logits_dim": 7}),
    "mixture_of_softmax": ({"rotary_pos_emb": True}, {"mixture_of_softmax": True, "mixture_of_softmax_k": 3}),
    "mixture_of_softmax tied": ({}, {"mixture_of_softmax": True, "tie_embedding": True}),
    "average_pool_embed": ({}, {"average_pool_embed": True}),
    "average_pool_embed, memory tokens": (
        {"rotary_pos_emb": True}, {"average_pool_embed": True, "num_memory_tokens": 3, "logits_dim": 7}
    ),
    "average_pool_embed tied": ({}, {"average_pool_embed": True, "tie_embedding": True}),
    "mixed": (
        {"alibi_pos_bias": True, "use_scalenorm": True, "ff_glu": True, "attn_one_kv_head": True},
        {"num_memory_tokens": 2, "emb_dim": 20, "l2norm_embed": True, "post_emb_norm": True},
    ),
}  # fmt: skip
CAUSAL_WRAPPERS = {
    "memory tokens, shift, window": (
        {"shift_tokens": 2, "attn_max_attend_past": 6, "rotary_xpos": True}, {"num_memory_tokens": 3}
    ),
}  # fmt: skip
# Where the CLS token can see the others.
BIDIRECTIONAL_WRAPPERS = {
    "use_cls_token": ({}, {"use_cls_token": True}),
    "num_cls_tokens": ({"rotary_pos_emb": True}, {"use_cls_token": True, "num_cls_tokens": 3}),
    "cls, memory tokens, segments": (
        {"rel_pos_bias": True}, {"use_cls_token": True, "num_memory_tokens": 2, "embed_num_tokens": {"segment": 2}}
    ),
}  # fmt: skip

VITS = {
    "plain": ({}, {}),
    "classes": ({}, {"num_classes": 11}),
    "registers": ({"rotary_pos_emb": True}, {"num_register_tokens": 3, "num_classes": 11}),
    "post_emb_norm": ({}, {"post_emb_norm": True, "emb_dropout": 0.1, "num_classes": 11}),
    "mixed": (
        {"use_rmsnorm": True, "ff_glu": True, "attn_one_kv_head": True, "attn_num_mem_kv": 2},
        {"channels": 1, "num_register_tokens": 2, "post_emb_norm": True, "num_classes": 2},
    ),
}  # fmt: skip


# What xflash has no counterpart of: the flag its error names, how to get it, and the wrapper's arguments.
REFUSED = {
    "attn_max_attend_past": ({"cross_attend": True, "attn_max_attend_past": 3}, {}),
    "attn_inverted_attention": ({"cross_attend": True, "cross_attn_inverted_attention": True}, {}),
    "use_derf": ({"use_derf": True}, {}),
    "adaptive_condition_mlp": ({"use_adaptive_rmsnorm": True, "adaptive_condition_mlp": True}, {}),
    "num_memory_tokens": ({"use_adaptive_rmsnorm": True}, {"num_memory_tokens": 2}),
    "sandwich_norm": ({"use_adaptive_layerscale": True, "sandwich_norm": True}, {}),
    "rotate_num_heads": ({"rotary_pos_emb": True, "rotate_num_heads": 2, "cross_attend": True}, {}),
    "rotary_xpos (with attn_num_mem_kv": ({"rotary_xpos": True, "attn_num_mem_kv": 2}, {}),
    "rotary_emb_dim": ({"rotary_xpos": True, "rotary_emb_dim": 3}, {}),
    "layers_execute_order": ({"layers_execute_order": (0, 1, 0, 3)}, {}),
    "pre_and_post_norm": ({"pre_and_post_norm": True, "sandwich_norm": True}, {}),
    "attn_aggregated_residuals": (
        {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 5}},
        {},
    ),
    "orthog_residual": ({"orthog_residual": True}, {}),
    "mv_split_residual": ({"mv_split_residual": True}, {}),
    "gated_multi_residual": ({"gated_multi_residual": True, "residual_fn_kwargs": {"read_gate_rank": 5}}, {}),
    "softclamp_output": ({"softclamp_output": True, "num_residual_streams": 2}, {}),
    "learned_reinject_input_gate": ({"learned_reinject_input_gate": True}, {}),
    "rel_pos_kwargs": ({"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [0.5, 0.4, 0.3, 0.2]}}, {}),
    "alibi_pos_bias": ({"alibi_pos_bias": True, "attn_kv_heads": 2}, {}),
    "rel_pos_bias": ({"rel_pos_bias": True, "heads": 6, "attn_kv_heads": (2, 3)}, {}),
    "attn_data_dependent_alibi": (
        {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_kwargs": {"post_log_scale": 0.5}},
        {},
    ),
    "attn_pre_scale_post_talking_heads": ({"attn_pre_scale_post_talking_heads": True}, {}),
    "attn_swiglu_values": ({"attn_gate_values": True, "attn_swiglu_values": True}, {}),
    "attn_gate_values_rank": ({"attn_gate_values": True, "attn_gate_values_rank": 5}, {}),
    "attn_output_gate": ({"attn_output_gate": True}, {}),
    "attn_output_gate_headwise": ({"attn_output_gate": True, "attn_output_gate_headwise": True}, {}),
    "attn_cog_signed": ({"attn_cog_signed": True}, {}),
    "attn_qk_rmsnorm": ({"attn_qk_rmsnorm": True}, {}),
    "attn_k_rmsnorm": ({"attn_k_rmsnorm": True}, {}),
    "attn_hybrid_module": ({"attn_hybrid_module": torch.nn.Linear(34, 48)}, {}),
    "attn_use_cope (with attn_num_mem_kv": ({"attn_use_cope": True, "attn_num_mem_kv": 2}, {}),
    "attn_cope_talking_heads": (
        {"attn_use_cope": True, "attn_cope_talking_heads": True, "attn_max_attend_past": 3},
        {},
    ),
    "attn_cope_soft_onehot_pos": ({"attn_use_cope": True, "attn_cope_soft_onehot_pos": True}, {}),
    "attn_orthog_projected_values": ({"attn_orthog_projected_values": True}, {}),
    "attn_orthog_projected_values_per_head": ({"attn_orthog_projected_values_per_head": True}, {}),
    "attn_laser": ({"attn_laser": True}, {}),
    "attn_use_latent_q, attn_use_latent_kv": (
        {"cross_attend": True, "only_cross": True, "attn_use_latent_q": True, "attn_dim_latent_q": 5},
        {},
    ),
    "ff_glu_mult_bias": (
        {"ff_glu": True, "ff_glu_mult_bias": True, "ff_glu_softclamp": True, "ff_post_act_ln": True},
        {},
    ),
    "ff_solu": ({"ff_solu": True}, {}),
    "max_mem_len": ({}, {"max_mem_len": 5}),
    "shift_mem_down": ({}, {"shift_mem_down": 1}),
    "memory_tokens_interspersed_every": ({}, {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 5}),
    "recycling": ({}, {"recycling": True, "num_memory_tokens": 2}),
    "looped": ({"pre_and_post_norm": True}, {"looped": True}),
    "emb_frac_gradient": ({}, {"emb_frac_gradient": 0.1}),
    "use_cls_token": ({}, {"use_cls_token": True}),
    "attn_pool": ({}, {"attn_pool": True}),
    "squeeze_out_last_dim": ({}, {"squeeze_out_last_dim": True}),
    "token_emb": ({}, {"token_emb": torch.nn.Embedding(VOCABULARY, 34)}),
    "sigsoftmax_logits": ({}, {"sigsoftmax_logits": True}),
    "ff_deep_embed": ({}, {"ff_deep_embed": True}),
    "to_logits": ({}, {"to_logits": torch.nn.Identity()}),
    "add_continuous_pred_head": ({}, {"add_continuous_pred_head": True}),
}


# What changes nothing by itself, or only the start and the gradients.
IDLE = {
    "AttentionLayers": """dim depth heads causal verbose only_cross dim_condition adaptive_condition_mlp_expansion
        dynamic_tanh_init_alpha
        polar_bias_uniform_init hyper_conn_sinkhorn_iters layer_integrate_use_softmax learned_value_residual_mix
        softclamp_output_value kwargs""",
    "Attention": """dim heads causal dim_context dim_out output_proj_depth zero_init_output sparse_topk_straight_through
        output_gate_rank low_rank_silu_gates hybrid_mask_kwarg
        hybrid_fold_axial_dim hybrid_learned_mix rotate_num_heads
        logit_softclamp_value learned_value_residual_mix
        laser_softclamp_value qkv_receive_diff_residuals onnxable inverted_attention
        attend_sdp_kwargs flash_pack_seq""",
    "FeedForward": """dim dim_out zero_init_output output_proj_depth""",
    "TransformerWrapper": """num_tokens attn_layers train_max_recycle_steps max_looped_steps attn_z_loss_weight
        num_cls_tokens num_pooled_tokens attn_pool_depth dim_pooled_tokens mixture_of_softmax_k
        input_not_include_cache""",
    "ViTransformerWrapper": "image_size patch_size attn_layers",
}
PREFIX = {
    "AttentionLayers": "", "Attention": "attn_", "FeedForward": "ff_", "TransformerWrapper": "",
    "ViTransformerWrapper": "",
}  # fmt: skip


def exact(peer):
    """The peer in eval mode, every weight moved, without the roundings to float32 that float64 would show."""
    laws.live(peer)
    peers.x_transformers.apply_polar_pos_emb = polar_exactly
    for part in peer.modules():
        # Softmax in float32 whatever the model's dtype.
        if isinstance(part, Attend) and getattr(part.attn_fn, "keywords", {}).get("dtype") is torch.float32:
            part.attn_fn = functools.partial(F.softmax, dim=-1)
        if isinstance(part, DynamicPositionBias):
            part.mlp[0].register_forward_pre_hook(functools.partial(given_distances, part.log_distance))
        # The same frequencies by a formula whose last float32 bit differs from FLASH-pytorch's and xflash's.
        if isinstance(part, ScaledSinusoidalEmbedding):
            part.inv_freq = inverse_frequencies(2 * len(part.inv_freq), 10000.0).double()
    return peer


def polar_exactly(t, freqs):
    """As theirs, which rounds to float32 whatever the model's dtype."""
    freqs, t = freqs[:, -t.shape[-2] :], F.softplus(t)
    return torch.cat((t * freqs.cos(), t * freqs.sin()), -1)


def given_distances(log, module, args):
    """Distances in float64, which theirs counts in float32 whatever the model's dtype."""
    n = (len(args[0]) + 1) // 2
    distance = torch.arange(1 - n, n, dtype=torch.float64)[:, None]
    return (distance.sign() * distance.abs().log1p() if log else distance,)


def make_stack(flags, causal):
    torch.manual_seed(0)
    flags = {k: v for k, v in {**SMALL, **flags}.items() if v is not None}
    return (peers.Decoder if causal else peers.Encoder)(**flags)


def make_wrapper(flags, arguments, causal):
    given = {"num_tokens": VOCABULARY, "max_seq_len": LIMIT, **arguments}
    return peers.TransformerWrapper(**given, attn_layers=make_stack(flags, causal))


def make_vit(flags, arguments, causal=False):
    given = {"image_size": 35, "patch_size": 7, **arguments}
    return peers.ViTransformerWrapper(**given, attn_layers=make_stack(flags, causal))
