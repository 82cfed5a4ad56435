"""`orthogonal`: only what of the update is new to the stream joins it."""

import torch

from ...base.frozen import frozen
from ...base.registry import joins
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .join import Join

__all__ = ["Orthogonal"]


@joins.register("orthogonal")
class Orthogonal(Join):
    """x + u - (u.x / x.x) x, u being f(x): each token's update without its part along the stream (2505.11881).

    Products are summed in float32 at least. Where the stream is zero, the whole update joins it.
    """

    @frozen
    class Config:
        eps: float = flag(1e-6, "what is added to x.x", above=0, tried="it is there for tokens of zeros")

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        exact = torch.promote_types(x.dtype, torch.float32)
        stream, new = x.to(exact), update.to(exact)
        along = (new * stream).sum(-1, keepdim=True) / (stream.square().sum(-1, keepdim=True) + self.config.eps)
        return (stream + new - along * stream).to(x.dtype)
