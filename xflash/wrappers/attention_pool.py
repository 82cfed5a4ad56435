"""`AttentionPool`: learned queries that read a sequence of any length, some pooled tokens out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base.checks import check_dtype, given, main_weight
from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from ..flags.flag import flag
from ..layers.joins.join import Join
from ..saving.configurable import Configurable
from ..stack.stacks import CrossAttender

__all__ = ["AttentionPool", "NoJoin"]


class NoJoin(Join):
    """f(x) alone."""

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return update


class AttentionPool(Configurable):
    """Learned queries that attend to a sequence, and give (b, num_pooled_tokens, dim) (https://arxiv.org/abs/1810.00825).

    With depth 1 it is one cross-attention, without norm or residual; deeper ones are a `CrossAttender` of that depth,
    whose layers have both.
    """

    @dataclass(frozen=True)
    class Config:
        dim: int = flag(doc="width of the queries and of what comes out", at_least=1)
        num_pooled_tokens: int = flag(1, "learned queries (0: each call gives its own)", at_least=0)
        dim_context: int | None = flag(None, "width of what is read (None: dim)", at_least=1)
        add_residual: bool = flag(False, "queries are added to what they read, at depth 1")
        depth: int = flag(1, "layers", at_least=1)
        heads: int = flag(8, "heads of the attention", at_least=1)
        dim_head: int = flag(64, "width of a head", at_least=1)
        use_transformer_blocks: bool | None = flag(
            None, "layers with norm, residual and feed-forward (None: depth > 1)"
        )
        attn_kwargs: Mapping[str, Any] | None = flag(None, "further flags of its attention: {'qk_norm': True}")

    gives = "pooled tokens of embeddings"

    def assemble(self, config: Any) -> None:
        blocks = config.depth > 1 if config.use_transformer_blocks is None else config.use_transformer_blocks
        if config.depth > 1 and not blocks:
            raise ValueError(f"depth={config.depth} needs use_transformer_blocks: layers of attention alone are one")
        if config.add_residual and blocks:
            raise ValueError("add_residual=True is set, but transformer blocks (depth above 1) have residuals anyway")
        self.dim, self.dim_context = config.dim, config.dim_context or config.dim
        # Queries that are alike would stay so for ever.
        count = config.num_pooled_tokens
        self.queries = nn.Parameter(torch.empty(count, self.dim).normal_(std=0.01)) if count else None
        own, given = {"dim_head": config.dim_head, "dim_context": self.dim_context}, config.attn_kwargs or {}
        if twice := [name for name in (*own, "heads") if name in given]:
            raise ValueError(f"attn_kwargs has {twice[0]!r}, which is an argument of its own: give it there")
        flags = {**own, **given}
        bare = {} if blocks else {"layers": "cross_attn", "norm": "none", "final_norm": False}
        named = {f"cross_attn_{name}": value for name, value in flags.items()}
        self.reader = CrossAttender(dim=self.dim, depth=config.depth, heads=config.heads, **bare, **named)
        if not (blocks or config.add_residual):
            self.reader.branches[0].join = NoJoin(NoJoin.Config(), self.reader.blocks()[0].site)

    def forward(
        self,
        context: Float[Tensor, "b n _"],
        mask: Tensor | None = None,
        queries: Float[Tensor, "b k d"] | None = None,
    ) -> Float[Tensor, "b k d"]:
        """What the queries (b, k, dim), the learned ones unless given, read of the real tokens of `context`."""
        if queries is None:
            if self.queries is None:
                raise ValueError("queries must be given: the pool was built with num_pooled_tokens=0")
            rows = context.shape[0] if isinstance(context, torch.Tensor) else 1
            queries = self.queries.expand(rows, -1, -1)
        else:
            self.check_queries(queries)
        return self.reader(queries, context=context, context_mask=mask)

    def check_queries(self, queries: Any) -> None:
        """TypeError or ValueError for queries of another width or dtype than the pool's."""
        if not isinstance(queries, torch.Tensor) or queries.dim() != 3 or queries.shape[2] != self.dim:
            raise ValueError(f"queries must be (batch, any number, {self.dim}), not {given(queries)}")
        weight = main_weight(self)
        if weight is not None and not torch.is_autocast_enabled(queries.device.type):
            check_dtype("queries are", "queries", queries.dtype, weight.dtype)
