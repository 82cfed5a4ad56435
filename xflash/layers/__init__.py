"""The parts of a stack; importing them registers the built-in ones by name."""

from . import embeddings, norms, residuals, scores
from .blocks import attention, feedforward, flash, gau
from .positions import relative

__all__ = ["attention", "embeddings", "feedforward", "flash", "gau", "norms", "relative", "residuals", "scores"]
