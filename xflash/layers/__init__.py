"""The parts of a stack; importing them registers the blocks, norms, positions, reads, scales and joins by name."""

from . import embeddings, norms
from .blocks import attention, feedforward, flash, gau
from .joins import join, scaled
from .positions import alibi, rel_pos, relative, rotary
from .reads import read
from .scales import scale

__all__ = [
    "alibi",
    "attention",
    "embeddings",
    "feedforward",
    "flash",
    "gau",
    "join",
    "norms",
    "read",
    "rel_pos",
    "relative",
    "rotary",
    "scale",
    "scaled",
]
