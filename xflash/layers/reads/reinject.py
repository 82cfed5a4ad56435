"""`reinject`: every branch is given what the column began with, too."""

from torch import nn

from ...base.frozen import frozen
from ...base.registry import reads
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .read import Read

__all__ = ["Reinject"]


@reads.register("reinject")
class Reinject(Read):
    """y + W x_0, one linear map of the stack's input for all layers (deep equilibrium models, 1909.01377).

    The first layer has the map and leaves what it gives for those below.
    """

    takes_views = True

    @frozen
    class Config:
        gate: bool = flag(False, "a sigmoid of the input says how much of it each token is given", tried=(True,))

    def __init__(self, config, site):
        super().__init__(config, site)
        first = 0 in site.places
        self.project = nn.Linear(site.dim, site.dim, bias=False) if first else None
        self.to_gate = nn.Linear(site.dim, 1, bias=False) if first and config.gate else None

    def enter(self, x: Float[Tensor, "b n *s d"], ctx: Ctx, place: int) -> Float[Tensor, "b n *s d"]:
        """The stream as it is; of several the first is the input."""
        if place == 0 and self.project is not None:
            begun = x if x.dim() == 3 else x[:, :, 0]
            given = self.project(begun)
            ctx.relay.leave("reinject", 0, given if self.to_gate is None else given * self.to_gate(begun).sigmoid())
        return x

    def forward(self, y: Float[Tensor, "b n *v d"], ctx: Ctx, place: int) -> Float[Tensor, "b n *v d"]:
        given = ctx.relay.take("reinject", 0)
        return y + (given if y.dim() == 3 else given[:, :, None])
