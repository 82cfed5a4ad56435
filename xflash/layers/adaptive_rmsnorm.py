"""`adaptive_rmsnorm`: the gain of each channel is a linear map of the call's condition."""

import torch.nn.functional as F

from ..base.registry import norms
from ..base.shapes import Float, Tensor
from .conditioned import AdaptiveNorm

__all__ = ["AdaptiveRMSNorm"]


@norms.register("adaptive_rmsnorm")
class AdaptiveRMSNorm(AdaptiveNorm):
    """Mean square one, a gain that the condition says (https://arxiv.org/abs/2212.09748)."""

    def plain(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.site.dim,), None, self.config.eps)
