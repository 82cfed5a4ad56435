"""One vector out of a sequence: the mean of its tokens, its first token, or a learned weighting of them.

Each is a pure function and a module; a mask (b, n) leaves padding out, and a row of padding alone gives zeros.
"""

import torch
from torch import nn

from ..base.checks import as_mask, check_stream, given
from ..base.shapes import Bool, Float, Tensor, typed

__all__ = ["POOLS", "FirstPool", "LearnedPool", "MeanPool", "attention_pool", "first_pool", "mean_pool"]


def mean_pool(x: Float[Tensor, "b n d"], mask: Tensor | None = None) -> Float[Tensor, "b d"]:
    """The mean (b, d) of the tokens that the mask calls real, summed in float32 at least.

    TypeError or ValueError for a mask that is not (b, n) booleans or 0/1 integers.
    """
    return mean_over(x, checked(x, mask))


def first_pool(x: Float[Tensor, "b n d"], mask: Tensor | None = None) -> Float[Tensor, "b d"]:
    """The first real token (b, d) of each row, where a class token stands; errors as `mean_pool`."""
    return first_of(x, checked(x, mask))


def attention_pool(
    x: Float[Tensor, "b n d"], query: Float[Tensor, "*k d"], mask: Tensor | None = None
) -> Float[Tensor, "b *k d"]:
    """Tokens weighted by softmax(x query / sqrt(d)) over the real ones: (b, d), or (b, k, d) of k queries (k, d).

    With a query of zeros it is the mean. Weights are float32 at least (https://arxiv.org/abs/1810.00825, one seed).
    Errors as `mean_pool`.
    """
    mask = checked(x, mask)
    if not isinstance(query, torch.Tensor) or not query.is_floating_point():
        raise TypeError(f"query must be a floating-point tensor ({x.shape[2]},), not {given(query)}")
    if query.dim() not in (1, 2) or query.shape[-1] != x.shape[2]:
        raise ValueError(f"query must be ({x.shape[2]},), one number a channel, or several, not {tuple(query.shape)}")
    return attend_over(x, query, mask)


def checked(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask as booleans; TypeError or ValueError for tokens or a mask that are none."""
    check_stream("x", x)
    return None if mask is None else as_mask(mask, tuple(x.shape[:2]))


@typed
def mean_over(x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b d"]:
    exact = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return x.mean(1, dtype=exact).to(x.dtype)
    total = x.masked_fill(~mask[..., None], 0).sum(1, dtype=exact)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)


@typed
def first_of(x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b d"]:
    if mask is None:
        return x[:, 0]
    first = mask & (mask.cumsum(1) == 1)
    return x.masked_fill(~first[..., None], 0).sum(1)


@typed
def attend_over(
    x: Float[Tensor, "b n d"], query: Float[Tensor, "*k d"], mask: Bool[Tensor, "b n"] | None
) -> Float[Tensor, "b *k d"]:
    # Products and sums, not a matmul: autocast would round the scores to half precision.
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    if mask is not None:
        exact = exact.masked_fill(~mask[..., None], 0)
    if query.dim() == 2:
        exact, mask = exact[:, None], None if mask is None else mask[:, None]
        query = query[:, None]
    scores = (exact * query.to(exact.dtype)).sum(-1) * x.shape[-1] ** -0.5
    if mask is not None:
        # The lowest number and not -inf: a softmax over nothing but -inf is NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1)[..., None] * exact).sum(-2).to(x.dtype)


class MeanPool(nn.Module):
    """`mean_pool` as a module; `dim` is taken for the sake of one interface."""

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean_pool(x, mask)


class FirstPool(MeanPool):
    """`first_pool` as a module."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return first_pool(x, mask)


class LearnedPool(nn.Module):
    """`attention_pool` with one learned query, which starts at zero: at the start it is the mean.

    Several queries start small: alike they would stay so for ever.
    """

    def __init__(self, dim: int, count: int = 1):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim) if count == 1 else torch.empty(count, dim).normal_(std=0.02))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return attention_pool(x, self.query, mask)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.query.shape))


POOLS: dict[str, type[nn.Module]] = {"mean": MeanPool, "cls": FirstPool, "attn": LearnedPool}
