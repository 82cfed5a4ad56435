"""Models of transformers against ours: logits in both precisions, padded rows, pieces of a text; small random ones."""

import os

import pytest
import torch

from xflash.convert import from_transformers

try:
    import transformers as peers
except ImportError:
    if os.environ.get("XFLASH_REQUIRE_LIBRARIES") == "1":
        raise
    pytest.skip("transformers is not installed", allow_module_level=True)

VOCABULARY, N = 97, 29
# Widths, heads and lengths that are no multiples of anything.
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 52,
    "intermediate_size": 74,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 14,
    "pad_token_id": 0,
}
# Heads as wide as the stream over their number: an odd width has no pairs.
DIVIDED = {**{name: value for name, value in SMALL.items() if name != "head_dim"}, "hidden_size": 56}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 52, "n_head": 4, "n_layer": 3, "n_positions": 64}


def rope(kind, **numbers):
    return {**SMALL, "rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **numbers}}


PARTIAL = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.43}
NEOX = {name: v for name, v in DIVIDED.items() if name != "num_key_value_heads"} | {"rope_parameters": PARTIAL}
LISTS = {name: [1 + each * i for i in range(7)] for name, each in (("short_factor", 0.1), ("long_factor", 0.9))}
TRAINED = {"original_max_position_embeddings": 16}
LONG = rope("longrope", **LISTS, original_max_position_embeddings=40)
DYNAMIC = rope("dynamic", factor=2.0)
CASES = {
    "LLaMA": ("Llama", SMALL),
    "LLaMA 3.1": ("Llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **TRAINED)),
    "LLaMA, yarn": ("Llama", rope("yarn", factor=4.0, **TRAINED)),
    "LLaMA, yarn of DeepSeek": ("Llama", rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.7, **TRAINED)),
    "LLaMA, yarn of gpt-oss": ("Llama", rope("yarn", factor=4.0, truncate=False, beta_fast=8.0, **TRAINED)),
    "LLaMA, linear": ("Llama", rope("linear", factor=3.0)),
    "LLaMA, dynamic": ("Llama", DYNAMIC),
    "LLaMA, longrope": ("Llama", LONG),
    "LLaMA with biases, tied": (
        "Llama",
        {**SMALL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
    ),
    "Mistral": ("Mistral", {**SMALL, "sliding_window": 7}),
    "Qwen2": ("Qwen2", {**DIVIDED, "tie_word_embeddings": True}),
    "Qwen2, some windows": (
        "Qwen2",
        {**DIVIDED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", {**SMALL, "rms_norm_eps": 1e-3}),
    "OLMo 2": ("Olmo2", DIVIDED),
    "SmolLM3": ("SmolLM3", {**DIVIDED, "no_rope_layers": [1, 0, 1]}),
    "Phi-3": ("Phi3", {**DIVIDED, "sliding_window": 9}),
    "Phi-2": ("Phi", {**DIVIDED, "rope_parameters": PARTIAL}),
    "GPT-NeoX": ("GPTNeoX", NEOX),
    "GPT-NeoX, one block after the other": (
        "GPTNeoX",
        {**NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "GPT-2": ("GPT2", {**GPT2, "n_inner": 74}),
    "GPT-2, scaled by layer": ("GPT2", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "GPT-2, not scaled": ("GPT2", {**GPT2, "scale_attn_weights": False, "tie_word_embeddings": False}),
}  # fmt: skip
# Where norms or rotary angles fall back to float32, double is compared to that.
EXACT = {"GPT2"}


def build(family, settings, dtype=torch.float32):
    """A model of theirs in eval mode, with every parameter moved a little."""
    cls = getattr(peers, f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}")
    torch.manual_seed(0)
    model = cls(getattr(peers, f"{family}Config")(**settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("case", CASES)
def test_logits_padded_and_in_pieces(case):
    family, settings = CASES[case]
    ids = torch.randint(VOCABULARY, (2, N), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(N) < torch.tensor([[N], [17]])
    for dtype, apart in ((torch.float32, 1e-4), (torch.float64, 1e-8 if family in EXACT else 1e-5)):
        peer = build(family, settings, dtype)
        ours = from_transformers(peer)
        expected = peer(ids).logits
        assert expected.std() > 0.5 and expected.dtype == dtype, "the case says nothing"

        def close(found, wanted, apart=apart):
            torch.testing.assert_close(found, wanted, atol=apart, rtol=0)

        close(ours(ids), expected)
        alone = peer(ids[1:, :17]).logits[0]
        close(ours(ids, mask=mask)[1, :17], alone)
        close(ours(ids.roll(N - 17, 1), mask=mask.flip(1))[1, -17:], alone)
        state, pieces = None, []
        for piece in ids.split([11, 1, 1, N - 13], 1):
            y, state = ours.step(piece, state)
            pieces.append(y)
        close(torch.cat(pieces, 1), expected)


def test_what_is_built_is_saved_and_shares_nothing(tmp_path):
    import xflash

    peer = build("Qwen3", {**SMALL, "tie_word_embeddings": True})
    ours = from_transformers(peer.train())
    assert ours.training and not from_transformers(peer.eval()).training
    ids = torch.randint(VOCABULARY, (1, 7))
    ours.eval()
    expected = ours(ids)
    for p in peer.parameters():
        p.zero_()
    assert torch.equal(ours(ids), expected)
    ours.save(tmp_path)
    assert torch.equal(xflash.load(tmp_path).eval()(ids), expected)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())


def test_dynamic_rotary_positions_beyond_what_was_trained_are_those_of_decoding_with_a_cache():
    """A token has the frequencies of the text up to it, in one call too; theirs turns a whole text by its length."""
    peer = build("Llama", DYNAMIC, torch.float64)
    ids = torch.randint(VOCABULARY, (2, 90), generator=torch.Generator().manual_seed(1))
    out = peer(ids[:, :60], use_cache=True)
    found = [out.logits]
    for i in range(60, 90):
        out = peer(ids[:, i : i + 1], cache=out.cache, use_cache=True)
        found.append(out.logits)
    torch.testing.assert_close(from_transformers(peer)(ids), torch.cat(found, 1), atol=1e-4, rtol=0)


def test_longrope_for_long_texts():
    peer = build("Llama", LONG, torch.float64)
    ids = torch.randint(VOCABULARY, (2, 53), generator=torch.Generator().manual_seed(1))
    expected = peer(ids).logits
    torch.testing.assert_close(from_transformers(peer, long_texts=True)(ids), expected, atol=1e-4, rtol=0)
    assert (from_transformers(peer)(ids) - expected).abs().max() > 0.1


REFUSED = {
    "no counterpart of layer_types='chunked_attention'": ("Llama", {**SMALL, "layer_types": ["chunked_attention"] * 3}),
    "no counterpart of hidden_act='gelu_10'": ("Llama", {**SMALL, "hidden_act": "gelu_10"}),
    "no counterpart of add_cross_attention=True": ("GPT2", {**GPT2, "add_cross_attention": True}),
    "no counterpart of rope_type='proportional'": ("Llama", rope("proportional", factor=1.0)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_there_is_no_counterpart_of_is_refused_by_name(message):
    family, settings = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        from_transformers(build(family, settings))
