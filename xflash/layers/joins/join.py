"""`Join`: the interface of how a branch's update joins the stream; `add`, the plain one."""

from typing import Any, ClassVar

from ...base.moved import lent
from ...base.registry import joins
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ..norms import Norm
from ..part import Part

__all__ = ["Add", "Join", "Residual"]


class Join(Part):
    """Base of the joins: forward(x, update, ctx) gives the new stream.

    One that is `wide` has the stream in another shape (b, n, ..., d): `widen` makes it at the top of the column,
    `narrow` ends it at the bottom, and `take` says what a branch reads of it and what `forward` is given as x.
    `norm_places`: the only ones it can stand beside; `norms_end`: a last norm is what it needs, wherever norms stand.
    """

    calls = ("x", "update", "ctx")
    wide: ClassVar[bool] = False
    norm_places: ClassVar[tuple[str, ...]] = ()
    norms_end: ClassVar[bool] = False

    def widen(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n *_ d"]:
        """The stream as the branches hand it on; asked of the first branch."""
        return x

    def narrow(self, x: Float[Tensor, "b n *_ d"]) -> Float[Tensor, "b n d"]:
        """What the last norm reads of it."""
        return x

    def take(self, x: Float[Tensor, "b n *_ d"], ctx: Ctx) -> tuple[Float[Tensor, "b n d"], Any]:
        """What the branch reads, and the x of `forward`."""
        return x, x

    @classmethod
    def views(cls, config: Any) -> bool:
        """Whether a branch that can read several tensors is given one for each by `take`, (b, n, views, d)."""
        return False

    def settled(self, x: Float[Tensor, "b n *_ d"], norm: Norm, ctx: Ctx) -> Float[Tensor, "b n *_ d"]:
        """The stream behind the norm that stands after the sum."""
        return norm(x, ctx)

    def ended(self, x: Float[Tensor, "b n *_ d"], norm: Norm | None, ctx: Ctx) -> Float[Tensor, "b n d"]:
        """What a stack gives whose stream is `wide`; norm: its last one."""
        y = self.narrow(x)
        return y if norm is None else norm(y, ctx)


joins.base = Join
# The name that 0.1.0 had for the base of what is registered here.
Residual = Join
# This module is 0.1.0's layers.residuals too, which had what is scales and `scaled` now.
__getattr__ = lent("xflash.layers", "scales.scale", "joins.scaled")


@joins.register("add")
class Add(Join):
    """x + f(x)."""

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return x + update
