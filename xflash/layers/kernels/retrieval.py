"""Exact top-k attention to a long memory in pieces (https://arxiv.org/abs/2203.08913), never with all scores at once.

Its tokens lie in blocks of w, and a query in block g of its row may look at the `reach` blocks up to g - 2.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import may_look, transformed
from ...base.shapes import Bool, Float, Int, Tensor

__all__ = ["Piece", "held", "retrieve", "retrieve_slow", "visible"]

# How many scores there may be at a time, over how many tokens of the memory where it is that long, and how many in a
# group of which only the highest is looked at first.
TILE, SPAN, GROUP = 2**24, 2**16, 8


class Piece(NamedTuple):
    """Keys and values of p blocks of a memory, key/value heads in front, and each block's number in its row.

    Numbers are below 0 where nothing is held; where all rows agree there is one row of them, on the CPU, so that a look
    at them costs nothing.
    """

    k: Float[Tensor, "b h m k"]
    v: Float[Tensor, "b h m e"]
    number: Int[Tensor, "_ p"]


def visible(number: Int[Tensor, "_ p"], where: Int[Tensor, "_ n"], reach: int) -> Bool[Tensor, "_ n p"]:
    """Which blocks a query in block `where` of its row may retrieve from."""
    ahead = where[:, :, None] - number[:, None]
    return (number >= 0)[:, None] & (ahead >= 2) & (ahead <= reach + 1)


def held(blocks: Int[Tensor, " _"], ring: int, slots: int) -> Int[Tensor, "_ p"]:
    """The number of the block in each of the first slots of a ring behind so many blocks, block j in slot j % ring.

    Below 0 where there is none yet.
    """
    newest = blocks[:, None] - 1
    return newest - (newest - torch.arange(slots, device=blocks.device)) % ring


def retrieve_slow(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b _ m k"],
    v: Float[Tensor, "b _ m e"],
    mask: Bool[Tensor, "_ n m"],
    count: int,
    scale: float,
) -> Float[Tensor, "b h n e"]:
    """Softmax over the `count` highest scores a query and head among those of `mask`; zeros where there are none."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~mask[:, None], -torch.inf)
    best = scores.topk(min(count, k.shape[2]), -1).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & mask[:, None]
    weights = scores.masked_fill(~kept, -torch.inf).softmax(-1)
    return weights.masked_fill(~kept, 0) @ v


