"""What cross_attn and cross_gau compute, written out: weights, their sums, rotations of a context's tokens."""

from dataclasses import replace

import laws
import pytest
import torch
import torch.nn.functional as F
from cross_stacks import BATCH, CTX, DIM, HEADS, OUTSIDE, C, N, context_masks, source, stack, tokens

from xflash.layers.blocks.cross_gau import CrossGatedAttention
from xflash.layers.kernels.gated import laplace
from xflash.layers.site import Site


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
        ctx = replace(CTX, beside={"context": zeroed, "context_mask": mask}, memo={})
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
