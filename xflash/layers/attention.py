"""Softmax attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) with the variations people mix in."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from ..flags import flag
from ..registry import blocks
from ..shapes import Float, Tensor, typed
from ..state import Ctx
from .block import Block, Site
from .kernels.buffers import grow, write
from .masks import visible

__all__ = ["KV", "Attention", "attend", "attend_slow"]


class KV(NamedTuple):
    """Keys and values of the tokens seen, in buffers (b, h, slots, k) that grow by doubling."""

    k: Tensor
    v: Tensor


def attend_slow(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m e"],
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n m"]]:
    """softmax(q k^T * scale + bias) v and the matrix itself; the definition of what the fused kernel computes."""
    n, m = q.shape[2], k.shape[2]
    scores = q @ k.mT * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.dropout(scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)), dropout)
    return weights.to(v.dtype) @ v, weights


def attend(q, k, v, mask=None, bias=None, causal=False, scale=1.0, dropout=0.0) -> Float[Tensor, "b h n e"]:
    """The same through PyTorch's fused kernel; `mask` (True = may attend) and `bias` broadcast to (b, h, n, m)."""
    if bias is not None:
        bias = bias.to(q.dtype)
        if causal:
            n, m = q.shape[2], k.shape[2]
            later = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
            bias, causal = bias.masked_fill(later, -torch.inf), False
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, dropout_p=dropout)


