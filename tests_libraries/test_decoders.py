"""Language models of transformers are these flags: the same logits, padded, with a cache, in both precisions."""

import pytest
import torch
from peers import causal, tokens

from xflash.convert import from_transformers

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 19, "head_dim": 10}
GPT2 = {"n_embd": 42, "n_head": 6, "n_layer": 3, "n_positions": 41}
SCALED = {"scale_attn_by_inverse_layer_idx": True, "n_inner": 53, "tie_word_embeddings": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16, "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
TOLD = {"attention_factor": 1.2, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False, "rope_theta": 500.0}
MSCALES = {"mscale": 0.9, "mscale_all_dim": 0.6, "rope_theta": 500.0}
GEMMA2 = {"query_pre_attn_scalar": 17, "num_hidden_layers": 4}
GEMMA3 = {"query_pre_attn_scalar": 17, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
WINDOWS["layer_types"].pop()
OPT = {"ffn_dim": 53, "word_embed_proj_dim": 42, "max_position_embeddings": 41}
CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 6, "rms_norm_eps": 1e-3}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}}),
    "llama biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 64}),
    "llama yarn": ("llama", {"rope_parameters": {**YARN, "rope_theta": 700.0}, "max_position_embeddings": 64}),
    "llama yarn told": ("llama", {"rope_parameters": {**YARN, **TOLD}, "max_position_embeddings": 64}),
    "llama yarn scaled": ("llama", {"rope_parameters": {**YARN, **MSCALES}, "max_position_embeddings": 64}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral without window": ("mistral", {"sliding_window": None, "hidden_act": "gelu"}),
    "phi3": ("phi3", {"hidden_size": 48, "sliding_window": 7}),
    "phi3 partial": (
        "phi3",
        {
            "hidden_size": 48,
            "rope_parameters": {"rope_type": "default", "rope_theta": 99.0, "partial_rotary_factor": 0.75},
        },
    ),
    "qwen2": ("qwen2", {"hidden_size": 48}),
    "qwen2 windows": (
        "qwen2",
        {"hidden_size": 48, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3 windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gemma3": ("gemma3_text", {**GEMMA3, "sliding_window": 5}),
    "gemma3 linear": ("gemma3_text", {**GEMMA3, "rope_parameters": TWO_ROPES, "final_logit_softcapping": 2.0}),
    "olmo2": ("olmo2", {"hidden_size": 48}),
    "smollm3": ("smollm3", {"hidden_size": 48, "no_rope_layer_interval": 2, "num_hidden_layers": 4}),
    "smollm3 windows": ("smollm3", {"hidden_size": 48, "no_rope_layers": [0, 1, 1], **WINDOWS}),
    "phi": ("phi", {"hidden_size": 48}),
    "gpt_neox": ("gpt_neox", {"hidden_size": 48}),
    "gpt_neox below": ("gpt_neox", {"hidden_size": 48, "use_parallel_residual": False, "attention_bias": False}),
    "falcon": ("falcon", {"hidden_size": 48}),
    "falcon new": ("falcon", {"hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon new one norm": (
        "falcon",
        {"hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon below": ("falcon", {"hidden_size": 48, "parallel_attn": False, "multi_query": False, "bias": True}),
    "falcon alibi": (
        "falcon",
        {"hidden_size": 48, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    ),
    "opt": ("opt", OPT),
    "opt behind": ("opt", {**OPT, "do_layer_norm_before": False, "enable_bias": False}),
    "opt narrow": ("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 29}),
    "gpt2": ("gpt2", GPT2),
    "gpt2 scaled": (
        "gpt2",
        {**GPT2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 53, "tie_word_embeddings": False},
    ),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**GEMMA2, "sliding_window": 5}),
    "gemma2 open": ("gemma2", {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "sliding_window": 6}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe some": (
        "qwen3_moe",
        {
            **EXPERTS,
            "num_hidden_layers": 4,
            "mlp_only_layers": [0],
            "decoder_sparse_step": 2,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
}
CASES |= {
    "gpt_oss": ("gpt_oss", {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 5, "head_dim": 10}),
    "gpt_oss narrow": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 7,
            "swiglu_limit": 0.4,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        },
    ),
}
# Models that transformers computes in double: it takes the RMS norms and angles of the others in float32 even then.
IN_DOUBLE = {"gpt2", "opt"}


def difference(ours, theirs):
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    kind, settings = CASES[case]
    x = tokens(3, 31)
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-8 if kind in IN_DOUBLE else 1e-5)):
        theirs = causal(kind, dtype, **settings)
        ours = from_transformers(theirs)
        with torch.no_grad():
            expected = theirs(x).logits
            assert expected.std() > 0.1
            assert difference(ours(x), expected) < most


@pytest.mark.parametrize("case", CASES)
def test_padded_rows(case):
    """A padded row gives what the row alone gives there."""
    kind, settings = CASES[case]
    theirs = causal(kind, **settings)
    ours = from_transformers(theirs)
    x, lengths = tokens(3, 29), (29, 17, 1)
    for left in (False, True):
        mask = torch.arange(29)[None] < torch.tensor(lengths)[:, None]
        mask = mask.flip(1) if left else mask
        with torch.no_grad():
            found = ours(x, mask)
            for row in range(3):
                real = mask[row]
                assert difference(found[row, real], theirs(x[row, real][None]).logits[0]) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_decoding(case):
    """Token after token, beyond the length that the config names."""
    kind, settings = CASES[case]
    theirs = causal(kind, **settings)
    ours = from_transformers(theirs)
    x, cache, state = tokens(2, 37), None, None
    with torch.no_grad():
        for piece in x.split([9, *[1] * 28], 1):
            expected = theirs(piece, cache=cache, use_cache=True)
            cache = expected.cache
            logits, state = ours.step(piece, state)
            assert difference(logits, expected.logits) < 1e-4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"swiglu_alpha": 1.5}, "swiglu_alpha=1.5 of a 'gpt_oss' config has no counterpart in xflash; only 1.702 has"),
        ({"rope_parameters": None}, "the 'gpt_oss' config has no rope_parameters or rope_scaling"),
    ],
)
def test_gates_and_positions_of_gpt_oss_are_known(settings, said):
    theirs = causal("gpt_oss", num_local_experts=3)
    for name, value in settings.items():
        object.__setattr__(theirs.config, name, value)
    with pytest.raises(ValueError, match=said):
        from_transformers(theirs)


