"""The feed-forward blocks of x-transformers as xflash's flags and weights."""

from functools import partial
from typing import Any

import einx
import torch
from torch import nn

from ..base.shapes import Tensor
from ..layers.blocks.feedforward import FeedForward
from .x_transformers_parts import Reader, feature, kind, read_gain, set_flags

__all__ = ["read_ff"]

# By class and what is set of it: what xflash has registered.
ACTIVATIONS = {
    "GELU(approximate='none')": "gelu",
    "GELU(approximate='tanh')": "gelu_tanh",
    "SiLU()": "silu",
    "ReluSquared()": "relu2",
    "ReLU()": "relu",
    "Tanh()": "tanh",
    "Mish()": "mish",
    "ELU(alpha=1.0)": "elu",
    "LeakyReLU(negative_slope=0.01)": "leaky_relu",
}
SOFTCLAMPED = {"softclamp_gelu": "gelu", "softclamp_silu": "silu"}

Weights = dict[str, Tensor]


def read_ff(ff: Any, reader: Reader) -> tuple[dict[str, Any], Weights, tuple[int, ...]]:
    """The flags and weights of a feed-forward block."""
    first, *rest = ff.ff
    glu = kind(first) == "GLU"
    inward, *clamp, activation = (first.proj, first.act) if glu else first
    norm = rest.pop(0) if kind(rest[0]) == "LayerNorm" else None
    drop, outward, *after = rest
    if outward.out_features != inward.in_features:
        raise feature("ff_dim_out", outward.out_features)
    inner = outward.in_features
    flags, weights = read_activation(activation, reader)
    flags |= {
        "dim": None if inner == 4 * inward.in_features else inner,
        "glu": glu,
        "no_bias": inward.bias is None and outward.bias is None,
        "post_act_ln": norm is not None,
        "dropout": drop.p,
        "sublayer_dropout": after[0].p if after else 0.0,
        "softclamp_value": float(clamp[0].fn.keywords["value"]) if clamp else None,
    }
    if glu and first.up_softclamp_value is not None:
        flags["glu_up_softclamp_value"] = float(first.up_softclamp_value)
    for key, linear in (("to_inner", inward), ("to_out", outward)):
        weights[f"{key}.weight"] = reader.take(linear.weight)
        if not flags["no_bias"]:
            # Their GLU keeps its bias when ff_no_bias takes that of the other map.
            zeros = linear.weight.new_zeros(linear.out_features)
            weights[f"{key}.bias"] = zeros if linear.bias is None else reader.take(linear.bias)
    if glu and isinstance(first.mult_bias, torch.Tensor):
        fold_gain(reader.take(first.mult_bias), "to_out" if "glu_softclamp" in flags else "to_inner", norm, weights)
    if norm is not None:
        weights["norm.gain"] = read_gain(norm, reader)
    return set_flags(flags, FeedForward.Config), weights, ()


def read_activation(activation: Any, reader: Reader) -> tuple[dict[str, Any], Weights]:
    """What an activation is called here, or itself, and its weights."""
    if isinstance(activation, partial):
        name = SOFTCLAMPED[activation.func.__name__]
        value = float(activation.keywords["value"])
        return {"activation": name, "glu_softclamp": True, "glu_gate_softclamp_value": value}, {}
    if (name := ACTIVATIONS.get(repr(activation))) is not None:
        return {"activation": name}, {}
    if kind(activation) == "SoLU":
        raise feature("ff_solu", "whose norm stands inside of the activation")
    held = [*activation.named_parameters(), *activation.named_buffers()] if isinstance(activation, nn.Module) else []
    own = reader.alike(activation) if isinstance(activation, nn.Module) else activation
    return {"activation": own}, {f"activation.{name}": reader.take(t) for name, t in held}


def fold_gain(gain: Tensor, where: str, norm: Any, weights: Weights) -> None:
    """Multiplies the gain of their GLU into the weights in front, or behind where what they give is clamped."""
    if where == "to_out":
        if norm is not None:
            raise feature("ff_glu_mult_bias", "between ff_glu_softclamp and ff_post_act_ln")
        weights["to_out.weight"] = weights["to_out.weight"] * gain
        return
    scale = einx.id("gate, value -> (gate + value)", gain, torch.ones_like(gain))
    weights["to_inner.weight"] = einx.multiply("o d, o -> o d", weights["to_inner.weight"], scale)
    weights["to_inner.bias"] = weights["to_inner.bias"] * scale
