"""The gated attention unit (Hua et al. 2022, Transformer Quality in Linear Time, https://arxiv.org/abs/2202.10447)."""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.shapes import Float, Int, Tensor, typed
from ...base.state import Ctx, document_starts
from ...flags.flag import flag
from ..kernels.relative import distances, scores_bias
from ..positions.distance import own_bias
from ..positions.slots import Slots
from ..projection import whole
from ..site import Site
from .gated_unit import GatedUnit
from .key_values import KV, append, begin, over_all_tokens, place, reserve, shorten
from .masks import bounds, visible

__all__ = ["GatedAttention"]


@blocks.register("gau")
class GatedAttention(GatedUnit):
    """Attention and gated linear unit in one: `to_out(u * (A v))` with A from one shared, narrow projection z.

    Our letters against the paper's: d its d, e its e, k its s (the width of z), n its n; u, v, z and A are the same.
    FLASH-Quad is a stack of these (`layers='gau'`), two for each pair of attention and feed-forward.
    """

    steady = True
    kind = "gau"
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})
    keeps_tokens = True
    has_matrix = True
    positions = frozenset({"rotary", "rotary2d", "rel_pos", "alibi", "dynamic", "polar"})

    @frozen
    class Config(GatedUnit.Config):
        rel_pos_bias: Literal["t5", "toeplitz"] | None = flag(
            "t5",
            "a learned bias by distance of the layer's own; with score_scale='sqrt' times sqrt(width of a head)",
            paper="https://arxiv.org/abs/1910.10683",
            tried=("toeplitz", None),
        )
        toeplitz_length: int | None = flag(
            None,
            "distances with an entry of their own (None: 512)",
            at_least=1,
            tried=({"toeplitz_length": 6, "rel_pos_bias": "toeplitz"},),
        )

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        if config.toeplitz_length is not None and config.rel_pos_bias != "toeplitz":
            raise ValueError(
                f"gau_toeplitz_length={config.toeplitz_length} is set, but gau_rel_pos_bias is {config.rel_pos_bias!r}"
            )
        self.widths = (self.inner, self.inner, self.width)
        self.to_hidden = nn.Linear(site.dim, sum(self.widths), bias=config.bias)
        self.rel_pos_bias = own_bias(config.rel_pos_bias, config.heads, site.causal, config.toeplitz_length or 512)
        # (qk / k + bias) * sqrt(k): entries of .02 that move by the learning rate count for as much as they do beside
        # FLASH's qk / w.
        self.bias_gain = (self.width // config.heads) ** 0.5 if config.score_scale == "sqrt" else 1.0

    def bias_heads(self) -> int:
        return self.config.heads

    def refuses_step(self) -> str:
        if self.normaliser != "padded_length":
            return ""
        return "gau_normaliser='padded_length' divides by the length of each call"

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: KV | None = None
    ) -> tuple[Float[Tensor, "b n d"], KV | None]:
        u, v, z = F.silu(whole(self.to_hidden(x), sum(self.widths), self.kind)).split(self.widths, -1)
        if ctx.relay.asked:
            ctx.relay.show(self, "gates", u)
        q, k = self.scaled(z, 0), self.scaled(z, 1)
        if ctx.relative is not None:
            q, k = ctx.relative.rotate(q, ctx), ctx.relative.rotate(k, ctx, inverse=True)
        v = rearrange(v, "b n (h e) -> b h n e", h=self.config.heads)
        k, v, state = self.remember(k, v, ctx, state)
        slots = place(state, ctx, k.shape[2])
        y = rearrange(self.look(q, k, v, ctx, slots), "b h n e -> b n (h e)")
        if ctx.maps is not None:
            over_all_tokens(ctx.maps, state, ctx)
        return F.dropout(self.to_out(u * y), self.config.out_dropout, self.training), state

    def remember(self, k: Tensor, v: Tensor, ctx: Ctx, state: KV | None) -> tuple[Tensor, Tensor, KV | None]:
        """All keys and values there are, those of tokens that do not exist zeroed, and the state that holds them."""
        real = ctx.real(k.shape[2])
        if real is not None:
            # Weights need not sum to one, so a value of zero is all it takes for a key not to count.
            k, v = (t.masked_fill(~real[:, None, :, None], 0) for t in (k, v))
        if state is None:
            return k, v, begin(k, v, ctx) if ctx.keep_state else None
        for name in ("doc_ids", "attn_mask"):
            if getattr(ctx, name) is not None:
                raise ValueError(f"{name} cannot be given to GatedAttention together with a state")
        (all_k, all_v), state = append(state, k, v, ctx)
        return all_k.to(k.dtype), all_v.to(v.dtype), state if ctx.keep_state else None

    def look(self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx, slots: Slots) -> Float[Tensor, "b h n e"]:
        """What the queries read from the tokens they may see."""
        if ctx.doc_ids is not None and self.normaliser == "padded_length":
            raise ValueError("doc_ids with gau_normaliser='padded_length': documents would not be independent")
        n, m = q.shape[2], k.shape[2]
        options: dict[str, Any] = {"maps": ctx.maps, "seen": self.seen(ctx, slots, n, m), "padded": n}
        options |= self.bias(ctx, slots, m, q.dtype)
        causal = self.site.causal
        if ctx.attn_mask is None and slots.keys is None and (ctx.length is None or not causal):
            between = ctx.once(("between", causal), lambda: bounds(ctx, n, causal))
            # Keys that do not exist have values of zero; only sums over a row would still count them.
            real = None
            if not causal and (self.takes_sums or ctx.maps is not None) and ctx.new is not None:
                real = (torch.arange(m, device=q.device) < ctx.new.clamp(min=1)[:, None])[:, None, None]
            return self.read(q, k, v, allowed=real, causal=causal and ctx.prefix is None, between=between, **options)
        sight = visible(ctx, slots, m, causal)
        return self.read(q, k, v, allowed=sight.mask, causal=sight.causal, **options)

    def bias(self, ctx: Ctx, slots: Slots, m: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """What positions and the layer's own bias add to the scores: by distance where that says it, else laid out."""
        own, shared, heads = self.rel_pos_bias, ctx.relative, self.config.heads
        if slots.keys is None and slots.alike:
            gaps = ctx.once("gaps", lambda: distances(slots.at.shape[1], m, slots.at.device))
            vector = None if own is None else self.bias_gain * own.at(gaps, ctx, "gaps")
            also = None if shared is None else shared.by_distance(gaps, heads, dtype)
            return {"vector": also if vector is None else vector if also is None else vector + also}
        laid = None if shared is None else shared.bias(heads, slots, m, ctx, dtype)
        if own is not None:
            mine = scores_bias(lambda gap: (self.bias_gain * own(gap)).to(dtype), *slots, m)
            laid = mine if laid is None else laid + mine
        return {"bias": laid}

    def seen(self, ctx: Ctx, slots: Slots, n: int, m: int) -> Int[Tensor, "*_ n"]:
        """How many tokens each query sees, for each head where the caller's attn_mask differs between them."""
        return ctx.once(("seen", self.site.causal), lambda: count_seen(ctx, slots, n, m, self.site.causal))

    def reserve(self, state: KV | None, used: int, need: int, copy: bool, length: Tensor | None) -> KV | None:
        return None if state is None else reserve(state, used, need, copy, length)

    def shorten(self, state: KV | None, tokens: int, front: int, bound: int, length: Tensor | None) -> KV | None:
        return None if state is None else shorten(state, tokens, front, bound, length)


def count_seen(ctx: Ctx, slots: Slots, n: int, m: int, causal: bool) -> Int[Tensor, "*_ n"]:
    """The keys each query sees: when causal those up to its own (or prefix), else the real ones of its document.

    (1 | b, n); with an attn_mask, whose hidden keys do not count, (1 | b, 1 | h, n). 1 where there is none.
    """
    if ctx.attn_mask is not None:
        mask = visible(ctx, slots, m, causal).mask
        return cast(Tensor, mask).sum(-1).clamp(min=1)
    if causal:
        before = slots.at
        if slots.keys is not None:
            # Less the tokens given up, between the first ones and the last.
            before = before - (slots.keys[:, -1:] - (slots.keys.shape[1] - 1))
        seen = (before if ctx.doc_ids is None else ctx.doc_positions()) + 1
        return seen if ctx.prefix is None else torch.maximum(seen, ctx.prefix[:, None])
    if ctx.doc_ids is None:
        return torch.full_like(ctx.positions, n) if ctx.new is None else ctx.new.clamp(min=1)[:, None].expand(-1, n)
    document = document_starts(ctx.doc_ids).cumsum(1) - 1
    real = ctx.real(n)
    one = torch.ones_like(document) if real is None else real.to(document.dtype)
    return torch.zeros_like(document).scatter_add(1, document, one).gather(1, document).clamp(min=1)
