"""How scores are cut into tiles, and what of a tile its queries may see."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...base.shapes import Float, Int, Tensor

__all__ = ["Between", "Tile", "Work", "columns", "dropped", "hide", "prepared", "tiles"]

# Query rows of a tile, and scores alive at once: on a CPU they should fit its cache, elsewhere launches should be few.
ROWS = {"cpu": 128}
ROWS_HALF = {"cpu": 256}
# Elsewhere (the rows of a large call, those of another): low tiles have few scores that nobody sees.
ROWS_ELSEWHERE = (512, 1024)
LARGE = 2**22
SCORES = {"cpu": 2**19}
SCORES_ELSEWHERE = 2**26


class Between(NamedTuple):
    """The keys that each query may see: from `since` on and before `until`, each (1 | b, n), None where all are."""

    since: Int[Tensor, "_ n"] | None
    until: Int[Tensor, "_ n"] | None


class Work(NamedTuple):
    """What belongs to a call: batch rows with all their heads in axis 1, the mask, and the chance of each weight."""

    q: Tensor
    k: Tensor
    v: Tensor
    vector: Tensor | None
    since: Tensor | None
    until: Tensor | None
    attn_fn: str
    causal: bool
    dropout: float
    chance: torch.Generator | None


class Tile(NamedTuple):
    """Batch rows `first` .. `last`, query rows low .. high, and the keys start .. end that some of them see."""

    first: int
    last: int
    low: int
    high: int
    start: int
    end: int


def prepared(q, k, v, vector, since, until, seed, attn_fn: str, causal: bool, dropout: float) -> Work:
    chance = None
    if seed is not None:
        chance = torch.Generator(q.device)
        chance.manual_seed(int(seed))
    return Work(q, k, v, vector, since, until, attn_fn, causal, dropout, chance)


def tiles(work: Work) -> Iterator[Tile]:
    """Blocks of query rows, causal ones with key ranges that grow, in as few batch rows as fit."""
    n, m = work.q.shape[2], work.k.shape[2]
    for low, high in blocks(work, n):
        end = m - n + high if work.causal else m
        for first, last in together(work, (high - low) * end):
            yield Tile(first, last, low, high, *seen_by_some(work, first, last, low, high, end))


def columns(work: Work) -> Iterator[Tile]:
    """The same scores as blocks of keys, each with all queries that see some of them."""
    n, m = work.q.shape[2], work.k.shape[2]
    for start, end in blocks(work, m):
        low = max(0, start - (m - n)) if work.causal else 0
        for first, last in together(work, (n - low) * (end - start)):
            rows = that_see_some(work, first, last, low, start, end)
            if rows[0] < rows[1]:
                yield Tile(first, last, *rows, start, end)


def blocks(work: Work, length: int) -> Iterator[tuple[int, int]]:
    """So many tokens, cut as the device likes it."""
    (b, h, n, _), m = work.q.shape, work.k.shape[2]
    low_rows, high_rows = ROWS_ELSEWHERE
    elsewhere = low_rows if b * h * low_rows * max(n, m) >= LARGE else high_rows
    rows = (ROWS if work.q.element_size() > 2 else ROWS_HALF).get(work.q.device.type, elsewhere)
    for low in range(0, length, rows):
        yield low, min(low + rows, length)


def together(work: Work, scores: int) -> Iterator[tuple[int, int]]:
    """As many rows of the batch at once as may have so many scores, each and in each head."""
    b, h = work.q.shape[:2]
    step = max(1, SCORES.get(work.q.device.type, SCORES_ELSEWHERE) // max(1, h * scores))
    for first in range(0, b, step):
        yield first, min(first + step, b)


def seen_by_some(work: Work, first: int, last: int, low: int, high: int, end: int) -> tuple[int, int]:
    """The keys that at least one query of a tile sees; on a CPU only, for looking makes a GPU wait."""
    if work.q.device.type != "cpu":
        return 0, end
    start = 0 if work.since is None else int(rows_of(work.since, first, last, low, high).min())
    if work.until is not None:
        end = min(end, int(rows_of(work.until, first, last, low, high).max()))
    return start, max(start, end)


def that_see_some(work: Work, first: int, last: int, low: int, start: int, end: int) -> tuple[int, int]:
    """The queries from `low` on that see at least one key of a tile; on a CPU only."""
    n = work.q.shape[2]
    if work.q.device.type != "cpu" or (work.since is None and work.until is None):
        return low, n
    here = first, last, low, n
    see = torch.ones(1, n - low, dtype=torch.bool)
    if work.since is not None:
        see = see & (rows_of(work.since, *here) < end)
    if work.until is not None:
        see = see & (rows_of(work.until, *here) > start)
    some = see.any(0).nonzero()
    return (low + int(some[0]), low + int(some[-1]) + 1) if len(some) else (n, n)


def rows_of(t: Tensor, first: int, last: int, low: int, high: int) -> Tensor:
    return t[:, low:high] if t.shape[0] == 1 else t[first:last, low:high]


def hide(weights: Float[Tensor, "r i j"], work: Work, tile: Tile) -> Float[Tensor, "r i j"]:
    """`weights` with zeros where a query may not see a key; in place."""
    if work.causal:
        diagonal = work.k.shape[2] - work.q.shape[2] + tile.low - tile.start
        # Keys before the diagonal are seen by all of the tile's queries, and those far behind it see all of its keys.
        rows = max(0, tile.end - tile.start - diagonal)
        weights[..., :rows, max(diagonal, 0) :].tril_(min(diagonal, 0))
    if work.since is None and work.until is None:
        return weights
    keys = torch.arange(tile.start, tile.end, device=weights.device)
    here = tile.first, tile.last, tile.low, tile.high
    for bound, late in ((work.since, False), (work.until, True)):
        if bound is not None:
            bound = rows_of(bound, *here)[:, None, :, None]
            hidden = keys >= bound if late else keys < bound
            # A view: heads stand beside batch rows.
            weights.unflatten(0, (tile.last - tile.first, -1)).masked_fill_(hidden, 0)
    return weights


def dropped(work: Work, like: Tensor) -> Tensor | None:
    """What each weight of a tile is multiplied by; drawn in the same order in both directions."""
    if work.chance is None:
        return None
    keep = 1 - work.dropout
    return torch.empty_like(like).bernoulli_(keep, generator=work.chance).div_(keep)
