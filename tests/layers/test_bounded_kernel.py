"""Attention between two bounds of each query against one matrix of all queries and keys: outputs and gradients."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from xflash.layers.kernels import bounded, flex
from xflash.layers.kernels.bounded import attend_bounded, seen_between
from xflash.layers.kernels.flex import attend_flex, can_flex, flex_mask
from xflash.layers.kernels.relative import toeplitz
from xflash.layers.kernels.softmax import attend_slow
from xflash.layers.kernels.tiles import Between

B, H, K, E, N = 2, 6, 5, 7, 61
AT = torch.arange(N)[None]
PATTERNS = {
    "causal": (0 * AT, AT + 1),
    "documents": (torch.tensor([[0] * 20 + [20] * 41, [0] * 59 + [59] * 2]), (AT + 1).expand(B, -1)),
    "prefix": (0 * AT.expand(B, -1), torch.maximum(AT + 1, torch.tensor([[17], [50]]))),
    "padded": (0 * AT.expand(B, -1), torch.tensor([[N], [23]]).expand(B, N)),
    "far": (torch.tensor([[50] * 30 + [0] * 31]), torch.tensor([[N] * 30 + [9] * 31])),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bounded, "BLOCK", 8)
    monkeypatch.setattr(flex, "BLOCK", 16)


def inputs(g: int, dtype=torch.float64, width=K):
    chance = torch.Generator().manual_seed(g)
    shapes = ((B, H, N, width), (B, g, N, width), (B, g, N, E), (H, 2 * N - 1))
    return [torch.randn(*shape, generator=chance, dtype=dtype).requires_grad_() for shape in shapes]


def slow(q, k, v, between, vector):
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    bias = None if vector is None else toeplitz(vector, N, N)[None]
    return attend_slow(q, k, v, seen_between(between, N), bias, scale=0.3)[0]


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_blocks_are_the_matrix(pattern, bias):
    q, k, v, vector = given = inputs(3 if bias else 6)
    between, vector = Between(*pattern), vector if bias else None
    outputs = attend_bounded(q, k, v, between, vector, 0.3), slow(q, k, v, between, vector)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    ours, expected = (torch.autograd.grad(y.square().sum(), given[: 3 + bias]) for y in outputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def test_what_is_not_seen_is_not_read():
    """NaN elsewhere spoils nothing, but in the blocks that are read."""
    q, k, v, _ = (t.detach() for t in inputs(6))
    between = Between(torch.tensor([[0] * 24 + [24] * 37]), AT + 1)
    poisoned = [torch.cat((torch.full_like(t[:, :, :24], torch.nan), t[:, :, 24:]), 2) for t in (k, v)]
    y = attend_bounded(q, *poisoned, between, scale=0.3)
    torch.testing.assert_close(y[:, :, 24:], slow(q, k, v, between, None)[:, :, 24:], rtol=0, atol=1e-12)


def test_both_bounds_are_needed():
    q, k, v, _ = inputs(6)
    with pytest.raises(ValueError, match="both bounds are needed"):
        attend_bounded(q, k, v, Between(None, AT + 1))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_flex_is_told_the_same(pattern, bias):
    """By PyTorch's own definition of FlexAttention, which looks at no blocks: these are looked at below."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v, vector = (t.detach() for t in inputs(3 if bias else 6, width=8))
    between, vector = Between(*pattern), vector if bias else None
    mask = flex_mask(between, N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = attend_flex(q, k, v, mask, vector, 0.3, flex_attention)
    torch.testing.assert_close(y, slow(q, k, v, between, vector), rtol=0, atol=1e-12)
    seen = torch.nn.functional.pad(seen_between(between, N), (0, -N % 16, 0, -N % 16))
    blocks = seen.unflatten(3, (-1, 16)).unflatten(2, (-1, 16)).any(5).any(3)
    assert (mask.to_dense().bool() == blocks).all() or pattern is PATTERNS["far"]
    assert (mask.to_dense().bool() >= blocks).all()


class OnGPU:
    """What `can_flex` looks at of a tensor there."""

    is_cuda = True

    def __init__(self, dtype, width):
        self.shape, self.dtype = (B, H, N, width), dtype

    def element_size(self):
        return self.dtype.itemsize


def test_flex_is_for_gpus(monkeypatch):
    q, other, exact = OnGPU(torch.bfloat16, 64), OnGPU(torch.bfloat16, 24), OnGPU(torch.float64, 64)
    assert can_flex(q, q, 0.0) == flex.KNOWN
    assert not (can_flex(q, q, 0.1) or can_flex(other, q, 0.0) or can_flex(q, other, 0.0) or can_flex(exact, q, 0.0))
    assert not can_flex(*inputs(6)[:2], 0.0)
    monkeypatch.setattr(flex, "WANTED", False)
    assert not can_flex(q, q, 0.0)


def test_the_environment_says_whether_it_is_wanted():
    lazy = "'torch.nn.attention.flex_attention' in sys.modules"
    ask = f"import sys; from xflash.layers.kernels import flex; print(flex.WANTED, {lazy})"
    for value, wanted in (("0", "False"), ("1", "True")):
        environment = os.environ | {"XFLASH_FLEX": value}
        words = [sys.executable, "-c", ask]
        said = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        assert said.stdout.split() == [wanted, "False"]
