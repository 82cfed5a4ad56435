"""The constructions people bring from x-transformers' README: they build as written, and run when shrunk."""

import pytest
import torch

from xflash import Decoder, Encoder, TransformerWrapper

# What each of its snippets adds: flags of the wrapper, the class of the stack, flags of the stack.
SNIPPETS = {
    "decoder only": ({}, Decoder, {"depth": 12}),
    "encoder only": ({}, Encoder, {"depth": 12}),
    "dropouts": ({"emb_dropout": 0.1}, Decoder, {"layer_dropout": 0.1, "attn_dropout": 0.1, "ff_dropout": 0.1}),
    "flash attention": ({}, Decoder, {"attn_flash": True}),
    "persistent memory": ({}, Encoder, {"attn_num_mem_kv": 16}),
    "memory transformers": ({"num_memory_tokens": 20}, Encoder, {}),
    "memory tokens in a decoder": ({"num_memory_tokens": 20}, Decoder, {}),
    "transformers without tears": ({}, Decoder, {"use_scalenorm": True}),
    "fixnorm": ({"l2norm_embed": True}, Decoder, {}),
    "post_emb_norm": ({"post_emb_norm": True}, Decoder, {}),
    "rmsnorm": ({}, Decoder, {"use_rmsnorm": True}),
    "simple rmsnorm": ({}, Decoder, {"use_simple_rmsnorm": True}),
    "glu": ({}, Decoder, {"ff_glu": True}),
    "swiglu": ({}, Decoder, {"ff_swish": True, "ff_glu": True}),
    "no bias in feedforward": ({}, Decoder, {"ff_no_bias": True}),
    "relu squared": ({}, Decoder, {"ff_relu_squared": True}),
    "one key/value head": ({}, Decoder, {"attn_one_kv_head": True}),
    "grouped queries": ({}, Decoder, {"attn_kv_heads": 2}),
    "gate values": ({}, Encoder, {"attn_gate_values": True}),
    "tied layers": ({}, Encoder, {"depth": 12, "weight_tie_layers": True}),
    "custom layers": ({}, Encoder, {"depth": None, "custom_layers": ("a", "f") * 5}),
    "t5 bias": ({}, Decoder, {"rel_pos_bias": True}),
    "rotary": ({}, Decoder, {"rotary_pos_emb": True}),
    "xpos": ({}, Decoder, {"rotary_xpos": True}),
    "alibi": ({}, Decoder, {"alibi_pos_bias": True, "alibi_num_heads": 4}),
    "shifted tokens": ({}, Decoder, {"shift_tokens": 1}),
    "shifted tokens a layer": ({}, Decoder, {"shift_tokens": (1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0)}),
    "sandwich norm": ({}, Decoder, {"sandwich_norm": True}),
    "normformer": ({}, Decoder, {"attn_head_scale": True, "ff_post_act_ln": True, "scale_residual": True}),
    "cosine attention": ({}, Decoder, {"attn_qk_norm": True, "attn_qk_norm_groups": 8}),
    "cosine attention, learned": ({}, Decoder, {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True}),
    "no absolute positions": ({"use_abs_pos_emb": False}, Decoder, {}),
}


def model(cls, arguments, flags, **size):
    size = {"num_tokens": 20000, "max_seq_len": 1024, "dim": 512, "depth": 6, "heads": 8, **size}
    stack = {name: size[name] for name in ("dim", "depth", "heads")} | flags
    layers = cls(**{name: value for name, value in stack.items() if value is not None})
    return TransformerWrapper(
        num_tokens=size["num_tokens"], max_seq_len=size["max_seq_len"], attn_layers=layers, **arguments
    )


@pytest.mark.parametrize("name", SNIPPETS)
def test_it_builds_as_written(name):
    arguments, cls, flags = SNIPPETS[name]
    with torch.device("meta"):
        assert model(cls, arguments, flags).dim == 512


@pytest.mark.parametrize("name", SNIPPETS)
def test_it_runs_when_shrunk(name):
    arguments, cls, flags = SNIPPETS[name]
    net = model(cls, arguments, flags, num_tokens=31, max_seq_len=17, dim=32)
    x = torch.randint(0, 31, (1, 17))
    logits = net(x, mask=torch.ones_like(x).bool())
    assert logits.shape == (1, 17, 31)
    assert logits.isfinite().all()
    logits.logsumexp(-1).sum().backward()


def test_gpt3_builds_on_meta():
    with torch.device("meta"):
        gpt3 = TransformerWrapper(
            num_tokens=50000, max_seq_len=2048, attn_layers=Decoder(dim=12288, depth=96, heads=96, attn_dim_head=128)
        )
    assert sum(p.numel() for p in gpt3.parameters()) > 174e9


def test_flags_that_come_with_other_parts_are_named():
    """Not silently dropped, as x-transformers drops what it does not know in some places."""
    for flag in ("par_ratio", "use_derf"):
        with pytest.raises(TypeError, match=f"unknown flag '{flag}'; xflash has no counterpart of this flag"):
            Decoder(dim=32, depth=1, **{flag: True})
