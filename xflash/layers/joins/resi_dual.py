"""`resi_dual`: beside the stream that norms end, a second one in which all updates add up."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...base.frozen import frozen
from ...base.registry import joins
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from ..norms import Norm
from .join import Join

__all__ = ["ResiDual"]


@joins.register("resi_dual")
class ResiDual(Join):
    """norm(x + f(x)) down the column, and at its end x + norm(s x_0 + s the sum of all f(x)) (2304.14802)."""

    wide = True
    norm_places = ("post", "pre_and_post")
    norms_end = True
    example: ClassVar[Mapping[str, Any]] = {"norm_place": "post"}

    @frozen
    class Config:
        scale: float = flag(
            1.0,
            "what adds up is multiplied by it, so that half precision holds it",
            above=0,
            at_most=1,
            tried="the last norm divides it out again",
        )

    def widen(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n s d"]:
        """The stream, and what adds up beside it."""
        return torch.stack((x, x * self.config.scale), 2)

    def narrow(self, x: Float[Tensor, "b n s d"]) -> Float[Tensor, "b n d"]:
        """The stream that layers read."""
        return x[:, :, 0]

    def take(self, x: Float[Tensor, "b n s d"], ctx: Ctx) -> tuple[Float[Tensor, "b n d"], Any]:
        return x[:, :, 0], x

    def forward(
        self, x: Float[Tensor, "b n s d"], update: Float[Tensor, "b n d"], ctx: Ctx
    ) -> Float[Tensor, "b n s d"]:
        return x + torch.stack((update, update * self.config.scale), 2)

    def settled(self, x: Float[Tensor, "b n s d"], norm: Norm, ctx: Ctx) -> Float[Tensor, "b n s d"]:
        stream, added = x.unbind(2)
        return torch.stack((norm(stream, ctx), added), 2)

    def ended(self, x: Float[Tensor, "b n s d"], norm: Norm | None, ctx: Ctx) -> Float[Tensor, "b n d"]:
        stream, added = x.unbind(2)
        return stream + (added if norm is None else norm(added, ctx))
