"""`adaptive_layernorm`: the gain of each channel is a linear map of the call's condition."""

import torch.nn.functional as F

from ..base.registry import norms
from ..base.shapes import Float, Tensor
from .conditioned import AdaptiveNorm

__all__ = ["AdaptiveLayerNorm"]


@norms.register("adaptive_layernorm")
class AdaptiveLayerNorm(AdaptiveNorm):
    """Mean zero, variance one, a gain that the condition says (DiT, https://arxiv.org/abs/2212.09748)."""

    def plain(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.layer_norm(x, (self.site.dim,), eps=self.config.eps)
