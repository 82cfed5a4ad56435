"""cross_attn and cross_gau: what they compute, and what becomes of the context in padding, states and maps."""

import copy
from dataclasses import replace

import laws
import pytest
import torch
import torch.nn.functional as F

from xflash import AttentionLayers, AutoregressiveWrapper, CrossAttender, Decoder, Encoder, TransformerWrapper
from xflash.base.state import Ctx
from xflash.layers.blocks.block import Site
from xflash.layers.blocks.cross_attention import CrossAttention
from xflash.layers.blocks.cross_gau import CrossGatedAttention
from xflash.layers.kernels.gated import laplace

DIM, OUTSIDE, HEADS, BATCH, N, C = 26, 22, 2, 3, 11, 7
CTX = Ctx(0, None, None, torch.arange(N)[None])
BLOCKS = {
    "cross_attn": {"cross_attn_dim_head": 6},
    "cross_gau": {"cross_gau_query_key_dim": 10},
}
SETTINGS = {
    "cross_attn": ("cross_attn", {}),
    "cross_attn, shared heads": ("cross_attn", {"cross_attn_kv_heads": 1, "cross_attn_qk_norm": True}),
    "cross_attn, gates": ("cross_attn", {"cross_attn_gate_values": True, "cross_attn_head_scale": True}),
    "cross_gau": ("cross_gau", {}),
    "cross_gau, relu2": ("cross_gau", {"cross_gau_attn_fn": "relu2"}),
    "cross_gau, laplace": ("cross_gau", {"cross_gau_attn_fn": "laplace", "cross_gau_heads": 2}),
    "cross_gau, row_sum": ("cross_gau", {"cross_gau_attn_fn": "relu2", "cross_gau_normaliser": "row_sum"}),
    "cross_gau, softmax_plus": ("cross_gau", {"cross_gau_attn_fn": "softmax_plus"}),
    "cross_gau, fixed": (
        "cross_gau",
        {"cross_gau_attn_fn": "relu2", "cross_gau_normaliser": "fixed", "cross_gau_fixed_length": 19},
    ),
}
every_block = pytest.mark.parametrize("block", BLOCKS)
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def stack(block="cross_attn", cls=Decoder, layers="{} ff", outside=False, **flags):
    torch.manual_seed(0)
    own = {f"{block}_dim_context": OUTSIDE} if outside else {}
    small = {"attn_dim_head": 6} if "attn" in layers.split() else {}
    flags = {"dim": DIM, "depth": 2, "heads": HEADS, **BLOCKS[block], **small, **own, **flags}
    return laws.live(cls(layers=layers.format(block), **flags))


def draw(n, width, seed):
    return torch.randn(BATCH, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(n=N):
    return draw(n, DIM, 1)


def source(width=DIM, c=C):
    return draw(c, width, 2)


def context_masks():
    """Padded to the right, to the left, with holes; a row whose context is all padding in each."""
    right = torch.arange(C) < torch.tensor([[C], [3], [0]])
    holes = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0], [0] * 7]).bool()
    return {"right": right, "left": right.flip(1), "holes": holes}


@every_setting
def test_rows_have_contexts_of_their_own(setting):
    block, flags = SETTINGS[setting]
    net, x, context = stack(block, outside=True, **flags), tokens(), source(OUTSIDE)
    y = net(x, context=context)
    order = torch.tensor([2, 0, 1])
    laws.close(net(x[order], context=context[order]), y[order], "permuted together")
    for row in range(BATCH):
        laws.close(net(x[row : row + 1], context=context[row : row + 1])[0], y[row], f"row {row} alone")
    assert (net(x, context=context.flip(0)) - y)[0].abs().max() > 1e-6
    shuffled = torch.randperm(C, generator=torch.Generator().manual_seed(3))
    laws.close(net(x, context=context[:, shuffled]), y, "a context without positions is a set")


