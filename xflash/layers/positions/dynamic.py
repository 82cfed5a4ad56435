"""`dynamic`: a small network that makes a bias of the distance, shared by all layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import positions
from ...base.shapes import Float, Int, Tensor
from ...flags.flag import flag
from ..blocks.block import Block
from .angles import angle_dtype
from .position import Bias

__all__ = ["Dynamic"]


@positions.register("dynamic")
class Dynamic(Bias):
    """The bias of every head by a network of the distance (https://arxiv.org/abs/2111.09883, 2108.00154).

    Layers that have the same number of heads share it, others all but its last map.
    """

    @frozen
    class Config:
        width: int | None = flag(None, "width of the network (None: a quarter of the stack's)", at_least=1, tried=(5,))
        mlp_depth: int = flag(2, "maps of the network before the last", at_least=1, tried=(1,))
        log_distance: bool = flag(False, "it is given log(1 + distance), with the distance's sign", tried=(True,))
        norm: bool = flag(False, "a LayerNorm behind each of these maps", tried=(True,))

    def __init__(self, config: Any, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        self.maps, self.norms, self.outs = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        self.head_counts = heads

    def meet(self, users: Sequence[Block]) -> None:
        if not users:
            return
        depth, width = self.config.mlp_depth, self.config.width or max(users[0].site.dim // 4, 1)
        self.maps.extend(nn.Linear(1 if i == 0 else width, width) for i in range(depth))
        self.norms.extend(nn.LayerNorm(width) for _ in range(depth if self.config.norm else 0))
        for heads in self.head_counts:
            out = nn.Linear(width, heads)
            # As small as other learned biases, whatever the distances are.
            nn.init.normal_(out.weight, std=0.02)
            nn.init.zeros_(out.bias)
            self.outs[str(heads)] = out

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"]:
        # Half precision has too few numbers for distances.
        t = -distance[:, None].to(angle_dtype(dtype))
        if self.config.log_distance:
            t = t.sign() * t.abs().log1p()
        with torch.autocast("cpu" if t.is_meta else t.device.type, enabled=False):
            for i, linear in enumerate(self.maps):
                t = mapped(linear, t)
                if self.config.norm:
                    norm: Any = self.norms[i]
                    t = nn.functional.layer_norm(t, norm.normalized_shape, *parameters(norm, t), norm.eps)
                t = nn.functional.silu(t)
            return mapped(self.outs[str(heads)], t).mT


def parameters(module: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a module in the dtype of `t`."""
    return module.weight.to(t.dtype), module.bias.to(t.dtype)


def mapped(linear: Any, t: Float[Tensor, "l i"]) -> Float[Tensor, "l o"]:
    return nn.functional.linear(t, *parameters(linear, t))