def retrieve(
    q: Float[Tensor, "b h n k"],
    where: Int[Tensor, "_ n"],
    pieces: Sequence[Piece],
    count: int,
    reach: int,
    scale: float,
    dropout: float = 0.0,
) -> Float[Tensor, "b h n k"]:
    """The same over a memory in pieces: the best are found piece by piece, and only they are read with a gradient.

    where: the block of its row that each query is in, as `Piece.number` where all rows agree.
    """
    if not q.shape[0]:
        # Room is shared among rows, and there is none.
        return q.new_zeros(*q.shape[:3], pieces[0].v.shape[-1] if pieces else q.shape[3])
    lengths = [piece.k.shape[2] for piece in pieces] or [1]
    rows = q.shape[0] * q.shape[1]
    step = max(1, min(TILE // (rows * min(sum(lengths), SPAN)), q.shape[2]))
    # One place for all scores, for fresh memory costs as much as they do.
    room = q.new_empty(max(min(TILE, rows * step * sum(lengths)), rows * step * max(lengths)))

    def some(q: Float[Tensor, "b h r k"], where: Int[Tensor, "_ r"]) -> Float[Tensor, "b h r k"]:
        used, masks = [], []
        for piece in pieces:
            mask = visible(piece.number, where, reach)
            # What nobody sees is left out, what all see needs no mask, as far as a look costs nothing.
            known = may_look(mask)
            if known and not bool(mask.any()):
                continue
            used.append(piece)
            masks.append(None if known and bool(mask.all()) else mask.to(q.device, non_blocking=True))
        if not used:
            return q.new_zeros(*q.shape[:3], pieces[0].v.shape[-1] if pieces else q.shape[3])
        values, index = best(q, used, masks, count, room)
        k, v = (taken([getattr(piece, name) for piece in used], index).to(q.dtype) for name in ("k", "v"))
        scores = (k @ q[..., None])[..., 0].to(torch.promote_types(q.dtype, torch.float32)) * scale
        there = values > -torch.inf
        # A row of nothing but -inf would be NaN.
        weights = scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~there, 0)
        weights = F.dropout(weights, dropout).to(v.dtype)
        return (weights[..., None, :] @ v)[..., 0, :]

    if step >= q.shape[2]:
        return some(q, where)
    return torch.cat([some(q[:, :, i : i + step], where[:, i : i + step]) for i in range(0, q.shape[2], step)], 2)


@torch.no_grad()
def best(
    q: Float[Tensor, "b h n k"],
    pieces: Sequence[Piece],
    masks: Sequence[Tensor | None],
    count: int,
    room: Float[Tensor, " _"],
) -> tuple[Float[Tensor, "b h n r"], Int[Tensor, "b h n r"]]:
    """The highest scores a query and head, -inf where it may not look, and their places in all pieces joined."""
    b, h, n, _ = q.shape
    heads = pieces[0].k.shape[1]
    rows = q.reshape(b, heads, h // heads * n, q.shape[3])
    found: list[tuple[Tensor, Tensor]] = []
    start = 0
    for some in batches(pieces, masks, len(room) // (b * h * n)):
        width = sum(piece.k.shape[2] for piece, _ in some)
        scores = score(rows, some, n, room[: b * h * n * width].view(*rows.shape[:3], width))
        values, index = top(scores, count)
        found.append((values, index + start))
        start += width
        if len(found) > 1:
            values, index = (torch.cat(pair, -1) for pair in zip(*found, strict=True))
            values, chosen = values.topk(min(count, values.shape[-1]), -1)
            found = [(values, index.gather(-1, chosen))]
    return found[0][0].view(b, h, n, -1), found[0][1].view(b, h, n, -1)


def batches(
    pieces: Sequence[Piece], masks: Sequence[Tensor | None], room: int
) -> Iterator[list[tuple[Piece, Tensor | None]]]:
    """Pieces with their masks, as many at a time as have room for their tokens, at least one."""
    some, width = [], 0
    for piece, mask in zip(pieces, masks, strict=True):
        if some and width + piece.k.shape[2] > room:
            yield some
            some, width = [], 0
        some.append((piece, mask))
        width += piece.k.shape[2]
    yield some


def score(
    rows: Float[Tensor, "b h r k"], pieces: Sequence[tuple[Piece, Tensor | None]], n: int, out: Float[Tensor, "b h r m"]
) -> Float[Tensor, "b h r m"]:
    """The products of queries, n for each query head, with the keys of some pieces, -inf where they may not look."""
    at = 0
    for piece, mask in pieces:
        here = out[..., at : at + piece.k.shape[2]]
        if torch.compiler.is_compiling() or transformed():  # which take no view to write into
            here.copy_(rows @ piece.k.to(rows.dtype).mT)
        else:
            torch.matmul(rows, piece.k.to(rows.dtype).mT, out=here)
        if mask is not None:
            cells = here.unflatten(3, (mask.shape[2], -1)).unflatten(2, (-1, n))
            cells.masked_fill_(~mask[:, None, None, :, :, None], -torch.inf)
        at += piece.k.shape[2]
    return out


def top(scores: Float[Tensor, "*r m"], count: int) -> tuple[Float[Tensor, "*r _"], Int[Tensor, "*r _"]]:
    """`topk`, faster on long rows: the highest are among the groups with the highest maxima."""
    m = scores.shape[-1]
    # Not isqrt: it would tie a compiled graph to one m.
    size = next((s for s in range(GROUP, 3, -1) if s * s * count <= m), None)
    if size is None:
        return torch.topk(scores, min(count, m), -1, sorted=False)
    width = m // size
    # Group i holds i, i + width, i + 2 width, ...; the rest belongs to none.
    groups = scores[..., : size * width].unflatten(-1, (size, width))
    chosen = top(groups.amax(-2), count)[1][..., None, :]
    candidates = groups.gather(-1, chosen.expand(*groups.shape[:-1], count)).flatten(-2)
    steps = torch.arange(size, device=scores.device)[:, None] * width
    rest = torch.arange(size * width, m, device=scores.device).expand(*scores.shape[:-1], -1)
    places = torch.cat(((chosen + steps).flatten(-2), rest), -1)
    values, index = torch.cat((candidates, scores[..., size * width :]), -1).topk(count, -1, sorted=False)
    return values, places.gather(-1, index)


def taken(parts: Sequence[Float[Tensor, "b _ _ k"]], index: Int[Tensor, "b h n r"]) -> Float[Tensor, "b h n r k"]:
    """The entries at places counted through all parts joined, which are not joined for it."""
    b, h = index.shape[:2]
    row = torch.arange(b, device=index.device)[:, None, None, None].expand_as(index)
    head = (torch.arange(h, device=index.device) // (h // parts[0].shape[1]))[:, None, None].expand_as(index)
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.shape[2])
    if len(parts) == 1:
        return parts[0][row, head, index]
    if not may_look(index):
        return taken_whole(parts, starts, row, head, index)
    # Sorted by place, those of each part stand together.
    places, order = index.flatten().sort()
    ends = torch.searchsorted(places, torch.tensor(starts)).tolist()
    row, head = row.flatten()[order], head.flatten()[order]
    chosen = [
        part[row[i:j], head[i:j], places[i:j] - start]
        for part, start, i, j in zip(parts, starts, ends, ends[1:], strict=False)
        if j > i
    ]
    return torch.cat(chosen)[order.argsort()].view(*index.shape, -1)


def taken_whole(parts: Sequence[Tensor], starts: list[int], row: Tensor, head: Tensor, index: Tensor) -> Tensor:
    """The same without a look at the data, which a GPU would have to wait for: each part is asked for all entries."""
    found = torch.zeros((), dtype=parts[0].dtype, device=index.device)
    for part, start in zip(parts, starts, strict=False):
        here = (index >= start) & (index < start + part.shape[2])
        entries = part[row, head, (index - start).clamp(0, part.shape[2] - 1)]
        found = torch.where(here[..., None], entries, found)
    return found
