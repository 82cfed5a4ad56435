"""The parts of a stack; importing them registers the blocks, norms, positions and residuals by name."""

from . import embeddings, norms, residuals
from .blocks import attention, feedforward, flash, gau
from .positions import relative

__all__ = ["attention", "embeddings", "feedforward", "flash", "gau", "norms", "relative", "residuals"]
