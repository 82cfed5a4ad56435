"""The mixture of experts against every expert asked about every token, and what it is refused for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xflash import Ctx, Decoder, Encoder, activations
from xflash.layers.blocks.moe import MixtureOfExperts

DIM = 11
NOTHING = Ctx(0, None, None, torch.zeros(1, 1, dtype=torch.long))


def built(**flags) -> MixtureOfExperts:
    torch.manual_seed(3)
    flags = {f"moe_{name}": value for name, value in flags.items()}
    stack = Encoder(dim=DIM, depth=1, heads=1, layers="moe", **{"moe_experts": 5, "moe_dim": 7, **flags})
    (block,) = stack.blocks()
    for parameter in block.parameters():  # biases begin at zero
        torch.nn.init.normal_(parameter, std=0.5)
    return block.double()


def by_definition(block: MixtureOfExperts, x: Tensor) -> Tensor:
    """Token by token: its experts in a loop."""
    config, experts = block.config, block.experts
    out = torch.zeros_like(x)
    for i, token in enumerate(x):
        scores = block.router(token)
        weights = scores.softmax(-1) if config.router == "softmax" else scores.sigmoid()
        chosen = weights.argsort(descending=True)[: config.top_k]
        total = weights[chosen].sum() if config.top_k > 1 and config.normalize is not False else 1
        for e in chosen:
            y = F.linear(token, experts.to_inner[e], None if config.no_bias else experts.inner_bias[e])
            activation = activations[config.activation]
            if config.glu:
                limit = float("inf") if config.glu_limit is None else config.glu_limit
                up, gate = y[:7].clamp(-limit, limit), y[7:].minimum(torch.tensor(limit))
                y = (up + config.glu_offset) * activation(gate)
            else:
                y = activation(y)
            y = F.linear(y, experts.to_out[e], None if config.no_bias else experts.out_bias[e])
            out[i] += weights[e] / total * y
        if block.shared is not None:
            y, _ = block.shared(token[None, None], NOTHING)
            out[i] += y[0, 0] * (block.shared_gate(token).sigmoid() if config.shared_gate else 1)
    return out


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"top_k": 3, "glu": True, "activation": "silu", "no_bias": True},
        {"top_k": 1, "router_bias": True},
        {"normalize": False, "router": "sigmoid"},
        {"router": "sigmoid", "top_k": 5},
        {"shared_dim": 13, "shared_gate": True, "glu": True},
        {"shared_dim": 3, "normalize": False},
        {"glu": True, "glu_limit": 0.4, "glu_offset": 1.0, "activation": "quick_gelu"},
        {"glu": True, "glu_offset": -0.3, "shared_dim": 3},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_definition(flags: dict):
    block = built(**flags)
    x = torch.randn(37, DIM, dtype=torch.float64, requires_grad=True)
    wanted = (x, *block.parameters())
    found = []
    for y in (by_definition(block, x), block(x[None], NOTHING)[0][0]):
        found.append((y, *torch.autograd.grad(y.sin().sum(), wanted, materialize_grads=True)))
    for slow, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow)


def test_a_gate_within_limits_of_ff():
    flags = {"ff_dim": 7, "ff_glu": True, "ff_glu_limit": 0.4, "ff_glu_offset": 1.0, "ff_activation": "quick_gelu"}
    (block,) = Encoder(dim=DIM, depth=1, heads=1, layers="ff", **flags).double().blocks()
    x = 5 * torch.randn(2, 5, DIM, dtype=torch.float64)
    up, gate = block.to_inner(x).chunk(2, -1)
    assert up.abs().max() > 0.4 and gate.max() > 0.4 and gate.min() < -0.4
    gate = gate.minimum(torch.tensor(0.4))
    expected = block.to_out((up.clamp(-0.4, 0.4) + 1) * gate * torch.sigmoid(1.702 * gate))
    torch.testing.assert_close(block(x, NOTHING)[0], expected)


def test_an_expert_that_nobody_chose_has_gradients_of_zeros():
    block = built(router_bias=True)
    with torch.no_grad():
        block.router.bias[2] = -1e9
    block(torch.randn(1, 37, DIM, dtype=torch.float64), NOTHING)[0].sum().backward()
    assert block.experts.to_inner.grad[2].eq(0).all() and block.experts.to_inner.grad[1].ne(0).any()


def test_scores_without_bound_give_no_nan():
    block = built(router="sigmoid", router_bias=True)
    with torch.no_grad():
        block.router.bias.fill_(-1e4)
    assert block(torch.randn(1, 5, DIM, dtype=torch.float64), NOTHING)[0].isfinite().all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"moe_top_k": 9}, "moe_top_k=9 is more than there are: moe_experts=8"),
        ({"moe_shared_gate": True}, "moe_shared_gate=True, but there is no shared expert: moe_shared_dim is None"),
        ({"moe_top_k": 1, "moe_normalize": True}, "moe_normalize=True with moe_top_k=1 weighs every expert 1"),
        ({"moe_glu_limit": 0.5}, "moe_glu_limit=0.5 is set, but moe_glu is False"),
        ({"moe_glu_offset": 1.0}, "moe_glu_offset=1.0 is set, but moe_glu is False"),
        ({"layers": "attn ff", "ff_glu_limit": 0.5}, "ff_glu_limit=0.5 is set, but ff_glu is False"),
        ({"layers": "attn ff", "ff_glu_offset": 1.0}, "ff_glu_offset=1.0 is set, but ff_glu is False"),
        ({"moe_dim": 7, "moe_mult": 2.0}, "moe_dim=7 is set, but moe_mult=2.0 with dim=11 makes 22 channels"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Decoder(**{"dim": DIM, "depth": 1, "heads": 1, "layers": "attn moe", **flags})
