"""The parts of a stack; importing them registers the blocks, norms, positions, reads, scales and joins by name."""

from . import embeddings, norms
from .blocks import attention, feedforward, flash, gau
from .joins import gru, hyper, join, scaled
from .positions import relative
from .reads import lime, read, unet
from .scales import scale

__all__ = [
    "attention",
    "embeddings",
    "feedforward",
    "flash",
    "gau",
    "gru",
    "hyper",
    "join",
    "lime",
    "norms",
    "read",
    "relative",
    "scale",
    "scaled",
    "unet",
]
