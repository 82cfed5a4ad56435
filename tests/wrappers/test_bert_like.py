"""Models of whole sequences: token types, CLS tokens and pooled outputs, each against its definition."""

import re

import laws
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from xflash import AttentionLayers, AutoregressiveWrapper, TransformerWrapper, from_config

DIM, VOCABULARY, N, B = 26, 31, 13, 3
POOLINGS = {
    "mean": {"average_pool_embed": True},
    "attn": {"attn_pool": True},
    "cls": {"use_cls_token": True},
    "cls twice": {"use_cls_token": True, "num_cls_tokens": 2},
}
IDS = torch.randint(VOCABULARY, (B, N), generator=torch.Generator().manual_seed(0))
REAL = laws.masks(N)["holes"]
SEGMENT = (torch.arange(N) > 4).long().expand(B, -1)


def model(layers="attn ff", causal=False, stack=None, **arguments):
    torch.manual_seed(0)
    flags = {"dim": DIM, "depth": 2, "heads": 2, "layers": layers, "pos": "rotary", **(stack or {})}
    flags |= {"attn_dim_head": 6} if "attn" in layers else {}
    return TransformerWrapper(
        **{"num_tokens": VOCABULARY, "attn_layers": AttentionLayers(causal=causal, **flags), **arguments}
    )


def refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def twins(arguments, **common):
    """The model with the arguments and the model without them, with the same weights where they have the same."""
    ours, plain = laws.live(model(**common, **arguments)), laws.live(model(**common))
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if k in plain.state_dict()})
    return ours, plain


def test_a_segment_is_added_to_the_token():
    """As if each token were in the vocabulary once a segment and kind, with the sum as its vector."""
    ours = laws.live(model(embed_num_tokens={"segment": 2, "type": 3}, post_emb_norm=True))
    kinds = (IDS * 7) % 3
    large = model(num_tokens=VOCABULARY * 6, logits_dim=VOCABULARY, post_emb_norm=True).double().eval()
    weights = ours.state_dict()
    types = [weights.pop(f"embedding.embeds.{name}_embed.weight") for name in ("segment", "type")]
    token = weights["embedding.token_emb.weight"]
    every = types[0][:, None, None] + types[1][None, :, None] + token
    large.load_state_dict({**weights, "embedding.token_emb.weight": every.flatten(0, 2)})
    out = ours(IDS, REAL, embed_ids={"type": kinds, "segment": SEGMENT})
    laws.close(out, large((SEGMENT * 3 + kinds) * VOCABULARY + IDS, REAL), "segments")


def test_segments_of_a_causal_model_are_given_to_every_step():
    ours = laws.live(model(causal=True, embed_num_tokens={"segment": 2}, use_abs_pos_emb=True, max_seq_len=N))
    whole = ours(IDS, embed_ids={"segment": SEGMENT})
    first, state = ours.step(IDS[:, :4], embed_ids={"segment": SEGMENT[:, :4]})
    rest, _ = ours.step(IDS[:, 4:], state, embed_ids={"segment": SEGMENT[:, 4:]})
    laws.close(torch.cat((first, rest), 1), whole, "segments in steps")
    assert not whole.allclose(ours(IDS, embed_ids={"segment": 1 - SEGMENT}))


@pytest.mark.parametrize("name", ["class", "type", "weight", "keys"])
def test_any_name_will_do(name):
    """Also one that a config or a module has a meaning of its own for."""
    ours = model(embed_num_tokens={name: 2})
    again = from_config(ours.to_config())
    assert again.to_config() == ours.to_config()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(IDS, embed_ids={name: SEGMENT}), ours(IDS, embed_ids={name: SEGMENT}))


def pooled_by_hand(ours, plain, kind, mask):
    """The pooled embeddings, row by row, out of the outputs of the model that does not pool."""
    rows = []
    for row in range(B):
        ids = IDS[row : row + 1, mask[row]]
        if kind.startswith("cls"):
            front = ours.pooled.cls_tokens.tokens
            rows.append(plain(ids, prepend_embeds=front[None], return_embeddings=True)[0, : len(front)])
            continue
        y = plain(ids, return_embeddings=True)[0]
        if kind == "mean":
            rows.append(y.mean(0))
        else:
            scores = torch.stack([token.dot(ours.pooled.attn_pool.query) / DIM**0.5 for token in y])
            rows.append(sum(weight * token for weight, token in zip(scores.softmax(0), y, strict=True)))
    found = torch.stack(rows)
    return found[:, 0] if kind == "cls" else found