@pytest.mark.parametrize("grad", [True, False])
@every_setting
def test_a_padded_context_equals_the_unpadded_one(setting, grad):
    block, flags = SETTINGS[setting]
    net, x, context = stack(block, **flags), tokens(), source()
    with torch.set_grad_enabled(grad):
        for name, mask in context_masks().items():
            poisoned = context.masked_fill(~mask[..., None], float("nan"))
            y = net(x, context=poisoned, context_mask=mask)
            for row in range(BATCH - 1):
                alone = net(x[row : row + 1], context=context[row : row + 1, mask[row]])[0]
                laws.close(y[row], alone, f"{name}, row {row}")
            laws.close(net(x, context=poisoned, context_mask=mask.int()), y, "a mask of integers")
            # A row without any context: both kinds of layers add nothing, only the feed-forward ones do.
            without = x[BATCH - 1]
            for branch in net.branches:
                if not branch.block.takes_context:
                    without = without + branch.block(branch.before(without)[None], CTX)[0][0]
            laws.close(y[BATCH - 1], net.final_norm(without), f"{name}: a context of padding")


@every_block
def test_padded_tokens_and_a_padded_context_together(block):
    net, x, context = stack(block, cls=Encoder, layers="attn {} ff", shift_tokens=1), tokens(), source()
    mask = torch.arange(N).flip(0) < torch.tensor([[N], [4], [6]])
    seen = context_masks()["holes"]
    y = net(x.masked_fill(~mask[..., None], float("nan")), mask, context=context, context_mask=seen)
    assert (y[~mask] == 0).all()
    for row in range(BATCH):
        alone = {"context": context[row : row + 1], "context_mask": seen[row : row + 1]}
        laws.close(y[row, mask[row]], net(x[row : row + 1, mask[row]], **alone)[0], f"row {row}")


FEATURES = {
    "alone": {},
    "shift": {"shift_tokens": 2},
    "memory tokens": {"num_memory_tokens": 3, "shift_tokens": 1},
    "rotary": {"pos": "rotary", "placed": True},
    "rotary, memory tokens": {"pos": "rotary", "placed": True, "num_memory_tokens": 3},
}


@pytest.mark.parametrize("feature", FEATURES)
@every_block
def test_decoding_needs_the_context_once(block, feature):
    flags = dict(FEATURES[feature])
    placed = flags.pop("placed", False)
    net = stack(block, layers="attn {} ff", outside=True, **flags)
    x, context, mask = tokens(), source(OUTSIDE), context_masks()["holes"]
    beside = {"context": context, "context_mask": mask}
    if placed:
        beside["context_pos"] = torch.tensor([4, 1, 0, 7, 2, 3, 11]).expand(BATCH, C)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            whole = net(x, **beside)
            y, state = net.step(x[:, :1], **beside)
            outputs = [y]
            for i in range(1, N):
                y, state = net.step(x[:, i : i + 1], state)
                outputs.append(y)
            laws.close(torch.cat(outputs, 1), whole, f"token by token, grad={grad}")
            head, state = net.step(x[:, :5], **beside)
            laws.close(torch.cat((head, net.step(x[:, 5:], state)[0]), 1), whole, f"cut, grad={grad}")


@pytest.mark.parametrize("feature", FEATURES)
@every_block
def test_a_reset_row_keeps_its_context(block, feature):
    flags = dict(FEATURES[feature])
    beside = {"context": source(), "context_mask": context_masks()["left"]}
    if flags.pop("placed", False):
        beside["context_pos"] = torch.arange(C)
    net, x, rows = stack(block, layers="attn {} ff", **flags), tokens(), torch.tensor([True, False, True])
    _, state = net.step(x, **beside)
    after = draw(5, DIM, 4)
    fresh = net(after, **beside)
    renewed, _ = net.step(after, state, reset=rows)
    kept, _ = net.step(after, state)
    laws.close(renewed[rows], fresh[rows], "a reset row equals a fresh one with its context")
    laws.close(renewed[~rows], kept[~rows], "its neighbour goes on")


