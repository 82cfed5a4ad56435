"""What is generated from a causal model, token by token, and how."""

import inspect
import itertools
import math

import pytest
import torch
from tiny_lm import TinyLM
from torch import nn

from xflash.wrappers.autoregressive import AutoregressiveWrapper

B, N, NEW = 3, 5, 13


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(17)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def greedy_by_hand(model, prompt, seq_len, eos_token=None):
    """The definition: the likeliest token after all tokens so far, one row, until the end token."""
    ids = prompt
    for _ in range(seq_len):
        ids = torch.cat((ids, model.net(ids[None])[0, -1].argmax()[None]))
        if ids[-1] == eos_token:
            break
    return ids[len(prompt) :]


def test_greedy_is_the_likeliest_token_each_time(model, prompts):
    expected = torch.stack([greedy_by_hand(model, row, NEW) for row in prompts])
    assert torch.equal(model.generate(prompts, NEW, temperature=0.0), expected)
    assert len(expected.unique()) > 2


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"filter_logits_fn": "top_p"}, {"repetition_penalty": 1.7}])
@pytest.mark.parametrize("padded", [False, True])
def test_with_state_as_without(model, prompts, settings, padded):
    if padded:
        settings = {**settings, "prompt_lens": [5, 1, 3]}
    settings = {**settings, "eos_token": 6}
    kept = model.generate(prompts, NEW, generator=seeded(), **settings)
    assert torch.equal(kept, model.generate(prompts, NEW, generator=seeded(), cache_kv=False, **settings))


def test_one_token_a_step_after_the_prompt(model, prompts):
    model.generate(prompts, NEW, context=torch.randn(B, 7, dtype=torch.double))
    assert model.net.calls == [("step", N, ["context"])] + [("step", 1, [])] * (NEW - 1)
    model.net.calls.clear()
    model.generate(prompts, NEW, cache_kv=False)
    assert model.net.calls == [("forward", N + i, []) for i in range(NEW)]


@pytest.mark.parametrize("how", ["list", "prompt_lens", "left", "right", "holes"])
def test_ragged_prompts_go_on_as_each_alone(model, how):
    rows = [torch.randint(0, 11, (n,)) for n in (7, 1, 3, 11, 2)]
    expected = torch.stack([greedy_by_hand(model, row, NEW) for row in rows])
    lens, width = [len(row) for row in rows], 13
    ids, mask = torch.full((5, width), 99), torch.zeros(5, width, dtype=torch.bool)
    for i, row in enumerate(rows):
        places = range(width - len(row), width) if how == "left" else range(len(row))
        places = sorted(torch.randperm(width)[: len(row)].tolist()) if how == "holes" else list(places)
        ids[i, places], mask[i, places] = row, True
    if how == "list":
        found = model.generate(rows, NEW, temperature=0.0)
    elif how == "prompt_lens":
        found = model.generate(ids, NEW, temperature=0.0, prompt_lens=torch.tensor(lens))
    else:
        found = model.generate(ids, NEW, temperature=0.0, mask=mask)
    assert torch.equal(found, expected)


def test_prompts_of_one_length_need_no_mask(model, prompts):
    expected = model.generate(prompts, NEW, temperature=0.0)
    assert torch.equal(model.generate(list(prompts), NEW, temperature=0.0), expected)
    padded = nn.functional.pad(prompts, (0, 2), value=99)
    assert torch.equal(model.generate(padded, NEW, temperature=0.0, prompt_lens=[N] * B), expected)
    assert model.net.calls == ([("step", N, [])] + [("step", 1, [])] * (NEW - 1)) * 3


def test_the_batch_keeps_its_shape(model):
    prompts = torch.randint(0, 11, (2, B, N))
    found = model.generate(prompts, NEW, temperature=0.0)
    assert found.shape == (2, B, NEW)
    assert torch.equal(model.generate(prompts[1, 2], NEW, temperature=0.0), found[1, 2])
    assert torch.equal(model.generate(prompts.int(), NEW, temperature=0.0), found)
    assert next(model.stream(prompts[1, 2], NEW)).shape == ()
    assert next(model.stream(prompts, NEW)).shape == (2, B)
    assert model.beam_search(prompts, NEW).shape == (2, B, NEW)
    assert model.beam_search(prompts[1, 2], NEW).shape == (NEW,)


def test_a_seeded_generator_gives_the_same_tokens(model, prompts):
    first, again, other = (model.generate(prompts, NEW, generator=seeded(seed)) for seed in (5, 5, 7))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_tokens_are_drawn_as_the_model_says(model):
    prompt = torch.randint(0, 11, (N,))
    found = model.generate(prompt.expand(7001, N), 2, temperature=0.7, filter_logits_fn="none", generator=seeded())
    first = (model.net(prompt[None])[0, -1] / 0.7).softmax(-1)
    after = [(model.net(torch.cat((prompt, torch.tensor([t])))[None])[0, -1] / 0.7).softmax(-1) for t in range(11)]
    probs = (first[:, None] * torch.stack(after)).flatten()
    counts = (found[:, 0] * 11 + found[:, 1]).bincount(minlength=121)
    expected, rare = probs * 7001, probs * 7001 < 5
    square = ((counts - expected) ** 2 / expected)[~rare].sum()
    freedom = int((~rare).sum())
    assert freedom > 30
    assert square < freedom + 4 * math.sqrt(2 * freedom)


