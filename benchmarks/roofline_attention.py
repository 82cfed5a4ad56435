"""Attention as PyTorch's kernels do it on CUDA: one launch forward, three backward, no matrix in memory.

Without a mask it is FlashAttention (half precision, heads of up to 256 channels), otherwise the kernel that adds a
mask to the scores, to which a boolean one is turned first; or FlexAttention, which reads what is seen only. How fast
each is: `roofline_costs.Machine`, assumed.
"""

from typing import Any, Optional

import torch
from roofline_costs import Kernel, Machine, numbers, real_bytes, seconds_of
from torch import Tensor

__all__ = ["attention_kernel", "flex_attention", "scaled_dot_product_attention"]

# Of a mask that all heads share: the part of its reads that the cache does not answer. ASSUMED.
MISSED = 0.25


@torch.library.custom_op("standin::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],  # noqa: UP045  what the schema is inferred from
    share: float,
    flex: bool,
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("by shape only")


@attention.register_fake
def _(q, k, v, mask, share, flex):
    b, h, n, _ = q.shape
    return q.new_empty(b, n, h, v.shape[3]).transpose(1, 2), q.new_empty(b, h, n, dtype=torch.float32)


@torch.library.custom_op("standin::attention_backward", mutates_args=())
def attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],  # noqa: UP045
    share: float,
    flex: bool,
    y: Tensor,
    lse: Tensor,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    raise NotImplementedError("by shape only")


@attention_backward.register_fake
def _(dy, q, k, v, mask, share, flex, y, lse, learned):
    whole = mask.shape if flex and learned else (*q.shape[:3], k.shape[2])
    dmask = q.new_empty(whole if learned else 0)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dmask


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, *ctx.how = inputs
    ctx.learned = mask is not None and mask.requires_grad
    ctx.save_for_backward(q, k, v, mask, *output)


def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, mask, y, lse = ctx.saved_tensors
    dq, dk, dv, dmask = attention_backward(dy, q, k, v, mask, *ctx.how, y, lse, ctx.learned)
    return dq, dk, dv, dmask.sum_to_size(mask.shape) if ctx.learned else None, None, None


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
    # Under a causal mask the queries end where the keys do.
    share = 1 - (query.shape[2] - 1) / (2 * key.shape[2]) if is_causal else 1.0
    return attention(query, key, value, attn_mask, share, False)[0]


def flex_attention(
    run: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """FlexAttention, where `run.share` of all scores is seen; what changes a score is asked about one, uncounted."""
    bias = None
    if score_mod is not None:
        with run.counted():
            nought = torch.zeros(1, dtype=torch.long, device=query.device)
            bias = score_mod(torch.zeros(1, device=query.device), nought, nought, nought, nought)
    return attention(query, key, value, bias, 1.0 if block_mask is None else run.share, True)[0]


def attention_kernel(machine: Machine, back: bool, args: tuple[Any, ...], outs: list[Tensor]) -> Kernel:
    """What one of the two operators costs."""
    q, k, v, mask, share, flex = args[1:7] if back else args
    b, h, n, d = q.shape
    m, e = k.shape[2], v.shape[3]
    flops = 2.0 * b * h * n * m * (d + e) * share * (2.5 if back else 1)
    fast = mask is None and q.element_size() == 2 and d == e <= 256
    kind = "flex" if flex else "flash" if fast else "efficient"
    rate = getattr(machine, kind)[back]
    rate = rate if q.element_size() == 2 else min(rate, machine.rate(q.dtype))
    moved = float(sum(real_bytes(t) for t in args if isinstance(t, Tensor)) + sum(map(numbers, outs)))
    if mask is not None and not flex:
        moved += MISSED * (b * h * n * m * mask.element_size() - real_bytes(mask))
    launches = 3 if back else 1
    return Kernel(f"attention {kind}", launches, moved, flops, *seconds_of(machine, launches, moved, flops, rate))
