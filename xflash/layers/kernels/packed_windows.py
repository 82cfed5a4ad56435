"""Packed documents in blocks of w tokens that begin anew with each document, as if it stood alone.

A block of a document that has another one before it is laid out beside that one; the tokens of first blocks, which see
their own document's only, stand close together and are kept apart by a mask. So n tokens take at most twice as many
blocks as one document would, however many documents they are, and no device is waited for to count them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import may_look
from ...base.shapes import Bool, Float, Int, Tensor
from .groups import Scattered, group_count

__all__ = ["DocumentBlocks", "document_blocks"]


class DocumentBlocks(NamedTuple):
    """How the tokens of rows of packed documents lie in blocks, `later` ones of a row first, then first ones.

    layout: where each token stands.  source: (b, later * w) the tokens of the block before each later one.  number:
    (b, g) which block of its document each is, 1 for first ones, whose neighbours are before them.  seen: (b, g, w, 2w)
    which slots are of the token's document.  doc_ids: (b, n) which document each token is of, counted from 1, and
    owner: (b, later) each later block.  inside: (b, n) how many later blocks begin up to each token, 0 where it is in a
    first one.  count: (b,) those of the row.
    """

    layout: Scattered
    later: int
    source: Int[Tensor, "b _"]
    number: Int[Tensor, "b g"]
    seen: Bool[Tensor, "b g w _"]
    doc_ids: Int[Tensor, "b n"]
    owner: Int[Tensor, "b _"]
    inside: Int[Tensor, "b n"]
    count: Int[Tensor, " b"]

    def ends(self, t: Float[Tensor, "b n c"]) -> Float[Tensor, "b _ w c"]:
        """The block before each later one: all that are followed by another of their document, in their order."""
        return ends(t, self.source, self.later, self.layout.w)

    def before(self, t: Float[Tensor, "b n c"], put: Float[Tensor, "b g w c"]) -> Float[Tensor, "b g w c"]:
        """The block before each."""
        return torch.cat((self.ends(t), moved_on(put[:, self.later :])), 1)

    def ordered(self, apart: int) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b _"]]:
        """Numbers of the blocks of tokens and of those that are followed, a document's at least `apart` from another's.

        Below 0 where a token has none before its own, and where there is no block.
        """
        where = torch.where(self.inside > 0, self.inside + self.doc_ids * apart, -1)
        index = torch.arange(self.later, device=self.count.device)
        return where, torch.where(self.there(), index + self.owner * apart, -1)

    def there(self) -> Bool[Tensor, "b _"]:
        """Which of the later blocks a row has."""
        return torch.arange(self.later, device=self.count.device) < self.count[:, None]

    def spread(self, t: Float[Tensor, "b _ *_"]) -> Float[Tensor, "b g *_"]:
        """What each block has of what documents begin with and what is behind each block that is followed."""
        return torch.cat((t[:, 1:], t[:, :1].expand(-1, self.layout.groups - self.later, *t.shape[2:])), 1)


def ends(t: Tensor, source: Int[Tensor, "b _"], later: int, w: int) -> Float[Tensor, "b _ w c"]:
    return t.gather(1, source[..., None].expand(-1, -1, t.shape[2])).unflatten(1, (later, w))


def moved_on(t: Float[Tensor, "b g w c"]) -> Float[Tensor, "b g w c"]:
    """Each block in the place of the next, zeros in that of the first."""
    return F.pad(t, (0, 0, 0, 0, 1, -1))


def document_blocks(doc_ids: Int[Tensor, "b n"], position: Int[Tensor, "b n"], w: int) -> DocumentBlocks:
    """The layout for tokens that stand at `position` in documents numbered from 1 on.

    A look that costs nothing leaves out blocks that no row needs.
    """
    n, device = doc_ids.shape[1], doc_ids.device
    inside = ((position > 0) & (position % w == 0)).cumsum(1)
    rank = (position < w).cumsum(1)
    count, firsts = inside[:, -1], rank[:, -1]
    later, first = (needed(blocks, n, w) for blocks in (count, -(-firsts // w)))
    slot = torch.where(position < w, later * w + rank - 1, (inside - 1) * w + position % w)
    layout = Scattered(later + first, w, slot)
    # The first token of each later block; where a row has no more of them, any token stands for it.
    token = torch.arange(n, device=device).expand_as(slot)
    begins = layout.put(token[..., None])[:, :later, 0, 0]
    source = (begins[..., None] - w + torch.arange(w, device=device)).clamp(min=0).flatten(1)
    number = F.pad(position.gather(1, begins) // w, (0, first), value=1)
    here = layout.put(doc_ids[..., None])
    before = torch.cat((ends(doc_ids[..., None], source, later, w), moved_on(here[:, later:])), 1)
    seen = here == torch.cat((before, here), 2).mT
    inside = torch.where(position < w, 0, inside)
    owner = doc_ids.gather(1, begins)
    return DocumentBlocks(layout, later, source, number, seen, doc_ids, owner, inside, count)


def needed(blocks: Int[Tensor, " b"], n: int, w: int) -> int:
    """How many blocks the fullest row has, or more; never none."""
    return max(1, int(blocks.max())) if may_look(blocks) and len(blocks) else group_count(n, w)
