"""Mixed chunk attention: full attention inside groups of w tokens, linear attention across the groups.

Hua et al. 2022, https://arxiv.org/abs/2202.10447 (the paper's s is our k, its C our w, its G our g). Behind the door
every row starts at slot 0, so the groups of a row are the groups it has alone.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from ...shapes import Float, Int, Tensor
from .relative import distances, ragged_bias, toeplitz

__all__ = ["AttnFn", "Heads", "Local", "attend", "before", "laplace", "local_bias", "mixed_chunk_slow", "outer", "read"]
__all__ += ["step_bias"]

AttnFn = Literal["relu2", "laplace", "softmax"]


class Heads(NamedTuple):
    """What each token brings: query and key inside its group, query and key across groups, value; (b, n, .) each."""

    q: Float[Tensor, "*b n k"]
    k: Float[Tensor, "*b n k"]
    far_q: Float[Tensor, "*b n k"]
    far_k: Float[Tensor, "*b n k"]
    v: Float[Tensor, "*b n e"]

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Heads":
        return Heads(*map(fn, self))


class Local(NamedTuple):
    """How scores inside a group become weights: fn(scale * q k^T + bias) / divide, with dropout."""

    fn: AttnFn
    scale: float
    divide: float = 1.0
    dropout: float = 0.0


def laplace(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A smooth step from 0 to 1 that is close to relu^2 around its middle (https://arxiv.org/abs/2209.10655)."""
    return torch.special.erf((x - math.sqrt(0.5)) * math.sqrt(2 * math.pi)) * 0.5 + 0.5


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": lambda scores: F.relu(scores).square(),
    "laplace": laplace,
    "softmax": lambda scores: scores.softmax(-1),
}


def local_bias(
    vector: Callable[[Int[Tensor, " l"]], Float[Tensor, "1 l"]] | None, n: int, m: int, causal: bool, like: Tensor
) -> Float[Tensor, "n m"] | None:
    """What is added to the scores of the last n of m tokens of a group; -inf ahead when causal, None if nothing.

    All three functions map -inf to a weight of exactly 0, which saves a pass over the weights.
    """
    bias = None if vector is None else toeplitz(vector(distances(n, m, like.device)), n, m)[0].to(like.dtype)
    if not causal:
        return bias
    ahead = torch.ones(n, m, dtype=torch.bool, device=like.device).triu(m - n + 1)
    return (like.new_zeros(n, m) if bias is None else bias).masked_fill(ahead, -math.inf)


def step_bias(
    vector: Callable[[Int[Tensor, " l"]], Float[Tensor, "1 l"]] | None, slot: Int[Tensor, " _"], w: int, like: Tensor
) -> Float[Tensor, "_ 1 1 w"]:
    """As a causal `local_bias` for one token a row, each in a slot of its own, against all w slots."""
    ahead = torch.arange(w, device=like.device) > slot[:, None]
    bias = like.new_zeros(1, 1, 1, 1)
    if vector is not None:
        bias = ragged_bias(vector(distances(w, w, like.device)), slot[:, None], w).to(like.dtype)
    return torch.where(ahead[:, None, None], -math.inf, bias)


def product(base: Tensor | None, left: Float[Tensor, "b g n _"], right: Float[Tensor, "b g _ m"], alpha: float) -> Tensor:
    """base + alpha * left @ right in one pass; base is (n, m), or as the result."""
    if base is None:
        return (left if alpha == 1 else left * alpha) @ right
    b, g, n, m = *left.shape[:3], right.shape[3]
    base = base.to(left.dtype) if base.dim() == 2 else base.to(left.dtype).expand(b, g, n, m).reshape(b * g, n, m)
    flat = torch.baddbmm(base, left.reshape(b * g, n, -1), right.reshape(b * g, -1, m), alpha=alpha)
    return flat.view(b, g, n, m)


def attend(
    near: Local,
    q: Float[Tensor, "b g n k"],
    k: Float[Tensor, "b g m k"],
    v: Float[Tensor, "b g m e"],
    bias: Tensor | None,
    far: Float[Tensor, "b g n e"] | None = None,
    visible: Tensor | None = None,
) -> Float[Tensor, "b g n e"]:
    """Attention inside each group plus `far`.

    Keys that do not exist must have values of zero; the softmax needs `visible` (b, g, m) to leave them out.
    """
    scores = product(bias, q, k.mT, near.scale)
    if near.fn == "softmax" and visible is not None:
        scores = scores.masked_fill(~visible[:, :, None], torch.finfo(scores.dtype).min)
    weights = WEIGHTS[near.fn](scores)
    if near.dropout:
        weights = F.dropout(weights, near.dropout)
    return product(far, weights, v, 1 / near.divide)


def outer(far_k: Float[Tensor, "*b n k"], v: Float[Tensor, "*b n e"], w: int) -> Float[Tensor, "*b k e"]:
    """Sum over a group's tokens of k v^T / w, in float32 at least."""
    return ((far_k / w).mT @ v).to(torch.promote_types(v.dtype, torch.float32))


def before(kv: Float[Tensor, "b g k e"], closed: Float[Tensor, "b k e"] | None = None) -> Float[Tensor, "b g k e"]:
    """For each group the sum over the groups before it, on top of `closed`; never the difference of two sums."""
    shifted = F.pad(kv, (0, 0, 0, 0, 1, -1))
    if closed is not None:
        shifted[:, 0] += closed
    return shifted.cumsum(1)


def read(far_q: Float[Tensor, "b g n k"], sums: Float[Tensor, "b _ k e"]) -> Float[Tensor, "b g n e"]:
    """Each query times the sum its group sees (one a group, or one for all groups); what divides it divides the query."""
    if sums.shape[1] == far_q.shape[1]:
        return far_q @ sums.to(far_q.dtype)
    # Broadcasting would copy the one sum for every group.
    return (far_q.flatten(1, 2) @ sums[:, 0].to(far_q.dtype)).view(*far_q.shape[:3], -1)


def mixed_chunk_slow(
    t: Heads,
    near: Local,
    w: int,
    causal: bool,
    bias: Callable[[Int[Tensor, " l"]], Float[Tensor, "1 l"]] | None = None,
    normaliser: Literal["mean", "sum", "padded_length"] = "mean",
    scope: Literal["sequence", "group"] = "sequence",
) -> Float[Tensor, "*b n e"]:
    """The definition, token by token: what the gate multiplies, for rows without padding."""
    n = t.v.shape[-2]
    out = []
    for i in range(n):
        first = i // w * w
        last = i + 1 if causal else min(first + w, n)
        scores = (t.k[..., first:last, :] @ t.q[..., i, :, None])[..., 0] * near.scale
        if bias is not None:
            scores = scores + bias(torch.arange(first, last, device=scores.device) - i)[0]
        y = (WEIGHTS[near.fn](scores)[..., None] * t.v[..., first:last, :]).sum(-2) / near.divide
        seen = range(first) if causal else range(n) if scope == "sequence" else range(first, last)
        tokens = {"mean": max(len(seen), 1), "sum": w, "padded_length": n}[normaliser]
        for j in seen:
            y = y + (t.far_q[..., i, :] * t.far_k[..., j, :]).sum(-1, keepdim=True) * t.v[..., j, :] / tokens
        out.append(y)
    return torch.stack(out, -2)
