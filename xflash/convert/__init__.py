"""Weights from other libraries, one file a library; none of them needs to be installed."""

from .flash_pytorch import from_flash_pytorch
from .x_transformers import from_x_transformers

__all__ = ["from_flash_pytorch", "from_x_transformers"]
