"""`attn`: softmax attention among the tokens of the stack, with the variations people mix in."""

from dataclasses import dataclass
from typing import NamedTuple

from ..flags import flag
from ..registry import blocks
from ..shapes import Float, Tensor, typed
from ..state import Ctx
from .block import Site
from .kernels.buffers import grow, write
from .masks import visible
from .multi_head import MultiHead

__all__ = ["KV", "Attention"]


class KV(NamedTuple):
    """Keys and values of the tokens seen, in buffers (b, h, slots, k) that grow by doubling."""

    k: Tensor
    v: Tensor


@blocks.register("attn")
class Attention(MultiHead):
    """Multi-head softmax attention over the tokens of the stack (https://arxiv.org/abs/1706.03762)."""

    kind = "attn"
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})
    positions = frozenset({"rotary", "rel_pos", "alibi"})

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiHead.Config):
        window: int | None = flag(
            None, "tokens a query sees, itself included (both ways when bidirectional)", at_least=1
        )

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site, site.dim)

    def bias_heads(self) -> int:
        return self.heads

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: KV | None = None
    ) -> tuple[Float[Tensor, "b n d"], KV | None]:
        q, (k, v) = self.queries(x), self.keys_and_values(x)
        if ctx.relative is not None:
            q, k = ctx.relative.rotate(q, ctx), ctx.relative.rotate(k, ctx, inverse=True)
        k, v, state = self.remember(k, v, ctx, state)
        return self.joined(self.look(q, k, v, ctx), x), state

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
        """What the queries read from the tokens they may see."""
        n, m = q.shape[2], k.shape[2]
        mask, causal = visible(ctx, n, m, self.site.causal, self.config.window)
        bias = None if ctx.relative is None else ctx.relative.bias(self.heads, n, m, ctx, q.dtype)
        return self.read(q, k, v, mask, bias=bias, causal=causal, may_be_blind=ctx.attn_mask is not None, maps=ctx.maps)

    def reserve(self, state: KV | None, used: int, need: int, copy: bool) -> KV | None:
        if state is None:
            return None
        return KV(grow(state.k, used, need, copy), grow(state.v, used, need, copy))
