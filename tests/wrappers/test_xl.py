"""XLAutoregressiveWrapper: Transformer-XL trained in segments, and generating as it was trained."""

import laws
import pytest
import torch

import xflash
from xflash import AutoregressiveWrapper, Decoder, Encoder, SegmentWrapper, TransformerWrapper, XLAutoregressiveWrapper
from xflash.base.state import tensors

V, L, M, N = 31, 5, 3, 23


def build(max_mem_len=M, layers="attn ff", pos="rotary", max_seq_len=L, **arguments):
    torch.manual_seed(0)
    small = {"attn_dim_head": 10} if "attn" in layers else {}
    stack = Decoder(dim=26, depth=2, heads=2, layers=layers, pos=pos, **small, **arguments.pop("flags", {}))
    return laws.live(
        TransformerWrapper(
            num_tokens=V, max_seq_len=max_seq_len, attn_layers=stack, max_mem_len=max_mem_len, **arguments
        )
    )


def tokens(n, rows=3, seed=1):
    return torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(seed))


def remembered(n):
    """(n, n): a token sees its segment up to itself, and the M tokens before the segment."""
    i, j = torch.arange(n)[:, None], torch.arange(n)
    return (j <= i) & (j >= i // L * L - M)


def greedy(net, prompt, n, **given):
    """The likeliest tokens, each found by reading everything anew."""
    known = prompt
    for _ in range(n):
        size = known.shape[1]
        mask = {"attn_mask": given["mask"](size)} if given else {}
        known = torch.cat((known, net(known, **mask)[:, -1:].argmax(-1)), 1)
    return known[:, prompt.shape[1] :]


@pytest.mark.parametrize("pos", ["rotary", "rel_pos", "alibi"])
def test_while_the_memory_covers_the_text_it_is_the_whole_model(pos):
    net = build(max_mem_len=4 * L, pos=pos)
    ids, xl = tokens(4 * L + 1), XLAutoregressiveWrapper(net)
    laws.close(xl(ids), AutoregressiveWrapper(net)(ids), "loss")
    for n in (3, L, L + 1, 2 * L, 2 * L + 2):
        prompt = tokens(n, seed=n)
        assert torch.equal(xl.generate(prompt, 2 * L, temperature=0.0), greedy(net, prompt, 2 * L)), n


@pytest.mark.parametrize("layers", ["attn ff", "attn gau(normaliser='row_sum') ff"])
def test_loss_and_generation_are_one_masked_call(layers):
    """Beyond the memory too: a token sees its segment and the tokens remembered before it, while training and after."""
    net = build(layers=layers, pos="rel_pos")
    ids, xl = tokens(N), XLAutoregressiveWrapper(net)
    laws.close(xl(ids), AutoregressiveWrapper(net)(ids, attn_mask=remembered(N)), "loss")
    for n in (2, L, L + 2):
        prompt = tokens(n, seed=n)
        expected = greedy(net, prompt, 3 * L, mask=remembered)
        assert torch.equal(xl.generate(prompt, 3 * L, temperature=0.0), expected), n
        assert torch.equal(xl.generate(prompt, 3 * L, temperature=0.0, cache_kv=False), expected), n
        assert torch.equal(torch.stack(list(xl.stream(prompt, 3 * L, temperature=0.0)), 1), expected), n
        assert torch.equal(xl.beam_search(prompt, L + 1, beams=1), expected[:, : L + 1]), n


@pytest.mark.parametrize(
    ("layers", "flags"),
    [("attn gau(query_key_dim=6) ff", {"num_memory_tokens": 2}), ("flash(query_key_dim=6, group_size=4) attn ff", {})],
)
def test_generation_sees_what_training_saw(layers, flags):
    """The logits of training's segments, token by token, in pieces, and behind the memory of an earlier call."""
    net = build(layers=layers, flags=flags, scaled_sinu_pos_emb=True)
    ids, xl = tokens(N), XLAutoregressiveWrapper(net)
    expected, mems = [], None
    for segment in ids.split(L, 1):
        logits, mems = net(segment, mems=mems, return_mems=True)
        expected.append(logits)
    expected = torch.cat(expected, 1)
    for sizes in ([1] * N, [N], [3, 2, 1, 9, 8]):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                reader, state, found = xl.reader(ids, None).net, None, []
                for piece in ids.split(sizes, 1):
                    logits, state = reader.step(piece, state)
                    found.append(logits)
                laws.close(torch.cat(found, 1), expected, f"pieces of {sizes}")
    _, mems = xl(ids[:, : 2 * L + 1], return_mems=True)
    behind = xl.reader(ids, mems).net(ids[:, 2 * L :])
    laws.close(behind, expected[:, 2 * L :], "behind mems")
    made = xl.generate(ids[:, 2 * L : 3 * L + 2], 2 * L, temperature=0.0, mems=mems)
    assert torch.equal(made, xl.generate(ids[:, : 3 * L + 2], 2 * L, temperature=0.0))
    best = xl.beam_search(ids[:, 2 * L : 3 * L], L, beams=3, mems=mems)
    assert torch.equal(best, xl.beam_search(ids[:, : 3 * L], L, beams=3))
    assert torch.equal(best, xl.beam_search(ids[:, : 3 * L], L, beams=3, cache_kv=False))
    first = next(xl.stream(ids[:, 2 * L :], 1, mems=mems, temperature=0.0))
    assert torch.equal(first, expected[:, -1].argmax(-1))


def test_calls_go_on_with_their_memory():
    net, ids = build(), tokens(4 * L + 1)
    xl = XLAutoregressiveWrapper(net)
    first, mems = xl(ids[:, : 2 * L + 1], return_mems=True)
    assert not any(t.requires_grad for t in tensors(mems.stack))
    assert {t.shape[2] for t in tensors(mems.stack) if t.dim() == 4} == {M}
    second, _ = xl(ids[:, 2 * L :], mems, return_mems=True)
    laws.close((first + second) / 2, xl(ids), "calls")
    laws.close(SegmentWrapper(net, L)(ids), xl(ids), "SegmentWrapper")
    mask = torch.arange(4 * L + 1) < torch.tensor([[4 * L + 1], [7], [2]])
    alone = sum(xl(ids[r : r + 1, : int(k)]) * (k - 1) for r, k in enumerate(mask.sum(1))) / (mask.sum() - 3)
    laws.close(xl(ids, mask=mask), alone, "masked")
    labels = ids.masked_fill(~mask, -100)
    laws.close(xl(ids, labels=labels), xl(labels.masked_fill(~mask, -100), mask=mask), "ignored")
    anew = xl(ids[:, 2 * L :], mems, reset=torch.tensor([True] * 3))
    laws.close(anew, xl(ids[:, 2 * L :]), "reset")


def test_documents_have_their_own_memory():
    net, ids = build(), tokens(4 * L + 1)
    starts = torch.tensor([[True, False, False, False], [False, False, True, False], [False, True, False, True]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[2, L - 2 : L], mask[2, -1] = False, False
    documents = [ids[0], ids[1, : 2 * L], ids[1, 2 * L :], ids[2, : L - 2], ids[2, L : 3 * L], ids[2, 3 * L : -1]]
    for trainer in (XLAutoregressiveWrapper(net), SegmentWrapper(net, L)):
        alone = sum(trainer(d[None]) * (len(d) - 1) for d in documents) / sum(len(d) - 1 for d in documents)
        laws.close(trainer(ids, mask=mask, reset=starts), alone, "documents")


def test_no_gradient_flows_through_the_memory():
    net, ids = build(), tokens(2 * L + 1)
    seen = []
    net.embedding.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    labels = ids.clone()
    labels[:, : L + 1] = -100
    found = torch.autograd.grad(XLAutoregressiveWrapper(net)(ids, labels=labels), seen, allow_unused=True)
    assert found[0].abs().max() == 0
    assert found[1].abs().max() > 0


def test_generation_is_bounded_and_ends():
    net, prompt = build(), tokens(4)
    xl = XLAutoregressiveWrapper(net, pad_value=7)
    reader = xl.reader(prompt, None).net
    held, state = [], None
    with torch.no_grad():
        for token in tokens(12 * L).split(1, 1):
            _, state = reader.step(token, state)
            held.append(max(t.shape[2] for t in tensors(state.inner.stack) if t.dim() == 4))
    assert max(held) <= 2 * (M + L + 1)
    free = xl.generate(prompt, 9, temperature=0.0)
    eos = int(free[0, 2])
    made = xl.generate(prompt, 9, eos, 0.0, "top_k", {"k": 1})
    ends = [row.index(eos) if eos in row else 9 for row in free.tolist()]
    for row, whole, end in zip(made.tolist(), free.tolist(), ends, strict=True):
        assert row == (whole[: end + 1] + [7] * 9)[: len(row)]
    torch.manual_seed(1)
    drawn = xl.generate(prompt[0], 6, filter_logits_fn=lambda logits, **_: logits, filter_kwargs={"any": 1})
    assert drawn.shape == (6,)


def test_saved_is_built(tmp_path):
    xl = XLAutoregressiveWrapper(build(), ignore_index=-1, pad_value=4)
    xl.save(tmp_path)
    again = xflash.load(tmp_path).eval()
    assert again.to_config() == xl.to_config()
    assert torch.equal(again(tokens(N)), xl(tokens(N)))
    assert "segment_len=5, ignore_index=-1, pad_value=4" in again.module_tree()


def plain(**arguments):
    stack = arguments.pop("stack", Decoder)(dim=26, depth=1, heads=2, **arguments.pop("flags", {"pos": "rotary"}))
    return TransformerWrapper(**{"num_tokens": V, "max_seq_len": L, "attn_layers": stack, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            {"net": plain()},
            ValueError,
            "has no memory to carry across segments: build it with max_mem_len",
        ),
        ({"net": plain(stack=Encoder)}, ValueError, "TransformerWrapper has no memory to carry across segments"),
        (
            {"net": plain(max_mem_len=M, max_seq_len=None)},
            ValueError,
            "has no max_seq_len, which says how long",
        ),
        (
            {"net": plain(max_mem_len=M, flags={})},
            ValueError,
            "learned absolute positions end at max_seq_len=5, .*: use relative ones such as pos='rotary'",
        ),
        ({"net": torch.nn.Linear(2, 3)}, TypeError, "net must be a TransformerWrapper, not Linear"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index must be a whole number, not 1.5"),
        ({"pad_value": "a"}, TypeError, "pad_value must be a whole number, not 'a'"),
        ({"segment_len": 3}, TypeError, "XLAutoregressiveWrapper has no argument 'segment_len'"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        XLAutoregressiveWrapper(**{"net": build(), **arguments})


@pytest.mark.parametrize("layers", ["attn ff", "gau(query_key_dim=6) attn"])
def test_gradients_flow_through_memories(layers):
    """Through all of them they are those of one masked call, through one they end where the segment begins."""
    net, ids = build(layers=layers), tokens(N)
    weights = list(net.parameters())
    whole = torch.autograd.grad(AutoregressiveWrapper(net)(ids, attn_mask=remembered(N)), weights)
    for trainer in (XLAutoregressiveWrapper(net, tbptt_steps=9), SegmentWrapper(net, L, detach_every=9)):
        for ours, there in zip(torch.autograd.grad(trainer(ids), weights), whole, strict=True):
            laws.close(ours, there, "gradients")
    cut = [torch.autograd.grad(make(ids), weights) for make in (XLAutoregressiveWrapper(net), SegmentWrapper(net, L))]
    for ours, other, there in zip(*cut, whole, strict=True):
        assert torch.equal(ours, other) and not torch.equal(ours, there)


@pytest.mark.parametrize(("steps", "reached"), [(1, 1), (2, 1), (3, 2)])
def test_gradients_are_cut_after_segments(steps, reached):
    """Of five segments, the loss of the last reaches back to where the last cut was."""
    net, ids = build(max_mem_len=5 * L), tokens(5 * L + 1)
    seen, labels = [], ids.clone()
    net.embedding.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    labels[:, : 4 * L + 1] = -100
    loss, mems = XLAutoregressiveWrapper(net, tbptt_steps=steps)(ids, labels=labels, return_mems=True)
    found = torch.autograd.grad(loss, seen, allow_unused=True)
    assert [grad is not None and bool(grad.abs().max() > 0) for grad in found] == [i >= 5 - reached for i in range(5)]
    assert not any(t.requires_grad for t in tensors(mems))


def test_wrong_calls():
    xl, ids = XLAutoregressiveWrapper(build()), tokens(N)
    _, mems = xl(ids, return_mems=True)
    other = XLAutoregressiveWrapper(build(pos="alibi"))
    _, foreign = other(ids, return_mems=True)
    for given, error, match in (
        ({"mems": [torch.zeros(2)]}, TypeError, "mems must be what the model gave, a ModelState, not list"),
        ({"mems": foreign}, ValueError, "the state was made by another stack"),
        ({"mems": mems.reorder(torch.tensor([0]))}, ValueError, "the state has 1 rows, but x has 3"),
    ):
        with pytest.raises(error, match=match):
            xl(ids, **given)
        with pytest.raises(error, match=match):
            xl.generate(ids, 2, **given)
    with pytest.raises(ValueError, match="a loss needs"):
        xl(ids[:, :1])
    with pytest.raises(ValueError, match="prompts of different lengths have the ends of their segments at different"):
        xl.generate([ids[0], ids[1, :4]], 2)
