"""Modules of one's own in the place of parts of a model."""

from typing import Any

import torch
from torch import nn

from ..base.checks import given, shown
from ..base.shapes import Float, Tensor

__all__ = ["as_module", "embeddings_of"]


def as_module(name: str, module: Any) -> nn.Module:
    """`module`; TypeError for what is none. Its config is the model's if it is a Configurable; others have none."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, not {shown(module)}")
    return module


def embeddings_of(module: nn.Module, x: Tensor, width: int) -> Float[Tensor, "b n d"]:
    """What a module of one's own makes of token ids (b, n); TypeError or ValueError for anything but (b, n, width)."""
    y, wanted = module(x), f"embeddings {(*x.shape, width)}"
    if not isinstance(y, torch.Tensor) or not y.is_floating_point():
        raise TypeError(f"token_emb given ids {tuple(x.shape)} must give {wanted}, not {given(y)}")
    if tuple(y.shape) != (*x.shape, width):
        raise ValueError(f"token_emb given ids {tuple(x.shape)} must give {wanted}, not {tuple(y.shape)}")
    return y
