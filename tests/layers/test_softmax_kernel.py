"""Softmax attention: PyTorch's kernel is the definition, for one query or many, in outputs and gradients."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from xflash.layers.kernels.softmax import attend, attend_slow

B, H, K, E, M = 3, 2, 5, 7, 13
BESIDE = {
    "nothing": {},
    "mask": {"mask": torch.arange(M) < torch.tensor([M, 4, 1])[:, None, None, None]},
    "bias": {"bias": "bias"},
    "mask and bias": {"mask": torch.arange(M) % 3 < 2, "bias": "bias"},
}


def inputs(n, dtype=torch.float64):
    chance = torch.Generator().manual_seed(n)
    shapes = ((B, H, n, K), (B, H, M, K), (B, H, M, E), (1, H, n, M))
    return [torch.randn(*shape, generator=chance, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("n", [1, 4, 5])
def test_fast_is_slow(n, beside):
    q, k, v, bias = given = inputs(n)
    options = {name: bias if value == "bias" else value for name, value in beside.items()}
    outputs = attend(q, k, v, **options, scale=0.3), attend_slow(q, k, v, **options, scale=0.3)[0]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    wanted = given if "bias" in beside else given[:3]
    ours, expected = (torch.autograd.grad(y.square().sum(), wanted) for y in outputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def test_one_query_has_gradients_of_its_own():
    q, k, v, bias = inputs(1)
    assert torch.autograd.gradcheck(lambda *t: attend(*t[:3], bias=t[3], scale=0.3), (q, k, v, bias))


def test_compilers_keep_the_fused_kernel():
    """One graph for a token behind any number of others, its products not taken apart."""
    q, k, v = (t.detach() for t in inputs(1)[:3])
    v = torch.cat((v, v), -1)[..., :K]
    torch._dynamo.reset()
    found = []

    def forward(graph, given):
        found.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    fast = torch.compile(attend, fullgraph=True, backend=aot_autograd(fw_compiler=forward))
    with torch.no_grad():
        for m in (13, 7, 11, 5):
            torch.testing.assert_close(fast(q, k[:, :, :m], v[:, :, :m]), attend(q, k[:, :, :m], v[:, :, :m]))
    assert len(found) <= 2
    assert all(any("flash_attention_for_cpu" in name for name in graph) for graph in found), found
