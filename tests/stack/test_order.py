"""Which layers a column runs: taken apart into a sandwich, some run again, halves around attention."""

import laws
import pytest
import torch

from xflash import Decoder
from xflash.base.relay import Relay

SMALL = {"dim": 11, "heads": 2}


@pytest.mark.parametrize(
    ("flags", "layout"),
    [
        ({}, "attn*3 ff attn ff*3"),
        ({"layers": "ff(mult=2.0) gau(heads=1) ff"}, "gau(heads=1)*2 (ff(mult=2.0) gau(heads=1) ff)*2 ff*2"),
        ({"cross_attend": True}, "attn*3 cross_attn ff attn cross_attn ff*3"),
        ({"macaron": True}, "attn*2 (ff attn ff)*2 ff*2"),
    ],
    ids=str,
)
def test_a_sandwich(flags, layout):
    stack = Decoder(**SMALL, depth=4, sandwich_coef=2, **flags)
    assert stack.layout == layout
    assert [branch.join.site.places for branch in stack.branches] == [(i,) for i in range(len(stack.order))]


def test_layers_that_are_run_again():
    """As the same modules one after the other, whole and token by token."""
    order = (0, 1, 0, 1, 2, 3, 2)
    stack = laws.live(Decoder(**SMALL, depth=2, pos="rotary", shift_tokens=(1, 0, 2, 0), layers_execute_order=order))
    x = torch.randn(2, 7, 11, dtype=torch.float64)
    plain = laws.live(
        Decoder(**SMALL, custom_layers="(attn ff)*2 (attn ff)*1 attn", pos="rotary", shift_tokens=(1, 0, 1, 0, 2, 0, 2))
    )
    plain.final_norm.load_state_dict(stack.final_norm.state_dict())
    for branch, i in zip(plain.branches, order, strict=True):
        branch.load_state_dict(stack.branches[i].state_dict())
    laws.close(stack(x), plain(x), "the same layers")
    laws.close(laws.steps(stack, x, [1] * 7)[0], plain(x), "token by token")


def test_halves_around_attention():
    stack = laws.live(Decoder(**SMALL, depth=1, macaron=True))
    x = torch.randn(2, 5, 11, dtype=torch.float64)
    y, ctx = x, stack.column.context(x, None, None, {}, (False, False, None, Relay()))
    for branch, share in zip(stack.branches, (0.5, 1, 0.5), strict=True):
        y = y + share * branch.block(branch.before(y, ctx), ctx)[0]
    laws.close(stack(x), stack.final_norm(y), "macaron")


@pytest.mark.parametrize("layers", ["attn ff", "gau moe flash"])
def test_how_updates_start(layers):
    torch.manual_seed(0)
    flags = {**SMALL, "dim": 60, "depth": 3, "layers": layers}
    assert all(not p.any() for p in out_weights(Decoder(**flags, branch_start="zero")))
    for number, weights in enumerate(out_weights(Decoder(**flags, branch_start="depth"), 3), 1):
        for weight in weights:
            assert weight.std().item() == pytest.approx((2 * weight.shape[-1] * number) ** -0.5, rel=0.1)


def out_weights(stack, repetitions=None):
    found = [
        [p for name, p in branch.named_parameters() if name.endswith(("to_out", "to_out.weight"))]
        for branch in stack.branches
    ]
    if repetitions is None:
        return [p for weights in found for p in weights]
    period = len(found) // repetitions
    return [[p for weights in found[i : i + period] for p in weights] for i in range(0, len(found), period)]