@every_block
def test_states_are_values_with_their_context(block):
    net, x = stack(block, layers="attn {} ff", pos="rotary"), tokens()
    beside = {"context": source(), "context_mask": context_masks()["right"], "context_pos": torch.arange(C)}
    with torch.no_grad():
        _, state = net.step(x[:, :4], **beside)
        expected, _ = net.step(x[:, 4:], state)
        net.step(x[:, 4:] * 3, state)
        laws.close(net.step(x[:, 4:], state)[0], expected, "forked")
        order = torch.tensor([1, 1, 0])
        laws.close(net.step(x[order, 4:], state.reorder(order))[0], expected[order], "reordered")
        two = torch.tensor([2, 0])
        laws.close(net.step(x[two, 4:], state.reorder(two))[0], expected[two], "fewer rows")
        laws.close(net.step(x[:, 4:], copy.deepcopy(state))[0], expected, "deepcopy")
        laws.close(net.step(x[:, 4:], laws.saved(state))[0], expected, "saved")
        single = net.float().step(x[:, 4:].float(), state.to(torch.float32))[0]
        assert (single - expected).abs().max() < 1e-4
    assert not state.branches[1].block.k.requires_grad


@pytest.mark.parametrize("flags", [{}, {"cross_attn_num_mem_kv": 2}, {"cross_attn_kv_heads": 1}], ids=str)
def test_the_fused_kernel_is_the_plain_one(flags):
    fused, plain = stack(**flags, cross_attn_flash=True), stack(**flags, cross_attn_flash=False)
    plain.load_state_dict(fused.state_dict())
    for mask in (None, *context_masks().values()):
        found = []
        for net in (fused, plain):
            context = source().requires_grad_()
            y = net(tokens(), context=context, context_mask=mask)
            found.append((y, *torch.autograd.grad(y.square().sum(), [context, *net.parameters()])))
        for a, b in zip(*found, strict=True):
            laws.close(a, b, "fused")


@every_setting
def test_gradients_reach_the_real_tokens_of_the_context(setting):
    block, flags = SETTINGS[setting]
    net, context, mask = stack(block, **flags), source().requires_grad_(), context_masks()["holes"]
    (grad,) = torch.autograd.grad(net(tokens(), context=context, context_mask=mask).square().sum(), context)
    reached = grad.abs().amax(-1) > 0
    assert not reached[~mask].any()
    assert reached[0][mask[0]].all()
    net = stack(block, depth=1, layers="{}", **flags)
    small, x = source()[:1, :3].clone().requires_grad_(), tokens()[:1, :2]
    assert torch.autograd.gradcheck(lambda given: net(x, context=given), small)


def test_gradients_through_the_state_reach_the_context():
    for block in BLOCKS:
        net, x, context = stack(block, layers="attn {} ff"), tokens(), source().requires_grad_()
        _, state = net.step(x[:, :4], context=context)
        y, _ = net.step(x[:, 4:], state)
        (grad,) = torch.autograd.grad(y.square().sum(), context)
        (expected,) = torch.autograd.grad(net(x, context=context)[:, 4:].square().sum(), context)
        laws.close(grad, expected, block)
        y, _ = net.step(x[:, 4:], state.detach())
        assert torch.autograd.grad(y.square().sum(), context, allow_unused=True) == (None,)


def heads(linear, t, count):
    return linear(t).unflatten(-1, (count, -1)).transpose(1, 2)


@pytest.mark.parametrize("padded", [False, True])
def test_maps_are_the_softmax_by_hand(padded):
    net, x, context = stack(cross_attn_num_mem_kv=2, num_memory_tokens=3, depth=1), tokens(), source()
    seen = context_masks()["holes"] if padded else torch.ones(BATCH, C).bool()
    mask = torch.arange(N) < torch.tensor([[N], [4], [6]]) if padded else None
    y, (weights,) = net.attention_maps(x, mask, context=context, context_mask=seen)
    assert weights.shape == (BATCH, HEADS, N, C)
    laws.close(y, net(x, mask, context=context, context_mask=seen), "with and without maps")
    block = net.branches[0].block
    q = heads(block.to_q, net.branches[0].before(x), HEADS)
    k = block.key_value(context).unflatten(-1, (HEADS, 2, 6))[..., 0, :].transpose(1, 2)
    k = torch.cat((block.mem_kv[0].expand(BATCH, -1, -1, -1), k), 2)
    scores = q @ k.mT / 6**0.5
    scores = scores.masked_fill(~F.pad(seen, (2, 0), value=True)[:, None, None], -torch.inf)
    expected = scores.softmax(-1)[..., 2:]
    if mask is not None:
        expected = expected.masked_fill(~mask[:, None, :, None], 0)
    laws.close(weights, expected, "softmax")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["attn", "cross_attn"])
