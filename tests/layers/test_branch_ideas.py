"""Joins, norms and reads that no other library has today, by hand."""

import laws
import pytest
import torch

from xflash import Decoder, Site
from xflash.base.relay import Relay
from xflash.layers.dynamic_tanh import DynamicTanh
from xflash.layers.joins.mv_split import MVSplit

SMALL = {"dim": 11, "heads": 2, "attn_dim_head": 6}


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_residual_is_dual(scale):
    """Layers read a stream that is normed after each sum; beside it all updates add up, to be normed at the end."""
    stack = laws.live(Decoder(**SMALL, depth=2, resi_dual=True, resi_dual_scale=scale))
    x = torch.randn(2, 5, 11, dtype=torch.float64)
    ctx = stack.column.context(x, None, None, {}, (False, False, None, Relay()))
    stream, added, hiddens = x, scale * x, [x]
    for branch in stack.branches:
        update = branch.block(stream, ctx)[0]
        stream, added = branch.final(stream + update), added + scale * update
        hiddens.append(stream)
    y, found = stack(x, return_hiddens=True)
    laws.close(y, stream + stack.final_norm(added), "what the stack gives")
    for ours, here in zip(found, [*hiddens, y], strict=True):
        laws.close(ours, here, "hiddens")


def test_a_scale_changes_nothing_but_the_numbers_that_add_up():
    """The last norm divides it out again."""
    plain, scaled = (Decoder(**SMALL, depth=1, resi_dual=True, norm_eps=1e-30, resi_dual_scale=s) for s in (1.0, 0.125))
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 11, dtype=torch.float64)
    laws.close(scaled.double()(x), plain.double()(x), "scaled")


def test_the_mean_of_an_update_joins_apart():
    join = laws.live(MVSplit(MVSplit.Config(), Site(13)))
    x, update = torch.randn(2, 3, 5, 13, dtype=torch.float64)
    y = join(x, update, None)
    for i in range(3):
        mean, before = update[i, 2].sum() / 13, x[i, 2].sum() / 13
        expected = x[i, 2] + join.beta * (update[i, 2] - mean) + join.alpha * (mean - before)
        laws.close(y[i, 2], expected, "mv_split")


def test_a_tanh_in_the_place_of_a_norm():
    norm = laws.live(DynamicTanh(DynamicTanh.Config(alpha=0.5), Site(13)))
    x = 9 * torch.randn(4, 13, dtype=torch.float64)
    laws.close(norm(x), norm.gain * torch.tanh(norm.alpha * x) + norm.bias, "dynamic_tanh")
