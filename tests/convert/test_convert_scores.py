"""Steps on scores and weight functions against x-transformers' attention, outputs and gradients of parameters."""

import functools

import pytest
import torch
from x_transformers_cases import exact, peers
from x_transformers_scores import DRAWN, SCORES

import xflash
from xflash.convert import from_x_transformers

DIM, N = 22, 13
SMALL = {"dim": DIM, "depth": 2, "heads": 6, "attn_dim_head": 5}


def pair(flags):
    """Their stack with every parameter moved, and ours with its weights."""
    torch.manual_seed(0)
    theirs = peers.Decoder(**{**SMALL, "verbose": False, **flags})
    theirs = exact(theirs)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return theirs, from_x_transformers(theirs)


@pytest.mark.parametrize("flags", SCORES.values(), ids=SCORES)
def test_a_step_is_theirs(flags):
    theirs, ours = pair(flags)
    x = torch.randn(2, N, DIM, dtype=torch.float64, requires_grad=True)
    beside = {"context": torch.randn(2, 7, DIM, dtype=torch.float64)} if flags.get("cross_attend") else {}
    outputs = [stack(x, **beside) for stack in (theirs, ours)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-8)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-8)


def test_what_is_drawn_there_is_the_softmax_here():
    """Theirs draws keys in eval mode too, so that no output is the same twice."""
    theirs, ours = pair(DRAWN)
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    assert not torch.equal(theirs(x), theirs(x))
    for part in theirs.modules():
        if hasattr(part, "attn_fn"):
            part.attn_fn = functools.partial(torch.softmax, dim=-1)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-8)
    weigh = ours.blocks()[0].reader.weigh
    assert weigh.config == xflash.Decoder(**{**SMALL, **DRAWN}).blocks()[0].reader.weigh.config
    assert weigh.config.temperature == 0.7 and not weigh.config.hard


@pytest.mark.parametrize("flags", SCORES.values(), ids=SCORES)
def test_the_same_words_build_the_same_stack(flags):
    """What theirs is told builds ours alike, but for its layout and what a converted stack says of itself."""
    converted = pair(flags)[1]
    ours = xflash.Decoder(**{**SMALL, **flags})
    for one, other in zip(ours.blocks(), converted.blocks(), strict=True):
        if hasattr(one, "reader"):
            assert one.config == other.config
            assert [s.config for s in one.reader.steps.values()] == [s.config for s in other.reader.steps.values()]
