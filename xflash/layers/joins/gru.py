"""`gru`: a gated recurrent unit joins the update to the stream."""

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import joins
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .join import Join

__all__ = ["GRU"]


@joins.register("gru")
class GRU(Join):
    """(1 - z) n + z x: what z keeps of the stream, and a new value n of both, are learned (GTrXL, 1910.06764).

    The weights are those of torch's GRUCell, whose input is the update and whose state is the stream.
    """

    @frozen
    class Config:
        keep: float = flag(
            2.0, "what the bias of the gate z starts at: above zero the stream is kept", at_least=0, tried=(1.0,)
        )
        gain: bool = flag(False, "a learned gain per channel on the stream, as in 'scaled'", tried=(True,))

    def __init__(self, config, site):
        super().__init__(config, site)
        self.update, self.stream = (nn.Linear(site.dim, 3 * site.dim) for _ in range(2))
        with torch.no_grad():
            self.update.bias.zero_()
            self.stream.bias.zero_()
            self.update.bias[site.dim : 2 * site.dim] = config.keep
        self.gain = nn.Parameter(torch.ones(site.dim)) if config.gain else None

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        if self.gain is not None:
            x = x * self.gain.to(x.dtype)
        r, z, n = self.update(update.to(x.dtype)).chunk(3, -1)
        of_x = self.stream(x).chunk(3, -1)
        n = (n + (r + of_x[0]).sigmoid() * of_x[2]).tanh()
        return n + (z + of_x[1]).sigmoid() * (x - n)
