"""What PyTorch asks of an operator, with the kernels in Triton, interpreted, behind it."""

import pytest
import torch
from groups import Case, cut_into
from torch._dynamo.testing import CompileCounterWithBackend

import xflash
from xflash.layers.kernels import fused_groups as fused
from xflash.layers.kernels import triton_groups


@pytest.fixture(autouse=True)
def served(monkeypatch):
    """The dtypes that came to the kernels: all but float64."""
    dtypes = []

    def chosen(hidden, gamma, w):
        if hidden.dtype == torch.float64:
            return None
        dtypes.append(hidden.dtype)
        return triton_groups

    cut_into(monkeypatch)
    monkeypatch.setattr(fused, "triton_groups_for", chosen)
    yield dtypes
    assert dtypes


def test_opcheck():
    case = Case(n=18, turned=6)
    hidden, gamma, beta, vector, closed = case.leaves(torch.float32)
    cos, sin, _ = case.turn(torch.float32)
    settings = (*case.settings, 0, True)
    torch.library.opcheck(fused.flash_groups, (hidden, gamma, beta, vector, cos, sin, closed, None, *settings))
    nothing = (None,) * 5
    hidden = hidden.detach()[:, :5].clone().requires_grad_()
    torch.library.opcheck(fused.flash_groups, (hidden, gamma, *nothing, torch.tensor([5, 2]), *settings))


def test_compiled():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(hidden, gamma, beta, vector):
        return fused.fused_groups(hidden, gamma, beta, Case(closed=False).settings, vector=vector)[0].square().sum()

    fast = torch.compile(loss, fullgraph=True, backend=counter)
    for n in (3, 5, 18):
        given = Case(n=n).leaves(torch.float32)[:4]
        found, right = (torch.autograd.grad(call(*given), given) for call in (fast, loss))
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
    assert counter.frame_count <= 2


@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float16, 2e-3, 4e-3), (torch.bfloat16, 2e-2, 5e-2)])
def test_autocast(served, dtype, forward, backward):
    """In bfloat16 the interpreter cuts off where a GPU rounds, and is twice as far off."""
    case = Case(n=23, closed=False, turned=6, interleaved=True)
    singles, exact = case.leaves(torch.float32)[:4], case.leaves(torch.float64)[:4]
    with torch.autocast("cpu", dtype=dtype):
        low, after = fused.fused_groups(*singles[:3], case.settings, vector=singles[3], turn=case.turn(dtype))
    assert (low.dtype, after.dtype) == (dtype, torch.float32)
    out, _ = fused.fused_groups(*exact[:3], case.settings, vector=exact[3], turn=case.turn(torch.float64))
    assert ((low.double() - out).norm() / out.norm()).item() < forward
    found = torch.autograd.grad((low.float() / 10).square().sum(), singles)
    right = torch.autograd.grad((out / 10).square().sum(), exact)
    assert served == [dtype] * 2
    for ours, theirs in zip(found, right, strict=True):
        assert ours.dtype == torch.float32
        assert ((ours.double() - theirs).norm() / theirs.norm()).item() < backward


def test_second_derivatives_go_the_slow_way():
    case = Case(n=18, closed=False, beta=False, bias=False)
    hidden, gamma, *_ = case.leaves(torch.float32)
    out, _ = fused.fused_groups(hidden, gamma, None, case.settings)
    (once,) = torch.autograd.grad(out.square().sum(), gamma, create_graph=True)
    (twice,) = torch.autograd.grad(once.square().sum(), hidden)
    assert twice.isfinite().all() and twice.any()


def test_a_stack():
    """Outputs, gradients, rows of unlike lengths, a state that goes on, and export, as in float64 without them."""
    torch.manual_seed(0)
    net = xflash.Decoder(
        dim=16, depth=1, layers="flash", flash_group_size=16, flash_query_key_dim=16, rotary_pos_emb=True
    )
    x = torch.randn(2, 37, 16)
    exact = net.double()(x.double())
    wanted = torch.autograd.grad(exact.square().sum(), list(net.parameters()))
    net.float()
    y = net(x)
    torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=1e-4)
    for found, right in zip(torch.autograd.grad(y.square().sum(), list(net.parameters())), wanted, strict=True):
        torch.testing.assert_close(found.double(), right.double(), atol=1e-3, rtol=1e-3)
    mask = torch.arange(37) < torch.tensor([[37], [20]])
    torch.testing.assert_close(net(x, mask=mask)[1, :20], y[1, :20], atol=1e-5, rtol=1e-5)
    first, state = net.step(x[:, :32])
    torch.testing.assert_close(torch.cat((first, net.step(x[:, 32:], state)[0]), 1), y, atol=1e-5, rtol=1e-5)


def test_exported():
    net = xflash.Decoder(dim=16, depth=1, layers="flash", flash_group_size=16, flash_query_key_dim=16)
    x = torch.randn(2, 37, 16)
    program = torch.export.export(net, (x,), dynamic_shapes=({1: torch.export.Dim("n", min=2, max=4096)},))
    assert "flash_groups" in str(program.graph)
    torch.testing.assert_close(program.module()(x[:, :20]), net(x[:, :20]), atol=1e-5, rtol=1e-5)
