"""Modules of one's own in the place of parts of a model."""

from abc import ABC

import torch
from torch import nn

from ..base.checks import given
from ..base.shapes import Float, Tensor

__all__ = ["OwnModule", "embeddings_of"]


class OwnModule(ABC):  # noqa: B024 it is there for `isinstance`, and for what sentences call it
    """What may stand in the place of a part of a model: any module, which is saved with it if it is a Configurable."""

    called = "a torch.nn.Module"


OwnModule.register(nn.Module)


def embeddings_of(module: nn.Module, x: Tensor, width: int) -> Float[Tensor, "b n d"]:
    """What a module of one's own makes of token ids (b, n); TypeError or ValueError for anything but (b, n, width)."""
    y, wanted = module(x), f"embeddings {(*x.shape, width)}"
    if not isinstance(y, torch.Tensor) or not y.is_floating_point():
        raise TypeError(f"token_emb given ids {tuple(x.shape)} must give {wanted}, not {given(y)}")
    if tuple(y.shape) != (*x.shape, width):
        raise ValueError(f"token_emb given ids {tuple(x.shape)} must give {wanted}, not {tuple(y.shape)}")
    return y
