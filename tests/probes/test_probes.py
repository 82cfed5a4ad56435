"""Each probe against itself: oracles know, guessing is chance, too short a reach fails, what is later is not needed."""

import itertools
import json
from math import factorial, sqrt

import pytest
import torch
from torch.nn.functional import one_hot

import xflash
from xflash import Decoder, TransformerWrapper, probes
from xflash.probes import Probe

UNASKED = -100
# Each with what is right by chance.
PROBES = {
    "recall": (probes.recall(seq_len=23, pairs=3, symbols=5), 1 / 5),
    "recall both ways": (probes.recall(seq_len=23, pairs=3, symbols=5, causal=False), 1 / 5),
    "copy": (probes.copy(seq_len=19, count=3, symbols=7), 1 / 7),
    "induction": (probes.induction(seq_len=29, period=(5, 11), symbols=13), 1 / 13),
    "needle": (probes.needle(seq_len=28, segment=7, length=2, symbols=5, noise=3), 1 / 5),
    "needle at any gap": (probes.needle(seq_len=28, segment=7, gap=(1, 3), length=2, symbols=5, noise=3), 1 / 5),
    "parity": (probes.parity(seq_len=17), 1 / 2),
    "permutations": (probes.permutations(seq_len=17), 1 / 6),
    "permutations of five": (probes.permutations(seq_len=11, items=5), 1 / 120),
}
ALL = pytest.mark.parametrize("name", PROBES)


def drawn(name: str, rows: int = 211) -> tuple[Probe, torch.Tensor, torch.Tensor]:
    probe, _ = PROBES[name]
    return probe, *probe.draw(rows, torch.Generator().manual_seed(0))


def scored(probe: Probe, answers: torch.Tensor, labels: torch.Tensor) -> float:
    """The score of a model that gives these answers for certain."""
    return probe.score(one_hot(answers.clamp(min=0), probe.num_tokens).float(), labels)


def through_a_window(probe: Probe, ids: torch.Tensor, width: int) -> torch.Tensor:
    """The oracle's answers where it sees the last `width` tokens only, up to the one that asks."""
    ends = range(1, ids.shape[1] + 1)
    return torch.stack([probe.oracle(ids[:, max(0, end - width) : end])[:, -1] for end in ends], 1)


def recalled(row: list[int], probe) -> list[int]:
    keys = range(probe.symbols)
    pairs = {a: b for a, b in itertools.pairwise(row) if a in keys and b in probe.answers}
    asks = [a in keys and b not in probe.answers for a, b in zip(row, [*row[1:], -1], strict=True)]
    return [pairs[a] if asked else UNASKED for a, asked in zip(row, asks, strict=True)]


def copied(row: list[int], probe) -> list[int]:
    symbols = iter([token for token in row if token in probe.answers])
    return [next(symbols) if token == 1 else UNASKED for token in row]


def continued(row: list[int], probe) -> list[int]:
    return [row[row.index(a) + 1] if row.index(a) < t else UNASKED for t, a in enumerate(row)]


def given_back(row: list[int], probe) -> list[int]:
    stored, asked = (row.index(sign) for sign in (probe.num_tokens - 2, probe.num_tokens - 1))
    needle = row[stored + 1 : stored + 1 + probe.length]
    assert row[asked + 1 : asked + 1 + probe.length] == needle and all(token in probe.answers for token in needle)
    return [UNASKED] * asked + needle + [UNASKED] * (len(row) - asked - probe.length)


def odd(row: list[int], probe) -> list[int]:
    return [sum(row[: t + 1]) % 2 for t in range(len(row))]


def moved(row: list[int], probe) -> list[int]:
    """The items, moved one permutation after the other."""
    every = list(itertools.permutations(range(probe.items)))
    places, found = list(range(probe.items)), []
    for move in (every[token] for token in row):
        places = [move[place] for place in places]
        found.append(every.index(tuple(places)))
    return found


BY_HAND = {
    "recall": recalled,
    "copy": copied,
    "induction": continued,
    "needle": given_back,
    "parity": odd,
    "permutations": moved,
}