def test_dynamic_frequencies():
    """Each token is turned by the length of the text up to it, as transformers does token after token."""
    rope = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0}
    theirs = causal("llama", rope_parameters=rope, max_position_embeddings=13)
    ours = from_transformers(theirs)
    x, cache, found = tokens(2, 29), None, []
    with torch.no_grad():
        for piece in x.split([11, *[1] * 18], 1):
            expected = theirs(piece, cache=cache, use_cache=True)
            cache = expected.cache
            found.append(expected.logits)
        assert difference(ours(x), torch.cat(found, 1)) < 1e-4
        assert difference(from_transformers(causal("llama"))(x), torch.cat(found, 1)) > 1e-2


def longrope():
    short, long = [1.0, 1.1, 1.2, 1.3], [2.0, 3.0, 5.0, 9.0]
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 500.0}
    sizes = {"hidden_size": 48, "max_position_embeddings": 64, "original_max_position_embeddings": 16}
    return causal("phi3", rope_parameters={**rope, "original_max_position_embeddings": 16}, **sizes)


def test_factors_of_short_and_of_long_texts():
    theirs, x = longrope(), tokens(2, 29)
    with torch.no_grad():
        for long, n in ((False, 16), (True, 17), (True, 29)):
            ours = from_transformers(theirs, long_context=long)
            expected = theirs(x[:, :n]).logits
            assert difference(ours(x[:, :n]), expected) < 1e-4
            other = from_transformers(theirs, long_context=not long)
            assert difference(other(x[:, :n]), expected) > 1e-2
