import itertools

import pytest
import torch
from quick import quick
from torch._dynamo.testing import CompileCounterWithBackend

from xflash.layers.kernels import tiled, tiles
from xflash.layers.kernels.gated import Between, gated_attention, gated_attention_slow, gated_weights, laplace
from xflash.layers.kernels.relative import toeplitz_slow
from xflash.layers.kernels.tiled import gated_tiles, tiled_attention

B, H, K, E = 3, 2, 7, 11


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Three query rows and few scores a tile, so that rows, batch rows and keys are all cut."""
    monkeypatch.setitem(tiles.ROWS, "cpu", 3)
    monkeypatch.setitem(tiles.SCORES, "cpu", 70)


def inputs(n, m, heads=H, dtype=torch.float64):
    chance = torch.Generator().manual_seed(n * m)
    shapes = (B, heads, n, K), (B, heads, m, K), (B, heads, m, E), (heads, m + n - 1)
    return [torch.randn(s, generator=chance, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def bounds(n, m, kind):
    """Bounds of documents or of a prefix, the same for all rows or not, and the matrix they stand for."""
    if kind == "none":
        return None, None
    chance = torch.Generator().manual_seed(5)
    since = torch.randint(0, m // 2 + 1, (B, n), generator=chance)
    until = since + torch.randint(0, m + 1, (B, n), generator=chance)
    between = {"since": Between(since, None), "until": Between(None, until[:1]), "both": Between(since, until)}[kind]
    allowed = torch.zeros(B, 1, n, m, dtype=torch.bool)
    for row, i, j in itertools.product(range(B), range(n), range(m)):
        late = between.until is not None and j >= between.until[row % len(between.until), i]
        allowed[row, 0, i, j] = not late and (between.since is None or j >= since[row, i])
    return between, allowed


@pytest.mark.parametrize("kind", quick(["none", "since", "until", "both"], lambda kind, _: kind == "both"))
@pytest.mark.parametrize("attn_fn", ["relu2", "laplace"])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_equal_the_definition(attn_fn, causal, kind):
    for (n, m), heads, biased in itertools.product(((2, 2), (5, 13), (11, 11)), (1, 2), (False, True)):
        q, k, v, vector = inputs(n, m, heads)
        between, allowed = bounds(n, m, kind)
        given = {"attn_fn": attn_fn, "causal": causal, "scale": 0.6}
        bias = toeplitz_slow(vector, n, m)[None] if biased else None
        slow, weights = gated_attention_slow(q, k, v, bias=bias, allowed=allowed, **given)
        by_distance = {"vector": vector if biased else None, "between": between}
        fast = gated_attention(q, k, v, **by_distance, **given)
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
        torch.testing.assert_close(gated_weights(q, k, **by_distance, **given), weights, atol=1e-12, rtol=0)
        wrt, push = [q, k, v] + [vector] * biased, torch.randn_like(slow)
        for ours, theirs in zip(
            torch.autograd.grad(fast, wrt, push), torch.autograd.grad(slow, wrt, push), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace"])
@pytest.mark.parametrize("place", ["outside", "inside", "content"])
@pytest.mark.parametrize(
    "divisor", [17, torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2, 6, 5, 3]] * B), "row_sum"]
)
def test_divisors(attn_fn, place, divisor):
    if divisor == "row_sum" and place != "outside" if isinstance(divisor, str) else False:
        return
    q, k, v, vector = inputs(5, 13)
    only = torch.rand(B, 1, 1, 13, generator=torch.Generator().manual_seed(2)) < 0.7
    given = {"attn_fn": attn_fn, "place": place, "divisor": divisor, "scale": 0.3, "causal": True, "allowed": only}
    fast = gated_attention(q, k, v, vector=vector, **given)
    slow, _ = gated_attention_slow(q, k, v, bias=toeplitz_slow(vector, 5, 13)[None], **given)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-11)
    push = torch.randn_like(slow)
    grads = (torch.autograd.grad(y, (q, k, v, vector), push) for y in (fast, slow))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace"])
def test_gradcheck(attn_fn):
    q, k, v, vector = inputs(5, 8, 1)
    between, _ = bounds(5, 8, "both")
    for causal, where, drop in ((True, None, 0.0), (False, between, 0.0), (True, None, 0.4)):

        def run(q, k, v, vector, causal=causal, where=where, drop=drop):
            torch.manual_seed(3)
            return tiled_attention(
                q, k, v, attn_fn=attn_fn, vector=vector, causal=causal, between=where, dropout_p=drop
            )

        assert torch.autograd.gradcheck(run, (q, k, v, vector), fast_mode=True)


def test_dropout_drops_a_share_and_repeats_with_the_seed():
    q = k = torch.ones(1, 1, 41, 2)
    v = torch.eye(41)[None, None]

    def weights(seed):
        torch.manual_seed(seed)
        return tiled_attention(q, k, v, attn_fn="relu2", dropout_p=0.25)

    once = weights(0)
    assert torch.equal(once, weights(0)) and not torch.equal(once, weights(1))
    assert once.unique().tolist() == pytest.approx([0, 4 / 0.75])
    assert (once == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_what_torch_asks_of_an_operator():
    for biased in (False, True):
        q, k, v, vector = inputs(5, 8)
        sample = (q, k, v, vector if biased else None, None, None, None, "relu2", True, 0.0)
        torch.library.opcheck(gated_tiles, sample)
        torch.library.opcheck(gated_tiles, (*sample[:-3], "laplace", False, 0.0))


def test_lengths_do_not_compile_graphs():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(q, k, v, vector):
        return tiled_attention(q, k, v, attn_fn="relu2", vector=vector, causal=True).square().sum()

    fast = torch.compile(loss, fullgraph=True, backend=counter)
    for n in (5, 8, 13, 21, 34):
        args = inputs(n, n)
        for ours, theirs in zip(
            torch.autograd.grad(fast(*args), args), torch.autograd.grad(loss(*args), args), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert counter.frame_count <= 2


def test_no_matrix_of_scores_is_kept(monkeypatch):
    """Neither saved for the backward nor ever made: the widest thing the kernel works on is a tile."""
    n = 257
    args = inputs(n, n, 1, torch.float32)
    kept, made = [], []
    plain = tiled.scores
    monkeypatch.setattr(tiled, "scores", lambda *a: (made.append(s := plain(*a)), s)[1])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y = gated_attention(*args[:3], attn_fn="relu2", vector=args[3], causal=True, divisor=n)
    y.sum().backward()
    assert kept and max(t.numel() for t in kept) <= B * n * E
    # Forward three rows times the keys that they see, one batch row at a time; backward three keys (of 257 two are left
    # over) times the rows that see them.
    assert max(t.numel() for t in made) == 3 * 257
    assert min(t.numel() for t in made) == 2 * 2 * B


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision(attn_fn, dtype):
    exact = inputs(13, 13)
    y = tiled_attention(*exact[:3], attn_fn=attn_fn, vector=exact[3], causal=True)
    wanted = torch.autograd.grad((y / 100).square().sum(), exact)
    singles = inputs(13, 13, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        low = tiled_attention(*singles[:3], attn_fn=attn_fn, vector=singles[3], causal=True)
    assert low.dtype == dtype
    assert ((low.double() - y).norm() / y.norm()).item() < 0.02
    found = torch.autograd.grad((low.float() / 100).square().sum(), singles)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert ((ours.double() - theirs).norm() / theirs.norm()).item() < 0.05


def test_laplace_has_the_slope_it_is_given():
    at = torch.linspace(-2, 3, 31, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(laplace(at).sum(), at)
    _, half = tiled.weights_and_slope(at.detach().clone(), "laplace", lambda t: t)
    torch.testing.assert_close(2 * half, slope)
