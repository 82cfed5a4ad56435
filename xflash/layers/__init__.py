"""The parts of a stack; importing them registers the blocks, norms, positions and residuals by name."""

from . import embeddings, norms, residuals
from .blocks import attention, feedforward, flash, gau
from .positions import alibi, rel_pos, relative, rotary

__all__ = [
    "alibi",
    "attention",
    "embeddings",
    "feedforward",
    "flash",
    "gau",
    "norms",
    "rel_pos",
    "relative",
    "residuals",
    "rotary",
]
