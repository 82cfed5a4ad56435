"""`rel_pos`: T5's learned bias by buckets of distances, shared by all layers."""

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import positions
from ...base.shapes import Float, Int, Tensor
from ...flags.flag import flag
from .distance import T5Bias
from .position import Bias

__all__ = ["RelPos"]


@positions.register("rel_pos")
class RelPos(Bias):
    """T5's relative bias, one table for all layers that have the same number of heads."""

    @frozen
    class Config:
        num_buckets: int = flag(32, "distance buckets", at_least=4, tried=(8,))
        max_distance: int = flag(128, "distances from here on share a bucket", at_least=2, tried=(20,))

    def __init__(self, config: Config, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        tables = {str(h): T5Bias(h, causal, config.num_buckets, config.max_distance) for h in heads}
        self.tables = nn.ModuleDict(tables)

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"]:
        return self.tables[str(heads)](distance)
