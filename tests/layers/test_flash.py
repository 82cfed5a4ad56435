import math

import laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xflash import Decoder, Encoder
from xflash.base.relay import Relay
from xflash.base.state import Ctx, tensors
from xflash.layers.blocks.flash import FlashState, MixedChunkAttention
from xflash.layers.site import Site

DIM, W, WIDTH, BATCH = 13, 5, 6, 3

SETTINGS = {
    "default": {},
    "outside": {"flash_normaliser_place": "outside", "flash_rel_pos_bias": "toeplitz", "flash_bias": True},
    "laplace": {"flash_attn_fn": "laplace", "flash_rel_pos_bias": None, "flash_global_normaliser": "sum"},
    "softmax": {"flash_attn_fn": "softmax", "flash_offset": False, "pos": "rotary"},
    "rotary, shift": {"pos": "rotary", "rotary_emb_dim": 4, "shift_tokens": 1, "shift_style": "first_half"},
    "memory": {"num_memory_tokens": 3, "flash_gamma_init": "normal"},
    "group of one": {"flash_group_size": 1},
}
CAUSAL_ONLY = {"xpos": {"pos": "rotary", "rotary_xpos": True, "rotary_xpos_scale_base": 64.0}}
BIDIRECTIONAL_ONLY = {"own group": {"flash_global_scope": "group"}}


def build(causal=True, depth=2, **flags):
    torch.manual_seed(0)
    sizes = {"dim": DIM, "depth": depth, "flash_group_size": W, "flash_query_key_dim": WIDTH}
    return laws.live((Decoder if causal else Encoder)(**{**sizes, "layers": "flash", **flags}))


def block(causal=True, dim=DIM, **flags):
    torch.manual_seed(0)
    config = MixedChunkAttention.Config(**{"group_size": W, "query_key_dim": WIDTH, **flags})
    return laws.live(MixedChunkAttention(config, Site(dim, 1, causal)))


def context(n, **fields):
    return Ctx(0, None, None, torch.arange(n)[None], **fields)


