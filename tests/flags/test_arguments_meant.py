"""The ten meanings of values that look wrong and are right (docs/arguments.md): each has the effect that is said."""

import math

import pytest
import torch
from argument_calls import DIM, IDS, VOCABULARY, X, model, recurrent, stack, vit

import xflash
from xflash.datasets.images import Images
from xflash.generation.sampling import min_p, sample, top_a, top_k, top_p

LOGITS = torch.tensor([[0.5, -1.0, 2.0, 1.0, -3.0]])
NAN = math.nan


def same(one, other, *inputs):
    """Whether two modules of the same seed give the same."""
    return torch.equal(one.eval()(*inputs), other.eval()(*inputs))


@pytest.mark.parametrize(
    "flags",
    [
        {"num_memory_tokens": 0},
        {"shift_tokens": 0},
        {"layer_dropout": 0},
        {"attn_dropout": 0},
        {"attn_sinks": 0},
        {"attn_num_mem_kv": 0},
    ],
    ids=str,
)
def test_zero_is_none_in_a_stack(flags):
    assert same(stack(**flags), stack(), X)


def test_zero_is_none_in_a_model():
    relative = {"flags": {"pos": "rotary"}, "use_abs_pos_emb": False}
    plain = model(**relative)
    for zero in ({"num_memory_tokens": 0}, {"max_mem_len": 0}, {"max_seq_len": 0}, {"emb_dropout": 0}):
        assert same(model(**relative, **zero), plain, IDS)
    assert same(model(pos_emb_offset=0), model(), IDS)
    torch.manual_seed(1)
    without = xflash.ViTransformerWrapper(**vit())
    torch.manual_seed(1)
    assert same(xflash.ViTransformerWrapper(**vit(), num_register_tokens=0), without, torch.ones(2, 2, 6, 6))
    # No tokens before the query: it sees itself.
    assert same(stack(attn_max_attend_past=0), stack(attn_window=1), X)
    prefix = stack(xflash.PrefixDecoder)
    assert torch.equal(prefix(X, prefix_attn_len=0), prefix(X))


def test_zero_is_none_of_the_tokens():
    always = {"mask_prob": 1.0, "replace_prob": 0, "random_token_prob": 0}
    bert = xflash.MaskedLMWrapper(model(xflash.Encoder), mask_token_id=10, **always)
    chosen = bert.choose(IDS, None).chosen
    assert chosen.any() and torch.equal(bert.corrupt(IDS, chosen), IDS)
    trainer = xflash.AutoregressiveWrapper(model())
    draws = [
        trainer.generate(IDS, 3, eos_token=3, generator=torch.Generator().manual_seed(2), **tokens)
        for tokens in ({}, {"min_tokens": 0})
    ]
    assert torch.equal(*draws)


def test_ids_and_seeds_are_counted_from_zero():
    net = model()
    ending = xflash.AutoregressiveWrapper(net, pad_value=0)
    greedy = ending.generate(IDS, 4, temperature=0)
    first = int(greedy[0, 0])
    assert ending.generate(IDS[:1], 4, temperature=0, eos_token=first).tolist() == [[first]]
    with torch.no_grad():
        net.to_logits.weight[0] = net.to_logits.weight[first] * 9
    assert ending.generate(IDS[:1], 4, temperature=0, eos_token=0).tolist()[0][-1] == 0
    images = Images("a", "b", "c", 16, torch.arange(32).view(8, 2, 2), torch.arange(8) % 2)
    parts = [images.split(0.5, seed=0)[1].pixels for _ in range(2)]
    assert torch.equal(*parts)


@pytest.mark.parametrize("label", [-1, 0, 7, VOCABULARY + 5])
def test_any_label_can_be_the_one_that_is_none(label):
    net, labels, usual = model(), IDS.clone(), IDS.clone()
    labels[:, 3], usual[:, 3] = label, -100
    labels[labels == label], usual[labels == label] = label, -100
    # The net reads x, in which no token is the label that is none.
    x = IDS.clone().masked_fill(label == IDS, 5)
    ours = xflash.AutoregressiveWrapper(net, ignore_index=label)(x, labels=labels)
    assert torch.equal(ours, xflash.AutoregressiveWrapper(net)(x, labels=usual))


