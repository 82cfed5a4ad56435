"""Positions that heads differ in, by their definitions: `rotary_num_heads`, the networks of `dynamic`, `polar`."""

import pytest
import torch

from xflash import Decoder
from xflash.base.registry import positions


def made(name, heads=(4,), **flags):
    return positions[name](positions[name].Config(**flags), True, heads)


@pytest.mark.parametrize("xpos", [False, True])
def test_the_last_heads_alone_are_turned(xpos):
    some, every = (made("rotary", num_heads=n, xpos=xpos) for n in (3, None))
    t, where = torch.randn(2, 4, 7, 6, dtype=torch.float64), torch.arange(7)[None]
    for inverse in (False, True):
        got, whole = (turn.turn(t, turn.table(where, 6, t.dtype), inverse) for turn in (some, every))
        assert torch.equal(got, torch.cat((t[:, :1], whole[:, 1:]), 1))


@pytest.mark.parametrize("flags", [{}, {"mlp_depth": 1, "log_distance": True, "norm": True}], ids=str)
def test_a_network_of_the_distance(flags):
    position = Decoder(
        dim=22, depth=1, heads=3, pos="dynamic", **{f"dynamic_{name}": value for name, value in flags.items()}
    ).positions["dynamic"]
    torch.nn.init.normal_(position.outs["3"].weight)
    found = position.by_distance(torch.arange(-6, 3), 3, torch.float32)
    assert found.shape == (3, 9)
    for column, distance in enumerate(range(-6, 3)):
        t = torch.tensor([-float(distance)])
        if flags:
            t = t.sign() * torch.log(1 + t.abs())
        for i, linear in enumerate(position.maps):
            t = linear(t)
            t = torch.nn.functional.silu(position.norms[i](t) if flags else t)
        assert t.shape == (5,)
        torch.testing.assert_close(found[:, column], position.outs["3"](t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_lengths_at_angles(kv_heads):
    """The offset of each key's channel is that of the head which reads it."""
    stack = Decoder(dim=22, depth=1, heads=4, layers="attn", attn_dim_head=3, attn_kv_heads=kv_heads, pos="polar")
    polar, block = stack.positions["polar"], stack.blocks()[0]
    offset = polar.offsets["4x3"]
    torch.nn.init.uniform_(offset, -7, 1)
    q, k, where = torch.randn(2, 4, 5, 3), torch.randn(2, kv_heads, 5, 3), torch.arange(5)[None] + 6
    table = polar.table(where, 3, q.dtype)
    keys = polar.turn(k, table, inverse=True).repeat_interleave(4 // kv_heads, 1)
    scores = polar.turn(q, table) @ keys.mT
    assert block.turned_queries() == 4
    length_q, length_k = torch.nn.functional.softplus(q), torch.nn.functional.softplus(k)
    frequency = torch.tensor([10000.0 ** (-c / 3) for c in range(3)])
    for h, i, j in torch.ones(4, 5, 5).nonzero().tolist():
        angle = (j - i) * frequency + offset[h, 0].clamp(-2 * torch.pi, 0)
        by_hand = (length_q[:, h, i] * length_k[:, h // (4 // kv_heads), j] * angle.cos()).sum(-1)
        torch.testing.assert_close(scores[:, h, i, j], by_hand, rtol=1e-4, atol=1e-4)
    start = Decoder(dim=22, depth=1, pos="polar", polar_uniform_start=True).positions["polar"].offsets["8x64"]
    assert -2 * torch.pi <= start.min() < -6 and -0.3 < start.max() <= 0
