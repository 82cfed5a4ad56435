"""Language models of transformers are these flags: the same logits, padded, with a cache, in both precisions."""

import pytest
import torch
from peers import causal, tokens

from xflash.convert import from_transformers

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 19, "head_dim": 10}
GPT2 = {"n_embd": 42, "n_head": 6, "n_layer": 3, "n_positions": 41}
SCALED = {"scale_attn_by_inverse_layer_idx": True, "n_inner": 53, "tie_word_embeddings": False}
CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 6, "rms_norm_eps": 1e-3}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}}),
    "llama biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral without window": ("mistral", {"sliding_window": None, "hidden_act": "gelu"}),
    "phi3": ("phi3", {"hidden_size": 48, "sliding_window": 7}),
    "qwen2": ("qwen2", {"hidden_size": 48}),
    "qwen2 windows": (
        "qwen2",
        {"hidden_size": 48, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3 windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gpt2": ("gpt2", GPT2),
    "gpt2 scaled": (
        "gpt2",
        {**GPT2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 53, "tie_word_embeddings": False},
    ),
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
# Models that transformers computes in double: it takes the RMS norms and angles of the others in float32 even then.
IN_DOUBLE = {"gpt2"}


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