def test_temperature_zero_is_the_likeliest_always():
    assert torch.equal(sample(LOGITS.expand(50, -1), 0), torch.full((50,), 2))
    trainer = xflash.AutoregressiveWrapper(model())
    assert torch.equal(trainer.generate(IDS, 3, temperature=0), trainer.beam_search(IDS, 3, 1))


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (top_k(LOGITS, thres=0), 5),
        (top_p(LOGITS, 0), 1),
        (min_p(LOGITS, 0), 5),
        (top_a(LOGITS, min_p_ratio=0), 5),
        # The bound no longer depends on the largest probability: all that are at least 0.02 likely.
        (top_a(LOGITS, min_p_pow=0), int((LOGITS.softmax(-1) >= 0.02).sum())),
    ],
)
def test_zero_is_the_end_of_a_filter(left, kept):
    assert int(left.isfinite().sum()) == kept


def test_length_penalty_from_short_to_long():
    net = model()
    trainer = xflash.AutoregressiveWrapper(net)
    lengths = []
    for penalty in (-8, 0, 8):
        tokens, scores = trainer.beam_search(
            IDS, 4, 6, eos_token=3, length_penalty=penalty, return_beams_and_scores=True
        )
        ends = (tokens[0] == 3).int()
        lengths.append(float(torch.where(ends.any(1), ends.argmax(1) + 1, tokens.shape[-1]).float().mean()))
        if penalty == 0:
            assert (scores <= 0).all()
            logits = net(torch.cat((IDS, tokens[0]), 1)).log_softmax(-1)
            each = logits[:, IDS.shape[1] - 1 : -1].gather(-1, tokens[0][..., None])[..., 0]
            real = ends.cumsum(1) - ends < 1
            assert torch.allclose((each * real).sum(1), scores[0], atol=1e-5)
    assert lengths[0] < lengths[2] and lengths[0] <= lengths[1] <= lengths[2]


def test_an_empty_list_is_none():
    for several in ("pos", "reads", "scale"):
        assert same(stack(**{several: ()}), stack(), X) and same(stack(**{several: ""}), stack(), X)
    plain = xflash.BlockRecurrentTransformer(**{**recurrent(), "recurrent_layers": ()})
    assert not any(block.publishes for block in plain.attn_layers.blocks())
    block = xflash.BlockRecurrentTransformer(**recurrent()).eval()
    assert torch.equal(block(IDS, xl_memories=[], states=[])[0], block(IDS)[0])
    net = model(xflash.Encoder)
    first = xflash.MaskedLMWrapper(net, mask_token_id=10)
    second = xflash.MaskedLMWrapper(net, mask_token_id=10, mask_ignore_token_ids=[])
    assert first.special == second.special


def test_none_inside_is_not_given():
    trainer = xflash.AutoregressiveWrapper(model())
    draws = [
        trainer.generate(IDS, 3, filter_kwargs=settings, generator=torch.Generator().manual_seed(2))
        for settings in ({"k": None}, {})
    ]
    assert torch.equal(*draws)
    block = xflash.BlockRecurrentTransformer(**recurrent()).eval()
    _, memories, states = block(IDS)
    renewed = block(IDS, xl_memories=memories, states=[None] * len(states))[0]
    assert torch.equal(renewed, block(IDS, xl_memories=memories)[0])
    assert not torch.equal(renewed, block(IDS, xl_memories=memories, states=states)[0])


def test_any_integers_name_documents():
    net = stack(pos="rotary")
    names = torch.tensor([0, 0, 1, 1, 1]).expand(3, -1)
    for odd in (names - 9, names * 2**40):
        assert torch.equal(net(X, doc_ids=odd), net(X, doc_ids=names))


def test_places_of_a_context_may_be_negative():
    net = stack(layers="cross_attn ff", pos="rotary", cross_attn_dim_head=4).double()
    x, where = X.double(), torch.arange(4)
    context = torch.randn(3, 4, DIM, generator=torch.Generator().manual_seed(4)).double()
    # Two tokens earlier in the row, two places earlier in the context: the distances are the same.
    later = net(torch.cat((x[:, :2], x), 1), context=context, context_pos=where)[:, 2:]
    assert torch.allclose(net(x, context=context, context_pos=where - 2), later, atol=1e-9)
    assert not torch.allclose(net(x, context=context, context_pos=where), later)


@pytest.mark.parametrize("odd", [NAN, math.inf])
def test_what_is_no_number_goes_on(odd):
    x = X.clone()
    x[1, 4] = odd
    for net in (stack(), stack(layers="gau"), stack(layers="flash"), stack(xflash.Encoder)):
        y = net(x)
        assert y[1, 4].isnan().any() and y[0].isfinite().all() and y[2].isfinite().all()
    logits = LOGITS.clone()
    logits[0, 1] = NAN
    for left in (top_k(logits, k=1), top_p(logits), top_a(logits), min_p(logits)):
        assert left[0, 1].isnan()
        with pytest.raises(ValueError, match="logits must have a finite largest value in each row"):
            sample(left)
