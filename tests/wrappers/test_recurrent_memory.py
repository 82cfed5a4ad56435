"""RecurrentMemoryWrapper: memory tokens that carry what a segment was about to the next one, and nothing else does."""

import copy

import laws
import pytest
import torch
import torch.nn.functional as F

import xflash
from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    FLASHTransformer,
    RecurrentMemoryWrapper,
    SegmentWrapper,
    TransformerWrapper,
)
from xflash.base.state import tensors
from xflash.wrappers.recurrent_memory import RecurrentMemoryState

V, D, L, T = 31, 26, 5, 3


def rotary():
    layers = "attn gau(query_key_dim=6) attn(window=4) ff"
    stack = Decoder(dim=D, depth=1, heads=2, layers=layers, pos="rotary", attn_dim_head=10)
    return TransformerWrapper(num_tokens=V, attn_layers=stack)


def learned():
    """As many positions as a segment has tokens; token shift, and memory tokens that the stack has of its own."""
    stack = Decoder(
        dim=D, depth=1, heads=2, layers="flash ff", shift_tokens=1, num_memory_tokens=2, flash_query_key_dim=6,
        flash_group_size=4,
    )  # fmt: skip
    return TransformerWrapper(num_tokens=V, max_seq_len=L, attn_layers=stack)


def flash():
    return FLASHTransformer(num_tokens=V, dim=D, depth=2, group_size=4, query_key_dim=6, causal=True)


def block_recurrent():
    return BlockRecurrentTransformer(
        num_tokens=V, dim=D, depth=2, dim_head=10, heads=2, block_width=4, max_seq_len=12, recurrent_layers=(2,)
    )


NETS = {"rotary": rotary, "learned": learned, "flash": flash, "block_recurrent": block_recurrent}


def build(make=rotary, number=T, segment_len=L):
    torch.manual_seed(0)
    return laws.live(RecurrentMemoryWrapper(make(), number, segment_len))


@pytest.fixture(params=NETS)
def model(request):
    return build(NETS[request.param])


def tokens(n, rows=3, seed=1):
    return torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(seed))


def steps(model, ids, sizes, mask=None, state=None):
    """ids in pieces of the given sizes: the logits joined, and the last state."""
    outputs, at = [], 0
    for n in sizes:
        y, state = model.step(ids[:, at : at + n], state, None if mask is None else mask[:, at : at + n])
        outputs.append(y)
        at += n
    return torch.cat(outputs, 1), state


def by_hand(model, ids):
    """Segments one after the other, each a whole pass of the stack over memory, tokens and memory."""
    memory, outputs = model.memory.expand(len(ids), -1, -1), []
    for segment in ids.split(model.segment_len, 1):
        x = model.net.embedding(segment)[0]
        normed = F.rms_norm(memory, (model.dim,), model.norm.gain, 1e-5)
        y = model.net.attn_layers(torch.cat((normed + model.read_embed, x, normed + model.write_embed), 1))
        outputs.append(model.net.logits(y[:, model.num_memory_tokens : -model.num_memory_tokens]))
        memory = y[:, -model.num_memory_tokens :]
    return torch.cat(outputs, 1)


def test_it_is_segments_with_memory_around_them(model):
    for n in (1, 2 * L, 13):
        laws.close(model(tokens(n)), by_hand(model, tokens(n)), f"{n} tokens")


def test_any_cut_is_the_whole(model):
    ids = tokens(13)
    whole = model(ids)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for i in (4, 5, 6, 10):
                laws.close(steps(model, ids, [i, 13 - i])[0], whole, f"cut at {i}, grad={grad}")
    with torch.no_grad():
        laws.close(steps(model, ids, [1] * 13)[0], whole, "token by token")


