"""`hyper`: several residual streams, mixed before each branch and fed by it behind."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.registry import joins
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .join import Join

__all__ = ["Hyper", "balanced"]


def balanced(logits: Float[Tensor, "*_ s s"], rounds: int) -> Float[Tensor, "*_ s s"]:
    """Positive matrices whose rows and columns sum to one, nearly so after a few rounds (Sinkhorn), in fp32 at least.

    Columns are divided last: they sum to one exactly.
    """
    weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-2)
    for _ in range(rounds):
        weights = weights / weights.sum(-1, keepdim=True)
        weights = weights / weights.sum(-2, keepdim=True)
    return weights.to(logits.dtype)


@joins.register("hyper")
class Hyper(Join):
    """Hyper-connections (https://arxiv.org/abs/2409.19606), mixed by balanced matrices (2512.24880).

    A branch reads a weighted sum of the streams and adds to each of them, with weights of its own for every token.
    """

    wide = True

    @frozen
    class Config:
        streams: int = flag(4, "residual streams", at_least=2, tried=(2,))
        mixing: Literal["balanced", "sum"] = flag(
            "balanced",
            "how streams are mixed; 'sum' (each becomes the sum of all) reproduces x-transformers 2.31",
            tried=({"mixing": "sum", "streams": 2},),
        )
        views: bool = flag(
            False, "queries, keys and values of attention are each given a mixture of their own", tried=(True,)
        )
        rounds: int = flag(5, "rounds of balancing the matrices that mix streams", at_least=1, tried=(2,))

    def __init__(self, config, site):
        super().__init__(config, site)
        s, d, v = config.streams, site.dim, (site.views,) if config.views and site.views > 1 else ()
        if config.views:
            site.check_views("hyper_views")
        first = torch.zeros(s, *v)
        first[site.places[0] % s] = 1
        self.gain = nn.Parameter(torch.ones(d))
        self.reads, self.writes = nn.Parameter(first), nn.Parameter(torch.ones(s))
        self.to_reads, self.to_writes = nn.Parameter(torch.zeros(d, *v)), nn.Parameter(torch.zeros(d))
        self.reads_scale, self.writes_scale = (nn.Parameter(torch.full((), 1e-2)) for _ in range(2))
        if config.mixing == "balanced":
            self.mixes, self.to_mixes = nn.Parameter(4 * torch.eye(s)), nn.Parameter(torch.zeros(d, s))
        if 0 in site.places:
            self.starts = nn.Parameter(torch.zeros(s, d))

    def widen(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n s d"]:
        """As many copies of the stream, each with a learned offset."""
        return x[:, :, None] + self.starts.to(x.dtype)

    def narrow(self, x: Float[Tensor, "b n s d"]) -> Float[Tensor, "b n d"]:
        """Their sum."""
        return x.sum(2)

    @classmethod
    def views(cls, config: Config) -> bool:
        return config.views

    def take(self, x: Float[Tensor, "b n s d"], ctx: Ctx) -> tuple[Float[Tensor, "b n *v d"], Any]:
        """What the branch reads; the streams mixed, and how much of the update each gets."""
        normed = F.layer_norm(x, (self.site.dim,), self.gain, None, 1e-5)
        reads = (self.reads + normed @ self.to_reads * self.reads_scale).sigmoid()
        writes = self.writes + (normed @ self.to_writes).sigmoid() * 2 * self.writes_scale
        reads = reads.to(x.dtype)[..., None]
        read = (x * reads).sum(2) if reads.dim() == x.dim() else (x[:, :, :, None] * reads).sum(2)
        return read, (self.mixed(x, normed), writes.sigmoid().to(x.dtype) * 2)

    def mixed(self, x: Float[Tensor, "b n s d"], normed: Float[Tensor, "b n s d"]) -> Float[Tensor, "b n s d"]:
        """Each stream as a mixture of all."""
        if self.config.mixing == "sum":
            return x.sum(2, keepdim=True).expand_as(x)
        mixes = balanced(self.mixes + normed @ self.to_mixes * self.reads_scale, self.config.rounds).to(x.dtype)
        # No matmul, which autocast would have in half precision: this is the stream itself.
        return torch.stack([mixes[:, :, s, :, None] * x[:, :, s, None] for s in range(self.config.streams)]).sum(0)

    def forward(self, x: Any, update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n s d"]:
        mixed, writes = x
        return mixed + writes[..., None] * update[:, :, None]
