"""Pooling: the functions against their definitions row by row, padding left out, the modules."""

import pytest
import torch

from xflash.wrappers.pooling import POOLS, FirstPool, LearnedPool, MeanPool, attention_pool, first_pool, mean_pool

B, N, D = 5, 11, 7


@pytest.fixture
def x():
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def query():
    return torch.randn(D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def mask():
    """Right, left and inner padding, none, and nothing but padding."""
    rows = torch.ones(B, N, dtype=torch.bool)
    rows[0, 4:] = False
    rows[1, :6] = False
    rows[2, 3:7] = False
    rows[4] = False
    return rows


def pools(query):
    """Each pooling as a function of (x, mask), and its definition for the real tokens (m, d) of one row."""

    def weighted(tokens):
        return torch.einsum("m,md->d", (tokens @ query / D**0.5).softmax(0), tokens)

    return {
        "mean": (mean_pool, lambda tokens: tokens.mean(0)),
        "first": (first_pool, lambda tokens: tokens[0]),
        "attention": (lambda x, mask=None: attention_pool(x, query, mask), weighted),
    }


@pytest.mark.parametrize("name", ["mean", "first", "attention"])
def test_each_row_is_pooled_over_its_real_tokens(name, x, query, mask):
    pool, definition = pools(query)[name]
    torch.testing.assert_close(pool(x), torch.stack([definition(row) for row in x]))
    rows = [(row, real) for row, real in zip(x, mask, strict=True)]
    expected = torch.stack([definition(row[real]) if real.any() else row.new_zeros(D) for row, real in rows])
    torch.testing.assert_close(pool(x, mask), expected)
    torch.testing.assert_close(pool(x, mask.long()), expected)
    # What stands at a masked place never counts, not even what is no number.
    broken = x.masked_fill(~mask[..., None], float("nan"))
    torch.testing.assert_close(pool(broken, mask), expected)


@pytest.mark.parametrize("name", ["mean", "first", "attention"])
def test_gradients_reach_real_tokens_only(name, x, query, mask):
    pool, _ = pools(query)[name]
    x.requires_grad_()
    (grad,) = torch.autograd.grad(pool(x, mask).square().sum(), x)
    assert grad[~mask].eq(0).all()
    chosen = mask & (mask.cumsum(1) == 1) if name == "first" else mask
    assert grad[chosen].abs().sum(-1).gt(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mean", "first", "attention"])
def test_half_precision_is_rounded_once(name, dtype, query):
    """300 tokens of 300: their sum has no place in float16, and in bfloat16 it stops growing."""
    pool, _ = pools(query.to(dtype))[name]
    x = torch.full((2, 300, D), 300.0, dtype=dtype)
    for y in (pool(x), pool(x, torch.arange(300).expand(2, -1) < 299)):
        assert y.dtype == dtype
        assert y.eq(300.0).all()


def test_attention_starts_as_the_mean_and_learns(x, mask):
    pool = LearnedPool(D).double()
    torch.testing.assert_close(pool(x, mask), mean_pool(x, mask))
    pool(x, mask).square().sum().backward()
    assert pool.query.grad.abs().min() > 0
    with torch.no_grad():
        pool.query.copy_(x[3, 6] * 40)
    torch.testing.assert_close(pool(x)[3], x[3, (x[3] @ x[3, 6]).argmax()])


def test_modules_are_the_functions(x, query, mask):
    made = {name: pool(D).double() for name, pool in POOLS.items()}
    assert [type(pool) for pool in made.values()] == [MeanPool, FirstPool, LearnedPool]
    with torch.no_grad():
        made["attn"].query.copy_(query)
    for pool, (function, _) in zip(made.values(), pools(query).values(), strict=True):
        assert torch.equal(pool(x, mask), function(x, mask))
        assert torch.equal(pool(x), function(x))
    assert "7" in repr(made["attn"])


@pytest.mark.parametrize("pool", [mean_pool, first_pool, lambda x, mask: attention_pool(x, x[0, 0], mask)])
def test_wrong_masks_are_refused(pool, x):
    with pytest.raises(ValueError, match=r"mask has shape \(5, 10\), but the tokens it stands for have \(5, 11\)"):
        pool(x, torch.ones(B, N - 1).bool())
    with pytest.raises(TypeError, match=r"mask must be boolean .* not torch.float32"):
        pool(x, torch.ones(B, N))
    with pytest.raises(ValueError, match="mask must be boolean or 0/1 integers, but it goes from 0 to 2"):
        pool(x, torch.arange(B * N).view(B, N) % 3)