def test_no_token_sees_a_later_one():
    model, ids = build(), tokens(17)
    seen = []
    model.net.embedding.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    logits = model(ids)
    for i in (0, 4, 5, 11):
        found = torch.cat(
            [torch.zeros_like(x) if g is None else g
             for x, g in zip(seen, torch.autograd.grad(logits[:, i].square().sum(), seen, retain_graph=True,
                                                        allow_unused=True), strict=True)], 1
        )  # fmt: skip
        reached = found.abs().amax((0, 2)) > 0
        assert reached.tolist() == [j <= i for j in range(17)]


@pytest.mark.parametrize("name", ["right", "left", "holes"])
def test_rows_of_different_lengths(model, name):
    ids, after, mask = tokens(14), tokens(7, seed=2), laws.masks(14)[name]
    grad = name == "holes"
    with torch.set_grad_enabled(grad):
        out = model(ids, mask)
        for row in range(3):
            if mask[row].any():
                laws.close(out[row, mask[row]], model(ids[row : row + 1, mask[row]])[0], f"row {row}")
        pieces, state = steps(model, ids, [3, 1, 1, 9], mask)
        laws.close(pieces[mask], out[mask], "in pieces")
        # Each row goes on at its own end.
        onward = steps(model, after, [1, 4, 1, 1], None, state)[0]
        for row in range(3):
            alone = torch.cat((ids[row, mask[row]], after[row]))[None]
            laws.close(onward[row], model(alone)[0, -7:], f"row {row} goes on")


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_a_state_is_a_value(name):
    model = build(NETS[name])
    ids, after = tokens(12), tokens(9, seed=2)
    for mask in (None, laws.masks(12)["left"]):
        with torch.no_grad():
            _, state = model.step(ids, None, mask)
            plain, behind = model.step(after, state)
            order = torch.tensor([2, 0, 0])
            laws.close(model.step(after[order], state.reorder(order))[0], plain[order], "permuted")
            model.step(after * 0, state)
            laws.close(model.step(after, state)[0], plain, "forked")
            for other in (copy.deepcopy(state), laws.saved(state), state.to(torch.float64).detach()):
                laws.close(model.step(after, other)[0], plain, "copied")
            assert {t.dtype for t in tensors(behind.to(torch.float32))} <= {torch.float32, torch.int64, torch.bool}
        rows = torch.tensor([True, False, True])
        anew = model.step(after, state, reset=rows)[0]
        laws.close(anew[rows], model(after)[rows], "a reset row is as new")
        laws.close(anew[~rows], plain[~rows], "its neighbour goes on")
        nothing = model.step(ids, state, torch.zeros_like(ids))[1]
        laws.close(model.step(after, nothing)[0], plain, "a call without real tokens")


def held(state):
    return sum(t.untyped_storage().nbytes() for t in {t.data_ptr(): t for t in tensors(state)}.values())


@pytest.mark.parametrize("ragged", [False, True])
def test_what_is_held_does_not_grow(ragged):
    model, ids = build(), tokens(12 * L)
    mask = torch.ones_like(ids)
    mask[1:, :3] = 0
    sizes = []
    with torch.no_grad():
        state = model.step(ids[:, :8], None, mask[:, :8] if ragged else None)[1]
        for token in ids[:, 8:].split(1, 1):
            logits, state = model.step(token, state)
            sizes.append(held(state))
        laws.close(logits[0], model(ids[:1])[0, -1:], "the end of a long text")
        if ragged:
            laws.close(logits[1], model(ids[1:2, 3:])[0, -1:], "the end of a long text")
    half = len(sizes) // 2
    assert max(sizes[half:]) <= max(sizes[:half])


