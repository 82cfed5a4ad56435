import importlib
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xflash.generation.sampling import (
    FILTERS,
    Draw,
    find_filter,
    min_p,
    repetition_penalty,
    sample,
    seen_tokens,
    top_a,
    top_k,
    top_p,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# Few distinct values, exact in every dtype, so that ties are the rule.
tied_logits = st.lists(st.integers(-5, 5), min_size=1, max_size=17).map(lambda row: torch.tensor(row) / 2)
any_logits = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=17).map(torch.tensor)
either = st.one_of(tied_logits, any_logits)


def peer(package):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # x-transformers scripts a function when imported, which torch deprecates
        return importlib.import_module(f"{package}.autoregressive_wrapper")


def kept(filtered):
    return set(filtered.isfinite().nonzero().flatten().tolist())


def ranking(logits):
    """Ids from the likeliest on; of equal ones the lower id first."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i].item(), i))


@settings(deadline=None)
@given(either, st.integers(1, 23))
def test_top_k_keeps_the_k_likeliest(logits, k):
    assert kept(top_k(logits, k=k)) == set(ranking(logits)[:k])


@settings(deadline=None)
@given(either, st.floats(0, 1))
def test_top_p_keeps_the_shortest_prefix_that_reaches_thres(logits, thres):
    found, order, probs = kept(top_p(logits, thres)), ranking(logits), logits.double().softmax(-1)
    assert found == set(order[: len(found)])
    mass = probs[order].cumsum(0)
    assert mass[len(found) - 1] >= thres - 1e-5
    if len(found) > 1:
        assert mass[len(found) - 2] < thres + 1e-5


@settings(deadline=None)
@given(either, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_beside_the_likeliest(logits, share):
    probs = logits.double().softmax(-1)
    found, bound = kept(min_p(logits, share)), share * probs.max()
    assert {i for i, p in enumerate(probs) if p > bound * (1 + 1e-5)} | {ranking(logits)[0]} <= found
    assert found <= {i for i, p in enumerate(probs) if p >= bound * (1 - 1e-5)}


@settings(deadline=None)
@given(either, st.floats(0, 3), st.floats(0, 2))
def test_top_a_keeps_what_is_above_a_power_of_the_largest(logits, power, ratio):
    probs = logits.double().softmax(-1)
    found, bound = kept(top_a(logits, power, ratio)), ratio * probs.max() ** power
    likeliest = {i for i, p in enumerate(logits) if p == logits.max()}
    assert {i for i, p in enumerate(probs) if p > bound * (1 + 1e-5)} | likeliest <= found
    assert found <= {i for i, p in enumerate(probs) if p >= bound * (1 - 1e-5)} | likeliest


@settings(deadline=None)
@given(either, st.floats(0, 1), st.floats(0, 1))
def test_a_looser_setting_keeps_a_superset(logits, one, other):
    low, high = min(one, other), max(one, other)
    assert kept(top_p(logits, low)) <= kept(top_p(logits, high))
    assert kept(min_p(logits, high)) <= kept(min_p(logits, low))
    assert kept(top_k(logits, thres=high)) <= kept(top_k(logits, thres=low))
    assert kept(top_a(logits, 2.0, high)) <= kept(top_a(logits, 2.0, low))


@settings(deadline=None)
@given(st.sampled_from(sorted(FILTERS)), either, st.sampled_from(DTYPES))
def test_every_filter_keeps_the_likeliest_and_changes_no_kept_logit(name, logits, dtype):
    logits = logits.to(dtype)
    filtered = FILTERS[name](logits)
    assert filtered.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ranking(logits)[0] in kept(filtered)
    assert torch.equal(filtered[filtered.isfinite()], logits[filtered.isfinite()].to(filtered.dtype))


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_rows_are_filtered_one_by_one(name):
    logits = torch.randn(2, 3, 13)
    whole = FILTERS[name](logits)
    assert torch.equal(whole, torch.stack([torch.stack([FILTERS[name](row) for row in block]) for block in logits]))


def test_by_hand():
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log()
    assert kept(top_k(logits, k=2)) == {1, 2}
    assert kept(top_k(logits, k=3)) == {0, 1, 2}
    assert kept(top_k(logits, 0.5)) == {1, 2}
    assert kept(top_p(logits, 0.4)) == {1}
    assert kept(top_p(logits, 0.6)) == {1, 2}
    assert kept(top_p(logits, 0.8)) == {0, 1, 2}
    assert kept(top_p(logits, 0.0)) == {1}
    assert kept(top_p(torch.zeros(4), 0.5)) == {0, 1}
    assert kept(top_p(logits, 1.0)) == {0, 1, 2, 3}
    assert kept(min_p(logits, 0.3)) == {1, 2}
    assert kept(min_p(logits, 1.0)) == {1}
    assert kept(min_p(logits, 0.0)) == {0, 1, 2, 3}
    assert kept(top_a(logits, 2.0, 0.6)) == {1, 2}


@pytest.mark.parametrize(("v", "k"), [(1, 1), (3, 1), (10, 1), (30, 3), (31, 4), (100, 10)])
def test_a_tenth_is_rounded_up(v, k):
    assert len(kept(top_k(torch.randn(v)))) == k


def test_a_share_is_rounded_up_as_written():
    assert len(kept(top_k(torch.randn(100), 0.07))) == 7
    assert len(kept(top_k(torch.randn(101), 0.07))) == 8


@pytest.mark.parametrize(("v", "thres", "k"), [(5, 0.9, 1), (10, 0.9, 1), (100, 0.9, 10), (7, 0, 7), (7, 1, 1)])
def test_filter_thres_drops_that_share(v, thres, k):
    assert len(kept(top_k(torch.randn(v), thres=thres))) == k


def test_nothing_is_lost_at_thres_one():
    assert torch.equal(top_p(torch.linspace(-60, 0, 101), 1.0), torch.linspace(-60, 0, 101))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("top_k", {}),
        ("top_k", {"k": 5}),
        ("top_k", {"frac_num_tokens": 0.3}),
        ("top_p", {}),
        ("top_p", {"thres": 0.5}),
        ("min_p", {}),
        ("top_a", {}),
        ("top_a", {"min_p_pow": 1.5, "min_p_ratio": 0.3}),
    ],
)
def test_as_in_x_transformers(name, options):
    logits = torch.randn(7, 101) * 3
    theirs = getattr(peer("x_transformers"), name)(logits, **options)
    assert torch.equal(FILTERS[name](logits, **options), theirs)


def test_as_in_flash_pytorch():
    logits = torch.randn(7, 101)
    assert torch.equal(top_k(logits, thres=0.7), peer("flash_pytorch").top_k(logits, thres=0.7))


def test_repetition_penalty_lowers_positive_and_negative_logits():
    logits = torch.tensor([[3.0, -3.0, 0.0, 5.0]])
    seen = torch.tensor([[True, True, True, False]])
    assert torch.equal(repetition_penalty(logits, seen, 1.5), torch.tensor([[2.0, -4.5, 0.0, 5.0]]))
    assert torch.equal(repetition_penalty(logits, seen, 1.0), logits)


def test_padding_is_not_seen():
    ids = torch.tensor([[0, 4, 2], [4, 4, 0]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    expected = torch.tensor([[0, 0, 1, 0, 1], [1, 0, 0, 0, 1]]).bool()
    assert torch.equal(seen_tokens(ids, mask, 5), expected)
    # Id 4 is padding first and real later, and the other way round.
    ids, mask = torch.tensor([[4, 4, 4], [4, 4, 4]]), torch.tensor([[False, True, False], [True, False, False]])
    assert seen_tokens(ids, mask, 5)[:, 4].all()
    assert not seen_tokens(ids, torch.zeros_like(mask), 5).any()


def chi_square(tokens, probs):
    counts, expected = tokens.bincount(minlength=len(probs)).double(), probs * len(tokens)
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_come_as_often_as_they_are_likely(temperature, dtype):
    logits = torch.linspace(-3, 1, 13).roll(5).to(dtype)
    tokens = sample(logits.expand(40009, 13), temperature, torch.Generator().manual_seed(5))
    # 32.9 is exceeded once in a thousand seeds at 12 degrees of freedom.
    assert chi_square(tokens, (logits.double() / temperature).softmax(-1)) < 32.9


def test_filtered_tokens_are_never_drawn():
    logits = top_k(torch.randn(1, 13), k=3)
    tokens = sample(logits.expand(5003, 13), 1.0, torch.Generator().manual_seed(5))
    assert set(tokens.tolist()) == kept(logits[0])


def test_temperature_goes_to_the_likeliest():
    logits = torch.randn(7, 13)
    assert torch.equal(sample(logits, 0.0), logits.argmax(-1))
    assert torch.equal(sample(logits, 0), logits.argmax(-1))
    assert torch.equal(sample(logits, 1e-30), logits.argmax(-1))
    assert torch.equal(sample(logits * 1e30, 1e-30), logits.argmax(-1))


def test_the_generator_decides():
    logits = torch.randn(2, 3, 13)
    first, again = (sample(logits, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (2, 3)
    torch.manual_seed(11)
    plain = sample(logits)
    torch.manual_seed(11)
    assert torch.equal(sample(logits), plain)


def test_a_draw_holds_back_the_end():
    logits = torch.tensor([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]])
    draw = Draw(eos_token=2, temperature=0.0, min_tokens=3)
    assert draw(logits, None, 2).tolist() == [1, 1]
    assert draw(logits, None, 3).tolist() == [2, 2]
    assert logits.tolist() == [[0.0, 1.0, 5.0]] * 2


def test_a_callable_is_a_filter_too():
    pick = find_filter(lambda logits, column: logits.masked_fill(torch.arange(5) != column, -math.inf), {"column": 3})
    assert kept(pick(torch.randn(1, 5))[0]) == {3}
    assert find_filter(top_p, {"thres": 0.3}).func is top_p


X = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: top_k(X, k=0), ValueError, "k must be at least 1, not 0"),
        (lambda: top_k(X, k=2.0), TypeError, "k must be a whole number, not 2.0 of type float"),
        (lambda: top_k(X, k=True), TypeError, "k must be a whole number, not True of type bool"),
        (lambda: top_k(X, k=3, thres=0.5), ValueError, "one of frac_num_tokens=None, k=3 and thres=0.5"),
        (lambda: top_k(X, 0), ValueError, "frac_num_tokens must be above 0, not 0"),
        (lambda: top_k(X, thres=1.5), ValueError, "thres must be at most 1, not 1.5"),
        (lambda: top_p(X, -0.1), ValueError, "thres must be at least 0, not -0.1"),
        (lambda: top_p(X, math.nan), ValueError, "thres must be finite, not nan"),
        (lambda: min_p(X, 2), ValueError, "min_p must be at most 1, not 2"),
        (lambda: top_a(X, min_p_ratio=-1), ValueError, "min_p_ratio must be at least 0, not -1"),
        (lambda: top_a(X, min_p_pow=math.inf), ValueError, "min_p_pow must be finite, not inf"),
        (lambda: top_p(X, "0.9"), TypeError, "thres must be a number, not '0.9' of type str"),
        (lambda: top_k(X.long()), TypeError, r"floating-point tensor \(..., v\), not a tensor of torch.int64"),
        (lambda: sample(X, -1.0), ValueError, "temperature must be at least 0, not -1.0"),
        (lambda: sample(X.clone().fill_diagonal_(math.nan)), ValueError, "finite largest value in each row, not .nan"),
        (lambda: sample(torch.full((1, 5), -math.inf)), ValueError, "finite largest value in each row, not .-inf"),
        (lambda: repetition_penalty(X, X.bool(), 0), ValueError, "repetition_penalty must be above 0, not 0"),
        (lambda: find_filter("topk", {}), ValueError, "unknown filter 'topk'; did you mean 'top_k'.*'top_p'"),
        (lambda: find_filter(3, {}), TypeError, "must be a name or a callable, not 3 of type int"),
        (lambda: find_filter("top_p", {"thresh": 0.5}), TypeError, "'top_p' takes no 'thresh'; did you mean 'thres'"),
        (lambda: find_filter(top_p, {"k": 5}), TypeError, r"'top_p' takes no 'k' \(takes: 'thres'\)"),
        (lambda: find_filter("none", {"k": 5}), TypeError, r"'none' takes no 'k' \(takes: nothing\)"),
        (lambda: find_filter("top_k", {"k": 0}), ValueError, "k must be at least 1, not 0"),
        (lambda: Draw(min_tokens=2), ValueError, "min_tokens=2 holds back the end token, but eos_token is not given"),
        (lambda: Draw(min_tokens=-1), ValueError, "min_tokens must be at least 0, not -1"),
        (lambda: Draw(generator=5), TypeError, "must be a torch.Generator, not 5 of type int"),
        (lambda: Draw(filter_thres=0.5, filter_kwargs={"thres": 0.3}), ValueError, "filter_thres=0.5 and .* both"),
        (lambda: Draw(temperature=math.inf), ValueError, "temperature must be finite, not inf"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