@pytest.mark.parametrize("layers", ["attn ff", "flash gau"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_the_definition(kind, layers):
    stack = {"num_memory_tokens": 2}
    ours, plain = twins(POOLINGS[kind], layers=layers, stack=stack, logits_dim=5)
    mask = REAL.clone()
    mask[:, 2] = True
    expected = pooled_by_hand(ours, plain, kind, mask)
    laws.close(ours(IDS, mask, return_embeddings=True), expected, "pooled")
    logits, embeddings = ours(IDS, mask, return_logits_and_embeddings=True)
    laws.close(embeddings, expected, "pooled")
    laws.close(logits, plain.to_logits(expected), "logits of the pooled embedding")
    assert logits.shape == ((B, 2, 5) if kind == "cls twice" else (B, 5))
    everything = torch.ones_like(mask)
    laws.close(ours(IDS, return_embeddings=True), pooled_by_hand(ours, plain, kind, everything), "without a mask")


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_tied_head_reads_the_pooled_embedding(kind):
    ours = laws.live(model(**POOLINGS[kind], tie_embedding=True, tie_embedding_scale=0.5))
    logits, embeddings = ours(IDS, REAL, return_logits_and_embeddings=True)
    laws.close(logits, embeddings @ ours.embedding.token_emb.weight.T * 0.5, "tied")


@pytest.mark.parametrize("kind", POOLINGS)
def test_embeddings_in_front_are_pooled_too(kind):
    """A mask of theirs keeps some out; the CLS tokens stand before them."""
    ours, plain = twins(POOLINGS[kind])
    prefix = torch.randn(1, 4, DIM, dtype=torch.float64)
    there = torch.tensor([[True, False, True, True]])
    out = ours(IDS[:1], prepend_embeds=prefix, prepend_mask=there, return_embeddings=True)
    if kind.startswith("cls"):
        front = torch.cat((ours.pooled.cls_tokens.tokens[None], prefix[:, there[0]]), 1)
        y = plain(IDS[:1], prepend_embeds=front, return_embeddings=True)
        laws.close(out, y[:, 0] if kind == "cls" else y[:, :2], "in front")
    else:
        y = plain(IDS[:1], prepend_embeds=prefix[:, there[0]], return_embeddings=True)
        laws.close(out, ours.pooled(y, None), "in front")


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("binary", [torch.bool, torch.long])
def test_an_attention_mask_is_of_the_tokens(kind, binary):
    ours, plain = twins(POOLINGS[kind])
    square = torch.rand(2, N, N) < 0.6
    square[:, :, 0] = True
    out = ours(IDS, attn_mask=square[None].to(binary), return_embeddings=True)
    if kind.startswith("cls"):
        count = len(ours.pooled.cls_tokens)
        wide = torch.ones(1, 2, N + count, N + count, dtype=torch.bool)
        wide[:, :, count:, count:] = square
        front = ours.pooled.cls_tokens.tokens.expand(B, -1, -1)
        y = plain(IDS, prepend_embeds=front, attn_mask=wide, return_embeddings=True)
        laws.close(out, y[:, 0] if kind == "cls" else y[:, :2], "attention mask")
    else:
        y = plain(IDS, attn_mask=square[None], return_embeddings=True)
        laws.close(out, ours.pooled(y, None), "attention mask")


def test_attention_maps_show_what_the_cls_token_looks_at():
    ours = model(stack={"attn_flash": False}, use_cls_token=True)
    logits, maps = ours(IDS, REAL, return_attn=True)
    assert logits.shape == (B, VOCABULARY)
    seen = maps[0].weights if hasattr(maps[0], "weights") else maps[0]
    assert seen.shape == (B, 2, N + 1, N + 1)
    assert (seen[:, :, 0, 1:][~REAL[:, None].expand(-1, 2, -1)] == 0).all()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", ["mean", "attn"])
def test_a_row_of_padding_alone_gives_zeros(kind, causal):
    ours = laws.live(model(causal=causal, **POOLINGS[kind]))
    mask = REAL.clone()
    mask[1] = False
    pooled = ours(IDS, mask, return_embeddings=True)
    assert (pooled[1] == 0).all() and pooled[[0, 2]].abs().min() > 0
    assert not ours.causal
    ours(IDS, mask).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_masked_places_may_hold_anything():
    ours = laws.live(model(use_cls_token=True, embed_num_tokens={"segment": 2}))
    out = ours(IDS, REAL, embed_ids={"segment": SEGMENT})
    again = ours(IDS.masked_fill(~REAL, 3), REAL, embed_ids={"segment": SEGMENT.masked_fill(~REAL, 1)})
    assert torch.equal(out, again)


@pytest.mark.parametrize("kind", ["mean", "attn", "cls"])
def test_a_classifier_learns(kind):
    """Whether token 3 stands in the row, whatever else and however long it is; no guess is right half of the time."""
    generator = torch.Generator().manual_seed(1)
    net = model(**POOLINGS[kind], logits_dim=2, num_tokens=7, stack={"depth": 1}, embed_num_tokens={"segment": 2})
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def batch():
        ids = torch.randint(4, 7, (64, 11), generator=generator)
        mask = torch.arange(11) < torch.randint(1, 12, (64, 1), generator=generator)
        answer = torch.arange(64) % 2
        place = (torch.rand(64, 11, generator=generator) * mask).argmax(1)
        ids[torch.arange(64), place] = torch.where(answer == 1, 3, ids[torch.arange(64), place])
        return ids.masked_fill(~mask, 3), mask, answer

    for _ in range(60):
        ids, mask, answer = batch()
        loss = torch.nn.functional.cross_entropy(net(ids, mask, embed_ids={"segment": ids % 2}), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, mask, answer = batch()
    right = (net(ids, mask, embed_ids={"segment": ids % 2}).argmax(1) == answer).float().mean().item()
    assert right > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attn", "cls"])
def test_compiled_is_eager(kind):
    stack = {"depth": 1, "pos": None}
    ours = laws.live(model("ff", stack=stack, max_seq_len=N, embed_num_tokens={"segment": 2}, **POOLINGS[kind]))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(ours, fullgraph=True, backend=counter)
    with torch.no_grad():
        for n in (7, 11, 5, 13):
            ids, mask, segment = (t[:, :n].contiguous() for t in (IDS, REAL, SEGMENT))
            beside = {"embed_ids": {"segment": segment}}
            laws.close(fast(ids, mask, **beside), ours(ids, mask, **beside), f"compiled at {n}")
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs for four lengths"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"embed_num_tokens": 2},
            TypeError,
            "embed_num_tokens must be a mapping of names to whole numbers or None, not 2",
        ),
        ({"embed_num_tokens": {3: 2}}, TypeError, "embed_num_tokens must map names to numbers, but 3 is no name"),
        ({"embed_num_tokens": {"": 2}}, ValueError, "has the name ''"),
        ({"embed_num_tokens": {"a.b": 2}}, ValueError, r"has the name 'a.b': weights are named after it"),
        ({"embed_num_tokens": {"a": 0}}, ValueError, r"embed_num_tokens\['a'\] must be at least 1, not 0"),
        ({"embed_num_tokens": {"a": 1.5}}, TypeError, r"embed_num_tokens\['a'\] must be a whole number, not 1.5"),
        ({"average_pool_embed": 1}, TypeError, "average_pool_embed must be True or False, not 1"),
        ({"use_cls_token": "yes"}, TypeError, "use_cls_token must be True or False, not 'yes'"),
        ({"attn_pool": None}, TypeError, "attn_pool must be True or False, not None"),
        ({"use_cls_token": True, "num_cls_tokens": 0}, ValueError, "num_cls_tokens must be at least 1, not 0"),
        ({"use_cls_token": True, "num_cls_tokens": True}, TypeError, "num_cls_tokens must be a whole number, not True"),
        ({"num_cls_tokens": 3}, ValueError, "num_cls_tokens=3 is set, but use_cls_token is False"),
        (
            {"attn_pool": True, "use_cls_token": True},
            ValueError,
            "use_cls_token=True and attn_pool=True exclude each other: a model has one pooled output",
        ),
        (
            {"attn_pool": True, "average_pool_embed": True},
            ValueError,
            "average_pool_embed=True and attn_pool=True exclude each other",
        ),
        ({"use_cls_token": True, "causal": True}, ValueError, "use_cls_token=True needs a bidirectional stack: in a"),
        ({"attn_pooled": True}, TypeError, "no argument 'attn_pooled'; did you mean 'attn_pool'"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    refuses(lambda: model(**arguments), error, message)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ({}, ValueError, "embed_ids has no 'segment': every call gives ids for all of embed_num_tokens ('segment')"),
        (None, ValueError, "embed_ids has no 'segment'"),
        (SEGMENT, TypeError, "embed_ids must map names to ids, such as {'segment': ids}, not torch.int64"),
        ({"segmnt": SEGMENT}, ValueError, "has 'segmnt', but embed_num_tokens has 'segment'; did you mean 'segment'?"),
        ({"segment": SEGMENT, "x": SEGMENT}, ValueError, "embed_ids has 'x', but embed_num_tokens has 'segment'"),
        ({"segment": SEGMENT.float()}, TypeError, "embed_ids['segment'] must be an integer tensor"),
        ({"segment": SEGMENT.bool()}, TypeError, "(batch, tokens), not torch.bool"),
        ({"segment": SEGMENT.tolist()}, TypeError, "embed_ids['segment'] must be an integer tensor"),
        (
            {"segment": SEGMENT[:, 1:]},
            ValueError,
            f"embed_ids['segment'] has shape (3, {N - 1}), but the token ids have (3, {N})",
        ),
        ({"segment": SEGMENT * 2}, ValueError, "embed_ids['segment'] must be from 0 to 1, but they go from 0 to 2"),
        ({"segment": -SEGMENT}, ValueError, "embed_ids['segment'] must be from 0 to 1, but they go from -1 to 0"),
    ],
)
def test_ids_that_are_refused(ids, error, message):
    net = model(causal=True, embed_num_tokens={"segment": 2})
    refuses(lambda: net(IDS, embed_ids=ids), error, re.escape(message))
    refuses(lambda: net.step(IDS, embed_ids=ids), error, re.escape(message))


def test_ids_of_embeddings_that_are_not_there():
    refuses(
        lambda: model()(IDS, embed_ids={"segment": SEGMENT}),
        ValueError,
        "embed_ids has 'segment', but the model was built without embed_num_tokens",
    )
    assert torch.equal(model()(IDS, embed_ids={}), model(embed_num_tokens={})(IDS))


@pytest.mark.parametrize("kind", POOLINGS)
def test_calls_that_make_no_sense_with_one_output(kind):
    net = model(causal=not kind.startswith("cls"), **POOLINGS[kind])
    name = next(iter(POOLINGS[kind]))
    refuses(lambda: net.step(IDS), ValueError, f"a model with {name}=True has no step: its output is of the whole")
    refuses(lambda: net(IDS, doc_ids=SEGMENT), ValueError, f"doc_ids and {name} exclude each other: documents would be")
    refuses(lambda: AutoregressiveWrapper(net), ValueError, rf"pools its outputs \({name}=True\): it predicts no next")


def test_an_attention_mask_of_another_size():
    net = model(use_cls_token=True)
    message = rf"attn_mask must end in \({N}, {N}\), not \({N + 1}, {N + 1}\): the CLS tokens are added to it"
    refuses(lambda: net(IDS, attn_mask=torch.ones(N + 1, N + 1).bool()), ValueError, message)
    refuses(lambda: net(IDS, attn_mask=torch.ones(N, N)), TypeError, "attn_mask must be a boolean tensor")
    refuses(lambda: net(IDS, attn_mask="all"), TypeError, "attn_mask must be a boolean tensor .* not str")