def test_gradients_reach_through_memory_until_it_is_detached():
    model, ids = build(), tokens(4 * L + 1)
    labels = ids.clone()
    labels[:, : 3 * L + 1] = -100
    for every, reached in ((None, 4), (1, 1), (2, 2)):
        seen = []
        hook = model.net.embedding.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out[0]))
        loss = SegmentWrapper(model, L, detach_every=every)(ids, labels=labels)
        hook.remove()
        wanted = [*seen, model.memory, model.read_embed, model.write_embed, model.norm.gain]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        found = [g is not None and bool(g.abs().max() > 0) for g in grads]
        assert found[:4] == [i >= 4 - reached for i in range(4)], every
        # Only the first segment reads the learned start. A full segment writes its memory when the next one begins,
        # behind the cut, so that writing is learned even where each segment is cut from the last.
        assert found[4:] == [every is None, True, True, True], every


def test_memory_is_all_that_crosses():
    """With the memory of another text in its place, the next segment reads as if it were behind that text."""
    model, after = build(), tokens(2 * L, seed=3)
    states = [model.step(tokens(2 * L, seed=seed))[1] for seed in (1, 2)]
    memories = [model.turn(state)[0].memory for state in states]
    assert model.turn(states[0])[0].stack is None and memories[0].shape == (3, T, D)
    expected = [model.step(after, state)[0] for state in states]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    swapped, _ = model.by_segments(after, RecurrentMemoryState(memories[1], None, 0, None), None)
    laws.close(model.net.logits(swapped), expected[1], "memory")


