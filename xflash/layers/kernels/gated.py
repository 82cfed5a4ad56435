"""Attention with a free choice of weight function and length normaliser.

relu2 and Laplace go through tiles, in linear memory; the softmax, and what tiles cannot mask, a block of query rows at
a time.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F

from ...base.shapes import Bool, Float, Tensor
from .operators import operators_work
from .relative import toeplitz
from .tiled import Between, laplace, tiled_attention

__all__ = ["AttnFn", "Between", "Place", "gated_attention", "gated_attention_slow", "gated_weights", "laplace"]

AttnFn = Literal["relu2", "laplace", "softmax"]
Place = Literal["outside", "inside", "content"]

# Rows of scores alive at once: on a CPU they should fit its cache, elsewhere launches should be few.
ROWS = {"cpu": 128}
ROWS_ELSEWHERE = 1024


def gated_attention(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m e"],
    *,
    attn_fn: AttnFn,
    scale: float = 1.0,
    bias: Float[Tensor, "_ h n m"] | None = None,
    divisor: Tensor | float | Literal["row_sum"] | None = None,
    place: Place = "outside",
    allowed: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    vector: Float[Tensor, "h l"] | None = None,
    between: Between | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "b h n e"]:
    """The values summed with the weights f(scale * q k^T + bias), scaled by 1 / `divisor`.

    divisor: a number, (1 | b, n) or (1 | b, 1 | h, n); 'row_sum' (outside) lets each query's weights sum to one.
    The bias may also be given by distance (`vector`, l = m + n - 1, from -(m - 1) to n - 1, the queries being the last
    tokens), and the keys a query may see by their bounds (`between`): both then cost memory linear in the length.

    place: where the divisor acts: 'outside' f(s + bias) / divisor, 'inside' f((s + bias) / divisor), 'content'
    f(s / divisor + bias).
    causal: the n queries are the last of m tokens and see no later one. allowed: broadcasts to (b, h, n, m), False
    where a query may not see a key; a query that sees none gets zeros. Where no row sum is taken (neither softmax nor
    'row_sum'), keys that do not exist need no mask: let their values be zero. Scores are float32 at least, in tiles of
    the dtype of the queries.
    """
    check(attn_fn, divisor, place)
    if fits_tiles(q, attn_fn, bias, divisor, place, allowed, vector, dropout_p):
        return by_tiles(q, k, v, attn_fn, scale, divisor, place, allowed, causal, vector, between, dropout_p)
    bias, allowed = as_matrices(q, k, bias, allowed, vector, between)
    plain = bias is None and allowed is None and (divisor is None or place != "outside")
    if attn_fn == "softmax" and plain and v.shape[-1] == q.shape[-1]:
        return fused_softmax(q, k, v, scale, divisor, causal, dropout_p)
    outputs = []
    for part in row_blocks(q, k.shape[2], bias, divisor, allowed, causal):
        weights, rows = part_weights(part, k[:, :, : part.end], attn_fn, scale, place)
        if dropout_p:
            weights = F.dropout(weights, dropout_p)
        y = weights.to(v.dtype) @ v[:, :, : part.end]
        # A normaliser divides the sums, not the weights: those of long rows would be too small for half precision.
        outputs.append(y if rows is None else (y.to(weights.dtype) / rows).to(v.dtype))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def gated_weights(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    *,
    attn_fn: AttnFn,
    scale: float = 1.0,
    bias: Float[Tensor, "_ h n m"] | None = None,
    divisor: Tensor | float | Literal["row_sum"] | None = None,
    place: Place = "outside",
    allowed: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    vector: Float[Tensor, "h l"] | None = None,
    between: Between | None = None,
) -> Float[Tensor, "b h n m"]:
    """The matrix of weights by which `gated_attention` sums the values, before any dropout; float32 at least."""
    check(attn_fn, divisor, place)
    bias, allowed = as_matrices(q, k, bias, allowed, vector, between)
    n, m = q.shape[2], k.shape[2]
    (part,) = row_blocks(q, m, bias, divisor, allowed, causal, rows=max(n, 1))
    weights, rows = part_weights(part, k, attn_fn, scale, place)
    return weights if rows is None else weights / rows


def check(attn_fn: str, divisor, place: str) -> None:
    """ValueError for a divisor that is no number and cannot act where it is asked to."""
    if isinstance(divisor, str) and (divisor != "row_sum" or attn_fn == "softmax" or place != "outside"):
        raise ValueError(
            f"divisor={divisor!r} with attn_fn={attn_fn!r} and place={place!r}: the only name is 'row_sum', "
            "and divisor='row_sum' goes with relu2 or laplace and place='outside'"
        )


def fits_tiles(q: Tensor, attn_fn: str, bias, divisor, place: str, allowed, vector, dropout_p: float) -> bool:
    """Whether tiles can do it, and are worth it: a single query is a row."""
    if attn_fn == "softmax" or q.shape[2] == 1 or bias is not None or not operators_work():
        return False
    if dropout_p and isinstance(divisor, str):
        # Tiles would sum the weights that are left.
        return False
    if place == "inside" and vector is not None and isinstance(divisor, torch.Tensor) and attn_fn != "relu2":
        return False
    # What hides the same keys from all queries is done by values of zero.
    return allowed is None or (allowed.dim() >= 2 and allowed.shape[-2] == 1)


def by_tiles(
    q, k, v, attn_fn: str, scale: float, divisor, place: str, allowed, causal: bool, vector, between, dropout_p: float
) -> Float[Tensor, "b h n e"]:
    """`gated_attention` by tiles: divisors act on queries, bias and outputs, and hidden keys have values of zero."""
    rows = by_row(divisor)
    sums = isinstance(rows, str)
    after = None if sums or place != "outside" else rows
    if place == "inside" and vector is not None and isinstance(rows, torch.Tensor):
        # Tiles have no bias of its own for each row, but relu(s / c)^2 = relu(s)^2 / c^2.
        after = rows.to(torch.promote_types(v.dtype, torch.float32)) ** 2
    elif place != "outside" and rows is not None:
        q = (q / rows).to(q.dtype)
        vector = vector / rows if place == "inside" and vector is not None else vector
    if sums:
        v = torch.cat((v, v.new_ones(*v.shape[:3], 1)), -1)
    if allowed is not None:
        v = v.masked_fill(~allowed.mT, 0)
    q = q * scale if scale != 1 else q
    y = tiled_attention(q, k, v, attn_fn=attn_fn, vector=vector, causal=causal, between=between, dropout_p=dropout_p)
    if sums:
        y, after = y[..., :-1], summed(y[..., -1:].to(torch.promote_types(y.dtype, torch.float32)))
    # A normaliser divides the sums, not the weights: those of long rows would be too small for half precision.
    return y if after is None else (y / after).to(y.dtype)


def by_row(divisor: Any) -> Any:
    """A divisor as it divides scores (b, h, n, m): numbers and names as they are."""
    if not isinstance(divisor, torch.Tensor):
        return divisor
    return (divisor if divisor.dim() == 3 else divisor[:, None])[..., None]


def as_matrices(q, k, bias, allowed, vector, between) -> tuple[Tensor | None, Tensor | None]:
    """Bias and visibility as matrices, what is given by distance and by bounds included."""
    n, m = q.shape[2], k.shape[2]
    if vector is not None:
        laid = toeplitz(vector, n, m)[None]
        bias = laid if bias is None else bias + laid
    if between is not None:
        keys = torch.arange(m, device=q.device)
        for bound, late in ((between.since, False), (between.until, True)):
            if bound is not None:
                bound = bound[:, None, :, None]
                seen = keys < bound if late else keys >= bound
                allowed = seen if allowed is None else allowed & seen
    return bias, allowed


class Part(NamedTuple):
    """A block of query rows, what belongs to them, and the end of the keys they can see."""

    q: Float[Tensor, "b h r k"]
    bias: Float[Tensor, "_ h r m"] | None
    divisor: Tensor | float | Literal["row_sum"] | None
    seen: Bool[Tensor, "..."] | None
    end: int


def row_blocks(q: Tensor, m: int, bias, divisor, allowed, causal: bool, rows: int | None = None) -> Iterator[Part]:
    """The query rows in blocks; causal ones with key ranges that grow from block to block."""
    n, divided = q.shape[2], by_row(divisor)
    if rows is None:
        # A Python loop over a length that a compiler holds symbolic would tie the graph to that length.
        rows = max(n, 1) if torch.compiler.is_compiling() else ROWS.get(q.device.type, ROWS_ELSEWHERE)
    if allowed is not None:
        allowed = allowed.expand(*allowed.shape[:-2], n, m) if allowed.dim() >= 2 else allowed.expand(n, m)
    count = 1 if n <= rows else -(-n // rows)
    # `split`, for its backward writes each row once; that of a slice adds a whole matrix of zeros for every block.
    queries = [q] if count == 1 else q.split(rows, 2)
    biases = [bias] * count if bias is None or count == 1 else bias.split(rows, 2)
    for i in range(count):
        low = i * rows
        high = n if i == count - 1 else low + rows
        end = m - n + high if causal else m
        seen = None
        if causal and n > 1:
            keys = torch.arange(end, device=q.device)
            seen = keys <= torch.arange(m - n + low, end, device=q.device)[:, None]
        if allowed is not None:
            here = allowed[..., low:high, :end]
            seen = here if seen is None else seen & here
        part = divided[..., low:high, :] if isinstance(divided, torch.Tensor) else divided
        yield Part(queries[i], None if biases[i] is None else biases[i][..., :end], part, seen, end)


def part_weights(
    part: Part, k: Tensor, attn_fn: AttnFn, scale: float, place: Place
) -> tuple[Tensor, Tensor | float | None]:
    """The weights of a block of rows, and what each row is still to be divided by (None: nothing)."""
    q, bias, divisor, seen, _ = part
    score = q @ k.mT
    score = score.to(torch.promote_types(score.dtype, torch.float32)) * scale
    number = None if isinstance(divisor, str) else divisor
    if place == "content" and number is not None:
        score = score / number
    if bias is not None:
        score = score + bias
    if place == "inside" and number is not None:
        score = score / number
    if attn_fn == "softmax":
        # The lowest finite number: a row of -inf would come out as NaN, and is zeros instead.
        hidden = score if seen is None else score.masked_fill(~seen, torch.finfo(score.dtype).min)
        weights = hidden.softmax(-1)
    else:
        weights = score.relu().square() if attn_fn == "relu2" else laplace(score)
    if seen is not None:
        weights = weights.masked_fill(~seen, 0)
    if isinstance(divisor, str):
        return weights, summed(weights.sum(-1, keepdim=True))
    return weights, number if place == "outside" else None


def summed(sums: Float[Tensor, "b h n 1"]) -> Float[Tensor, "b h n 1"]:
    """Row sums to divide by, 1 for a query that gives weight to no key: by a tiny number gradients would overflow."""
    return sums.masked_fill(sums == 0, 1)


def fused_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float, divisor, causal: bool, dropout_p: float) -> Tensor:
    """Softmax attention by PyTorch's kernel, which has a fast form for values as wide as the keys only."""
    n, m = q.shape[2], k.shape[2]
    if divisor is not None:
        q = (q / by_row(divisor)).to(q.dtype)
    # The kernel's own causal mask lets both sides start at 0: right for as many queries as keys only.
    mask = None
    if causal and 1 < n != m:
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal and n == m, scale=scale
    )


