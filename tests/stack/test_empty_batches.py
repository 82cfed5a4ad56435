"""Batches without a row, and stacks without a tensor in their state: they are batches and states like others."""

import laws
import pytest
import torch
from cases import CASES, both_ways, build
from quick import quick

import xflash
from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Encoder,
    MaskedLMWrapper,
    NonAutoregressiveWrapper,
    RecurrentMemoryWrapper,
    RecurrentTrainerWrapper,
    SegmentWrapper,
    TransformerWrapper,
    ViTransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
)

V = 29
NONE = torch.zeros(0, 9, dtype=torch.long)
MASK = torch.ones(0, 9, dtype=torch.bool)
NO_ROWS = torch.zeros(0, dtype=torch.bool)
PARTS = {case: flags for case, flags in CASES.items() if not case.startswith(("norm", "scale"))}


@pytest.mark.parametrize(("flags", "causal"), quick(both_ways(PARTS), lambda _, number: number % 3 == 0))
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_no_rows_through_every_block(flags, causal, masked):
    flags = {**flags, "shift_tokens": 1 if flags.get("shift_tokens") else 0}
    stack = laws.live(build(causal=causal, **{"depth": 1, **flags}))
    x, mask = laws.sample(stack, 11)[:0], MASK[:, :1].expand(0, 11) if masked else None
    given = x.clone().requires_grad_()
    y = laws.run(stack, given, mask)
    y.sum().backward()
    assert y.shape == given.grad.shape == (0, 11, stack.dim)
    if causal:
        with torch.no_grad():
            y, state = laws.steps(stack, x, [5, 1, 1, 4], mask)
            again, state = laws.go(stack, x[:, :3], state.reorder(NO_ROWS.long()), reset=NO_ROWS)
            assert y.shape == (0, 11, stack.dim) and again.shape == (0, 3, stack.dim)
            laws.go(stack, x[:, :1], stack.shorten(laws.saved(state), 5))


def model(layers: str = "attn ff", causal: bool = True, **flags) -> TransformerWrapper:
    kept = {name: flags.pop(name) for name in ("max_mem_len", "average_pool_embed", "attn_pool") if name in flags}
    stack = build(layers, causal=causal, depth=1, **{"pos": "rotary", **flags})
    return laws.live(TransformerWrapper(num_tokens=V, max_seq_len=11, attn_layers=stack, **kept))


