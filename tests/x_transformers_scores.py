"""What x-transformers is told of scores in the tests that compare with it; its stacks are causal ones."""

import torch.nn.functional as F

SCORES = {
    "softclamp": {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.7},
    "topk": {"attn_sparse_topk": 3},
    "topk, straight through": {"attn_sparse_topk": 3, "attn_sparse_topk_straight_through": True},
    "talking heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "talking heads before": {"attn_pre_talking_heads": True, "alibi_pos_bias": True},
    "talking heads behind, clamped": {"attn_post_talking_heads": True, "attn_softclamp_logits": True},
    "residual": {"residual_attn": True, "depth": 3},
    "residual of all": {
        "residual_attn": True, "depth": 3, "attn_pre_talking_heads": True, "attn_softclamp_logits": True,
        "attn_logit_softclamp_value": 2.0, "alibi_pos_bias": True, "attn_num_mem_kv": 2,
    },
    "learned sink": {"attn_head_learned_sink": True},
    "learned sink beside memory": {"attn_head_learned_sink": True, "attn_num_mem_kv": 2, "alibi_pos_bias": True},
    "forget": {"attn_data_dependent_alibi": True},
    "forget beside memory": {"attn_data_dependent_alibi": True, "attn_num_mem_kv": 2, "attn_softclamp_logits": True},
    "forget by query": {
        "attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True, "attn_kv_heads": 2,
        "attn_data_dependent_alibi_per_row_dim_head": 3, "attn_max_attend_past": 5, "attn_num_mem_kv": 2,
    },
    "rel_proj": {
        "attn_use_rel_proj_pos_bias": True, "attn_rel_proj_num_distance_basis": 3, "attn_rel_proj_max_dist": 5,
        "attn_kv_heads": 2,
    },
    "sigmoid": {"attn_sigmoid": True},
    "zero key": {"attn_add_zero_kv": True, "attn_num_mem_kv": 2, "attn_softclamp_logits": True},
    "zero key, learned sink": {"attn_add_zero_kv": True, "attn_head_learned_sink": True, "alibi_pos_bias": True},
    "hard": {"attn_hard": True, "attn_add_zero_kv": True},
    "sigmoid and sinks": {"attn_sigmoid": True, "attn_head_learned_sink": True, "attn_post_talking_heads": True},
    "l2 distance": {"attn_l2_distance": True, "attn_kv_heads": 2, "attn_num_mem_kv": 2},
    "l2 distance, qk_norm": {"attn_l2_distance": True, "attn_qk_norm": True, "attn_softclamp_logits": True},
    "selective": {"attn_selective": True, "attn_kv_heads": 2},
    "selective of all": {
        "attn_selective": True, "attn_num_mem_kv": 2, "attn_softclamp_logits": True, "attn_max_attend_past": 4,
        "attn_head_learned_sink": True, "depth": 3,
    },
    "cope": {"attn_use_cope": True, "attn_kv_heads": 2, "attn_selective": True},
    "cope, talking": {"attn_use_cope": True, "attn_cope_max_pos": 3, "attn_cope_talking_heads": True},
    "own function": {"attn_custom_attn_fn": F.relu, "attn_num_mem_kv": 2},
    "cross, own function": {"cross_attend": True, "cross_attn_custom_attn_fn": F.relu},
    "cross, l2 distance": {"cross_attend": True, "cross_attn_l2_distance": True},
    "cross": {"cross_attend": True, "attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.5},
    "cross, residual": {"cross_attend": True, "cross_residual_attn": True, "residual_attn": True, "depth": 3},
    "cross, its own": {"cross_attend": True, "attn_hard": True, "cross_attn_hard": False, "cross_attn_sigmoid": True},
}  # fmt: skip
# What theirs draws by chance, in eval mode too.
DRAWN = {"attn_gumbel_softmax": True, "attn_gumbel_softmax_temp": 0.7, "attn_gumbel_softmax_hard": False}
