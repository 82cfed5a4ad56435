"""`PooledOutput`: one embedding a row out of the stack's outputs, for models that judge whole sequences."""

import torch
import torch.nn.functional as F
from torch import nn

from ..base.frozen import frozen
from ..base.shapes import Float, Tensor
from ..flags.flag import check_idle, flag
from ..layers.embeddings import MemoryTokens
from ..stack.face import AttentionLayers
from .attention_pool import AttentionPool
from .pooling import LearnedPool, mean_pool

__all__ = ["PooledOutput", "pooled_output"]


class PooledOutput(nn.Module):
    """The mean of a row's real outputs, a learned weighting of them, or what stands at CLS tokens in front of it.

    kind: 'average_pool_embed', 'attn_pool' (learned queries; one without layers is the mean at the start) or
    'use_cls_token' (BERT's, https://arxiv.org/abs/1810.04805). CLS tokens are real in every row and carry no absolute
    position.
    """

    @frozen
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

        num_pooled_tokens: int = flag(
            1, "how many learned weightings, each with logits of its own", at_least=1,
            tried=({"num_pooled_tokens": 3, "attn_pool": True},),
        )  # fmt: skip
        attn_pool_depth: int = flag(
            0, "layers of attention that read the outputs in place of weightings (0: none)", paper="https://arxiv.org/abs/1810.00825",
            at_least=0, tried="with the width of what it gives",
        )  # fmt: skip
        dim_pooled_tokens: int | None = flag(
            None, "width of what these layers give (None: the stack's dim)", at_least=1,
            tried=({"dim_pooled_tokens": 14, "attn_pool_depth": 2, "attn_pool": True},),
        )  # fmt: skip

    def __init__(self, dim: int, kind: str, num_cls_tokens: int = 1, pool: nn.Module | None = None):
        super().__init__()
        self.kind = kind
        self.cls_tokens = MemoryTokens(num_cls_tokens, dim) if kind == "use_cls_token" else None
        self.attn_pool = (pool or LearnedPool(dim)) if kind == "attn_pool" else None

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
        """(b, d) out of the stack's outputs, (b, c, d) with several CLS or pooled tokens; zeros for an empty row."""
        if self.cls_tokens is not None:
            count = len(self.cls_tokens)
            return y[:, 0] if count == 1 else y[:, :count]
        if self.attn_pool is None:
            return mean_pool(y, mask)
        pooled = self.attn_pool(y, mask)
        if not isinstance(self.attn_pool, AttentionPool):
            return pooled
        # A row without real tokens has queries, but nothing they could have read.
        pooled = pooled if mask is None else pooled.masked_fill(~mask.any(1)[:, None, None], 0)
        return pooled[:, 0] if pooled.shape[1] == 1 else pooled


def pooled_output(config: PooledOutput.Config, stack: AttentionLayers) -> PooledOutput | None:
    """The pooling that a model's flags ask for; ValueError where they contradict each other."""
    kinds = [name for name in ("average_pool_embed", "use_cls_token", "attn_pool") if getattr(config, name)]
    if len(kinds) > 1:
        raise ValueError(f"{kinds[0]}=True and {kinds[1]}=True exclude each other: a model has one pooled output")
    if not config.use_cls_token:
        check_idle(config, ("num_cls_tokens",), "use_cls_token is False")
    if not config.attn_pool:
        check_idle(config, ("num_pooled_tokens", "attn_pool_depth", "dim_pooled_tokens"), "attn_pool is False")
    elif not config.attn_pool_depth:
        check_idle(config, ("dim_pooled_tokens",), "attn_pool_depth is 0: weightings are as wide as what they weigh")
    if config.use_cls_token and stack.causal:
        raise ValueError(
            "use_cls_token=True needs a bidirectional stack: in a causal one a token in front sees no other; "
            "average_pool_embed=True and attn_pool=True work there"
        )
    return PooledOutput(stack.dim, kinds[0], config.num_cls_tokens, pool_of(config, stack)) if kinds else None


def pool_of(config: PooledOutput.Config, stack: AttentionLayers) -> nn.Module | None:
    """The learned pool of a model, its heads those of the stack; None where it has none."""
    if not config.attn_pool:
        return None
    count, depth = config.num_pooled_tokens, config.attn_pool_depth
    if not depth:
        return LearnedPool(stack.dim, count)
    said = {name: value for name, value, _ in stack.flag_rows()}
    sizes = {"depth": depth, "heads": said["heads"], "dim_head": said.get("attn_dim_head", 64)}
    return AttentionPool(config.dim_pooled_tokens or stack.dim, count, stack.dim, **sizes)