def tokens(n, seed=1, dim=DIM):
    return torch.randn(BATCH, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("setting", SETTINGS | CAUSAL_ONLY)
def test_laws_causal(setting, tmp_path):
    laws.all_laws(build(**(SETTINGS | CAUSAL_ONLY)[setting]), tmp_path, cuts=(1, 4, 5, 6, 10, 16))


@pytest.mark.parametrize("setting", SETTINGS | BIDIRECTIONAL_ONLY)
def test_laws_bidirectional(setting, tmp_path):
    laws.all_laws(build(False, **(SETTINGS | BIDIRECTIONAL_ONLY)[setting]), tmp_path)


def test_every_cut_to_the_last_digits():
    stack, x = build(), tokens(23)
    with torch.no_grad():
        whole = stack(x)
        for i in range(1, 23):
            head, state = stack.step(x[:, :i])
            gap = (torch.cat((head, stack.step(x[:, i:], state)[0]), 1) - whole).abs().max()
            assert gap <= 1e-12, f"cut at {i}"


@pytest.mark.parametrize("masked", [False, True], ids=["uniform", "ragged"])
def test_an_older_state_stays_what_it_was_however_far_the_newest_went(masked):
    """The newest state fills the same buffers, closes the group and opens others; nothing of it may show."""
    stack, x, after = build(), tokens(W + 2), tokens(4, seed=2)
    mask = torch.ones(BATCH, W + 2, dtype=torch.bool)
    mask[1, 3:] = mask[2, 1:] = False
    with torch.no_grad():
        _, old = stack.step(x, None, mask if masked else None)
        expected, _ = stack.step(after, old)
        kept = [t.clone() for t in tensors(old)]
        state = old
        for seed in range(3 * W):
            _, state = stack.step(tokens(1, seed=seed), state)
        torch.testing.assert_close(stack.step(after, old)[0], expected, rtol=0, atol=1e-12)
        again = old
        for i in range(4):
            y, again = stack.step(after[:, i : i + 1], again)
            torch.testing.assert_close(y, expected[:, i : i + 1], rtol=0, atol=1e-12)
        filled = [b.block.keys[0, 0] for b in old.branches]
        assert all(torch.equal(a, b.block.keys[0, 0]) for a, b in zip(filled, old.branches, strict=True))
        for before, now in zip(kept[:2], tensors(old)[:2], strict=True):
            assert torch.equal(before, now)


def test_the_state_has_the_same_size_after_any_number_of_tokens():
    stack = build(depth=1)
    _, state = stack.step(tokens(2))
    shapes = [t.shape for t in tensors(state)]
    assert isinstance(state.branches[0].block, FlashState)
    for n in (1, 7, 40):
        _, state = stack.step(tokens(n), state)
        assert [t.shape for t in tensors(state)] == shapes


@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_row_without_new_tokens_keeps_its_state_bit_for_bit(n):
    stack = build()
    mask = torch.tensor([[True] * 8, [True] * 3 + [False] * 5, [False] * 8])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            _, state = stack.step(tokens(8), None, mask)
            before = [t[1:].clone() for t in tensors(state.branches)]
            _, after = stack.step(tokens(n), state, torch.tensor([[True], [False], [False]]).expand(-1, n))
            assert all(torch.equal(a, b[1:]) for a, b in zip(before, tensors(after.branches), strict=True))


DOCUMENTS = [[1] * 17, [7, 1, 9], [5, 10, 2]]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("most", [None, 20])
def test_packed_documents(causal, most):
    """Each document as if alone, rows padded on the left included; gradients stay inside a document."""
    stack = build(causal, pos="rotary", shift_tokens=1, flash_max_documents=most)
    x = tokens(17)
    ids = torch.stack([torch.arange(len(d)).repeat_interleave(torch.tensor(d)) for d in DOCUMENTS])
    pad = torch.zeros(BATCH, 4, dtype=torch.long)
    mask = torch.cat((pad, pad[:, :1].expand(-1, 17) + 1), 1).bool()
    wide = torch.cat((tokens(4, seed=9), x), 1)
    for y in (stack(x, doc_ids=ids), stack(wide, mask, doc_ids=torch.cat((pad + 5, ids), 1))[:, 4:]):
        for row, sizes in enumerate(DOCUMENTS):
            parts = [stack(part)[0] for part in x[row : row + 1].split(sizes, 1)]
            torch.testing.assert_close(y[row], torch.cat(parts), rtol=0, atol=1e-12)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(stack(x, doc_ids=ids)[1, 7].square().sum(), x)
    assert grad.abs().sum(-1).nonzero().tolist() == [[1, 7]]


def appendix(x, m: MixedChunkAttention, causal: bool):
    """The paper's appendix in the paper's letters, for lengths that C divides: no line of it is shared with xflash."""
    s, e, c = m.gamma.shape[1], m.to_out.in_features, m.config.group_size
    b, n, _ = x.shape
    g = n // c
    u, v, base = F.silu(x @ m.to_hidden.weight.T + m.to_hidden.bias).split((e, e, s), -1)
    angle = torch.arange(n, dtype=x.dtype)[:, None] * 10000.0 ** (-torch.arange(s // 2, dtype=x.dtype) / (s // 2))

    def rope(t):
        x1, x2 = t.chunk(2, -1)
        return torch.cat((x1 * angle.cos() - x2 * angle.sin(), x2 * angle.cos() + x1 * angle.sin()), -1)

    quad_q, lin_q, quad_k, lin_k = (rope(base * m.gamma[i] + m.beta[i]).view(b, g, c, s) for i in (0, 1, 2, 3))
    v, u = v.view(b, g, c, e), u.view(b, g, c, e)
    w = m.rel_pos_bias.weight[0]
    bias = torch.stack([torch.stack([w[j - i + c - 1] for j in range(c)]) for i in range(c)])
    kernel = torch.einsum("bgns,bgms->bgnm", quad_q, quad_k) / c + bias
    kernel = kernel.relu() ** 2 * (torch.ones(c, c).tril() if causal else 1)
    mix = torch.ones(g, g, dtype=x.dtype).tril(-1) if causal else torch.ones(g, g, dtype=x.dtype)
    mix = mix / mix.sum(-1, keepdim=True).clamp(min=1)
    lin_kv = torch.einsum("bhks,bhke,gh->bgse", lin_k, v, mix) / c
    y = u * (kernel @ v + torch.einsum("bgns,bgse->bgne", lin_q, lin_kv))
    return y.reshape(b, n, e) @ m.to_out.weight.T + m.to_out.bias


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_papers_appendix(causal):
    paper = {
        "flash_rel_pos_bias": "toeplitz",
        "flash_gamma_init": "normal",
        "flash_bias": True,
        "flash_normaliser_place": "content",
        "flash_global_normaliser": "mean",
        "pos": "rotary",
    }
    stack = build(causal, depth=1, norm="scalenorm", final_norm=False, **paper)
    (branch,), x = stack.branches, tokens(20)
    with torch.no_grad():
        branch.block.rel_pos_bias.weight.mul_(20)
        branch.block.gamma.add_(0.8)
    # The rotary frequencies are float32, as published models have them.
    torch.testing.assert_close(stack(x), x + appendix(branch.before(x), branch.block, causal), rtol=0, atol=1e-8)


def test_mean_sum_and_padded_length():
    """With the local part switched off what is left is linear: far_q times a sum over something."""
    x, n = tokens(12), 12
    for name, causal in (("mean", True), ("sum", True), ("mean", False), ("sum", False), ("padded_length", False)):
        m = block(causal, global_normaliser=name, rel_pos_bias=None)
        with torch.no_grad():
            m.gamma[0] = m.beta[0] = 0
        gate, t = m.project(m.to_hidden(x), context(n))
        for i in (3, 7, 11):
            seen = i // W * W if causal else n
            tokens_summed = {"mean": max(seen, 1), "sum": W, "padded_length": n}[name]
            total = torch.einsum("bk,bjk,bje->be", t.far_q[:, i], t.far_k[:, :seen], t.v[:, :seen]) / tokens_summed
            torch.testing.assert_close(m(x, context(n))[0][:, i], m.to_out(gate[:, i] * total), rtol=0, atol=1e-12)


def test_the_padded_length_is_counted_with_its_padding():
    stack, x = build(False, flash_global_normaliser="padded_length"), tokens(9)
    mask = torch.ones(BATCH, 14, dtype=torch.bool)
    mask[:, 9:] = False
    padded = stack(F.pad(x, (0, 0, 0, 5)), mask)[:, :9]
    assert (padded - stack(x)).abs().max() > 1e-4


def test_dropout_is_of_the_local_weights_and_only_in_training():
    m, x = block(dropout=1 - 1e-9), tokens(12)
    gate, t = m.project(m.to_hidden(x), context(12))
    whole = m(x, context(12))[0]
    far_only = m.train()(x, context(12))[0]
    total = torch.einsum("bk,bjk,bje->be", t.far_q[:, 11], t.far_k[:, :10], t.v[:, :10]) / 10
    torch.testing.assert_close(far_only[:, 11], m.to_out(gate[:, 11] * total), rtol=0, atol=1e-12)
    assert (whole - far_only).abs().max() > 1e-4
    assert torch.equal(m.eval()(x, context(12))[0], whole)


def test_starts():
    torch.manual_seed(0)
    m = MixedChunkAttention(MixedChunkAttention.Config(bias=True), Site(32, 1, True, branches=4))
    assert m.to_hidden.weight.shape == (2 * 64 + 128, 32)
    assert torch.equal(m.gamma, torch.ones(4, 128)) and torch.equal(m.beta, torch.zeros(4, 128))
    assert m.rel_pos_bias.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert m.to_out.bias.count_nonzero() == 0
    assert m.to_out.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.1)
    normal = MixedChunkAttention(MixedChunkAttention.Config(gamma_init="normal", offset=False), Site(32, 1, True))
    assert normal.gamma.std().item() == pytest.approx(0.02, rel=0.2) and normal.beta is None
    assert MixedChunkAttention(MixedChunkAttention.Config(expansion_factor=1.5), Site(32, 1, True)).widths[0] == 48


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_sane_start_of_twelve_layers(causal):
    for name in ("relu2", "softmax", "laplace"):
        laws.sane_start(build_fresh(causal, flash_attn_fn=name), n=131)
    laws.sane_start(build_fresh(causal, flash_normaliser_place="outside"), n=131)


def build_fresh(causal, **flags):
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 12, "flash_group_size": 16, "flash_query_key_dim": 16}
    return (Decoder if causal else Encoder)(layers="flash", **sizes, **flags)


def test_sums_are_float32_in_a_bfloat16_model():
    stack = build(depth=1).bfloat16()
    _, state = stack.step(tokens(12).bfloat16())
    _, state = stack.step(tokens(1).bfloat16(), state)
    inner = state.branches[0].block
    assert inner.closed.dtype == torch.float32
    assert inner.keys.dtype == inner.values.dtype == torch.bfloat16


def test_bfloat16_prefill_and_steps_agree_over_many_groups():
    stack, x = build(depth=1, flash_group_size=2).bfloat16(), tokens(600).bfloat16()
    with torch.no_grad():
        whole = stack(x).double()
        one_by_one = laws.steps(stack, x, [1] * 600)[0].double()
    assert (whole - one_by_one).abs().max() <= 0.02 * whole.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    stack, x = build().float(), tokens(33).float()
    expected = stack(x)
    with torch.autocast("cpu", dtype):
        y = stack(x)
        y.sum().backward()
        with torch.no_grad():
            pieces = laws.steps(stack, x, [12, 1, 1, 19])[0]
    assert (y - expected).abs().max() < 0.03 * expected.abs().max()
    assert (pieces - expected).abs().max() < 0.03 * expected.abs().max()


class Graphs:
    """A compiler backend that counts its graphs and runs them as they are."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph: nn.Module, _inputs):
        self.count += 1
        return graph


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_twelve_lengths_with_a_mask_compile_three_graphs_at_most(causal):
    torch._dynamo.reset()
    stack, graphs = build(causal, depth=1, pos="rotary"), Graphs()
    compiled = torch.compile(stack, fullgraph=True, backend=graphs)
    for n in (12, 16, 17, 20, 31, 15, 3, 5, 4, 6, 40, 10):
        x = tokens(n)
        mask = torch.arange(n) < torch.tensor([[n], [n - 2], [1]])
        torch.testing.assert_close(compiled(x, mask), stack(x, mask), rtol=0, atol=1e-12)
    assert graphs.count <= 3


@pytest.mark.slow
def test_documents_compile_with_a_most():
    torch._dynamo.reset()
    stack, graphs = build(depth=1, flash_max_documents=4), Graphs()
    compiled = torch.compile(stack, fullgraph=True, backend=graphs)
    for n in (12, 16, 17, 20):
        ids = torch.arange(n).expand(BATCH, -1) // 7
        torch.testing.assert_close(compiled(tokens(n), doc_ids=ids), stack(tokens(n), doc_ids=ids), rtol=0, atol=1e-12)
    assert graphs.count <= 3


@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("sizes", [(1,) * 13, (2, 3, 7, 4, 6, 5, 9, 8)], ids=["tokens", "pieces"])
def test_a_compiled_step_serves_every_position(sizes, ragged):
    torch._dynamo.reset()
    m, graphs, x = block(), Graphs(), tokens(60)

    def step(x, state, past, length):
        where = past + torch.arange(x.shape[1])[None] if length is None else length[:, None] + torch.arange(x.shape[1])
        return m(x, Ctx(past, length, None, where, keep_state=True, relay=Relay()), state)

    compiled = torch.compile(step, fullgraph=True, backend=graphs)
    with torch.no_grad():
        _, state = m(x[:, :8], context(8, keep_state=True))
        past, length = 8, torch.full((BATCH,), 8) if ragged else None
        for n in sizes:
            part = x[:, past : past + n]
            y, following = compiled(part, state, past, length)
            torch.testing.assert_close(y, step(part, state, past, length)[0], rtol=0, atol=1e-12)
            past, state, length = past + n, following, None if length is None else length + n
    assert graphs.count <= 3


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_exports_with_a_dynamic_length(causal):
    stack = build(causal, pos="rotary")
    length = torch.export.Dim("n", min=2, max=512)
    mask = torch.ones(BATCH, 12, dtype=torch.bool)
    exported = torch.export.export(stack, (tokens(12), mask), dynamic_shapes=({1: length}, {1: length})).module()
    for n in (2, 5, 10, 37):
        mask = torch.arange(n) < torch.tensor([[n], [2], [0]])
        torch.testing.assert_close(exported(tokens(n), mask), stack(tokens(n), mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("causal", "flags", "message"),
    [
        (True, {"flash_group_size": 0}, "flash_group_size must be at least 1, not 0"),
        (True, {"flash_query_key_dim": 0}, "flash_query_key_dim must be at least 1"),
        (
            True,
            {"flash_expansion_factor": 0.01},
            "flash_expansion_factor=0.01 with dim=13 makes 0.13 channels",
        ),
        (True, {"flash_attn_fn": "relu3"}, "flash_attn_fn='relu3' is not one of .*; did you mean 'relu2'"),
        (True, {"flash_global_normaliser": "padded_length"}, "padded_length' with causal=True: a token would depend"),
        (True, {"flash_global_scope": "group"}, "flash_global_scope='group' with causal=True"),
        (
            False,
            {"flash_attn_fn": "softmax", "flash_normaliser_place": "outside"},
            "flash_normaliser_place='outside' is set, but flash_attn_fn='softmax' has no normaliser",
        ),
        (True, {"pos": "alibi"}, "pos has 'alibi', but no block of the layout 'flash' can use it"),
    ],
)
def test_settings_that_are_refused(causal, flags, message):
    with pytest.raises(ValueError, match=message):
        build(causal, **flags)


def test_calls_that_are_refused():
    ids = torch.zeros(BATCH, 7, dtype=torch.long)
    with pytest.raises(ValueError, match="doc_ids cannot be carried in a state"):
        block()(tokens(7), context(7, beside={"doc_ids": ids}, keep_state=True))
    with pytest.raises(ValueError, match="documents would not be independent"):
        build(False, flash_global_normaliser="padded_length")(tokens(7), doc_ids=ids)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="need flash_max_documents"):
        torch.compile(build(), fullgraph=True, backend="eager")(tokens(7), doc_ids=ids)
    reason = block(False, global_normaliser="padded_length").refuses_step()
    assert reason == "flash_global_normaliser='padded_length' divides by the length of each call"
