"""`cross_gau`: the gated attention unit whose queries come from the stack and whose values come from a context."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.shapes import Float, Int, Tensor, typed
from ...base.state import Ctx
from ...flags.flag import flag
from ..projection import whole
from ..site import Site
from .context import Context, ContextFlags, TakesContext, context_mask, source
from .gated_unit import GatedUnit

__all__ = ["CrossGatedAttention"]


@blocks.register("cross_gau")
class CrossGatedAttention(TakesContext, GatedUnit):
    """The gated attention unit (https://arxiv.org/abs/2202.10447) attending to a context: `to_out(u * (A v))`.

    Gate u and queries come from the stack's tokens, values v and keys from the context; the paper has self-attention
    only. A is a softmax unless told otherwise; n, by which relu2 and laplace are divided, is the number of the
    context's real tokens. A row whose context is all padding reads zeros. The context's keys and values are kept in
    the state.
    """

    steady = True
    kind = "cross_gau"
    reading = ("to_source",)

    @frozen
    class Config(ContextFlags, GatedUnit.Config):
        # To find one token among the context's is what it is for: relu2 over n learns it far more slowly.
        attn_fn: Literal["relu2", "laplace", "softmax", "softmax_plus"] = flag(
            "softmax",
            "scores to weights; softmax_plus sharpens its scores by log(keys seen) / log(512)",
            paper="https://arxiv.org/abs/2209.10655",
            tried=("relu2", "laplace", "softmax_plus"),
        )
        normaliser: Literal["row_index", "fixed", "row_sum", "none"] | None = flag(
            None,
            "divides relu2 and laplace: by the context's tokens, a fixed length, the row's sum, nothing "
            "(None: row_index)",
            tried=(
                {"normaliser": "row_sum", "attn_fn": "laplace"},
                {"normaliser": "none", "attn_fn": "relu2"},
            ),
        )

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        self.widths = (self.inner, self.width)
        self.to_hidden = nn.Linear(site.dim, sum(self.widths), bias=config.bias)
        self.to_source = nn.Linear(self.context_width(), sum(self.widths), bias=config.bias)

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Context | None = None
    ) -> tuple[Float[Tensor, "b n d"], Context | None]:
        held = self.take(ctx) if state is None else state
        u, z = F.silu(whole(self.to_hidden(x), sum(self.widths), self.kind)).split(self.widths, -1)
        if ctx.relay.asked:
            ctx.relay.show(self, "gates", u)
        q = self.toward(self.scaled(z, 0), held, ctx)
        # Values of padding are zeros, so that only a sum over the row, or a map that is looked at, needs the mask.
        masked = self.takes_sums or ctx.maps is not None
        y = self.read(
            q,
            held.k,
            held.v,
            seen=real_tokens(held, x.shape[1]),
            padded=held.k.shape[2],
            allowed=context_mask(held) if masked else None,
            maps=ctx.maps,
            over_tokens=False,
        )
        y = F.dropout(self.to_out(u * rearrange(y, "b h n e -> b n (h e)")), self.config.out_dropout, self.training)
        return y, held if ctx.keep_state else None

    def take(self, ctx: Ctx) -> Context:
        """Keys and values of the context of this call."""
        v, z = F.silu(whole(self.to_source(source(ctx)), sum(self.widths), self.kind)).split(self.widths, -1)
        k, v = self.scaled(z, 1), rearrange(v, "b c (h e) -> b h c e", h=self.config.heads)
        if (mask := self.seen(ctx)) is not None:
            v = v.masked_fill(~mask[:, None, :, None], 0)
        return self.held(k, v, ctx)


def real_tokens(held: Context, n: int) -> Int[Tensor, "_ n"]:
    """How many tokens of the context each of n queries sees, 1 where a row has none."""
    if held.mask is None:
        return torch.full((1, n), held.k.shape[2], device=held.k.device)
    return held.mask.sum(1).clamp(min=1)[:, None].expand(-1, n)
