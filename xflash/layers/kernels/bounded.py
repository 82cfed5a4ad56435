"""Softmax attention to the keys between two bounds of each query, block by block of its queries, on a CPU.

A look at the bounds, which costs nothing there, tells which keys a block of queries sees at all; no others are read.
"""

import torch

from ...base.shapes import Bool, Float, Int, Tensor
from .relative import upturned
from .softmax import attend_by_head
from .tiles import Between

__all__ = ["LEAST", "attend_bounded", "seen_between"]

# Queries that are read together, and keys that are joined or left out together.
BLOCK = 256
# Queries from which on that is worth it.
LEAST = 1024


def seen_between(between: Between, m: int) -> Bool[Tensor, "_ 1 n m"]:
    """The definition, as one matrix: which of m keys each query sees; both bounds are there."""
    since, until = bounds_of(between)
    slot = torch.arange(m, device=since.device)
    return ((slot >= since[..., None]) & (slot < until[..., None]))[:, None]


def bounds_of(between: Between) -> tuple[Int[Tensor, "_ n"], Int[Tensor, "_ n"]]:
    since, until = between
    if since is None or until is None:
        raise ValueError("both bounds are needed")
    return since, until


def attend_bounded(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b g m k"],
    v: Float[Tensor, "b g m e"],
    between: Between,
    vector: Float[Tensor, "h l"] | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T * scale + bias) v over the keys between the bounds, of which each query sees one.

    Both bounds are (1 | b, n).  vector: the bias of each head at distances (key minus query) from 1 - n to m - 1.  r
    query heads share a key head.
    """
    since, until = bounds_of(between)
    n, m = q.shape[2], k.shape[2]
    past = q.new_zeros(1, n + m - 1) if vector is None else vector
    past = past.masked_fill(torch.arange(1 - n, m, device=q.device) > 0, -torch.inf)
    if len(since) == 1:
        return attend_row(q, k, v, since[0], until[0], vector, past, scale, dropout)
    rows = zip(q.split(1), k.split(1), v.split(1), since, until, strict=True)
    return torch.cat([attend_row(*row, vector, past, scale, dropout) for row in rows])


def attend_row(
    q, k, v, since: Tensor, until: Tensor, vector, past: Float[Tensor, "_ l"], scale: float, dropout: float
) -> Float[Tensor, "b h n e"]:
    """The same of rows whose bounds are alike.  past: the vector, or zeros, -inf where a key is ahead."""
    # Split once, so that gradients are put together once; those of slices would each be as long as the row.
    keys, values = k.split(BLOCK, 2), v.split(BLOCK, 2)
    found = []
    for i, (part, low, high) in enumerate(zip(q.split(BLOCK, 2), since.split(BLOCK), until.split(BLOCK), strict=True)):
        first, last = int(low.min()) // BLOCK, -(-int(high.max()) // BLOCK)
        theirs = [torch.cat(t[first:last], 2) for t in (keys, values)]
        begin, n, m = first * BLOCK, part.shape[2], theirs[0].shape[2]
        mask, added = None, vector
        if int(low.max()) <= begin and is_causal(high, i * BLOCK):
            added = past
        elif int(low.max()) > begin or int(high.min()) < begin + m:
            mask = seen_between(Between((low - begin)[None], (high - begin)[None]), m)
        if added is None:
            found.append(attend_by_head(part, *theirs, mask, None, scale, dropout))
            continue
        # From the last query to the first, so that a bias without a mask is a view of the vector.
        nearest = begin - i * BLOCK - n + q.shape[2]
        bias = upturned(added[:, nearest : nearest + n + m - 1], n, m)[None]
        mask = None if mask is None else mask.flip(2)
        found.append(attend_by_head(part.flip(2), *theirs, mask, bias, scale, dropout).flip(2))
    return torch.cat(found, 2)


def is_causal(until: Int[Tensor, " n"], at: int) -> bool:
    """Whether queries, the first of which stands at `at`, see up to themselves."""
    return bool((until == torch.arange(at + 1, at + 1 + len(until), device=until.device)).all())
