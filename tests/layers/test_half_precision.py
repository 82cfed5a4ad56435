"""Models of bfloat16 and float16 altogether, without autocast: every block keeps its dtype, whole and in pieces."""

import laws
import pytest
import torch
from cases import CASES, both_ways, build
from quick import quick

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Beside what the laws are called over.
FURTHER = {
    "lstm, single": {"layers": "recurrent", "recurrent_gate": "lstm", "recurrent_update": "single"},
    "gru, dual": {"layers": "recurrent", "recurrent_gate": "gru", "recurrent_update": "dual"},
    "fixed, dual, no cosines": {"layers": "recurrent", "recurrent_update": "dual", "recurrent_cosine": False},
    "softmax": {"layers": "flash gau", "flash_attn_fn": "softmax", "gau_attn_fn": "softmax_plus"},
    "laplace": {"layers": "flash gau", "flash_attn_fn": "laplace", "gau_attn_fn": "laplace", "gau_heads": 2},
    "variations": {
        "layers": "attn ff",
        "attn_qk_norm": True,
        "attn_num_mem_kv": 2,
        "attn_gate_values": True,
        "attn_head_scale": True,
        "ff_glu": True,
        "ff_post_act_ln": True,
    },
}
EVERY = both_ways({**CASES, **FURTHER})


def near(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Within some roundings of 8 bits: layers add up."""
    assert ours.isfinite().all()
    assert (ours.double() - exact).abs().max() < 0.15 * exact.abs().max()


@pytest.mark.parametrize(
    ("flags", "causal", "dtype"),
    quick(
        [
            pytest.param(*case.values, list(HALVES.values())[i % 2], id=f"{case.id}-{list(HALVES)[i % 2]}")
            for i, case in enumerate(EVERY)
        ],
        lambda _, number: number % 3 == 0,
    ),
)
def test_a_model_of_half_precision(flags, causal, dtype):
    flags = {**flags, "shift_tokens": 1 if flags.get("shift_tokens") else 0}
    stack = laws.live(build(causal=causal, **{"depth": 1, **flags}))
    x = laws.sample(stack, 19)
    with torch.no_grad():
        exact = laws.run(stack, x)
    stack = stack.to(dtype)
    given = x.to(dtype).requires_grad_()
    y = laws.run(stack, given)
    assert y.dtype == dtype
    near(y.detach(), exact)
    y.float().square().mean().backward()
    assert given.grad.dtype == dtype and given.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in stack.parameters())
    if causal:
        with torch.no_grad():
            pieces, _ = laws.steps(stack, x.to(dtype), [5, 1, 1, 8, 1, 3])
        assert pieces.dtype == dtype
        near(pieces, exact)


@pytest.mark.parametrize("update", ["skip", "single", "dual"])
@pytest.mark.parametrize("gate", ["fixed", "lstm", "gru"])
def test_gates_of_state_vectors(update, gate):
    """The vectors are kept in float32, whatever their maps are of."""
    stack = laws.live(build("recurrent", causal=True, depth=1, recurrent_update=update, recurrent_gate=gate))
    x = laws.sample(stack, 17)
    exact = laws.run(stack, x).detach()
    for dtype in HALVES.values():
        y, state = stack.to(dtype).step(x.to(dtype))
        assert state.branches[0].block.vectors.dtype == torch.float32
        near(y.detach(), exact)
        y.float().square().sum().backward()
