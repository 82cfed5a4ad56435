"""`ImageInput`: what turns images into the stream that a stack reads."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..base.checks import check_dtype, given, main_weight
from ..base.frozen import frozen
from ..base.shapes import Float, Int, Tensor
from ..flags.flag import flag
from .patches import LearnedGrid, PatchEmbedding, SinCosGrid
from .stream_input import norm_behind

__all__ = ["ImageInput"]


class ImageInput(nn.Module):
    """Patches of images (b, channels, height, width) as tokens (b, n, d), with positions, norm and dropout.

    Images of another size than `image_size` work when patches divide them: learned positions are interpolated, those
    of 'sincos2d' made for the new grid.
    """

    @frozen
    class Config:
        image_size: int | tuple[int, int] = flag(
            doc="pixels of images, one number or (height, width)",
            at_least=1,
            tried=({"image_size": (12, 20), "patch_size": (4, 5)},),
        )
        patch_size: int | tuple[int, int] = flag(
            doc="pixels of a patch, one number or (height, width)", at_least=1, tried="together with the size of images"
        )
        channels: int = flag(3, "numbers a pixel has", at_least=1, tried=(1,))
        patch_norm: bool = flag(
            True,
            "LayerNorms before and behind the projection of patches (False: the projection alone, as in timm)",
            tried=(False,),
        )
        patch_bias: bool = flag(True, "an offset of that projection", tried=(False,))
        post_emb_norm: bool = flag(False, "a LayerNorm behind the embedded patches and their positions", tried=(True,))
        post_emb_norm_eps: float = flag(
            1e-5, "what it adds to the variance", above=0, tried=({"post_emb_norm_eps": 1e-3, "post_emb_norm": True},)
        )
        post_emb_norm_bias: bool = flag(
            False, "a learned offset beside its gain", tried=({"post_emb_norm_bias": True, "post_emb_norm": True},)
        )
        num_register_tokens: int | None = flag(
            0, "learned tokens behind the patches, which nothing is read of", at_least=0,
            paper="https://arxiv.org/abs/2309.16588", tried=(3,),
        )  # fmt: skip
        emb_dropout: float = flag(0.0, "dropout of the embedded patches", at_least=0, below=1, tried=(0.1,))
        pos_emb: Literal["learned", "sincos2d"] | None = flag(
            "learned", "absolute positions of patches: learned on a grid, fixed waves down and across, or none",
            paper="https://arxiv.org/abs/2205.01580", tried=("sincos2d", None),
        )  # fmt: skip
        pos_emb_antialias: bool = flag(
            False, "learned positions are interpolated with antialiasing, as DINOv2 with registers and timm do",
            paper="https://arxiv.org/abs/2309.16588", tried=({"pos_emb_antialias": True, "pos_emb": "learned"},),
        )  # fmt: skip

    def __init__(self, config: Config, dim: int):
        super().__init__()
        self.image_size, self.patch_size = pair(config.image_size), pair(config.patch_size)
        self.channels, self.emb_dropout = config.channels, config.emb_dropout
        self.grid = grid_of("image_size", self.image_size, self.patch_size)
        self.patch_emb = PatchEmbedding(config.channels, self.patch_size, dim, config.patch_norm, config.patch_bias)
        self.pos_emb = positions(config, self.grid, dim)
        self.post_emb_norm = norm_behind(config, dim)
        self.register_tokens: nn.Parameter | None = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.empty(config.num_register_tokens, dim).normal_(std=0.02))

    def forward(self, img: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        """The patches as the stack gets them, row by row of the image."""
        try:
            x = self.patch_emb(img)
        except RuntimeError:
            # Only then: what the weights look like says little of a model that is sharded or quantised.
            weight = main_weight(self)
            if weight is not None and not torch.is_autocast_enabled(img.device.type):
                check_dtype("img is", "img", img.dtype, weight.dtype)
            raise
        if self.pos_emb is not None:
            x = self.pos_emb(x, *self.patches(img))
        if self.post_emb_norm is not None:
            x = self.post_emb_norm(x)
        return F.dropout(x, self.emb_dropout, self.training) if self.emb_dropout else x

    def with_registers(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """The register tokens behind the patches."""
        if self.register_tokens is None:
            return x
        return torch.cat((x, self.register_tokens.to(x.dtype).expand(x.shape[0], -1, -1)), 1)

    def patches(self, img: Float[Tensor, "b c y x"]) -> tuple[int, int]:
        """How many patches of an image stand below and beside each other."""
        return img.shape[2] // self.patch_size[0], img.shape[3] // self.patch_size[1]

    def places(self, img: Float[Tensor, "b c y x"]) -> Int[Tensor, "1 m 2"]:
        """The row and the column of each patch; registers, which have none, stand at (0, 0)."""
        down, across = self.patches(img)
        index = torch.arange(down * across, device=img.device)
        grid = torch.stack((index // across, index % across), -1)
        return F.pad(grid, (0, 0, 0, 0 if self.register_tokens is None else len(self.register_tokens)))[None]

    def check(self, img: Any) -> None:
        """TypeError or ValueError for what is no batch of images, or of images that the patches do not divide."""
        wanted = f"(batch, {self.channels}, height, width)"
        if not isinstance(img, torch.Tensor) or not img.is_floating_point():
            raise TypeError(
                f"img must be a floating-point tensor {wanted}, not {given(img)}; bytes are scaled by / 255"
            )
        if img.dim() != 4:
            raise ValueError(f"img must be images {wanted}, not {tuple(img.shape)}")
        if img.shape[1] != self.channels:
            raise ValueError(f"img must have {self.channels} channels on their second axis, not {img.shape[1]}")
        grid_of("img", (img.shape[2], img.shape[3]), self.patch_size)


def positions(config: ImageInput.Config, grid: tuple[int, int], dim: int) -> nn.Module | None:
    """The absolute positions of patches; ValueError for waves that the width has no room for."""
    kind, antialias = config.pos_emb, config.pos_emb_antialias
    if antialias and kind != "learned":
        raise ValueError(f"pos_emb_antialias=True is of learned positions, but pos_emb={kind!r} interpolates none")
    if kind == "sincos2d" and dim % 4:
        raise ValueError(f"pos_emb='sincos2d' needs a dim that 4 divides, not {dim}")
    return {None: lambda: None, "sincos2d": SinCosGrid, "learned": lambda: LearnedGrid(*grid, dim, antialias)}[kind]()


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """One number or (height, width) as (height, width)."""
    return size if isinstance(size, tuple) else (size, size)


def grid_of(name: str, size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """How many patches stand below and beside each other; ValueError when they do not cover the image exactly."""
    for axis, pixels, side in zip(("height", "width"), size, patch, strict=True):
        if pixels < side or pixels % side:
            down, up = pixels // side * side, (pixels // side + 1) * side
            near = f"{down} or {up}" if down else f"{up}"
            raise ValueError(
                f"{name} has a {axis} of {pixels}, which patches of {axis} {side} do not divide; {near} would do"
            )
    return size[0] // patch[0], size[1] // patch[1]
