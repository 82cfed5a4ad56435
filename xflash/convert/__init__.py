"""Weights from other libraries, one file a library; none of them needs to be installed."""

from .block_recurrent import from_block_recurrent
from .flash_pytorch import from_flash_pytorch
from .timm import from_timm
from .transformers import from_pretrained, from_transformers, to_transformers
from .x_transformers import from_x_transformers

__all__ = [
    "from_block_recurrent",
    "from_flash_pytorch",
    "from_pretrained",
    "from_timm",
    "from_transformers",
    "from_x_transformers",
    "to_transformers",
]