def test_default_filter_is_a_tenth_of_the_vocabulary(model, prompts):
    tokens = {tuple(row) for seed in range(23) for row in model.generate(prompts, 1, generator=seeded(seed)).T.tolist()}
    best = model.net(prompts)[:, -1].topk(2).indices.tolist()
    assert tokens <= set(itertools.product(*best))
    assert len(tokens) > 3


@pytest.mark.parametrize(
    "settings",
    [
        {"filter_thres": 0.7},
        {"filter_kwargs": {"thres": 0.7}},
        {"filter_kwargs": {"k": 3}},
        {"filter_logits_fn": lambda logits: logits.masked_fill(logits < logits.topk(3).values[:, -1:], -math.inf)},
    ],
)
def test_filters_in_every_spelling(model, prompts, settings):
    expected = model.generate(prompts, NEW, generator=seeded(), filter_logits_fn="top_k", filter_kwargs={"k": 3})
    assert torch.equal(model.generate(prompts, NEW, generator=seeded(), **settings), expected)


def test_repetition_penalty_spares_what_has_not_been_seen(model):
    lens = torch.tensor([5, 3, 2])
    prompts = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 0, 0], [1, 1, 9, 9, 9]])
    found = model.generate(prompts, 3, temperature=0.0, prompt_lens=lens, repetition_penalty=1e9)
    for row, length, new in zip(prompts, lens, found, strict=True):
        ids = row[:length]
        for token in new:
            logits = model.net(ids[None])[0, -1]
            seen = torch.zeros(11, dtype=torch.bool).index_fill_(0, ids, True)
            penalised = torch.where(seen, torch.where(logits > 0, logits / 1e9, logits * 1e9), logits)
            assert token == penalised.argmax()
            ids = torch.cat((ids, token[None]))


@pytest.fixture
def ending(model, prompts):
    """An end token that a greedy run meets in every row, at different places, and the run without it."""
    free = model.generate(prompts, 31, temperature=0.0)
    for eos in range(11):
        places = [(row == eos).nonzero().flatten().tolist() for row in free]
        if all(places) and len({p[0] for p in places}) == B:
            return eos, free, [p[0] for p in places]
    pytest.fail("no end token meets all rows with this seed")


def test_padding_follows_the_end_and_all_stop_together(model, prompts, ending):
    eos, free, ends = ending
    model.pad_value = -5
    found = model.generate(prompts, 31, temperature=0.0, eos_token=eos)
    assert found.shape == (B, max(ends) + 1)
    for row, whole, end in zip(found, free, ends, strict=True):
        assert torch.equal(row[: end + 1], whole[: end + 1])
        assert (row[end + 1 :] == -5).all()


def test_a_stream_ends_when_all_have_ended(model, prompts, ending):
    eos, _, ends = ending
    stream = list(model.stream(prompts, 31, temperature=0.0, eos_token=eos))
    assert len(stream) == max(ends) + 1
    assert torch.equal(torch.stack(stream, -1), model.generate(prompts, 31, temperature=0.0, eos_token=eos))


def test_looking_seldom_for_the_end_changes_nothing(model, prompts, ending, monkeypatch):
    eos, _, _ = ending
    expected = model.generate(prompts, 31, temperature=0.0, eos_token=eos)
    beams = model.beam_search(prompts, 31, eos_token=eos)
    for module in ("generation.decoding", "generation.beam"):
        monkeypatch.setattr(f"xflash.{module}.check_every", lambda device: 7)
    assert torch.equal(model.generate(prompts, 31, temperature=0.0, eos_token=eos), expected)
    assert torch.equal(model.beam_search(prompts, 31, eos_token=eos), beams)


def test_an_end_token_in_the_prompt_ends_nothing(model, prompts, ending):
    eos, _, _ = ending
    prompts[:, 1] = eos
    assert model.generate(prompts, 3, temperature=0.0, eos_token=eos, min_tokens=3).shape == (B, 3)


def test_min_tokens_holds_the_end_back(model, prompts, ending):
    eos, _, _ = ending
    found = model.generate(prompts, 31, temperature=0.0, eos_token=eos, min_tokens=17)
    assert not (found[:, :17] == eos).any()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"repetition_penalty": 1.3, "prompt_lens": [5, 1, 3]}])
