"""Looking at models: what is in them, what they do with a text, how they differ, and pictures of it."""

from .capture import Call, Seen, Shown, capture

__all__ = ["Call", "Seen", "Shown", "capture"]
