"""Steps on scores and weight functions against x-transformers' attention, outputs and gradients of parameters."""

import pytest
import torch
from x_transformers_cases import exact, peers

import xflash
from xflash.convert import from_x_transformers

DIM, N = 22, 13
SMALL = {"dim": DIM, "depth": 2, "heads": 6, "attn_dim_head": 5}
CASES = {
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
    "sigmoid": {"attn_sigmoid": True},
    "hard": {"attn_hard": True},
    "sigmoid and sinks": {"attn_sigmoid": True, "attn_head_learned_sink": True, "attn_post_talking_heads": True},
    "cross": {"cross_attend": True, "attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.5},
    "cross, residual": {"cross_attend": True, "cross_residual_attn": True, "residual_attn": True, "depth": 3},
    "cross, its own": {"cross_attend": True, "attn_hard": True, "cross_attn_hard": False, "cross_attn_sigmoid": True},
}  # fmt: skip


def pair(flags):
    """Their stack with every parameter moved, and ours with its weights."""
    torch.manual_seed(0)
    theirs = peers.Decoder(**{**SMALL, "verbose": False, **flags})
    theirs = exact(theirs)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return theirs, from_x_transformers(theirs)


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_a_step_is_theirs(flags):
    theirs, ours = pair(flags)
    x = torch.randn(2, N, DIM, dtype=torch.float64, requires_grad=True)
    beside = {"context": torch.randn(2, 7, DIM, dtype=torch.float64)} if flags.get("cross_attend") else {}
    outputs = [stack(x, **beside) for stack in (theirs, ours)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-8)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_the_same_words_build_the_same_stack(flags):
    """What theirs is told builds ours alike, but for its layout and what a converted stack says of itself."""
    converted = pair(flags)[1]
    ours = xflash.Decoder(**{**SMALL, **flags})
    for one, other in zip(ours.blocks(), converted.blocks(), strict=True):
        if hasattr(one, "reader"):
            assert one.config == other.config
            assert [s.config for s in one.reader.steps.values()] == [s.config for s in other.reader.steps.values()]
