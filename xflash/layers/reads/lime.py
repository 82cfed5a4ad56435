"""`lime`: branches read a mixture of what the branches above them read."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.registry import reads
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from ..site import Site
from .read import Read

__all__ = ["LIMe"]


@reads.register("lime")
class LIMe(Read):
    """Layer-integrated memory: what a branch would read, mixed per token with what those above would have read.

    https://arxiv.org/abs/2502.09245, its weights made from the token.
    """

    @frozen
    class Config:
        views: bool = flag(
            False, "queries, keys and values of attention are each given a mixture of their own", tried=(True,)
        )
        weights: Literal["softmax", "relu"] = flag(
            "softmax", "what makes weights of the scores of layers", tried=({"weights": "relu"},)
        )
        eps: float = flag(1e-5, "added to the mean square that the scores' norm divides by", above=0, tried=(1e-6,))

    @classmethod
    def stands(cls, config, site: Site) -> bool:
        if len(site.places) > 1:
            raise ValueError(
                "reads='lime' mixes all layers above, a number of its own for each place, but weight_tie_layers=True "
                "(or layers_execute_order) has one module stand at several"
            )
        if config.views:
            site.check_views("lime_views")
        return True

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.ones(site.dim))
        self.views = site.views if config.views else 1
        self.score = nn.Linear(site.dim, self.views * (site.places[0] + 1))
        with torch.no_grad():
            self.score.bias.zero_()
            # Most of what is read is the layer's own at first; relu's weights have no sum that would bound them.
            self.score.weight.normal_(std=0.02)
            self.score.bias[site.places[0] :: site.places[0] + 1] = 4.0 if config.weights == "softmax" else 1.0

    def forward(self, y: Float[Tensor, "b n d"], ctx: Ctx, place: int) -> Float[Tensor, "b n *v d"]:
        ctx.relay.leave("lime", place, y)
        scores = self.score(F.rms_norm(y, (self.site.dim,), self.gain.to(y.dtype), self.config.eps))
        scores = scores.unflatten(-1, (self.views, -1))
        weights = scores.softmax(-1) if self.config.weights == "softmax" else scores.relu()
        *above, own = weights.to(y.dtype).split(1, -1)
        mixed = y[:, :, None] * own
        # One by one: stacked, all layers would be copied by each.
        for i, weight in enumerate(above):
            mixed = mixed + ctx.relay.take("lime", i)[:, :, None] * weight
        return mixed if self.views > 1 else mixed[:, :, 0]
