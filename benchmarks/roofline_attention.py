"""Attention as PyTorch's kernels do it on CUDA: one launch forward, three backward, no matrix in memory.

Without a mask it is FlashAttention (half precision, heads of up to 256 channels), otherwise the kernel that adds a
mask to the scores, to which a boolean one is turned first. How fast each is: `roofline_costs.Machine`, assumed.
"""

from typing import Any, Optional

import torch
from roofline_costs import Kernel, Machine, numbers, real_bytes, seconds_of
from torch import Tensor

__all__ = ["attention_kernel", "scaled_dot_product_attention"]

# Of a mask that all heads share: the part of its reads that the cache does not answer. ASSUMED.
MISSED = 0.25


@torch.library.custom_op("standin::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],  # noqa: UP045  what the schema is inferred from
    causal: bool,
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("by shape only")


@attention.register_fake
def _(q, k, v, mask, causal):
    b, h, n, _ = q.shape
    return q.new_empty(b, n, h, v.shape[3]).transpose(1, 2), q.new_empty(b, h, n, dtype=torch.float32)


@torch.library.custom_op("standin::attention_backward", mutates_args=())
def attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],  # noqa: UP045
    causal: bool,
    y: Tensor,
    lse: Tensor,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    raise NotImplementedError("by shape only")


@attention_backward.register_fake
def _(dy, q, k, v, mask, causal, y, lse, learned):
    dmask = q.new_empty((*q.shape[:3], k.shape[2]) if learned else 0)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dmask


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.causal = inputs
    ctx.learned = mask is not None and mask.requires_grad
    ctx.save_for_backward(q, k, v, mask, *output)


def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, mask, y, lse = ctx.saved_tensors
    dq, dk, dv, dmask = attention_backward(dy, q, k, v, mask, ctx.causal, y, lse, ctx.learned)
    return dq, dk, dv, dmask.sum_to_size(mask.shape) if ctx.learned else None, None


attention.register_autograd(backward, setup_context=keep)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """PyTorch's own, on the stand-in device."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, zero, -torch.inf)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    return attention(query, key, value, attn_mask, is_causal)[0]


def attention_kernel(machine: Machine, back: bool, args: tuple[Any, ...], outs: list[Tensor]) -> Kernel:
    """What one of the two operators costs."""
    q, k, v, mask, causal = args[1:6] if back else args
    b, h, n, d = q.shape
    m, e = k.shape[2], v.shape[3]
    # Under a causal mask the queries end where the keys do.
    share = 1 - (n - 1) / (2 * m) if causal else 1.0
    flops = 2.0 * b * h * n * m * (d + e) * share * (2.5 if back else 1)
    kind = "flash" if mask is None and q.element_size() == 2 and d == e <= 256 else "efficient"
    rate = getattr(machine, kind)[back]
    rate = rate if q.element_size() == 2 else min(rate, machine.rate(q.dtype))
    moved = float(sum(real_bytes(t) for t in args if isinstance(t, Tensor)) + sum(map(numbers, outs)))
    if mask is not None:
        moved += MISSED * (b * h * n * m * mask.element_size() - real_bytes(mask))
    launches = 3 if back else 1
    return Kernel(f"attention {kind}", launches, moved, flops, *seconds_of(machine, launches, moved, flops, rate))