def test_normed_keys_of_padding_are_finite_in_half_precision(name, dtype):
    net = stack(cls=Encoder, layers="attn {}", **{f"{name}_qk_norm": True}).to(dtype)
    context, mask = source().to(dtype), torch.arange(N) < torch.tensor([[N], [4], [6]])
    y = net(tokens().to(dtype), mask, context=context, context_mask=context_masks()["holes"])
    assert y.isfinite().all()


def test_a_map_of_an_empty_context_is_zeros():
    mask = context_masks()["right"]
    for block in BLOCKS:
        _, (weights, *_) = stack(block).attention_maps(tokens(), context=source(), context_mask=mask)
        assert (weights[2] == 0).all() and (weights[1, ..., 3:] == 0).all() and weights[1, ..., :3].abs().max() > 0


def test_maps_come_layer_by_layer_each_with_its_keys():
    net = stack("cross_gau", layers="attn {} ff", cls=Encoder, depth=1)
    _, maps = net.attention_maps(tokens(), context=source())
    assert [tuple(m.shape) for m in maps] == [(BATCH, HEADS, N, N), (BATCH, 1, N, C)]


def by_hand(block, x, context, mask, fn, divisor):
    """to_out(u * (A v)) a head at a time, with A = fn(q k^T / sqrt(width)) / divisor."""
    config = block.config
    u, zq = F.silu(block.to_hidden(x)).split(block.widths, -1)
    v, zk = F.silu(block.to_source(context)).split(block.widths, -1)
    q, k = zq * block.gamma[0] + block.beta[0], zk * block.gamma[1] + block.beta[1]
    outputs = []
    for q_h, k_h, v_h in zip(*(t.chunk(config.heads, -1) for t in (q, k, v)), strict=True):
        scores = q_h @ k_h.mT / (config.query_key_dim / config.heads) ** 0.5
        weights = fn(scores).masked_fill(~mask[:, None], 0)
        outputs.append(weights / divisor(weights, mask) @ v_h)
    return block.to_out(u * torch.cat(outputs, -1))


def real(weights, mask):
    return mask.sum(1).clamp(min=1)[:, None, None]


RELU2 = {"attn_fn": "relu2"}
FORMULAS = {
    "softmax": ({}, torch.exp, lambda w, m: w.sum(-1, keepdim=True) + 1e-300),
    "relu2 over the real tokens": (RELU2, lambda s: s.relu() ** 2, real),
    "laplace over the real tokens": ({"attn_fn": "laplace"}, laplace, real),
    "two heads": ({**RELU2, "heads": 2}, lambda s: s.relu() ** 2, real),
    "fixed": ({**RELU2, "normaliser": "fixed", "fixed_length": 5}, lambda s: s.relu() ** 2, lambda w, m: 5),
    "row_sum": (
        {**RELU2, "normaliser": "row_sum"}, lambda s: s.relu() ** 2, lambda w, m: w.sum(-1, keepdim=True) + 1e-300,
    ),
    "none": ({**RELU2, "normaliser": "none"}, lambda s: s.relu() ** 2, lambda w, m: 1),
}  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS)
def test_cross_gau_by_hand(formula):
    flags, fn, divisor = FORMULAS[formula]
    torch.manual_seed(0)
    config = CrossGatedAttention.Config(query_key_dim=10, dim_context=OUTSIDE, **flags)
    block = laws.live(CrossGatedAttention(config, Site(DIM, 1, True)))
    x, context = tokens(), source(OUTSIDE)
    for mask in (torch.ones(BATCH, C).bool(), *context_masks().values()):
        zeroed = context.masked_fill(~mask[..., None], 0)
        ctx = replace(CTX, context=zeroed, context_mask=mask, memo={})
        laws.close(block(x, ctx)[0], by_hand(block, x, context, mask, fn, divisor), formula)


