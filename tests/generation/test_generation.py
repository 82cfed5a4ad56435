"""Loss and generation with real stacks: what each block carries on must be what reading everything anew gives."""

import pytest
import torch
import torch._dynamo.testing

from xflash import Decoder, Encoder, TransformerWrapper, from_config
from xflash.wrappers.autoregressive import AutoregressiveWrapper

V, NEW = 61, 13
STACKS = {
    "hybrid": ({"layers": "flash*2 attn ff", "shift_tokens": 1, "rotary_pos_emb": True}, {"num_memory_tokens": 3}),
    "flash": ({"layers": "flash"}, {"scaled_sinu_pos_emb": True}),
    "gau": ({"layers": "gau attn(window=7) ff", "rel_pos_bias": True}, {}),
    "learned": ({"layers": "attn ff", "shift_tokens": 1}, {"use_abs_pos_emb": True}),
}


def build(name, **changes):
    torch.manual_seed(34)
    stack, wrapper = STACKS[name]
    flash = {"flash_group_size": 5} if "flash" in stack["layers"] else {}
    attn = {"attn_dim_head": 8} if "attn" in stack["layers"] else {}
    decoder = Decoder(dim=16, depth=1, heads=2, **flash, **attn, **stack)
    net = TransformerWrapper(num_tokens=V, attn_layers=decoder, **{"max_seq_len": 43, **wrapper, **changes})
    # Sharp logits: at the start all tokens are about equally likely.
    with torch.no_grad():
        net.to_logits.weight.normal_()
    return AutoregressiveWrapper(net).double().eval()


@pytest.fixture(params=STACKS)
def model(request):
    return build(request.param)


@pytest.fixture
def rows():
    torch.manual_seed(37)
    return [torch.randint(0, V, (n,)) for n in (11, 1, 7)]


def seeded():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.3, "repetition_penalty": 1.3}])
@pytest.mark.parametrize("ragged", [False, True])
def test_with_state_as_without(model, rows, settings, ragged):
    prompts = rows if ragged else torch.stack([rows[0], rows[0].roll(1)])
    settings = {**settings, "eos_token": 3}
    kept = model.generate(prompts, NEW, generator=seeded(), **settings)
    assert torch.equal(kept, model.generate(prompts, NEW, generator=seeded(), cache_kv=False, **settings))
    assert len(kept.unique()) > 3


def test_ragged_prompts_go_on_as_each_alone(model, rows):
    together = model.generate(rows, NEW, temperature=0.0)
    assert torch.equal(together, torch.stack([model.generate(row, NEW, temperature=0.0) for row in rows]))


def test_beams_with_state_as_without(model, rows):
    kept = model.beam_search(rows, 7, 3, eos_token=3, return_beams_and_scores=True)
    anew = model.beam_search(rows, 7, 3, eos_token=3, return_beams_and_scores=True, cache_kv=False)
    assert torch.equal(kept[0], anew[0])
    torch.testing.assert_close(kept[1], anew[1])


def test_one_beam_is_greedy(model, rows):
    assert torch.equal(model.beam_search(rows, NEW, 1), model.generate(rows, NEW, temperature=0.0))


def test_two_streams_through_one_model_don_t_meet(model, rows):
    first, second = (model.stream(row, NEW, temperature=0.0) for row in rows[:2])
    pairs = torch.tensor([[int(a), int(b)] for a, b in zip(first, second, strict=True)])
    assert torch.equal(pairs[:, 0], model.generate(rows[0], NEW, temperature=0.0))
    assert torch.equal(pairs[:, 1], model.generate(rows[1], NEW, temperature=0.0))


def test_loss_with_padding_is_that_of_the_rows_alone(model, rows):
    rows = [*rows, torch.randint(0, V, (13,))]
    alone = torch.stack([model(row[None]) * (len(row) - 1) for row in rows if len(row) > 1]).sum()
    count = sum(len(row) - 1 for row in rows)
    for side in ("left", "right"):
        x, mask = torch.full((4, 17), -100), torch.zeros(4, 17, dtype=torch.bool)
        for i, row in enumerate(rows):
            places = slice(17 - len(row), 17) if side == "left" else slice(len(row))
            x[i, places], mask[i, places] = row, True
        torch.testing.assert_close(model(x, mask), alone / count)


def test_packed_documents_have_the_loss_of_each_alone(rows):
    # Memory tokens stand before a row, not before each of its documents: the stack refuses them here.
    model = build("hybrid", num_memory_tokens=None)
    docs = [rows[0], rows[2], rows[0].flip(0)]
    alone = torch.stack([model(doc[None]) * (len(doc) - 1) for doc in docs]).sum() / sum(len(d) - 1 for d in docs)
    doc_ids = torch.cat([torch.full((len(doc),), i) for i, doc in enumerate(docs)])
    torch.testing.assert_close(model(torch.cat(docs)[None], doc_ids=doc_ids[None]), alone)


def test_embeddings_in_front_are_read_and_are_no_targets(rows):
    model = build("hybrid")
    front, x = torch.randn(2, 5, 16, dtype=torch.double), torch.stack([rows[0], rows[0].roll(1)])
    loss, logits = model(x, prepend_embeds=front, return_outputs=True)
    assert logits.shape == (2, 10, V)
    assert loss != model(x)
    kept = model.generate(x, NEW, temperature=0.0, prepend_embeds=front)
    assert torch.equal(kept, model.generate(x, NEW, temperature=0.0, prepend_embeds=front, cache_kv=False))
    assert not torch.equal(kept, model.generate(x, NEW, temperature=0.0))


def test_only_learned_positions_limit_the_length(rows):
    assert build("hybrid", max_seq_len=17).generate(rows, NEW).shape == (3, NEW)
    learned = build("learned", max_seq_len=17)
    with pytest.raises(ValueError, match=r"11 tokens and seq_len=13 need 23 positions.*at most seq_len=7 fits"):
        learned.generate(rows, NEW)
    found = learned.generate(rows, 11, temperature=0.0, restrict_to_max_seq_len=True)
    for row, new in zip(rows, found, strict=True):
        for token in new:
            assert token == learned.net(row[None, -17:])[0, -1].argmax()
            row = torch.cat((row, token[None]))


def test_the_wrapper_is_saved_with_its_net(model, rows):
    again = from_config(model.to_config()).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.generate(rows, 5, temperature=0.0), model.generate(rows, 5, temperature=0.0))


def test_a_bidirectional_model_is_refused():
    encoder = Encoder(dim=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="TransformerWrapper is bidirectional, so it sees what it is to predict"):
        AutoregressiveWrapper(TransformerWrapper(num_tokens=V, max_seq_len=13, attn_layers=encoder))


@pytest.mark.slow
def test_the_loss_compiles_for_any_length():
    model = build("learned").train()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for n in (5, 7, 11):
        x, mask = torch.randint(0, V, (3, n)), torch.rand(3, n) < 0.8
        torch.testing.assert_close(compiled(x, mask), model(x, mask))
    assert counter.frame_count <= 2
