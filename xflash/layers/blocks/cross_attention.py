"""`cross_attn`: softmax attention of the stack's tokens to a context, such as an encoder's output."""

from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.shapes import Float, Tensor, typed
from ...base.state import Ctx
from ..projection import linear_in, split_off_values
from ..scores.step import Read
from ..site import Site
from .context import Context, ContextFlags, TakesContext, context_mask, source
from .masks import sight
from .multi_head import MultiHead, split_heads

__all__ = ["CrossAttention"]


@blocks.register("cross_attn")
class CrossAttention(TakesContext, MultiHead):
    """Multi-head softmax attention to a context (https://arxiv.org/abs/1706.03762).

    The context's keys and values are computed in the first call and kept in the state, so that a decoder is stepped
    without being given it again. Rotary positions turn queries and keys only where `context_pos` says where the
    context's tokens stand. A row whose context is all padding reads zeros, unless there are memory keys and values.
    """

    steady = True
    kind = "cross_attn"
    borrows = "attn"
    offers = frozenset({"chance", "relay"})
    reading = ("key_value", "k_gain", "v_gain")

    @frozen
    class Config(ContextFlags, MultiHead.Config):
        """Those of a context, and of attention."""

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        self.to_q = linear_in(site.dim, self.heads * config.dim_head, config.qkv_bias)
        of_context = config.dim_context or site.dim
        if of_context == 1 and (config.qk_norm or config.qk_rmsnorm):
            # All that is left of a key is a sign, so that most scores tie and rounding would choose among them.
            flag = "qk_norm=True" if config.qk_norm else f"qk_rmsnorm={config.qk_rmsnorm!r}"
            raise ValueError(
                f"{self.kind}_{flag} norms keys that a context of width 1 makes, all of them alike but for a sign"
            )
        # By head: its key, its value.
        kept = self.kv_heads * (config.dim_head + self.value_width)
        self.key_value = linear_in(of_context, kept, config.qkv_bias)

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Context | None = None
    ) -> tuple[Float[Tensor, "b n d"], Context | None]:
        held = self.held(*self.keys_and_values(source(ctx), ctx), ctx) if state is None else state
        q = self.toward(self.normed(split_heads(self.to_q(x), self.config.dim_head), "q"), held, ctx)
        read = None if self.reader.plain else Read(q, held.k, ctx)
        y = self.read(q, held.k, held.v, sight(context_mask(held)), read=read, ctx=ctx, over_tokens=False)
        return self.joined(y, x, ctx), held if ctx.keep_state else None

    def keys_and_values(self, context: Float[Tensor, "b c _"], ctx: Ctx) -> tuple[Float[Tensor, "b h c k"], Tensor]:
        """The keys, normed as the flags ask for it, and the values of all key/value heads."""
        k, v = split_off_values(self.key_value(context), 1, self.config.dim_head, self.value_width)
        if k.shape[1] != self.kv_heads:
            self.check_shard(k.shape[1], ctx)
        return self.normed(k[:, :, 0], "k"), self.valued(v, context, ctx)
