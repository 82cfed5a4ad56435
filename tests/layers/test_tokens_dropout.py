"""Tokens of a context that are left out while training: as many in each row, the same in all layers."""

import laws
import pytest
import torch
from cross_stacks import BATCH, DIM, OUTSIDE, C, N

from xflash import Decoder

BOTH = "cross_attn cross_gau"


def stack(p=0.5, layers=BOTH, **flags):
    small = {"cross_attn_dim_head": 6, "cross_gau_query_key_dim": 14}
    rates = {f"{name}_tokens_dropout": p for name in BOTH.split()}
    widths = {f"{name}_dim_context": OUTSIDE for name in BOTH.split()}
    torch.manual_seed(0)
    return laws.live(Decoder(dim=DIM, depth=2, heads=2, layers=layers, **small, **rates, **widths, **flags))


def seen(net, mask=None):
    """Which tokens of the context each layer has read, (layers, b, c)."""
    x = torch.randn(BATCH, N, DIM, dtype=torch.float64)
    context = torch.randn(BATCH, C, OUTSIDE, dtype=torch.float64)
    _, maps = net.attention_maps(x, context=context, context_mask=mask)
    return torch.stack([weights.sum((1, 2)) != 0 for weights in maps])


@pytest.mark.parametrize("p", [0.5, 0.99])
def test_a_share_of_each_row_is_seen_by_all_layers(p):
    net, mask = stack(p), torch.arange(C) < torch.tensor([C, C - 2, 1])[:BATCH, None]
    assert seen(net).all()
    net.train()
    found = seen(net)
    assert (found == found[0]).all() and (found[0].sum(1) == max(1, round(C * (1 - p)))).all()
    found = seen(net, mask)
    wanted = (mask.sum(1) * (1 - p)).round().clamp(min=1)
    assert (found == found[0]).all() and (found[0].sum(1) == wanted).all() and not (found[0] & ~mask).any()
    torch.manual_seed(1)
    draws = [seen(net)[0] for _ in range(8)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 1


def test_what_is_computed_again_sees_the_same():
    laws.recomputed(stack(grad_checkpoint=True))
