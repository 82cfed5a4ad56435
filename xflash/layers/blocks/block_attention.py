"""`block_attn`: softmax attention to a token's own block and the one before, with bounded memory."""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...base.registry import blocks
from ...base.shapes import Bool, Float, Int, Tensor, typed
from ...base.state import Ctx
from ..kernels.buffers import emptied
from ..kernels.groups import Padded, Scattered, join_groups, part_groups
from ..kernels.packed_windows import document_blocks
from ..kernels.windows import Blocks, Older, Window, fold, fold_documents, kept, slots_of, window_mask, within
from ..positions.distance import own_bias
from ..projection import key_and_value, whole
from ..scores.read import SoftmaxRead, rows_of
from ..scores.step import Read
from ..site import Site
from .block_flags import BlockFlags
from .compress import Compressor, build_compressor, reconstruction
from .cosine import Cosine
from .multi_head import count_heads
from .reading import Reading
from .retrieve import Memory, build_retriever
from .state_read import StateReader

__all__ = ["BlockAttention"]


@blocks.register("block_attn")
class BlockAttention(Reading):
    """Each token attends to its own block of w tokens, up to itself, and to the whole block before (sliding: w tokens).

    The local attention of the block-recurrent transformer (https://arxiv.org/abs/2203.07852), whose state is bounded:
    Transformer-XL's memory (https://arxiv.org/abs/1901.02860) of one block, in every call the same. What falls out of
    it may be kept compressed (https://arxiv.org/abs/1911.05507). Positions count inside the window, so that rotary and
    xPos stay small however long the text is. The paper's W is our w.
    """

    kind = "block_attn"
    honours = frozenset({"doc_ids"})
    causal_only = True
    auxiliary_by = "compress_loss=True"
    positions = frozenset({"rotary", "rel_pos", "alibi", "dynamic", "polar"})
    counts_places = True

    Config = BlockFlags

    def __init__(self, config: BlockFlags, site: Site, reads: int = 0):
        super().__init__(config, site)
        self.heads, self.kv_heads = count_heads(self.kind, config, site)
        width, inner = config.dim_head, self.heads * config.dim_head
        self.scale = config.cosine_scale if config.cosine else width**-0.5
        self.to_q = nn.Linear(site.dim, inner, bias=False)
        self.key_value = nn.Linear(site.dim, 2 * self.kv_heads * width, bias=False)
        self.retriever = build_retriever(self.kind, config, self.heads, self.kv_heads, self.scale)
        reads += len(config.read_from) + (self.retriever is not None)
        self.to_out = site.linear_out((1 + reads) * inner)
        self.cosine = Cosine(width, f"{self.kind}_cosine") if config.cosine else None
        self.reader = self.softmax_read(config, self.scale, config.dropout)
        if config.retrieve and not self.reader.plain:
            raise ValueError(
                f"{self.kind}_retrieve={config.retrieve} reads by a plain softmax: leave out {self.kind}_scores and "
                f"{self.kind}_weight_fn, or that"
            )
        read_scale = config.read_cosine_scale if config.read_cosine else width**-0.5
        read_cosine = f"{self.kind}_read_cosine" if config.read_cosine else None
        self.readers = nn.ModuleList(
            StateReader(self.softmax_read(config, read_scale), site.dim, self.heads, self.kv_heads, width, read_cosine)
            for _ in config.read_from
        )
        self.rel_pos_bias = own_bias(config.rel_pos_bias, self.heads, True, 0)
        self.compressor = build_compressor(self.kind, config, self.kv_heads)
        # A memory has room for as many blocks as there may be.
        self.steady = self.retriever is None

    def softmax_read(self, config: Any, scale: float, dropout: float = 0.0) -> SoftmaxRead:
        """One of the layer's reads, with the steps that the flags ask for."""
        flash = None if config.flash else False
        return SoftmaxRead(self.kind, config, self.site, self.heads, scale, dropout=dropout, flash=flash)

    def bias_heads(self) -> int:
        return self.heads

    def optional(self, state: Any) -> tuple[str, ...]:
        # A block has to be full before it is compressed.
        return ("compressor",) if self.compressor is not None else ()

    def blank(self, batch: int, like: Tensor) -> Any:
        """The state of rows that have seen nothing, in the dtype and on the device of `like`."""
        k = like.new_zeros(batch, self.config.block_width, self.kv_heads * self.config.dim_head)
        older = None
        if self.compressor is not None:
            short = self.config.block_width // self.compressor.factor
            older = like.new_zeros(batch, self.compressor.blocks, short, k.shape[2])
        window = Window(*(k.clone() for _ in range(4)), older, None if older is None else older.clone())
        if self.retriever is not None:
            window = window._replace(memory=Memory())
        if self.config.compress_loss:
            window = window._replace(lost=like.new_zeros(batch, dtype=torch.promote_types(like.dtype, torch.float32)))
        return window

    def reserve(self, state: Any, used: int, need: int, copy: bool, length: Tensor | None) -> Any:
        if state is None or not copy:
            return state
        fill = (used if length is None else length) % self.config.block_width
        return state._replace(open_k=emptied(state.open_k, fill), open_v=emptied(state.open_v, fill))

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Window | None = None
    ) -> tuple[Float[Tensor, "b n d"], Window | None]:
        folded = self.fold(x, ctx, state)
        y, state = self.local(x, folded, ctx, state)
        return self.to_out(torch.cat((y, *self.read_others(x, ctx)), -1)), state

    def projected(self, name: str, x: Float[Tensor, "b n d"], heads: int) -> Float[Tensor, "b n _"]:
        """What a projection gives for so many heads."""
        return whole(getattr(self, name)(x), heads * self.config.dim_head, self.kind)

    def reads_states(self) -> tuple[int, ...]:
        return self.config.read_from

    def read_others(self, x: Float[Tensor, "b n d"], ctx: Ctx) -> list[Float[Tensor, "b n _"]]:
        """What the tokens read from the state vectors of other layers."""
        pairs = zip(self.readers, self.config.read_from, strict=True)
        return [reader(x, ctx.states[number].to(x.dtype), ctx) for reader, number in pairs]

    def fold(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Window | None) -> Blocks:
        """The keys and values of the tokens, in blocks behind what the state holds."""
        k, v = key_and_value(self.projected("key_value", x, 2 * self.kv_heads), self.kv_heads)
        n, w = x.shape[1], self.config.block_width
        real = ctx.real(n)
        if real is not None:
            k, v = (t.masked_fill(~real[..., None], 0) for t in (k, v))
        if (ids := ctx.doc_ids) is not None:
            make = partial(document_blocks, ids, ctx.doc_positions(), w)
            return fold_documents(k, v, ctx.once(("documents in blocks", w), make))
        filled: Any = ctx.past if ctx.length is None else ctx.length
        together = state is not None and n == 1
        if torch.compiler.is_compiling():
            # What rows have in their open block would be a guard, were it a number.
            filled = filled if state is None else ctx.filled().expand(x.shape[0])
        elif ctx.uniform:
            together = ctx.past % w + n <= w
        if together:
            return within(k, v, state, w, filled, ctx.new, ctx.in_place)
        return fold(k, v, state, w, filled, ctx.new)

    def local(
        self, x: Float[Tensor, "b n d"], folded: Blocks, ctx: Ctx, state: Window | None
    ) -> tuple[Float[Tensor, "b n _"], Window | None]:
        """What the tokens read from their windows and retrieve from before them, heads joined, and the state."""
        older = None if self.compressor is None else self.compressor.older(folded, state)
        q = self.projected("to_q", x, self.heads)
        y = self.alone(q, folded, older, ctx) if folded.layout is None else self.across(q, folded, older, ctx)
        memory = None
        if self.retriever is not None:
            past = None if state is None else state.memory
            found, memory = self.retriever(q, folded, past, self.cosine, ctx, self.training)
            y = torch.cat((y, found), -1)
        if not ctx.keep_state:
            return y, None
        rest = folded.rest()._replace(memory=memory)
        if self.compressor is not None and self.config.compress_loss:
            lost = self.lost(self.compressor, q, folded, ctx, None if state is None else state.lost)
            rest = rest._replace(lost=lost)
        if older is not None:
            k, v = (kept(t, folded.full, older.m) for t in (older.k, older.v))
            rest = rest._replace(older_k=k, older_v=v)
        return y, rest

    def lost(
        self, compressor: Compressor, q: Tensor, folded: Blocks, ctx: Ctx, before: Tensor | None
    ) -> Float[Tensor, " b"]:
        """The reconstruction loss of the block before each token's, summed over its row's tokens since it began."""
        n, layout, g = q.shape[1], folded.layout, folded.k.shape[1]
        queries = q if layout is None else join_groups(layout.put(q))
        blocks = map(join_groups, (folded.before_k, folded.before_v))
        gap = reconstruction(compressor, queries, *blocks, self.heads, self.scale, self.cosine)
        gap = gap if layout is None else layout.take(part_groups(gap, q.shape[0], g)[..., None])[..., 0]
        counted = ctx.positions >= self.config.block_width
        real = ctx.real(n)
        total = gap.masked_fill(~(counted if real is None else counted & real), 0).sum(1)
        return total if before is None else before + total

    def auxiliary(self, state: Any) -> Float[Tensor, " b"] | None:
        return None if state is None else state.lost

    def across(self, q: Tensor, folded: Blocks, older: Older | None, ctx: Ctx) -> Float[Tensor, "b n _"]:
        """All blocks at once, folded into the batch."""
        layout, w = cast("Padded | Scattered", folded.layout), self.config.block_width
        queries = layout.put(q)
        k, v, extra, filled = slots_of(folded, older, w)
        where = torch.arange(w, device=q.device)[None]
        mask = window_mask(where, w, extra, self.config.reach == "sliding") & filled[:, :, None]
        if folded.documents is not None:
            mask = mask & F.pad(folded.documents.seen, (extra, 0), value=True)
        mask = join_groups(mask.expand(q.shape[0], -1, -1, -1))
        y = self.read(*map(join_groups, (queries, k, v)), mask, where + (extra + w), ctx, queries.shape[1])
        return layout.take(part_groups(y, *queries.shape[:2]))

    def alone(self, q: Tensor, folded: Blocks, older: Older | None, ctx: Ctx) -> Float[Tensor, "b n _"]:
        """Tokens that stay in the open block of their row."""
        n, w = q.shape[1], self.config.block_width
        k, v, extra, filled = slots_of(folded, older, w)
        known = ctx.uniform and not torch.compiler.is_compiling()
        first: Any = ctx.past % w if known else ctx.filled().expand(q.shape[0])[:, None] % w
        where = torch.arange(n, device=q.device)[None] + first
        mask = window_mask(where, w, extra, self.config.reach == "sliding") & filled
        k, v = k[:, 0], v[:, 0]
        if isinstance(first, int):
            # Slots that no row has filled need not be looked at.
            begin = 0 if folded.closed else extra + w
            seen = slice(begin, extra + w + first + n)
            k, v, mask, extra = k[:, seen], v[:, seen], mask[..., seen], extra - begin
        return self.read(q, k, v, mask, where + extra + w, ctx)

    def read(
        self,
        q: Float[Tensor, "b r _"],
        k: Float[Tensor, "b s c"],
        v: Float[Tensor, "b s c"],
        mask: Bool[Tensor, "_ r s"],
        where: Int[Tensor, "_ r"],
        ctx: Ctx,
        g: int = 1,
    ) -> Float[Tensor, "b r _"]:
        """What queries read that stand at `where` among the slots of their window, heads joined.

        g: how many of the batch are windows of one row.
        """
        q, k, v = (
            rearrange(t, "b n (h k) -> b h n k", h=h)
            for t, h in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        )
        if self.cosine is not None:
            q, k = self.cosine(q, k)
        slots = torch.arange(k.shape[2], device=k.device)[None]
        if ctx.relative is not None:
            # Layers with blocks of the same width have the same window.
            view = (self.config.block_width, self.compressor and (self.compressor.factor, self.compressor.blocks))
            q, k = ctx.relative.turn(q, where, ctx, view), ctx.relative.turn(k, slots, ctx, view, inverse=True)
        bias = self.bias(where, slots, ctx, q.dtype)
        read = None
        if not self.reader.plain:
            read = Read(q, k, ctx, where, slots, rows_of(q, g))
            bias = self.reader.biased(bias, read)
        y, _ = self.reader(q, k, v, mask[:, None], bias, read=read)
        return rearrange(y, "b h n k -> b n (h k)")

    def bias(
        self, where: Int[Tensor, "_ r"], slots: Int[Tensor, "1 s"], ctx: Ctx, dtype: torch.dtype
    ) -> Float[Tensor, "_ h r s"] | None:
        """What the stack's positions and the layer's own add to the scores."""
        # From the farthest slot behind to the last one ahead, whatever the call holds of them.
        reach = slots.shape[1]
        distance = torch.arange(1 - reach, reach, device=slots.device)
        vector = None if ctx.relative is None else ctx.relative.by_distance(distance, self.heads, dtype)
        if self.rel_pos_bias is not None:
            own = self.rel_pos_bias(distance).to(dtype)
            vector = own if vector is None else vector + own
        if vector is None:
            return None
        return vector[:, slots[:, None] - where[..., None] + reach - 1].transpose(0, 1)
