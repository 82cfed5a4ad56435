"""`Read`: the interface of what stands between the stream and a branch."""

from typing import Any, ClassVar

from ...base.registry import reads
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ..part import Part
from ..site import Site

__all__ = ["Read"]


class Read(Part):
    """Base of the reads: forward(y, ctx, place) gives what the branch reads, y what it would have read without.

    `place` is that of this call in the column: tied layers are one module at several. What layers leave each other is
    in `ctx.relay`. One that `takes_views` takes a tensor each for queries, keys and values, (b, n, 3, d), as well.
    """

    calls = ("y", "ctx", "place")
    takes_views: ClassVar[bool] = False

    @classmethod
    def stands(cls, config: Any, site: Site) -> bool:
        """Whether one stands in the branch at this site; ValueError for a column that has no use for it."""
        return True

    def enter(self, x: Float[Tensor, "b n *_ d"], ctx: Ctx, place: int) -> Float[Tensor, "b n *_ d"]:
        """What becomes of the stream itself before the branch."""
        return x

    def forward(self, y: Float[Tensor, "b n d"], ctx: Ctx, place: int) -> Float[Tensor, "b n d"]:
        return y


reads.base = Read
