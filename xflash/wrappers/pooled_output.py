"""`PooledOutput`: one embedding a row out of the stack's outputs, for models that judge whole sequences."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..base.shapes import Float, Tensor
from ..flags.flag import flag
from ..layers.embeddings import MemoryTokens
from .pooling import AttentionPool, mean_pool

__all__ = ["PooledOutput", "pooled_output"]


class PooledOutput(nn.Module):
    """The mean of a row's real outputs, a learned weighting of them, or what stands at CLS tokens in front of it.

    kind: 'average_pool_embed', 'attn_pool' (one learned query, at the start the mean) or 'use_cls_token' (BERT's,
    https://arxiv.org/abs/1810.04805). CLS tokens are real in every row and carry no absolute position.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        average_pool_embed: bool = flag(False, "the head reads the mean of each row's real outputs", tried=(True,))
        use_cls_token: bool = flag(
            False,
            "the head reads learned tokens in front of each row",
            paper="https://arxiv.org/abs/1810.04805",
            tried=({"use_cls_token": True, "average_pool_embed": False},),
        )
        num_cls_tokens: int = flag(
            1,
            "how many of them, each with logits of its own",
            at_least=1,
            tried=({"num_cls_tokens": 2, "use_cls_token": True},),
        )
        attn_pool: bool = flag(
            False,
            "the head reads a learned weighting of each row's real outputs",
            paper="https://arxiv.org/abs/1810.00825",
            tried=({"attn_pool": True, "average_pool_embed": False},),
        )

    def __init__(self, dim: int, kind: str, num_cls_tokens: int = 1):
        super().__init__()
        self.kind = kind
        self.cls_tokens = MemoryTokens(num_cls_tokens, dim) if kind == "use_cls_token" else None
        self.attn_pool = AttentionPool(dim) if kind == "attn_pool" else None

    @property
    def count(self) -> int:
        """How many tokens it puts in front."""
        return 0 if self.cls_tokens is None else len(self.cls_tokens)

    def extra_repr(self) -> str:
        return self.kind

    def front(
        self, x: Float[Tensor, "b n d"], mask: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Float[Tensor, "b m d"], Tensor | None, Tensor | None]:
        """x with the CLS tokens in front of it, and its masks with them: they see every token and are seen by all."""
        if self.cls_tokens is None:
            return x, mask, attn_mask
        count, n = len(self.cls_tokens), x.shape[1]
        if isinstance(attn_mask, torch.Tensor):
            if attn_mask.shape[-2:] != (n, n):
                raise ValueError(
                    f"attn_mask must end in ({n}, {n}), not {tuple(attn_mask.shape)}: the CLS tokens are added to it"
                )
            attn_mask = F.pad(attn_mask, (count, 0, count, 0), value=1)
        return self.cls_tokens(x), None if mask is None else F.pad(mask, (count, 0), value=True), attn_mask

    def forward(self, y: Float[Tensor, "b n d"], mask: Tensor | None) -> Float[Tensor, "b *c d"]:
        """(b, d) out of the stack's outputs, (b, c, d) with several CLS tokens; zeros for a row without real tokens."""
        if self.cls_tokens is not None:
            count = len(self.cls_tokens)
            return y[:, 0] if count == 1 else y[:, :count]
        return mean_pool(y, mask) if self.attn_pool is None else self.attn_pool(y, mask)


def pooled_output(config: PooledOutput.Config, dim: int, causal: bool) -> PooledOutput | None:
    """The pooling that a model's flags ask for; ValueError where they contradict each other."""
    kinds = [name for name in ("average_pool_embed", "use_cls_token", "attn_pool") if getattr(config, name)]
    if len(kinds) > 1:
        raise ValueError(f"{kinds[0]}=True and {kinds[1]}=True exclude each other: a model has one pooled output")
    if config.num_cls_tokens != 1 and not config.use_cls_token:
        raise ValueError(f"num_cls_tokens={config.num_cls_tokens} is set, but use_cls_token is False")
    if config.use_cls_token and causal:
        raise ValueError(
            "use_cls_token=True needs a bidirectional stack: in a causal one a token in front sees no other; "
            "average_pool_embed=True and attn_pool=True work there"
        )
    return PooledOutput(dim, kinds[0], config.num_cls_tokens) if kinds else None