@pytest.mark.parametrize("eos_token", [None, 6])
def test_the_stream_is_what_is_generated(model, prompts, settings, eos_token):
    whole = model.generate(prompts, 31, eos_token=eos_token, generator=seeded(), **settings)
    stream = model.stream(prompts, 31, eos_token=eos_token, generator=seeded(), **settings)
    assert torch.equal(torch.stack(list(stream), -1), whole)


def test_stream_and_generate_take_the_same():
    own = [inspect.signature(getattr(AutoregressiveWrapper, name)).parameters for name in ("generate", "stream")]
    assert own[0] == own[1]


def test_a_stream_makes_what_is_asked_for(model, prompts):
    stream = model.stream(prompts, NEW)
    assert model.net.calls == []
    next(stream)
    next(stream)
    assert len(model.net.calls) == 2


def modes(model):
    return [m.training for m in model.modules()]


def test_modes_are_restored_module_by_module(model, prompts):
    model.train()
    model.net.drop.eval()
    before = modes(model)
    assert len(set(before)) == 2
    expected = model.generate(prompts, NEW, temperature=0.0)
    assert modes(model) == before
    stream = model.stream(prompts, NEW, temperature=0.0)
    for i, token in enumerate(stream):
        assert modes(model) == before
        assert torch.is_grad_enabled()
        assert torch.equal(token, expected[:, i])
        if i == 3:
            break
    model.beam_search(prompts, 3)
    assert modes(model) == before


def test_no_graph_is_built(model, prompts):
    graphs = []
    model.net.out.register_forward_hook(lambda module, args, logits: graphs.append(logits.requires_grad))
    for call in (model.generate, model.beam_search, lambda *args: next(model.stream(*args))):
        call(prompts, 3)
    assert set(graphs) == {False}


def test_modes_are_restored_after_an_error(model, prompts):
    model.train()
    for call in (model.generate, model.beam_search, lambda *args: next(model.stream(*args))):
        with pytest.raises(ValueError, match="ids out of range"):
            call(prompts + 11, NEW)
        assert all(modes(model))
        assert torch.is_grad_enabled()


def test_dropout_is_off_while_generating(prompts):
    model = AutoregressiveWrapper(TinyLM().double()).train()
    assert torch.equal(*(model.generate(prompts, NEW, temperature=0.0) for _ in range(2)))


def test_what_fits_is_given_with_a_state(prompts):
    model = AutoregressiveWrapper(TinyLM(max_seq_len=17).double()).eval()
    assert model.generate(prompts, 13, temperature=0.0).shape == (B, 13)
    assert {name for name, _, _ in model.net.calls} == {"step"}
    assert torch.equal(*(model.generate(prompts, 13, temperature=0.0, cache_kv=cache) for cache in (True, False)))


def test_what_does_not_fit_is_refused(prompts):
    model = AutoregressiveWrapper(TinyLM(max_seq_len=17).double()).eval()
    match = "prompt of 5 tokens and seq_len=14 need 18 positions.*max_seq_len=17: at most seq_len=13 fits"
    for call in (model.generate, model.stream, model.beam_search):
        with pytest.raises(ValueError, match=match):
            call(prompts, 14)
        with pytest.raises(ValueError, match=r"prompt of 19 tokens.*the prompt must be cut to 17 first"):
            call(torch.zeros(B, 19, dtype=torch.long), 1)
    # Only real tokens take a place.
    assert model.generate(torch.zeros(B, 19, dtype=torch.long), 13, prompt_lens=[5, 3, 2]).shape == (B, 13)


@pytest.mark.parametrize("lens", [None, [5, 2, 3]])
def test_restricting_reads_the_last_tokens_anew(prompts, lens):
    model = AutoregressiveWrapper(TinyLM(max_seq_len=7).double()).eval()
    found = model.generate(prompts, NEW, temperature=0.0, prompt_lens=lens, restrict_to_max_seq_len=True)
    for row, length, new in zip(prompts, lens or [N] * B, found, strict=True):
        ids = row[:length]
        for token in new:
            assert token == model.net(ids[None, -7:])[0, -1].argmax()
            ids = torch.cat((ids, token[None]))
    # With one beam the search is greedy, beyond the window too.
    options = {"prompt_lens": lens, "restrict_to_max_seq_len": True}
    assert torch.equal(model.beam_search(prompts, NEW, 1, **options), found)
    wide = model.beam_search(prompts, NEW, 3, **options)
    assert torch.equal(model.beam_search(prompts, NEW, 3, cache_kv=False, **options), wide)


def test_a_net_without_step_needs_no_state():
    class Plain(nn.Module):
        def forward(self, ids):
            return nn.functional.one_hot((ids + 1) % 11, 11).float()

    model, ids = AutoregressiveWrapper(Plain()), torch.zeros(B, N, dtype=torch.long)
    with pytest.raises(TypeError, match=r"Plain has no step\(ids, state, mask=\): give cache_kv=False"):
        model.generate(ids, 3)
    assert model.generate(ids, 3, temperature=0.0, cache_kv=False).tolist() == [[1, 2, 3]] * B
