"""`Pairs`: positions that turn pairs of channels by angles in proportion to where a token stands."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ...base.registry import blocks, positions
from ...base.shapes import Float, Int, Tensor
from ..blocks.block import Block
from .angles import angle_dtype
from .position import Turn

__all__ = ["Pairs"]


class Pairs(Turn):
    """Base of the rotary positions, whose Configs have `emb_dim`, `interleaved` and `interpolation_factor`.

    together: of how many channels a key must have a multiple to be turned whole, and how that is said.
    """

    together: ClassVar[int] = 2
    in_words: ClassVar[str] = "in pairs"

    def check(self, users: Sequence[Block]) -> None:
        """ValueError when keys have too few channels to turn, or none has as many as are to be turned."""
        super().check(users)
        name, wanted = positions.name_of(type(self)), self.config.emb_dim
        widths = {width: blocks.name_of(type(b)) for b in users if (width := b.key_width()) is not None}
        for width in widths:
            if width < self.together:
                few = "one channel" if width == 1 else f"{width} channels"
                raise ValueError(
                    f"pos={name!r} turns channels {self.in_words}, but keys of {widths[width]!r} have {few}"
                )
        if wanted is not None and widths and wanted > max(widths):
            widest = max(widths)
            raise ValueError(
                f"{name}_emb_dim={wanted}, but the widest keys, those of {widths[widest]!r}, have {widest} channels"
            )

    @property
    def alike(self) -> bool:
        return True

    @property
    def neighbours(self) -> bool:
        return self.config.interleaved

    def width(self, key_width: int) -> int:
        """How many channels of a key of this width are turned: a multiple of `together`, no more than the key has."""
        return min(self.config.emb_dim or key_width, key_width) // self.together * self.together

    @property
    def size(self) -> float:
        """What is turned is multiplied by it, queries and keys alike."""
        return 1.0

    def angles(self, where: Float[Tensor, "_ n *_"], width: int) -> Float[Tensor, "_ n half"]:
        """The angle of each pair of `width` channels at each place, in the dtype of the places."""
        raise NotImplementedError

    def table(
        self, where: Int[Tensor, "_ n *_"], key_width: int, dtype: Any
    ) -> tuple[Float[Tensor, "_ 1 n r"], Float[Tensor, "_ 1 n r"], Tensor | None]:
        """Cosines, signed sines and (for those that have them) scales of shape (1 | b, 1, n, width) in `dtype`."""
        angle = self.angles(where.to(angle_dtype(dtype)), self.width(key_width))
        if self.config.interpolation_factor != 1:
            angle = angle / self.config.interpolation_factor
        sin, cos = angle.sin(), angle.cos()
        if (size := self.size) != 1:
            sin, cos = sin * size, cos * size
        signed, even = self.spread(-sin, sin)[:, None].to(dtype), self.spread(cos, cos)[:, None].to(dtype)
        return even, signed, None

    def spread(self, first: Tensor, second: Tensor) -> Tensor:
        """The values of both members of each pair, in the order in which the pairs lie."""
        if self.config.interleaved:
            return torch.stack((first, second), -1).flatten(-2)
        return torch.cat((first, second), -1)

    def turn(self, t: Float[Tensor, "b *h n k"], table: tuple, inverse: bool = False) -> Float[Tensor, "b *h n k"]:
        """`t` rotated to its positions; `inverse` divides by the scale (keys) where queries are multiplied."""
        cos, sin, scale = table
        if t.dim() > 4 and cos.shape[0] != 1:
            cos, sin, scale = (part if part is None else part[:, None] for part in table)
        width = cos.shape[-1]
        part = t if width == t.shape[-1] else t[..., :width]
        if self.config.interleaved:
            swapped = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            swapped = part.roll(width // 2, -1)
        turned = torch.addcmul(part * cos, swapped, sin)
        if scale is not None:
            turned = (turned / scale if inverse else turned * scale).to(t.dtype)
        return turned if width == t.shape[-1] else torch.cat((turned, t[..., width:]), -1)
