"""Mixed chunk attention: full attention inside groups of w tokens, linear attention across the groups.

Hua et al. 2022, https://arxiv.org/abs/2202.10447 (the paper's s is our k, its C our w, its G our g). Behind the door
every row starts at slot 0, so the groups of a row are the groups it has alone.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import transformed
from ...base.shapes import Bool, Float, Int, Tensor
from .gated import laplace
from .groups import Documents, Padded, place
from .relative import distances, ragged_bias, toeplitz

__all__ = ["AttnFn", "Heads", "Spec", "attend", "both_ways", "laplace", "mixed_chunk_slow", "outer", "packed", "read"]

AttnFn = Literal["relu2", "laplace", "softmax"]


class Heads(NamedTuple):
    """What each token brings: query and key inside its group, query and key across groups, value."""

    q: Float[Tensor, "b *n k"]
    k: Float[Tensor, "b *n k"]
    far_q: Float[Tensor, "b *n k"]
    far_k: Float[Tensor, "b *n k"]
    v: Float[Tensor, "b *n e"]


class Spec(NamedTuple):
    """The settings; weights inside a group are fn(scale * q k^T + bias(distance)) / divide, or none."""

    w: int
    causal: bool
    fn: AttnFn | Literal["none"] = "relu2"
    scale: float = 1.0
    divide: float = 1.0
    dropout: float = 0.0
    bias: Callable[[Int[Tensor, " l"]], Float[Tensor, "1 l"]] | None = None
    normaliser: Literal["mean", "sum", "padded_length"] = "mean"
    scope: Literal["sequence", "group"] = "sequence"


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": lambda scores: F.relu(scores).square(),
    # Of -inf the derivatives of the derivative would be NaN; from here on all are exactly 0.
    "laplace": lambda scores: laplace(scores.clamp(min=-16)),
    "softmax": lambda scores: scores.softmax(-1),
    "none": torch.zeros_like,
}


def local_bias(spec: Spec, n: int, m: int, like: Tensor) -> Float[Tensor, "n m"] | None:
    """What is added to the scores of the last n of m tokens of a group; -inf ahead when causal, None if nothing.

    All three functions map -inf to a weight of exactly 0, which saves a pass over the weights.
    """
    bias = None
    if spec.bias is not None:
        bias = toeplitz(spec.bias(distances(n, m, like.device)), n, m)[0].to(like.dtype)
    if not spec.causal or n == 1:
        return bias
    ahead = torch.ones(n, m, dtype=torch.bool, device=like.device).triu(m - n + 1)
    return (like.new_zeros(n, m) if bias is None else bias).masked_fill(ahead, -math.inf)


def step_bias(spec: Spec, slot: Int[Tensor, " b"], like: Tensor) -> Float[Tensor, "b 1 1 w"]:
    """As a causal `local_bias` for one token a row, each in a slot of its own, against all w slots."""
    ahead = (torch.arange(spec.w, device=like.device) > slot[:, None])[:, None, None]
    if spec.bias is None:
        return like.new_zeros(ahead.shape).masked_fill(ahead, -math.inf)
    bias = ragged_bias(spec.bias(distances(spec.w, spec.w, like.device)), slot[:, None], spec.w)
    return bias.to(like.dtype).masked_fill(ahead, -math.inf)


def product(
    base: Tensor | None,
    left: Float[Tensor, "b *g n _"],
    right: Float[Tensor, "b *g _ m"],
    alpha: float,
    spent: bool = False,
) -> Float[Tensor, "b *g n m"]:
    """base + alpha * left @ right in one pass; base is (n, m), or as the result, and then may be `spent` on it."""
    if base is None:
        return (left if alpha == 1 else left * alpha) @ right
    base = base.to(left.dtype)
    # With gradients a base that is a view of another would cost a copy on the way back.
    add = Tensor.baddbmm_ if spent and not (torch.is_grad_enabled() or transformed()) else torch.baddbmm
    if left.dim() == 3:
        return add(base, left, right, alpha=alpha)
    b, g, n, m = *left.shape[:3], right.shape[3]
    if base.dim() == 4:
        base = base.reshape(b * g, n, m)
    return add(base, left.flatten(0, 1), right.flatten(0, 1), alpha=alpha).view(b, g, n, m)


def attend(
    spec: Spec,
    q: Float[Tensor, "b *g n k"],
    k: Float[Tensor, "b *g m k"],
    v: Float[Tensor, "b *g m e"],
    bias: Tensor | None,
    far: Float[Tensor, "b *g n e"] | None = None,
    visible: Bool[Tensor, "b g m"] | None = None,
) -> Float[Tensor, "b *g n e"]:
    """Attention inside each group (or the only one) plus `far`, which is the caller's no longer.

    Keys that do not exist must have values of zero; the softmax also needs `visible` to leave them out.
    """
    scores = product(bias, q, k.mT, spec.scale)
    if spec.fn == "softmax" and visible is not None:
        scores = scores.masked_fill(~visible[:, :, None], torch.finfo(scores.dtype).min)
    weights = WEIGHTS[spec.fn](scores)
    if spec.dropout:
        weights = F.dropout(weights, spec.dropout)
    return product(far, weights.to(v.dtype), v, 1 / spec.divide, spent=True)


def outer(far_k: Float[Tensor, "b *g n k"], v: Float[Tensor, "b *g n e"], w: int) -> Float[Tensor, "b *g k e"]:
    """The sum over a group's tokens of k v^T / w, in float32 at least."""
    return ((far_k / w).mT @ v).to(torch.promote_types(v.dtype, torch.float32))


