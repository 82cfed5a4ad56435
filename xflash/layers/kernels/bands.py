"""Softmax attention in a window, block by block of its queries: time and memory grow with what is seen.

A query sees the keys nearer than `window`. Queries go in blocks of w, each beside the `reach` keys before it (and after
it, where both ways are seen), so that one mask fits all blocks; the first queries, which have no such keys, go alone,
and so do the last ones, which lack those after them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import transformed
from ...base.shapes import Bool, Float, Int, Tensor
from .relative import distances, toeplitz
from .softmax import attend_by_head

__all__ = ["Band", "Front", "attend_band", "band_biases", "band_masks", "pays", "seen_in_band"]

# Queries in a block, or a multiple of them.
LEAST = 64


class Band(NamedTuple):
    """Which keys a query sees: those nearer than `window`, none ahead if causal, and the first `sinks` of its row.

    The n queries are the last of m keys, all of them unless causal.
    """

    window: int
    causal: bool
    n: int
    m: int
    sinks: int = 0

    @property
    def w(self) -> int:
        """Queries in a block: half a window, of which fewer keys are read in vain than of a whole one."""
        return -(-self.window // (2 * LEAST)) * LEAST

    @property
    def reach(self) -> int:
        """Keys before a block that are read with it, in whole blocks."""
        return max(1, -(-(self.window - 1) // self.w)) * self.w

    @property
    def after(self) -> int:
        """Keys after a block that are read with it, and the last queries, which have fewer."""
        return 0 if self.causal else self.reach

    @property
    def head(self) -> int:
        """The first queries, which have fewer keys before them or sinks among these, and those that fill no block."""
        need = self.reach + self.sinks
        if not torch.compiler.is_compiling():
            # In a graph it would be a guard on how many there are.
            need = max(need - (self.m - self.n), 0)
        return self.n - (self.n - self.after - need) // self.w * self.w - self.after

    @property
    def span(self) -> int:
        """Keys that are read with a block."""
        return self.reach + self.w + self.after

    @property
    def fits(self) -> bool:
        """Whether there is a block of queries between the first and the last."""
        return self.n >= self.span + self.sinks


class Front(NamedTuple):
    """Keys and values that stand in front of the others, which every query sees, and what is added to their scores."""

    k: Float[Tensor, "b g t k"]
    v: Float[Tensor, "b g t e"]
    bias: Float[Tensor, "1 _ 1 t"] | None = None


class Piece(NamedTuple):
    """Queries that are read alike: those from `first` to `end`, in blocks of w, of the keys from `since` to `last`.

    span: how many keys a block has, `ahead` of them after its queries.  alone: whether there is one block only.  apart:
    whether the sinks are none of the keys.
    """

    # No slices: a graph takes their ends for numbers.
    first: int
    end: int
    since: int
    last: int
    w: int
    span: int
    ahead: int
    alone: bool = False
    apart: bool = True

    def queries(self, t: Float[Tensor, "b h n k"]) -> Float[Tensor, "b j h w k"]:
        """Those of the piece in their blocks."""
        return folded(t.narrow(2, self.first, self.end - self.first), self.w)

    def keys(self, t: Float[Tensor, "b h m k"], *front: Tensor | None) -> Float[Tensor, "b j h _ k"]:
        """Those of each block, with what stands in front of them."""
        t = t.narrow(2, self.since, self.last - self.since)
        blocks = t[:, None] if self.alone else overlapping(t, self.span, self.w)
        beside = [keys[:, None].expand(-1, blocks.shape[1], -1, -1, -1) for keys in front if keys is not None]
        return torch.cat((*beside, blocks), 3) if beside else blocks


def overlapping(t: Float[Tensor, "b h m k"], span: int, w: int) -> Float[Tensor, "b j h s k"]:
    """Pieces of `span` that begin every w."""
    if not (torch.compiler.is_compiling() or transformed()):
        return t.unfold(2, span, w).transpose(1, 2).mT
    # Of its gradient compilers make one addition after the other, and vmap knows none.
    blocks, each = folded(t, w), span // w
    return torch.cat([blocks.narrow(1, i, blocks.shape[1] - each + 1) for i in range(each)], 3)


def folded(t: Float[Tensor, "b h n k"], w: int) -> Float[Tensor, "b j h w k"]:
    return t.unflatten(2, (-1, w)).transpose(1, 2)


def pays(band: Band) -> bool:
    """Whether there are many more keys than are read with a block."""
    return band.n >= 2 * band.span + band.sinks


def pieces(band: Band) -> list[Piece]:
    """The first queries, the blocks, and the last queries."""
    after, head, behind, end = band.after, band.head, band.m - band.n, band.n - band.after
    keys = behind + head + after
    first = Piece(0, head, 0, keys, head, keys, after, alone=True, apart=False)
    blocks = Piece(head, end, behind + head - band.reach, band.m, band.w, band.span, after)
    last = Piece(end, band.n, end - band.reach, band.m, after, band.reach + after, 0, alone=True)
    some = torch.compiler.is_compiling() or head
    return ([first] if some else []) + [blocks] + ([last] if after else [])


def near(n: int, m: int, ahead: int, band: Band, device: torch.device) -> Bool[Tensor, "n m"]:
    """Which of m keys n queries see by their distance, behind whose last query there are `ahead`."""
    gap = torch.arange(n, device=device)[:, None] + (m - n - ahead) - torch.arange(m, device=device)
    return (gap < band.window) & (gap >= 0 if band.causal else gap > -band.window)


def with_sinks(seen: Bool[Tensor, "n m"], band: Band) -> Bool[Tensor, "n m"]:
    """What the n queries, of whose keys the first m are these, see with the sinks among them."""
    n, m = seen.shape
    sinks = (torch.arange(m, device=seen.device) < band.sinks).expand(n, -1)
    return seen | (sinks.tril(band.m - band.n) if band.causal else sinks)


def seen_in_band(band: Band, labels: Int[Tensor, "b n"] | None, device: torch.device) -> Bool[Tensor, "_ 1 n m"]:
    """The definition, as one matrix: what `attend_band` lets see. Tokens see those of their own label only."""
    seen = with_sinks(near(band.n, band.m, 0, band, device), band)[None, None]
    return seen if labels is None else seen & (labels[:, :, None] == labels[:, None])[:, None]


def band_masks(band: Band, labels: Int[Tensor, "b n"] | None, device: torch.device) -> list[Bool[Tensor, "_ 1 _ _"]]:
    """What each piece lets see, sinks that are none of its keys in front of them; one of a row for each block."""
    return [piece_mask(band, piece, labels, device) for piece in pieces(band)]


def piece_mask(
    band: Band, piece: Piece, labels: Int[Tensor, "b n"] | None, device: torch.device
) -> Bool[Tensor, "_ 1 _ _"]:
    seen = near(piece.w, piece.span, piece.ahead, band, device)
    if band.sinks:
        seen = F.pad(seen, (band.sinks, 0), value=True) if piece.apart else with_sinks(seen, band)
    if labels is None:
        return seen[None, None]
    labels = labels[:, None, :, None]
    sinks = labels[:, :, : band.sinks] if piece.apart else None
    ours, theirs = piece.queries(labels), piece.keys(labels, sinks)
    return ((ours == theirs.mT) & seen).flatten(0, 1)


def band_biases(
    band: Band, by_distance: Callable[[Int[Tensor, " l"]], Float[Tensor, "h l"]], device: torch.device
) -> list[Float[Tensor, "1 h _ _"]]:
    """What is added to the scores of each piece, by the bias of each head at distances (key minus query); no sinks."""
    gaps = [distances(piece.w, piece.span, device) + piece.ahead for piece in pieces(band)]
    pairs = zip(pieces(band), gaps, strict=True)
    return [toeplitz(by_distance(gap), piece.w, piece.span)[None] for piece, gap in pairs]


def attend_band(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b g m k"],
    v: Float[Tensor, "b g m e"],
    band: Band,
    masks: list[Bool[Tensor, "_ 1 _ _"]],
    biases: Sequence[Float[Tensor, "1 h _ _"] | None] | None = None,
    front: Front | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T * scale + bias) v over what `seen_in_band` lets see and what is in front.

    r query heads share a key head.  masks, biases: those of `band_masks` and `band_biases`.
    """
    found = []
    for piece, mask, bias in zip(pieces(band), masks, biases or [None] * len(masks), strict=True):
        mask, bias = widened(mask, bias, front)
        sinks = [t[:, :, : band.sinks] if band.sinks and piece.apart else None for t in (k, v)]
        ours = piece.queries(q)
        fronts = zip((front.k, front.v) if front else (None, None), sinks, strict=True)
        theirs = [piece.keys(t, *both) for t, both in zip((k, v), fronts, strict=True)]
        y = attend_by_head(ours.flatten(0, 1), *(t.flatten(0, 1) for t in theirs), mask, bias, scale, dropout)
        found.append(y.unflatten(0, ours.shape[:2]).transpose(1, 2).flatten(2, 3))
    return torch.cat(found, 2)


def widened(
    mask: Bool[Tensor, "_ 1 n m"], bias: Float[Tensor, "1 h n m"] | None, front: Front | None
) -> tuple[Bool[Tensor, "_ 1 n _"], Float[Tensor, "1 h n _"] | None]:
    """What is seen and added with the keys in front."""
    if front is None:
        return mask, bias
    t, (n, m) = front.k.shape[2], mask.shape[2:]
    mask = F.pad(mask, (t, 0), value=True)
    if front.bias is None:
        return mask, None if bias is None else F.pad(bias, (t, 0))
    heads = front.bias.shape[1] if bias is None else bias.shape[1]
    bias = front.bias.new_zeros(1, heads, n, m) if bias is None else bias
    return mask, torch.cat((front.bias.expand(-1, heads, n, -1), bias), -1)
