"""SegmentWrapper: any causal model trained over texts that are longer than a segment."""

import laws
import pytest
import torch
from tiny_lm import TinyLM
from torch import nn

import xflash
from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    FLASHTransformer,
    SegmentWrapper,
    TransformerWrapper,
)
from xflash.base.state import tensors

V, L = 31, 6


def transformer(**flags):
    flags = {"dim": 26, "heads": 2, "depth": 1, "layers": "attn ff", "pos": "rotary", "attn_dim_head": 10, **flags}
    return TransformerWrapper(num_tokens=V, attn_layers=Decoder(**flags))


def mixed():
    layout = "flash gau(query_key_dim=6) block_attn ff"
    return TransformerWrapper(
        num_tokens=V,
        attn_layers=Decoder(
            dim=26, depth=1, heads=2, layers=layout, pos="rotary", shift_tokens=1, num_memory_tokens=2,
            flash_group_size=5, flash_query_key_dim=6, block_attn_dim_head=10, block_attn_block_width=4,
        ),
    )  # fmt: skip


def block_recurrent():
    return BlockRecurrentTransformer(
        num_tokens=V, dim=26, depth=2, dim_head=10, heads=2, block_width=4, max_seq_len=12, recurrent_layers=(2,)
    )


def flash():
    return FLASHTransformer(num_tokens=V, dim=26, depth=2, group_size=5, query_key_dim=6, causal=True)


NETS = {"attn": transformer, "mixed": mixed, "block_recurrent": block_recurrent, "flash": flash}


@pytest.fixture(params=NETS)
def net(request):
    torch.manual_seed(0)
    return laws.live(NETS[request.param]())


def tokens(n, rows=3, seed=1):
    return torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(seed))


def whole(net, ids, **given):
    """The loss of a text in one segment."""
    return SegmentWrapper(net, 1000)(ids, **given)


def test_segments_are_the_text_read_whole(net):
    ids = tokens(41)
    expected = whole(net, ids)
    if not isinstance(net, BlockRecurrentTransformer):
        laws.close(AutoregressiveWrapper(net)(ids), expected, "one segment")
    for length in (7, 40):
        loss, state = SegmentWrapper(net, length)(ids, return_state=True)
        laws.close(loss, expected, f"segments of {length}")
        assert state.bound == 40
    laws.close(SegmentWrapper(net, L)(ids[:, :2]), whole(net, ids[:, :2]), "two tokens")


def test_calls_go_on_where_the_last_one_ended(net):
    ids, trainer = tokens(44), SegmentWrapper(net, L)
    state, total, at = None, 0.0, 0
    for n in (13, 2, 7, 18, 3):
        loss, state = trainer(ids[:, at : at + n + 1], state=state, return_state=True)
        total, at = total + loss * n, at + n
    laws.close(total / 43, whole(net, ids), "calls")
    assert any(t.requires_grad for t in tensors(state.stack))


