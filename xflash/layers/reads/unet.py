"""`unet`: the second half of a column is also given what the first half began with."""

import torch
from torch import nn

from ...base.registry import reads
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ..site import Site
from .read import Read

__all__ = ["UNet"]


def twin(site: Site) -> int | None:
    """The first layer of the repetition of the layout that mirrors the one which this site begins; None where none."""
    place, last = site.places[0], len(site.layers) // site.period - 1
    if place % site.period:
        return None
    mirrored = (last - place // site.period) * site.period
    return None if mirrored == place else mirrored


@reads.register("unet")
class UNet(Read):
    """Repetitions of the layout in the second half are given what those in the first began with, by a linear map.

    The last one is given the first one's stream, and so on; of an odd number the middle one is given none. As in U-nets
    and in U-ViT (https://arxiv.org/abs/2209.12152).
    """

    takes_views = True

    @classmethod
    def stands(cls, config, site: Site) -> bool:
        if len(site.places) > 1:
            raise ValueError(
                "reads='unet' joins two halves of the column, but weight_tie_layers=True (or layers_execute_order) has "
                "one module stand in both"
            )
        if len(site.layers) == site.period:
            raise ValueError(
                "reads='unet' joins repetitions of the layout in pairs, but it is there only once (depth=1)"
            )
        return twin(site) is not None

    def __init__(self, config, site):
        super().__init__(config, site)
        self.twin = twin(site)
        self.combine = None
        if self.twin < site.places[0]:
            self.combine = nn.Linear(2 * site.dim, site.dim, bias=False)
            # A stack begins as one without skips.
            with torch.no_grad():
                self.combine.weight.copy_(torch.eye(site.dim, 2 * site.dim).roll(site.dim, 1))

    def enter(self, x: Float[Tensor, "b n *_ d"], ctx: Ctx, place: int) -> Float[Tensor, "b n *_ d"]:
        """The stream, with the mirror's where there is one."""
        if self.combine is None:
            ctx.relay.leave("unet", place, x)
            return x
        return self.combine(torch.cat((ctx.relay.take("unet", self.twin), x), -1))
