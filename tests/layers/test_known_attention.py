"""Attention and norms as known models have them: by hand, under the laws, or refused."""

import laws
import pytest
import torch
from cases import DIM, HEADS, build

from xflash import Decoder

WIDTH = 6


def rms(t, gain, eps):
    return t / (t.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def gains(block, role):
    gain = getattr(block, f"{role}_gain")
    return 1 + gain if block.config.qk_rmsnorm_unit_offset else gain


def by_hand(block, x):
    """Causal attention a head at a time; query head h uses key head h // r."""
    config, r = block.config, block.heads // block.kv_heads
    # By key/value head: its queries, its key, its value.
    every = block.query_key_value(x).unflatten(-1, (block.kv_heads, r + 2, WIDTH))
    q, k, v = every[..., :r, :].flatten(2, 3), every[..., r, :], every[..., r + 1, :]
    if config.qk_rmsnorm == "head":
        q, k = rms(q, gains(block, "q"), config.qk_rmsnorm_eps), rms(k, gains(block, "k"), config.qk_rmsnorm_eps)
    if config.qk_rmsnorm == "width":
        q = rms(q.flatten(2), gains(block, "q"), config.qk_rmsnorm_eps).view(q.shape)
        k = rms(k.flatten(2), gains(block, "k"), config.qk_rmsnorm_eps).view(k.shape)
    scale = WIDTH**-0.5 if config.score_scale is None else config.score_scale
    there = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    ahead = there.triu(1) if config.window is None else there.triu(1) | there.tril(-config.window)
    heads = []
    for h in range(block.heads):
        scores = q[:, :, h] @ k[:, :, h // r].mT * scale
        if "softclamp" in block.reader.steps:
            cap = block.reader.steps["softclamp"].config.value
            scores = cap * (scores / cap).tanh()
        scores = scores.masked_fill(ahead, -torch.inf)
        if "learned_sink" in block.reader.steps:
            sink = block.reader.steps["learned_sink"].score[h].expand(*scores.shape[:2], 1)
            scores = torch.cat((scores, sink), -1)
        heads.append(scores.softmax(-1)[..., : x.shape[1]] @ v[:, :, h // r])
    return block.to_out(torch.cat(heads, -1))


ATTENTION = {
    "plain": {},
    "GPT-2": {"attn_qkv_bias": True, "attn_out_bias": True},
    "Qwen2": {"attn_qkv_bias": True, "attn_kv_heads": 2},
    "an output bias": {"attn_out_bias": True},
    "T5": {"attn_score_scale": 1.0},
    "Qwen3": {"attn_qk_rmsnorm": "head", "attn_kv_heads": 1},
    "OLMo 2": {"attn_qk_rmsnorm": "width", "attn_kv_heads": 2, "attn_qk_rmsnorm_eps": 1e-3},
    "Gemma 3": {"attn_qk_rmsnorm": "head", "attn_qk_rmsnorm_unit_offset": True, "attn_score_scale": 0.3},
    "Gemma 2": {"attn_scores": "softclamp", "attn_softclamp_value": 3.0, "attn_score_scale": 0.3}
    | {"attn_kv_heads": 2, "attn_window": 4},
    "gpt-oss": {"attn_scores": "learned_sink", "attn_qkv_bias": True, "attn_out_bias": True}
    | {"attn_kv_heads": 2, "attn_window": 4},
    "all": {
        "attn_qk_rmsnorm": "width",
        "attn_qk_rmsnorm_unit_offset": True,
        "attn_score_scale": 0.7,
        "attn_qkv_bias": True,
        "attn_out_bias": True,
    },
}


@pytest.mark.parametrize("flash", [None, False])
@pytest.mark.parametrize("model", ATTENTION)
def test_attention_by_hand(model, flash):
    stack = laws.live(build("attn", 1, causal=True, final_norm=False, attn_flash=flash, **ATTENTION[model]))
    block, before = stack.branches[0].block, stack.branches[0].before
    for name, given in (("query_key_value", "attn_qkv_bias"), ("to_out", "attn_out_bias")):
        assert (getattr(block, name).bias is not None) is ATTENTION[model].get(given, False)
    x = laws.sample(stack, 11)
    hand = laws.trained(stack, lambda: [x + by_hand(block, before(x))])
    for ours, theirs in zip(laws.trained(stack, lambda: [stack(x)]), hand, strict=True):
        laws.close(ours, theirs, model)


def test_biases_and_gains_start_as_if_they_were_not_there():
    x = torch.randn(2, 7, DIM)
    plain = build("attn", causal=True)
    known = build("attn", causal=True, attn_qkv_bias=True, attn_out_bias=True)
    known.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(known(x), plain(x))
    for offset in (False, True):
        stack = build("attn", causal=True, attn_qk_rmsnorm="head", attn_qk_rmsnorm_unit_offset=offset)
        assert set(gains(stack.branches[0].block, "q").tolist()) == {1.0}


# Beside keys that are learned, kept in a window, turned, shared and normed as those of a context are.
COMPANY = {
    "biases": {"attn_qkv_bias": True, "attn_out_bias": True, "attn_num_mem_kv": 2, "attn_value_residual": True},
    "heads": {"attn_qk_rmsnorm": "head", "attn_kv_heads": 2, "attn_window": 5, "attn_num_mem_kv": 2, "pos": "rotary"},
    "width": {"attn_qk_rmsnorm": "width", "attn_kv_heads": 2, "attn_scores": "softclamp learned_sink"}
    | {"attn_qkv_bias": True, "attn_score_scale": 0.7, "attn_num_mem_kv": 3, "num_memory_tokens": 2},
    "views": {"attn_qk_rmsnorm": "width", "attn_qkv_bias": True, "reads": "lime", "lime_views": True}
    | {"norm": "rmsnorm", "norm_unit_offset": True, "norm_place": "sandwich"},
}


@pytest.mark.parametrize("case", COMPANY)
def test_laws(case, tmp_path):
    cross = {} if case == "views" else {"cross_attn_dim_context": 22, "cross_attn_dim_head": WIDTH}
    stack = build("attn cross_attn" if cross else "attn ff", causal=True, **COMPANY[case], **cross)
    laws.all_laws(stack, tmp_path, ways=(False,))
    laws.sane_start(build("attn cross_attn" if cross else "attn ff", causal=True, **COMPANY[case], **cross))


def test_cross_attention_takes_them_over():
    flags = {"attn_qkv_bias": True, "attn_out_bias": True, "attn_qk_rmsnorm": "width", "attn_score_scale": 0.4}
    stack = Decoder(dim=DIM, depth=1, heads=HEADS, cross_attend=True, attn_dim_head=WIDTH, attn_kv_heads=2, **flags)
    cross = next(block for block in stack.blocks() if block.kind == "cross_attn")
    assert cross.key_value.bias is not None and cross.to_q.bias is not None and cross.to_out.bias is not None
    assert cross.q_gain.shape == (HEADS * WIDTH,) and cross.k_gain.shape == (2 * WIDTH,)
    assert cross.reader.scale == 0.4


REFUSED = {
    "attn_qk_norm=True and attn_qk_rmsnorm='head' are two norms of the same queries": {
        "attn_qk_norm": True,
        "attn_qk_rmsnorm": "head",
    },
    "attn_qk_rmsnorm_eps=0.1 is set, but attn_qk_rmsnorm is None": {"attn_qk_rmsnorm_eps": 0.1},
    "attn_qk_rmsnorm_unit_offset=True is set, but attn_qk_rmsnorm is None": {"attn_qk_rmsnorm_unit_offset": True},
    "attn_score_scale=0.3 is set, but attn_qk_norm=True multiplies scores by attn_qk_norm_scale=10.0": {
        "attn_score_scale": 0.3,
        "attn_qk_norm": True,
    },
    "attn_score_scale must be above 0, not 0": {"attn_score_scale": 0},
    "attn_qk_rmsnorm='heads' is not one of 'head' | 'width' | None; did you mean 'head'": {"attn_qk_rmsnorm": "heads"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_contradicts_is_refused(message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build("attn", **REFUSED[message])


NORMS = {
    "layernorm": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-3).sqrt(),
    "rmsnorm": lambda x: rms(x, 1, 1e-3),
    "scalenorm": lambda x: rms(x, 1, 1e-3),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_gain_of_one_and_what_is_learned(name, tmp_path):
    flags = {"norm": name, "norm_eps": 1e-3, "norm_place": "sandwich"}
    known = build("attn ff", causal=True, **flags, norm_unit_offset=True).double()
    plain = build("attn ff", causal=True, **flags).double()
    x = laws.sample(plain, 7)
    laws.close(known(x), plain(x), "at the start")
    norm = laws.live(known).final_norm
    laws.close(norm(x), NORMS[name](x) * (1 + norm.gain), "by hand")
    laws.all_laws(known, tmp_path, ways=(False,))


def test_small_gains_are_not_lost_in_half_precision():
    """Gemma: 1 + w is taken in float32, where bfloat16 has no number between 1 and 1.0078."""
    norm = build("attn", norm="rmsnorm", norm_unit_offset=True).bfloat16().final_norm
    torch.nn.init.constant_(norm.gain, 2**-9)
    x = torch.linspace(1, 2, DIM).bfloat16()
    exact = (rms(x.float(), 1 + 2**-9, 1e-5)).bfloat16()
    assert torch.equal(norm(x), exact) and not torch.equal(exact, rms(x.float(), 1, 1e-5).bfloat16())


def test_slopes_of_alibi_are_scaled():
    distance, found = torch.arange(7), []
    for scale in (1.0, 0.3):
        stack = Decoder(dim=12, depth=1, heads=3, pos="alibi", alibi_slope_scale=scale)
        found.append(stack.positions["alibi"].by_distance(distance, 3, torch.float64))
    assert torch.allclose(found[1], found[0] * 0.3, atol=0, rtol=1e-15)
