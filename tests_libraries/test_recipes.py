"""Recipes are the models that transformers builds of the published configs, flag by flag."""

import pytest
import torch
from transformers import AutoConfig

import xflash
from xflash.convert.transformers.back import described
from xflash.convert.transformers.fill import build

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT = {**BASE, "intermediate_size": 3072, "num_labels": 1000}
DINOV2 = {"image_size": 518, "patch_size": 14}
GIANT = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True}
OLMO2 = {"vocab_size": 100352, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
# The kind of config, what it says otherwise than that has it, and the class (None: a language model).
PUBLISHED = {
    "gpt2": ("gpt2", {}, None),
    "opt-350m": (
        "opt",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096}
        | {"word_embed_proj_dim": 512, "do_layer_norm_before": False},
        None,
    ),
    "falcon-rw-1b": (
        "falcon",
        {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 50304, "bias": True}
        | {"multi_query": False, "parallel_attn": False, "alibi": True},
        None,
    ),
    "falcon-7b": (
        "falcon",
        {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024},
        None,
    ),
    "olmo2-1b": (
        "olmo2",
        {**OLMO2, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "intermediate_size": 8192}
        | {"max_position_embeddings": 4096},
        None,
    ),
    "gemma3-4b": (
        "gemma3_text",
        {"hidden_size": 2560, "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4}
        | {"head_dim": 256, "intermediate_size": 10240, "vocab_size": 262208, "sliding_window": 1024}
        | {"rope_parameters": TWO_ROPES},
        None,
    ),
    "gpt-oss-20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}, None),
    "modernbert-base": ("modernbert", {}, "ModernBertForMaskedLM"),
    "vit-base-16": ("vit", VIT, "ViTForImageClassification"),
    "deit-base-distilled": ("deit", VIT, "DeiTForImageClassificationWithTeacher"),
    "dinov2-giant": ("dinov2", {**DINOV2, **GIANT}, "Dinov2Model"),
    "dinov2-base-registers": ("dinov2_with_registers", {**DINOV2, **BASE}, "Dinov2WithRegistersModel"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes(name):
    kind, settings, head = PUBLISHED[name]
    theirs = described(build(AutoConfig.for_model(kind, **settings).to_dict(), head).model)
    with torch.device("meta"):
        ours = described(xflash.create(name))
    assert {flag: value for flag, value in ours.items() if "dropout" not in flag} == {
        flag: value for flag, value in theirs.items() if "dropout" not in flag
    }


# What published configs say beside what transformers reads.
BESIDE = {
    "llama": {"max_sequence_length": 2048, "pretraining_tp": 1},
    "phi3": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False},
    "gemma2": {"sliding_window_size": 4096, "cache_implementation": "hybrid"},
    "falcon": {"ff_factor": 4, "apply_residual_connection_post_layernorm": False},
    "bert": {"directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12}
    | {"pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform"},
    "bart": {"_num_labels": 3, "save_step": 58, "normalize_embedding": True, "force_bos_token_to_be_generated": True},
    "gpt2": {"_num_labels": 1, "n_ctx": 1024},
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_is_said_beside_changes_nothing(kind):
    config = AutoConfig.for_model(kind).to_dict()
    plain, found = (build({**config, **more}, None).model.to_config() for more in ({}, BESIDE[kind]))
    assert found == plain


def test_what_would_change_something_is_refused():
    config = AutoConfig.for_model("phi3").to_dict()
    with pytest.raises(ValueError, match="full_attn_mod=2 of a 'phi3' config has no counterpart"):
        build({**config, "full_attn_mod": 2}, None)
