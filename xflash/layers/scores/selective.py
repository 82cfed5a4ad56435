"""`selective`: tokens say which tokens before them those behind need no more."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ...base.registry import scores
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from .step import Read, ScoreStep

__all__ = ["Selective"]


@scores.register("selective")
class Selective(ScoreStep):
    """Selective attention (https://arxiv.org/abs/2410.02703): what the first head has seen fades for those behind.

    From the score of a key, in all heads, the scores above zero are taken away that the first head's queries before
    this one gave it, the key's own not counted. The row's (or document's) first token does not fade, nor do memory
    keys; keys ahead, which only a prefix shows, are not faded by those before them. The sums are kept beside the keys,
    in float32 at least.
    """

    needs = frozenset({"causal"})
    brings = ("selective",)
    across_heads = True
    shared = False

    def bring(self, x: Float[Tensor, "b n d"], ctx: Ctx, last: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        where = (ctx.positions if ctx.doc_ids is None else ctx.doc_positions()).expand(x.shape[0], -1)
        none = torch.zeros(where.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        # Whatever is added to it stays below zero.
        return {"selective": none.masked_fill(where == 0, -torch.inf)[:, None, :, None]}

    def before(self, s: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        gates = self.gates(s, read)
        before = F.pad(gates.cumsum(2), (0, 0, 1, -1))
        faded = (read.buffers["selective"].mT + before).clamp(min=0)
        if read.ctx.keep_state:
            real = read.ctx.real(s.shape[2])
            gates = gates if real is None else gates.masked_fill(~real[:, None, :, None], 0)
            read.added["selective"] = gates.sum(2)[..., None]
        return s - F.pad(faded, (read.memory, 0)).to(s.dtype)

    def gates(self, s: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b 1 n m"]:
        """How much each query fades each token before it."""
        gates = s[:, :1].to(torch.promote_types(s.dtype, torch.float32)).relu()
        gates = read.shown(gates, slice(1))[..., read.memory :]
        return gates.masked_fill(read.distance(gates.shape[-1]) <= 0, 0)
