"""Ids, labels, masks and numbers of rows come in any dtype of integers: token files are often uint16."""

import pytest
import torch

from xflash import (
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    MaskedLMWrapper,
    PrefixDecoder,
    RecurrentMemoryWrapper,
    SegmentWrapper,
    TransformerWrapper,
    XTransformer,
)

DTYPES = [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64]
B, N, V = 2, 7, 13


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def ids():
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


def model(cls=Decoder, max_seq_len=N, **extra):
    torch.manual_seed(0)
    stack = cls(dim=10, depth=1, heads=2, attn_dim_head=6, layers="attn gau", gau_query_key_dim=6)
    return TransformerWrapper(num_tokens=V, max_seq_len=max_seq_len, attn_layers=stack, **extra).eval()


MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
DOCS = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [4, 4, 5, 5, 5, 5, 5]])


def equal(found, wanted):
    assert torch.equal(found, wanted)


def test_a_model(ids, dtype):
    net, narrow = model(embed_num_tokens={"kind": V}), ids.to(dtype)
    kinds = ids.flip(1)
    given = {"doc_ids": DOCS, "mask": MASK, "attn_mask": torch.ones(N, N, dtype=torch.long).tril()}
    for names in ((), ("mask",), ("doc_ids",), ("doc_ids", "mask"), ("attn_mask",)):
        long = {name: given[name] for name in names}
        short = {name: value.to(dtype) for name, value in long.items()}
        equal(net(narrow, embed_ids={"kind": kinds.to(dtype)}, **short), net(ids, embed_ids={"kind": kinds}, **long))
    logits, state = net.step(narrow[:, :3], embed_ids={"kind": kinds[:, :3].to(dtype)})
    equal(logits, net.step(ids[:, :3], embed_ids={"kind": kinds[:, :3]})[0])
    reset, order = torch.tensor([1, 0]), torch.tensor([1, 0])
    kinds = {"kind": kinds[:, 3:4]}
    wanted = net.step(ids[:, 3:4], state.reorder(order), reset=reset, embed_ids=kinds)[0]
    narrow_kinds = {"kind": kinds["kind"].to(dtype)}
    found = net.step(narrow[:, 3:4], state.reorder(order.to(dtype)), reset=reset.to(dtype), embed_ids=narrow_kinds)[0]
    equal(found, wanted)


def test_a_stack_and_its_prefix(dtype):
    torch.manual_seed(0)
    stack = PrefixDecoder(dim=10, depth=1, heads=2, attn_dim_head=6)
    x, lengths = torch.randn(B, N, 10), torch.tensor([2, 4])
    equal(stack(x, prefix_attn_len=lengths.to(dtype)), stack(x, prefix_attn_len=lengths))
    equal(stack(x, doc_ids=DOCS.to(dtype)), stack(x, doc_ids=DOCS))
    equal(stack(x, MASK.to(dtype), doc_ids=DOCS.to(dtype)), stack(x, MASK, doc_ids=DOCS))


def test_the_prefix_of_a_loss(ids, dtype):
    stack = PrefixDecoder(dim=10, depth=1, heads=2, attn_dim_head=6)
    net = TransformerWrapper(num_tokens=V, use_abs_pos_emb=False, attn_layers=stack)
    lengths = torch.tensor([2, 4])
    for loss in (AutoregressiveWrapper(net), SegmentWrapper(net, 5)):
        equal(loss(ids, prefix_attn_len=lengths.to(dtype)), loss(ids, prefix_attn_len=lengths))


def test_losses(ids, dtype):
    net, narrow = model(), ids.to(dtype)
    labels = ids.flip(0)
    lm = AutoregressiveWrapper(net, ignore_index=3, pad_value=1)
    beside = {"labels": labels, "doc_ids": DOCS, "mask": MASK, "lens": torch.tensor([7, 3])}
    equal(lm(narrow, **{name: value.to(dtype) for name, value in beside.items()}), lm(ids, **beside))
    masked = MaskedLMWrapper(model(Encoder), mask_token_id=0)
    found, wanted = (
        masked(x, mask, generator=torch.Generator().manual_seed(3))
        for x, mask in ((narrow, MASK.to(dtype)), (ids, MASK))
    )
    equal(found, wanted)
    segments = SegmentWrapper(RecurrentMemoryWrapper(model(), segment_len=3, num_memory_tokens=1), 3)
    equal(segments(narrow, labels=labels.to(dtype)), segments(ids, labels=labels))


def test_what_is_generated(ids, dtype):
    lm, narrow = AutoregressiveWrapper(model(max_seq_len=12)), ids.to(dtype)
    lens = torch.tensor([5, 7])
    equal(lm.generate(narrow, 3, temperature=0), lm.generate(ids, 3, temperature=0))
    equal(lm.beam_search(narrow, 3, 2), lm.beam_search(ids, 3, 2))
    equal(
        lm.generate(narrow, 3, temperature=0, prompt_lens=lens.to(dtype)),
        lm.generate(ids, 3, temperature=0, prompt_lens=lens),
    )
    equal(lm.generate(narrow, 3, temperature=0, mask=MASK.to(dtype)), lm.generate(ids, 3, temperature=0, mask=MASK))


def test_both_sides(ids, dtype):
    torch.manual_seed(0)
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in (("num_tokens", V), ("depth", 1))}
    both = XTransformer(dim=10, enc_max_seq_len=N, dec_max_seq_len=N, enc_heads=2, dec_heads=2, **sides).eval()
    narrow = ids.to(dtype)
    equal(both(narrow, narrow, mask=MASK.to(dtype)), both(ids, ids, mask=MASK))
    equal(
        both.generate(narrow, narrow[:, :1], 3, mask=MASK.to(dtype), temperature=0),
        both.generate(ids, ids[:, :1], 3, mask=MASK, temperature=0),
    )


def test_ids_outside_the_vocabulary_are_named(ids, dtype):
    net = model(embed_num_tokens={"kind": 2})
    with pytest.raises(ValueError, match=r"token ids must be from 0 to 12, but they go from 20 to 20"):
        net(torch.full_like(ids, 20).to(dtype))
    with pytest.raises(ValueError, match=r"embed_ids\['kind'\] must be from 0 to 1, but they go from 2 to 2"):
        net(ids.to(dtype), embed_ids={"kind": torch.full_like(ids, 2).to(dtype)})
    with pytest.raises(ValueError, match=r"mask must be boolean or 0/1 integers, but it goes from 2 to 2"):
        net(ids.to(dtype), torch.full_like(ids, 2).to(dtype))
