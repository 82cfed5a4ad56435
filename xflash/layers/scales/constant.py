"""`constant`: every update times one number."""

from ...base.frozen import frozen
from ...base.registry import scales
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .scale import Scale

__all__ = ["Constant"]


@scales.register("constant")
class Constant(Scale):
    """c * f(x) with a number that is not learned, such as 1 / sqrt(depth) (https://arxiv.org/abs/2310.02244)."""

    @frozen
    class Config:
        factor: float = flag(0.5, "what updates are multiplied by", above=0, tried="one number is as good as another")

    def forward(self, update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return update * self.config.factor
