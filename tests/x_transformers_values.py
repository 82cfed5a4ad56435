"""What x-transformers' attention projects, and its feed-forward does between its maps, as cases of its stacks."""

import torch

VALUES = {
    "on_attn": {"attn_on_attn": True, "attn_kv_heads": 2, "attn_value_dim_head": 7, "use_layerscale": True},
    "on_attn, one head": {"attn_on_attn": True, "heads": 1, "scale_residual": True},
    "gates a head": {"attn_gate_value_heads": True, "attn_kv_heads": 2, "attn_value_dim_head": 7}
    | {"attn_gate_values": True, "attn_gate_values_headwise": True},
    "value_rmsnorm": {"attn_value_rmsnorm": True, "add_value_residual": True, "rotary_pos_emb": True},
    "latents": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 7, "attn_kv_heads": 2, "attn_value_dim_head": 5},
    "latents of queries": {"attn_use_latent_q": True, "attn_dim_latent_q": 9, "attn_kv_heads": 2}
    | {"rotary_pos_emb": True},
    "latents, all heads turned": {
        "attn_use_latent_kv": True, "attn_dim_latent_kv": 7, "rotary_pos_emb": True, "attn_num_mem_kv": 3,
    },
    "latents, some heads turned": {
        "attn_use_latent_q": True, "attn_dim_latent_q": 9, "attn_use_latent_kv": True, "attn_dim_latent_kv": 7,
        "attn_latent_rope_subheads": 2, "rotary_pos_emb": True,
    },
    "latents, normed": {
        "attn_use_latent_kv": True, "attn_dim_latent_kv": 7, "attn_latent_rope_subheads": 1, "rotary_pos_emb": True,
        "attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_value_rmsnorm": True, "alibi_pos_bias": True,
    },
    "custom_activation of others": {"ff_custom_activation": torch.nn.PReLU(), "ff_post_act_ln": True},
    "custom_activation, a function": {"ff_custom_activation": torch.sin, "ff_glu": True},
    "custom_activation with settings": {"ff_custom_activation": torch.nn.GELU(approximate="tanh"), "ff_glu": True},
    "softclamp_value": {"ff_softclamp_value": 0.4, "ff_swish": True},
    "glu_softclamp": {"ff_glu": True, "ff_glu_softclamp": True, "ff_glu_mult_bias": True, "ff_no_bias": True}
    | {"ff_glu_gate_softclamp_value": 0.7, "ff_glu_up_softclamp_value": 0.5},
    "glu_softclamp swish": {"ff_glu": True, "ff_glu_softclamp": True, "ff_swish": True, "ff_post_act_ln": True},
}  # fmt: skip
