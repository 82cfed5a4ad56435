"""Activations of one's own: a function or a module in place of a name, saved where it is registered."""

import laws
import pytest
import torch
from torch import nn

from xflash import Decoder, activations, from_config


def sines(x):
    return torch.sin(x)


def stack(**flags):
    return Decoder(dim=12, depth=2, heads=2, **flags)


def test_a_function_is_used_as_it_is():
    ours, named = stack(ff_activation=torch.tanh), stack(ff_activation="tanh")
    named.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 12)
    assert torch.equal(ours(x), named(x))
    moe = [stack(layers="moe", moe_experts=2, moe_activation=fn) for fn in (torch.tanh, "tanh")]
    moe[1].load_state_dict(moe[0].state_dict())
    assert torch.equal(moe[0](x), moe[1](x))
    assert not torch.equal(ours(x), stack(ff_activation=sines)(x))


def test_a_module_is_each_layers_own_with_its_weights():
    given = nn.PReLU(init=0.1)
    net = laws.live(stack(ff_glu=True, ff_activation=given))
    first, second = (branch.block.activation for branch in net.branches if hasattr(branch.block, "activation"))
    assert first.weight is not second.weight and given.weight.item() == pytest.approx(0.1)
    net(laws.sample(net, 7)).sum().backward()
    assert first.weight.grad is not None and second.weight.grad is not None and given.weight.grad is None
    laws.chunk(net)


def test_it_is_saved_where_it_is_registered(monkeypatch):
    with pytest.raises(TypeError, match=r"sines.*JSON config; what activations\.register has entered is written by"):
        stack(ff_activation=sines).to_config()
    monkeypatch.setitem(activations._parts, "sines", sines)
    config = stack(ff_activation=sines).to_config()
    assert config["ff_activation"] == "sines"
    assert from_config(config).branches[1].block.activation is sines


@pytest.mark.parametrize("layers", ["ff", "moe"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "must be a text or a function, not 5"),
        (nn.Mish, "must be a text or a function of a tensor, not the class Mi"),
    ],
)
def test_what_is_no_function_is_refused(layers, given, said):
    with pytest.raises(TypeError, match=f"{layers}_activation {said}"):
        stack(layers=layers, **{f"{layers}_activation": given})