MODELS = {
    "attn": model,
    "memory tokens": lambda: model(num_memory_tokens=2, shift_tokens=1),
    "retrieve": lambda: model("recurrent ff", recurrent_retrieve=3, recurrent_retrieve_len=10),
    "ff": lambda: laws.live(TransformerWrapper(num_tokens=V, max_seq_len=11, attn_layers=build("ff", causal=True))),
    "RecurrentMemoryWrapper": lambda: laws.live(RecurrentMemoryWrapper(model(), 2, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_rows_through_models(name):
    net = MODELS[name]()
    for mask in (None, MASK):
        assert net(NONE, mask).shape == (0, 9, V)
        _, state = net.step(NONE, None, mask)
        logits, state = net.step(NONE[:, :1], state, reset=NO_ROWS)
        assert logits.shape == (0, 1, V)
        net.step(NONE[:, :7], state.reorder(NO_ROWS.long()), None if mask is None else mask[:, :7])
        # Nothing is predicted: the loss is 0, as without any target.
        for loss in (AutoregressiveWrapper(net)(NONE, mask), SegmentWrapper(net, 4)(NONE, mask)):
            loss.backward()
            assert loss == 0


@pytest.mark.parametrize("name", MODELS)
def test_no_prompts_are_refused_in_a_sentence(name):
    trainer = AutoregressiveWrapper(MODELS[name]())
    for make in (trainer.generate, trainer.stream, trainer.beam_search):
        with pytest.raises(ValueError, match=r"prompts of shape \(0, 9\) are empty: give at least one prompt"):
            make(NONE, 3)


def sides(**values) -> dict:
    return {f"{side}_{name}": value for side in ("enc", "dec") for name, value in values.items()}


def block_recurrent() -> BlockRecurrentTransformer:
    net = BlockRecurrentTransformer(num_tokens=V, dim=22, depth=2, heads=2, dim_head=6, max_seq_len=8, block_width=4)
    return laws.live(net)


def test_no_rows_through_other_wrappers():
    trainer = XLAutoregressiveWrapper(model(max_mem_len=4))
    loss, mems = trainer(NONE, return_mems=True)
    assert loss == 0 and trainer(NONE, mems) == 0
    net = block_recurrent()
    _, memories, states = net(NONE)
    assert net(NONE, xl_memories=memories, states=states)[0].shape == (0, 9, V)
    assert net(NONE, return_loss=True)[0] == 0 and RecurrentTrainerWrapper(net)(NONE) == 0
    whole = XTransformer(dim=22, **sides(num_tokens=V, max_seq_len=11, depth=1, heads=2))
    assert laws.live(whole)(NONE, NONE, mask=MASK) == 0
    images = laws.live(
        ViTransformerWrapper(
            image_size=8, patch_size=4, num_classes=3, attn_layers=Encoder(dim=22, depth=1, heads=2, attn_dim_head=6)
        )
    )
    assert images(torch.zeros(0, 3, 8, 8, dtype=torch.float64)).shape == (0, 3)
    both_sides = model(causal=False)
    assert MaskedLMWrapper(both_sides, mask_token_id=1)(NONE) == 0
    assert NonAutoregressiveWrapper(both_sides, mask_id=1)(NONE).loss == 0
    for pooled in ({"average_pool_embed": True}, {"attn_pool": True}):
        assert model(causal=False, **pooled)(NONE, MASK).shape == (0, V)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_no_rows_beside_what_else_a_call_takes(causal):
    stack = laws.live(build("attn gau flash", causal=causal, depth=1))
    x, none = laws.sample(stack, 9)[:0], torch.zeros(0, dtype=torch.long)
    for mask in (None, MASK):
        assert stack(x, mask, doc_ids=NONE).shape == x.shape
    several = laws.live(build("attn gau", causal=causal, depth=1))
    assert several(x, MASK, attn_mask=torch.ones(0, 1, 9, 9, dtype=torch.bool)).shape == x.shape
    assert several.attention_maps(x, MASK)[1][0].shape == (0, 4, 9, 9)
    few = laws.live(build("flash(max_documents=3)", causal=causal, depth=1))
    assert few(x, doc_ids=NONE).shape == x.shape
    prefix = laws.live(xflash.PrefixDecoder(dim=34, depth=1, heads=2, layers="attn gau"))
    assert prefix(x, MASK, prefix_attn_len=none).shape == x.shape


IDS = torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(0))


def test_a_state_without_tensors_fits_any_rows():
    """A stack of feed-forward layers remembers nothing; rows of it can be named all the same."""
    net = MODELS["ff"]()
    _, state = net.step(IDS[:, :4])
    assert state.rows is None
    rows = torch.tensor([True, False, True])
    logits, after = net.step(IDS[:, 4:], state, reset=rows)
    laws.close(logits[rows], net(IDS[rows, 4:]), "reset")
    laws.close(logits[1:2], net(IDS[1:2])[:, 4:], "a neighbour")
    assert after.rows == 3
    with pytest.raises(ValueError, match="the state has 3 rows, but x has 2"):
        net.step(IDS[:2], after)
    with pytest.raises(ValueError, match=r"rows must be of shape \(b,\), one entry a row, not \(3, 1\)"):
        net.reset(state, rows[:, None])
    with pytest.raises(TypeError, match=r"rows must be a boolean tensor of shape \(b,\), not "):
        net.reset(state, rows.double())
    made = AutoregressiveWrapper(net).beam_search(IDS[:, :2], 4, 3)
    assert made.shape == (3, 4)
    stack = laws.live(xflash.Decoder(dim=10, depth=1, heads=2, layers="ff", num_memory_tokens=2))
    x = laws.sample(stack, 5)
    state = stack.step(x)[1]
    laws.close(stack.step(x, stack.reset(state, rows))[0], stack(x), "reset of a stack")
