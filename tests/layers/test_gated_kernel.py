import math

import pytest
import torch

from xflash.layers.kernels import gated
from xflash.layers.kernels.gated import gated_attention, gated_attention_slow, gated_weights, laplace

B, H, N, M, K, E = 2, 3, 5, 7, 11, 13
DIVISORS = {
    "none": None,
    "number": 17,
    "rows": torch.arange(1, N + 1)[None],
    "each row": torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]),
    "row_sum": "row_sum",
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two query rows a block, so that five rows take three."""
    monkeypatch.setitem(gated.ROWS, "cpu", 2)


def inputs(n=N, m=M, e=E, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, n, K), (B, H, m, K), (B, H, m, e), (1, H, n, m))
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def agree(options, q, k, v, bias):
    """Outputs, weights and gradients of the fast form against those of the definition."""
    fast = gated_attention(q, k, v, bias=bias, **options)
    slow, weights = gated_attention_slow(q, k, v, bias=bias, **options)
    torch.testing.assert_close(fast, slow, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(gated_weights(q, k, bias=bias, **options), weights, atol=1e-13, rtol=1e-12)
    wrt = [t for t in (q, k, v, bias) if t is not None]
    push = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, wanted in zip(torch.autograd.grad(fast, wrt, push), torch.autograd.grad(slow, wrt, push), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("divisor", DIVISORS)
@pytest.mark.parametrize("place", ["outside", "inside", "content"])
@pytest.mark.parametrize("attn_fn", ["relu2", "laplace", "softmax"])
def test_fast_equals_slow(attn_fn, place, divisor):
    if divisor == "row_sum" and (place != "outside" or attn_fn == "softmax"):
        pytest.skip("refused, see below")
    q, k, v, bias = inputs()
    options = {"attn_fn": attn_fn, "place": place, "divisor": DIVISORS[divisor], "scale": 0.3}
    agree({**options, "causal": True}, q, k, v, bias)


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace", "softmax"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (5, 5), (5, 7), (4, 4)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("e", [E, K])
def test_lengths_and_widths(attn_fn, n, m, causal, e):
    q, k, v, _ = inputs(n, m, e)
    agree({"attn_fn": attn_fn, "scale": 0.5, "causal": causal}, q, k, v, None)


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace", "softmax"])
@pytest.mark.parametrize("shape", [(N, M), (1, 1, N, M), (B, 1, 1, M), (B, H, N, M), (B, 1, N, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_what_may_be_seen(attn_fn, shape, causal):
    q, k, v, bias = inputs()
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    agree({"attn_fn": attn_fn, "allowed": allowed, "causal": causal, "scale": 0.4}, q, k, v, bias)


@pytest.mark.parametrize(
    ("attn_fn", "divisor"), [("relu2", None), ("laplace", None), ("softmax", None), ("relu2", "row_sum")]
)
def test_a_query_that_sees_nothing_gets_zeros(attn_fn, divisor):
    q, k, v, _ = inputs()
    allowed = torch.ones(B, 1, N, M, dtype=torch.bool)
    allowed[1, :, 3] = False
    y = gated_attention(q, k, v, attn_fn=attn_fn, allowed=allowed, divisor=divisor)
    assert (y[1, :, 3] == 0).all()
    for gradient in torch.autograd.grad(y.sum(), (q, k, v)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace", "softmax"])
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_gradcheck(attn_fn, place):
    q, k, v, bias = inputs()
    rows = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])

    def run(q, k, v, bias):
        return gated_attention(q, k, v, attn_fn=attn_fn, scale=0.3, bias=bias, divisor=rows, place=place, causal=True)

    assert torch.autograd.gradcheck(run, (q, k, v, bias), fast_mode=True)


def test_gradcheck_of_the_row_sum():
    q, k, v, bias = inputs()
    assert torch.autograd.gradcheck(
        lambda *a: gated_attention(*a[:3], attn_fn="relu2", bias=a[3], divisor="row_sum"),
        (q, k, v, bias),
        fast_mode=True,
    )


def test_a_number_by_hand():
    # scores 2 * 3 = 6 and 2 * -1 = -2: relu^2 gives 36 and 0, over 2 keys 18 and 0, and 18 * 5 = 90.
    q, k, v = (torch.tensor(t).reshape(1, 1, -1, 1) for t in ([2.0], [3.0, -1.0], [5.0, 7.0]))
    assert gated_attention(q, k, v, attn_fn="relu2", divisor=2).item() == 90
    assert gated_attention(q, k, v, attn_fn="relu2", divisor=2, place="inside").item() == 45
    bias = torch.tensor([2.0, 4.0]).reshape(1, 1, 1, 2)
    # (6 / 2 + 2)^2 * 5 + (-2 / 2 + 4)^2 * 7 = 125 + 63
    assert gated_attention(q, k, v, attn_fn="relu2", bias=bias, divisor=2, place="content").item() == 188


def test_laplace_is_a_distribution_function():
    assert laplace(torch.tensor(math.sqrt(0.5))).item() == pytest.approx(0.5)
    # One deviation, 1 / sqrt(4 pi), above the mean: the familiar 84.13 %.
    assert laplace(torch.tensor(math.sqrt(0.5) + (4 * math.pi) ** -0.5)).item() == pytest.approx(0.841345, abs=1e-6)


def test_laplace_touches_relu2_in_value_and_slope():
    at = torch.tensor(math.sqrt(0.5), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(laplace(at), at)
    assert laplace(at).item() == pytest.approx(at.item() ** 2, abs=1e-12)
    assert slope.item() == pytest.approx(2 * at.item(), abs=1e-12)


@pytest.mark.parametrize("options", [{"attn_fn": "softmax"}, {"attn_fn": "relu2", "place": "inside"}])
def test_a_row_sum_has_one_place(options):
    q, k, v, _ = inputs()
    for function, args in ((gated_attention, (q, k, v)), (gated_weights, (q, k))):
        with pytest.raises(ValueError, match=r"divisor='row_sum' goes with relu2 or laplace and place='outside'"):
            function(*args, divisor="row_sum", **options)


def test_dropout_keeps_the_mean_and_drops():
    torch.manual_seed(0)
    q, k, v = torch.ones(1, 1, 64, 2), torch.ones(1, 1, 512, 2), torch.ones(1, 1, 512, 3)
    y = gated_attention(q, k, v, attn_fn="relu2", scale=0.5, divisor=512, dropout_p=0.25)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert y.std() > 0


@pytest.mark.parametrize("attn_fn", ["relu2", "laplace", "softmax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(attn_fn, dtype):
    q, k, v, bias = (t.detach() for t in inputs(n=5, m=5))
    divisor = torch.arange(1, 6)[None] + 1000
    options = {"attn_fn": attn_fn, "scale": 0.3, "divisor": divisor, "causal": True}
    exact = gated_attention(q, k, v, bias=bias, **options)
    y = gated_attention(*(t.to(dtype) for t in (q, k, v)), bias=bias.to(dtype), **options)
    assert y.dtype == dtype
    assert gated_weights(q.to(dtype), k.to(dtype), **options).dtype == torch.float32
    assert ((y.double() - exact).norm() / exact.norm()).item() < 0.02


def test_no_more_than_a_block_of_scores_is_alive(monkeypatch):
    monkeypatch.setitem(gated.ROWS, "cpu", 16)
    widest = []
    plain = gated.part_weights

    def watched(*args):
        weights, rows = plain(*args)
        widest.append(tuple(weights.shape[2:]))
        return weights, rows

    monkeypatch.setattr(gated, "part_weights", watched)
    q, k, v, _ = inputs(n=50, m=53)
    # A matrix of what may be seen is what tiles cannot take.
    everything = torch.ones(50, 53, dtype=torch.bool)
    gated_attention(q, k, v, attn_fn="relu2", causal=True, allowed=everything)
    assert widest == [(16, 19), (16, 35), (16, 51), (2, 53)]
