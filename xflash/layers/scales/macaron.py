"""`macaron`: half of what layers that work on each token alone give."""

from collections.abc import Sequence

from ...base.registry import scales
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ..blocks.block import Block
from .scale import Scale

__all__ = ["Macaron"]


@scales.register("macaron")
class Macaron(Scale):
    """0.5 * f(x) of layers such as `ff`, which stand in front of attention and behind it (1906.02762)."""

    @classmethod
    def fits(cls, blocks: Sequence[type[Block]]) -> bool:
        return all(block.works_alone() for block in blocks)

    def forward(self, update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return update * 0.5
