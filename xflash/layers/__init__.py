"""The parts of a stack; importing them registers the blocks, norms, positions and residuals by name."""

from . import attention, embeddings, feedforward, flash, gau, norms, positions, residuals

__all__ = ["attention", "embeddings", "feedforward", "flash", "gau", "norms", "positions", "residuals"]
