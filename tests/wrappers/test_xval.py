"""Models of numbers beside token ids: the laws, the loss of both, and both as they are made."""

import model_laws
import pytest
import torch
from laws import live

from xflash import AutoregressiveWrapper, Decoder, Encoder, XValAutoregressiveWrapper, XValTransformerWrapper

N, VOCABULARY, NUMERAL = 11, 7, 3


def net(cls=Decoder, flags=None, **arguments):
    torch.manual_seed(0)
    stack = cls(dim=12, depth=1, heads=2, attn_dim_head=6, **(flags or {}))
    given = {"num_tokens": VOCABULARY, "numerical_token_id": NUMERAL, "max_seq_len": 23, **arguments}
    return XValTransformerWrapper(**given, attn_layers=stack)


def trainer(**arguments):
    return XValAutoregressiveWrapper(live(net(num_memory_tokens=2)), **arguments)


@pytest.fixture
def ids():
    ids = torch.randint(0, VOCABULARY, (3, N), generator=torch.Generator().manual_seed(1))
    return ids.index_fill(1, torch.tensor([1, 2, 5, 8]), NUMERAL)


@pytest.fixture
def numbers(ids):
    """Numbers where ids stand for one, and no numbers elsewhere."""
    drawn = torch.randn(ids.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return drawn.masked_fill(ids != NUMERAL, torch.nan)


# Beside what the covering set has of causal ones.
CASES = {
    "tied": (Decoder, {"pos": "rotary"}, {"tie_embedding": True, "embed_num_tokens": {"kind": 3}}),
    "pooled": (Encoder, {}, {"use_cls_token": True, "logits_bias": False, "logits_softclamp": 2.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_laws(name, tmp_path):
    cls, flags, arguments = CASES[name]
    model_laws.model_laws(net(cls, flags, **{"max_seq_len": 67, **arguments}), tmp_path)


def test_a_number_multiplies_its_embedding(ids, numbers):
    model = live(net(emb_dim=8, emb_scale=2.0))
    inside = model.embedding
    table = inside.token_emb.weight[ids] * 2 * torch.where(ids == NUMERAL, numbers, 1)[..., None]
    found, _ = inside(ids, x_num=numbers)
    torch.testing.assert_close(found, inside.project_emb(table + inside.pos_emb.weight[:N]))
    logits, given = model(ids, numbers)
    y = model(ids, numbers, return_embeddings=True)
    torch.testing.assert_close(logits, model.to_logits(y))
    torch.testing.assert_close(given, (y @ model.to_number.weight.T + model.to_number.bias)[..., 0])
    assert not torch.allclose(logits[:, 5:], model(ids, numbers * 2).logits[:, 5:])


def test_steps_are_the_whole(ids, numbers):
    model = live(net())
    whole = model(ids, numbers)
    state, parts = None, []
    for start, end in ((0, 4), (4, 5), (5, N)):
        found, state = model.step(ids[:, start:end], state, x_num=numbers[:, start:end])
        parts.append(found)
    for one, right in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(one, 1), right)


def test_the_loss_by_hand(ids, numbers):
    model, lens = trainer(numerical_loss_weight=0.5), torch.tensor([N, 5, 1])
    pad = torch.arange(N) >= lens[:, None]
    broken, odd = numbers.masked_fill(pad, torch.nan), ids.masked_fill(pad, NUMERAL)
    loss, parts = model(odd, broken, lens=lens, return_loss_breakdown=True)
    losses, gaps = [], []
    for row in (0, 1):
        x, y = ids[row : row + 1, : lens[row]], numbers[row : row + 1, : lens[row]]
        logits, found = model.net(x[:, :-1], y[:, :-1])
        losses.append(torch.nn.functional.cross_entropy(logits[0], x[0, 1:], reduction="none"))
        gaps.append(torch.where(x[0, 1:] == NUMERAL, (found[0] - y[0, 1:]).square(), 0))
    torch.testing.assert_close(parts.cross_entropy_loss, torch.cat(losses).mean())
    torch.testing.assert_close(parts.numerical_mse_loss, torch.cat(gaps).mean())
    torch.testing.assert_close(loss, parts.cross_entropy_loss + 0.5 * parts.numerical_mse_loss)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model(ids, numbers, lens=[0, 1, 0]) == 0
    left = torch.arange(N) >= N - lens[:, None]
    moved = [torch.stack([t[row].roll(N - int(n), 0) for row, n in enumerate(lens)]) for t in (ids, numbers)]
    torch.testing.assert_close(model(*moved, left), loss)


def test_labels_that_are_none_and_documents(ids, numbers):
    model = XValAutoregressiveWrapper(live(net()))
    some = ids.clone()
    some[:, 4] = -100
    logits, _ = model.net(some.clamp(min=0)[:, :-1], numbers[:, :-1])
    wanted = some[:, 1:] != -100
    right = torch.nn.functional.cross_entropy(logits[wanted], ids[:, 1:][wanted])
    assert torch.allclose(model(some, numbers, return_loss_breakdown=True)[1].cross_entropy_loss, right)
    docs = torch.tensor([0] * 5 + [1] * 6).expand(3, N)
    parts = [model(ids[:, :5], numbers[:, :5]) * 4, model(ids[:, 5:], numbers[:, 5:]) * 5]
    torch.testing.assert_close(model(ids, numbers, doc_ids=docs), sum(parts) / 9)


@pytest.mark.parametrize("ragged", [False, True])
def test_what_is_made_is_what_the_whole_says(ids, numbers, ragged):
    model = trainer()
    with torch.no_grad():
        model.net.to_logits.bias[NUMERAL] += 1
    lens = {"prompt_lens": [N, 4, 7]} if ragged else {}
    made = model.generate(ids, numbers, 9, temperature=0.0, **lens)
    slow = model.generate(ids, numbers, 9, temperature=0.0, cache_kv=False, **lens)
    assert made.is_number_mask.any() and not made.is_number_mask.all()
    assert torch.equal(made.is_number_mask, made.sampled_token_ids == NUMERAL)
    for one, other in zip(made, slow, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    assert torch.equal(made.sampled_numbers.isnan(), ~made.is_number_mask)
    start = slice(None, 4 if ragged else N)
    alone = model.generate(ids[1, start], numbers[1, start], 9, temperature=0.0)
    torch.testing.assert_close(alone.sampled_numbers, made.sampled_numbers[1], equal_nan=True)
    read = torch.cat((ids[:1], made.sampled_token_ids[:1]), 1), torch.cat((numbers[:1], made.sampled_numbers[:1]), 1)
    with torch.no_grad():
        logits, found = model.net(*read)
    assert torch.equal(logits[:, N - 1 : -1].argmax(-1), made.sampled_token_ids[:1])
    stands = made.is_number_mask[0]
    torch.testing.assert_close(found[0, N - 1 : -1][stands], made.sampled_numbers[0][stands])


def test_rows_that_end_and_rows_that_do_not_fit(ids, numbers):
    model = trainer(pad_value=1)
    chance = torch.Generator().manual_seed(0)
    ended = model.generate(ids, numbers, 12, eos_token=2, filter_logits_fn="none", generator=chance)
    first = (ended.sampled_token_ids == 2).int().argmax(1)
    assert (ended.sampled_token_ids == 2).any(1).any()
    for row, at in enumerate(first):
        if (ended.sampled_token_ids[row] == 2).any():
            assert (ended.sampled_token_ids[row, at + 1 :] == 1).all() and not ended.is_number_mask[row, at:].any()
    with pytest.raises(ValueError, match="but the model has max_seq_len=23"):
        model.generate(ids, numbers, 14)
    far = model.generate(ids, numbers, 14, restrict_to_max_seq_len=True, temperature=0)
    assert torch.equal(far[0][:, :13], model.generate(ids, numbers, 13, temperature=0)[0])


def test_what_cannot_be_right(ids, numbers):
    with pytest.raises(ValueError, match="numerical_token_id=7 is not in the model's vocabulary of 7 tokens"):
        net(numerical_token_id=7)
    with pytest.raises(TypeError, match="XValTransformerWrapper gives logits and numbers of token ids and numbers"):
        AutoregressiveWrapper(net())
    for wrong in (net(Encoder), net(return_only_embed=True, logits_bias=False)):
        with pytest.raises(ValueError, match="give an XValTransformerWrapper with a head, around a Decoder"):
            XValAutoregressiveWrapper(wrong)
    model = live(net())
    for given, error, match in (
        (numbers[:, :3], ValueError, r"x_num must be a floating-point tensor \(3, 11\), a number for each token, not"),
        (ids, TypeError, "x_num must be a floating-point tensor"),
        (None, TypeError, "x_num must be a floating-point tensor"),
    ):
        with pytest.raises(error, match=match):
            model(ids, given)
        with pytest.raises(error, match=match.replace("x_num", "start_numbers").replace("token,", "of start_tokens,")):
            XValAutoregressiveWrapper(model).generate(ids, given, 2)
    with pytest.raises(ValueError, match=r"start_tokens must be \(tokens,\) or \(batch, tokens\), not"):
        XValAutoregressiveWrapper(model).generate(ids[None], numbers[None], 2)
    with pytest.raises(TypeError, match=r"x_num is torch\.float64, but the model is torch\.float32"):
        net()(ids, numbers)