@ALL
def test_labels_are_what_the_row_says(name):
    """Read token by token, by lists and dictionaries."""
    probe, ids, labels = drawn(name)
    assert ids.shape == labels.shape == (211, probe.seq_len) and ids.dtype == labels.dtype == torch.long
    assert ids.min() >= 0 and ids.max() < probe.num_tokens
    for row, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        assert BY_HAND[probe.name](row, probe) == wanted


@ALL
def test_the_oracle_scores_one(name):
    probe, ids, labels = drawn(name)
    assert torch.equal(probe.oracle(ids), labels)
    assert scored(probe, probe.oracle(ids), labels) == 1


@ALL
def test_guessing_scores_chance(name):
    """To four standard deviations; each answer is as frequent as any other, so that none is a better guess."""
    probe, ids, labels = drawn(name, 3001)
    chance, asked = PROBES[name][1], labels != UNASKED
    assert probe.chance == pytest.approx(chance)
    low, high = probe.answers[0], probe.answers[-1] + 1
    guesses = torch.randint(low, high, ids.shape, generator=torch.Generator().manual_seed(1))
    assert scored(probe, guesses, labels) == pytest.approx(chance, abs=4 * sqrt(chance * (1 - chance) / asked.sum()))
    # One of each row: those of a row need not be independent.
    ones = labels.gather(1, asked.int().argmax(1, keepdim=True))
    share = ones.flatten().bincount(minlength=high)[low:] / len(ones)
    assert len(share) == round(1 / chance)
    assert (share - chance).abs().max() < 5 * sqrt(chance * (1 - chance) / len(ones))


@ALL
def test_what_is_later_is_needed_only_where_it_is_said(name):
    probe, ids, labels = drawn(name, 13)
    before = through_a_window(probe, ids, probe.seq_len)
    if probe.causal:
        assert torch.equal(before, labels)
    else:
        assert (before == UNASKED).all()


@ALL
def test_too_short_a_reach_fails(name):
    """An oracle that sees a few tokens only knows what can be found in them, and guesses the rest or says nothing."""
    probe, ids, labels = drawn(name)
    needed = torch.tensor([reach(probe, *row) for row in zip(ids.tolist(), labels.tolist(), strict=True)])
    asked = labels != UNASKED
    for width in (3, 6, 9):
        right, within = through_a_window(probe, ids, width) == labels, needed <= width
        assert right[asked & within].all()
        lucky = right[asked & ~within].double()
        if probe.name in ("copy", "parity", "permutations"):
            assert lucky.mean() < probe.chance + 4 * sqrt(probe.chance / len(lucky))
        else:
            assert not lucky.any()
        assert scored(probe, through_a_window(probe, ids, width), labels) < 0.99


def reach(probe: Probe, row: list[int], labels: list[int]) -> list[int]:
    """How many tokens must be seen at each that is asked, itself included, to know the answer; by hand."""
    return [t + 1 - source(probe, row, t) if label != UNASKED else 0 for t, label in enumerate(labels)]


def source(probe: Probe, row: list[int], t: int) -> int:
    """Where what says the answer at t begins."""
    if probe.name in ("parity", "permutations"):
        return 0
    if not probe.causal:  # It stands behind.
        return t - len(row)
    if probe.name == "copy":
        return next(i for i, token in enumerate(row) if token in probe.answers)
    if probe.name == "needle":
        return row.index(probe.num_tokens - 2)
    return max(i for i in range(t) if row[i] == row[t])


