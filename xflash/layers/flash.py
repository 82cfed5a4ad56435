"""`flash`: mixed chunk attention, the layer of FLASH."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..flags import flag
from ..registry import blocks
from ..shapes import Float, Int, Tensor, typed
from ..state import Ctx
from .block import Block, Site
from .kernels.groups import FlashState, Padded, Scattered, append, carry, document_groups, place
from .kernels.mixed_chunk import AttnFn, Heads, Local, attend, before, local_bias, outer, read, step_bias
from .positions import own_bias

__all__ = ["MixedChunkAttention"]


@blocks.register("flash")
class MixedChunkAttention(Block):
    """Gated attention inside groups of tokens and linear attention across them: cost linear in the length.

    Hua et al. 2022, https://arxiv.org/abs/2202.10447 (its s is our k, C our w, G our g). y = (u * (near + far)) W_o with
    u, v, z = silu(x W + b); near = f(q k^T) v inside a group of w tokens; far = far_q (mean of far_k^T v over the closed
    groups when causal, over all tokens otherwise); q, k, far_q, far_k are scaled and offset copies of z, all four rotated.
    Has nothing to do with the fused softmax kernel of that name.
    """

    honours = frozenset({"doc_ids"})
    positions = frozenset({"rotary"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        group_size: int = flag(256, "tokens in a group", at_least=1)
        query_key_dim: int = flag(128, "width of queries and keys", at_least=1)
        expansion_factor: float = flag(2.0, "width of gate and values, as a multiple of dim", above=0)
        attn_fn: AttnFn = flag("relu2", "how scores inside a group become weights")
        normaliser_place: Literal["content", "outside"] | None = flag(
            None, "relu2 and laplace: f(qk / w + bias) ('content', the default) or f(qk / sqrt(k) + bias) / w ('outside')"
        )
        global_normaliser: Literal["mean", "sum", "padded_length"] = flag(
            "mean", "what divides the sum across groups: its tokens, w ('sum'), or (peer-only, bidirectional) the padded length"
        )
        global_scope: Literal["sequence", "group"] = flag(
            "sequence", "'group' (bidirectional): the linear part of a group sums over that group only"
        )
        rel_pos_bias: Literal["t5", "toeplitz"] | None = flag("t5", "learned bias by distance inside a group")
        dropout: float = flag(0.0, "dropout of the weights inside a group", at_least=0, below=1)
        bias: bool = flag(True, "biases in both projections")
        offset: bool = flag(True, "queries and keys get a learned offset beside their scale")
        gamma_init: Literal["ones", "normal"] = flag("ones", "start of the scales of queries and keys; 'normal': std .02")
        max_documents: int | None = flag(None, "most documents in a row of doc_ids; None looks (not compiled)", at_least=1)

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        self.check()
        self.hidden = int(config.expansion_factor * site.dim)
        if self.hidden < 1:
            raise ValueError(f"flash_expansion_factor={config.expansion_factor} of dim={site.dim} leaves no channel")
        self.project_in = nn.Linear(site.dim, 2 * self.hidden + config.query_key_dim, bias=config.bias)
        scales = torch.ones(4, config.query_key_dim)
        self.gamma = nn.Parameter(scales if config.gamma_init == "ones" else scales.normal_(std=0.02))
        self.beta = nn.Parameter(torch.zeros_like(scales)) if config.offset else None
        self.rel_pos_bias = own_bias(config.rel_pos_bias, 1, site.causal, config.group_size)
        self.project_out = site.linear_out(self.hidden, config.bias)

    def check(self) -> None:
        """ValueError for flags that contradict each other."""
        config, causal = self.config, self.site.causal
        if config.attn_fn == "softmax" and config.normaliser_place is not None:
            raise ValueError(
                f"flash_normaliser_place={config.normaliser_place!r} with flash_attn_fn='softmax': a softmax is normalised by itself"
            )
        if causal and config.global_normaliser == "padded_length":
            raise ValueError("flash_global_normaliser='padded_length' is for bidirectional stacks: no causal scale may depend on the length")
        if causal and config.global_scope == "group":
            raise ValueError("flash_global_scope='group' is for bidirectional stacks: a causal token would see its group's later ones")

    def refuses_step(self) -> str:
        padded = self.config.global_normaliser == "padded_length"
        return "flash_global_normaliser='padded_length' divides by the length of the call" if padded else ""

    def reserve(self, state: FlashState, used: int, need: int, copy: bool) -> FlashState:
        if not copy:
            return state
        return state._replace(keys=state.keys.clone(), values=state.values.clone())

    @property
    def near(self) -> Local:
        """How scores become weights, dropout only while training."""
        config = self.config
        w, root = config.group_size, config.query_key_dim**-0.5
        dropout = config.dropout if self.training else 0.0
        if config.attn_fn == "softmax":
            return Local("softmax", root, 1, dropout)
        if config.normaliser_place == "outside":
            return Local(config.attn_fn, root, w, dropout)
        return Local(config.attn_fn, 1 / w, 1, dropout)

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: FlashState | None = None
    ) -> tuple[Float[Tensor, "b n d"], FlashState | None]:
        gate, t = self.project(x, ctx)
        n, fill = x.shape[1], ctx.past % self.config.group_size
        if ctx.doc_ids is not None:
            y, state = self.documents(t, ctx, state), None
        elif not self.site.causal:
            y, state = self.both_ways(t, ctx), None
        elif ctx.uniform and not torch.compiler.is_compiling() and fill + n <= self.config.group_size:
            y, state = self.within(t, ctx, state)
        elif n == 1 and state is not None:
            y, state = self.step(t, ctx, state)
        else:
            y, state = self.across(t, ctx, state)
        return self.project_out(gate * y), state if ctx.keep_state else None

    def project(self, x: Float[Tensor, "b n d"], ctx: Ctx) -> tuple[Float[Tensor, "b n e"], Heads]:
        """The gate, and what each token brings; keys and values of tokens that do not exist are zeros."""
        k, e = self.config.query_key_dim, self.hidden
        gate, v, z = F.silu(self.project_in(x)).split((e, e, k), -1)
        gamma = self.gamma[:, None, None]
        heads = z * gamma if self.beta is None else torch.addcmul(self.beta[:, None, None], z, gamma)
        queries, keys = heads.to(v.dtype).transpose(0, 1).split(2, 1)
        if ctx.relative is not None:
            queries, keys = ctx.relative.rotate(queries, ctx), ctx.relative.rotate(keys, ctx, inverse=True)
        keys = list(keys.unbind(1))
        real = ctx.real(x.shape[1])
        if real is not None:
            v, keys[0] = v.masked_fill(~real[..., None], 0), keys[0].masked_fill(~real[..., None], 0)
        near_q, far_q = queries.unbind(1)
        return gate, Heads(near_q, keys[0], far_q, keys[1], v)

    def both_ways(self, t: Heads, ctx: Ctx) -> Float[Tensor, "b n e"]:
        """Bidirectional: each group sees itself and the sum over the whole row."""
        n, w, config = t.v.shape[1], self.config.group_size, self.config
        real = ctx.real(n)
        short = not torch.compiler.is_compiling() and n < w
        layout = Padded(1, n, n) if short else place(n, w, 0)
        near_q, near_k, far_q, far_k, v = t.map(layout.put)
        visible = None
        exact = not torch.compiler.is_compiling() and layout.groups * layout.w == n
        if config.attn_fn == "softmax" and (real is not None or not exact):
            visible = torch.ones_like(t.v[..., :1], dtype=torch.bool) if real is None else real[..., None]
            visible = layout.put(visible)[..., 0]
        kv = outer(far_k, v, w)
        tokens = torch.full((1,), n, device=v.device) if ctx.new is None else ctx.new
        if config.global_scope == "group":
            tokens = (tokens[:, None] - torch.arange(layout.groups, device=v.device) * layout.w).clamp(max=layout.w)
        else:
            tokens, kv = tokens[:, None], kv.sum(1, keepdim=True)
        if config.global_normaliser != "sum":
            divide = n if config.global_normaliser == "padded_length" else tokens.clamp(min=1)[..., None, None]
            far_q = far_q * w / divide
        bias = local_bias(self.rel_pos_bias, layout.w, layout.w, False, t.q)
        return layout.take(attend(self.near, near_q, near_k, v, bias, read(far_q, kv), visible))

    def within(self, t: Heads, ctx: Ctx, state: FlashState | None) -> tuple[Float[Tensor, "b n e"], FlashState | None]:
        """Causal, all new tokens in the group that is open: no canvas, and a group no wider than what it holds."""
        n, w = t.v.shape[1], self.config.group_size
        fill = ctx.past % w if state is not None else 0
        end = fill + n
        keys, values = t.k, t.v
        if state is not None:
            keys = append(state.keys, t.k, fill, ctx.in_place)
            values = append(state.values, t.v, fill, ctx.in_place)
        elif ctx.keep_state:
            keys, values = F.pad(t.k, (0, 0, 0, w - n)), F.pad(t.v, (0, 0, 0, w - n))
        bias = local_bias(self.rel_pos_bias, n, end, True, t.q)
        far = None
        if state is not None and ctx.past >= w:
            far = read(self.per_group(t.far_q[:, None], ctx.past // w), state.closed[:, None])
        y = attend(self.near, t.q[:, None], keys[:, None, :end], values[:, None, :end], bias, far)[:, 0]
        if not ctx.keep_state:
            return y, None
        open_sum = outer(t.far_k, t.v, w)
        closed = torch.zeros_like(open_sum)
        if state is not None:
            closed, open_sum = state.closed, state.open + open_sum
        if end < w:
            return y, FlashState(closed, open_sum, keys, values)
        # New buffers, not cleared ones: an older state may still read the old.
        return y, FlashState(closed + open_sum, *map(torch.zeros_like, (open_sum, keys, values)))

    def per_group(self, far_q: Tensor, start: int | Int[Tensor, "_ 1"]) -> Tensor:
        """Queries (b, g, n, k) over the number of groups closed before theirs, `start` of them before the first."""
        if self.config.global_normaliser == "sum":
            return far_q
        if far_q.shape[1] == 1 and isinstance(start, int):
            return far_q / max(start, 1)
        count = torch.arange(far_q.shape[1], device=far_q.device) + start
        return far_q / count.clamp(min=1)[..., None, None]

    def across(self, t: Heads, ctx: Ctx, state: FlashState | None) -> tuple[Float[Tensor, "b n e"], FlashState | None]:
        """Causal, any number of tokens, rows at any fill."""
        b, n, w = *t.v.shape[:2], self.config.group_size
        filled = ctx.filled()
        if state is None:
            layout, start = place(n, w, 0), 0
        elif ctx.length is None and not torch.compiler.is_compiling():
            layout, start = place(n, w, ctx.past % w), ctx.past // w
        else:
            layout, start = place(n, w, (filled % w).expand(b)), filled[:, None] // w
        near_q, _, far_q, far_k, _ = g = t.map(layout.put)
        near_k, v = g.k, g.v
        if state is not None:
            near_k, v = layout.put(t.k, state.keys), layout.put(t.v, state.values)
        kv = outer(far_k, v, w)
        if state is not None:
            kv[:, 0] += state.open
        sums = before(kv, None if state is None else state.closed)
        bias = local_bias(self.rel_pos_bias, w, w, True, t.q)
        y = attend(self.near, near_q, near_k, v, bias, read(self.per_group(far_q, start), sums))
        if not ctx.keep_state:
            return layout.take(y), None
        new = n if ctx.new is None else ctx.new
        full = ((filled % w + new) // w).expand(b)
        return layout.take(y), carry(None if state is None else state.closed, kv, near_k, v, full)

    def step(self, t: Heads, ctx: Ctx, state: FlashState) -> tuple[Float[Tensor, "b 1 e"], FlashState | None]:
        """Causal, one token a row, rows at any fill."""
        b, w = t.v.shape[0], self.config.group_size
        filled = ctx.filled().expand(b)
        slot = filled % w
        new = 1 if ctx.new is None else ctx.new
        full = (slot + new) // w
        eager = t.v.device.type == "cpu" and not torch.compiler.is_compiling()
        stays = eager and ctx.in_place and not bool((full > 0).any())
        write = Tensor.scatter_ if stays else Tensor.scatter
        keys = write(state.keys, 1, slot[:, None, None].expand_as(t.k), t.k.to(state.keys.dtype))
        values = write(state.values, 1, slot[:, None, None].expand_as(t.v), t.v.to(state.values.dtype))
        far = read(self.per_group(t.far_q[:, None], filled[:, None] // w), state.closed[:, None])
        bias = step_bias(self.rel_pos_bias, slot, w, t.q)
        y = attend(self.near, t.q[:, None], keys[:, None], values[:, None], bias, far)[:, 0]
        if not ctx.keep_state:
            return y, None
        open_sum = state.open + outer(t.far_k, t.v, w)
        if stays:
            return y, FlashState(state.closed, open_sum, keys, values)
        return y, carry(state.closed, open_sum[:, None], keys[:, None], values[:, None], full)

    def documents(self, t: Heads, ctx: Ctx, state: FlashState | None) -> Float[Tensor, "b n e"]:
        """Packed documents: each is laid out in groups of its own and sees nothing of the others."""
        config, causal, n = self.config, self.site.causal, t.v.shape[1]
        if state is not None or ctx.keep_state:
            raise ValueError("doc_ids cannot be combined with a state: packed documents end with the call")
        if config.global_normaliser == "padded_length":
            raise ValueError("doc_ids cannot be combined with flash_global_normaliser='padded_length'")
        w, real = config.group_size, ctx.real(n)
        key = ("flash_documents", w, config.max_documents)
        packed = ctx.once(key, lambda: document_groups(ctx.doc_ids, real, w, config.max_documents))
        layout = packed.layout
        near_q, near_k, far_q, far_k, v = t.map(layout.put)
        exists = torch.ones_like(t.v[..., :1], dtype=torch.bool) if real is None else real[..., None]
        visible = layout.put(exists)[..., 0]
        mix = packed.mix(causal) if config.global_scope == "sequence" else packed.alone()
        kv = outer(far_k, v, w)
        mix = mix.to(kv.dtype)
        if config.global_normaliser == "mean":
            tokens = (mix @ visible.sum(-1, dtype=kv.dtype)[..., None]).clamp(min=1)
            far_q = far_q * (w / tokens)[..., None].to(far_q.dtype)
        sums = (mix @ kv.flatten(2)).view_as(kv)
        bias = local_bias(self.rel_pos_bias, w, w, causal, t.q)
        return layout.take(attend(self.near, near_q, near_k, v, bias, read(far_q, sums), None if causal else visible))
