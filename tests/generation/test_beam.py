import itertools
import math

import pytest
import torch
from tiny_lm import TinyLM

from xflash.generation.beam import Beams
from xflash.wrappers.autoregressive import AutoregressiveWrapper

V, T = 3, 5


def wrapped(seed, **options):
    torch.manual_seed(seed)
    return AutoregressiveWrapper(TinyLM(**options).double()).eval()


def all_sequences(model, prompt, seq_len, eos, penalty, temperature=1.0):
    """Every continuation of up to `seq_len` tokens that ends at its first end token, by its score, best first."""
    every = torch.tensor(list(itertools.product(range(model.net.num_tokens), repeat=seq_len)))
    ids = torch.cat((prompt.expand(len(every), -1), every), 1)
    log_probs = (model.net(ids[:, :-1]) / temperature).log_softmax(-1)[:, len(prompt) - 1 :]
    totals = log_probs.gather(-1, every[..., None])[..., 0].cumsum(1)
    found = {}
    for tokens, total in zip(every.tolist(), totals.tolist(), strict=True):
        length = tokens.index(eos) + 1 if eos in tokens else seq_len
        found[tuple(tokens[:length])] = total[length - 1] / length**penalty
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("eos", [None, 1])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.3, -0.7])
@pytest.mark.parametrize("seed", [2, 3])
def test_a_beam_as_wide_as_the_tree_finds_the_best(eos, penalty, seed):
    model = wrapped(seed, num_tokens=V)
    prompts = torch.randint(0, V, (2, 7))
    found = model.beam_search(prompts, T, V ** (T - 1), eos_token=eos, length_penalty=penalty)
    for prompt, row in zip(prompts, found, strict=True):
        best = all_sequences(model, prompt, T, eos, penalty)[0][0]
        assert tuple(row[: len(best)].tolist()) == best
        assert (row[len(best) :] == 0).all()


@pytest.mark.parametrize("eos", [None, 1])
def test_all_beams_are_all_sequences_in_order(eos):
    model = wrapped(5, num_tokens=V)
    model.pad_value = -9
    prompt = torch.randint(0, V, (7,))
    beams, scores = model.beam_search(
        prompt, T, V**T, eos_token=eos, temperature=0.7, length_penalty=1.3, return_beams_and_scores=True
    )
    expected = all_sequences(model, prompt, T, eos, 1.3, 0.7)
    assert beams.shape == (V**T, T)
    torch.testing.assert_close(scores[: len(expected)], torch.tensor([s for _, s in expected], dtype=torch.double))
    for beam, (tokens, _) in zip(beams, expected, strict=False):
        assert tuple(beam.tolist()) == tokens + (-9,) * (T - len(tokens))
    # There are no more sequences than these.
    assert (scores[len(expected) :] == -math.inf).all()
    assert (beams[len(expected) :] == -9).all()


@pytest.mark.parametrize("eos", [None, 6])
@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy(eos, seed):
    model = wrapped(seed)
    rows = [torch.randint(0, 11, (n,)) for n in (5, 1, 3)]
    assert torch.equal(
        model.beam_search(rows, 13, 1, eos_token=eos), model.generate(rows, 13, temperature=0.0, eos_token=eos)
    )


@pytest.mark.parametrize("eos", [None, 6])
def test_with_state_as_without(eos):
    model = wrapped(7)
    prompts, context = torch.randint(0, 11, (3, 5)), torch.randn(3, 7, dtype=torch.double)
    options = {"eos_token": eos, "prompt_lens": [5, 1, 3], "context": context, "return_beams_and_scores": True}
    kept = model.beam_search(prompts, 13, 5, **options)
    anew = model.beam_search(prompts, 13, 5, cache_kv=False, **options)
    assert torch.equal(kept[0], anew[0])
    torch.testing.assert_close(kept[1], anew[1])
    assert kept[0].shape[:2] == kept[1].shape == (5, 3)


@pytest.mark.parametrize("eos", [None, 6])
def test_a_row_does_not_depend_on_its_neighbours(eos):
    model = wrapped(11)
    rows = [torch.randint(0, 11, (n,)) for n in (5, 1, 3)]
    together = model.beam_search(rows, 13, 5, eos_token=eos)
    for row, found in zip(rows, together, strict=True):
        alone = model.beam_search(row, 13, 5, eos_token=eos)
        assert torch.equal(found[: len(alone)], alone)
        assert (found[len(alone) :] == 0).all()


def test_scores_are_those_of_the_beams():
    model = wrapped(13)
    prompt = torch.randint(0, 11, (5,))
    beams, scores = model.beam_search(prompt, 7, 5, eos_token=6, return_beams_and_scores=True)
    assert torch.equal(scores, scores.sort(descending=True).values)
    assert len({tuple(beam.tolist()) for beam in beams}) == 5
    for beam, score in zip(beams.tolist(), scores, strict=True):
        tokens = beam[: beam.index(6) + 1] if 6 in beam else beam
        log_probs = model.net(torch.cat((prompt, torch.tensor(tokens)))[None, :-1])[0, 4:].log_softmax(-1)
        torch.testing.assert_close(score, log_probs[range(len(tokens)), tokens].mean())


def test_the_search_stops_when_nothing_open_can_win():
    model = wrapped(17)
    with torch.no_grad():
        model.net.out.bias[6] += 30
    prompts = torch.randint(0, 11, (3, 5))
    found = model.beam_search(prompts, 31, 5, eos_token=6)
    assert found.tolist() == [[6]] * 3
    assert len(model.net.calls) == 1


@pytest.mark.parametrize(
    ("penalty", "seq_len", "settled"),
    [
        # Ended at -0.75 with one token, open at -1.5 with two: five tokens could still give -1.5 / 5.
        (1.0, 5, False),
        (1.0, 2, True),
        (0.0, 5, True),
        # Where length is punished the open one has its best score now: -1.5 * 2.
        (-1.0, 5, True),
    ],
)
def test_settled_by_hand(penalty, seq_len, settled):
    total, length = torch.tensor([[-1.5, -0.75, -math.inf]]), torch.tensor([[2, 1, 1]])
    beams = Beams(total, length, torch.tensor([[False, True, False]]))
    assert beams.settled(seq_len, penalty).tolist() == [settled]
    assert not beams._replace(ended=torch.zeros(1, 3).bool()).settled(seq_len, penalty).any()
    assert beams._replace(ended=torch.ones(1, 3).bool()).settled(seq_len, penalty).all()


def test_no_beam_scores_above_the_best_sequence():
    model = wrapped(19, num_tokens=V)
    prompt = torch.randint(0, V, (7,))
    best = all_sequences(model, prompt, T, 1, 1.0)[0][1]
    for beams in (1, 2, 3, 5, 7):
        _, scores = model.beam_search(prompt, T, beams, eos_token=1, return_beams_and_scores=True)
        assert scores[0] <= best + 1e-12


def test_float32_models_and_modes():
    model = AutoregressiveWrapper(TinyLM()).train()
    assert model.beam_search(torch.randint(0, 11, (3, 5)), 7).shape == (3, 7)
    assert model.training


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"beams": 0}, ValueError, "beams must be at least 1, not 0"),
        ({"beams": 2.0}, TypeError, "beams must be a whole number, not 2.0"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0, not 0.0"),
        ({"length_penalty": math.nan}, ValueError, "length_penalty must be finite, not nan"),
        ({"length_penalty": None}, TypeError, "length_penalty must be a number, not None"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=match):
        wrapped(0).beam_search(torch.zeros(3, 5, dtype=torch.long), 7, **options)
