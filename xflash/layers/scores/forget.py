"""`forget`: gates made of the tokens fade what stands before them."""

from collections.abc import Mapping
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

__all__ = ["Forget"]


@scores.register("forget")
class Forget(ScoreStep):
    """The forgetting transformer (https://arxiv.org/abs/2503.02130), x-transformers' data-dependent ALiBi.

    A token's gate f, one a head, multiplies what it and those behind it see of the tokens before it: the sum of log f
    from behind the key up to the query is added to the score. Sums are kept beside the keys, in float32 at least. Keys
    ahead, which only a prefix shows, are not faded.
    """

    needs = frozenset({"causal"})
    brings = ("forget",)
    shared = False

    @frozen
    class Config:
        start: float = flag(5.0, "what the gates' logits start at: the higher, the less is forgotten", tried=(1.0,))

    def __init__(self, config: Any, site: Any, heads: int, kind: str):
        super().__init__(config, site, heads, kind)
        self.to_gate = nn.Linear(site.dim, heads)
        nn.init.constant_(self.to_gate.bias, config.start)

    def bring(self, x: Float[Tensor, "b n d"], ctx: Ctx, last: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        logits = self.to_gate(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        sums = F.logsigmoid(logits).cumsum(1).mT[..., None]
        return {"forget": sums if last is None else sums + last["forget"]}

    def bias(self, read: Read) -> Float[Tensor, "b h n m"]:
        # What stands ahead would overflow half precision.
        return (read.fresh["forget"] - read.buffers["forget"].mT).clamp(max=0)
