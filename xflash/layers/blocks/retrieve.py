"""`Retriever`: top-k attention to what fell out of the window, without weights of its own (2203.08913)."""

from typing import Any, NamedTuple, cast

import torch
from einops import rearrange

from ...base.looks import has_values
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx
from ..kernels.retrieval import Piece, held, retrieve
from ..kernels.windows import Blocks
from .cosine import Cosine

__all__ = ["Memory", "Retriever", "build_retriever"]

# Tokens in a piece of a memory, in whole blocks; and those of the whole memory unless the flags say.
PIECE, LENGTH = 4096, 250_000


class Memory(NamedTuple):
    """Keys, as scores need them, and values of a ring of blocks, in pieces (b, h, blocks of w tokens, k).

    Block j of a row is in slot j % the ring's size, so that how many blocks a row has closed says what each slot holds.
    A piece is there once a row may have reached it.
    """

    k: tuple[Tensor, ...] = ()
    v: tuple[Tensor, ...] = ()


class Entries(NamedTuple):
    """The block before a call's first and all blocks of the call, key/value heads in front."""

    k: Float[Tensor, "b h g w k"]
    v: Float[Tensor, "b h g w k"]


class Retriever:
    """Reads, for every query and head, the `count` best of the last `blocks` blocks before the window."""

    def __init__(self, count: int, blocks: int, w: int, heads: int, kv_heads: int, scale: float, dropout: float):
        self.count, self.blocks, self.w = count, blocks, w
        self.heads, self.kv_heads, self.scale, self.dropout = heads, kv_heads, scale, dropout
        self.per_piece = min(max(1, PIECE // w), blocks)

    def __call__(
        self,
        q: Float[Tensor, "b n _"],
        folded: Blocks,
        memory: Memory | None,
        cosine: Cosine | None,
        ctx: Ctx,
        training: bool,
    ) -> tuple[Float[Tensor, "b n _"], Memory | None]:
        """What the tokens retrieve, heads joined, and the memory behind the call if its state is kept."""
        n = q.shape[1]
        q = rearrange(q, "b n (h k) -> b h n k", h=self.heads)
        where = (torch.arange(n)[None] + ctx.past if ctx.length is None else ctx.positions) // self.w
        memory = memory or Memory()
        closes = ctx.keep_state and not (isinstance(folded.full, int) and not folded.full)
        entries = self.entries(folded, cosine) if closes or folded.layout is not None else None
        if folded.documents is not None:
            # Beyond the reach of any other document.
            where, number = folded.documents.ordered(self.blocks + 2)
            pieces = self.parted(cast(Entries, entries), number)
        else:
            pieces = self.pieces(memory, folded, entries if folded.layout is not None else None)
        q = q if cosine is None else cosine.queries(q).to(q.dtype)
        y = retrieve(q, where, pieces, self.count, self.blocks, self.scale, self.dropout if training else 0.0)
        if entries is not None and closes:
            memory = self.with_blocks(memory, entries, folded, ctx, n)
        return rearrange(y, "b h n k -> b n (h k)"), memory if ctx.keep_state else None

    def entries(self, folded: Blocks, cosine: Cosine | None) -> Entries:
        k, v = (rearrange(t, "b g w (h k) -> b h g w k", h=self.kv_heads) for t in folded.behind())
        return Entries(k if cosine is None else cosine.keys(k).to(k.dtype), v)

    def closed(self, folded: Blocks) -> Int[Tensor, " _"]:
        """How many blocks each row had closed; one number, on the CPU, where all rows agree."""
        return folded.closed if isinstance(folded.closed, torch.Tensor) else torch.full((1,), folded.closed)

    def pieces(self, memory: Memory, folded: Blocks, entries: Entries | None) -> list[Piece]:
        """The memory and, in pieces likewise, what of the call's own blocks its later ones may retrieve from."""
        closed, size = self.closed(folded), self.per_piece
        numbers = held((closed - 1).clamp(min=0), self.blocks, min(len(memory.k) * size, self.blocks)).split(size, 1)
        found = [Piece(*piece) for piece in zip(memory.k, memory.v, numbers, strict=False)]
        # The last block and the one before it are in every window.
        if entries is None:
            return found
        usable = torch.arange(entries.k.shape[2] - 2, device=closed.device)
        return found + self.parted(entries, closed[:, None] - 1 + usable)

    def parted(self, entries: Entries, number: Int[Tensor, "_ p"]) -> list[Piece]:
        """The first of some blocks in pieces, with their numbers."""
        usable, size = number.shape[1], self.per_piece
        # A graph is tied to the number of pieces, not to that of blocks.
        count = -(-usable // size)
        found = []
        for piece in range(count):
            i, end = piece * size, usable if piece == count - 1 else (piece + 1) * size
            k, v = (t[:, :, i:end].flatten(2, 3) for t in (entries.k, entries.v))
            found.append(Piece(k, v, number[:, i:end]))
        return found

    def with_blocks(self, memory: Memory, entries: Entries, folded: Blocks, ctx: Ctx, n: int) -> Memory:
        """The memory with the blocks that this call of n tokens pushes out of the window; other pieces stay."""
        closed, w, size, full = self.closed(folded), self.w, self.per_piece, folded.full
        if isinstance(full, torch.Tensor):
            closed = closed.to(full.device, non_blocking=True)
        # A slot is there as soon as some row may have come to it.
        count = -(-min(max((ctx.past + n) // w - 1, 0), self.blocks) // size)
        slots = min(count * size, self.blocks)
        number = held((closed + full - 1).clamp(min=0), self.blocks, slots)
        # Among the entries, which begin with the block before the first.
        place = number - closed[:, None] + 1
        fresh = (number >= 0) & (place >= 0)
        # Where rows differ, a GPU is waited for once a call, not in each layer.
        touched = ctx.once(("retrieve", w, self.blocks, slots), lambda: looked(fresh))
        place, fresh = (t.to(entries.k.device, non_blocking=True) for t in (place, fresh))
        grown: tuple[list[Tensor], list[Tensor]] = [], []
        for piece in range(count):
            here = slice(piece * size, min((piece + 1) * size, slots))
            for kind, source, pieces in zip(grown, entries, memory, strict=True):
                old = pieces[len(kind)] if len(kind) < len(pieces) else None
                if old is None or any(touched[here]):
                    kind.append(self.renewed(old, source, place[:, here], fresh[:, here]))
                else:
                    kind.append(old)
        return Memory(*map(tuple, grown))

    def renewed(
        self, old: Tensor | None, source: Float[Tensor, "b h g w k"], place: Int[Tensor, "_ p"], fresh: Tensor
    ) -> Float[Tensor, "b h _ k"]:
        """A piece with the entries at `place` where `fresh`, else what it had."""
        place = place.clamp(0, source.shape[2] - 1)
        if place.shape[0] == 1:
            chosen = source.index_select(2, place[0])
        else:
            index = place[:, None, :, None, None].expand(-1, source.shape[1], -1, *source.shape[3:])
            chosen = source.gather(2, index)
        fresh = fresh[:, None, :, None, None]
        if old is None:
            return chosen.masked_fill(~fresh, 0).flatten(2, 3)
        return torch.where(fresh, chosen.to(old.dtype), old.unflatten(2, (-1, self.w))).flatten(2, 3)


def looked(fresh: Bool[Tensor, "_ p"]) -> list[bool]:
    """Which slots some row has a new block in; all of them where values cannot be had."""
    return fresh.any(0).tolist() if has_values(fresh) else [True] * fresh.shape[1]


def build_retriever(kind: str, config: Any, heads: int, kv_heads: int, scale: float) -> Retriever | None:
    """What the flags ask for; ValueError where they contradict each other."""
    length, w = config.retrieve_len, config.block_width
    if config.retrieve is None:
        if length is not None:
            raise ValueError(f"{kind}_retrieve_len={length} is set, but {kind}_retrieve is None")
        return None
    if length is not None and length % w:
        raise ValueError(f"{kind}_retrieve_len={length} is no multiple of {kind}_block_width={w}")
    blocks = -(-LENGTH // w) if length is None else length // w
    return Retriever(config.retrieve, blocks, w, heads, kv_heads, scale, config.dropout)
