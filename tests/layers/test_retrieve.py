"""Top-k attention to a long memory: the layer against its definition, pieces, bounds, and what it is good for."""

import copy
import itertools
import math

import laws
import pytest
import torch
import torch.nn.functional as F
from graphs import Graphs
from test_recurrent import HEADS, LENGTH, W, build, heads, local_by_hand

import xflash.layers.blocks.retrieve as module
import xflash.layers.kernels.retrieval as kernel
from xflash import Decoder
from xflash.base.state import tensors
from xflash.layers.projection import key_and_value


@pytest.fixture
def tiny(monkeypatch):
    """Pieces of one block, tiles of a few queries and scores."""
    monkeypatch.setattr(module, "PIECE", W)
    monkeypatch.setattr(kernel, "TILE", 60)
    monkeypatch.setattr(kernel, "SPAN", 2 * W)


def retrieved_by_hand(block, x, count, reach):
    """What each token of one row retrieves: the best by score of the blocks before its window, un-rotated."""
    h, kv = block.heads, block.kv_heads
    q = heads(block.to_q(x), h)
    k, v = (heads(t, kv).repeat_interleave(h // kv, 0) for t in key_and_value(block.key_value(x), kv))
    if block.cosine is not None:
        q, k = F.normalize(q, dim=-1) * block.cosine.q_gain, F.normalize(k, dim=-1) * block.cosine.k_gain
    out = []
    for i in range(len(x)):
        seen = list(range(max(0, i // W - 1 - reach) * W, max(0, i // W - 1) * W))
        read = []
        for head in range(h):
            found = sorted(((q[head, i] @ k[head, j]).item(), j) for j in seen)[-count:]
            weights = torch.tensor([s * block.scale for s, _ in found], dtype=x.dtype).softmax(0)
            values = [w * v[head, j] for w, (_, j) in zip(weights, found, strict=True)]
            read.append(sum(values, torch.zeros_like(v[head, 0])))
        out.append(torch.cat(read))
    return torch.stack(out)


@pytest.mark.parametrize("flags", [{}, {"kv_heads": 1}, {"cosine": True, "cosine_scale": 3.0}])
@pytest.mark.parametrize("reach", [1, 3])
def test_layer(flags, reach):
    """Beside its window a token reads the best of the last blocks that fell out of it, whatever the positions are."""
    flags = {**flags, "retrieve": 3, "retrieve_len": reach * W}
    stack = build("block_attn", **{f"block_attn_{k}": v for k, v in flags.items()})
    x = laws.sample(stack, 37)
    (branch,) = stack.branches
    block, outputs = branch.block, []
    with torch.no_grad():
        for row in branch.before(x):
            read = retrieved_by_hand(block, row, 3, reach)
            assert (read[: 2 * W] == 0).all() and (read[2 * W :] != 0).any(1).all()
            outputs.append(block.to_out(torch.cat((local_by_hand(block, row), read), -1)))
        laws.close(stack(x), stack.final_norm(x + torch.stack(outputs)), "retrieve")


CASES = {
    "many pieces": {"layers": "block_attn", "block_attn_retrieve": 2, "block_attn_retrieve_len": 3 * W},
    "recurrent": {
        "layers": "recurrent",
        "recurrent_retrieve": 2,
        "recurrent_retrieve_len": 2 * W,
        "recurrent_kv_heads": 1,
        "num_memory_tokens": 3 * W + 1,
    },
    "beside others": {"layers": "flash block_attn attn", "block_attn_retrieve": 4, "flash_group_size": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_laws_with_many_pieces(tiny, flags, tmp_path):
    stack = build(**{"block_attn_cosine": True, **flags} if "block_attn" in flags["layers"] else flags)
    laws.causal(stack)
    laws.chunk(stack, n=31, cuts=(4, 11, 20, 26), grads=(False,))
    laws.chunk(stack, n=31, cuts=(15,), grads=(True,))
    laws.ragged(stack, n=37, grads=(False,))
    laws.state_is_a_value(stack, n=21)
    laws.padding(stack)
    laws.saved_as_built(stack, tmp_path, n=21)


@pytest.mark.slow
def test_compiles():
    """7: one graph for a step of rows at different places, which retrieve from the state and from the step itself."""
    stack = build("block_attn", block_attn_retrieve=2, block_attn_retrieve_len=2 * W)
    x = laws.sample(stack, LENGTH)
    step = torch.compile(stack.step, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        _, state = stack.step(x, mask=torch.arange(LENGTH) < torch.tensor([[LENGTH], [4], [11]]))
        (ours, after), (expected, then) = step(x[:, : 2 * W], state), stack.step(x[:, : 2 * W], state)
        laws.close(ours, expected, "compiled step")
        laws.close(stack.step(x, after)[0], stack.step(x, then)[0], "state of a compiled step")


@pytest.mark.slow
def test_few_graphs_for_all_lengths():
    """7: the blocks of a piece of the memory are one case; none to retrieve from is another, as is one block."""
    stack, graphs = build("block_attn", block_attn_retrieve=2), Graphs("eager")
    fast = torch.compile(stack, fullgraph=True, dynamic=True, backend=graphs)
    with torch.no_grad():
        for n in (7, 8, 11, 13, 16, 5, 21, 3, 25, 30, 17, 18, 10, 29, 12, 6, 9, 14, 15, 19):
            x = laws.sample(stack, n)
            laws.close(fast(x), stack(x), f"compiled at {n}")
    assert 1 <= len(graphs.ran) <= 3


def test_rows_far_apart_share_one_memory(tiny):
    """Rows whose rings have turned differently often, one of them reset."""
    stack = build("block_attn", block_attn_retrieve=2, block_attn_retrieve_len=2 * W)
    x = laws.sample(stack, 60)
    with torch.no_grad():
        _, state = stack.step(x[:, :21], mask=torch.arange(21) < torch.tensor([[21], [4], [11]]))
        y, state = stack.step(x[:, 21:], state, reset=torch.tensor([True, False, False]))
        laws.close(y[0], stack(x[:1, 21:])[0], "reset")
        laws.close(y[1], stack(torch.cat((x[1:2, :4], x[1:2, 21:]), 1))[0, 4:], "row behind")


def sizes(state):
    (block,) = [b.block for b in state.branches]
    return [t.shape[2] for t in block.memory.k]


def test_pieces_are_bounded_and_kept(tiny, monkeypatch):
    """The memory grows piece by piece up to its length; a full piece is the same tensor in the states after it."""
    monkeypatch.setattr(module, "PIECE", 2 * W)
    stack = build("block_attn", block_attn_retrieve=2, block_attn_retrieve_len=5 * W)
    x = laws.sample(stack, 15 * W)
    states, state = [], None
    with torch.no_grad():
        for token in x.split(1, 1):
            _, state = stack.step(token, state)
            states.append(state)
    # Block 0 falls out of the window when block 1 is full; five blocks are held, two a piece.
    assert sizes(states[2 * W - 2]) == [] and sizes(states[2 * W - 1]) == [2 * W]
    assert sizes(states[4 * W - 1]) == [2 * W] * 2 and sizes(states[-1]) == [2 * W, 2 * W, W]
    first = [s.branches[0].block.memory.k[0] for s in states[2 * W - 1 :]]
    changes = [at for at, (a, b) in enumerate(itertools.pairwise(first)) if a is not b]
    # Blocks 1, 5, 6, 10 and 11 go into it after block 0.
    assert changes == [5 * i - 1 for i in (1, 5, 6, 10, 11)]
    spread = sum(t.numel() for t in tensors(state))
    _, again = stack.step(x, state)
    assert sum(t.numel() for t in tensors(again)) == spread


def test_default_length():
    for width, blocks in ((512, 489), (W, 50_000)):
        stack = build("block_attn", block_attn_retrieve=1, block_attn_block_width=width)
        assert stack.branches[0].block.retriever.blocks == blocks


def test_a_planted_pair_is_found():
    """A value far beyond the window is read by its key; the window alone cannot know it."""
    width = 8
    key, value, other = F.normalize(torch.randn(3, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    x = torch.randn(2, 40 * W + 1, 2 * width, generator=torch.Generator().manual_seed(1))
    x[:, 11] = torch.cat((key, value)) * 4
    x[1] = x[0]
    x[1, 11, width:] = other * 4
    x[:, -1] = torch.cat((key, torch.zeros(width)))
    answers = {}
    for found in (None, 1):
        stack = Decoder(
            dim=2 * width,
            depth=1,
            heads=1,
            layers="block_attn",
            norm="simple_rmsnorm",
            final_norm=False,
            block_attn_block_width=W,
            block_attn_dim_head=width,
            block_attn_cosine=True,
            block_attn_retrieve=found,
        )
        block = stack.branches[0].block
        eye = torch.eye(width)
        with torch.no_grad():
            block.to_q.weight.copy_(torch.cat((eye, 0 * eye), 1))
            block.key_value.weight.copy_(torch.block_diag(eye, eye))
            block.to_out.weight.zero_()[width:, -width:] = eye
            _, state = stack.step(x[:, :-1])
            answers[found] = stack.step(x[:, -1:], state)[0][:, 0, width:]
    expected = torch.stack((value, other))
    assert (F.cosine_similarity(answers[1], expected) > 0.999).all()
    assert torch.equal(answers[None][0], answers[None][1])


def test_gradients_reach_what_was_retrieved_until_detached():
    stack = build("block_attn", block_attn_retrieve=2)
    x = laws.sample(stack, LENGTH)
    first = x.clone().requires_grad_()
    _, state = stack.step(first)
    _, held = stack.step(laws.sample(stack, 3 * W, seed=4), state)
    (grad,) = torch.autograd.grad(stack.step(x[:, :1], held)[0].sum(), first, retain_graph=True)
    assert grad[:, :W].abs().max() > 0
    y = stack.step(x[:, :1], held.detach())[0]
    assert torch.autograd.grad(y.sum(), first, allow_unused=True) == (None,)


def test_dropout_and_half_precision():
    stack = build("recurrent flash attn", recurrent_retrieve=3, recurrent_dropout=0.5).float()
    x = laws.sample(stack, LENGTH).float()
    assert torch.equal(stack(x), stack(x))
    stack.train()
    assert not torch.equal(stack(x), stack(x))
    stack.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = stack.step(x)
        later, _ = stack.step(x, state)
        (y.sum() + later.sum()).backward()
    assert later.isfinite().all() and all(p.grad.isfinite().all() for p in stack.parameters() if p.grad is not None)
    block = state.branches[0].block
    assert {t.dtype for t in (*block.window.memory.k, *block.window.memory.v)} == {torch.bfloat16}
    # A state of another precision is read in that of the call.
    full, _ = stack.step(x, state.to(torch.float32))
    assert (full - later.float()).abs().max() < 0.2
    copied = copy.deepcopy(state)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(tensors(copied), tensors(state), strict=True))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"retrieve_len": 10}, "block_attn_retrieve_len=10 is set, but block_attn_retrieve is None"),
        ({"retrieve": 2, "retrieve_len": 12}, "retrieve_len=12 is no multiple of block_attn_block_width=5"),
        ({"retrieve": 0}, "block_attn_retrieve must be at least 1, not 0"),
    ],
)
def test_wrong_flags(flags, match):
    with pytest.raises(ValueError, match=match):
        build("block_attn", **{f"block_attn_{k}": v for k, v in flags.items()})


def test_heads_are_those_of_the_layer():
    stack = build("block_attn", block_attn_retrieve=1)
    plain = build("block_attn")
    inner = HEADS * 10
    assert stack.branches[0].block.to_out.in_features == plain.branches[0].block.to_out.in_features + inner
    assert math.prod(stack.branches[0].block.to_q.weight.shape) == math.prod(plain.branches[0].block.to_q.weight.shape)


def test_a_gpu_is_waited_for_once_a_call_at_most(tiny, monkeypatch):
    """Nothing of a device is looked at but, for all layers at once, whether a block of some row closes."""
    stack = laws.live(build("block_attn", block_attn_retrieve=2, depth=3))
    ends, looks = torch.tensor([[5 * W - 1], [4 * W], [4 * W + 1]]), []
    x = laws.sample(stack, 5 * W)
    with torch.no_grad():
        _, before = stack.step(x, None, torch.arange(5 * W) < ends)
        expected, known = stack.step(x[:, :1], before)
        with monkeypatch.context() as patch:
            # What a GPU says when it is asked whether a look would be free.
            patch.setattr(kernel, "may_look", lambda t: False)
            patch.setattr(module, "looked", lambda fresh: looks.append(fresh) or fresh.any(0).tolist())
            got, after = stack.step(x[:, :1], before)
    laws.close(got, expected, "without a look")
    for a, b in zip(tensors(after), tensors(known), strict=True):
        laws.close(a, b, "the memory")
    assert len(looks) == 1, "a look a layer"
