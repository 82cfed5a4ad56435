import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from xflash.base.state import Ctx
from xflash.base.values import tree_map
from xflash.layers.kernels.carried import FlashState, across, before, carry, reserve, step, within
from xflash.layers.kernels.groups import Padded, Scattered, document_groups, group_count, place
from xflash.layers.kernels.mixed_chunk import (
    Heads,
    Spec,
    attend,
    both_ways,
    laplace,
    mixed_chunk_slow,
    outer,
    packed,
    read,
)
from xflash.layers.positions.distance import own_bias

B, W, K, E = 3, 5, 7, 11
LENGTHS = (1, 5, 13)


def heads(n, seed=0, b=B, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return Heads(*(torch.randn(b, n, width, generator=generator, dtype=dtype) for width in (K, K, K, K, E)))


def spec(causal=True, bias="t5", **settings):
    torch.manual_seed(1)
    vector = own_bias(bias, 1, causal, W)
    if vector is not None:
        vector = vector.double().requires_grad_(False)
        vector.weight.mul_(40)
    return Spec(W, causal, bias=vector, **{"scale": 0.4, **settings})


def ctx(n, past=0, length=None, new=None, keep=False, in_place=False):
    start = torch.tensor([[past]]) if length is None else length[:, None]
    return Ctx(past, length, new, start + torch.arange(n), keep, in_place)


def fresh(t, settings):
    """Rows without padding or state by the fast way."""
    n = t.v.shape[1]
    if not settings.causal:
        return both_ways(t, settings)
    return (within if n <= W else across)(t, settings, ctx(n), None)[0]


def test_a_number_by_hand():
    one, v = torch.ones(1, 3, 1), torch.tensor([[[2.0], [3.0], [5.0]]])
    t = Heads(one, one, one, one, v)
    causal, both = Spec(2, True, scale=1 / 2), Spec(2, False, scale=1 / 2)
    # Inside a group (1 / 2)^2 = 1/4 of each value; across, token 2 gets the mean 2.5 of the group before.
    expected = torch.tensor([0.5, 1.25, 1.25 + 2.5])
    # Bidirectional: 5/4 for the first group and 5/4 for the second, and the mean 10/3 of all.
    expected_both = torch.tensor([1.25, 1.25, 1.25]) + 10 / 3
    for way in (fast_of(causal, t), mixed_chunk_slow(t, causal)[0, :, 0]):
        torch.testing.assert_close(way, expected)
    for way in (both_ways(t, both)[0, :, 0], mixed_chunk_slow(t, both)[0, :, 0]):
        torch.testing.assert_close(way, expected_both)


def fast_of(settings, t):
    return across(t, settings, ctx(t.v.shape[1]), None)[0][0, :, 0]


@pytest.mark.parametrize("normaliser", ["mean", "sum", "padded_length"])
@pytest.mark.parametrize("scope", ["sequence", "group"])
@pytest.mark.parametrize("fn", ["relu2", "laplace", "softmax"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_fast_equals_slow_with_gradients(causal, fn, scope, normaliser):
    if causal and (scope == "group" or normaliser == "padded_length"):
        return
    for (bias, divide), n in itertools.product(((None, 1.0), ("t5", 3.0), ("toeplitz", 1.0)), LENGTHS):
        settings = spec(causal, bias, fn=fn, divide=divide, scope=scope, normaliser=normaliser)
        t = Heads(*(part.requires_grad_() for part in heads(n)))
        fast, slow = fresh(t, settings), mixed_chunk_slow(t, settings)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
        for a, b in zip(gradients(fast, t), gradients(slow, t), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def gradients(y, t):
    found = torch.autograd.grad(y.sin().sum(), t, allow_unused=True)
    return [torch.zeros_like(part) if g is None else g for g, part in zip(found, t, strict=True)]


def test_gradcheck():
    def check(fn, *tensors):
        assert torch.autograd.gradcheck(fn, [part.requires_grad_() for part in tensors], fast_mode=True)

    n, t = 13, heads(13, b=2)
    check(lambda *p: across(Heads(*p), spec(), ctx(n), None)[0], *t)
    check(lambda *p: both_ways(Heads(*p), spec(False, fn="laplace"), torch.tensor([13, 4])), *t)
    documents = document_groups(torch.tensor([[0] * 6 + [1] + [2] * 6, [0] * 13]), None, W, None)
    check(lambda *p: packed(Heads(*p), spec(), documents), *t)
    state = FlashState(*(torch.randn(2, *size, dtype=torch.float64) for size in ((K, E), (W, K), (W, K), (W, E))))
    length = torch.tensor([8, 4])
    ragged = ctx(4, 8, length, torch.tensor([4, 1]), keep=True)
    check(lambda *p: tuple(flat(across(Heads(*p[:5]), spec(), ragged, FlashState(*p[5:])))), *heads(4, b=2), *state[:4])
    single = ctx(1, 8, length, keep=True)
    check(lambda *p: tuple(flat(step(Heads(*p[:5]), spec(), single, FlashState(*p[5:])))), *heads(1, b=2), *state[:4])
    alike = ctx(2, 8, keep=True)
    check(lambda *p: tuple(flat(within(Heads(*p[:5]), spec(), alike, FlashState(*p[5:])))), *heads(2, b=2), *state[:4])


def flat(result):
    return [result[0], *result[1][:4]]


@pytest.mark.parametrize("in_place", [False, True], ids=["copies", "in place"])
@pytest.mark.parametrize("normaliser", ["mean", "sum"])
def test_pieces_of_any_size_equal_the_whole(normaliser, in_place):
    n, settings = 17, spec(normaliser=normaliser)
    t = heads(n)
    whole = mixed_chunk_slow(t, settings)
    for sizes in ([1] * n, [4, 1, 9, 3], [5, 5, 7], [7, 10], [3, 3, 6, 1, 4], [17]):
        outputs, state, at = [], None, 0
        for size in sizes:
            part = Heads(*(p[:, at : at + size] for p in t))
            where = ctx(size, at, keep=True, in_place=in_place)
            state = None if state is None else reserve(state, W, at, False, None)
            y, state = (within if at % W + size <= W else across)(part, settings, where, state)
            outputs.append(y)
            at += size
        torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-12)


def test_the_state_is_what_it_says():
    n, settings, t = 13, spec(), heads(13)
    kv = [t.far_k[:, j, :, None] * t.v[:, j, None] / W for j in range(n)]
    by_cut = [across(t, settings, ctx(n, keep=True), None)[1], None]
    for j in range(n):
        part = Heads(*(p[:, j : j + 1] for p in t))
        held = None if by_cut[1] is None else reserve(by_cut[1], W, j, False, None)
        by_cut[1] = within(part, settings, ctx(1, j, keep=True), held)[1]
    for state in by_cut:
        torch.testing.assert_close(state.closed, sum(kv[:10]))
        torch.testing.assert_close(state.far_keys, F.pad(t.far_k[:, 10:], (0, 0, 0, 2)))
        torch.testing.assert_close(state.keys, F.pad(t.k[:, 10:], (0, 0, 0, 2)))
        torch.testing.assert_close(state.values, F.pad(t.v[:, 10:], (0, 0, 0, 2)))


def test_rows_at_different_fill():
    settings, lengths = spec(), (0, 4, 13)
    t = heads(30)
    whole = mixed_chunk_slow(t, settings)
    state = merge([alone(t, row, length, settings)[1] for row, length in enumerate(lengths)])
    length = torch.tensor(lengths)
    for new in ((7, 0, 1), (6, 1, 5), (1, 0, 1), (1, 1, 1), (0, 0, 0)):
        n, new = max(1, *new), torch.tensor(new)
        real = (torch.arange(n) < new[:, None])[..., None]
        part = Heads(*(torch.stack([p[i, s : s + n] for i, s in enumerate(length)]) for p in t))
        part = part._replace(k=part.k * real, far_k=part.far_k * real, v=part.v * real)
        state = reserve(state, W, int(length.max()), False, length)
        where = ctx(n, int(length.max()), length, new, keep=True, in_place=True)
        y, after = (step if n == 1 else across)(part, settings, where, tree_map(torch.clone, state))
        for row, (start, count) in enumerate(zip(length, new, strict=True)):
            torch.testing.assert_close(y[row, :count], whole[row, start : start + count], rtol=0, atol=1e-12)
            if count == 0:
                assert all(torch.equal(a[row], b[row]) for a, b in zip(after[:4], state[:4], strict=True))
        state, length = after, length + new


def alone(t, row, length, settings):
    if length == 0:
        zeros = t.v.new_zeros
        return None, FlashState(zeros(1, K, E), zeros(1, W, K), zeros(1, W, K), zeros(1, W, E))
    return across(Heads(*(p[row : row + 1, :length] for p in t)), settings, ctx(length, keep=True), None)


def merge(states):
    return FlashState(*(torch.cat(parts) for parts in zip(*(state[:4] for state in states), strict=True)))


@pytest.mark.parametrize("fn", ["relu2", "softmax"])
@pytest.mark.parametrize("scope", ["sequence", "group"])
@pytest.mark.parametrize("normaliser", ["mean", "sum"])
def test_bidirectional_rows_with_padding_behind_equal_the_rows_alone(normaliser, scope, fn):
    settings = spec(False, fn=fn, normaliser=normaliser, scope=scope)
    for n in (3, 13, 20):
        t, new = heads(n), torch.tensor([n, n // 2, 0])
        t = t._replace(v=t.v * (torch.arange(n) < new[:, None])[..., None])
        y = both_ways(t, settings, new)
        assert y.isfinite().all()
        for row in range(2):
            part = Heads(*(p[row : row + 1, : new[row]] for p in t))
            torch.testing.assert_close(y[row, : new[row]], mixed_chunk_slow(part, settings)[0], rtol=0, atol=1e-12)


DOCUMENTS = ([1] * 13, [5, 5, 3], [1, 11, 1], [6, 1, 1, 5], [13], [2, 10, 1])


@pytest.mark.parametrize("most", [None, 13])
@pytest.mark.parametrize("fn", ["relu2", "softmax"])
@pytest.mark.parametrize(
    ("causal", "scope"), [(True, "sequence"), (False, "sequence"), (False, "group")], ids=["causal", "both", "group"]
)
def test_a_packed_document_equals_the_document_alone(causal, scope, fn, most):
    for normaliser in ("mean", "sum"):
        settings = spec(causal, fn=fn, scope=scope, normaliser=normaliser)
        for rows in (DOCUMENTS[:3], DOCUMENTS[3:]):
            t = Heads(*(p.requires_grad_() for p in heads(13)))
            ids = torch.stack([torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) for sizes in rows])
            y = packed(t, settings, document_groups(ids * 7 - 3, None, W, most))
            pieces = [
                torch.cat([mixed_chunk_slow(part, settings) for part in split(t, row, sizes)], 1)
                for row, sizes in enumerate(rows)
            ]
            expected = torch.cat(pieces)
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
            for a, b in zip(gradients(y, t), gradients(expected, t), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def split(t, row, sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [Heads(*(p[row : row + 1, end - size : end] for p in t)) for size, end in zip(sizes, ends, strict=True)]


def test_what_stands_behind_a_row_takes_no_groups():
    ids = torch.tensor([[4, 4, 1, 2, 3, 4, 5, 6]])
    real = torch.arange(8) < 2
    documents = document_groups(ids, real[None], W, None)
    assert documents.layout.groups == 2
    assert documents.filled.sum() == 2
    assert documents.owner.tolist() == [[1, 1]]


def test_documents_beyond_the_most_are_refused():
    with pytest.raises(ValueError, match="a row of doc_ids has 3 documents, but flash_max_documents=2"):
        document_groups(torch.tensor([[0, 1, 2, 2]]), None, W, 2)


def test_layouts_give_back_what_was_put():
    t = heads(13).v
    for layout in (place(13, W, 0), place(13, W, 4), place(13, W, torch.tensor([0, 4, 2]))):
        canvas = layout.put(t)
        assert canvas.shape == (B, layout.groups, W, E)
        assert torch.equal(layout.take(canvas), t)
        assert canvas.sum() == pytest.approx(t.sum())
    head = heads(W, seed=3).v
    for layout in (Padded(4, W, 13, 3), Scattered(4, W, torch.full((B, 1), 3) + torch.arange(13))):
        canvas = layout.put(t, head)
        assert torch.equal(canvas[:, 0, :3], head[:, :3])
        assert torch.equal(layout.take(canvas), t)
    assert [group_count(n, W) for n in (1, 5, 6, 10, 11)] == [1, 1, 2, 2, 3]
    assert place(10, W, 0).put(heads(10).v).data_ptr() != place(10, W, 1).put(heads(10).v).data_ptr()


def test_a_later_group_cannot_reach_an_earlier_one():
    kv = torch.randn(2, 4, K, E, dtype=torch.float64)
    closed = torch.randn(2, K, E, dtype=torch.float64)
    expected = torch.stack([closed + sum((kv[:, h] for h in range(g)), torch.zeros_like(closed)) for g in range(4)], 1)
    torch.testing.assert_close(before(kv, closed), expected)
    poisoned = kv.clone()
    poisoned[:, 2] = math.inf
    assert torch.equal(before(poisoned, closed)[:, :3], before(kv, closed)[:, :3])


def test_only_full_groups_are_committed():
    kv, keys, far_keys, values = (torch.randn(2, 3, *size) for size in ((K, E), (W, K), (W, K), (W, E)))
    state = carry(None, kv, (keys, far_keys, values), torch.tensor([1, 3]))
    torch.testing.assert_close(state.closed, torch.stack([kv[0, 0], kv[1].sum(0)]))
    assert torch.equal(state.far_keys[0], far_keys[0, 1]) and torch.equal(state.keys[0], keys[0, 1])
    assert state.far_keys[1].count_nonzero() == state.values[1].count_nonzero() == 0


def test_a_full_group_is_closed_once():
    """Rows at 2, 1 and 1.6 groups; the first was closed by the call before, the second was left full."""
    state = FlashState(*(torch.randn(B, *size, dtype=torch.float64) for size in ((K, E), (W, K), (W, K), (W, E))))
    for t in state.buffers:
        t[0] = 0
    kv = state.far_keys.mT @ state.values / W
    length = torch.tensor([2 * W, W, W + 3])
    for again in (1, 2):
        after = reserve(state if again == 1 else after, W, 2 * W, False, length)
        torch.testing.assert_close(after.closed, state.closed + kv * torch.tensor([0.0, 1, 0])[:, None, None])
        assert not any(t[:2].count_nonzero() for t in after.buffers)
        assert all(torch.equal(a[2], b[2]) for a, b in zip(after[:4], state[:4], strict=True))
    alike = reserve(state, W, 2 * W, False, None)
    torch.testing.assert_close(alike.closed, state.closed + kv)
    assert not any(t.count_nonzero() for t in alike.buffers)
    assert reserve(state, W, 2 * W + 1, False, None) is state
    copied = reserve(state, W, 2 * W + 1, True, None)
    assert [a is b for a, b in zip(copied[:4], state[:4], strict=True)] == [True, False, False, False]


def test_sums_in_half_precision_are_kept_in_float32():
    generator = torch.Generator().manual_seed(0)
    far_k, v = (torch.rand(1, 1024, W, width, generator=generator) for width in (K, E))
    exact = outer(far_k.bfloat16().double(), v.bfloat16().double(), W)
    for dtype in (torch.bfloat16, torch.float16):
        low = outer(far_k.to(dtype), v.to(dtype), W)
        assert low.dtype == before(low).dtype == torch.float32
        assert (before(low)[:, -1] / before(exact)[:, -1] - 1).abs().max() < 1e-3
    assert outer(far_k.double(), v.double(), W).dtype == torch.float64
    assert read(far_k.bfloat16(), before(outer(far_k.bfloat16(), v.bfloat16(), W))).dtype == torch.bfloat16


def test_laplace():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    normal = torch.distributions.Normal(*(torch.tensor(value, dtype=x.dtype).sqrt() for value in (0.5, 0.25 / math.pi)))
    torch.testing.assert_close(laplace(x), normal.cdf(x), rtol=0, atol=1e-15)
    small = laplace(torch.zeros(1, dtype=torch.bfloat16)).item()
    assert small == pytest.approx(laplace(torch.zeros(1)).item(), rel=0.02)


def test_softmax_leaves_out_keys_that_do_not_exist():
    t, visible = heads(W), torch.arange(W)[None, None] < torch.tensor([[[5]], [[2]], [[0]]])
    q, k, v = (p[:, None] for p in (t.q, t.k, t.v))
    y = attend(spec(False, None, fn="softmax", scale=1.0), q, k, v, None, None, visible)
    torch.testing.assert_close(y[1], attend(spec(fn="softmax", scale=1.0), q, k[:, :, :2], v[:, :, :2], None)[1])
    assert y.isfinite().all()


def test_a_short_sequence_costs_no_full_group():
    from torch.utils.flop_counter import FlopCounterMode

    def cost(n, causal):
        with FlopCounterMode(display=False) as counter:
            fresh(Heads(*(torch.randn(1, n, width) for width in (K, K, K, K, E))), Spec(64, causal))
        return counter.get_total_flops()

    def fresh(t, settings):
        n = t.v.shape[1]
        return within(t, settings, ctx(n), None)[0] if settings.causal else both_ways(t, settings)

    for causal in (True, False):
        assert cost(3, causal) <= 2 * (3 * 3 * (K + E) + 2 * 3 * K * E)
