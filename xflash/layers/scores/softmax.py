"""`softmax`: weights of a query's keys that sum up to one."""

from ...base.registry import weight_fns
from ...base.shapes import Float, Tensor
from ..kernels.softmax import softmax
from .step import WeightFn

__all__ = ["Softmax"]


@weight_fns.register("softmax")
class Softmax(WeightFn):
    """exp(s) / sum of exp(s) over the keys (https://arxiv.org/abs/1706.03762)."""

    fused = True

    def forward(self, s: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        return softmax(s)
