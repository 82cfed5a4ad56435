"""Operators of our own can be differentiated again: `create_graph=True` takes a slower way to the same gradients."""

import laws
import pytest
import torch
from torch.autograd import grad, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper
from xflash.layers.kernels.chunked_losses import chunked_losses
from xflash.layers.kernels.fused_groups import Settings, Turn, fused_groups
from xflash.layers.kernels.tiled import Between, tiled_attention

V = 13


def leaves(*shapes):
    chance = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=chance, dtype=torch.double, requires_grad=True) for s in shapes]


def agrees(fn, inputs):
    """First gradients are those of the fast way, and their derivatives those of finite differences."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        outputs = fn(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        above = [torch.randn_like(y) for y in outputs]
    for ours, fast in zip(
        grad(fn(*inputs), inputs, above, create_graph=True), grad(outputs, inputs, above), strict=True
    ):
        assert ours.requires_grad and not fast.requires_grad
        laws.close(ours, fast, "the gradient that is differentiated")
    assert gradgradcheck(fn, inputs, fast_mode=True)


BOUNDS = Between(torch.tensor([[0, 1, 0, 2, 3]]), torch.tensor([[3, 4, 5, 6, 7]]))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("between", [None, BOUNDS], ids=["causal", "bounds"])
@pytest.mark.parametrize("attn_fn", ["relu2", "laplace"])
def test_gated_tiles(attn_fn, between, dropout):
    def attend(q, k, v, vector):
        torch.manual_seed(5)
        flags = {"attn_fn": attn_fn, "dropout_p": dropout, "between": between, "causal": between is None}
        return tiled_attention(q, k, v, vector=vector, **flags)

    agrees(attend, leaves((2, 3, 5, 3), (2, 3, 7, 3), (2, 3, 7, 2), (3, 11)))


def test_one_input_made_of_another():
    (x,) = leaves((1, 1, 5, 3))

    def attend(x):
        return tiled_attention(x, x.sin(), x.cos(), attn_fn="relu2")

    agrees(attend, [x])


def rotary(n, interleaved):
    angle = torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    cos, sin = angle.cos(), angle.sin()
    if interleaved:
        return Turn(cos.repeat_interleave(2, 1), torch.stack((-sin, sin), 2).flatten(1), True)
    return Turn(torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1), False)


@pytest.mark.parametrize("n", [3, 8, 11])
@pytest.mark.parametrize(
    ("attn_fn", "mean", "interleaved"), [("relu2", True, None), ("laplace", False, True), ("relu2", False, False)]
)
def test_fused_groups(attn_fn, mean, interleaved, n):
    w, k, e = 4, 6, 3
    turn, new = None if interleaved is None else rotary(n, interleaved), torch.tensor([n, n // 2])

    def groups(hidden, gamma, beta, vector, closed):
        settings = Settings(w, attn_fn, 0.5, 2.0, mean, 1)
        return fused_groups(hidden, gamma, beta, settings, vector=vector, turn=turn, closed=closed, new=new)

    agrees(groups, leaves((2, n, 2 * e + k), (4, k), (4, k), (1, 2 * w - 1), (2, k, e)))


@pytest.mark.parametrize("bias", [True, False])
def test_chunked_losses(bias):
    targets = torch.tensor([0, 6, -100, 3, 2])
    shapes = [(5, 3), (7, 3), (7,)]

    def loss(y, weight, bias=None):
        return chunked_losses(y, weight, bias, targets, 2, -100, 0.1, 0.3)

    agrees(loss, leaves(*shapes if bias else shapes[:2]))


def stack(name, **flags):
    torch.manual_seed(3)
    sizes = {"flash": {"flash_group_size": 4, "flash_query_key_dim": 6}}.get(name, {})
    return laws.live(Decoder(dim=6, depth=1, heads=2, layers=name, **sizes, **flags))


def along_gradient(call, x, weights):
    """The gradients of the squared length of the gradient, as penalties on gradients need them."""
    (slope,) = grad(call(x).square().sum(), x, create_graph=True)
    return grad(slope.square().sum(), weights, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", ["gau", "flash"])
def test_of_stacks(name):
    net = stack(name)
    x, weights = laws.sample(net, 11).requires_grad_(), list(net.parameters())
    found = along_gradient(net, x, weights)
    again = along_gradient(lambda x: checkpoint(net, x, use_reentrant=False), x, weights)
    # By torch.func, which takes the plain way.
    held = {name: p.detach() for name, p in net.named_parameters()}

    def penalty(held):
        def loss(x):
            return torch.func.functional_call(net, held, (x,)).square().sum()

        return torch.func.grad(loss)(x.detach()).square().sum()

    plain = torch.func.grad(penalty)(held).values()
    for ours, checkpointed, expected in zip(found, again, plain, strict=True):
        laws.close(ours, expected, "second derivatives")
        laws.close(checkpointed, expected, "second derivatives of a checkpoint")


def test_of_a_loss_in_chunks_under_autocast():
    torch.manual_seed(1)
    inside = Decoder(dim=6, depth=1, heads=2, layers="gau")
    net = AutoregressiveWrapper(TransformerWrapper(num_tokens=V, max_seq_len=16, attn_layers=inside), loss_chunk=3)
    ids, found = torch.arange(22).view(2, 11) % V, []
    weights = list(net.parameters())
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled):
            slopes = grad(net(ids), weights, create_graph=True)
        found.append(grad(sum(s.square().sum() for s in slopes), weights, allow_unused=True, materialize_grads=True))
    ours, exact = (torch.cat([t.flatten() for t in gradients]) for gradients in found)
    assert exact.norm() > 0.01 and (ours - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", ["attn", "recurrent", "block_attn"])
def test_softmax_attention_by_pytorch_s_own_plain_kernel(name):
    """PyTorch has no second derivatives of its fused kernels; its own switch chooses the plain one."""
    net = stack(name)
    x = laws.sample(net, 11).requires_grad_()
    with pytest.raises(RuntimeError, match="derivative for aten::_scaled_dot_product"):
        along_gradient(net, x, [x])
    with sdpa_kernel(SDPBackend.MATH):
        (found,) = along_gradient(net, x, [x])
    assert found.isfinite().all() and found.abs().max() > 0


def test_of_a_compiled_recurrent_layer_s_operator(monkeypatch):
    """`renew_all` by itself, which eager does not use."""
    net = stack("recurrent", recurrent_block_width=4, recurrent_num_state_vectors=3, recurrent_dim_head=4)
    x, weights = laws.sample(net, 11).requires_grad_(), list(net.parameters())
    block = net.branches[0].block
    with sdpa_kernel(SDPBackend.MATH):
        expected = along_gradient(net, x, weights)
        from xflash.layers import recurrent

        used, real = [], recurrent.recurrence

        def vectors(folded, state, x, keep):
            after, g = block.known(state, x), folded.k.shape[1]
            does = (torch.arange(g) < int(folded.full)).long().expand(x.shape[0], -1)
            every = real(block, after, *block.written(folded), does, g if keep else g - 1)
            used.append(g)
            return every[:, :g], every[:, -1]

        monkeypatch.setattr(block, "vectors", vectors)
        found = along_gradient(net, x, weights)
    assert used
    for ours, theirs in zip(found, expected, strict=True):
        laws.close(ours, theirs, "second derivatives of the operator")