def read(far_q: Float[Tensor, "b g n k"], sums: Float[Tensor, "b _ k e"]) -> Float[Tensor, "b g n e"]:
    """Each query times the sum its group sees: one a group, or one for all groups."""
    if sums.shape[1] == far_q.shape[1]:
        return far_q @ sums.to(far_q.dtype)
    # Broadcasting would copy the one sum for every group.
    return (far_q.flatten(1, 2) @ sums[:, 0].to(far_q.dtype)).unflatten(1, far_q.shape[1:3])


def both_ways(t: Heads, spec: Spec, new: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b n e"]:
    """Bidirectional rows of which the first `new` tokens are real (None: all), values of the others being zero."""
    n, w = t.v.shape[1], spec.w
    short = not torch.compiler.is_compiling() and n < w
    layout = Padded(1, n, n) if short else place(n, w, 0)
    q, k, far_q, far_k, v = map(layout.put, t)
    visible = None
    full = not torch.compiler.is_compiling() and layout.groups * layout.w == n
    if spec.fn == "softmax" and (new is not None or not full):
        exists = torch.arange(n, device=v.device) < (n if new is None else new[:, None])
        visible = layout.put(exists[..., None].expand(len(v), n, 1))[..., 0]
    sums = outer(far_k, v, w)
    tokens = (torch.full((1,), n, device=v.device) if new is None else new)[:, None]
    if spec.scope == "group":
        tokens = (tokens - torch.arange(layout.groups, device=v.device) * layout.w).clamp(max=layout.w)
    else:
        sums = sums.sum(1, keepdim=True)
    if spec.normaliser != "sum":
        far_q = far_q * w / (n if spec.normaliser == "padded_length" else tokens.clamp(min=1)[..., None, None])
    bias = local_bias(spec, layout.w, layout.w, q)
    return layout.take(attend(spec, q, k, v, bias, read(far_q, sums), visible))


def packed(t: Heads, spec: Spec, documents: Documents) -> Float[Tensor, "b n e"]:
    """Rows of packed documents, each of which sees nothing of the others; no normaliser by the padded length."""
    layout, w = documents.layout, spec.w
    q, k, far_q, far_k, v = map(layout.put, t)
    kv = outer(far_k, v, w)
    # The paper mixes groups by a matrix too (its segment ids); a product with zeros is exact, unlike prefix sums.
    mix = documents.mix(spec.causal, spec.scope == "group").to(kv.dtype)
    if spec.normaliser == "mean":
        tokens = mix @ documents.filled.sum(-1)[..., None].to(kv.dtype)
        mix = mix * (w / tokens.clamp(min=1))
    sums = (mix @ kv.flatten(2)).view_as(kv)
    bias = local_bias(spec, w, w, q)
    visible = None if spec.causal else documents.filled
    return layout.take(attend(spec, q, k, v, bias, read(far_q, sums), visible))


def mixed_chunk_slow(t: Heads, spec: Spec) -> Float[Tensor, "b n e"]:
    """The definition, token by token: what the gate multiplies, for rows without padding."""
    n, w = t.v.shape[1], spec.w
    out = []
    for i in range(n):
        start = i // w * w
        end = i + 1 if spec.causal else min(start + w, n)
        scores = (t.k[:, start:end] * t.q[:, i : i + 1]).sum(-1) * spec.scale
        if spec.bias is not None:
            scores = scores + spec.bias(torch.arange(start, end, device=scores.device) - i)
        y = (WEIGHTS[spec.fn](scores)[..., None] * t.v[:, start:end]).sum(1) / spec.divide
        seen = range(start) if spec.causal else range(start, end) if spec.scope == "group" else range(n)
        tokens = {"mean": max(len(seen), 1), "sum": w, "padded_length": n}[spec.normaliser]
        for j in seen:
            y = y + (t.far_q[:, i] * t.far_k[:, j]).sum(-1, keepdim=True) * t.v[:, j] / tokens
        out.append(y)
    return torch.stack(out, 1)
