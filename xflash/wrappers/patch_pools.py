"""Pools that read the embeddings of patches: by a stack of their own, or channel by channel."""

from typing import Any

import torch
from torch import nn

from ..base.shapes import Float, Tensor
from ..stack.face import AttentionLayers
from ..stack.stacks import CrossAttender
from .pooling import mean_pool

__all__ = ["MapPool", "MaxPool", "patch_pool"]


class MapPool(nn.Module):
    """A learned token that attends to the patches (multi-head attention pooling, https://arxiv.org/abs/2106.04560)."""

    def __init__(self, layers: AttentionLayers):
        super().__init__()
        self.token = nn.Parameter(torch.empty(layers.dim).normal_(std=0.02))
        self.attn_layers = layers

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        return self.attn_layers(self.token.to(x.dtype).expand(x.shape[0], 1, -1), context=x)[:, 0]


class MaxPool(nn.Module):
    """The largest value of each channel, or the mean of that and of its mean."""

    def __init__(self, with_mean: bool):
        super().__init__()
        self.with_mean = with_mean

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        largest = x.amax(1)
        return (largest + mean_pool(x)) / 2 if self.with_mean else largest


def patch_pool(config: Any, dim: int) -> nn.Module | None:
    """The pool of that name, None for one that is made elsewhere; ValueError for a stack that it cannot read with."""
    layers = config.pool_layers
    if config.pool != "map":
        if layers is not None:
            raise ValueError(f"pool_layers is set, but pool={config.pool!r} has no layers; pool='map' has")
        return MaxPool(config.pool == "mean_max") if config.pool in ("max", "mean_max") else None
    layers = CrossAttender(dim=dim, depth=1) if layers is None else layers
    if layers.dim != dim:
        raise ValueError(f"pool_layers has dim={layers.dim}, but attn_layers has {dim}")
    if not any(block.takes_context for block in layers.blocks()):
        raise ValueError(f"the layout {layers.layout!r} of pool_layers attends to no context, which the patches are")
    return MapPool(layers)
