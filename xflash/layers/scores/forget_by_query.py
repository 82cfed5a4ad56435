"""`forget_by_query`: what stands between fades what is before it, more to some queries than to others."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.registry import scores
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .step import Read, ScoreStep

__all__ = ["ForgetByQuery"]


@scores.register("forget_by_query")
class ForgetByQuery(ScoreStep):
    """`forget` (https://arxiv.org/abs/2503.02130) with a gate for each query and key: x-transformers' "per row".

    The gate is the sigmoid of a product of narrow queries and keys of their own; the score of a key is lowered by the
    logs of the gates from it up to the last token before the query. Narrow keys are kept beside the others. Keys ahead,
    which only a prefix shows, are not faded.
    """

    needs = frozenset({"causal", "tokens"})
    brings = ("forget_by_query",)
    shared = False
    adds_between = True

    @frozen
    class Config:
        dim_head: int = flag(8, "width of the narrow queries and keys", at_least=1, tried="any is as any other")

    def __init__(self, config: Any, site: Any, heads: int, kind: str):
        super().__init__(config, site, heads, kind)
        width = heads * config.dim_head
        self.to_q, self.to_k = (nn.Linear(site.dim, width, bias=False) for _ in range(2))

    @classmethod
    def check(cls, kind: str, configs: Sequence[Any], heads: int) -> None:
        for config in configs:
            if config.sinks:
                raise ValueError(
                    f"{kind}_scores has 'forget_by_query', which adds up what stands between key and query, but "
                    f"{kind}_sinks={config.sinks} keeps keys whose followers are given up: leave out one of them"
                )

    def split(self, t: Float[Tensor, "b n _"]) -> Float[Tensor, "b h n k"]:
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def bring(self, x: Float[Tensor, "b n d"], ctx: Ctx, last: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        return {"forget_by_query": self.split(self.to_k(x))}

    def ask(self, x: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        return {"forget_by_query": self.split(self.to_q(x))}

    def bias(self, read: Read) -> Float[Tensor, "b h n m"]:
        q, k = read.asked["forget_by_query"], read.buffers["forget_by_query"]
        products = q @ k.mT.to(q.dtype) * self.config.dim_head**-0.5
        logs = F.logsigmoid(products.to(torch.promote_types(q.dtype, torch.float32)))
        logs = logs.masked_fill(read.distance(k.shape[2]) <= 0, 0)
        return logs.flip(-1).cumsum(-1).flip(-1)
