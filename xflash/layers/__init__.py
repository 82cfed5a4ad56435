"""The parts of a stack; importing them registers the built-in ones by name."""

from . import embeddings, norms, scores
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
    "scores",
]