def gated_attention_slow(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m e"],
    *,
    attn_fn: AttnFn,
    scale: float = 1.0,
    bias: Tensor | None = None,
    divisor: Tensor | float | Literal["row_sum"] | None = None,
    place: Place = "outside",
    allowed: Tensor | None = None,
    causal: bool = False,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n m"]]:
    """The definition of `gated_attention` and `gated_weights`, query by query."""
    (b, h, n, _), m = q.shape, k.shape[2]
    if allowed is None:
        allowed = torch.ones(b, h, n, m, dtype=torch.bool)
    allowed = allowed.expand(b, h, n, m)
    weights = q.new_zeros(b, h, n, m)
    for row, head, i in ((row, head, i) for row in range(b) for head in range(h) for i in range(n)):
        keys = [j for j in range(m) if allowed[row, head, i, j] and not (causal and j > m - n + i)]
        divide = by_row(divisor).expand(b, h, n, 1)[row, head, i, 0] if isinstance(divisor, torch.Tensor) else divisor
        if divide is None or divide == "row_sum":
            divide = 1
        raw = {}
        for j in keys:
            content = scale * (q[row, head, i] @ k[row, head, j])
            position = 0 if bias is None else bias[row % len(bias), head, i, j]
            score = {
                "outside": content + position,
                "inside": (content + position) / divide,
                "content": content / divide + position,
            }[place]
            raw[j] = {"relu2": lambda s: s.clamp(min=0) ** 2, "laplace": laplace, "softmax": torch.exp}[attn_fn](score)
        total = sum(raw.values()) if attn_fn == "softmax" else 1
        if divisor == "row_sum":
            total = sum(raw.values()) or 1
        if place == "outside":
            total = total * divide
        for j in keys:
            weights[row, head, i, j] = raw[j] / total
    return weights @ v, weights
