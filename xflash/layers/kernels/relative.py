"""Matrices that depend on the distance between key and query only."""

import math
from collections.abc import Callable

import torch

from ...base.shapes import Float, Int, Tensor

__all__ = ["distances", "ragged_bias", "scores_bias", "t5_bucket", "toeplitz", "toeplitz_slow", "upturned"]


def distances(n: int, m: int, device: torch.device) -> Int[Tensor, " l"]:
    """Key minus query position for the last n of m tokens against all m: -(m - 1) .. n - 1, in order."""
    return torch.arange(1 - m, n, device=device)


def toeplitz(vector: Float[Tensor, "h l"], n: int, m: int) -> Float[Tensor, "h n m"]:
    """The matrix whose entry (i, j) is the vector's entry for distance j - (m - n + i); l is m + n - 1."""
    return vector[:, None] if n == 1 else upturned(vector, n, m).flip(-2)


def upturned(vector: Float[Tensor, "h l"], n: int, m: int) -> Float[Tensor, "h n m"]:
    """The same from the last query to the first: a view, which takes no memory."""
    h, vector = vector.shape[0], vector.contiguous()
    # Not unfold: it would tie a compiled graph to one m.
    return vector.as_strided((h, n, m), (vector.stride(0), 1, 1))


def toeplitz_slow(vector: Float[Tensor, "h l"], n: int, m: int) -> Float[Tensor, "h n m"]:
    """The definition of `toeplitz`, entry by entry."""
    rows = [[vector[:, j - (m - n + i) + m - 1] for j in range(m)] for i in range(n)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def ragged_bias(vector: Float[Tensor, "h l"], positions: Int[Tensor, "b n"], m: int) -> Float[Tensor, "b h n m"]:
    """As `toeplitz`, for rows whose queries stand at positions of their own."""
    slot = torch.arange(m, device=positions.device)
    # Slots ahead of a short row's queries lie outside the vector; causality masks them whatever they are given.
    index = (slot - positions[..., None] + m - 1).clamp(0, vector.shape[-1] - 1)
    return vector[:, index].transpose(0, 1)


def scores_bias(
    by_distance: Callable[[Int[Tensor, " l"]], Float[Tensor, "h l"]],
    at: Int[Tensor, "_ n"],
    keys: Int[Tensor, "_ m"] | None,
    alike: bool,
    m: int,
) -> Float[Tensor, "_ h n m"]:
    """The bias of queries that stand at `at` against m slots that stand at `keys`; None: slot j stands at j.

    alike: all rows are as the first, its queries behind the last slots.
    """
    if keys is None:
        vector = by_distance(distances(at.shape[1], m, at.device))
        return toeplitz(vector, at.shape[1], m)[None] if alike else ragged_bias(vector, at, m)
    gap = keys[:, None] - at[..., None]
    return by_distance(gap.flatten()).unflatten(-1, gap.shape).transpose(0, 1)


def t5_bucket(distance: Int[Tensor, "..."], causal: bool, buckets: int, max_distance: int) -> Int[Tensor, "..."]:
    """T5's bucket of each distance (key minus query): exact when near, logarithmic when far, one beyond the maximum.

    Raffel et al. 2020, https://arxiv.org/abs/1910.10683. Causal: distances ahead share the bucket of distance 0.
    """
    back = -distance
    offset = torch.zeros_like(back)
    if not causal:
        buckets //= 2
        offset = (back < 0).long() * buckets
        back = back.abs()
    else:
        back = back.clamp(min=0)
    exact = buckets // 2
    # The far buckets are computed in float32 as everywhere in the field: another precision moves bucket borders.
    ratio = torch.log(back.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(back < exact, back, far)
