"""Images as sequences: patches as tokens, and absolute positions on their grid."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..base.shapes import Float, Tensor, typed
from ..layers.norms import LayerNorm
from ..layers.positions.angles import angle_dtype

__all__ = ["LearnedGrid", "PatchEmbedding", "SinCosGrid", "patchify", "resize_grid", "sincos_grid"]


def patchify(img: Float[Tensor, "b c y x"], patch: tuple[int, int]) -> Float[Tensor, "b n p"]:
    """The patches of (height, width) pixels, row by row of the image; in each, the channels of a pixel lie together."""
    height, width = patch
    return rearrange(img, "b c (down p) (across q) -> b (down across) (p q c)", p=height, q=width)


def sincos_grid(down: int, across: int, dim: int, device: torch.device | None = None) -> Float[Tensor, "n d"]:
    """Fixed positions (down * across, dim), float32: a quarter each of sin x, cos x, sin y and cos y.

    Frequencies go from 1 down to 1 / 10,000; `dim` is a multiple of 4 (https://arxiv.org/abs/2205.01580).
    """
    steps = torch.linspace(0, 1, dim // 4, device=device)
    frequency = 10000.0**-steps
    y = torch.arange(down, device=device)[:, None, None] * frequency
    x = torch.arange(across, device=device)[None, :, None] * frequency
    y, x = (t.expand(down, across, -1) for t in (y, x))
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), -1).flatten(0, 1)


def resize_grid(
    weight: Float[Tensor, "r c d"], down: int, across: int, antialias: bool = False
) -> Float[Tensor, "down across d"]:
    """A grid of vectors at another size: bicubic, the outer edges of both grids together.

    antialias: by PyTorch's antialiased kernel, which is another one at larger sizes too.
    """
    exact = weight.to(angle_dtype(weight.dtype)).permute(2, 0, 1)[None]
    moved = F.interpolate(exact, size=(down, across), mode="bicubic", align_corners=False, antialias=antialias)
    return moved[0].permute(1, 2, 0).to(weight.dtype)


class PatchEmbedding(nn.Module):
    """Patches of an image (b, c, y, x) as tokens (b, n, d): norm, linear map, norm (both LayerNorms without a bias).

    norms: False for the linear map alone, which is a convolution whose steps are as large as its kernel.
    """

    def __init__(self, channels: int, patch: tuple[int, int], dim: int, norms: bool = True, bias: bool = True):
        super().__init__()
        self.patch = patch
        width = channels * patch[0] * patch[1]
        self.before = LayerNorm.of(width) if norms else None
        self.project = nn.Linear(width, dim, bias=bias)
        self.after = LayerNorm.of(dim) if norms else None

    @typed
    def forward(self, img: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        x = patchify(img, self.patch)
        x = self.project(x if self.before is None else self.before(x))
        return x if self.after is None else self.after(x)

    def extra_repr(self) -> str:
        return f"patch={self.patch}"


class LearnedGrid(nn.Module):
    """Adds a learned vector at each place of a grid to tokens (b, n, d); for another grid they are interpolated."""

    def __init__(self, down: int, across: int, dim: int, antialias: bool = False):
        super().__init__()
        self.antialias = antialias
        # As large as the patches are behind their norm: beside them a small start is not heard for hundreds of steps.
        self.weight = nn.Parameter(torch.randn(down, across, dim))

    def forward(self, x: Float[Tensor, "b n d"], down: int, across: int) -> Float[Tensor, "b n d"]:
        same = (down, across) == tuple(self.weight.shape[:2])
        weight = self.weight if same else resize_grid(self.weight, down, across, self.antialias)
        return x + weight.flatten(0, 1).to(x.dtype)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))


class SinCosGrid(nn.Module):
    """Adds `sincos_grid` to tokens (b, n, d), for any grid."""

    def forward(self, x: Float[Tensor, "b n d"], down: int, across: int) -> Float[Tensor, "b n d"]:
        return x + sincos_grid(down, across, x.shape[-1], x.device).to(x.dtype)
