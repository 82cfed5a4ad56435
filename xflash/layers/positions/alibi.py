"""`alibi`: a penalty linear in the distance."""

import math
from collections.abc import Sequence

import torch

from ...base.frozen import frozen
from ...base.registry import positions
from ...base.shapes import Float, Int, Tensor
from ...flags.flag import flag
from ..blocks.block import Block
from .angles import angle_dtype
from .position import Bias

__all__ = ["Alibi", "alibi_slopes"]


@positions.register("alibi")
class Alibi(Bias):
    """A penalty linear in the distance, one slope a head (https://arxiv.org/abs/2108.12409), alike both ways."""

    @frozen
    class Config:
        num_heads: int | None = flag(
            None,
            "heads with a slope, the others without (None: all; all of a layer that has fewer)",
            at_least=1,
            tried=(2,),
        )
        slope_scale: float = flag(
            1.0,
            "what the slopes are multiplied by (Falcon: dim_head ** -0.5)",
            paper="https://arxiv.org/abs/2306.01116",
            above=0,
            tried=(0.3,),
        )

    def check(self, users: Sequence[Block]) -> None:
        """ValueError when no layer has as many heads as are to have a slope."""
        sloped, most = self.config.num_heads or 0, max((block.bias_heads() or 0 for block in users), default=0)
        if sloped > most:
            name = positions.name_of(type(self))
            raise ValueError(f"{name}_num_heads={sloped}, but no layer has more than {most} heads")

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"]:
        sloped = min(self.config.num_heads or heads, heads)
        slopes = torch.tensor(alibi_slopes(sloped) + [0.0] * (heads - sloped))
        # A copy that is waited for would make every layer wait for the GPU.
        slopes = slopes.to(distance.device, non_blocking=True)
        return slopes[:, None].to(angle_dtype(dtype)) * -self.config.slope_scale * distance.abs()


def alibi_slopes(heads: int) -> list[float]:
    """The paper's slopes: a geometric series; between powers of two, every second one of the next series fills up."""
    power = 2 ** math.floor(math.log2(heads))
    start = 2.0 ** (-8.0 / power)
    slopes = [start ** (i + 1) for i in range(power)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]
