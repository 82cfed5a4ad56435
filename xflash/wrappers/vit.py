"""`ViTransformerWrapper`: images in, logits or patch embeddings out, around any bidirectional stack."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..base.checks import (
    check_count,
    check_dtype,
    check_share,
    check_switch,
    check_switches,
    count_or_none,
    given,
    main_weight,
    shown,
)
from ..base.registry import nearest
from ..base.shapes import Float, Tensor
from ..layers.norms import LayerNorm
from ..saving.configurable import Configurable
from ..stack.face import AttentionLayers
from .options import check_needs_nothing
from .patches import LearnedGrid, PatchEmbedding, SinCosGrid
from .pooling import POOLS

__all__ = ["ViTransformerWrapper"]

POSITIONS = ("learned", "sincos2d", None)


class ViTransformerWrapper(Configurable):
    """A vision transformer (https://arxiv.org/abs/2010.11929) around an `Encoder` of any layout.

    `model(img)` takes images (b, channels, height, width) and gives logits (b, num_classes), or the pooled embedding
    (b, d) without `num_classes`. Sizes are one number or (height, width). Images of another size than `image_size`
    work when patches divide them: learned positions are interpolated (bicubic), those of 'sincos2d' (2205.01580) made
    for the new grid; relative positions of the stack count patches row by row. Register tokens (2309.16588) stand
    behind the patches, the class token of `pool='cls'` in front of them; neither is among the embeddings.
    """

    gives = "logits of images"

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        attn_layers: AttentionLayers,
        channels: int = 3,
        num_classes: int | None = None,
        post_emb_norm: bool = False,
        num_register_tokens: int | None = 0,
        emb_dropout: float = 0.0,
        pos_emb: Literal["learned", "sincos2d"] | None = "learned",
        pool: Literal["mean", "cls", "attn"] = "mean",
    ):
        super().__init__()
        check_stack(attn_layers)
        self.image_size, self.patch_size = as_size("image_size", image_size), as_size("patch_size", patch_size)
        check_count("channels", channels)
        if num_classes is not None:
            check_count("num_classes", num_classes)
        registers = count_or_none("num_register_tokens", num_register_tokens)
        check_switch("post_emb_norm", post_emb_norm)
        check_share("emb_dropout", emb_dropout)
        check_choice("pos_emb", pos_emb, POSITIONS)
        check_choice("pool", pool, tuple(POOLS))
        self.attn_layers = attn_layers
        self.dim, self.channels, self.num_classes = attn_layers.dim, channels, num_classes
        if pos_emb == "sincos2d" and self.dim % 4:
            raise ValueError(f"pos_emb='sincos2d' needs a dim that 4 divides, not {self.dim}")
        self.grid = grid_of("image_size", self.image_size, self.patch_size)
        self.patch_emb = PatchEmbedding(channels, self.patch_size, self.dim)
        self.pos_emb: nn.Module | None = None
        if pos_emb is not None:
            self.pos_emb = SinCosGrid() if pos_emb == "sincos2d" else LearnedGrid(*self.grid, self.dim)
        self.post_emb_norm = LayerNorm.of(self.dim) if post_emb_norm else None
        self.emb_dropout = emb_dropout
        self.cls_token = small(1, self.dim) if pool == "cls" else None
        self.register_tokens = small(registers, self.dim) if registers else None
        self.pool = POOLS[pool](self.dim)
        self.to_logits = nn.Linear(self.dim, num_classes) if num_classes is not None else None
        if self.to_logits is not None:
            nn.init.normal_(self.to_logits.weight, std=0.02)
            nn.init.zeros_(self.to_logits.bias)

    def flag_table(self) -> str:
        """Every flag of the stack with its value, default, type and meaning, as text."""
        return self.attn_layers.flag_table()

    def forward(
        self, img: Float[Tensor, "b c y x"], return_embeddings: bool = False, return_logits_and_embeddings: bool = False
    ) -> Any:
        """Logits (b, num_classes) of images (b, c, height, width).

        `return_embeddings` gives the patches' embeddings (b, n, d) instead, row by row of the image,
        `return_logits_and_embeddings` both. TypeError or ValueError for images that the patches do not fit.
        """
        check_switches(return_embeddings=return_embeddings, return_logits_and_embeddings=return_logits_and_embeddings)
        if return_embeddings and return_logits_and_embeddings:
            raise ValueError("return_embeddings and return_logits_and_embeddings exclude each other; give one of them")
        self.check_images(img)
        x = self.embed(img)
        n = x.shape[1]
        y = self.attn_layers(self.with_extra_tokens(x))
        front = 0 if self.cls_token is None else 1
        embeddings = y[:, front : front + n]
        if return_embeddings:
            return embeddings
        pooled = self.pool(y if front else embeddings)
        logits = pooled if self.to_logits is None else self.to_logits(pooled)
        return (logits, embeddings) if return_logits_and_embeddings else logits

    def embed(self, img: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        """The patches as the stack gets them, with their positions."""
        try:
            x = self.patch_emb(img)
        except RuntimeError:
            # Only then: what the weights look like says little of a model that is sharded or quantised.
            weight = main_weight(self)
            if weight is not None and not torch.is_autocast_enabled(img.device.type):
                check_dtype("img is", "img", img.dtype, weight.dtype)
            raise
        if self.pos_emb is not None:
            down, across = img.shape[2] // self.patch_size[0], img.shape[3] // self.patch_size[1]
            x = self.pos_emb(x, down, across)
        if self.post_emb_norm is not None:
            x = self.post_emb_norm(x)
        return F.dropout(x, self.emb_dropout, self.training) if self.emb_dropout else x

    def with_extra_tokens(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """The class token in front of the patches and the registers behind them."""
        parts = (self.cls_token, x, self.register_tokens)
        parts = [p if p is x else p.to(x.dtype).expand(x.shape[0], -1, -1) for p in parts if p is not None]
        return torch.cat(parts, 1) if len(parts) > 1 else x

    def check_images(self, img: Tensor) -> None:
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


def as_size(name: str, value: Any) -> tuple[int, int]:
    """One number or (height, width) as a pair."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one number or (height, width), not {shown(value)}")
    for side in pair:
        check_count(name, side)
    return pair


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


def check_stack(attn_layers: Any) -> None:
    """TypeError or ValueError unless it is a bidirectional stack."""
    if not isinstance(attn_layers, AttentionLayers):
        raise TypeError(f"attn_layers must be a stack such as Encoder(...), not {type(attn_layers).__name__}")
    if attn_layers.causal:
        raise ValueError(
            f"attn_layers is a causal {type(attn_layers).__name__}, in which a patch would see only those above and "
            "before it; images take a bidirectional stack such as Encoder(...)"
        )
    if any(block.takes_context for block in attn_layers.blocks()):
        raise ValueError(f"the layout {attn_layers.layout!r} attends to a context, but images come without one")
    check_needs_nothing(attn_layers, "images come without")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """ValueError unless the value is one of the choices."""
    if value not in choices:
        close = nearest(value, [c for c in choices if c]) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {shown(value)}{close}")


def small(number: int, dim: int) -> nn.Parameter:
    """Learned tokens, started small."""
    return nn.Parameter(torch.empty(number, dim).normal_(std=0.02))
