"""`softclamp`: scores that stay below a bound."""

from ...base.frozen import frozen
from ...base.registry import scores
from ...base.shapes import Float, Tensor
from ...flags.flag import flag
from ..activations import softclamped
from .step import Read, ScoreStep

__all__ = ["SoftClamp"]


@scores.register("softclamp")
class SoftClamp(ScoreStep):
    """c tanh(s / c), biases included (Gemma 2, https://arxiv.org/abs/2408.00118)."""

    @frozen
    class Config:
        value: float = flag(50.0, "c, which scores stay below", above=0, tried=(2.0,))

    def before(self, s: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        return softclamped(s, self.config.value)