@blocks.register("attn")
class Attention(Block):
    """Multi-head softmax attention over the tokens of the stack; query head h uses key/value head h // r."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        dim_head: int = flag(64, "width of a head", at_least=1)
        heads: int | None = flag(None, "query heads (None: the stack's)", at_least=1)
        kv_heads: int | None = flag(
            None, "key/value heads, shared by groups of query heads (None: as many)", at_least=1
        )
        flash: bool | None = flag(None, "the fused softmax kernel (None: where possible; not FLASH, that is the block)")
        dropout: float = flag(0.0, "dropout of the attention weights", at_least=0, below=1)
        num_mem_kv: int = flag(0, "learned keys and values that every query sees", at_least=0)
        qk_norm: bool = flag(False, "cosine attention: queries and keys l2-normalised")
        qk_norm_groups: int = flag(1, "groups of channels that qk_norm normalises each for itself", at_least=1)
        qk_norm_scale: float = flag(10.0, "what qk_norm multiplies the scores by", above=0)
        qk_norm_dim_scale: bool = flag(False, "learned scales per head and channel instead of qk_norm_scale")
        window: int | None = flag(
            None, "tokens a query sees, itself included (both ways when bidirectional)", at_least=1
        )
        gate_values: bool = flag(False, "sigmoid gate on the output, from the input")
        head_scale: bool = flag(False, "learned gain per head on its output")

    honours = frozenset({"attn_mask", "doc_ids"})
    positions = frozenset({"rotary", "rel_pos", "alibi"})

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        self.heads = config.heads or site.heads
        self.kv_heads = config.kv_heads or self.heads
        if self.heads % self.kv_heads:
            raise ValueError(f"attn_kv_heads={self.kv_heads} does not divide the {self.heads} heads")
        width, inner = config.dim_head, self.heads * config.dim_head
        self.to_q = nn.Linear(site.dim, inner, bias=False)
        self.to_kv = nn.Linear(site.dim, 2 * self.kv_heads * width, bias=False)
        self.to_out = site.linear_out(inner)
        self.scale = width**-0.5
        self.build_qk_norm(config)
        if config.num_mem_kv:
            self.mem_kv = nn.Parameter(torch.randn(2, self.kv_heads, config.num_mem_kv, width))
        if config.gate_values:
            self.to_gate = nn.Linear(site.dim, inner, bias=False)
            nn.init.zeros_(self.to_gate.weight)
        if config.head_scale:
            self.head_gain = nn.Parameter(torch.ones(self.heads, 1, 1))

    def build_qk_norm(self, config: Config) -> None:
        if not config.qk_norm:
            for name in ("qk_norm_groups", "qk_norm_scale", "qk_norm_dim_scale"):
                if getattr(config, name) != Attention.Config.__dataclass_fields__[name].default:
                    raise ValueError(f"attn_{name}={getattr(config, name)} is set, but attn_qk_norm is False")
            return
        if config.dim_head % config.qk_norm_groups or config.dim_head // config.qk_norm_groups < 3:
            raise ValueError(
                f"attn_qk_norm_groups={config.qk_norm_groups} must cut attn_dim_head={config.dim_head} into equal "
                "groups of 3 channels or more"
            )
        if config.qk_norm_dim_scale:
            start = config.dim_head**0.25
            self.q_gain = nn.Parameter(torch.full((self.heads, 1, config.dim_head), start))
            self.k_gain = nn.Parameter(torch.full((self.kv_heads, 1, config.dim_head), start))
        else:
            self.scale = config.qk_norm_scale

    def bias_heads(self) -> int:
        return self.heads

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: KV | None = None
    ) -> tuple[Float[Tensor, "b n d"], KV | None]:
        q = rearrange(self.to_q(x), "b n (h k) -> b h n k", h=self.heads)
        k, v = rearrange(self.to_kv(x), "b n (two h k) -> two b h n k", two=2, h=self.kv_heads).unbind(0)
        q, k = self.normed(q, "q"), self.normed(k, "k")
        if ctx.relative is not None:
            q, k = ctx.relative.rotate(q, ctx), ctx.relative.rotate(k, ctx, inverse=True)
        k, v, state = self.remember(k, v, ctx, state)
        y = rearrange(self.look(q, k, v, ctx), "b h n k -> b n (h k)")
        if self.config.gate_values:
            y = y * self.to_gate(x).sigmoid()
        return self.to_out(y), state

    def normed(self, t: Float[Tensor, "b h n k"], role: str) -> Float[Tensor, "b h n k"]:
        """`t` l2-normalised in groups and scaled per channel, as far as the flags ask for it."""
        if not self.config.qk_norm:
            return t
        t = F.normalize(t.unflatten(-1, (self.config.qk_norm_groups, -1)), dim=-1).flatten(-2)
        return t * getattr(self, f"{role}_gain").to(t.dtype) if self.config.qk_norm_dim_scale else t

    def remember(self, k: Tensor, v: Tensor, ctx: Ctx, state: KV | None) -> tuple[Tensor, Tensor, KV | None]:
        """All keys and values there are, the new ones written behind the old, and the state that holds them."""
        if not ctx.keep_state:
            return k, v, None
        if state is None:
            return k, v, KV(k, v)
        state = KV(write(state.k, k, ctx), write(state.v, v, ctx))
        m = ctx.past + k.shape[2]
        return state.k[:, :, :m], state.v[:, :, :m], state

    def look(self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx) -> Float[Tensor, "b h n k"]:
        """What the queries read from the keys and values, memory ones included."""
        n, m = q.shape[2], k.shape[2]
        mask, causal = visible(ctx, n, m, self.site.causal, self.config.window)
        bias = None if ctx.relative is None else ctx.relative.bias(self.heads, n, m, ctx, q.dtype)
        if self.config.num_mem_kv:
            k, v, mask, bias, causal = self.with_memory(k, v, mask, bias, causal, n)
        blind = None
        if ctx.attn_mask is not None and mask is not None:
            blind = ~mask.any(-1, keepdim=True)
            mask = mask | blind
        r = self.heads // self.kv_heads
        if r > 1:
            k, v = (repeat(t, "b h m k -> b (h r) m k", r=r) for t in (k, v))
        dropout = self.config.dropout if self.training else 0.0
        if self.config.flash is False or ctx.maps is not None:
            y, weights = attend_slow(q, k, v, mask, bias, causal, self.scale, dropout)
            if ctx.maps is not None:
                weights = weights if blind is None else weights.masked_fill(blind, 0)
                ctx.maps.append(weights[..., self.config.num_mem_kv :])
        else:
            y = attend(q, k, v, mask, bias, causal, self.scale, dropout)
        if blind is not None:
            y = y.masked_fill(blind, 0)
        return y * self.head_gain.to(y.dtype) if self.config.head_scale else y

    def with_memory(self, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool, n: int):
        """Learned keys and values in front of the others (https://arxiv.org/abs/1907.01470): always seen, no bias."""
        t, m = self.config.num_mem_kv, k.shape[2]
        mem_k, mem_v = self.mem_kv.to(k.dtype)
        mem_k = self.normed(mem_k[None], "k")[0]
        k, v = (torch.cat((a.expand(k.shape[0], -1, -1, -1), b), 2) for a, b in ((mem_k, k), (mem_v, v)))
        if causal:
            mask = torch.ones(1, 1, n, m, dtype=torch.bool, device=k.device).tril(m - n)
        if mask is not None:
            mask = F.pad(mask, (t, 0), value=True)
        if bias is not None:
            bias = F.pad(bias, (t, 0))
        return k, v, mask, bias, False

    def reserve(self, state: KV | None, used: int, need: int, copy: bool) -> KV | None:
        if state is None:
            return None
        return KV(grow(state.k, used, need, copy), grow(state.v, used, need, copy))