def test_it_learns_to_remember():
    """The first token is asked for two segments later; a model without memory can only guess among four."""
    torch.manual_seed(0)
    stack = Decoder(dim=32, depth=1, heads=2, pos="rotary", attn_dim_head=16)
    model = RecurrentMemoryWrapper(TransformerWrapper(num_tokens=8, attn_layers=stack), 2, 4)
    chance = torch.Generator().manual_seed(0)

    def batch():
        ids = torch.randint(1, 4, (32, 13), generator=chance)
        ids[:, 0] = torch.randint(4, 8, (32,), generator=chance)
        ids[:, 11], ids[:, 12] = 0, ids[:, 0]
        labels = torch.full_like(ids, -100)
        labels[:, 12] = ids[:, 0]
        return ids, labels

    trainer = SegmentWrapper(model, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(65):
        ids, labels = batch()
        optimizer.zero_grad()
        trainer(ids, labels=labels).backward()
        optimizer.step()
    ids, _ = batch()
    right = (model(ids[:, :-1])[:, -1].argmax(-1) == ids[:, 0]).float().mean()
    assert right > 0.8, right


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_it_generates_and_is_searched(name):
    model = build(NETS[name])
    lm = AutoregressiveWrapper(model)
    prompts = [tokens(n, 1, seed=n)[0] for n in (L, 3, 2 * L + 1)]
    greedy = lm.generate(prompts, L + 1, temperature=0.0)
    for row, prompt in zip(greedy, prompts, strict=True):
        # What is likeliest behind each token of the whole text.
        found = model(torch.cat((prompt, row))[None])[0, len(prompt) - 1 : -1].argmax(-1)
        assert torch.equal(found, row)
    assert torch.equal(lm.generate(prompts, L + 1, temperature=0.0, cache_kv=False), greedy)
    best = lm.beam_search(prompts, 4, beams=2)
    assert torch.equal(best, lm.beam_search(prompts, 4, beams=2, cache_kv=False))


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_segments_and_documents(name):
    """The wrapper that trains in segments takes it as any other model; its segments need not be the model's."""
    model = build(NETS[name])
    ids, lm = tokens(29), AutoregressiveWrapper(model)
    expected = lm(ids)
    for length in (L, 7):
        laws.close(SegmentWrapper(model, length)(ids), expected, f"segments of {length}")
    starts = torch.tensor([[False] * 4, [False, True, False, False], [False, False, True, True]])
    alone = [ids[:1], ids[1:2, :7], ids[1:2, 7:], ids[2:, :14], ids[2:, 14:21], ids[2:, 21:]]
    total = sum(lm(d) * (d.shape[1] - 1) for d in alone) / sum(d.shape[1] - 1 for d in alone)
    laws.close(SegmentWrapper(model, 7)(ids, reset=starts), total, "documents")


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_saved_is_built(tmp_path, name):
    model = build(NETS[name])
    model.save(tmp_path)
    again = xflash.load(tmp_path).eval()
    assert again.to_config() == model.to_config()
    assert torch.equal(again(tokens(13)), model(tokens(13)))
    assert "num_memory_tokens=3, segment_len=5" in again.module_tree()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model.float().step(tokens(13))
        assert logits.isfinite().all() and model.step(tokens(13), state)[0].isfinite().all()


def test_a_sane_start():
    torch.manual_seed(0)
    net = TransformerWrapper(num_tokens=V, attn_layers=Decoder(dim=D, depth=6, heads=2, pos="rotary", attn_dim_head=10))
    model = RecurrentMemoryWrapper(net, T, L)
    seen = []
    for branch in net.attn_layers.branches:
        branch.register_forward_hook(lambda _m, _i, out: seen.append(out[0].square().mean().sqrt().item()))
    AutoregressiveWrapper(model)(tokens(12 * L + 1)).backward()
    assert max(seen) < 3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def other(**arguments):
    flags = {"dim": D, "heads": 2, "depth": 1, "pos": "rotary", **arguments.pop("flags", {})}
    stack = arguments.pop("stack", Decoder)(**flags)
    return TransformerWrapper(**{"num_tokens": V, "attn_layers": stack, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"net": torch.nn.Linear(2, 3)}, TypeError, "net must be a TransformerWrapper, not Linear"),
        ({"net": other(stack=Encoder)}, ValueError, r"a bidirectional stack \(Encoder\) has no state and no step"),
        (
            {"net": other(stack=Encoder, average_pool_embed=True)},
            ValueError,
            "a model with average_pool_embed=True has no step: its output is of the whole sequence",
        ),
        (
            {"net": other(flags={"layers": "attn cross_attn"})},
            ValueError,
            "memory tokens and a context exclude each other: segments after the first would not have it",
        ),
        (
            {"net": other(embed_num_tokens={"kind": 2})},
            ValueError,
            "memory tokens and embed_num_tokens exclude each other: a call has ids of tokens only",
        ),
        (
            {"net": other(max_mem_len=7)},
            ValueError,
            "num_memory_tokens and max_mem_len=7 exclude each other: only memory tokens cross",
        ),
        (
            {"net": learned(), "segment_len": L + 1},
            ValueError,
            "segment_len=6 is more than max_seq_len=5, the number of learned positions",
        ),
        ({"num_memory_tokens": 0}, ValueError, "num_memory_tokens must be at least 1, not 0"),
        ({"segment_len": 2.0}, TypeError, "segment_len must be a whole number, not 2.0"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        RecurrentMemoryWrapper(**{"net": rotary(), "num_memory_tokens": T, "segment_len": L, **arguments})


def test_wrong_calls():
    model, ids = build(), tokens(7)
    _, state = model.step(ids)
    _, inner = model.net.step(ids)
    for given, error, match in (
        ({"state": inner}, TypeError, "state must be what step.. gave, a RecurrentMemoryState, not ModelState"),
        ({"state": state.reorder(torch.tensor([0]))}, ValueError, "the state has 1 rows, but x has 3"),
        ({"state": build(flash).step(ids)[1]}, ValueError, "the state was made by another stack"),
        ({"state": build(number=2).step(ids)[1]}, ValueError, "the state has 2 memory tokens, but the model has 3"),
        ({"mask": torch.ones(3, 6)}, TypeError, "mask must be boolean"),
        ({"reset": torch.ones(2).bool(), "state": state}, ValueError, r"reset must be of shape \(3,\)"),
        ({"x": ids + V}, ValueError, "token ids must be from 0 to 30"),
    ):
        with pytest.raises(error, match=match):
            model.step(**{"x": ids, **given})
