"""`flash`: mixed chunk attention, the layer of FLASH (https://arxiv.org/abs/2202.10447)."""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.shapes import Float, Int, Tensor, typed
from ...base.state import AttentionMap, Ctx
from ...flags.flag import flag, like
from ..kernels import late
from ..kernels.carried import FlashState, across, settled, step, within
from ..kernels.fused_groups import Settings, Turn, fused_groups
from ..kernels.groups import document_groups
from ..kernels.in_rows import in_rows, runs, stays_in_rows
from ..kernels.mixed_chunk import AttnFn, Heads, Spec, both_ways, packed
from ..kernels.operators import compiler_fuses, operators_work, plain_is_better
from ..kernels.relative import distances
from ..kernels.triton_choice import triton_asked
from ..positions.distance import own_bias
from ..projection import whole
from ..site import Site
from .block import Block
from .gated_unit import GatedUnit

__all__ = ["FlashState", "MixedChunkAttention"]


@blocks.register("flash")
class MixedChunkAttention(Block):
    """Gated attention inside groups of tokens plus linear attention across the groups: cost linear in the length.

    u, v, z = silu(x W); y = (u * (near + far)) W_o; near = f(q k^T) v inside a group of w tokens; far = far_q times
    the mean of far_k^T v, over the closed groups when causal, over all tokens otherwise; q, k, far_q and far_k are
    scaled and offset copies of z, rotated alike. The paper's s is our k, its C our w, its G our g.
    (`attn_flash` means another thing: the fused kernel of softmax attention.)
    """

    steady = True
    honours = frozenset({"doc_ids"})
    positions = frozenset({"rotary", "rotary2d", "polar"})

    @frozen
    class Config:
        group_size: int = flag(
            256, "tokens in a group", at_least=1, paper="https://arxiv.org/abs/2202.10447", tried=(5, 7, 64)
        )
        query_key_dim: int = like(GatedUnit.Config, "query_key_dim", tried=(10,))
        expansion_factor: float = like(GatedUnit.Config, "expansion_factor")
        attn_fn: AttnFn = flag(
            "relu2",
            "scores inside a group to weights",
            paper="https://arxiv.org/abs/2209.10655",
            tried=("laplace", "softmax"),
        )
        normaliser_place: Literal["content", "outside"] | None = flag(
            None,
            "relu2, laplace: f(qk / w + bias) or f(qk / sqrt(query_key_dim) + bias) / w (None: content)",
            tried=("outside",),
        )
        global_normaliser: Literal["mean", "sum", "padded_length"] = flag(
            "mean",
            "divides the sum across groups: its tokens, w (sum), or (peers, bidirectional) the tensor's length",
            tried=("sum", "padded_length"),
        )
        global_scope: Literal["sequence", "group"] = flag(
            "sequence",
            "what the linear part sums over: the row, or (peers, bidirectional) the token's own group",
            tried=("group",),
        )
        rel_pos_bias: Literal["t5", "toeplitz"] | None = flag(
            "t5",
            "a learned bias by distance inside a group",
            paper="https://arxiv.org/abs/1910.10683",
            tried=("toeplitz", None),
        )
        gamma_init: Literal["ones", "normal"] = flag(
            "ones", "start of the gains of queries and keys: 1, or N(0, .02)", tried=("normal",)
        )
        offset: bool = like(GatedUnit.Config, "offset")
        bias: bool = flag(False, "biases in the two linear maps", tried=(True,))
        dropout: float = flag(0.0, "dropout of the weights inside a group", at_least=0, below=1, tried=(0.1,))
        max_documents: int | None = flag(
            None,
            "most documents in a row, needed only to compile with doc_ids (None: looked up; causal on a GPU, no need)",
            at_least=1,
            tried="it matters to torch.compile only",
        )

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        check(config, site.causal)
        inner, width = site.channels("flash_expansion_factor", config.expansion_factor), config.query_key_dim
        self.widths = (inner, inner, width)
        self.to_hidden = nn.Linear(site.dim, sum(self.widths), bias=config.bias)
        self.to_out = site.linear_out(inner, bias=config.bias, gated=True)
        self.gamma = nn.Parameter(torch.ones(4, width))
        self.beta = nn.Parameter(torch.zeros(4, width)) if config.offset else None
        if config.gamma_init == "normal":
            nn.init.normal_(self.gamma, std=0.02)
        self.rel_pos_bias = own_bias(config.rel_pos_bias, 1, site.causal, config.group_size)

    def key_width(self) -> int:
        return self.config.query_key_dim

    def turned_queries(self) -> int:
        return 2

    def refuses_step(self) -> str:
        if self.config.global_normaliser != "padded_length":
            return ""
        return "flash_global_normaliser='padded_length' divides by the length of each call"

    def reserve(
        self, state: FlashState | None, used: int, need: int, copy: bool, length: Tensor | None
    ) -> FlashState | None:
        return None if state is None else late.reserve(state, self.config.group_size, used, need, copy, length)

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: FlashState | None = None
    ) -> tuple[Float[Tensor, "b n d"], FlashState | None]:
        hidden = whole(self.to_hidden(x), sum(self.widths), "flash")
        if ctx.relay.asked:
            self.show(hidden, ctx, state)
        if self.fits_fused(x.shape[1], ctx, state):
            return self.fused(hidden, ctx, state)
        gate, t = self.project(hidden, ctx)
        y, state = self.mix(t, self.spec(ctx), ctx, state)
        return self.to_out(gate * y), state

    def shows(self) -> tuple[str, ...]:
        return "gates", "near", "far", "maps"

    def show(self, hidden: Float[Tensor, "b n _"], ctx: Ctx, state: FlashState | None) -> None:
        """The gate, and what it multiplies, from inside the groups and from across them, without dropout.

        The map is what values are multiplied by for that; those of former calls are in sums, so that with a state
        there is none.
        """
        gate, t = self.project(hidden, ctx)
        ctx.relay.show(self, "gates", gate)
        alone, spec = replace(ctx, keep_state=False, in_place=False), self.spec(ctx)._replace(dropout=0.0)
        if not {"near", "far"}.isdisjoint(ctx.relay.asked):
            near, _ = self.mix(t._replace(far_q=torch.zeros_like(t.far_q)), spec, alone, state)
            far, _ = self.mix(t, spec._replace(fn="none"), alone, state)
            ctx.relay.show(self, "near", near)
            ctx.relay.show(self, "far", far)
        if "maps" in ctx.relay.asked and state is None:
            b, n = hidden.shape[:2]
            # Each token brings itself, unless it does not exist.
            one, real = torch.eye(n, dtype=t.v.dtype, device=t.v.device).expand(b, n, n), ctx.real(n)
            one = one if real is None else one.masked_fill(~real[..., None], 0)
            weights, _ = self.mix(t._replace(v=one), spec, alone, None)
            ctx.relay.show(self, "maps", AttentionMap(weights[:, None], True))

    def fits_fused(self, n: int, ctx: Ctx, state: FlashState | None) -> bool:
        """Whether the fused kernel can do it: causal rows that begin a group, weights that need no sum over a row."""
        config, compiling = self.config, torch.compiler.is_compiling()
        if not self.site.causal or config.attn_fn == "softmax" or ctx.doc_ids is not None or ctx.length is not None:
            return False
        if (config.dropout and self.training) or not operators_work():
            return False
        if plain_is_better(ctx.positions.device.type, compiler_fuses()) and not triton_asked():
            return False
        if ctx.relative is not None and not ctx.relative.turns_once:
            return False
        if compiling:
            # What is left of the last group depends on the length, which a graph must not ask.
            return state is None and not ctx.keep_state
        begins = ctx.past % config.group_size == 0
        return n > 1 and begins and (ctx.new is None or not ctx.keep_state)

    def fused(self, hidden: Float[Tensor, "b n _"], ctx: Ctx, state: FlashState | None) -> tuple:
        """The update and the state by the kernel that works on some groups at a time."""
        w, spec, turn, vector = self.config.group_size, self.spec(ctx), None, None
        if self.rel_pos_bias is not None:
            gaps = ctx.once(("gaps in a group", w), lambda: distances(w, w, hidden.device))
            vector = self.rel_pos_bias.at(gaps, ctx, ("whole group", w))
        if ctx.relative is not None and ctx.relative.turns:
            turn = Turn(*ctx.relative.pairs(ctx, self.config.query_key_dim, hidden.dtype))
        y, closed = fused_groups(
            hidden,
            self.gamma,
            self.beta,
            Settings(w, spec.fn, spec.scale, float(spec.divide), spec.normaliser == "mean", ctx.past // w),
            vector=vector,
            turn=turn,
            closed=None if state is None else state.closed,
            new=ctx.new,
        )
        return self.to_out(y), self.left_open(hidden, closed, ctx) if ctx.keep_state else None

    def left_open(self, hidden: Float[Tensor, "b n _"], closed: Float[Tensor, "b k e"], ctx: Ctx) -> FlashState:
        """The state behind groups that are full and the tokens behind them."""
        w, (b, n, _), (_, inner, width) = self.config.group_size, hidden.shape, self.widths
        left = n % w
        if not left:
            return settled(closed, *(hidden.new_zeros(b, w, size) for size in (width, width, inner)))
        last = replace(ctx, positions=ctx.positions[:, n - left :], memo={})
        _, t = self.project(hidden[:, n - left :], last)
        return settled(closed, *(F.pad(part, (0, 0, 0, w - left)) for part in (t.k, t.far_k, t.v)))

    def project(self, hidden: Float[Tensor, "b n _"], ctx: Ctx) -> tuple[Float[Tensor, "b n e"], Heads]:
        """The gate, and what each token brings; keys and values of tokens that do not exist are zeros."""
        gate, v, z = F.silu(hidden).split_with_sizes(self.widths, -1)
        gamma = self.gamma[:, None, None]
        four = z * gamma if self.beta is None else torch.addcmul(self.beta[:, None, None], z, gamma)
        # One head, with two queries and two keys.
        four = four.to(v.dtype).transpose(0, 1)[:, None]
        queries, keys = four.chunk(2, 2) if ctx.relative is None else ctx.relative.rotate_both(four, 2, ctx)
        real = ctx.real(hidden.shape[1])
        if real is not None:
            keys, v = keys.masked_fill(~real[:, None, None, :, None], 0), v.masked_fill(~real[..., None], 0)
        return gate, Heads(queries[:, 0, 0], keys[:, 0, 0], queries[:, 0, 1], keys[:, 0, 1], v)

    def mix(
        self, t: Heads, spec: Spec, ctx: Ctx, state: FlashState | None
    ) -> tuple[Float[Tensor, "b n e"], FlashState | None]:
        """What the gate multiplies, by the way that costs least."""
        n, w = t.v.shape[1], self.config.group_size
        if ctx.doc_ids is not None:
            return self.mix_documents(t, spec, ctx, ctx.doc_ids), None
        if not self.site.causal:
            return both_ways(t, spec, ctx.new), None
        if not torch.compiler.is_compiling():
            fill = 0 if state is None else ctx.past % w
            if fill + n <= w if ctx.uniform else state is None and n < w:
                return within(t, spec, ctx, state)
        if n == 1 and state is not None:
            return (step if state.held is None else late.step)(t, spec, ctx, state)
        return across(t, spec, ctx, state)

    def spec(self, ctx: Ctx) -> Spec:
        """The settings as the kernels take them; dropout only while training."""
        config, bias = self.config, self.rel_pos_bias
        w, root = config.group_size, config.query_key_dim**-0.5
        scale, divide = {None: (1 / w, 1), "content": (1 / w, 1), "outside": (root, w)}[config.normaliser_place]
        return Spec(
            w,
            self.site.causal,
            config.attn_fn,
            scale=root if config.attn_fn == "softmax" else scale,
            divide=divide,
            dropout=config.dropout if self.training else 0.0,
            bias=None if bias is None else partial(bias.at, ctx=ctx, key=("group", w)),
            normaliser=config.global_normaliser,
            scope=config.global_scope,
        )

    def mix_documents(self, t: Heads, spec: Spec, ctx: Ctx, doc_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n e"]:
        """`mix` for packed documents; ValueError where one would depend on its neighbours or on another call."""
        if ctx.keep_state or ctx.past:
            raise ValueError("doc_ids cannot be carried in a state: packed documents end with the call")
        if spec.normaliser == "padded_length":
            raise ValueError("doc_ids with flash_global_normaliser='padded_length': documents would not be independent")
        w, most, real = spec.w, self.config.max_documents, ctx.real(doc_ids.shape[1])
        if spec.causal and most is None and stays_in_rows(doc_ids):
            return in_rows(t, spec, ctx.once(("runs", w), lambda: runs(doc_ids, real, w)))
        return packed(t, spec, ctx.once(("documents", w, most), lambda: document_groups(doc_ids, real, w, most)))


def check(config: MixedChunkAttention.Config, causal: bool) -> None:
    """Raises ValueError for settings that contradict each other, naming both flags."""
    if config.attn_fn == "softmax" and config.normaliser_place is not None:
        raise ValueError(
            f"flash_normaliser_place={config.normaliser_place!r} is set, but flash_attn_fn='softmax' has no normaliser"
        )
    if causal and config.global_normaliser == "padded_length":
        raise ValueError("flash_global_normaliser='padded_length' with causal=True: a token would depend on later ones")
    if causal and config.global_scope == "group":
        raise ValueError("flash_global_scope='group' with causal=True: a token would depend on later ones")
