"""cross_attn and cross_gau: what they compute, and what becomes of the context in padding, states and maps."""

import copy

import laws
import pytest
import torch
from cross_stacks import (
    BATCH,
    BLOCKS,
    CTX,
    DIM,
    HEADS,
    OUTSIDE,
    SETTINGS,
    C,
    N,
    context_masks,
    draw,
    every_block,
    every_setting,
    source,
    stack,
    tokens,
)

from xflash import AutoregressiveWrapper, CrossAttender, Decoder, Encoder, TransformerWrapper


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
