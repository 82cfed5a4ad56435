"""Activations of feed-forward blocks; each is a function, registered by name."""

import torch
import torch.nn.functional as F

from ..base.registry import activations
from ..base.shapes import Float, Tensor

__all__ = ["gelu_tanh", "identity", "quick_gelu", "relu2", "solu"]


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
