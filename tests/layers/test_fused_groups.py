import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from xflash.layers.kernels import fused_pieces, fused_sums
from xflash.layers.kernels.fused_groups import Settings, Turn, flash_groups, fused_groups
from xflash.layers.kernels.mixed_chunk import Heads, Spec, mixed_chunk_slow

B, W, K, E, ROTATED = 3, 5, 6, 7, 4


@pytest.fixture(autouse=True, params=[0, 8], ids=["together", "one by one"])
def small_pieces(request, monkeypatch):
    """Two groups at a time (in double) and three bands a group, so that rows, groups and bands are all cut."""
    monkeypatch.setitem(fused_pieces.BYTES, "cpu", 8 * 2 * W * (2 * E + K))
    monkeypatch.setattr(fused_pieces, "LEAST", 4)
    monkeypatch.setattr(fused_pieces, "BAND", 2)
    monkeypatch.setitem(fused_sums.ONE_BY_ONE, "cpu", request.param)


def inputs(n, dtype=torch.float64, seed=0):
    """The projection's output, gains, offsets, the bias by distance, and sums of groups before."""
    chance = torch.Generator().manual_seed(seed)
    shapes = (B, n, 2 * E + K), (4, K), (4, K), (1, 2 * W - 1), (B, K, E)
    return [torch.randn(s, generator=chance, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def angles(n):
    return torch.randn(n, ROTATED // 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def tables(n, interleaved):
    """Tables for each channel that is turned, pairs being halves or neighbours."""
    sin, cos = angles(n).sin(), angles(n).cos()
    lay = (lambda a, b: torch.stack((a, b), -1).flatten(1)) if interleaved else (lambda a, b: torch.cat((a, b), 1))
    return Turn(lay(cos, cos), lay(-sin, sin), interleaved)


def turn_slow(t, interleaved):
    """Pairs of channels as complex numbers, each turned by its angle."""
    pairs = t[..., :ROTATED].unflatten(-1, (-1, 2) if interleaved else (2, -1))
    first, second = pairs.unbind(-1 if interleaved else -2)
    n = t.shape[1]
    spun = torch.complex(first, second) * torch.polar(torch.ones_like(angles(n)), angles(n))
    both = torch.stack((spun.real, spun.imag), -1 if interleaved else -2).flatten(-2)
    return torch.cat((both, t[..., ROTATED:]), -1)


def slow(hidden, gamma, beta, vector, closed, settings, rotary, new=None):
    """Activation, four affine copies, rotation, mixed chunk attention token by token, gate: one after another."""
    gate, v, z = F.silu(hidden).split((E, E, K), -1)
    q, far_q, k, far_k = (z * gamma[i] + (0 if beta is None else beta[i]) for i in range(4))
    if rotary is not None:
        q, far_q, k, far_k = (turn_slow(t, rotary) for t in (q, far_q, k, far_k))
    if new is not None:
        v = v * (torch.arange(v.shape[1]) < new[:, None])[..., None]
    spec = Spec(
        settings.w,
        True,
        settings.attn_fn,
        settings.scale,
        settings.divide,
        bias=None if vector is None else lambda gap: vector[0, gap + settings.w - 1],
        normaliser="mean" if settings.mean else "sum",
    )
    w, n, start = settings.w, hidden.shape[1], settings.start
    near_and_far = mixed_chunk_slow(Heads(q, k, far_q, far_k, v), spec)
    if closed is not None or start:
        # The far part again, with the groups before the call among those it sums over.
        near_only = mixed_chunk_slow(Heads(q, k, torch.zeros_like(far_q), far_k, v), spec)
        rows = []
        for i in range(n):
            full = i // w * w
            total = (far_k[:, :full].mT @ v[:, :full]) / w + (0 if closed is None else closed)
            rows.append((far_q[:, i : i + 1] @ total)[:, 0] / (max(i // w + start, 1) if settings.mean else 1))
        near_and_far = near_only + torch.stack(rows, 1)
    full = n // w * w
    after = (far_k[:, :full].mT @ v[:, :full]) / w + (0 if closed is None else closed)
    return gate * near_and_far, after


@pytest.mark.parametrize("rotary", [None, False, True], ids=["unturned", "halves", "neighbours"])
@pytest.mark.parametrize("attn_fn", ["relu2", "laplace"])
def test_fused_equals_slow_with_gradients(attn_fn, rotary):
    for n, biased, carried, mean in itertools.product((1, 3, 5, 13, 25), (True, False), (True, False), (True, False)):
        hidden, gamma, beta, vector, closed = inputs(n)
        beta, vector = (beta, vector) if biased else (None, None)
        closed, start = (closed, 3) if carried else (None, 0)
        settings = Settings(W, attn_fn, 0.4, 3.0 if biased else 1.0, mean, start)
        turn = None if rotary is None else tables(n, rotary)
        fast = fused_groups(hidden, gamma, beta, settings, vector=vector, turn=turn, closed=closed)
        wanted = slow(hidden, gamma, beta, vector, closed, settings, rotary)
        wrt = [t for t in (hidden, gamma, beta, vector, closed) if t is not None]
        grads = []
        for out, after in (fast, wanted):
            loss = out.sin().sum() + after.square().sum()
            grads.append(torch.autograd.grad(loss, wrt, allow_unused=True))
        for ours, theirs in zip(fast, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        for ours, theirs, t in zip(*grads, wrt, strict=True):
            theirs = torch.zeros_like(t) if theirs is None else theirs
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_rows_of_different_length():
    hidden, gamma, beta, vector, _ = inputs(13)
    new, settings = torch.tensor([13, 6, 0]), Settings(W, "relu2", 0.4, 1.0, True)
    out, after = fused_groups(hidden, gamma, beta, settings, vector=vector, turn=tables(13, True), new=new)
    wanted, sums = slow(hidden, gamma, beta, vector, None, settings, True, new)
    real = torch.arange(13) < new[:, None]
    torch.testing.assert_close(out[real], wanted[real], rtol=0, atol=1e-12)
    torch.testing.assert_close(after, sums, rtol=0, atol=1e-12)
    (ours,) = torch.autograd.grad((out * real[..., None]).sin().sum(), hidden)
    (theirs,) = torch.autograd.grad((wanted * real[..., None]).sin().sum(), hidden)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert (ours[1, 6:] == 0).all() and (ours[2] == 0).all()


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace"])
def test_gradcheck(attn_fn):
    hidden, gamma, beta, vector, closed = inputs(13)
    settings = Settings(W, attn_fn, 0.4, 1.0, True, 2)

    def run(hidden, gamma, beta, vector, closed):
        return fused_groups(hidden, gamma, beta, settings, vector=vector, turn=tables(13, True), closed=closed)

    assert torch.autograd.gradcheck(run, (hidden, gamma, beta, vector, closed), fast_mode=True)


def test_what_torch_asks_of_an_operator():
    hidden, gamma, beta, vector, closed = inputs(8)
    cos, sin, _ = tables(8, False)
    settings = (W, "relu2", 0.4, 1.0, True, 2, 0, True)
    torch.library.opcheck(flash_groups, (hidden, gamma, beta, vector, cos, sin, closed, None, *settings))
    torch.library.opcheck(
        flash_groups, (hidden, gamma, None, None, None, None, None, torch.tensor([8, 2, 0]), *settings)
    )


def test_lengths_do_not_compile_graphs():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    settings = Settings(W, "relu2", 0.4, 1.0, True)

    def loss(hidden, gamma, beta, vector):
        return fused_groups(hidden, gamma, beta, settings, vector=vector)[0].square().sum()

    fast = torch.compile(loss, fullgraph=True, backend=counter)
    for n in (3, 5, 8, 13, 20):
        args = inputs(n)[:4]
        for ours, theirs in zip(
            torch.autograd.grad(fast(*args), args), torch.autograd.grad(loss(*args), args), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    settings = Settings(W, "relu2", 1 / W, 1.0, True)
    exact, singles = inputs(23)[:4], inputs(23, torch.float32)[:4]
    out, _ = fused_groups(*exact[:3], settings, vector=exact[3], turn=tables(23, True))
    with torch.autocast("cpu", dtype=dtype):
        turn = Turn(*(t.to(dtype) for t in tables(23, True)[:2]), True)
        low, after = fused_groups(*singles[:3], settings, vector=singles[3], turn=turn)
    assert (low.dtype, after.dtype) == (dtype, torch.float32)
    assert ((low.double() - out).norm() / out.norm()).item() < 0.02
    found = torch.autograd.grad((low.float() / 10).square().sum(), singles)
    wanted = torch.autograd.grad((out / 10).square().sum(), exact)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert ((ours.double() - theirs).norm() / theirs.norm()).item() < 0.05


def test_nothing_but_the_input_the_sums_and_a_matrix_a_group_is_kept():
    n, kept = 40, []
    hidden, gamma, beta, vector, _ = inputs(n, torch.float32)
    settings = Settings(W, "relu2", 1 / W, 1.0, True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        fused_groups(hidden, gamma, beta, settings, vector=vector)
    sizes = sorted(t.numel() for t in kept if t.numel() > 2 * W * W)
    assert sizes == sorted([B * n * (2 * E + K), B * n * E, B * n // W * K * E])
    with torch.no_grad():
        _, y, sums, _ = flash_groups(hidden, gamma, beta, None, None, None, None, None, *settings, 0, False)
    assert y.numel() == sums.numel() == 0


def test_on_a_gpu_a_call_is_one_piece_and_an_open_group():
    def work(b, n, dtype=torch.bfloat16):
        hidden, gamma = torch.empty(b, n, 4224, dtype=dtype, device="meta"), torch.empty(4, 128, device="meta")
        settings = Settings(256, "relu2", 1.0, 1.0, True)
        return fused_pieces.prepared(hidden, gamma, None, None, None, None, None, settings, 0)

    assert [(p.groups, p.w) for p in fused_pieces.pieces(work(8, 8192))] == [(32, 256)]
    assert [(p.groups, p.w) for p in fused_pieces.pieces(work(8, 8200))] == [(32, 256), (1, 8)]
    # Longer rows in float32 are cut: what is at work at once is bounded.
    assert [p.groups for p in fused_pieces.pieces(work(8, 2**17, torch.float32))] == [512] * 8
