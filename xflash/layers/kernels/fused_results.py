"""What the two operators of the fused FLASH kernel give, not filled in yet."""

import torch

from ...base.shapes import Tensor

__all__ = ["empty", "empty_gradients"]


def empty(hidden: Tensor, gamma: Tensor, w: int, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `flash_groups` gives."""
    (b, n, c), k = hidden.shape, gamma.shape[1]
    e = (c - k) // 2
    groups = (n + w - 1) // w
    y = hidden.new_empty(b, n if keep else 0, e)
    # Groups and channels in one axis: a number of groups that may be 1 would be a guard on the length.
    sums = hidden.new_empty(b, groups * k if keep else 0, e)
    after = hidden.new_empty(b, k, e, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return hidden.new_empty(b, n, e), y, sums, after


def empty_gradients(hidden, gamma, beta, vector) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `flash_groups_backward` gives."""
    (b, _, c), k = hidden.shape, gamma.shape[1]
    exact = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty(hidden.shape),
        gamma.new_empty(gamma.shape),
        gamma.new_empty((0, k) if beta is None else beta.shape),
        gamma.new_empty(0) if vector is None else vector.new_empty(vector.shape),
        hidden.new_empty(b, k, (c - k) // 2, dtype=exact),
    )
