"""Positions that heads differ in: `rotary_num_heads` and the network of `dynamic`, by their definitions."""

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
