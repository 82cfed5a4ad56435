"""`rotary`: pairs of channels of queries and keys are turned by where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...base.registry import blocks, positions
from ...base.shapes import Float, Int, Tensor
from ...flags.flag import flag
from ..blocks.block import Block
from .angles import angle_dtype
from .position import Turn
from .scaling import ScalingFlags, amplitude, check_factors, check_scaling, scaled_frequencies

__all__ = ["Rotary"]


@positions.register("rotary")
class Rotary(Turn):
    """Rotary embedding of queries and keys (https://arxiv.org/abs/2104.09864), optionally xPos (2212.10554)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ScalingFlags):
        emb_dim: int | None = flag(
            None, "channels of each key that are turned (None: all; all of narrower keys)", at_least=2, tried=(4,)
        )
        base: float = flag(10000.0, "base of the wavelengths", above=1, tried=(500.0,))
        base_rescale_factor: float = flag(
            1.0, "NTK-aware rescaling of the base", above=0, paper="https://arxiv.org/abs/2309.00071", tried=(1.5,)
        )
        interpolation_factor: float = flag(
            1.0, "positions are divided by it", at_least=1, paper="https://arxiv.org/abs/2306.15595", tried=(2.0,)
        )
        interleaved: bool = flag(
            False, "pairs are neighbours (2i, 2i + 1), not halves (i, i + width / 2)", tried=(True,)
        )
        xpos: bool = flag(
            False,
            "scores also decay with distance (causal stacks, float32 or bfloat16)",
            paper="https://arxiv.org/abs/2212.10554",
            tried=({"xpos": True},),
        )
        xpos_scale_base: float = flag(
            512.0,
            "distance over which xPos decays by one power",
            above=0,
            tried=({"xpos_scale_base": 64.0, "xpos": True},),
        )

    def __init__(self, config: Config, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        if config.emb_dim is not None and config.emb_dim % 2:
            raise ValueError(f"rotary_emb_dim must be even, not {config.emb_dim}")
        if config.xpos and not causal:
            raise ValueError("rotary_xpos=True needs a causal stack: its decay has a direction")
        check_scaling(config, positions.name_of(type(self)))

    def check(self, users: Sequence[Block]) -> None:
        """ValueError when keys have no pair of channels, or none has as many as are to be turned."""
        name, wanted = positions.name_of(type(self)), self.config.emb_dim
        widths = {width: blocks.name_of(type(b)) for b in users if (width := b.key_width()) is not None}
        if 1 in widths:
            raise ValueError(f"pos={name!r} turns channels in pairs, but keys of {widths[1]!r} have one channel")
        if wanted is not None and widths and wanted > max(widths):
            widest = max(widths)
            raise ValueError(
                f"{name}_emb_dim={wanted}, but the widest keys, those of {widths[widest]!r}, have {widest} channels"
            )
        for width in widths:
            check_factors(self.config, self.width(width), name)
        for block in users:
            if block.counts_places and self.config.scaling == "dynamic":
                raise ValueError(
                    f"{name}_scaling='dynamic' counts the text up to each token, but "
                    f"{blocks.name_of(type(block))!r} counts places inside its window"
                )

    def refuses_ahead(self) -> tuple[str, str] | None:
        if not self.config.xpos:
            return None
        flag = f"{positions.name_of(type(self))}_xpos=True"
        return flag, "its decay has a direction, and keys ahead would be amplified"

    @property
    def alike(self) -> bool:
        return not self.config.xpos

    @property
    def in_pairs(self) -> bool:
        return type(self).turn is Rotary.turn and not self.config.xpos

    @property
    def neighbours(self) -> bool:
        return self.config.interleaved

    def width(self, key_width: int) -> int:
        """How many channels of a key of this width are turned: an even number, no more than the key has."""
        return min(self.config.emb_dim or key_width, key_width) // 2 * 2

    def table(
        self, where: Int[Tensor, "_ n"], key_width: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cosines, signed sines and (xPos) scales of shape (1 | b, 1, n, width) in `dtype`."""
        width, config = self.width(key_width), self.config
        exact = angle_dtype(dtype)
        base = config.base * config.base_rescale_factor ** (width / max(width - 2, 1))
        at = where.to(exact)
        angle = at[..., None] * scaled_frequencies(config, base, width, at).to(exact)
        if config.interpolation_factor != 1:
            angle = angle / config.interpolation_factor
        sin, cos = angle.sin(), angle.cos()
        if (size := amplitude(config)) != 1:
            sin, cos = sin * size, cos * size
        scale = None
        if config.xpos:
            ratio = (torch.arange(0, width, 2, device=where.device) + 0.4 * width) / (1.4 * width)
            scale = self.spread(*[ratio.to(exact) ** (where.to(exact)[..., None] / config.xpos_scale_base)] * 2)[
                :, None
            ]
        signed, even = self.spread(-sin, sin)[:, None].to(dtype), self.spread(cos, cos)[:, None].to(dtype)
        return even, signed, scale

    def spread(self, first: Tensor, second: Tensor) -> Tensor:
        """The values of both members of each pair, in the order in which the pairs lie."""
        if self.config.interleaved:
            return torch.stack((first, second), -1).flatten(-2)
        return torch.cat((first, second), -1)

    def turn(self, t: Float[Tensor, "b *h n k"], table: tuple, inverse: bool = False) -> Float[Tensor, "b *h n k"]:
        """`t` rotated to its positions; `inverse` divides by the xPos scale (keys) where queries are multiplied."""
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