@pytest.mark.parametrize(("width", "reaches"), [(3, False), (None, True)])
def test_a_window_knows_nothing_of_a_needle_beyond_it(width, reaches):
    """Whatever the needle, the model's answer is the same one, which is right for one of them all."""
    probe = probes.needle(seq_len=21, segment=7, length=1, symbols=5, noise=3)
    ids, labels = probe.draw(11, torch.Generator().manual_seed(0))
    asked, store = labels != UNASKED, ids == probe.num_tokens - 2
    torch.manual_seed(0)
    stack = Decoder(dim=16, depth=2, heads=2, layers="attn ff", pos="rotary", attn_window=width)
    model = TransformerWrapper(num_tokens=probe.num_tokens, attn_layers=stack).eval()
    with torch.no_grad():
        logits = [model(torch.where(store.roll(1, 1), symbol, ids)) for symbol in range(5)]
    gap = max((one - logits[0])[asked].abs().max().item() for one in logits)
    assert (gap > 1e-3) if reaches else (gap < 1e-6)
    # Signs and noise are no answers.
    among = [one.index_fill(-1, torch.arange(5, probe.num_tokens), -99) for one in logits]
    scores = [probe.score(one, torch.where(asked, symbol, labels)) for symbol, one in enumerate(among)]
    if not reaches:
        assert sum(scores) == pytest.approx(1)


@ALL
def test_longer_rows_ask_the_same(name):
    probe, _, _ = drawn(name)
    longer = probe.longer(4 * probe.seq_len)
    ids, labels = longer.draw(31, torch.Generator().manual_seed(0))
    assert ids.shape == (31, 4 * probe.seq_len) and torch.equal(longer.oracle(ids), labels)
    assert (longer.num_tokens, longer.answers, longer.causal) == (probe.num_tokens, probe.answers, probe.causal)
    assert longer.settings() == {**probe.settings(), "seq_len": 4 * probe.seq_len}
    # More is asked, or from further away.
    asked = (labels != UNASKED).sum(1)
    more = {"induction", "parity", "permutations"}
    assert (
        (asked > probe.seq_len).all() if probe.name in more else (asked == (drawn(name)[2] != UNASKED)[0].sum()).all()
    )
    if name == "needle":
        assert ((ids == probe.num_tokens - 1).int().argmax(1) // 7 == 15).all()
    assert probe.longer(probe.seq_len) == probe


def test_a_gap_is_within_its_bounds():
    probe = probes.needle(seq_len=28, segment=7, gap=(1, 2), length=2)
    ids, _ = probe.draw(97, torch.Generator().manual_seed(0))
    stored, asked = ((ids == probe.num_tokens - i).int().argmax(1) // 7 for i in (2, 1))
    assert (stored == 0).all() and set(asked.tolist()) == {1, 2}


def test_parity_is_the_permutations_of_two():
    ids, labels = probes.parity(seq_len=13).draw(7, torch.Generator().manual_seed(0))
    assert torch.equal(probes.permutations(items=2, seq_len=13).oracle(ids), labels)
    assert [probes.permutations(items=n).num_tokens for n in (2, 3, 4, 5)] == [factorial(n) for n in (2, 3, 4, 5)]


def test_the_score_is_the_share_of_what_is_asked():
    probe = probes.parity(seq_len=3)
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]], [[0.0, 9.0], [5.0, 1.0], [1.0, 2.0]]])
    assert probe.score(logits, torch.tensor([[0, UNASKED, 1], [1, 1, UNASKED]])) == 2 / 4
    assert probe.score(logits, torch.tensor([[0, UNASKED, UNASKED]] * 2)) == 1 / 2


@ALL
def test_a_description_says_it_all(name):
    probe, ids, labels = drawn(name, 5)
    words = json.loads(json.dumps(probe.describe()))
    again = getattr(probes, words.pop("probe"))(**words)
    assert again == probe and hash(again) == hash(probe) and eval(repr(probe), {"probes": probes}) == probe
    for ours, theirs in zip(again.draw(5, torch.Generator().manual_seed(0)), (ids, labels), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(again.draw(5, torch.Generator().manual_seed(1))[0], ids)
    assert len({json.dumps(other.describe()) for other, _ in PROBES.values()}) == len(PROBES)


def test_they_come_with_the_package():
    assert xflash.probes is probes and set(BY_HAND) == set(probes.__all__) - {"Probe"}
    assert probes.recall.__doc__.startswith("Multi-query") and "pairs" in probes.recall.__signature__.parameters
