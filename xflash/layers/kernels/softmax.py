"""Softmax attention (https://arxiv.org/abs/1706.03762): PyTorch's fused kernel, and the definition beside it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import repeat

from ...base.looks import transformed_further
from ...base.shapes import Bool, Float, Tensor

__all__ = ["attend", "attend_by_head", "attend_slow", "lower", "shared_attention", "unit"]


def lower(n: int, m: int, device: torch.device) -> Bool[Tensor, "n m"]:
    """What n queries that are the last of m tokens may see, each itself and those before it."""
    return torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)


def softmax(scores: Float[Tensor, "*_ m"]) -> Float[Tensor, "*_ m"]:
    """The weights that the fused kernel has, in float32 at least."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def attend_slow(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m e"],
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
    before: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    weigh: Callable[[Tensor], Tensor] = softmax,
    behind: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n m"]]:
    """softmax(q k^T * scale + bias) v and the matrix itself; the definition of what the fused kernel computes.

    before: what becomes of the scores, told what may be seen, before the others are hidden.  weigh: their weights.
    behind: what becomes of those before they meet the values.
    """
    scores = q @ k.mT * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        below = lower(q.shape[2], k.shape[2], q.device)
        mask = below if mask is None else mask & below
    if before is not None:
        scores = before(scores, mask)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.dropout(weigh(scores), dropout)
    if behind is not None:
        weights = behind(weights)
    return weights.to(v.dtype) @ v, weights


def attend(q, k, v, mask=None, bias=None, causal=False, scale=1.0, dropout=0.0) -> Float[Tensor, "b h n e"]:
    """The same through PyTorch's fused kernel; `mask` (True = may attend) and `bias` broadcast to (b, h, n, m)."""
    if bias is not None:
        bias = bias.to(q.dtype)
        if causal:
            n, m = q.shape[2], k.shape[2]
            later = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
            bias, causal = bias.masked_fill(later, -torch.inf), False
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if transformed_further():
        if mask is not None and mask.dtype == torch.bool:
            mask = q.new_zeros(()).masked_fill(~mask, -torch.inf)
        return torch.ops.aten._scaled_dot_product_attention_math(q, k, v, mask, dropout, causal, scale=scale)[0]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, dropout_p=dropout)


def attend_by_head(q, k, v, mask, bias, scale: float, dropout: float) -> Float[Tensor, "b h n e"]:
    """`attend` where r query heads share a key head: as r times as many queries of it, so that no key is repeated."""
    r = q.shape[1] // k.shape[1]
    if r == 1:
        return attend(q, k, v, mask, bias, False, scale, dropout)
    shape = (k.shape[1], r)
    mask = None if mask is None else mask.repeat(1, 1, r, 1)
    if bias is not None:
        bias = bias.repeat(1, 1, r, 1) if bias.shape[1] == 1 else bias.unflatten(1, shape).flatten(2, 3)
    y = attend(q.unflatten(1, shape).flatten(2, 3), k, v, mask, bias, False, scale, dropout)
    return y.unflatten(2, (r, -1)).flatten(1, 2)


def unit(t: Float[Tensor, "*_ k"]) -> Float[Tensor, "*_ k"]:
    """`t` l2-normalised; zeros stay zeros in float16 too, where PyTorch's own least norm would vanish."""
    return F.normalize(t, dim=-1, eps=1e-6)


def shared_attention(
    q: Float[Tensor, "b h r k"],
    k: Float[Tensor, "b _ s k"],
    v: Float[Tensor, "b _ s k"],
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: float,
    dropout: float = 0.0,
    fused: bool = True,
) -> Float[Tensor, "b h r k"]:
    """`attend` (or its slow twin) where groups of query heads share key/value heads: head h uses h // r."""
    r = q.shape[1] // k.shape[1]
    if r > 1:
        k, v = (repeat(t, "b h m k -> b (h r) m k", r=r) for t in (k, v))
    if fused:
        return attend(q, k, v, mask, bias, False, scale, dropout)
    return attend_slow(q, k, v, mask, bias, False, scale, dropout)[0]
