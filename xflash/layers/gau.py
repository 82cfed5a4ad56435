"""The gated attention unit (Hua et al. 2022, Transformer Quality in Linear Time, https://arxiv.org/abs/2202.10447)."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..flags import flag
from ..registry import blocks
from ..shapes import Float, Int, Tensor, typed
from ..state import Ctx, document_starts
from .block import Block, Site
from .kernels.buffers import grow, write
from .kernels.gated import gated_attention, gated_weights
from .kernels.relative import distances, ragged_bias, toeplitz
from .masks import visible
from .positions import own_bias

__all__ = ["KV", "GatedAttention"]

# softmax_plus leaves its scores alone at this many keys; with fewer than the least they are treated as that many.
PLUS_LENGTH, PLUS_LEAST = 512, 16


class KV(NamedTuple):
    """Keys and gated-in values of the tokens seen, in buffers (b, h, slots, width) that grow by doubling."""

    k: Tensor
    v: Tensor


@blocks.register("gau")
class GatedAttention(Block):
    """Attention and gated linear unit in one: `to_out(u * (A v))` with A from one shared, narrow projection z.

    Our letters against the paper's: d its d, e its e, k its s (the width of z), n its n; u, v, z and A are the same.
    FLASH-Quad is a stack of these (`layers='gau'`), two for each pair of attention and feed-forward.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        query_key_dim: int = flag(128, "width of the shared projection that queries and keys come from", at_least=1)
        expansion_factor: float = flag(2.0, "width of values and gate, times the model's", above=0)
        heads: int = flag(1, "heads that share query_key_dim and the values' width between them", at_least=1)
        attn_fn: Literal["relu2", "laplace", "softmax", "softmax_plus"] = flag(
            "relu2", "scores to weights; softmax_plus sharpens its scores by log(keys seen) / log(512)"
        )
        normaliser: Literal["row_index", "fixed", "row_sum", "none", "padded_length"] | None = flag(
            None,
            "divides relu2 and laplace: by keys seen, a fixed length, the row's sum, nothing, or (peers) the tensor's "
            "length (None: row_index)",
        )
        normaliser_place: Literal["outside", "inside", "content"] | None = flag(
            None, "f(qk + bias) / n, f((qk + bias) / n) or f(qk / n + bias) (None: outside)"
        )
        fixed_length: int | None = flag(None, "the n of normaliser='fixed' (None: 512)", at_least=1)
        score_scale: Literal["sqrt", "none"] = flag("sqrt", "qk / sqrt(width of a head), or qk as it is")
        rel_pos_bias: Literal["t5", "toeplitz"] | None = flag(None, "a learned bias by distance of the layer's own")
        toeplitz_length: int | None = flag(None, "distances with an entry of their own (None: 512)", at_least=1)
        gamma_init: Literal["ones", "normal"] | None = flag(
            None, "start of the gains of queries and keys: 1, or N(0, .02) (None: ones, without score_scale normal)"
        )
        offset: bool = flag(True, "learned offsets of queries and keys beside their gains")
        bias: bool = flag(False, "biases in the two linear maps")
        dropout: float = flag(0.0, "dropout of the attention weights", at_least=0, below=1)
        out_dropout: float = flag(0.0, "dropout of the output", at_least=0, below=1)

    honours = frozenset({"attn_mask", "doc_ids"})
    positions = frozenset({"rotary", "rel_pos", "alibi"})

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        check(config)
        heads, width, inner = config.heads, config.query_key_dim, int(config.expansion_factor * site.dim)
        for size, name in ((width, "query_key_dim"), (inner, "expansion_factor")):
            if size < 1 or size % heads:
                raise ValueError(f"gau_heads={heads} does not divide the {size} channels that gau_{name} makes")
        self.normaliser, self.place = settle(config)
        self.scale = (width // heads) ** -0.5 if config.score_scale == "sqrt" else 1.0
        self.widths = (inner, inner, width)
        self.to_hidden = nn.Linear(site.dim, sum(self.widths), bias=config.bias)
        self.to_out = site.linear_out(inner, bias=config.bias)
        self.gamma = nn.Parameter(torch.ones(2, width))
        self.beta = nn.Parameter(torch.zeros(2, width)) if config.offset else None
        if (config.gamma_init or ("ones" if config.score_scale == "sqrt" else "normal")) == "normal":
            nn.init.normal_(self.gamma, std=0.02)
        self.rel_pos_bias = own_bias(config.rel_pos_bias, heads, site.causal, config.toeplitz_length or 512)

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
        u, v, z = F.silu(self.to_hidden(x)).split(self.widths, -1)
        q, k = self.queries_and_keys(z, ctx)
        v = rearrange(v, "b n (h e) -> b h n e", h=self.config.heads)
        k, v, state = self.remember(k, v, ctx, state)
        y = rearrange(self.look(q, k, v, ctx), "b h n e -> b n (h e)")
        return F.dropout(self.to_out(u * y), self.config.out_dropout, self.training), state

    def queries_and_keys(self, z: Float[Tensor, "b n k"], ctx: Ctx) -> tuple[Tensor, Tensor]:
        """Queries and keys (b, h, n, k): one projection scaled and offset in two ways, then turned to its positions."""
        both = z[..., None, :] * self.gamma.to(z.dtype)
        if self.beta is not None:
            both = both + self.beta.to(z.dtype)
        q, k = rearrange(both, "b n two (h k) -> two b h n k", h=self.config.heads).unbind(0)
        if ctx.relative is not None:
            q, k = ctx.relative.rotate(q, ctx), ctx.relative.rotate(k, ctx, inverse=True)
        return q, k

    def remember(self, k: Tensor, v: Tensor, ctx: Ctx, state: KV | None) -> tuple[Tensor, Tensor, KV | None]:
        """All keys and values there are, those of tokens that do not exist zeroed, and the state that holds them."""
        real = ctx.real(k.shape[2])
        if real is not None:
            # Weights need not sum to one, so a value of zero is all it takes for a key not to count.
            k, v = (t.masked_fill(~real[:, None, :, None], 0) for t in (k, v))
        if state is None:
            return k, v, KV(k, v) if ctx.keep_state else None
        for name in ("doc_ids", "attn_mask"):
            if getattr(ctx, name) is not None:
                raise ValueError(f"{name} cannot be given to GatedAttention together with a state")
        state = KV(write(state.k, k, ctx), write(state.v, v, ctx))
        m = ctx.past + k.shape[2]
        return state.k[:, :, :m].to(k.dtype), state.v[:, :, :m].to(v.dtype), state if ctx.keep_state else None

    def look(self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx) -> Float[Tensor, "b h n e"]:
        """What the queries read from the values."""
        n, m = q.shape[2], k.shape[2]
        allowed, causal = self.mask(ctx, n, m)
        options: dict[str, Any] = {
            "attn_fn": "softmax" if self.config.attn_fn == "softmax_plus" else self.config.attn_fn,
            "scale": self.scale,
            "bias": self.bias(ctx, n, m, q.dtype),
            "divisor": self.divisor(ctx, n, q.dtype),
            "place": self.place,
            "allowed": allowed,
            "causal": causal,
        }
        if ctx.maps is not None:
            ctx.maps.append(gated_weights(q, k, **options))
        return gated_attention(q, k, v, dropout_p=self.config.dropout if self.training else 0.0, **options)

    def mask(self, ctx: Ctx, n: int, m: int) -> tuple[Tensor | None, bool]:
        """Which keys may be seen (None: all), and whether the kernel also hides those that come later."""
        if ctx.doc_ids is None and ctx.attn_mask is None:
            if self.site.causal and ctx.length is None:
                return None, True
            summed = self.config.attn_fn.startswith("softmax") or self.normaliser == "row_sum"
            if not self.site.causal and not summed and ctx.maps is None:
                return None, False
        return visible(ctx, n, m, self.site.causal)

    def bias(self, ctx: Ctx, n: int, m: int, dtype: torch.dtype) -> Float[Tensor, "_ h n m"] | None:
        """What the stack's positions and the layer's own add to the scores."""
        shared = None if ctx.relative is None else ctx.relative.bias(self.config.heads, n, m, ctx, dtype)
        if self.rel_pos_bias is None:
            return shared
        vector = self.rel_pos_bias(distances(n, m, ctx.positions.device)).to(dtype)
        own = toeplitz(vector, n, m)[None] if ctx.length is None else ragged_bias(vector, ctx.positions, m)
        return own if shared is None else own + shared

    def divisor(self, ctx: Ctx, n: int, dtype: torch.dtype) -> Tensor | float | str | None:
        """What the kernel divides by."""
        if self.config.attn_fn == "softmax_plus":
            return ctx.once(("softmax_plus", self.site.causal, dtype), lambda: plus_divisor(self.seen(ctx, n), dtype))
        if self.normaliser == "row_index":
            return self.seen(ctx, n)
        return {
            "fixed": self.config.fixed_length or 512,
            "padded_length": n,
            "row_sum": "row_sum",
            "none": None,
        }[self.normaliser]

    def seen(self, ctx: Ctx, n: int) -> Int[Tensor, "_ n"]:
        """How many tokens of its row (document) each query sees, whatever the caller's attn_mask hides of them."""
        return ctx.once(("seen", self.site.causal), lambda: count_seen(ctx, n, self.site.causal))

    def reserve(self, state: KV | None, used: int, need: int, copy: bool) -> KV | None:
        if state is None:
            return None
        return KV(grow(state.k, used, need, copy), grow(state.v, used, need, copy))


def count_seen(ctx: Ctx, n: int, causal: bool) -> Int[Tensor, "_ n"]:
    """The keys each query sees: those up to its own when causal, else the real tokens of its row or document."""
    if causal:
        return (ctx.positions if ctx.doc_ids is None else ctx.doc_positions()) + 1
    if ctx.doc_ids is None:
        return torch.full_like(ctx.positions, n) if ctx.new is None else ctx.new.clamp(min=1)[:, None].expand(-1, n)
    document = document_starts(ctx.doc_ids).cumsum(1) - 1
    real = ctx.real(n)
    one = torch.ones_like(document) if real is None else real.to(document.dtype)
    return torch.zeros_like(document).scatter_add(1, document, one).gather(1, document).clamp(min=1)


def plus_divisor(seen: Int[Tensor, "_ n"], dtype: torch.dtype) -> Float[Tensor, "_ n"]:
    """log(512) / log(keys seen): dividing by it sharpens long rows (https://kexue.fm/archives/9019, softmax_plus)."""
    exact = torch.promote_types(dtype, torch.float32)
    return math.log(PLUS_LENGTH) / seen.clamp(min=PLUS_LEAST).to(exact).log()


def settle(config: GatedAttention.Config) -> tuple[str, str]:
    """The normaliser and its place, the defaults filled in."""
    if config.attn_fn == "softmax_plus":
        return "none", "inside"
    normaliser = config.normaliser or ("none" if config.attn_fn == "softmax" else "row_index")
    return normaliser, config.normaliser_place or "outside"


def check(config: GatedAttention.Config) -> None:
    """Raises ValueError for settings that contradict each other, naming both flags."""
    fn, normaliser, place = config.attn_fn, config.normaliser, config.normaliser_place
    if fn.startswith("softmax") and normaliser not in (None, "none"):
        raise ValueError(
            f"gau_attn_fn={fn!r} normalises its rows itself: gau_normaliser={normaliser!r} must be left out"
        )
    if place is not None:
        if fn.startswith("softmax"):
            raise ValueError(f"gau_normaliser_place={place!r} is set, but gau_attn_fn={fn!r} takes no normaliser")
        if normaliser == "none" or (normaliser == "row_sum" and place != "outside"):
            raise ValueError(f"gau_normaliser={normaliser!r} has no place {place!r}: leave out gau_normaliser_place")
    if config.fixed_length is not None and normaliser != "fixed":
        raise ValueError(
            f"gau_fixed_length={config.fixed_length} is set, but gau_normaliser is {normaliser!r}, not 'fixed'"
        )
    if config.toeplitz_length is not None and config.rel_pos_bias != "toeplitz":
        raise ValueError(
            f"gau_toeplitz_length={config.toeplitz_length} is set, but gau_rel_pos_bias is {config.rel_pos_bias!r}"
        )
