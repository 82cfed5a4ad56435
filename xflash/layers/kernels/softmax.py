"""Softmax attention (https://arxiv.org/abs/1706.03762): PyTorch's fused kernel, and the definition beside it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import repeat

from ...base.looks import transformed, transformed_further
from ...base.operator import operator
from ...base.shapes import Bool, Float, Tensor
from .operators import operators_work

__all__ = ["attend", "attend_by_head", "attend_slow", "lower", "shared_attention", "unit"]

# Queries up to which the fused kernel is not worth it on a CPU, from so many bytes of keys on.
FEW = 4
LONG = 2**19


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
    if not causal and not dropout and are_few(q) and not transformed():
        return (few_queries if torch.compiler.is_compiling() else attend_few)(q, k, v, mask, float(scale))
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


def are_few(q: Float[Tensor, "b h n k"]) -> bool:
    """Whether `attend_few` is the faster way: on a CPU, where half precision would lose digits by it."""
    if q.device.type != "cpu" or q.element_size() < 4 or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():
        if not operators_work() or exporting():
            # What is exported is to run without this library where it can.
            return False
        # Any other comparison would tie a graph to a length.
        return q.shape[2] == 1 and not torch.is_grad_enabled()
    return q.shape[2] <= FEW


def exporting() -> bool:
    """Whether torch.export is at work, where PyTorch (2.7 or later) tells."""
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def attend_few(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m e"],
    mask: Tensor | None,
    scale: float,
) -> Float[Tensor, "b h n e"]:
    """`attend` for so few queries that it is all about reading keys and values; mask: boolean, or what is added.

    Each query sees a key. Products with the keys in front read many of them faster than the fused kernel on some CPUs,
    slower on others (docs/figures.md).
    """
    if k.numel() * k.element_size() < LONG:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (k @ (q * scale).mT).mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


@operator("few_queries")
def few_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`attend_few` where a compiler would take its products apart; without gradients."""
    return attend_few(q, k, v, mask, scale)


@few_queries.register_fake
def _(q, k, v, mask, scale):
    return q.new_empty(*q.shape[:3], v.shape[3])


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