def test_gradients_reach_as_far_as_in_the_whole_text(net):
    ids = tokens(29)
    expected = torch.autograd.grad(whole(net, ids), list(net.parameters()), allow_unused=True)
    found = torch.autograd.grad(SegmentWrapper(net, L)(ids), list(net.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            laws.close(a, b, "gradient")


def test_masked_and_ignored_tokens_are_no_targets(net):
    ids = tokens(23)
    for mask in laws.masks(23).values():
        expected, count = 0.0, 0
        for row, real in zip(ids, mask, strict=True):
            if real.sum() > 1:
                expected, count = expected + whole(net, row[real][None]) * (real.sum() - 1), count + real.sum() - 1
        poisoned = ids.masked_fill(~mask, -7)
        laws.close(SegmentWrapper(net, L)(poisoned, mask), expected / count, "masked")
    labels = ids.clone()
    labels[:, :17] = -100
    late = SegmentWrapper(net, L)(ids, labels=labels)
    laws.close(late * 6, whole(net, ids) * 22 - whole(net, ids[:, :17]) * 16, "labels")
    assert SegmentWrapper(net, L)(ids, labels=torch.full_like(ids, -100)) == 0
    swapped = SegmentWrapper(net, L, ignore_index=3, pad_value=5)(ids)
    laws.close(
        swapped, whole(net, ids.masked_fill(ids == 3, 5), labels=ids.masked_fill(ids == 3, -100)), "ignore_index"
    )


DOCUMENTS = ((9, 17), (6, 5, 12), (25,))


def packed():
    """Rows of documents that begin where a segment does: tokens, mask, resets, and the documents by themselves."""
    segments = 6
    ids, mask = torch.full((3, segments * L + 1), -1), torch.zeros(3, segments * L + 1, dtype=torch.bool)
    starts = torch.zeros(3, segments, dtype=torch.bool)
    alone = []
    for row, lengths in enumerate(DOCUMENTS):
        at = 0
        for number, n in enumerate(lengths):
            document = tokens(n, 1, seed=10 * row + number)
            begin = at * L
            ids[row, begin : begin + n], mask[row, begin : begin + n] = document, True
            starts[row, at] = True
            alone.append(document)
            at += -(-n // L)
    return ids, mask, starts, alone


def test_each_document_is_as_if_alone(net):
    ids, mask, starts, alone = packed()
    expected = sum(whole(net, d) * (d.shape[1] - 1) for d in alone) / sum(d.shape[1] - 1 for d in alone)
    laws.close(SegmentWrapper(net, L)(ids, mask, reset=starts), expected, "documents")
    laws.close(SegmentWrapper(net, L)(ids, mask.int(), reset=starts.int()), expected, "documents, as integers")
    # The same in calls of two segments, the state handed on.
    trainer, state, total, count = SegmentWrapper(net, L), None, 0.0, 0
    for at in range(0, 6, 2):
        piece = slice(at * L, (at + 2) * L + 1)
        # The last column begins the next call: where that is another document, it is no target of this one.
        real = mask[:, piece].clone()
        if at < 4:
            real[:, -1] &= ~starts[:, at + 2]
        loss, state = trainer(ids[:, piece], real, state=state, reset=starts[:, at : at + 2], return_state=True)
        targets = (real[:, 1:] & real[:, :-1]).sum() - (starts[:, at + 1] & real[:, L] & real[:, L - 1]).sum()
        total, count = total + loss * targets, count + targets
    laws.close(total / count, expected, "documents over calls")


def test_a_row_begins_anew_with_a_call(net):
    trainer, first, second = SegmentWrapper(net, L), tokens(15), tokens(20, seed=2)
    _, state = trainer(first, return_state=True)
    anew = trainer(second, state=state, reset=torch.tensor([True, False, True]))
    on = trainer(second[1:2], state=state.reorder(torch.tensor([1])))
    laws.close(anew, (whole(net, second[:1]) + on + whole(net, second[2:])) / 3, "reset")
    laws.close(trainer(second, reset=torch.tensor([True, False, True])), whole(net, second), "nothing to reset")


def test_documents_that_fill_their_segments_border_on_each_other():
    """No padding between them: the first token of the next document is no target of the one before."""
    net = laws.live(transformer())
    a, b = tokens(L, 1), tokens(L, 1, seed=2)
    ids, starts = torch.cat((a, b, b[:, -1:]), 1), torch.tensor([[False, True]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -1] = False
    laws.close(SegmentWrapper(net, L)(ids, mask, reset=starts), (whole(net, a) + whole(net, b)) / 2, "border")


@pytest.mark.parametrize(("every", "reached"), [(None, 5), (1, 1), (2, 1), (3, 2)])
def test_gradients_are_cut_after_segments(every, reached):
    """Of five segments, the loss of the last reaches back to where the last cut was."""
    net, ids = laws.live(transformer()), tokens(5 * L + 1)
    seen = []
    net.embedding.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    labels = ids.clone()
    labels[:, : 4 * L + 1] = -100
    loss = SegmentWrapper(net, L, detach_every=every)(ids, labels=labels)
    found = torch.autograd.grad(loss, seen, allow_unused=True)
    assert [grad is not None and bool(grad.abs().max() > 0) for grad in found] == [i >= 5 - reached for i in range(5)]


def test_memory_is_forgotten_at_times(net):
    ids = tokens(4 * L + 1)
    trainer = SegmentWrapper(net, L, memory_dropout=0.99).train()
    net.eval()
    torch.manual_seed(0)
    apart = sum(whole(net, ids[:, at : at + L + 1]) for at in range(0, 4 * L, L)) / 4
    laws.close(trainer(ids), apart, "forgotten")
    _, state = trainer(tokens(9, seed=3), return_state=True)
    laws.close(trainer(ids, state=state), apart, "what a call is given is forgotten as well")
    laws.close(trainer.eval()(ids), whole(net, ids), "not in eval mode")


def test_a_context_is_given_once_and_not_forgotten():
    net = laws.live(transformer(layers="attn cross_attn ff", cross_attn_dim_head=10))
    ids, context = tokens(3 * L + 1), torch.randn(3, 5, 26, dtype=torch.float64)
    laws.close(
        SegmentWrapper(net, L)(ids, context=context), AutoregressiveWrapper(net)(ids, context=context), "context"
    )
    trainer = SegmentWrapper(net, L, memory_dropout=0.99).train()
    net.eval()
    torch.manual_seed(0)
    apart = sum(whole(net, ids[:, at : at + L + 1], context=context) for at in range(0, 3 * L, L)) / 3
    laws.close(trainer(ids, context=context), apart, "context")
    prefix = torch.randn(3, 2, 26, dtype=torch.float64)
    net = laws.live(transformer())
    laws.close(
        SegmentWrapper(net, L)(ids, prepend_embeds=prefix),
        AutoregressiveWrapper(net)(ids, prepend_embeds=prefix),
        "front",
    )


def kept(trainer, ids):
    """The loss, the gradients, and how many numbers were kept for them beside the parameters."""
    held = {}
    weights = {p.untyped_storage().data_ptr() for p in trainer.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = trainer(ids)
    grads = torch.autograd.grad(loss, list(trainer.parameters()), allow_unused=True)
    return loss, grads, sum(held.values())


@pytest.mark.parametrize("name", ["flash", "attn"])
def test_checkpointing_changes_memory_and_nothing_else(name):
    torch.manual_seed(0)
    net = laws.live(
        NETS[name]() if name != "attn" else transformer(attn_dropout=0.3, ff_dropout=0.2, layer_dropout=0.2)
    )
    ids = tokens(5 * L + 1)
    plain = kept(SegmentWrapper(net, L, memory_dropout=0.3).train(), ids)
    again = kept(SegmentWrapper(net, L, memory_dropout=0.3, grad_checkpoint=True).train(), ids)
    assert torch.equal(plain[0], again[0])
    for a, b in zip(plain[1], again[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            laws.close(a, b, "gradient")
    assert again[2] < plain[2] / 4, (again[2], plain[2])
    with torch.no_grad():
        laws.close(SegmentWrapper(net.eval(), L, grad_checkpoint=True)(ids), whole(net, ids), "without grad")


def test_a_net_of_ones_own_is_enough():
    torch.manual_seed(0)
    net, ids = TinyLM(V).double().eval(), tokens(20)
    mask = torch.arange(20) < torch.tensor([[20], [7], [2]])
    laws.close(SegmentWrapper(net, L)(ids, mask), AutoregressiveWrapper(net)(ids, mask), "own net")
    loss, state = SegmentWrapper(net, L, detach_every=1)(ids, return_state=True)
    loss.backward()
    assert state.length.tolist() == [19] * 3


def test_generation_is_that_of_the_autoregressive_wrapper(net):
    ids = tokens(9)
    made = SegmentWrapper(net, L).generate(ids, 2 * L, temperature=0.0)
    assert torch.equal(made, AutoregressiveWrapper(net).generate(ids, 2 * L, temperature=0.0))
    best = SegmentWrapper(net, L).beam_search(ids, 4, beams=1)
    assert torch.equal(best, made[:, :4])


def test_saved_is_built(tmp_path, net):
    trainer = SegmentWrapper(net, L, detach_every=2, memory_dropout=0.1, grad_checkpoint=True, pad_value=4).eval()
    trainer.save(tmp_path)
    again = xflash.load(tmp_path).eval()
    assert again.to_config() == trainer.to_config() and again.segment_len == L and again.grad_checkpoint
    assert torch.equal(again(tokens(20)), trainer(tokens(20)))
    assert "segment_len=6, detach_every=2, ignore_index=-100, pad_value=4\n" in again.module_tree()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"segment_len": 0}, ValueError, "segment_len must be at least 1, not 0"),
        ({"segment_len": "6"}, TypeError, "segment_len must be a whole number, not '6'"),
        ({"detach_every": 0}, ValueError, "detach_every must be at least 1, not 0"),
        ({"memory_dropout": 1}, ValueError, "memory_dropout must be below 1, not 1"),
        ({"grad_checkpoint": 1}, TypeError, "grad_checkpoint must be True or False, not 1"),
        ({"ignore_index": "a"}, TypeError, "ignore_index must be a whole number, not 'a'"),
        ({"net": nn.Embedding(2, 3)}, TypeError, r"Embedding has no step\(ids, state, mask=\): nothing is carried"),
        ({"net": 7}, TypeError, "net must be a model from token ids to logits such as TransformerWrapper, not 7"),
        (
            {"segment_length": 7},
            TypeError,
            "SegmentWrapper has no argument 'segment_length'; did you mean 'segment_len'",
        ),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        SegmentWrapper(**{"net": transformer(), "segment_len": L, **arguments})


def test_bidirectional_nets_are_refused():
    encoder = TransformerWrapper(num_tokens=V, attn_layers=Encoder(dim=26, heads=2, depth=1, pos="rotary"))
    with pytest.raises(ValueError, match="TransformerWrapper is bidirectional, so it sees what it is to predict"):
        SegmentWrapper(encoder, L)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"x": tokens(1)}, ValueError, r"x has shape \(3, 1\), but a loss needs \(b, n\) with at least n = 2 tokens"),
        ({"x": tokens(13).float()}, TypeError, "x must hold integer token ids, not torch.float32"),
        ({"labels": tokens(12)}, ValueError, r"labels has shape \(3, 12\), but x has \(3, 13\)"),
        ({"labels": tokens(13) + V}, ValueError, "the target .* is not in the vocabulary of 31 tokens"),
        ({"mask": torch.ones(3, 12).bool()}, ValueError, r"mask has shape \(3, 12\)"),
        ({"reset": [True] * 3}, TypeError, r"reset must be a boolean tensor, \(3,\) or \(3, 2\), not list"),
        ({"reset": torch.ones(3)}, TypeError, r"reset must be a boolean tensor, \(3,\) or \(3, 2\), not torch.float32"),
        (
            {"reset": torch.ones(3, 3).bool()},
            ValueError,
            r"reset must be \(3,\), or \(3, 2\) with a column for each of the 2 segments, not \(3, 3\)",
        ),
        ({"state": 7}, TypeError, "state must be what step.. gave, a ModelState, not int"),
    ],
)
def test_wrong_calls(given, error, match):
    with pytest.raises(error, match=match):
        SegmentWrapper(transformer(), L)(**{"x": tokens(13), **given})
