"""What all operators of our own have to do by hand, since PyTorch does not look into them."""

import torch

from ...looks import transformed
from ...shapes import Tensor

__all__ = ["as_autocast", "operators_work"]


def as_autocast(*given: Tensor | None) -> list[Tensor | None]:
    """The tensors as PyTorch's own products take them under autocast, which leaves float64 alone."""
    device = next(t for t in given if t is not None).device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(given)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in given]


def operators_work() -> bool:
    """Whether operators of our own can be used: transforms of torch.func have no rules for them, ONNX no names."""
    return not transformed() and not torch.onnx.is_in_onnx_export()
