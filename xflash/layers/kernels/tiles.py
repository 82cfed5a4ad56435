"""How scores are cut into tiles, and what of a tile its queries may see."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...base.shapes import Float, Int, Tensor

__all__ = ["Between", "Tile", "Work", "dropped", "hide", "prepared", "tiles"]

# Query rows of a tile, and scores alive at once: on a CPU they should fit its cache, elsewhere launches should be few.
ROWS = {"cpu": 128}
ROWS_HALF = {"cpu": 256}
ROWS_ELSEWHERE = 1024
SCORES = {"cpu": 2**19}
SCORES_ELSEWHERE = 2**25


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
    (b, h, n, _), m = work.q.shape, work.k.shape[2]
    device = work.q.device.type
    rows = (ROWS if work.q.element_size() > 2 else ROWS_HALF).get(device, ROWS_ELSEWHERE)
    for low in range(0, n, rows):
        high = min(low + rows, n)
        end = m - n + high if work.causal else m
        together = max(1, SCORES.get(device, SCORES_ELSEWHERE) // (h * (high - low) * end))
        for first in range(0, b, together):
            last = min(first + together, b)
            yield Tile(first, last, low, high, *seen_by_some(work, first, last, low, high, end))


def seen_by_some(work: Work, first: int, last: int, low: int, high: int, end: int) -> tuple[int, int]:
    """The keys that at least one query of a tile sees; on a CPU only, for looking makes a GPU wait."""
    if work.q.device.type != "cpu":
        return 0, end
    start = 0 if work.since is None else int(rows_of(work.since, first, last, low, high).min())
    if work.until is not None:
        end = min(end, int(rows_of(work.until, first, last, low, high).max()))
    return start, max(start, end)


def rows_of(t: Tensor, first: int, last: int, low: int, high: int) -> Tensor:
    return t[:, low:high] if t.shape[0] == 1 else t[first:last, low:high]


def hide(weights: Float[Tensor, "r i j"], work: Work, tile: Tile) -> Float[Tensor, "r i j"]:
    """`weights` with zeros where a query may not see a key; in place."""
    if work.causal:
        diagonal = work.k.shape[2] - work.q.shape[2] + tile.low - tile.start
        # Keys before the diagonal are seen by all of the tile's queries.
        weights[..., max(diagonal, 0) :].tril_(min(diagonal, 0))
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
