"""What turns by an angle computes with: frequencies, and the precision that places need."""

import torch

from ...base.shapes import Float, Tensor

__all__ = ["angle_dtype", "inverse_frequencies"]


def angle_dtype(dtype: torch.dtype) -> torch.dtype:
    """Angles and positions need float32 at least: bf16 has 33 distinct values among the last 1,024 of 8,192."""
    return torch.promote_types(dtype, torch.float32)


def inverse_frequencies(width: int, base: float, device: torch.device | None = None) -> Float[Tensor, " half"]:
    """base ** (-2i / width) in float32, as published models have them, whatever the model's dtype."""
    return 1.0 / (base ** (torch.arange(0, width, 2, device=device).float() / width))
