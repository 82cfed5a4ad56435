"""`polar`: channels of queries and keys as lengths, at angles that only places decide."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks, positions
from ...base.shapes import Float, Int, Tensor
from ...flags.flag import flag
from ..blocks.block import Block
from .angles import angle_dtype
from .position import Turn

__all__ = ["Polar"]


@positions.register("polar")
class Polar(Turn):
    """PoPE (https://arxiv.org/abs/2509.10534): each channel c of a key is a point at distance softplus(k_c) from zero.

    Its angle is the key's place times a frequency and a learned offset, between -2 pi and 0, of head and channel; so
    what a token is and where it stands don't mix as in rotary positions. Keys that are kept are twice as wide. Layers
    of the same shape share their offsets; those that attend to a context have no places.
    """

    places_context = False

    @frozen
    class Config:
        base: float = flag(10000.0, "base of the wavelengths", above=1, tried="rotary has it")
        uniform_start: bool = flag(
            False, "offsets start anywhere between -2 pi and 0, not at 0", tried="only the start is another"
        )

    def __init__(self, config: Any, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        self.offsets = nn.ParameterDict()

    def meet(self, users: Sequence[Block]) -> None:
        for block in users:
            if not block.takes_context:
                heads, width = block.turned_queries(), block.key_width()
                offset = torch.zeros(heads, 1, width or 0)
                start = nn.init.uniform_(offset, -2 * math.pi, 0) if self.config.uniform_start else offset
                self.offsets.setdefault(f"{heads}x{width}", nn.Parameter(start))

    def check(self, users: Sequence[Block]) -> None:
        name = positions.name_of(type(self))
        if all(block.takes_context for block in users):
            raise ValueError(
                f"pos={name!r} has nothing to turn in a stack whose blocks all attend to a context; pos='rotary' turns "
                "by context_pos"
            )
        for block in users:
            kind = blocks.name_of(type(block))
            if block.takes_context:
                continue
            if getattr(block.config, "num_mem_kv", 0):
                raise ValueError(
                    f"pos={name!r} makes keys of two channels for each by their places, but those of "
                    f"{kind}_num_mem_kv={block.config.num_mem_kv} have none: leave out one of them"
                )
            if getattr(block.config, "latent_rope_subheads", None):
                raise ValueError(
                    f"pos={name!r} makes heads twice as wide, but {kind}_latent_rope_subheads="
                    f"{block.config.latent_rope_subheads} turns some of them only: leave out one of them"
                )
            for step_name, step in getattr(getattr(block, "reader", None), "steps", {}).items():
                if step.takes_queries:
                    raise ValueError(
                        f"pos={name!r} makes queries of two channels for each, but {kind}_scores has {step_name!r}, "
                        "which reads them as they were: leave out one of them"
                    )

    def table(
        self, where: Int[Tensor, "_ n"], key_width: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "_ 1 n k"], Float[Tensor, "_ 1 n k"]]:
        """Cosines and sines of the keys' angles, offsets not counted."""
        frequency = 1.0 / (self.config.base ** (torch.arange(key_width, device=where.device).float() / key_width))
        angle = (where[..., None].to(angle_dtype(dtype)) * frequency)[:, None]
        return angle.cos(), angle.sin()

    def turn(self, t: Float[Tensor, "b *h n k"], table: Any, inverse: bool = False) -> Float[Tensor, "b *h n k"]:
        """Points as two coordinates; the offsets of keys are taken off their queries, each of which has its own."""
        cos, sin = table
        if t.dim() > 4 and cos.shape[0] != 1:
            cos, sin = cos[:, None], sin[:, None]
        if not inverse:
            heads = t.shape[1:-2]
            offset = self.offsets[f"{math.prod(heads)}x{t.shape[-1]}"].clamp(-2 * math.pi, 0).to(cos.dtype)
            offset = offset.view(*heads, 1, -1)
            c, s = offset.cos(), offset.sin()
            cos, sin = cos * c + sin * s, sin * c - cos * s
        length = F.softplus(t.to(cos.dtype))
        return torch.cat((length * cos, length * sin), -1).to(t.dtype)
