"""Models of transformers (made against 5.24), and folders of their weights: a file for each family of models."""

from .back import to_transformers
from .convert import from_transformers
from .folder import from_pretrained

__all__ = ["from_pretrained", "from_transformers", "to_transformers"]
