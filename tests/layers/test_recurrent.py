"""Blocks that look back only, against their definitions token by token: windows, state vectors, compressed memory."""

import laws
import pytest
import torch
import torch.nn.functional as F

from xflash import Decoder
from xflash.layers.blocks.recurrent import Gate
from xflash.layers.projection import key_and_value

DIM, HEADS, WIDTH, W, S = 26, 2, 10, 5, 3
LENGTH = 23
SMALL = {"block_width": W, "dim_head": WIDTH}


def build(layers, **flags):
    torch.manual_seed(0)
    sizes = {
        f"{block}_{name}": v for block in ("block_attn", "recurrent") if block in layers for name, v in SMALL.items()
    }
    if "recurrent" in layers:
        sizes["recurrent_num_state_vectors"] = S
    return laws.live(Decoder(**{"dim": DIM, "depth": 1, "heads": HEADS, "layers": layers, **sizes, **flags}))


def heads(t, count):
    return t.unflatten(-1, (count, -1)).transpose(0, 1)


def softmax_by_hand(q, k, v, scale, cosine=None, mask=None, bias=None):
    """Of one row: (h, r, k) queries against (h, s, k) keys."""
    if cosine is not None:
        q, k = F.normalize(q, dim=-1) * cosine.q_gain, F.normalize(k, dim=-1) * cosine.k_gain
    scores = q @ k.mT * scale
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def window(i, sliding):
    """The tokens that token i sees."""
    return range(max(0, i - W + 1 if sliding else (i // W - 1) * W), i + 1)


def local_by_hand(block, x, sliding=False, kept=None):
    """What each token of one row reads from its window, `kept` tokens' worth of compressed entries in front."""
    h, kv = block.heads, block.kv_heads
    q = heads(block.to_q(x), h)
    k, v = (heads(t, kv).repeat_interleave(h // kv, 0) for t in key_and_value(block.key_value(x), kv))
    out = []
    for i in range(len(x)):
        seen = list(window(i, sliding))
        keys, values = k[:, seen], v[:, seen]
        if kept is not None:
            extra_k, extra_v = kept(i)
            keys, values = torch.cat((heads(extra_k, kv), keys), 1), torch.cat((heads(extra_v, kv), values), 1)
        out.append(softmax_by_hand(q[:, i : i + 1], keys, values, block.scale, block.cosine))
    return torch.cat(out)


@pytest.mark.parametrize("reach", ["blocks", "sliding"])
@pytest.mark.parametrize("flags", [{}, {"kv_heads": 1}, {"cosine": True}, {"flash": False}])
def test_block_attention(reach, flags):
    stack = build("block_attn", block_attn_reach=reach, **{f"block_attn_{k}": v for k, v in flags.items()})
    x = laws.sample(stack, LENGTH)
    (branch,) = stack.branches
    normed = branch.before(x)
    by_hand = torch.stack([branch.block.to_out(local_by_hand(branch.block, row, reach == "sliding")) for row in normed])
    laws.close(stack(x), stack.final_norm(x + by_hand), "block_attn")


@pytest.mark.parametrize("bias", [{"block_attn_rel_pos_bias": "t5"}, {"pos": "rel_pos"}, {"pos": "alibi"}])
def test_biases_count_distances(bias):
    """The same scores as softmax attention with a window has, where both see the same tokens."""
    stack = build("block_attn", block_attn_reach="sliding", **bias)
    x = laws.sample(stack, LENGTH)
    (branch,) = stack.branches
    block, normed = branch.block, branch.before(x)
    distance = torch.arange(1 - LENGTH, 1)
    if "pos" in bias:
        vector = stack.positions[bias["pos"]].by_distance(distance, HEADS, torch.float64)
    else:
        vector = block.rel_pos_bias(distance)
    rows = []
    for row in normed:
        q = heads(block.to_q(row), HEADS)
        k, v = (heads(t, HEADS) for t in key_and_value(block.key_value(row), HEADS))
        out = []
        for i in range(LENGTH):
            seen = list(window(i, True))
            at = vector[:, [j - i + LENGTH - 1 for j in seen]][:, None]
            out.append(softmax_by_hand(q[:, i : i + 1], k[:, seen], v[:, seen], block.scale, bias=at))
        rows.append(torch.cat(out))
    laws.close(stack(x), stack.final_norm(x + block.to_out(torch.stack(rows))), "bias")


def states_by_hand(block, x, normed):
    """The state vectors that each block of one row begins with, fixed gate, 'skip'."""
    h, kv = block.heads, block.kv_heads
    states = [block.start]
    k, v = key_and_value(block.key_value(normed), kv)
    for b in range(len(x) // W):
        named = block.state_norm(states[-1]) + block.names
        among_q, write_q = (heads(t, h) for t in block.state_to_q(named).chunk(2, -1))
        own_k, own_v = (
            heads(t, kv).repeat_interleave(h // kv, 0) for t in key_and_value(block.state_key_value(named), kv)
        )
        here = slice(b * W, (b + 1) * W)
        block_k, block_v = (heads(t[here], kv).repeat_interleave(h // kv, 0) for t in (k, v))
        among = softmax_by_hand(among_q, own_k, own_v, block.scale, block.state_cosines["among"])
        write = softmax_by_hand(write_q, block_k, block_v, block.scale, block.state_cosines["write"])
        z = block.gate.to_update(torch.cat((among, write), -1))
        g = block.gate.decay.sigmoid()
        states.append(states[-1] * g + z * (1 - g))
    return states


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_recurrent(kv_heads):
    """Window and states side by side; a block reads what the full blocks before it have left."""
    stack = build("recurrent", recurrent_kv_heads=kv_heads)
    x = laws.sample(stack, LENGTH)
    (branch,) = stack.branches
    block, outputs = branch.block, []
    for row in branch.before(x):
        states = states_by_hand(block, row, row)
        q = heads(block.to_state_q(row), block.heads)
        read = []
        for i in range(LENGTH):
            named = block.state_norm(states[i // W]) + block.names
            k, v = (
                heads(t, block.kv_heads).repeat_interleave(block.heads // block.kv_heads, 0)
                for t in key_and_value(block.state_key_value(named), block.kv_heads)
            )
            read.append(softmax_by_hand(q[:, i : i + 1], k, v, block.scale, block.state_cosines["read"]))
        outputs.append(block.to_out(torch.cat((local_by_hand(block, row), torch.cat(read)), -1)))
    laws.close(stack(x), stack.final_norm(x + torch.stack(outputs)), "recurrent")


@pytest.mark.parametrize("kind", ["mean", "max", "conv"])
def test_compressed_memory(kind):
    """What falls out of the window is kept, a few entries a block, for as many blocks as the flags say."""
    flags = {"compress": kind, "compress_factor": W, "compress_blocks": 2}
    stack = build("block_attn", **{f"block_attn_{k}": v for k, v in flags.items()})
    x = laws.sample(stack, 31)
    (branch,) = stack.branches
    block, outputs = branch.block, []
    for row in branch.before(x):
        k, v = key_and_value(block.key_value(row), HEADS)

        def kept(i, k=k, v=v):
            blocks = [b for b in (i // W - 3, i // W - 2) if b >= 0]
            if not blocks:
                return k[:0], v[:0]
            ks, vs = (torch.stack([t[b * W : (b + 1) * W] for b in blocks])[None] for t in (k, v))
            short_k, short_v = block.compressor(ks, vs)
            return short_k[0].flatten(0, 1), short_v[0].flatten(0, 1)

        outputs.append(block.to_out(local_by_hand(block, row, kept=kept)))
    laws.close(stack(x), stack.final_norm(x + torch.stack(outputs)), "compressed")


def test_compressors():
    from xflash.layers.blocks.compress import Compressor

    k, v = torch.randn(2, 1, 3, 4, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    for kind, by_hand in (("mean", lambda t: t.mean(3)), ("max", lambda t: t.amax(3))):
        short_k, short_v = Compressor(kind, 2, 1, 2, 6)(k, v)
        assert torch.equal(short_k, by_hand(k.unflatten(2, (2, 2)))) and short_v.shape == (1, 3, 2, 6)
    conv = Compressor("conv", 2, 1, 2, 6)
    weight, bias = conv.conv.weight, conv.conv.bias
    expected = torch.einsum("oif,fi->o", weight[:6], k[0, 0, :2]) + bias[:6]
    assert torch.allclose(conv(k, v)[0][0, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["fixed", "gru", "lstm"])
def test_gates(kind):
    gate = Gate(kind, 4, 3).double()
    states, h = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 4).double()
    parts = gate.to_update(h).split(3, -1)
    if kind == "fixed":
        g = gate.decay.sigmoid()
        expected = states * g + parts[0] * (1 - g)
    elif kind == "gru":
        g = (parts[1] + 1).sigmoid()
        expected = states * g + parts[0].tanh() * (1 - g)
    else:
        expected = states * (parts[2] + 1).sigmoid() + parts[0].tanh() * (parts[1] - 1).sigmoid()
    laws.close(gate(states, h), expected, kind)


def test_state_vectors_reach_far_and_gradients_reach_them():
    """A token of the first block moves logits fourteen blocks on; every parameter of the write path has a gradient."""
    stack = build("recurrent ff", depth=2)
    x = laws.sample(stack, 15 * W).requires_grad_()
    (grad,) = torch.autograd.grad(stack(x)[:, -1].square().sum(), x)
    assert grad[:, 0].abs().max() > 1e-9
    local = build("block_attn ff", depth=2)
    (grad,) = torch.autograd.grad(local(x)[:, -1].square().sum(), x)
    assert grad[:, 0].abs().max() == 0
    stack(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in stack.parameters())


def test_state_vectors_stay_apart():
    """After twenty blocks at the start the spread over vectors is a good part of their size."""
    torch.manual_seed(0)
    stack = Decoder(
        dim=256, depth=1, heads=4, layers="recurrent", recurrent_block_width=64, recurrent_num_state_vectors=32
    )
    with torch.no_grad():
        _, state = stack.step(torch.randn(2, 20 * 64, 256))
    vectors = state.branches[0].block.vectors
    spread = vectors.std(1).mean() / vectors.square().mean().sqrt()
    assert spread >= 0.15, f"{spread:.3f}"


def test_feedback_reads_what_the_blocks_before_have_left():
    """state_read below the recurrent layer: a change in one block shows in the tokens of the next, not in its own."""
    stack = build("state_read recurrent", state_read_dim_head=WIDTH)
    x = laws.sample(stack, 3 * W)
    other = x.clone()
    other[:, 1] += 1.0
    with torch.no_grad():
        reads = []
        hook = stack.branches[0].block.register_forward_hook(lambda _m, _i, out: reads.append(out[0]))
        stack(x), stack(other)
        hook.remove()
    before, after = torch.cat(reads[:3], 1), torch.cat(reads[3:], 1)
    same = (before == after).all(-1).all(0)
    assert same[:1].all() and same[2:W].all() and not same[W:].any()


@pytest.mark.parametrize(
    ("layers", "flags", "match"),
    [
        ("recurrent", {"recurrent_num_state_vectors": 0}, "recurrent_num_state_vectors must be at least 1, not 0"),
        ("recurrent", {"recurrent_block_width": 0}, "recurrent_block_width must be at least 1, not 0"),
        ("recurrent", {"recurrent_gate": "lstn"}, "recurrent_gate='lstn' is not one of .*; did you mean 'lstm'"),
        ("recurrent", {"recurrent_kv_heads": 3}, "recurrent_kv_heads=3 does not divide the 2 heads"),
        ("recurrent", {"recurrent_read_layer": 5}, "recurrent_read_layer=5, but the stack has 1 layers"),
        ("ff recurrent", {"recurrent_read_layer": 1}, "is a layer of 'ff', which cannot read state vectors"),
        (
            "state_read(source=2) recurrent",
            {},
            "state vectors of recurrent layer 2 are to be read, but the layout .* has 1",
        ),
    ],
)
def test_wrong_flags(layers, flags, match):
    with pytest.raises(ValueError, match=match):
        build(layers, **flags)


def test_a_mask_of_tokens_is_refused():
    stack = build("recurrent")
    x = laws.sample(stack, 6)
    with pytest.raises(ValueError, match="cannot honour attn_mask"):
        stack(x, attn_mask=torch.ones(6, 6).bool())
