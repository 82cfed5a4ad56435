"""Activations by their definitions, and the names that other libraries have for them."""

import math

import pytest
import torch

from xflash import Decoder, activations

X = torch.linspace(-5, 5, 77, dtype=torch.float64).reshape(7, 11)

BY_HAND = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: torch.where(x > 0, x, 0),
    "relu2": lambda x: torch.where(x > 0, x * x, 0),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "leaky_relu": lambda x: torch.where(x > 0, x, x / 100),
    "mish": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
    "solu": lambda x: x * torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
    "identity": lambda x: x,
}


def test_every_activation_has_a_definition_here():
    assert set(BY_HAND) == set(activations)


@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_is_what_it_is_called(name: str):
    torch.testing.assert_close(activations[name](X), BY_HAND[name](X), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("swish", "silu"), ("relu_squared", "relu2")],
)
def test_the_names_of_others_are_answered(theirs: str, ours: str):
    with pytest.raises(ValueError, match=f"unknown activation '{theirs}'; it is called '{ours}' here"):
        Decoder(dim=7, depth=1, heads=1, ff_activation=theirs)
