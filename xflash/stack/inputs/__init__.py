"""The side inputs of a call; importing them registers them by name."""

from . import condition, context, grid, tokens

__all__ = ["condition", "context", "grid", "tokens"]
