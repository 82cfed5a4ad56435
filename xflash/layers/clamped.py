"""`Clamped`: the last norm of a stack, behind a soft clamp of what it reads."""

from torch import nn

from ..base.shapes import Float, Tensor
from ..base.state import Ctx
from .activations import softclamped
from .norms import Norm

__all__ = ["Clamped"]


class Clamped(nn.Module):
    """norm(v tanh(x / v)): what leaves the column stays within v (Gemma 2, https://arxiv.org/abs/2408.00118)."""

    def __init__(self, norm: Norm | None, value: float):
        super().__init__()
        self.norm, self.value = norm, value

    def forward(self, x: Float[Tensor, "... d"], ctx: Ctx | None = None) -> Float[Tensor, "... d"]:
        x = softclamped(x, self.value)
        return x if self.norm is None else self.norm(x, ctx)

    def extra_repr(self) -> str:
        return f"value={self.value}"
