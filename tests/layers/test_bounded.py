"""Documents, prefixes, padding and biases by distance that are read between bounds, and when one matrix is instead."""

from functools import partial

import laws
import pytest
import torch
from cases import build
from torch.nn.attention.flex_attention import flex_attention

from xflash import PrefixDecoder
from xflash.layers import blocks
from xflash.layers.kernels import bounded

ways = blocks.bounded
N = 23
IDS = torch.tensor([[0] * 9 + [3] * 14, [1] * 20 + [2] * 3, [5] * 23])
MASK = torch.arange(N) < torch.tensor([N, 7, 0])[:, None]
GIVEN = {
    "documents": (True, {"pos": "rotary", "attn_kv_heads": 1}, {"doc_ids": IDS}),
    "documents, padded": (False, {"pos": "rotary"}, {"doc_ids": IDS, "mask": MASK}),
    "prefix": (None, {"pos": "rel_pos"}, {"prefix_attn_len": torch.tensor([3, 20, 0])}),
    "padded": (False, {"attn_value_dim_head": 3}, {"mask": MASK}),
    "alibi": (True, {"pos": "alibi"}, {"mask": MASK}),
    "both ways": (False, {"pos": ("rotary", "rel_pos")}, {}),
}


@pytest.fixture
def always(monkeypatch):
    """Calls of any length are read in blocks of five; gives the bounds of those that were."""
    found = []
    monkeypatch.setattr(bounded, "BLOCK", 5)
    monkeypatch.setattr(ways, "LEAST", 2)
    monkeypatch.setattr(ways, "whole_bounds", lambda *call: found.append(whole_bounds(*call)) or found[-1])
    return found


whole_bounds = ways.whole_bounds


def stack_of(causal, **flags):
    flags = {"layers": "attn ff", "depth": 2, **flags}
    if causal is None:
        return PrefixDecoder(dim=8, heads=2, attn_dim_head=6, **flags)
    return build(causal=causal, **flags)


def trained(stack, given):
    x = laws.sample(stack, N).requires_grad_()
    y = laws.run(stack, x, **given)
    return y, *torch.autograd.grad(
        y.square().sum(), [x, *stack.parameters()], materialize_grads=True, allow_unused=True
    )


@pytest.mark.parametrize(("causal", "flags", "given"), GIVEN.values(), ids=GIVEN)
def test_bounds_are_the_mask(causal, flags, given, always, monkeypatch):
    stack = laws.live(stack_of(causal, **flags))
    ours = trained(stack, given)
    # Once for all layers.
    assert len(always) == 1
    monkeypatch.setattr(ways, "LEAST", N + 1)
    torch.testing.assert_close(ours, trained(stack, given), rtol=0, atol=1e-9)
    assert len(always) == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("causal", "flags", "given"), GIVEN.values(), ids=GIVEN)
def test_flex_is_the_mask(causal, flags, given, always, monkeypatch):
    """What a GPU would be told, by PyTorch's definition of it."""
    stack = laws.live(stack_of(causal, **flags))
    x = laws.sample(stack, N)
    with torch.no_grad():
        expected = laws.run(stack, x, **given)
        monkeypatch.setattr(ways, "can_flex", lambda q, v, dropout: True)
        monkeypatch.setattr(ways, "attend_flex", partial(ways.attend_flex, read=flex_attention))
        laws.close(laws.run(stack, x, **given), expected, "by FlexAttention")


MATRIX = {
    "maps": ({"pos": "alibi"}, lambda stack, x: stack.attention_maps(x)),
    "a mask": ({"pos": "alibi"}, lambda stack, x: stack(x, attn_mask=torch.ones(N, N, dtype=torch.bool))),
    "the flag": ({"pos": "alibi", "attn_flash": False}, laws.run),
    "memory keys": ({"pos": "alibi", "attn_num_mem_kv": 2}, laws.run),
    "steps": ({"pos": "alibi", "attn_scores": "learned_sink"}, laws.run),
    "a window": ({"pos": "alibi", "attn_window": 7}, laws.run),
    "what a kernel knows": ({"pos": "rotary"}, laws.run),
    "behind a state": ({"pos": "alibi"}, lambda stack, x: laws.go(stack, x, laws.go(stack, x[:, :1])[1])),
}


@pytest.mark.parametrize(("flags", "call"), MATRIX.values(), ids=MATRIX)
def test_one_matrix_is_read_where_it_is_needed(flags, call, always):
    stack = laws.live(stack_of(True, **flags))
    call(stack, laws.sample(stack, N))
    assert not always


def test_the_rows_of_vmap(always):
    """Bounds that are no row's own can be looked at there too."""
    stack = laws.live(stack_of(True, pos="rel_pos"))
    x = laws.sample(stack, N)
    grads = torch.func.vmap(torch.func.grad(lambda row: stack(row[None]).square().sum()))(x)
    y = x.clone().requires_grad_()
    laws.close(grads, torch.autograd.grad(stack(y).square().sum(), y)[0], "rows")
    assert len(always) == 2
