"""`zero_key`: a key of zeros that takes weight and gives nothing."""

from ...base.registry import scores
from ...base.shapes import Float, Tensor
from .step import Read, ScoreStep

__all__ = ["ZeroKey"]


@scores.register("zero_key")
class ZeroKey(ScoreStep):
    """A key whose score is zero and whose value is too, so that a query may read nothing (PyTorch's `add_zero_attn`).

    `learned_sink` learns the score, one a head.
    """

    def extra_key(self, read: Read) -> Float[Tensor, "1 h 1 1"]:
        return read.q.new_zeros(1, read.q.shape[1], 1, 1)
