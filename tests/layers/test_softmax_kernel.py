"""Softmax attention: PyTorch's kernel and the way of few queries are the definition, in outputs and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from xflash.layers.kernels import softmax
from xflash.layers.kernels.softmax import FEW, are_few, attend, attend_slow, few_queries

B, H, K, E, M = 3, 2, 5, 7, 13
BESIDE = {
    "nothing": {},
    "mask": {"mask": torch.arange(M) < torch.tensor([M, 4, 1])[:, None, None, None]},
    "bias": {"bias": "bias"},
    "mask and bias": {"mask": torch.arange(M) % 3 < 2, "bias": "bias"},
}


@pytest.fixture(autouse=True, params=[0, 2**19], ids=["long", "short"])
def length(request, monkeypatch):
    """Keys as many as they are, or taken for many."""
    monkeypatch.setattr(softmax, "LONG", request.param)


def inputs(n, dtype=torch.float64):
    chance = torch.Generator().manual_seed(n)
    shapes = ((B, H, n, K), (B, H, M, K), (B, H, M, E), (1, H, n, M))
    return [torch.randn(*shape, generator=chance, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("n", [1, FEW, FEW + 1])
def test_fast_is_slow(n, beside):
    q, k, v, bias = given = inputs(n)
    options = {name: bias if value == "bias" else value for name, value in beside.items()}
    assert are_few(q) == (n <= FEW)
    outputs = attend(q, k, v, **options, scale=0.3), attend_slow(q, k, v, **options, scale=0.3)[0]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    wanted = given if "bias" in beside else given[:3]
    ours, expected = (torch.autograd.grad(y.square().sum(), wanted) for y in outputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def test_few_queries_have_gradients_of_their_own():
    q, k, v, bias = inputs(1)
    assert torch.autograd.gradcheck(lambda *t: attend(*t[:3], bias=t[3], scale=0.3), (q, k, v, bias))


def test_half_precision_keeps_the_scores_of_the_fused_kernel():
    q, k, v = (t.detach() for t in inputs(1, torch.bfloat16)[:3])
    assert not are_few(q)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v, scale=1.0), rtol=0, atol=0)


def test_the_operator_is_one_for_compilers():
    q, k, v, bias = (t.detach() for t in inputs(1))
    for mask in (None, bias, bias > 0):
        torch.library.opcheck(few_queries, (q, k, v, mask, 0.3))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(attend, fullgraph=True, backend=counter)
    with torch.no_grad():
        for m in (13, 7, 11, 5):
            torch.testing.assert_close(fast(q, k[:, :, :m], v[:, :, :m]), attend(q, k[:, :, :m], v[:, :, :m]))
    assert counter.frame_count <= 2
    names = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes]
    assert any("few_queries" in name for name in names)