def turned(t, where, base=10000.0):
    """Channel i and i + width / 2 as a complex number, times exp(i * position * frequency)."""
    half = t.shape[-1] // 2
    angle = where[..., None] * (1.0 / (base ** (torch.arange(0, 2 * half, 2).float() / (2 * half)))).double()
    z = torch.polar(torch.ones_like(angle), angle) * torch.complex(t[..., :half], t[..., half:])
    return torch.cat((z.real, z.imag), -1)


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("per_row", [False, True])
def test_context_pos_is_a_rotation_by_hand(per_row, memory):
    net, x, context = stack(depth=1, pos="rotary", num_memory_tokens=memory), tokens(), source()
    where = torch.tensor([4, 1, 0, 7, 2, 3, 40])
    given = torch.stack([where, where + 2, where.flip(0)]) if per_row else where
    block = net.branches[0].block
    q = heads(block.to_q, net.branches[0].before(x), HEADS)
    k, v = (t.transpose(1, 2) for t in block.key_value(context).unflatten(-1, (HEADS, 2, 6)).unbind(-2))
    q, k = turned(q, torch.arange(N).double()), turned(k, given.double().reshape(-1, 1, C))
    expected = x + block.to_out(((q @ k.mT / 6**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    ff = net.branches[1]
    expected = net.final_norm(expected + ff.block(ff.before(expected), CTX)[0])
    laws.close(net(x, context=context, context_pos=given), expected, "rotation")
    laws.close(net(x, context=context, context_pos=given.int()), expected, "int32")
    # Only the distance counts.
    prompt, state = net.step(x[:, :3], context=context, context_pos=given)
    laws.close(torch.cat((prompt, net.step(x[:, 3:], state)[0]), 1), expected, "stepped")


@every_block
def test_without_context_pos_rotary_is_for_the_tokens_alone(block):
    net, x, context = stack(block, layers="attn {} ff", pos="rotary"), tokens(), source()
    shuffled = torch.randperm(C, generator=torch.Generator().manual_seed(3))
    y = net(x, context=context)
    laws.close(net(x, context=context[:, shuffled]), y, "a set")
    assert (net(x, context=context, context_pos=torch.arange(C)) - y).abs().max() > 1e-6


def test_spellings_of_x_transformers():
    assert Decoder(dim=26, depth=2, heads=2, cross_attend=True).layout == "(attn cross_attn ff) x 2"
    assert Encoder(dim=26, depth=1, cross_attend=True, only_cross=True).layout == "cross_attn ff"
    assert CrossAttender(dim=512, depth=6).layout == "(cross_attn ff) x 6"
    assert CrossAttender(dim=512, depth=6, cross_attend=True).layout == "(cross_attn ff) x 6"
    assert Decoder(dim=26, custom_layers=("a", "c", "f")).layout == "attn cross_attn ff"
    assert Decoder(dim=26, depth=1, layers="flash cross_gau", cross_attend=True).layout == "flash cross_gau"
    assert CrossAttender(dim=26, depth=1, layers="cross_gau").layout == "cross_gau"
    assert not CrossAttender(dim=26, depth=1).causal


def test_a_cross_attender_is_saved_as_built(tmp_path):
    net = laws.live(CrossAttender(dim=DIM, depth=2, heads=HEADS, cross_attn_dim_head=6, cross_attn_dim_context=OUTSIDE))
    laws.all_laws(net, tmp_path)
    x, context, mask = tokens(), source(OUTSIDE), torch.arange(N) < torch.tensor([[N], [4], [0]])
    y = net(x, mask, context=context)
    # Its tokens never meet.
    laws.close(net(x[:, :1], context=context), net(x, context=context)[:, :1], "a token alone")
    assert (y[~mask] == 0).all()


def test_the_model_hands_the_context_on():
    for block in BLOCKS:
        net = stack(block, layers="attn {} ff", outside=True)
        model = laws.live(TransformerWrapper(num_tokens=31, max_seq_len=N, attn_layers=net))
        ids, context, mask = torch.arange(BATCH * N).reshape(BATCH, N) % 31, source(OUTSIDE), context_masks()["left"]
        whole = model(ids, context=context, context_mask=mask)
        head, state = model.step(ids[:, :4], context=context, context_mask=mask)
        laws.close(torch.cat((head, model.step(ids[:, 4:], state)[0]), 1), whole, "model")
        rows = torch.tensor([True, False, False])
        laws.close(model.step(ids, None, reset=rows, context=context, context_mask=mask)[0], whole, "reset at once")
        logits, maps = model(ids, context=context, context_mask=mask, return_attn=True)
        laws.close(logits, whole, "with maps")
        assert maps[1].shape[-1] == C


@pytest.mark.parametrize("cache_kv", [True, False])
@every_block
def test_generation_takes_the_context_along(block, cache_kv):
    """One context_pos for all rows, or one a row, whatever becomes of the rows in a beam."""
    net = stack(block, layers="attn {} ff", outside=True, pos="rotary")
    wrapper = AutoregressiveWrapper(laws.live(TransformerWrapper(num_tokens=31, attn_layers=net)))
    prompts, context, where = (
        torch.tensor([[3, 1], [4, 1], [5, 9]]),
        source(OUTSIDE),
        torch.tensor([4, 1, 0, 7, 2, 3, 9]),
    )
    found = []
    for given in (where, where[None], where.expand(BATCH, C)):
        beside = {"context": context, "context_mask": context_masks()["left"], "context_pos": given}
        made = wrapper.generate(prompts, 4, temperature=0.0, cache_kv=cache_kv, **beside)
        assert torch.equal(wrapper.beam_search(prompts, 4, 1, cache_kv=cache_kv, **beside), made)
        found.append((made, wrapper.beam_search(prompts, 4, 5, cache_kv=cache_kv, **beside)))
    assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(pair, found[0], strict=True))
    one = {"context": context[2:], "context_mask": context_masks()["left"][2:], "context_pos": where}
    assert torch.equal(wrapper.beam_search(prompts[2], 4, 5, cache_kv=cache_kv, **one), found[0][1][2])


X, CONTEXT = tokens(), source()
REFUSED = [
    ({}, {}, ValueError, r"the layout '\(cross_attn ff\) x 2' attends to a context: give context=, of width 26"),
    ({}, {"context_mask": torch.ones(BATCH, C).bool()}, ValueError, "context_mask is given without context"),
    ({}, {"context_pos": torch.arange(C)}, ValueError, "context_pos is given without context"),
    (
        {"layers": "ff"}, {"context": CONTEXT}, ValueError,
        r"no block of the layout '\(ff\) x 2' attends to one \(blocks that do: cross_attn, cross_gau; cross_att",
    ),
    ({}, {"context": CONTEXT.long()}, TypeError, "context must be a floating-point tensor .* not torch.int64"),
    ({}, {"context": [1.0]}, TypeError, r"context must be a floating-point tensor \(batch, tokens, width\), not list"),
    ({}, {"context": CONTEXT[0]}, ValueError, r"context must be \(3, at least one token, 26\), not \(7, 26\)"),
    ({}, {"context": CONTEXT[:1]}, ValueError, r"context must be \(3, .* not \(1, 7, 26\)"),
    ({}, {"context": CONTEXT[:, :0]}, ValueError, r"at least one token, 26\), not \(3, 0, 26\)"),
    ({}, {"context": source(OUTSIDE)}, ValueError, r"not \(3, 7, 22\); cross_attn_dim_context sets"),
    (
        {}, {"context": CONTEXT, "context_mask": torch.ones(BATCH, C + 1).bool()}, ValueError,
        r"context_mask has shape \(3, 8\), but the tokens it stands for have \(3, 7\)",
    ),
    ({}, {"context": CONTEXT, "context_mask": torch.ones(BATCH, C)}, TypeError, "context_mask must be boolean"),
    (
        {}, {"context": CONTEXT, "context_pos": torch.arange(C)}, ValueError,
        "context_pos is for rotary positions, and this stack has none",
    ),
    (
        {"pos": "rotary"}, {"context": CONTEXT}, ValueError,
        "pos='rotary' has nothing to turn in the layout .* unless the context's tokens have positions: give context",
    ),
    (
        {"pos": "rotary"}, {"context": CONTEXT, "context_pos": torch.arange(C).double()}, TypeError,
        r"context_pos must be an integer tensor \(7,\) or \(3, 7\), not torch.float64",
    ),
    ({"pos": "rotary"}, {"context": CONTEXT, "context_pos": 3}, TypeError, "context_pos must be .* not int"),
    (
        {"pos": "rotary"}, {"context": CONTEXT, "context_pos": torch.arange(C + 1)}, ValueError,
        r"context_pos must be \(7,\) or \(3, 7\), not \(8,\)",
    ),
    (
        {"pos": "rotary", "rotary_xpos": True, "layers": "attn cross_attn"},
        {"context": CONTEXT, "context_pos": torch.arange(C)}, ValueError,
        "context_pos and rotary_xpos=True exclude each other",
    ),
    (
        {}, {"context": CONTEXT, "attn_mask": torch.ones(N, N).bool()}, ValueError,
        r"attn_mask is given, but in the layout '\(cross_attn ff\) x 2' tokens never attend to each other",
    ),
    (
        {}, {"context": CONTEXT, "doc_ids": torch.zeros(BATCH, N).long()}, ValueError,
        "CrossAttention cannot honour doc_ids; blocks that can: attn, ff, flash, gau",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "given", "error", "match"), REFUSED, ids=[f"{i} {row[3][:30]}" for i, row in enumerate(REFUSED)]
)
def test_what_a_call_is_refused_for(flags, given, error, match):
    flags = {"layers": "cross_attn ff", **flags}
    small = {f"{name}_dim_head": 6 for name in ("attn", "cross_attn") if name in flags["layers"].split()}
    net = Decoder(dim=DIM, depth=2, heads=HEADS, **small, **flags).double()
    with pytest.raises(error, match=match) as caught:
        net(X, **given)
    assert type(caught.value) is error
    if not {"attn_mask", "doc_ids"} & set(given):
        with pytest.raises(error, match=match):
            net.step(X, **given)


@every_block
def test_the_context_is_not_given_twice(block):
    net = stack(block)
    _, state = net.step(X, context=CONTEXT)
    with pytest.raises(ValueError, match="the state holds the context already: give context in the first call only"):
        net.step(X, state, context=CONTEXT)
    with pytest.raises(ValueError, match="context_mask is given without context"):
        net.step(X, state, context_mask=context_masks()["right"])


def test_one_context_has_one_width():
    with pytest.raises(
        ValueError,
        match=r"one context for all layers, but cross_attn one of width 22, cross_gau one of width 26; give them the",
    ):
        Decoder(dim=DIM, depth=1, layers="cross_attn cross_gau", cross_attn_dim_context=OUTSIDE)
    with pytest.raises(ValueError, match="cross_attn one of width 26, cross_attn one of width 22"):
        AttentionLayers(dim=DIM, custom_layers="c cross_attn(dim_context=22)")


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"layers": "attn ff"}, "only_cross=True contradicts the layout 'attn ff'; leave out one of them"),
        ({"layers": "ff"}, "only_cross=True contradicts the layout 'ff'"),
        (
            {"only_cross": False},
            r"only_cross=False contradicts CrossAttender; use AttentionLayers\(only_cross",
        ),
        ({"causal": True}, "causal=True contradicts CrossAttender"),
        ({"cross_attend": False}, "only_cross=True contradicts cross_attend=False"),
    ],
)
def test_a_cross_attender_only_crosses(flags, match):
    with pytest.raises(ValueError, match=match):
        CrossAttender(dim=DIM, depth=1, **flags)


def test_a_block_by_itself_says_that_it_has_no_context():
    for cls in (CrossAttention, CrossGatedAttention):
        block = cls(cls.Config(), Site(DIM, HEADS, True)).double()
        with pytest.raises(ValueError, match="this block attends to a context, but the call has none"):
            block(X, CTX)
