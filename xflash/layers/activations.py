"""Activations of feed-forward blocks; each is a function, registered by name."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..base.registry import activations
from ..base.shapes import Float, Tensor

__all__ = ["Activation", "activation_of", "gelu_tanh", "identity", "quick_gelu", "relu2", "softclamped", "solu"]

Activation = Callable[[Tensor], Tensor]


def activation_of(chosen: Any, flag: str) -> Activation:
    """What is registered by a name, or an activation of one's own: of a module a copy, whose weights are its user's."""
    if isinstance(chosen, str):
        return activations[chosen]
    if isinstance(chosen, type):
        raise TypeError(f"{flag} must be a text or a function of a tensor, not the class {chosen.__name__}")
    return copy.deepcopy(chosen) if isinstance(chosen, nn.Module) else chosen


def softclamped(x: Float[Tensor, "..."], limit: float) -> Float[Tensor, "..."]:
    """c tanh(x / c), which stays within the limit c."""
    return (x / limit).tanh() * limit


@activations.register("relu2")
def relu2(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """relu(x)^2 (Primer, https://arxiv.org/abs/2109.08668)."""
    return F.relu(x).square()


@activations.register("gelu_tanh")
def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """GELU by a tanh instead of the error function (https://arxiv.org/abs/1606.08415), as in GPT-2 and Gemma."""
    return F.gelu(x, approximate="tanh")


@activations.register("quick_gelu")
def quick_gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x sigmoid(1.702 x) (https://arxiv.org/abs/1606.08415), as CLIP has."""
    return x * torch.sigmoid(1.702 * x)


@activations.register("solu")
def solu(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """x softmax(x) over the channels (https://transformer-circuits.pub/2022/solu), there with a LayerNorm behind it."""
    return x * x.softmax(-1)


@activations.register("identity")
def identity(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x as it is: with ff_glu=True a bilinear layer (https://arxiv.org/abs/2002.05202)."""
    return x


for function in (F.gelu, F.silu, F.relu, F.elu, F.leaky_relu, F.mish):
    activations.register(function.__name__)(function)
activations.register("tanh")(torch.tanh)
