"""What both sides of the comparisons in this folder are given: run by tests_libraries/test_triton.py, in a process in
which triton interprets its kernels on a CPU (TRITON_INTERPRET=1, before it is imported).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xflash.layers.kernels import triton_groups
from xflash.layers.kernels.fused_groups import Settings, Turn
from xflash.layers.kernels.triton_groups import Tiles

__all__ = ["COARSE", "FINE", "Case", "cut_into"]

# Tiles of which the small sizes here need several along every axis; larger ones, with which it takes less time.
FINE, COARSE = Tiles(16, 16, 32, 16), Tiles(32, 32, 64, 64)


def cut_into(monkeypatch: Any, tiles: Tiles = COARSE) -> None:
    """Other tiles than those of a GPU, for all kernels."""
    for kernel, cut in triton_groups.KERNELS.items():
        monkeypatch.setitem(triton_groups.KERNELS, kernel, cut._replace(tiles=tiles))


class Case(NamedTuple):
    """Sizes as in the kernels, turned: channels that are rotated, in neighbouring pairs or halves."""

    b: int = 2
    n: int = 37
    w: int = 17
    k: int = 19
    e: int = 41
    attn_fn: str = "relu2"
    turned: int = 0
    interleaved: bool = False
    beta: bool = True
    bias: bool = True
    closed: bool = True
    mean: bool = True
    divide: float = 1.0
    new: tuple[int, ...] | None = None

    @property
    def settings(self) -> Settings:
        return Settings(self.w, self.attn_fn, 1 / self.w, self.divide, self.mean, 3 if self.closed else 0)

    def leaves(self, dtype: torch.dtype) -> list[Tensor | None]:
        """hidden, gamma, beta, the bias by distance and closed, asking for gradients."""
        chance = torch.Generator().manual_seed(5)
        k, e = self.k, self.e
        shapes = (self.b, self.n, 2 * e + k), (4, k), (4, k), (1, 2 * self.w - 1), (self.b, k, e)
        made = [torch.randn(shape, generator=chance, dtype=torch.float64) for shape in shapes]
        there = (True, True, self.beta, self.bias, self.closed)
        return [t.to(dtype).requires_grad_() if is_there else None for t, is_there in zip(made, there, strict=True)]

    def turn(self, dtype: torch.dtype) -> Turn | None:
        if not self.turned:
            return None
        chance = torch.Generator().manual_seed(7)
        angles = torch.randn(self.n, self.turned // 2, generator=chance, dtype=torch.float64)
        sin, cos = angles.sin().to(dtype), angles.cos().to(dtype)
        if self.interleaved:
            lay = [torch.stack(pair, -1).flatten(1) for pair in ((cos, cos), (-sin, sin))]
        else:
            lay = [torch.cat(pair, 1) for pair in ((cos, cos), (-sin, sin))]
        return Turn(*lay, self.interleaved)

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the results are summed with, for gradients; nothing at tokens that do not exist."""
        chance = torch.Generator().manual_seed(9)
        out = torch.randn(self.b, self.n, self.e, generator=chance, dtype=torch.float64)
        after = torch.randn(self.b, self.k, self.e, generator=chance, dtype=torch.float64)
        if self.new is not None:
            out *= (torch.arange(self.n) < torch.tensor(self.new)[:, None])[..., None]
        return out.to(dtype), after.to(torch.promote_types(dtype, torch.float32))
